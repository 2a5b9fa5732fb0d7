"""PCD (Point Cloud Library): ascii, binary and binary_compressed."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.io.bytes import Source
from geom.io.colors import nearest_eight_bits
from geom.io.geometry import Geometry, checked
from geom.io.lzf import decompress
from geom.io.tokens import read_rows

__all__ = ["read_pcd", "write_pcd"]

_SIZES = {"F": (4, 8), "I": (1, 2, 4, 8), "U": (1, 2, 4, 8)}
_KEYS = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Field:
    name: str
    type: np.dtype[Any]
    count: int


def read_pcd(source: Source) -> Geometry:
    """Read a PCD file: x, y, z; normal_x, normal_y, normal_z; rgb or rgba (packed) or r, g, b; intensity.

    Rows with NaN coordinates in an organised cloud (HEIGHT above 1) are invalid returns and are dropped; elsewhere they
    are an error. Normals that are NaN (PCL writes them where it found none) become 0. VIEWPOINT is ignored.

    Raises: FileFormatError.
    """
    header, start = _header(source)
    fields = _fields(source, header)
    points, height = _count(source, header)
    kind = header["DATA"][0]
    if kind == "ascii":
        columns = _read_ascii(source, fields, points, start)
    elif kind == "binary":
        columns = _read_binary(source, fields, points, start)
    else:
        columns = _read_compressed(source, fields, points, start)
    if missing := [n for n in "xyz" if n not in columns]:
        raise source.fail(f"no field {', '.join(missing)}")
    xyz, normals, colors = _stack(columns, "x", "y", "z"), None, None
    if all(f"normal_{n}" in columns for n in "xyz"):
        normals = _stack(columns, "normal_x", "normal_y", "normal_z")
        normals = np.where(np.isfinite(normals).all(1, keepdims=True), normals, 0)
    packed = columns.get("rgb", columns.get("rgba"))
    if packed is not None:
        if packed.dtype.itemsize != 4:
            raise source.fail("rgb: expected SIZE 4")
        bits = np.ascontiguousarray(packed).view(np.dtype(np.uint32).newbyteorder(packed.dtype.byteorder))
        colors = np.stack([bits >> 16 & 255, bits >> 8 & 255, bits & 255], 1).astype(np.uint8)
    elif all(n in columns for n in "rgb"):
        colors = _stack(columns, "r", "g", "b")
    intensities = columns.get("intensity")
    if height > 1 and xyz.dtype.kind == "f":
        valid = ~np.isnan(xyz).any(1)
        xyz = xyz[valid]
        normals, colors, intensities = (None if a is None else a[valid] for a in (normals, colors, intensities))
    return checked(source, xyz, normals=normals, colors=colors, intensities=intensities)


def _stack(columns: Columns, *names: str) -> NDArray[Any]:
    return np.stack([columns[n] for n in names], 1)


def _header(source: Source) -> tuple[dict[str, list[str]], int]:
    """The words of each header line by its key, and where the data begin."""
    data, at = source.data, 0
    header: dict[str, list[str]] = {}
    while "DATA" not in header:
        if at >= min(len(data), 1 << 20):
            raise source.fail("the header has no line DATA in its first MiB", at)
        stop = data.find(b"\n", at)
        stop = len(data) if stop < 0 else stop
        if stop - at > 1 << 16:
            raise source.fail("expected lines of a PCD header, got one of more than 65536 bytes", at)
        words = data[at:stop].decode("latin-1").split()
        if words and not words[0].startswith("#"):
            if words[0] not in _KEYS or words[0] in header or len(words) < 2:
                raise source.fail(f"expected a line of a PCD header, got {data[at:stop][:60]!r}", at)
            header[words[0]] = words[1:]
        at = min(stop + 1, len(data))
    if header["DATA"] not in (["ascii"], ["binary"], ["binary_compressed"]):
        raise source.fail(f"DATA: expected ascii, binary or binary_compressed, got {' '.join(header['DATA'])[:60]}")
    return header, at


def _number(source: Source, word: str, key: str, low: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", word) or int(word) < low:
        raise source.fail(f"{key}: expected a whole number from {low}, got {word[:40]!r}")
    return int(word)


def _fields(source: Source, header: dict[str, list[str]]) -> list[_Field]:
    if missing := [k for k in ("FIELDS", "SIZE", "TYPE") if k not in header]:
        raise source.fail(f"the header has no line {', '.join(missing)}")
    names = header["FIELDS"]
    counts = header.get("COUNT", ["1"] * len(names))
    fields = []
    if not len(names) == len(header["SIZE"]) == len(header["TYPE"]) == len(counts):
        raise source.fail("FIELDS, SIZE, TYPE and COUNT: expected equally many words")
    for name, size, kind, count in zip(names, header["SIZE"], header["TYPE"], counts, strict=True):
        if kind not in _SIZES or _number(source, size, "SIZE", 1) not in _SIZES[kind]:
            raise source.fail(f"field {name}: TYPE {kind[:20]} with SIZE {size[:20]} is none of PCD")
        fields.append(_Field(name, np.dtype(f"<{kind.lower()}{size}"), _number(source, count, "COUNT", 1)))
    real = [f.name for f in fields if f.name != "_"]
    if len(set(real)) < len(real):
        raise source.fail("FIELDS: a name stands there twice")
    return fields


def _count(source: Source, header: dict[str, list[str]]) -> tuple[int, int]:
    """Number of points, and HEIGHT."""
    sizes = {k: _number(source, header[k][0], k, 0) for k in ("WIDTH", "HEIGHT", "POINTS") if k in header}
    height = sizes.get("HEIGHT", 1)
    if "POINTS" not in sizes and "WIDTH" not in sizes:
        raise source.fail("the header has neither POINTS nor WIDTH")
    width = sizes.get("WIDTH", sizes.get("POINTS", 0) // max(height, 1))
    points = sizes.get("POINTS", width * height)
    if points != width * height:
        raise source.fail(f"POINTS {points} is not WIDTH {width} x HEIGHT {height}")
    return points, height


def _read_ascii(source: Source, fields: list[_Field], points: int, start: int) -> Columns:
    width = sum(f.count for f in fields)
    if 2 * width * points > len(source.data) - start + 1:
        raise source.fail(f"{points} points declared, the file ends before", len(source.data))
    values, counts = read_rows(source, source.data[start:], start)
    if len(counts) != points or (counts != width).any():
        raise source.fail(f"expected {points} lines of {width} numbers, got {len(counts)} lines, {len(values)} numbers")
    columns: Columns = {}
    at = 0
    for f in fields:
        if f.count == 1 and f.name != "_":
            columns[f.name] = _typed(source, values.reshape(points, width)[:, at], f)
        at += f.count
    return columns


def _typed(source: Source, column: NDArray[np.float64], f: _Field) -> NDArray[Any]:
    if f.type.kind == "f":
        with np.errstate(over="ignore"):
            return column.astype(f.type)
    low, high = np.iinfo(f.type).min, np.iinfo(f.type).max
    good = (column >= low) & (column <= high) & (np.rint(column) == column) & (np.abs(column) < 2.0**53)
    if not good.all():
        raise source.fail(f"field {f.name}: expected a whole number in [{low}, {high}], got {column[~good][0]}")
    return column.astype(f.type)


def _read_binary(source: Source, fields: list[_Field], points: int, start: int) -> Columns:
    stride = sum(f.type.itemsize * f.count for f in fields)
    source.need(start, points * stride, f"{points} points")
    source.padding(start + points * stride, "after the last point")
    columns: Columns = {}
    at = start
    for f in fields:
        if f.count == 1 and f.name != "_":
            columns[f.name] = np.ndarray((points,), f.type, source.data, at if points else 0, (stride,))
        at += f.type.itemsize * f.count
    return columns


def _read_compressed(source: Source, fields: list[_Field], points: int, start: int) -> Columns:
    """One field after the other, compressed as a whole; PCL leaves padding fields out."""
    if not points and start == len(source.data):
        return {f.name: np.empty(0, f.type) for f in fields}
    packed = source.integer(start, 4, "little", "compressed size")
    unpacked = source.integer(start + 4, 4, "little", "uncompressed size")
    source.need(start + 8, packed, "compressed points")
    source.padding(start + 8 + packed, "after the last point")
    source.budget(2 * unpacked, "compressed points")
    for present in (fields, [f for f in fields if f.name != "_"]):
        if unpacked == points * sum(f.type.itemsize * f.count for f in present):
            break
    else:
        raise source.fail(f"{unpacked} bytes of points declared, that is not {points} points", start + 4)
    data = decompress(source, start + 8, start + 8 + packed, unpacked)
    columns: Columns = {}
    at = 0
    for f in present:
        if f.count == 1 and f.name != "_":
            columns[f.name] = np.frombuffer(data, f.type, points, at if points else 0)
        at += points * f.type.itemsize * f.count
    return columns


def write_pcd(geometry: Geometry) -> bytes:
    """Binary PCD. Coordinates keep their type; colours are packed into rgb, rounded to 8 bits each."""
    xyz = geometry.positions
    parts: list[tuple[str, NDArray[Any]]] = [(n, xyz[:, k]) for k, n in enumerate("xyz")]
    if geometry.normals is not None:
        parts += [(f"normal_{n}", geometry.normals[:, k]) for k, n in enumerate("xyz")]
    if geometry.colors is not None:
        red, green, blue = nearest_eight_bits(geometry.colors).astype(np.uint32).T
        parts.append(("rgb", (red << 16 | green << 8 | blue).view(np.float32)))
    if geometry.intensities is not None:
        parts.append(("intensity", geometry.intensities))
    rows = np.empty(len(xyz), [(name, column.dtype.newbyteorder("<")) for name, column in parts])
    for name, column in parts:
        rows[name] = column
    head = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {' '.join(name for name, _ in parts)}",
        f"SIZE {' '.join(str(column.dtype.itemsize) for _, column in parts)}",
        f"TYPE {' '.join('F' * len(parts))}",
        f"COUNT {' '.join('1' * len(parts))}",
        f"WIDTH {len(xyz)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(xyz)}",
        "DATA binary\n",
    ]
    return "\n".join(head).encode() + rows.tobytes()
