"""Rigs in glTF that are no valid files: each is refused with a reason."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geom.errors import FileFormatError, ShapeError
from geom.io.gltf_rig import load_rig, save_rig
from geom.values import replace

TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
ARRAYS = [  # dtype code, type, rows
    (5121, "VEC4", np.tile(np.uint8([1, 0, 0, 0]), (3, 1))),
    (5126, "VEC4", np.tile(np.float32([1, 0, 0, 0]), (3, 1))),
    (5126, "VEC3", TRIANGLE),
    (5126, "MAT4", np.tile(np.eye(4, dtype=np.float32).reshape(1, 16), (2, 1))),
    (5126, "SCALAR", np.float32([[0], [1], [0]])),
    (5126, "VEC4", np.float32([[0, 0, 0, 1], [0, 0, 1, 0]])),
    (5126, "VEC3", TRIANGLE[:2]),
    (5126, "VEC4", np.float32([[1, 0, 0, 0], [1.5, -0.5, 0, 0], [1, 0, 0, 0]])),
    (5126, "VEC3", np.full((3, 3), np.nan, np.float32)),
]


def everything() -> dict[str, Any]:
    """A triangle on two joints, one of which an animation turns; some accessors more, for lies to point at."""
    views: list[dict[str, int]] = []
    body = b""
    for _, _, rows in ARRAYS:
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": rows.nbytes})
        body += rows.tobytes()
    accessors = [
        {"componentType": c, "type": t, "count": len(r), "bufferView": i} for i, (c, t, r) in enumerate(ARRAYS)
    ]
    accessors[4]["count"] = 2
    sampler = {"input": 4, "output": 5, "interpolation": "LINEAR"}
    return {
        "asset": {"version": "2.0"},
        "nodes": [{"children": [1]}, {"translation": [0, 1, 0]}, {"mesh": 0, "skin": 0}],
        "skins": [{"joints": [0, 1], "inverseBindMatrices": 3}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 2, "JOINTS_0": 0, "WEIGHTS_0": 1}}]}],
        "animations": [
            {"samplers": [sampler], "channels": [{"sampler": 0, "target": {"node": 1, "path": "rotation"}}]}
        ],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(body), "uri": "data:;base64," + base64.b64encode(body).decode()}],
    }


def save(found: dict[str, Any], folder: Path) -> Path:
    (folder / "a.gltf").write_text(json.dumps(found))
    return folder / "a.gltf"


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(found: dict[str, Any]) -> None:
        item: Any = found
        for key in path[:-1]:
            item = item[key]
        item[path[-1]] = to

    return apply


PART = {"attributes": {"POSITION": 2}}
# accessors of `everything`: 0 joints, 1 weights, 2 positions, 3 inverse binds, 4 times, 5 rotations
LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "cycle": change("nodes", 1, "children", to=[0]),
    "cycle beside the scene": change("nodes", 2, "children", to=[2]),
    "two parents": change("nodes", 2, "children", to=[1]),
    "child out of range": change("nodes", 1, "children", to=[3]),
    "joint node out of range": change("skins", 0, "joints", to=[0, 3]),
    "no joints": change("skins", 0, "joints", to=[]),
    "fewer joints than are used": change("skins", 0, "joints", to=[0]),
    "skin out of range": change("nodes", 2, "skin", to=1),
    "skeleton out of range": change("skins", 0, "skeleton", to=3),
    "inverse binds too few": change("accessors", 3, "count", to=1),
    "inverse binds of another type": change("skins", 0, "inverseBindMatrices", to=2),
    "weights of another type": change("meshes", 0, "primitives", 0, "attributes", "WEIGHTS_0", to=2),
    "weights too few": change("accessors", 1, "count", to=2),
    "joints beyond the view": change("accessors", 0, "count", to=4),
    "negative weights": change("meshes", 0, "primitives", 0, "attributes", "WEIGHTS_0", to=7),
    "NaN": change("accessors", 2, "bufferView", to=8),
    "huge count": change("accessors", 1, to={"componentType": 5126, "type": "VEC4", "count": 10**9}),
    "times that fall": change("accessors", 4, "byteOffset", to=4),
    "no times": change("accessors", 4, "count", to=0),
    "values too few": change("accessors", 5, "count", to=1),
    "values of another type": change("animations", 0, "samplers", 0, "output", to=2),
    "interpolation": change("animations", 0, "samplers", 0, "interpolation", to="CUBIC"),
    "spline without tangents": change("animations", 0, "samplers", 0, "interpolation", to="CUBICSPLINE"),
    "sampler out of range": change("animations", 0, "channels", 0, "sampler", to=1),
    "animated node out of range": change("animations", 0, "channels", 0, "target", "node", to=3),
    "no target": change("animations", 0, "channels", 0, "target", to=None),
    "rotation of length 0": change("nodes", 0, "rotation", to=[0, 0, 0, 0]),
    "projective matrix": change("nodes", 0, "matrix", to=[1] * 16),
    "weights of no targets": change("meshes", 0, "primitives", 0, "targets", to=[{"POSITION": 1}]),
    "targets too short": change("meshes", 0, "primitives", 0, "targets", to=[{"POSITION": 6}]),
    "default weights": change(
        "meshes", 0, to={"primitives": [{"attributes": {"POSITION": 2}, "targets": [{}]}], "weights": [1, 2]}
    ),
    "material out of range": change("meshes", 0, "primitives", 0, "material", to=0),
    "mode": change("meshes", 0, "primitives", 0, "mode", to=7),
    "materials": change("materials", to=[1]),
    "scene out of range": change("scene", to=1),
    "extension": change("extensionsRequired", to=["EXT_meshopt_compression"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(tmp_path: Path, lie: str) -> None:
    found = everything()
    assert len(load_rig(save(found, tmp_path)).names) == 3
    LIES[lie](found)
    with pytest.raises(FileFormatError) as caught:
        load_rig(save(found, tmp_path))
    assert "please report" not in caught.value.reason


def test_other_suffixes_and_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="suffix"):
        load_rig(tmp_path / "a.fbx")
    with pytest.raises(FileFormatError, match="no such file"):
        load_rig(tmp_path / "a.glb")
    with pytest.raises(ShapeError, match="dtype"):
        load_rig(save(everything(), tmp_path), dtype=torch.float16)
    rig = load_rig(save(everything(), tmp_path))
    with pytest.raises(FileFormatError, match="suffix"):
        save_rig(rig, tmp_path / "a.usd")
    with pytest.raises(ShapeError, match="rig"):
        save_rig(rig.pose(), tmp_path / "b.glb")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="finite"):
        save_rig(replace(rig, translation=rig.translation / 0), tmp_path / "b.glb")
    huge = replace(rig.primitives[0], vertices=rig.primitives[0].vertices.double() * 1e300)
    with pytest.raises(ShapeError, match="vertices"):
        save_rig(replace(rig, primitives=(huge,)), tmp_path / "b.glb")
    assert not (tmp_path / "b.glb").exists()
