"""`Rig`: poses by hand and by the clock, rigs made in Python, and rigs written and read again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from geom.errors import ShapeError
from geom.io.animation import Animation, Channel, sample
from geom.io.gltf_rig import load_rig, save_rig
from geom.io.rig import Primitive, Rig, Skin, make_rig
from geom.lie import quaternion
from geom.lie.kinematics import compose_affine, invert_affine
from geom.testing import assert_gradients
from geom.values import replace

SEED = torch.Generator().manual_seed(3)
PARENT = torch.tensor([2, 0, -1, 2])


def rigid(*batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    q = quaternion.random(*batch, generator=SEED, dtype=dtype)
    return torch.cat([quaternion.to_matrix(q), torch.randn(*batch, 3, 1, generator=SEED, dtype=dtype)], -1)


def arm(**how: Any) -> Rig:
    x = torch.rand(9, 3, generator=SEED)
    faces = torch.arange(9).reshape(3, 3)
    given: dict[str, Any] = {"joints": torch.rand(4, 3, generator=SEED).double(), "weights": torch.rand(9, 4), **how}
    return make_rig(x, faces, parent=PARENT, **given)


def same(a: Any, b: Any) -> bool:
    leaves, spec = pytree.tree_flatten(a)
    others, other = pytree.tree_flatten(b)
    pairs = list(zip(leaves, others, strict=False))
    equal = [x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs]
    return spec == other and all(equal)


# --- made in Python --------------------------------------------------------------------------------------------------


def test_at_rest_bones_do_nothing(dtype: torch.dtype) -> None:
    for joints in (torch.rand(4, 3, generator=SEED).to(dtype), rigid(4, dtype=dtype)):
        rig = arm(joints=joints)
        bones = rig.bones(rig.pose())
        assert bones.dtype == dtype
        torch.testing.assert_close(bones, torch.eye(3, 4, dtype=dtype).expand(4, 3, 4), rtol=0, atol=2e-6)
        torch.testing.assert_close(rig.pose().world[:4, :, 3], joints[..., 3] if joints.ndim == 3 else joints)


def test_joints_with_shear_and_mirrors_are_kept() -> None:
    joints = torch.randn(4, 3, 4, generator=SEED, dtype=torch.float64)
    torch.testing.assert_close(arm(joints=joints).pose().world[:4], joints)
    mirror = torch.diag(torch.tensor([-2.0, 3, 4])).double()
    joints = torch.cat([mirror, torch.zeros(3, 1)], -1).double().repeat(4, 1, 1)
    rig = arm(joints=joints)
    assert rig.basis is None
    torch.testing.assert_close(rig.pose().world[:4], joints)


def test_a_motion_is_played_back_exactly(tmp_path: Path) -> None:
    motion = rigid(6, 4)
    scales = torch.tensor([[2.0, 2, 2], [0.5, 0.5, 0.5], [3, 3, 3], [1, 1, 1]]).double()
    motion[..., :3] *= scales[:, None]
    rig = arm(motion=motion, rate=10.0)
    assert rig.animations[0].duration == pytest.approx(0.5)
    times = torch.arange(6).double() / 10
    world = rig.pose(animation=0, time=times).world
    torch.testing.assert_close(world[:, :4], motion, rtol=0, atol=1e-13)
    save_rig(rig, tmp_path / "a.glb")
    world = load_rig(tmp_path / "a.glb").pose(animation="motion", time=times).world
    torch.testing.assert_close(world[:, :4], motion, rtol=0, atol=1e-5)


def test_dense_and_sparse_weights() -> None:
    dense = torch.tensor([[0.0, 3, 1, 0]] * 9)
    rig = arm(weights=dense)
    found = rig.primitives[0]
    assert found.indices is not None and found.indices.tolist() == [[1, 2]] * 9
    assert found.weights is not None and found.weights.tolist() == [[0.75, 0.25]] * 9
    again = arm(weights=found.weights * 7, indices=found.indices).primitives[0]
    assert torch.equal(again.indices, found.indices) and torch.equal(again.weights, found.weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("joints", torch.zeros(4, 2)),
        ("parent", torch.zeros(4, 3)),
        ("weights", torch.zeros(9, 4)),
        ("weights", -torch.ones(9, 4)),
        ("weights", torch.ones(9, 3)),
        ("weights", torch.full((9, 4), torch.nan)),
        ("indices", torch.full((9, 4), 4)),
        ("names", ["a"]),
        ("motion", torch.zeros(2, 3, 3, 4)),
        ("motion", torch.ones(0, 4, 3, 4)),
        ("motion", torch.tensor([[1.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).repeat(2, 4, 1, 1)),
        ("rate", 0.0),
        ("singular", torch.zeros(4, 3, 4)),
    ],
)
def test_wrong_makings(what: str, wrong: Any) -> None:
    how: dict[str, Any] = {what: wrong}
    if what == "rate":
        how["motion"] = torch.eye(3, 4).repeat(2, 4, 1, 1)
    if what == "singular":
        what, how = "joints", {"joints": wrong}
    if what == "parent":
        with pytest.raises(ShapeError, match="parent"):
            make_rig(torch.rand(3, 3), torch.tensor([[0, 1, 2]]), parent=torch.tensor([1, 0]), joints=torch.rand(2, 3),
                     weights=torch.ones(3, 2))  # fmt: skip
        return
    with pytest.raises(ShapeError, match=what):
        arm(**how)


# --- poses -----------------------------------------------------------------------------------------------------------


def test_poses_by_hand_batch_and_broadcast() -> None:
    rig = arm()
    turns = quaternion.random(7, 5, generator=SEED, dtype=torch.float64)
    pose = rig.pose_from(quat_wxyz=turns, translation=torch.zeros(2, 1, 5, 3).double())
    assert pose.world.shape == (2, 7, 5, 3, 4) and pose.scale.shape == (2, 7, 5, 3) and pose.morph.shape == (2, 7, 0)
    assert torch.equal(pose[1, 3].world, rig.pose_from(quat_wxyz=turns[3], translation=torch.zeros(5, 3)).world)
    assert torch.equal(rig.pose_from().world, rig.pose().world)
    for name, wrong in (("quat_wxyz", torch.zeros(5, 3)), ("scale", torch.ones(4, 3)), ("morph", torch.ones(1))):
        with pytest.raises(ShapeError, match=name):
            rig.pose_from(**{name: wrong})
    with pytest.raises(ShapeError, match="broadcast"):
        rig.pose_from(quat_wxyz=turns, translation=torch.zeros(2, 5, 3))
    with pytest.raises(ShapeError, match="scale"):
        replace(rig, scale=rig.scale[:3])


def test_times_of_any_shape(dtype: torch.dtype) -> None:
    rig = arm(motion=rigid(6, 4), rate=10.0)
    for shape in ((), (0,), (2, 3)):
        times = torch.rand(shape, dtype=dtype)
        pose = rig.pose(animation="motion", time=times)
        assert pose.world.shape == (*shape, 5, 3, 4) and pose.world.dtype == torch.float64
        assert rig.pose(time=times).world.shape == pose.world.shape
    one = rig.pose(animation=0, time=torch.tensor([0.1, 0.23]).double())
    assert torch.equal(one[1].world, rig.pose(animation=0, time=torch.tensor(0.23).double()).world)
    assert rig.to(torch.float32).pose(animation=0, time=0.2).world.dtype == torch.float32
    with pytest.raises(ShapeError, match="NaN"):
        rig.pose(animation=0, time=float("nan"))
    with pytest.raises(ShapeError, match="skin"):
        rig.bones(rig.pose(), 1)


def test_gradients_reach_the_joints_the_key_frames_and_the_time() -> None:
    rig = arm(motion=rigid(3, 4), rate=1.0)
    turns, moves = quaternion.random(2, 5, generator=SEED).double(), torch.randn(5, 3, generator=SEED).double()
    assert_gradients(lambda q, t: rig.pose_from(quat_wxyz=q, translation=t).world, turns, moves, vmap=False)
    keys = rig.animations[0].channels[0].values
    rotation = next(c for c in rig.animations[0].channels if c.path == "rotation")

    def play(values: Tensor, turn: Tensor, time: Tensor) -> Tensor:
        first = replace(rig.animations[0].channels[0], values=values.double())
        motion = Animation((first, replace(rotation, values=turn.double())))
        return replace(rig, animations=(motion,)).pose(animation=0, time=time.double()).world

    assert_gradients(play, keys, rotation.values, torch.tensor([0.3, 1.4]).double(), vmap=False, forward=False)


@pytest.mark.usefixtures("unchecked")
def test_poses_compile() -> None:
    rig = arm(motion=rigid(3, 4), rate=1.0)
    turns, times = quaternion.random(2, 5, generator=SEED).double(), torch.tensor([0.3, 1.4]).double()
    for function, x in (
        (lambda q: rig.pose_from(quat_wxyz=q).world, turns),
        (lambda t: rig.pose(animation=0, time=t).world, times),
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x))


def test_a_recorded_motion_needs_poses_that_fit() -> None:
    rig = arm()
    poses = rig.pose(time=torch.zeros(3))
    assert [a.name for a in rig.record(poses, times=torch.arange(3.0), name="still").animations] == ["still"]
    for wrong in (torch.arange(2.0), torch.zeros(3), torch.zeros(3, 1)):
        with pytest.raises(ShapeError):
            rig.record(poses, times=wrong)


def test_channels_of_unequal_lengths_play_together() -> None:
    one = Channel(torch.tensor([0.0, 1]), torch.tensor([[0.0, 0, 0], [1, 1, 1]]), 0, "translation")
    two = Channel(torch.tensor([0.0, 1, 2]), torch.tensor([[0.0, 0, 0], [1, 1, 1], [4, 4, 4]]), 1, "translation")
    found = {s.nodes[0]: s.values for s in sample((one, two, replace(one, node=2)), torch.tensor([0.5, 1.5]))}
    assert found[0].shape == (2, 2, 3) and found[0][:, :, 0].tolist() == [[0.5, 0.5], [1, 1]]
    assert found[1][:, 0, 0].tolist() == [0.5, 2.5]


# --- written and read again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["glb", "gltf"])
def test_real_files_come_back_equal(data: Path, tmp_path: Path, suffix: str) -> None:
    files = sorted((data / "skinning" / "gltf").glob("*.gl*"))
    assert files
    for file in files:
        rig = load_rig(file)
        save_rig(rig, tmp_path / f"a.{suffix}")
        assert same(load_rig(tmp_path / f"a.{suffix}"), rig), file.name


def everything() -> Rig:
    """A rig with each kind of field; float32 surfaces, float64 nodes, four influences or eight."""
    rig = arm(motion=rigid(4, 4), names=["a", "", "c", "d"])
    eighth = torch.tensor([[0, 1, 2, 3, 0, 0, 0, 0]] * 9), torch.tensor([[0.5, 0.25, 0.125, 0.125, 0, 0, 0, 0]] * 9)
    skin = replace(rig.skins[0], name="s", skeleton=2, inverse_bind=rig.skins[0].inverse_bind.float())
    other = Skin(torch.tensor([3, 1]), torch.rand(2, 3, 4))
    body = replace(
        rig.primitives[0], indices=eighth[0], weights=eighth[1], normals=torch.rand(9, 3), uv=torch.rand(9, 2),
        uv_1=torch.rand(9, 2), colors=torch.rand(9, 4), morphs=torch.rand(2, 9, 3), morph_normals=torch.rand(2, 9, 3),
        material=0, name="body", morph_names=("m", "n"),
    )  # fmt: skip
    second = replace(body, index=1, faces=body.faces[:0], material=None, morph_normals=None)
    hat = Primitive(torch.rand(3, 3), torch.tensor([[0, 1, 2]]), 3, mesh=1, slot=0)
    first = torch.tensor([[1, 0, 0, 0]] * 3)
    cloth = replace(hat, node=1, skin=1, mesh=2, indices=first, weights=first.float())
    weights = Channel(torch.tensor([0.0, 1]), torch.rand(2, 3, 2), 4, "weights", "CUBICSPLINE")
    step = Channel(torch.tensor([0.5]), torch.rand(1, 3), 0, "scale", "STEP")
    spline = Channel(torch.tensor([0.0, 1]), torch.rand(2, 3, 4), 0, "rotation", "CUBICSPLINE")
    basis = torch.eye(3).double().repeat(5, 1, 1)
    basis[4] = torch.rand(3, 3).double()
    motion = rig.animations[0]
    motion = replace(motion, channels=tuple(c.to(torch.float32) for c in motion.channels))
    look = {"materials": [{"name": "m", "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]}
    look |= {"textures": [{"source": 0}], "samplers": [{}], "images": [[0, 5, "image/png", "i"]]}
    return replace(
        rig,
        skins=(skin, other),
        primitives=(replace(cloth, mesh=0), replace(hat, mesh=1), replace(body, mesh=2), replace(second, mesh=2)),
        animations=(motion, Animation((step, spline, weights), "other"), Animation(())),
        morph=torch.rand(2).double(),
        basis=basis,
        look=json.dumps(look, separators=(",", ":")),
        images=torch.arange(5, dtype=torch.uint8),
    )


@pytest.mark.parametrize("suffix", ["glb", "gltf"])
def test_every_field_comes_back_equal(tmp_path: Path, suffix: str) -> None:
    rig = everything()
    save_rig(rig, tmp_path / f"a.{suffix}")
    again = load_rig(tmp_path / f"a.{suffix}")
    for field in rig.__dataclass_fields__:
        a, b = getattr(rig, field), getattr(again, field)
        assert same(a, b), field
    again.save(tmp_path / "value")
    assert same(Rig.load(tmp_path / "value"), rig)
    moved = again.to(torch.float64)
    assert moved.primitives[0].vertices.dtype == torch.float64 and moved.images.dtype == torch.uint8  # type: ignore[union-attr]


def test_a_basis_that_moves_becomes_two_nodes(tmp_path: Path) -> None:
    rig = arm(joints=torch.randn(4, 3, 4, generator=SEED, dtype=torch.float64))
    turns = rig.quat_wxyz.repeat(3, 1, 1)
    turns[:, [0, 2]] = quaternion.random(3, 2, generator=SEED, dtype=torch.float64)
    times = torch.arange(3.0)
    rig = rig.record(rig.pose_from(quat_wxyz=turns), times=times)
    save_rig(rig, tmp_path / "a.glb")
    again = load_rig(tmp_path / "a.glb", dtype=torch.float64)
    assert len(again.names) == 7 and again.scene == (6, 4)
    expected = rig.pose(animation=0, time=times).world
    torch.testing.assert_close(again.pose(animation=0, time=times).world[:, :5], expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(again.pose().world[:5], rig.pose().world, rtol=0, atol=1e-14)


def test_made_rigs_come_back_with_padded_sets(tmp_path: Path) -> None:
    rig = arm(weights=torch.rand(9, 4).bernoulli(0.5) + torch.eye(9, 4) + torch.eye(4).repeat(3, 1)[:9])
    save_rig(rig, tmp_path / "a.glb")
    found, made = load_rig(tmp_path / "a.glb").primitives[0], rig.primitives[0]
    assert found.weights is not None and made.weights is not None and found.weights.shape == (9, 4)
    torch.testing.assert_close(found.weights[:, : made.weights.shape[1]], made.weights, rtol=0, atol=1e-7)


def test_images_are_carried(data: Path, tmp_path: Path) -> None:
    file = data / "skinning" / "gltf" / "CesiumMan.glb"
    if not file.exists():
        pytest.skip("CesiumMan is not among the files")
    rig = load_rig(file)
    assert rig.images is not None and json.loads(rig.look)["images"][0][1] == len(rig.images)
    assert rig.images[:2].tolist() == [0xFF, 0xD8]  # a JPEG


def test_images_beside_the_file(tmp_path: Path) -> None:
    found = {
        "asset": {"version": "2.0"},
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "baseColorFactor": [1, 0, 0, 1]}}],
        "textures": [{"source": 0}],
        "images": [{"uri": "a.png"}],
        "extensionsUsed": ["KHR_materials_unlit", "KHR_draco_mesh_compression"],
    }
    (tmp_path / "a.gltf").write_text(json.dumps(found))
    without = load_rig(tmp_path / "a.gltf")
    expected = {"materials": [{"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}], "images": []}
    assert (
        json.loads(without.look) == {**expected, "extensionsUsed": ["KHR_materials_unlit"]} and without.images is None
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG1234")
    rig = load_rig(tmp_path / "a.gltf")
    assert rig.images is not None and rig.images.numpy().tobytes() == b"\x89PNG1234"
    save_rig(rig, tmp_path / "b.glb")
    assert same(load_rig(tmp_path / "b.glb"), rig)


def test_world_and_local_agree() -> None:
    rig = arm(joints=rigid(4))
    world = rig.pose().world[:4]
    local = compose_affine(invert_affine(world[PARENT.clamp(min=0)]), world)
    torch.testing.assert_close(local[[0, 1, 3], :, 3], rig.translation[[0, 1, 3]])
