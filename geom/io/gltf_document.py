"""The container and JSON of glTF 2.0: buffers, accessors and nodes, each range and reference checked before use."""

import base64
import binascii
import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from geom.io.bytes import Source, open_source

__all__ = [
    "Document",
    "Json",
    "indices",
    "integer",
    "node_matrix",
    "node_parts",
    "numbers",
    "objects",
    "open_document",
    "resource",
    "shown",
]

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_HARMLESS = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "KHR_mesh_quantization", "KHR_lights_", "KHR_animation_")

_LISTS = (
    *("accessors", "animations", "buffers", "bufferViews", "images", "materials", "meshes", "nodes", "samplers"),
    *("scenes", "skins", "textures"),
)

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Document:
    """A glTF file whose structure has been checked.

    Fields: `source`; `json`; `lists`, its top-level lists of objects, such as "meshes"; `buffers`, the bytes of each.
    """

    source: Source
    json: Json
    lists: dict[str, list[Json]]
    buffers: list[bytes]

    def item(self, kind: str, index: int) -> Json:
        """One object of a top-level list."""
        found = self.lists[kind]
        if not 0 <= index < len(found):
            raise self.source.fail(f"{kind}: expected an index in [0, {len(found)}), got {index}")
        return found[index]

    def accessor(self, index: int, widths: tuple[str, ...]) -> NDArray[Any]:
        """The elements of an accessor (count, width) in their stored type; normalised integers as float32.

        Args: index; widths, the types allowed, such as ("VEC3",).
        Raises: FileFormatError.
        """
        item, source = self.item("accessors", index), self.source
        width, dtype = item.get("type"), _component(source, item)
        if not isinstance(width, str) or width not in widths:
            raise source.fail(f"accessor {index}: expected type {' or '.join(widths)}, got {shown(width)}")
        count, columns = integer(source, item, "count", 0), _WIDTHS[width]
        if "bufferView" in item:
            found = self._view(item, integer(source, item, "bufferView", 0), dtype, count, columns)
        else:
            source.budget(count * columns * dtype.itemsize, f"accessor {index} without data")
            found = np.zeros((count, columns), dtype)
        if "sparse" in item:
            found = self._sparse(item, found)
        if item.get("normalized") is True and dtype.kind != "f":
            return np.maximum(found.astype(np.float32) / np.float32(np.iinfo(dtype).max), np.float32(-1))
        return found

    def _view(self, item: Json, view: int, dtype: np.dtype[Any], count: int, columns: int) -> NDArray[Any]:
        """(count, columns) items of a buffer view from the item's byteOffset on; nothing is copied."""
        source, found = self.source, self.item("bufferViews", view)
        buffer = integer(source, found, "buffer", 0)
        if buffer >= len(self.buffers):
            raise source.fail(f"bufferView {view}: expected a buffer below {len(self.buffers)}, got {buffer}")
        data, start = self.buffers[buffer], integer(source, found, "byteOffset", 0, default=0)
        length, offset = integer(source, found, "byteLength", 1), integer(source, item, "byteOffset", 0, default=0)
        if start + length > len(data):
            raise source.fail(f"bufferView {view}: {length} bytes at {start} of a buffer of {len(data)}")
        size = columns * dtype.itemsize
        stride = integer(source, found, "byteStride", size, default=size)
        if count and offset + stride * (count - 1) + size > length:
            raise source.fail(f"{count} elements of {size} bytes, {stride} apart, at {offset} of a view of {length}")
        at = start + offset if count else 0
        return np.ndarray((count, columns), dtype, data, at, (stride, dtype.itemsize))

    def _sparse(self, item: Json, base: NDArray[Any]) -> NDArray[Any]:
        source, sparse = self.source, _object(self.source, item, "sparse")
        count = integer(source, sparse, "count", 0)
        where, values = _object(source, sparse, "indices"), _object(source, sparse, "values")
        kind = _component(source, where)
        if kind.kind != "u":
            raise source.fail("sparse indices: expected an unsigned type")
        index = self._view(where, integer(source, where, "bufferView", 0), kind, count, 1)[:, 0]
        new = self._view(values, integer(source, values, "bufferView", 0), base.dtype, count, base.shape[1])
        if count > len(base) or (count and int(index[-1]) >= len(base)) or (index[1:] <= index[:-1]).any():
            raise source.fail(f"sparse indices: expected to rise strictly below {len(base)}")
        result = base.copy()
        result[index] = new
        return result

    def view_bytes(self, view: int) -> bytes:
        """What lies in a buffer view. Raises: FileFormatError."""
        length = integer(self.source, self.item("bufferViews", view), "byteLength", 1)
        return self._view({}, view, np.dtype("u1"), length, 1).tobytes()

    def hierarchy(self) -> tuple[list[int], list[list[int]]]:
        """The node above each, -1 at a root, and the nodes below each.

        Raises: FileFormatError where nodes form no forest.
        """
        source, nodes = self.source, self.lists["nodes"]
        children = [indices(source, node, "children", len(nodes)) for node in nodes]
        parents = [-1] * len(nodes)
        for above, below in enumerate(children):
            for child in below:
                if parents[child] >= 0:
                    raise source.fail(f"nodes: node {child} has two parents")
                parents[child] = above
        reached = [i for i, above in enumerate(parents) if above < 0]
        for node in reached:  # grows as it goes
            reached += children[node]
        if len(reached) < len(nodes):
            lost = min(set(range(len(nodes))) - set(reached))
            raise source.fail(f"nodes: node {lost} is in a cycle or below one")
        return parents, children

    def scene_roots(self, parents: list[int]) -> list[int]:
        """The roots of the scene that the file names, else of its first; of a file without scenes, all of them."""
        source, nodes = self.source, self.lists["nodes"]
        if "scene" not in self.json and not self.lists["scenes"]:
            return [i for i, above in enumerate(parents) if above < 0]
        scene = self.item("scenes", integer(source, self.json, "scene", 0, default=0))
        return indices(source, scene, "nodes", len(nodes))

    def world_matrices(self) -> list[tuple[int, NDArray[np.float64]]]:
        """Each node of the scene, parents first and depth first, with its matrix (4, 4) into the world.

        The scene is as in `scene_roots`. Raises: FileFormatError where nodes form no forest.
        """
        source, nodes = self.source, self.lists["nodes"]
        parents, children = self.hierarchy()
        roots = self.scene_roots(parents)
        if any(parents[r] >= 0 for r in roots) or len(set(roots)) < len(roots):
            raise source.fail("scene: expected each root once and without a parent")
        locals_ = [_local_matrix(source, node, i) for i, node in enumerate(nodes)]
        found, stack = [], [(r, np.eye(4)) for r in reversed(roots)]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found by its reader
            while stack:
                node, above = stack.pop()
                world = above @ locals_[node]
                found.append((node, world))
                stack += [(c, world) for c in reversed(children[node])]
        return found


