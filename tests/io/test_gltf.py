"""glTF by hand-made documents: nested transforms, instances, strided and sparse accessors, and every way to lie."""

import base64
import copy
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geom.errors import FileFormatError
from geom.io import load_mesh, load_points
from geom.io.bytes import open_source
from geom.io.gltf_document import open_document

TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4")
NORMALS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0]], "<f4")
ORDER = np.array([0, 1, 2, 0, 2, 3], "<u2")
DATA = TRIANGLE.tobytes() + NORMALS.tobytes() + ORDER.tobytes()


def document() -> dict[str, Any]:
    """One mesh of four vertices and two faces."""
    return {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1}, "indices": 2}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 0, "byteOffset": 48, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 6, "type": "SCALAR"},
        ],
        "bufferViews": [{"buffer": 0, "byteLength": 96}, {"buffer": 0, "byteOffset": 96, "byteLength": 12}],
        "buffers": [{"byteLength": len(DATA)}],
    }


def glb(json_text: bytes, body: bytes = DATA) -> bytes:
    json_text += b" " * (-len(json_text) % 4)
    body += b"\0" * (-len(body) % 4)
    chunks = struct.pack("<I4s", len(json_text), b"JSON") + json_text + struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def save(folder: Path, found: dict[str, Any], body: bytes = DATA, *, binary: bool = True) -> Path:
    path = folder / ("a.glb" if binary else "a.gltf")
    path.write_bytes(glb(json.dumps(found).encode(), body) if binary else json.dumps(found).encode())
    return path


@pytest.mark.parametrize("where", ["glb", "data", "file"])
def test_the_three_homes_of_a_buffer(tmp_path: Path, where: str) -> None:
    found = document()
    if where == "data":
        found["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(DATA).decode()
    if where == "file":
        (tmp_path / "sub folder").mkdir()
        (tmp_path / "sub folder" / "b.bin").write_bytes(DATA)
        found["buffers"][0]["uri"] = "sub%20folder/b.bin"
    mesh = load_mesh(save(tmp_path, found, binary=where == "glb"))
    assert torch.equal(mesh.vertices, torch.from_numpy(TRIANGLE)) and mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.normals is not None and torch.equal(mesh.normals, torch.from_numpy(NORMALS))


def test_nested_transforms_instances_and_mirrors(tmp_path: Path) -> None:
    found = document()
    half = float(np.sqrt(0.5))
    found["nodes"] = [
        {"mesh": 0, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, -1, 0, 5, 6, 7, 1]},  # mirrored in z, then moved
        {"mesh": 0, "scale": [2, 3, 4], "children": [0]},
        {"rotation": [0, 0, half, half], "translation": [1, 2, 3], "children": [1]},  # a quarter turn about z
    ]
    found["scenes"] = [{"nodes": [2]}]
    mesh = load_mesh(save(tmp_path, found))
    outer = TRIANGLE * [2, 3, 4] @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + [1, 2, 3]
    inner = (TRIANGLE * [1, 1, -1] + [5, 6, 7]) * [2, 3, 4] @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + [1, 2, 3]
    assert np.allclose(mesh.vertices.numpy(), np.concatenate([outer, inner]), atol=1e-6)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [6, 5, 4], [7, 6, 4]]
    assert mesh.normals is not None
    slanted = np.array([0.6 / 2, 0.8 / 3, 0]) / np.hypot(0.3, 0.8 / 3)
    assert np.allclose(mesh.normals[3].numpy(), [-slanted[1], slanted[0], 0], atol=1e-6)
    assert np.allclose(mesh.normals[6].numpy(), [0, 0, -1], atol=1e-6)
    assert np.allclose(np.linalg.norm(mesh.normals.numpy(), axis=1), 1, atol=1e-6)


def test_one_mirrored_mesh(tmp_path: Path) -> None:
    found = document()
    found["nodes"][0]["scale"] = [-1, 1, 1]
    assert load_mesh(save(tmp_path, found)).faces.tolist() == [[2, 1, 0], [3, 2, 0]]


