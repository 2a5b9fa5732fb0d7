"""Rigs in a pose: the golden files, and each way a surface can move."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from geom.errors import ShapeError
from geom.io.animation import Animation, Channel
from geom.io.gltf_rig import load_rig, save_rig
from geom.io.rig import Primitive, Rig, make_rig
from geom.skinning.dual_quaternion import dqs
from geom.skinning.linear import lbs
from geom.skinning.pose import bake, deform
from geom.testing import assert_gradients
from geom.values import replace

SEED = torch.Generator().manual_seed(5)
GOLDEN = re.compile(r"anim(None|\d+)_t(.+)_node(\d+)_prim(\d+)")


def test_the_golden_files(data: Path, dtype: torch.dtype) -> None:
    files = sorted((data / "skinning" / "gltf").glob("*.gl*"))
    assert files
    for file in files:
        golden = np.load(data / "skinning" / "golden" / f"{file.stem}_skinned.npz")
        rig = load_rig(file, dtype=dtype)
        place = {(p.node, p.index): i for i, p in enumerate(rig.primitives)}
        for key in golden.files:
            found = GOLDEN.fullmatch(key)
            assert found
            animation = None if found[1] == "None" else int(found[1])
            moved = deform(rig, rig.pose(animation=animation, time=float(found[2])))
            x, expected = moved[place[int(found[3]), int(found[4])]].numpy(), golden[key].astype(np.float64)
            extent = np.linalg.norm(expected.max(0) - expected.min(0))
            assert np.abs(x - expected).max() <= 5e-7 * extent, key


def character(dtype: torch.dtype = torch.float64) -> Rig:
    """Five vertices on two joints, two morph targets, and a hat that a node in between carries."""
    x = torch.rand(5, 3, generator=SEED, dtype=dtype)
    joints = torch.tensor([[0.0, 0, 0], [0, 1, 0]], dtype=dtype)
    weights = torch.rand(5, 2, generator=SEED, dtype=dtype)
    faces = torch.tensor([[0, 1, 2], [2, 3, 4]])
    rig = make_rig(x, faces, parent=torch.tensor([-1, 0]), joints=joints, weights=weights)
    body = replace(
        rig.primitives[0], morphs=torch.rand(2, 5, 3, generator=SEED, dtype=dtype), normals=x, morph_names=("a", "b")
    )
    hat = Primitive(x[:3], faces[:1], 1, slot=2, mesh=1, normals=x[:3], material=0)
    return replace(rig, primitives=(body, hat), morph=torch.tensor([0.5, 0.0], dtype=dtype))


def bent(rig: Rig, *batch: int) -> dict[str, torch.Tensor]:
    quat = torch.randn(*batch, 3, 4, generator=SEED, dtype=torch.float64)
    morph = torch.rand(*batch, 2, generator=SEED, dtype=torch.float64)
    move = torch.randn(*batch, 3, 3, generator=SEED, dtype=torch.float64)
    return {"quat_wxyz": quat, "morph": morph, "translation": move}


@pytest.mark.parametrize("method", ["lbs", "dqs", "hybrid"])
@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_morphs_then_joints_then_the_world(method: str, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    rig = character(dtype)
    pose = rig.pose_from(**bent(rig, *batch))
    body, hat = deform(rig, pose, method=method, blend=0.25)  # type: ignore[arg-type]
    skin, surface = rig.primitives[0], rig.primitives[1]
    assert body.dtype == hat.dtype == dtype and body.shape == (*batch, 5, 3) and hat.shape == (*batch, 3, 3)
    x = skin.vertices + torch.einsum("...m,mvc->...vc", pose.morph.to(dtype), skin.morphs)  # type: ignore[arg-type]
    bones = rig.bones(pose).to(dtype)
    linear = lbs(x, skin.weights, bones, indices=skin.indices)  # type: ignore[arg-type]
    screwed = dqs(x, skin.weights, bones, indices=skin.indices)  # type: ignore[arg-type]
    expected = {"lbs": linear, "dqs": screwed, "hybrid": 0.25 * linear + 0.75 * screwed}[method]
    torch.testing.assert_close(body, expected)
    world = pose.world[..., 1, :, :].to(dtype)
    torch.testing.assert_close(
        hat, torch.einsum("...ij,vj->...vi", world[..., :3], surface.vertices) + world[..., None, :, 3]
    )


def test_the_node_of_a_skinned_surface_changes_nothing() -> None:
    rig = character()
    moved = replace(rig, translation=rig.translation + torch.tensor([[0.0, 0, 0]] * 2 + [[5, 6, 7]]))
    assert torch.equal(deform(moved, moved.pose())[0], deform(rig, rig.pose())[0])


def test_gradients() -> None:
    rig = character()
    how = bent(rig)

    def move(quat: torch.Tensor, morph: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return deform(rig, rig.pose_from(quat_wxyz=quat, morph=morph))

    assert_gradients(move, how["quat_wxyz"], how["morph"], vmap=False, forward=False)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lbs", "dqs", "hybrid"])
def test_on_the_gpu(method: str) -> None:
    rig = character()
    pose = rig.pose_from(**bent(rig, 4))
    keys = Channel(torch.tensor([0.0, 1]), torch.rand(2, 4), 1, "rotation")
    rig = replace(rig, animations=(Animation((keys,)),))
    moved = deform(rig.to("cuda"), pose.to("cuda"), method=method)  # type: ignore[arg-type]
    for x, y in zip(deform(rig, pose, method=method), moved, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(x, y.cpu())
    played = rig.to("cuda").pose(animation=0, time=torch.tensor([0.0, 0.5], device="cuda")).world
    torch.testing.assert_close(played.cpu(), rig.pose(animation=0, time=torch.tensor([0.0, 0.5])).world)


@pytest.mark.usefixtures("unchecked")
def test_wrong_poses() -> None:
    rig = character()
    other = replace(rig, morph=rig.morph[:1])
    with pytest.raises(ShapeError, match="morph weights"):
        deform(rig, other.pose())
    with pytest.raises(ShapeError, match="method"):
        deform(rig, rig.pose(), method="magic")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="batch"):
        bake(rig, rig.pose(time=torch.zeros(2)))


# --- frozen ----------------------------------------------------------------------------------------------------------


def test_a_baked_rig_stands_where_the_pose_was(tmp_path: Path) -> None:
    rig = character()
    pose = rig.pose_from(**bent(rig))
    still = bake(rig, pose)
    for x, y in zip(deform(rig, pose), deform(still, still.pose()), strict=True):
        assert torch.equal(x, y)
    assert still.skins == still.animations == () and len(still.names) == 2
    save_rig(replace(still, look='{"materials":[{}],"images":[]}'), tmp_path / "a.glb")
    again = load_rig(tmp_path / "a.glb")
    assert torch.equal(again.primitives[0].vertices, still.primitives[0].vertices.float())
    assert all(p.morphs is None and p.weights is None for p in again.primitives)


def test_a_baked_mirror_turns_its_faces() -> None:
    rig = character()
    hat = replace(rig.primitives[1], normals=torch.tensor([[0.0, 0, 1], [0, 1, 0], [0.6, 0.8, 0]]).double())
    rig = replace(rig, primitives=(rig.primitives[0], hat))
    scale = rig.scale.clone()
    scale[1] = torch.tensor([1, 2, -1])
    still = bake(rig, rig.pose_from(scale=scale)).primitives[1]
    assert still.faces.tolist() == [[2, 1, 0]]
    slanted = torch.tensor([0.6, 0.4, 0]).double()
    expected = torch.stack([torch.tensor([0.0, 0, -1]), torch.tensor([0.0, 1, 0]), (slanted / slanted.norm()).float()])
    torch.testing.assert_close(still.normals, expected.double(), rtol=0, atol=1e-7)


def test_only_the_scene_is_baked() -> None:
    rig = character()
    still = bake(replace(rig, scene=(0,)), rig.pose())
    assert [len(p.vertices) for p in still.primitives] == [3]
    assert len(bake(replace(rig, scene=()), rig.pose()).primitives) == 2


def test_an_animated_morph(dtype: torch.dtype) -> None:
    rig = character(dtype)
    keys = Channel(torch.tensor([0.0, 1]), torch.tensor([[0.0, 0], [1, 2]]), 2, "weights")
    rig = replace(rig, animations=(Animation((keys,)),))
    body = rig.primitives[0]
    moved = deform(rig, rig.pose(animation=0, time=torch.tensor([0.0, 0.5])))[0]
    torch.testing.assert_close(moved[0], body.vertices)
    torch.testing.assert_close(moved[1], body.vertices + 0.5 * body.morphs[0] + body.morphs[1])  # type: ignore[index]
