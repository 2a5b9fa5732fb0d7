"""Rigs in glTF: every feature of the format on small files."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from geom.errors import ShapeError
from geom.io.gltf_rig import load_rig, save_rig
from geom.io.rig import Rig

TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
CODES = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
HALF = float(np.sqrt(0.5))


class File:
    """A glTF document under construction: `json`, and a buffer that grows."""

    def __init__(self) -> None:
        self.body = b""
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0"}, "accessors": [], "bufferViews": [], "meshes": [], "nodes": [],
            "skins": [], "animations": [],
        }  # fmt: skip

    def view(self, data: bytes, **more: int) -> int:
        self.body += b"\0" * (-len(self.body) % 4)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.body), "byteLength": len(data), **more})
        self.body += data
        return len(self.json["bufferViews"]) - 1

    def add(self, array: Any, *, normalized: bool = False, dtype: str = "float32") -> int:
        array = np.asarray(array, dtype)
        rows = array.reshape(len(array), -1)
        item = {"componentType": CODES[dtype], "count": len(rows), "type": TYPES[rows.shape[1]]}
        if normalized:
            item["normalized"] = True
        self.json["accessors"].append({"bufferView": self.view(rows.tobytes()), **item})
        return len(self.json["accessors"]) - 1

    def mesh(self, *, mode: int = 4, targets: Any = None, **attributes: int) -> int:
        part: dict[str, Any] = {
            "attributes": {"POSITION": attributes.pop("POSITION", None), **attributes},
            "mode": mode,
        }
        if part["attributes"]["POSITION"] is None:
            part["attributes"]["POSITION"] = self.add(TRIANGLE)
        if targets is not None:
            part["targets"] = targets
        self.json["meshes"].append({"primitives": [part]})
        return len(self.json["meshes"]) - 1

    def animate(self, node: int, path: str, times: Any, values: Any, kind: str = "LINEAR", **how: Any) -> None:
        sampler = {"input": self.add(times), "output": self.add(values, **how), "interpolation": kind}
        channel = {"sampler": 0, "target": {"node": node, "path": path}}
        self.json["animations"].append({"samplers": [sampler], "channels": [channel]})

    def save(self, folder: Path, *, binary: bool = True) -> Path:
        found = {key: value for key, value in self.json.items() if value != []}
        if self.body:
            found["buffers"] = [{"byteLength": len(self.body)}]
        if not binary:
            found["buffers"][0]["uri"] = "data:;base64," + base64.b64encode(self.body).decode()
            (folder / "a.gltf").write_text(json.dumps(found))
            return folder / "a.gltf"
        text = json.dumps(found).encode()
        text += b" " * (-len(text) % 4)
        body = self.body + b"\0" * (-len(self.body) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
        (folder / "a.glb").write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return folder / "a.glb"

    def load(self, folder: Path, dtype: torch.dtype = torch.float32) -> Rig:
        return load_rig(self.save(folder), dtype=dtype)


def skinned(weights: Any, joints: Any, *, wtype: str = "float32", jtype: str = "uint8") -> File:
    """One triangle on two joints, nodes 0 and 1; node 2 has the mesh and a transform that must not matter."""
    file = File()
    sets: dict[str, int] = {}
    for n in range(len(weights)):
        sets[f"JOINTS_{n}"] = file.add(joints[n], dtype=jtype)
        sets[f"WEIGHTS_{n}"] = file.add(weights[n], dtype=wtype, normalized=wtype != "float32")
    file.mesh(**sets)
    file.json["nodes"] = [{"children": [1]}, {"translation": [0, 1, 0]}, {"mesh": 0, "skin": 0, "scale": [9, 9, 9]}]
    file.json["skins"] = [{"joints": [0, 1]}]
    return file


def moving(kind: str, times: Any, values: Any, path: str = "translation", **how: Any) -> File:
    file = File()
    file.mesh()
    file.json["nodes"] = [{"mesh": 0}]
    file.animate(0, path, times, values, kind, **how)
    return file


def same(a: Any, b: Any) -> bool:
    leaves, spec = pytree.tree_flatten(a)
    others, other = pytree.tree_flatten(b)
    return spec == other and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(leaves, others, strict=True))


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_hierarchy_in_any_order_with_parts_and_matrices(tmp_path: Path) -> None:
    sheared = [1, 0, 0, 0, 0.5, 2, 0, 0, 0, 0, -3, 0, 5, 6, 7, 1]  # by columns
    file = File()
    file.json["nodes"] = [
        {"name": "tip", "translation": [1, 0, 0], "scale": [-1, 2, 3]},
        {"name": "middle", "matrix": sheared, "children": [0]},
        {"name": "root", "rotation": [0, 0, HALF, HALF], "translation": [0, 0, 1], "children": [1]},
        {},
    ]
    file.json["scenes"], file.json["scene"] = [{"nodes": [3]}, {"nodes": [2]}], 1
    rig = file.load(tmp_path)
    assert rig.parent.tolist() == [1, 2, -1, -1] and rig.names == ("tip", "middle", "root", "") and rig.scene == (2,)
    assert rig.translation.dtype == torch.float64 and rig.basis is not None
    quarter = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1.0]])
    middle = np.array(sheared, float).reshape(4, 4).T
    tip = np.diag([-1, 2, 3, 1.0])
    tip[0, 3] = 1
    world = rig.pose().world.numpy()
    assert np.allclose(world[0], (quarter @ middle @ tip)[:3], atol=1e-15)
    assert np.array_equal(rig.basis[1].numpy(), middle[:3, :3])
    assert np.array_equal(world[3], np.eye(4)[:3])


def test_a_matrix_that_is_animated_is_taken_apart(tmp_path: Path) -> None:
    file = moving("LINEAR", [0, 1], [[0, 0, HALF, HALF], [0, 0, 0, 1]], "rotation")
    file.json["nodes"][0]["matrix"] = [-2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 4, 0, 5, 6, 7, 1]
    rig = file.load(tmp_path)
    assert rig.basis is None and sorted(rig.scale[0].abs().tolist()) == [2, 3, 4]
    assert torch.allclose(rig.pose().world[0, :, :3], torch.diag(torch.tensor([-2.0, 3, 4]).double()))
    turned = rig.pose(animation=0).world[0]
    assert torch.allclose(turned[:, 3], torch.tensor([5.0, 6, 7]).double())
    assert float(torch.linalg.det(turned[:, :3])) == pytest.approx(-24)


def test_nodes_outside_of_the_scene_are_read(tmp_path: Path) -> None:
    file = File()
    file.mesh()
    file.json["nodes"] = [{"mesh": 0}, {"mesh": 0}]
    file.json["scenes"] = [{"nodes": [1]}]
    rig = file.load(tmp_path)
    assert [p.node for p in rig.primitives] == [0, 1] and rig.scene == (1,)


# --- surfaces --------------------------------------------------------------------------------------------------------


def test_one_mesh_at_several_nodes(tmp_path: Path) -> None:
    file = File()
    bump = file.add(TRIANGLE)
    file.mesh(targets=[{"POSITION": bump}])
    file.json["meshes"][0] |= {"weights": [0.25], "extras": {"targetNames": ["bump"]}, "name": "leaf"}
    file.json["nodes"] = [{"mesh": 0}, {}, {"mesh": 0, "weights": [0.75]}]
    rig = file.load(tmp_path)
    first, second = rig.primitives
    assert (first.node, second.node, first.slot, second.slot, first.mesh, second.mesh) == (0, 2, 0, 1, 0, 0)
    assert first.vertices is second.vertices and first.morphs is second.morphs
    assert rig.morph.tolist() == [0.25, 0.75] and first.morph_names == ("bump",) and first.name == "leaf"


@pytest.mark.parametrize(("mode", "faces"), [(4, [[0, 1, 2]]), (5, [[0, 1, 2]]), (6, [[1, 2, 0]]), (0, []), (3, [])])
def test_modes(tmp_path: Path, mode: int, faces: list[list[int]]) -> None:
    file = File()
    file.mesh(mode=mode)
    file.json["nodes"] = [{"mesh": 0}]
    found = file.load(tmp_path).primitives[0]
    assert found.faces.tolist() == faces and found.faces.shape[1] == 3 and len(found.vertices) == 3


def test_strips_with_indices_and_several_primitives(tmp_path: Path) -> None:
    file = File()
    square = file.add([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    file.mesh(mode=5, POSITION=square, TEXCOORD_0=file.add([[0, 0], [255, 0], [0, 255], [255, 255]], dtype="uint8",
                                                            normalized=True))  # fmt: skip
    parts = file.json["meshes"][0]["primitives"]
    parts[0]["indices"] = file.add([3, 2, 1, 0], dtype="uint16")
    parts.append({"attributes": {"POSITION": square, "COLOR_0": file.add([[1, 2, 3, 4]] * 4)}})
    parts[1]["indices"] = file.add([0, 1, 2], dtype="uint32")
    file.json["nodes"] = [{"mesh": 0}]
    strip, other = file.load(tmp_path).primitives
    assert strip.faces.tolist() == [[3, 2, 1], [2, 0, 1]] and other.faces.tolist() == [[0, 1, 2]]
    assert (strip.index, other.index) == (0, 1) and strip.vertices is other.vertices
    assert strip.uv is not None and strip.uv.tolist()[3] == [1, 1] and other.uv is None
    assert other.colors is not None and other.colors.shape == (4, 4)


def test_quantised_positions_and_sparse_morphs(tmp_path: Path, dtype: torch.dtype) -> None:
    file = File()
    file.json["extensionsRequired"] = file.json["extensionsUsed"] = ["KHR_mesh_quantization"]
    position = file.add([[0, 0, 0], [32767, -32768, 0], [0, 3, 16384]], dtype="int16", normalized=True)
    moved = file.add([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype="int8")
    sparse = {
        "count": 2,
        "indices": {"bufferView": file.view(struct.pack("<2B", 0, 2)), "componentType": 5121},
        "values": {"bufferView": file.view(struct.pack("<6f", 1, 2, 3, 4, 5, 6))},
    }
    file.json["accessors"].append({"componentType": 5126, "count": 3, "type": "VEC3", "sparse": sparse})
    file.mesh(POSITION=position, targets=[{"POSITION": moved}, {"POSITION": moved + 1}, {"NORMAL": moved + 1}])
    file.json["nodes"] = [{"mesh": 0}]
    found = file.load(tmp_path, dtype).primitives[0]
    assert found.vertices.dtype == dtype and found.morphs is not None and found.morph_normals is not None
    expected = torch.tensor([[0, 0, 0], [1, -1, 0], [0, 3 / 32767, 16384 / 32767]], dtype=dtype)
    torch.testing.assert_close(found.vertices, expected, rtol=1e-7, atol=0)
    assert found.morphs[0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert found.morphs[1].tolist() == [[1, 2, 3], [0, 0, 0], [4, 5, 6]] and not found.morphs[2].any()
    assert not found.morph_normals[:2].any() and torch.equal(found.morph_normals[2], found.morphs[1])


def test_interleaved_attributes(tmp_path: Path) -> None:
    file = File()
    rows = np.concatenate([TRIANGLE, 2 * TRIANGLE], 1)
    view = file.view(rows.tobytes(), byteStride=24)
    for offset in (0, 12):
        item = {"bufferView": view, "byteOffset": offset, "componentType": 5126, "count": 3, "type": "VEC3"}
        file.json["accessors"].append(item)
    file.mesh(POSITION=0, NORMAL=1)
    file.json["nodes"] = [{"mesh": 0}]
    found = file.load(tmp_path).primitives[0]
    assert np.array_equal(found.vertices, TRIANGLE) and np.array_equal(found.normals, 2 * TRIANGLE)


@pytest.mark.parametrize("home", ["glb", "data", "file"])
def test_the_homes_of_a_buffer(tmp_path: Path, home: str) -> None:
    file = skinned([[[1, 0, 0, 0]] * 3], [[[1, 0, 0, 0]] * 3])
    path = file.save(tmp_path, binary=home == "glb")
    if home == "file":
        (tmp_path / "b.bin").write_bytes(file.body)
        found = json.loads(path.read_text())
        found["buffers"][0]["uri"] = "b.bin"
        path.write_text(json.dumps(found))
    assert load_rig(path).primitives[0].indices.tolist() == [[1, 0, 0, 0]] * 3  # type: ignore[union-attr]


# --- skins -----------------------------------------------------------------------------------------------------------


def test_influences_are_normalised_and_repaired(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = [[[2, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], [[2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]]
    joints = [[[1, 99, 0, 0], [1, 0, 0, 0], [0, 1, 7, 7]], [[0, 0, 0, 0], [9, 9, 9, 9], [1, 0, 0, 0]]]
    found = skinned(weights, joints).load(tmp_path, dtype).primitives[0]
    assert found.weights is not None and found.indices is not None and found.weights.dtype == dtype
    assert found.weights[0].tolist() == [0.5, 0, 0, 0, 0.5, 0, 0, 0]
    assert found.weights[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0] and found.indices[1].tolist() == [1] + 7 * [0]
    assert float((found.weights.double().sum(1) - 1).abs().max()) <= 3e-8
    assert found.indices[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("wtype", "most"), [("uint8", 255), ("uint16", 65535)])
def test_integer_weights(tmp_path: Path, wtype: str, most: int) -> None:
    weights = [[[most, 0, 0, 0], [most // 5, most - most // 5, 0, 0], [1, 0, 0, 0]]]
    found = skinned(weights, [[[0, 1, 0, 0]] * 3], wtype=wtype, jtype="uint16").load(tmp_path, torch.float64)
    share = found.primitives[0].weights
    assert share is not None
    torch.testing.assert_close(share[:, 0], torch.tensor([1, (most // 5) / most, 1]).double(), rtol=1e-6, atol=0)


def test_inverse_bind_matrices_and_their_absence(tmp_path: Path) -> None:
    file = skinned([[[1, 0, 0, 0]] * 3], [[[0, 1, 0, 0]] * 3])
    assert torch.equal(file.load(tmp_path).skins[0].inverse_bind, torch.eye(3, 4).repeat(2, 1, 1))
    bind = np.arange(32.0).reshape(2, 4, 4)
    bind[:, 3] = [0, 0, 0, 1]
    file.json["skins"][0] |= {"inverseBindMatrices": file.add(bind.transpose(0, 2, 1)), "skeleton": 1, "name": "s"}
    skin = file.load(tmp_path).skins[0]
    assert np.array_equal(skin.inverse_bind, bind[:, :3]) and (skin.skeleton, skin.name) == (1, "s")


def test_a_skin_without_joints_and_joints_without_a_skin(tmp_path: Path) -> None:
    file = skinned([[[1, 0, 0, 0]] * 3], [[[0, 1, 0, 0]] * 3])
    file.mesh()
    file.json["nodes"] += [{"mesh": 1, "skin": 0}, {"mesh": 0}]
    rig = file.load(tmp_path)
    assert [p.skin for p in rig.primitives] == [0, None, None]
    assert [p.weights is None for p in rig.primitives] == [False, True, True]


# --- animations ------------------------------------------------------------------------------------------------------


def at(file: File, folder: Path, *times: float) -> torch.Tensor:
    rig = file.load(folder)
    pose = rig.pose(animation=0, time=torch.tensor(times, dtype=torch.float64))
    return pose.translation[:, 0]


def test_linear_step_and_what_lies_outside(tmp_path: Path) -> None:
    keys = [[0, 0, 0], [4, 0, 0], [4, 8, 0]]
    linear, step = (moving(kind, [1, 2, 4], keys) for kind in ("LINEAR", "STEP"))
    assert at(linear, tmp_path, -9, 1, 1.25, 2, 3, 4, 99)[:, :2].tolist() == [
        [0, 0], [0, 0], [1, 0], [4, 0], [4, 4], [4, 8], [4, 8]
    ]  # fmt: skip
    assert at(step, tmp_path, -9, 1, 1.99, 2, 3.9, 4, 99)[:, :2].tolist() == [
        [0, 0], [0, 0], [0, 0], [4, 0], [4, 0], [4, 8], [4, 8]
    ]  # fmt: skip
    assert at(moving("LINEAR", [2], [[1, 2, 3]]), tmp_path, 0, 2, 3).tolist() == [[1, 2, 3]] * 3
    again = moving("LINEAR", [0, 1, 1, 2], [[0, 0, 0], [1, 0, 0], [5, 0, 0], [6, 0, 0]])
    assert at(again, tmp_path, 0.5, 1, 1.5)[:, 0].tolist() == [0.5, 5, 5.5]


def test_cubic_splines(tmp_path: Path) -> None:
    """p(t) = t^3 is its own spline: the tangents are derivatives a second, whatever the frames' distance."""
    times = np.array([0.0, 2, 3])
    triples = [[[3 * t * t, 0, 0], [t**3, 0, 0], [3 * t * t, 0, 0]] for t in times]
    file = moving("CUBICSPLINE", times, np.reshape(triples, (9, 3)))
    asked = [0, 0.5, 1.7, 2, 2.25, 3, 4]
    expected = [min(t, 3) ** 3 for t in asked]
    assert at(file, tmp_path, *asked)[:, 0].tolist() == pytest.approx(expected, abs=1e-12)