def integer(source: Source, item: Json, key: str, low: int, *, default: int | None = None) -> int:
    """A whole number of a JSON object. Raises: FileFormatError."""
    value = item.get(key, default)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**53:
        raise source.fail(f"{key}: expected a whole number from {low}, got {shown(value)}")
    return value


def objects(source: Source, item: Json, key: str) -> list[Json]:
    """A list of objects of a JSON object, [] where there is none. Raises: FileFormatError."""
    value = item.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise source.fail(f"{key}: expected a list of objects")
    return value


def indices(source: Source, item: Json, key: str, count: int) -> list[int]:
    """A list of indices below `count`, [] where there is none. Raises: FileFormatError."""
    value = item.get(key, [])
    good = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not good or not all(0 <= v < count for v in value):
        raise source.fail(f"{key}: expected indices in [0, {count}), got {shown(value)}")
    return value


def shown(value: object) -> str:
    """A JSON value in a few words; lists and objects may be deep."""
    if isinstance(value, list) and len(value) < 9 and not any(isinstance(v, (list, dict)) for v in value):
        return str(value)[:80]
    return f"a {type(value).__name__}" if isinstance(value, (list, dict)) else repr(value)[:40]


def _object(source: Source, item: Json, key: str) -> Json:
    if not isinstance(item.get(key), dict):
        raise source.fail(f"{key}: expected an object")
    return item[key]


def _component(source: Source, item: Json) -> np.dtype[Any]:
    kind = item.get("componentType")
    if not isinstance(kind, int) or kind not in _COMPONENTS:
        raise source.fail(f"componentType: expected one of {', '.join(map(str, _COMPONENTS))}, got {shown(kind)}")
    return np.dtype(_COMPONENTS[kind])


def numbers(source: Source, node: Json, key: str, default: list[float]) -> NDArray[np.float64]:
    """As many finite numbers of a JSON object as `default` has. Raises: FileFormatError."""
    value = node.get(key, default)
    good = isinstance(value, list) and len(value) == len(default)
    if not good or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
        raise source.fail(f"{key}: expected {len(default)} numbers, got {shown(value)}")
    if not all(abs(v) < 1e300 for v in value):  # also false for NaN; an int may be too large for a float
        raise source.fail(f"{key}: expected finite numbers, got {shown(value)}")
    return np.array([float(v) for v in value])


def node_parts(source: Source, node: Json, index: int) -> tuple[NDArray[np.float64], ...]:
    """A node's translation, rotation (x, y, z, w), not yet of length 1, and scale. Raises: FileFormatError."""
    rotation = numbers(source, node, "rotation", [0.0, 0.0, 0.0, 1.0])
    if not 0.5 < math.hypot(*rotation) < 2:
        raise source.fail(f"node {index}: expected a rotation of length 1, got {math.hypot(*rotation):g}")
    return (
        numbers(source, node, "translation", [0.0, 0.0, 0.0]),
        rotation,
        numbers(source, node, "scale", [1.0, 1.0, 1.0]),
    )


