"""Triangle meshes of glTF 2.0 files (.glb, .gltf), decoded from the checked document; no image is opened."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.errors import ShapeError
from geom.io.bytes import Source
from geom.io.faces import whole
from geom.io.geometry import Geometry
from geom.io.gltf_document import Document, Json, integer, objects, open_document
from geom.io.instances import Instance, join

__all__ = ["pack_glb", "read_gltf", "triangles", "write_glb"]

_MODES = ("POINTS", "LINES", "LINE_LOOP", "LINE_STRIP", "TRIANGLES", "TRIANGLE_STRIP", "TRIANGLE_FAN")


def read_gltf(source: Source) -> Geometry:
    """Read the scene of a .glb or .gltf file as one mesh in world coordinates.

    Primitives follow each other in the order in which the scene's nodes are walked, parents before children; their
    vertices are neither merged nor reordered. Attributes POSITION, NORMAL and COLOR_0; modes triangles, strips, fans,
    and points (vertices without faces). Skins, morph targets, materials and textures are left out. Lines and
    compressed primitives are refused.

    Raises: FileFormatError.
    """
    document = open_document(source)
    return join(source, _instances(document))


def _instances(document: Document) -> Iterator[Instance]:
    for node, matrix in document.world_matrices():
        item = document.item("nodes", node)
        if "mesh" in item:
            mesh = document.item("meshes", integer(document.source, item, "mesh", 0))
            for primitive in objects(document.source, mesh, "primitives"):
                yield _primitive(document, primitive, matrix)


def _primitive(document: Document, primitive: Json, matrix: NDArray[np.float64]) -> Instance:
    source, attributes = document.source, primitive.get("attributes")
    extensions = primitive.get("extensions", {})
    if not isinstance(attributes, dict) or "POSITION" not in attributes:
        raise source.fail("a primitive has no attribute POSITION")
    if isinstance(extensions, dict) and "KHR_draco_mesh_compression" in extensions:
        raise source.fail("Draco compression is not read")

    def attribute(name: str, *widths: str) -> NDArray[Any] | None:
        return document.accessor(integer(source, attributes, name, 0), widths) if name in attributes else None

    positions = document.accessor(integer(source, attributes, "POSITION", 0), ("VEC3",))
    normals, colors = attribute("NORMAL", "VEC3"), attribute("COLOR_0", "VEC3", "VEC4")
    for name, values in (("NORMAL", normals), ("COLOR_0", colors)):
        if values is not None and len(values) != len(positions):
            raise source.fail(f"{name}: expected {len(positions)} elements as in POSITION, got {len(values)}")
    if colors is not None:
        colors = colors[:, :3]
        if colors.dtype.kind == "f" and np.isfinite(colors).all():
            colors = np.clip(colors, 0, 1)  # brighter than white is legal in glTF
    mode = integer(source, primitive, "mode", 0, default=4)
    if mode == 0:
        return Instance(matrix, positions, np.empty((0, 3), np.int64), normals, colors)
    if "indices" in primitive:
        stored = document.accessor(integer(source, primitive, "indices", 0), ("SCALAR",))
        order = whole(source, stored[:, 0], "indices")
    else:
        order = np.arange(len(positions))
    return Instance(matrix, positions, triangles(source, order, mode), normals, colors)


def triangles(source: Source, order: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    """Faces (F, 3) of a primitive; strips and fans as in section 3.7.2.1 of the specification."""
    if mode == 4:
        if len(order) % 3:
            raise source.fail(f"triangles: expected a multiple of 3 indices, got {len(order)}")
        return order.reshape(-1, 3)
    if mode not in (5, 6):
        raise source.fail(f"mode {_MODES[mode] if mode < len(_MODES) else mode}: only triangles are read")
    i = np.arange(max(len(order) - 2, 0))
    corners = [i, i + 1 + i % 2, i + 2 - i % 2] if mode == 5 else [i + 1, i + 2, np.zeros_like(i)]
    return order[np.stack(corners, 1)]


def write_glb(geometry: Geometry) -> bytes:
    """GLB with one primitive: float32 coordinates, normals and colours, uint32 indices.

    A mesh without faces is stored as points. Raises: ShapeError where coordinates are beyond float32.
    """
    faces = np.empty((0, 3), np.int64) if geometry.faces is None else geometry.faces
    with np.errstate(over="ignore"):
        xyz = geometry.positions.astype("<f4")
        normals = None if geometry.normals is None else geometry.normals.astype("<f4")
    if not np.isfinite(xyz).all() or (normals is not None and not np.isfinite(normals).all()):
        raise ShapeError("vertices: GLB stores float32, expected numbers below 3.4e38")
    tables = [("POSITION", xyz), ("NORMAL", normals), ("COLOR_0", geometry.colors)]
    document: Json = {"asset": {"version": "2.0", "generator": "geom"}, "scene": 0, "scenes": [{}]}
    body = b""
    if len(xyz):
        views, accessors = [], []
        present = {name: t.astype("<f4") for name, t in tables if t is not None}
        if len(faces):
            present["indices"] = faces.astype("<u4").reshape(-1)
        for name, array in present.items():
            views.append({"buffer": 0, "byteOffset": len(body), "byteLength": array.nbytes})
            kind = (
                {"componentType": 5125, "type": "SCALAR"}
                if name == "indices"
                else {"componentType": 5126, "type": "VEC3"}
            )
            accessors.append({"bufferView": len(views) - 1, "count": len(array), **kind})
            body += array.tobytes()
        accessors[0] |= {"min": xyz.min(0).tolist(), "max": xyz.max(0).tolist()}
        attributes = {name: i for i, name in enumerate(n for n in present if n != "indices")}
        primitive: Json = {"attributes": attributes, "mode": 4 if len(faces) else 0}
        if len(faces):
            primitive["indices"] = len(accessors) - 1
        document |= {
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [primitive]}],
            "accessors": accessors,
            "bufferViews": views,
            "buffers": [{"byteLength": len(body)}],
        }
    return pack_glb(document, body)


def pack_glb(document: Json, body: bytes) -> bytes:
    """The container of a document and its first buffer, of whole multiples of 4 bytes."""
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = len(text).to_bytes(4, "little") + b"JSON" + text
    if body:
        chunks += len(body).to_bytes(4, "little") + b"BIN\0" + body
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunks)).to_bytes(4, "little") + chunks