def test_rotations_take_the_shorter_way_and_stay_rotations(tmp_path: Path) -> None:
    keys = np.array([[0, 0, 0, 1], [0, 0, -HALF, -HALF], [0, 0, 1, 0]])  # 0, 90 and 180 degrees about z
    rig = moving("LINEAR", [0, 1, 2], keys, "rotation").load(tmp_path)
    for time, degrees in ((0, 0), (0.5, 45), (1, 90), (1.25, 112.5), (2, 180), (3, 180)):
        found = rig.pose(animation=0, time=time).world[0, :2, :2].flatten().tolist()
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        assert found == pytest.approx([c, -s, s, c], abs=1e-7)
    still = np.zeros((6, 4))
    still[[1, 4]] = [[0, 0, 0, 1], [0, 0, HALF, HALF]]
    rig = moving("CUBICSPLINE", [0, 1], still, "rotation").load(tmp_path)
    middle = rig.pose(animation=0, time=0.5).world[0, :, :3]
    assert torch.allclose(middle @ middle.T, torch.eye(3).double(), atol=1e-14)
    assert float(torch.atan2(middle[1, 0], middle[0, 0])) == pytest.approx(np.pi / 4, abs=1e-7)


def test_a_half_turn_between_key_frames(tmp_path: Path) -> None:
    keys = np.array([[0, 0, 0, 1], [0, 1, 0, -4.371139e-8], [0, 8.742278e-8, 0, -1]])  # as exporters write it
    rig = moving("LINEAR", [0, 1, 2], keys, "rotation").load(tmp_path)
    turned = rig.pose(animation=0, time=torch.linspace(0, 2, 21).double()).world[:, 0, :, :3]
    step = turned[1:] @ turned[:-1].mT
    angle = torch.acos(((step.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    assert torch.allclose(angle, torch.full_like(angle, np.pi / 10), atol=1e-6)


def test_integer_outputs(tmp_path: Path) -> None:
    quarter = [[0, 0, 0, 32767], [0, 0, 23170, 23170]]
    rig = moving("LINEAR", [0, 1], quarter, "rotation", dtype="int16", normalized=True).load(tmp_path)
    assert rig.pose(animation=0, time=1).world[0, 1, 0].item() == pytest.approx(1, abs=1e-6)
    rig = moving("STEP", [0, 1], [[-128, 127, 0], [0, 0, 0]], "scale", dtype="int8", normalized=True).load(tmp_path)
    assert rig.pose(animation=0).scale[0].tolist() == [-1, 1, 0]


@pytest.mark.parametrize("kind", ["LINEAR", "STEP", "CUBICSPLINE"])
def test_morph_weights(tmp_path: Path, kind: str) -> None:
    file = File()
    bump = file.add(TRIANGLE)
    file.mesh(targets=[{"POSITION": bump}, {"POSITION": bump}])
    file.json["nodes"] = [{"mesh": 0, "weights": [0.5, 0.5]}, {"mesh": 0}, {}]
    keys = [0, 1, 1, 3] if kind != "CUBICSPLINE" else [9, 9, 0, 1, 0, 0, 0, 0, 1, 3, 9, 9]
    file.animate(1, "weights", [0, 2], keys, kind)
    file.json["animations"][0]["channels"] += [
        {"sampler": 0, "target": {"node": 2, "path": "weights"}},  # nothing to morph there
        {"sampler": 0, "target": {"path": "weights"}},
        {"sampler": 0, "target": {"node": 1, "path": "pointer"}},
    ]
    rig = file.load(tmp_path)
    assert len(rig.animations[0].channels) == 1
    middle = {"LINEAR": [0.5, 2], "STEP": [0, 1], "CUBICSPLINE": [0.5, 2]}[kind]
    assert rig.pose(animation=0, time=1).morph.tolist() == [0.5, 0.5, *middle]
    assert rig.pose(animation=0, time=5).morph.tolist() == [0.5, 0.5, 1, 3]
    assert rig.pose().morph.tolist() == [0.5, 0.5, 0, 0]


def test_primitives_with_different_numbers_of_targets(tmp_path: Path) -> None:
    file = File()
    bump = {"POSITION": file.add(TRIANGLE)}
    file.mesh(POSITION=0)
    part = file.json["meshes"][0]["primitives"][0]
    file.json["meshes"][0]["primitives"] += [{**part, "targets": [bump]}, {**part, "targets": [bump, bump]}]
    file.json["nodes"] = [{"mesh": 0}]
    file.animate(0, "weights", [0, 1], [0, 0, 1, 3])
    rig = file.load(tmp_path)
    assert [p.morphs if p.morphs is None else len(p.morphs) for p in rig.primitives] == [None, 1, 2]
    assert rig.pose(animation=0, time=1).morph.tolist() == [1, 3]
    save_rig(rig, tmp_path / "b.glb")
    assert same(load_rig(tmp_path / "b.glb"), rig)


def test_several_animations_by_index_and_name(tmp_path: Path) -> None:
    file = moving("LINEAR", [0, 1], [[0, 0, 0], [1, 0, 0]])
    file.animate(0, "translation", [0, 1], [[0, 0, 0], [0, 5, 0]])
    file.json["animations"][1]["name"] = "up"
    file.json["animations"][1]["channels"] *= 2
    rig = file.load(tmp_path)
    assert rig.animations[1].duration == 1 and len(rig.animations[1].channels) == 1
    assert rig.pose(animation="up", time=1).translation[0].tolist() == [0, 5, 0]
    assert rig.pose(animation=0, time=1).translation[0].tolist() == [1, 0, 0]
    for wrong in (2, -1, "down", True, 1.0):
        with pytest.raises(ShapeError, match="animation"):
            rig.pose(animation=wrong)  # type: ignore[arg-type]
