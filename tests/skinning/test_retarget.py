"""Motion from rig to rig: onto itself nothing changes, and onto another body the joints turn alike."""

from pathlib import Path

import pytest
import torch

from geom.errors import ShapeError
from geom.io.gltf_rig import load_rig
from geom.io.rig import Rig, make_rig
from geom.lie import quaternion, so3
from geom.lie.kinematics import compose_affine
from geom.skinning.pose import deform
from geom.skinning.retarget import retarget
from geom.testing import assert_gradients
from geom.values import replace

SEED = torch.Generator().manual_seed(7)
PARENT = torch.tensor([-1, 0, 1, 0])
NAMES = ["hips", "spine", "head", "leg"]


def body(joints: torch.Tensor, names: list[str] = NAMES, parent: torch.Tensor = PARENT) -> Rig:
    x = torch.rand(3, 3, generator=SEED, dtype=torch.float64)
    weights = torch.rand(3, len(names), generator=SEED, dtype=torch.float64)
    return make_rig(x, torch.tensor([[0, 1, 2]]), parent=parent, joints=joints, weights=weights, names=names)


def stand() -> torch.Tensor:
    return torch.tensor([[0.0, 1, 0], [0, 1.5, 0], [0, 2, 0], [0.1, 0.5, 0]], dtype=torch.float64)


def dance(rig: Rig, *batch: int) -> dict[str, torch.Tensor]:
    quat = quaternion.random(*batch, len(rig.names), generator=SEED, dtype=torch.float64)
    move = rig.translation + 0.1 * torch.randn(*batch, len(rig.names), 3, generator=SEED, dtype=torch.float64)
    return {
        "quat_wxyz": quat,
        "translation": move,
        "scale": 0.5 + torch.rand(*batch, len(rig.names), 3, generator=SEED).double(),
    }


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_onto_itself_nothing_changes(batch: tuple[int, ...]) -> None:
    frames = torch.cat([so3.exp(torch.randn(4, 3, generator=SEED).double()), stand()[..., None]], -1)
    for rig in (body(stand()), body(frames)):
        pose = rig.pose_from(**dance(rig, *batch))
        torch.testing.assert_close(retarget(rig, rig, pose).world, pose.world, rtol=0, atol=1e-13)


def test_real_characters_onto_themselves(data: Path) -> None:
    for file in sorted((data / "skinning" / "gltf").glob("*.gl*")):
        rig = load_rig(file, dtype=torch.float64)
        if not rig.animations or not any(rig.names):
            continue
        pose = rig.pose(animation=0, time=torch.linspace(0, 2, 9))
        again = retarget(rig, rig, pose, names={n: n for n in rig.names if rig.names.count(n) == 1})
        for x, y in zip(deform(rig, pose), deform(rig, again), strict=True):
            assert float((x - y).abs().max()) <= 1e-10 * float((x.amax((0, 1)) - x.amin((0, 1))).norm()), file.name


def test_a_larger_renamed_body_moves_alike() -> None:
    small, large = body(stand()), body(3 * stand(), [f"Rig:{n.upper()}" for n in NAMES])
    pose = small.pose_from(quat_wxyz=dance(small)["quat_wxyz"], translation=dance(small)["translation"])
    moved = retarget(small, large, pose)
    torch.testing.assert_close(moved.world[:4, :, :3], pose.world[:4, :, :3])
    torch.testing.assert_close(moved.world[:4, :, 3], 3 * pose.world[:4, :, 3])
    again = retarget(large, small, moved, names={f"Rig:{n.upper()}": n for n in NAMES})
    torch.testing.assert_close(again.world[:4], pose.world[:4])


def test_bones_with_axes_of_their_own_turn_alike_in_the_world() -> None:
    """The same body, each joint's frame turned: surfaces must move as before."""
    plain = body(stand())
    frames = torch.cat([so3.exp(torch.randn(4, 3, generator=SEED).double()), stand()[..., None]], -1)
    turned = replace(body(frames), primitives=plain.primitives)
    pose = plain.pose_from(**{k: v for k, v in dance(plain, 5).items() if k != "scale"})
    torch.testing.assert_close(deform(turned, retarget(plain, turned, pose))[0], deform(plain, pose)[0])


def test_joints_in_between_keep_their_rest() -> None:
    long = body(
        torch.tensor([[0.0, 1, 0], [0, 1.25, 0], [0, 1.5, 0], [0, 2, 0], [0.1, 0.5, 0]]).double(),
        ["hips", "belly", "spine", "head", "tail"],
        torch.tensor([-1, 0, 1, 2, 0]),
    )
    source = body(stand())
    pose = source.pose_from(quat_wxyz=dance(source)["quat_wxyz"])
    moved = retarget(source, long, pose)
    for mine, theirs in ((0, 0), (2, 1), (3, 2)):
        torch.testing.assert_close(moved.world[mine, :, :3], pose.world[theirs, :, :3])
    assert torch.equal(moved.quat_wxyz[[1, 4]], long.quat_wxyz[[1, 4]])
    hips = moved.world[0]
    torch.testing.assert_close(
        moved.world[1, :, 3], compose_affine(hips, torch.eye(3, 4).double())[:, 3] + hips[:, 1] / 4
    )


def test_morph_weights_go_by_name() -> None:
    first, second = body(stand()), body(stand())
    morphs = torch.zeros(2, 3, 3).double()
    one = replace(
        first,
        primitives=(replace(first.primitives[0], morphs=morphs, morph_names=("smile", "blink")),),
        morph=torch.zeros(2).double(),
    )
    other = replace(
        second,
        primitives=(replace(second.primitives[0], morphs=morphs, morph_names=("frown", "smile")),),
        morph=torch.tensor([0.25, 0]).double(),
    )
    pose = one.pose_from(morph=torch.tensor([0.5, 0.75]).double())
    assert retarget(one, other, pose).morph.tolist() == [0.25, 0.5]


def test_gradients() -> None:
    source, target = body(stand()), body(2 * stand())
    how = dance(source)

    def move(quat: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
        return retarget(source, target, source.pose_from(quat_wxyz=quat, translation=translation)).world

    assert_gradients(move, how["quat_wxyz"], how["translation"], vmap=False, forward=False)


@pytest.mark.usefixtures("unchecked")
def test_wrong_names() -> None:
    source, target = body(stand()), body(stand(), ["a", "b", "c", "d"])
    target = replace(target, names=("a", "b", "c", "d", "e"))
    with pytest.raises(ShapeError, match="in common"):
        retarget(source, target, source.pose())
    for names in ({"hips": "z"}, {"z": "a"}):
        with pytest.raises(ShapeError, match="'z'"):
            retarget(source, target, source.pose(), names=names)
    with pytest.raises(ShapeError, match="pose"):
        retarget(source, target, body(stand()[:2], NAMES[:2], PARENT[:2]).pose())
