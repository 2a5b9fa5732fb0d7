"""PLY (Turk 1994): ascii, binary little and big endian; any elements in any order, lists included."""

import re
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.io.bytes import Source
from geom.io.colors import eight_bits
from geom.io.faces import fan
from geom.io.geometry import Geometry, checked
from geom.io.tokens import read_rows

__all__ = ["read_ply", "write_ply"]

_NAMES = "char uchar short ushort int uint float double int8 uint8 int16 uint16 int32 uint32 float32 float64"
_TYPES: dict[str, str] = dict(zip(_NAMES.split(), ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"] * 2, strict=True))
_ENDS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LONGEST = 1 << 20  # bytes of header
_INTENSITY = ("intensity", "scalar_intensity", "reflectance")
_INDICES = ("vertex_indices", "vertex_index")


@dataclass(frozen=True)
class _Property:
    name: str
    type: np.dtype[Any]
    count: np.dtype[Any] | None = None  # of a list


@dataclass
class _Element:
    name: str
    rows: int
    properties: dict[str, _Property] = field(default_factory=dict)


def read_ply(source: Source) -> Geometry:
    """Read a PLY file.

    Of element `vertex`: x, y, z; nx, ny, nz; red, green, blue; intensity, scalar_intensity or reflectance. Of element
    `face`: the list vertex_indices or vertex_index. Everything else is skipped; triangle strips are refused.

    Raises: FileFormatError.
    """
    elements, order, start = _header(source)
    body = _Ascii(source, start) if order == "" else _Binary(source, start)
    vertex: dict[str, NDArray[Any]] | None = None
    faces: NDArray[Any] | None = None
    for element in elements:
        if element.name == "tristrips" and element.rows:
            raise source.fail("triangle strips are not read: store element face instead")
        columns, lists = _read_element(body, element)
        if element.name == "vertex":
            vertex = columns
        elif element.name == "face":
            name = next((n for n in _INDICES if n in lists), None)
            if name is None and element.rows:
                raise source.fail("element face has no list vertex_indices")
            faces = fan(source, *lists[name]) if name else np.empty((0, 3), np.int64)
    body.end()
    if vertex is None:
        raise source.fail("no element vertex")
    positions = _stack(vertex, "x", "y", "z")
    if positions is None:
        raise source.fail("element vertex lacks one of the properties x, y, z")
    return checked(
        source,
        positions,
        faces=faces,
        normals=_stack(vertex, "nx", "ny", "nz"),
        colors=_stack(vertex, "red", "green", "blue"),
        intensities=next((vertex[n] for n in vertex if n.lower() in _INTENSITY), None),
    )


def _stack(columns: dict[str, NDArray[Any]], *names: str) -> NDArray[Any] | None:
    """Columns (N,) as one array (N, K), a view where they stand side by side in the file; None where one is absent."""
    if not all(n in columns for n in names):
        return None
    parts = [columns[n] for n in names]
    first, step = parts[0], parts[0].itemsize
    places = [p.__array_interface__["data"][0] for p in parts]
    beside = not first.flags.writeable and places == [places[0] + k * step for k in range(len(parts))]
    if beside and all(p.dtype == first.dtype and p.strides == first.strides for p in parts):
        return np.lib.stride_tricks.as_strided(first, (len(first), len(parts)), (*first.strides, step))
    return np.stack(parts, 1)


def _header(source: Source) -> tuple[list[_Element], str, int]:
    """Elements, byte order ("" for ascii) and where the body begins."""
    data, elements, order = source.data, [], None
    magic = re.match(rb"ply[ \t]*(\r?\n|\r)", data)
    if magic is None:
        raise source.fail("expected a first line 'ply'", 0)
    newline = b"\r" if magic[1] == b"\r" else b"\n"
    at = magic.end()
    while True:
        stop = data.find(newline, at, _LONGEST)
        line = data[at : stop if stop >= 0 else at + 80]
        words = line.decode("latin-1").split()
        if words == ["end_header"] and (stop >= 0 or at + len(line) == len(data)):
            break
        if stop < 0:
            raise source.fail("the header has no end_header in its first MiB", at)
        match words:
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if kind in _ENDS and order is None:
                order = _ENDS[kind]
            case ["element", name, rows] if re.fullmatch(r"[0-9]{1,18}", rows) and order is not None:
                if name in ("vertex", "face") and any(e.name == name for e in elements):
                    raise source.fail(f"element {name} is declared twice", at)
                elements.append(_Element(name, int(rows)))
            case ["property", kind, name] if kind in _TYPES and elements:
                _declare(source, elements[-1], _Property(name, _type(kind, order)), at)
            case ["property", "list", count, kind, name] if count in _TYPES and kind in _TYPES and elements:
                if _TYPES[count][0] == "f":
                    raise source.fail(f"property {name}: expected a whole type for list lengths, got {count}", at)
                _declare(source, elements[-1], _Property(name, _type(kind, order), _type(count, order)), at)
            case _:
                raise source.fail(f"expected a line of a PLY header, got {line[:60]!r}", at)
        at = stop + 1
    if order is None:
        raise source.fail("the header has no line 'format'", 0)
    return elements, order, stop + 1 if stop >= 0 else len(data)


def _type(name: str, order: str | None) -> np.dtype[Any]:
    return np.dtype((order or "<") + _TYPES[name])


def _declare(source: Source, element: _Element, new: _Property, at: int) -> None:
    if new.name in element.properties:
        raise source.fail(f"property {new.name} of element {element.name} is declared twice", at)
    element.properties[new.name] = new


class _Binary:
    """The body of a binary file: places are bytes."""

    def __init__(self, source: Source, at: int) -> None:
        self.source, self.at, self.stop = source, at, len(source.data)

    def width(self, dtype: np.dtype[Any]) -> int:
        return dtype.itemsize

    def strided(self, at: int, rows: int, stride: int, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """(rows, length) items; row i begins at at + i stride. The caller has checked the range."""
        return np.ndarray((rows, length), dtype, self.source.data, at, (stride, dtype.itemsize))

    def gather(self, places: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        every = len(self.source.data) - dtype.itemsize + 1
        return np.ndarray((max(every, 0),), dtype, self.source.data, 0, (1,))[places]

    def length(self, at: int, dtype: np.dtype[Any]) -> int:
        return int.from_bytes(
            self.source.data[at : at + dtype.itemsize],
            "big" if dtype.byteorder == ">" else "little",
            signed=dtype.kind == "i",
        )

    def end(self) -> None:
        self.source.padding(self.at, "after the last element")


class _Ascii(_Binary):
    """The body of a text file: places are numbers, and declared types are checked afterwards."""

    def __init__(self, source: Source, at: int) -> None:
        self.source, self.at = source, 0
        self.values = read_rows(source, source.data[at:], at)[0]
        self.stop = len(self.values)

    def width(self, dtype: np.dtype[Any]) -> int:
        return 1

    def strided(self, at: int, rows: int, stride: int, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        step = self.values.itemsize
        values = np.ndarray((rows, length), self.values.dtype, self.values, at * step, (stride * step, step))
        return self._typed(values, dtype)

    def gather(self, places: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        return self._typed(self.values[places], dtype)

    def length(self, at: int, dtype: np.dtype[Any]) -> int:
        value = float(self.values[at])
        return int(value) if 0 <= value <= self.stop and value.is_integer() else -1

    def _typed(self, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                return values.astype(dtype)
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        good = (values >= low) & (values <= high) & (np.rint(values) == values)
        if not good.all():
            raise self.source.fail(f"expected a whole number in [{low}, {high}], got {values[~good][0]}")
        return values.astype(dtype)

    def end(self) -> None:
        if self.at < self.stop:
            raise self.source.fail(f"{self.stop - self.at} numbers more than the header declares")


Columns = dict[str, NDArray[Any]]
Lists = dict[str, tuple[NDArray[Any], NDArray[Any]]]


def _read_element(body: _Binary, element: _Element) -> tuple[Columns, Lists]:
    """Scalars (rows,) by name, and lists by name as all their items and the length of each; moves the body on."""
    properties, rows = element.properties.values(), element.rows
    smallest = sum(body.width(p.count or p.type) for p in properties)
    if rows * smallest > body.stop - body.at:
        raise body.source.fail(
            f"element {element.name}: {rows} rows declared, the file ends before", len(body.source.data)
        )
    if not rows or not properties:
        empty = {p.name: np.empty(0, p.type) for p in properties if not p.count}
        return empty, {p.name: (np.empty(0, p.type), np.empty(0, np.int64)) for p in properties if p.count}
    return _read_uniform(body, element) or _read_ragged(body, element)


def _read_uniform(body: _Binary, element: _Element) -> tuple[Columns, Lists] | None:
    """Read an element whose lists are all as long as those of its first row; None where they are not."""
    places, lengths, at = [], [], body.at
    for p in element.properties.values():
        if p.count is None:
            n = 1
        else:
            if at + body.width(p.count) > body.stop:
                return None
            n = body.length(at, p.count)
            at += body.width(p.count)
        places.append(at)
        lengths.append(n)
        at += n * body.width(p.type)
        if n < 0 or at > body.stop:
            return None
    rows, stride = element.rows, at - body.at
    if body.at + rows * stride > body.stop:
        return None
    columns: Columns = {}
    lists: Lists = {}
    for p, place, n in zip(element.properties.values(), places, lengths, strict=True):
        if p.count is not None:
            counts = body.strided(place - body.width(p.count), rows, stride, 1, p.count)
            if not (counts == n).all():
                return None
    wanted = _wanted(element)
    for p, place, n in zip(element.properties.values(), places, lengths, strict=True):
        if p.name in wanted:
            items = body.strided(place, rows, stride, n, p.type)
            if p.count is None:
                columns[p.name] = items[:, 0]
            else:
                lists[p.name] = (items.reshape(-1), np.full(rows, n))
    body.at += rows * stride
    return columns, lists


def _wanted(element: _Element) -> set[str]:
    """The properties of an element that anyone reads."""
    if element.name == "face":
        return {p.name for p in element.properties.values() if p.count and p.name in _INDICES}
    if element.name != "vertex":
        return set()
    known = {"x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"}
    scalars = (p.name for p in element.properties.values() if p.count is None)
    return {n for n in scalars if n in known or n.lower() in _INTENSITY}


def _read_ragged(body: _Binary, element: _Element) -> tuple[Columns, Lists]:
    """Read an element row by row: where each property stands depends on the lists before it."""
    wanted = _wanted(element)
    places = {name: array("q") for name in wanted}
    lengths = {name: array("q") for name in wanted}
    steps = [
        (p.count, body.width(p.count) if p.count else 0, body.width(p.type), places.get(p.name), lengths.get(p.name))
        for p in element.properties.values()
    ]
    at, stop = body.at, body.stop
    for row in range(element.rows):
        for count, count_width, width, place, length in steps:
            n = 1
            if count is not None:
                n = body.length(at, count) if at + count_width <= stop else -1
                at += count_width
                if length is not None:
                    if n < 3:  # these are faces, and `fan` would refuse them only once all are stored
                        raise body.source.fail(f"element {element.name}: row {row} is no polygon of at least 3 corners")
                    length.append(n)
            if place is not None:
                place.append(at)
            at += n * width
            if n < 0 or at > stop:
                raise body.source.fail(
                    f"element {element.name}: row {row} has a list that runs past the end of the file"
                )
    body.at = at
    columns: Columns = {}
    lists: Lists = {}
    for p in element.properties.values():
        if p.name not in wanted:
            continue
        start = np.frombuffer(places[p.name], np.int64)
        if p.count is None:
            columns[p.name] = body.gather(start, p.type)
            continue
        n = np.frombuffer(lengths[p.name], np.int64)
        index = np.repeat(start - (np.cumsum(n) - n) * body.width(p.type), n)
        index += np.arange(len(index)) * body.width(p.type)
        lists[p.name] = (body.gather(index, p.type), n)
    return columns, lists


def write_ply(geometry: Geometry) -> bytes:
    """Binary little endian PLY. Coordinates keep their type; colours are uchar where that loses nothing, else float."""
    real = "float" if geometry.positions.dtype == np.float32 else "double"
    colors = geometry.colors
    small = None if colors is None else eight_bits(colors)
    groups = [
        (("x", "y", "z"), real, geometry.positions),
        (("nx", "ny", "nz"), real, geometry.normals),
        (("red", "green", "blue"), "float" if small is None else "uchar", colors if small is None else small),
        (("intensity",), "float", None if geometry.intensities is None else geometry.intensities[:, None]),
    ]
    present = [(names, kind, a) for names, kind, a in groups if a is not None]
    fields = [(name, _type(kind, "<"), a[:, k]) for names, kind, a in present for k, name in enumerate(names)]
    rows = np.empty(len(geometry.positions), [(name, kind) for name, kind, _ in fields])
    for name, _, column in fields:
        rows[name] = column
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    head += [f"property {kind} {name}" for names, kind, _ in present for name in names]
    body = rows.tobytes()
    if geometry.faces is not None:
        index = "int" if len(rows) < 2**31 else "uint"
        faces = np.empty(len(geometry.faces), [("n", "u1"), ("v", _type(index, "<"), 3)])
        faces["n"], faces["v"] = 3, geometry.faces
        head += [f"element face {len(faces)}", f"property list uchar {index} vertex_indices"]
        body += faces.tobytes()
    return "\n".join([*head, "end_header\n"]).encode() + body