def test_strided_sparse_and_normalised_accessors(tmp_path: Path) -> None:
    rows = np.zeros(4, [("p", "<f4", 3), ("c", "u1", 4)])
    rows["p"], rows["c"] = TRIANGLE, [[255, 0, 51, 9]] * 4
    body = rows.tobytes() + struct.pack("<H2x3f", 3, 7, 8, 9)
    found = document()
    found["buffers"], found["bufferViews"] = (
        [{"byteLength": len(body)}],
        [
            {"buffer": 0, "byteLength": 64, "byteStride": 16},
            {"buffer": 0, "byteOffset": 64, "byteLength": 16},
        ],
    )
    found["accessors"] = [
        {
            "bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3",
            "sparse": {
                "count": 1,
                "indices": {"bufferView": 1, "componentType": 5123},
                "values": {"bufferView": 1, "byteOffset": 4},
            },
        },
        {"bufferView": 0, "byteOffset": 12, "componentType": 5121, "normalized": True, "count": 4, "type": "VEC4"},
    ]  # fmt: skip
    found["meshes"] = [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": 5}]}]
    mesh = load_mesh(save(tmp_path, found, body))
    assert mesh.vertices.tolist() == [*TRIANGLE[:3].tolist(), [7, 8, 9]]
    assert mesh.colors is not None and torch.equal(mesh.colors[0] * 255, torch.tensor([255.0, 0, 51]))
    assert mesh.faces.tolist() == [[0, 1, 2], [1, 3, 2]]
    found["accessors"][0]["sparse"]["indices"]["byteOffset"] = 2  # reads index 0
    assert load_mesh(save(tmp_path, found, body)).vertices[0].tolist() == [7, 8, 9]


def test_modes_and_parts_without_colours(tmp_path: Path) -> None:
    found = document()
    found["accessors"].append({**found["accessors"][0], "byteOffset": 48})
    parts = [{"attributes": {"POSITION": 0}, "mode": 6}, {"attributes": {"POSITION": 0, "COLOR_0": 3}, "mode": 0}]
    found["meshes"] = [{"primitives": parts}]
    mesh = load_mesh(save(tmp_path, found))
    assert mesh.faces.tolist() == [[1, 2, 0], [2, 3, 0]] and mesh.vertices.shape == (8, 3) and mesh.normals is None
    assert mesh.colors is not None and mesh.colors[:4].tolist() == [[1, 1, 1]] * 4
    assert load_points(save(tmp_path, found)).positions.shape == (8, 3)


def test_an_empty_scene_is_an_empty_mesh(tmp_path: Path) -> None:
    assert load_mesh(save(tmp_path, {"asset": {"version": "2.0"}}, b"")).vertices.shape == (0, 3)


def change(*path: Any, to: Any) -> Any:
    """A document with one entry replaced, or dropped where `to` is None."""

    def apply(found: dict[str, Any]) -> None:
        item: Any = found
        for key in path[:-1]:
            item = item[key]
        if to is None:
            del item[path[-1]]
        else:
            item[path[-1]] = to

    return apply


LIES = {
    "count": change("accessors", 0, "count", to=10**9),
    "count negative": change("accessors", 0, "count", to=-1),
    "count true": change("accessors", 0, "count", to=True),
    "count text": change("accessors", 0, "count", to="4"),
    "count float": change("accessors", 0, "count", to=3.5),
    "count of normals": change("accessors", 1, "count", to=3),
    "type": change("accessors", 0, "type", to="VEC2"),
    "type list": change("accessors", 0, "type", to=["VEC3"]),
    "component": change("accessors", 0, "componentType", to=5124),
    "float indices": change("accessors", 2, "componentType", to=5126),
    "no such accessor": change("meshes", 0, "primitives", 0, "indices", to=3),
    "accessor is a list": change("accessors", 0, to=[]),
    "accessors an object": change("accessors", to={}),
    "accessor offset": change("accessors", 0, "byteOffset", to=52),
    "no such view": change("accessors", 0, "bufferView", to=2),
    "no such buffer": change("bufferViews", 0, "buffer", to=1),
    "view too long": change("bufferViews", 1, "byteLength", to=13),
    "view offset": change("bufferViews", 1, "byteOffset", to=10**18),
    "stride": change("bufferViews", 0, "byteStride", to=8),
    "buffer too long": change("buffers", 0, "byteLength", to=109),
    "no position": change("meshes", 0, "primitives", 0, "attributes", "POSITION", to=None),
    "mode": change("meshes", 0, "primitives", 0, "mode", to=1),
    "no such mode": change("meshes", 0, "primitives", 0, "mode", to=7),
    "no such mesh": change("nodes", 0, "mesh", to=1),
    "cycle": change("nodes", 0, "children", to=[0]),
    "child": change("nodes", 0, "children", to=[5]),
    "two parents": change("nodes", to=[{"children": [1, 2]}, {"children": [2]}, {"mesh": 0}]),
    "root twice": change("scenes", 0, "nodes", to=[0, 0]),
    "no such scene": change("scene", to=1),
    "matrix": change("nodes", 0, "matrix", to=[1] * 15),
    "matrix text": change("nodes", 0, "matrix", to=["1"] * 16),
    "matrix too large": change("nodes", 0, "matrix", to=[10**400] * 16),
    "overflow": change("nodes", 0, "scale", to=[1e200, 1, 1]),
    "rotation": change("nodes", 0, "rotation", to=[0, 0, 0, 0]),
    "version": change("asset", "version", to="1.0"),
    "asset": change("asset", to=None),
    "required": change("extensionsRequired", to=["KHR_draco_mesh_compression"]),
    "draco": change("meshes", 0, "primitives", 0, "extensions", to={"KHR_draco_mesh_compression": {}}),
    "http": change("buffers", 0, "uri", to="https://example.com/b.bin"),
    "outside": change("buffers", 0, "uri", to="../b.bin"),
    "outside, escaped": change("buffers", 0, "uri", to="%2e%2e/b.bin"),
    "absolute": change("buffers", 0, "uri", to="/etc/passwd"),
    "beside": change("buffers", 0, "uri", to="b.bin"),
    "image": change("images", to=[{"uri": "../../secret.png"}]),
    "base64": change("buffers", 0, "uri", to="data:;base64,@@@"),
    "plain data": change("buffers", 0, "uri", to="data:,abc"),
    "no buffer": change("buffers", to=[]),
    "sparse": change("accessors", 0, "sparse", to={"count": 1}),
    "index": change(
        "accessors", 2, to={"bufferView": 0, "componentType": 5123, "count": 6, "type": "SCALAR", "byteOffset": 14}
    ),
    "two indices": change("accessors", 2, "count", to=5),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("binary", [True, False])
def test_lies_are_refused(tmp_path: Path, lie: str, binary: bool) -> None:
    found = copy.deepcopy(document())
    if not binary:
        found["buffers"][0]["uri"] = "data:;base64," + base64.b64encode(DATA).decode()
    LIES[lie](found)
    with pytest.raises(FileFormatError) as caught:
        load_mesh(save(tmp_path, found, binary=binary))
    assert "please report" not in caught.value.reason


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b"\xff", b'{"a": NaN}', b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 50_000],
)
def test_json_that_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.glb").write_bytes(glb(text))
    with pytest.raises(FileFormatError):
        load_mesh(tmp_path / "a.glb")