def node_matrix(source: Source, node: Json) -> NDArray[np.float64] | None:
    """A node's `matrix` (4, 4), which the file has by columns, or None where it has none. Raises: FileFormatError."""
    if "matrix" not in node:
        return None
    return numbers(source, node, "matrix", np.eye(4).ravel().tolist()).reshape(4, 4).T


def _local_matrix(source: Source, node: Json, index: int) -> NDArray[np.float64]:
    given = node_matrix(source, node)
    if given is not None:
        return given
    translation, rotation, scale = node_parts(source, node, index)
    x, y, z, w = rotation / math.hypot(*rotation)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= scale
    matrix[:3, 3] = translation
    return matrix


def open_document(source: Source) -> Document:
    """Read a .glb or .gltf file and the buffers it names.

    A .glb names no other file; the files a .gltf names lie in its folder or below. Images are never opened.
    Raises: FileFormatError.
    """
    binary = source.data[:4] == b"glTF"
    text, chunk = _chunks(source) if binary else (source.data, None)
    try:
        found = json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise source.fail(f"the JSON cannot be read: {str(error)[:120]}", 20 if binary else 0) from error
    if not isinstance(found, dict):
        raise source.fail("expected a JSON object", 20 if binary else 0)
    version = found.get("asset", {}).get("version") if isinstance(found.get("asset"), dict) else None
    if not isinstance(version, str) or not version.startswith("2."):
        raise source.fail(f"asset: expected version 2.0, got {shown(version)}")
    required = found.get("extensionsRequired", [])
    if not isinstance(required, list) or not all(isinstance(r, str) and r.startswith(_HARMLESS) for r in required):
        raise source.fail(f"extensionsRequired: {shown(required)} are not read")
    lists = {kind: objects(source, found, kind) for kind in _LISTS}
    for image in lists["images"]:
        if "uri" in image:
            _local_name(source, image["uri"], binary)
    buffers = []
    for index, item in enumerate(lists["buffers"]):
        length = integer(source, item, "byteLength", 1)
        if "uri" in item:
            data = resource(source, item["uri"], binary)
        elif index == 0 and chunk is not None:
            data = chunk
        else:
            raise source.fail(f"buffer {index}: has neither a uri nor a chunk")
        if len(data) < length:
            raise source.fail(f"buffer {index}: {length} bytes declared, there are {len(data)}")
        buffers.append(data[:length])
    return Document(source, found, lists, buffers)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _chunks(source: Source) -> tuple[bytes, bytes | None]:
    """The JSON and the binary chunk of a .glb."""
    data = source.data
    version, length = (source.integer(at, 4, "little", "header") for at in (4, 8))
    if version != 2 or length != len(data):
        raise source.fail(f"expected glTF 2 of {len(data)} bytes, the header says {version} of {length}", 4)
    chunks: list[tuple[bytes, bytes]] = []
    at = 12
    while at < len(data):
        size = source.integer(at, 4, "little", "length of a chunk")
        source.need(at + 4, 4 + size, "chunk")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 8 + size
    if not chunks or chunks[0][0] != b"JSON":
        raise source.fail("expected a first chunk of JSON", 12)
    return chunks[0][1], chunks[1][1] if len(chunks) > 1 and chunks[1][0] == b"BIN\0" else None


def _local_name(source: Source, uri: object, binary: bool) -> str | None:
    """The file name below the folder that a URI stands for, None for a data URI. Raises: FileFormatError."""
    if not isinstance(uri, str):
        raise source.fail("uri: expected a string")
    if uri.startswith("data:"):
        return None
    name = unquote(uri)
    outside = re.search(r"^[/\\]|^[A-Za-z][A-Za-z0-9+.-]*:|\\|\0", name) or ".." in name.split("/") or not name
    if binary or outside:
        raise source.fail(f"uri: {uri[:80]!r} is outside of the file{'' if binary else ' and its folder'}")
    return name


def resource(source: Source, uri: object, binary: bool) -> bytes:
    """The bytes of a data URI, or of a file in the folder of this one or below. Raises: FileFormatError."""
    name = _local_name(source, uri, binary)
    if name is None:
        head, _, body = str(uri).partition(",")
        if not head.endswith(";base64"):
            raise source.fail("uri: expected a data URI in base64")
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise source.fail(f"uri: {error}") from error
    folder = os.path.realpath(os.path.dirname(source.path) or ".")
    path = os.path.realpath(os.path.join(folder, name))
    if os.path.commonpath([folder, path]) != folder:
        raise source.fail(f"uri: {name[:80]!r} leads out of the file's folder")
    return open_source(path).data