def test_container(tmp_path: Path) -> None:
    good = glb(json.dumps(document()).encode())
    for bad in (good[:-1], good + b"\0", good[:8], good[:19], b"glTF\1" + good[5:], good[:16] + b"JSOM" + good[20:]):
        (tmp_path / "a.glb").write_bytes(bad)
        with pytest.raises(FileFormatError):
            load_mesh(tmp_path / "a.glb")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(DATA)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "b.bin").symlink_to(tmp_path / "secret.bin")
    found = document()
    found["buffers"][0]["uri"] = "b.bin"
    with pytest.raises(FileFormatError, match="out of the file's folder"):
        load_mesh(save(tmp_path / "inside", found, binary=False))


def test_instances_that_multiply_are_refused(tmp_path: Path) -> None:
    found = document()
    found["nodes"] = [{"mesh": 0}] * 2000
    found["meshes"][0]["primitives"] *= 200  # 400,000 times the same triangles
    found["scenes"][0]["nodes"] = list(range(2000))
    with pytest.raises(FileFormatError, match="instances"):
        load_mesh(save(tmp_path, found))


def test_the_document_serves_other_readers(tmp_path: Path) -> None:
    opened = open_document(open_source(save(tmp_path, document())))
    assert np.array_equal(opened.accessor(2, ("SCALAR",))[:, 0], ORDER)
    assert [n for n, _ in opened.world_matrices()] == [0]
