"""The body: what moves what, and what does not."""

import math

import pytest
import torch

from geom.errors import FileFormatError, ShapeError
from geom.lie import quaternion
from geom.meshes import edges, face_adjacency, mass_properties
from geom.skinning.body import BodyModel, BodyState, make_body, synthetic_human
from geom.skinning.corrective import make_corrective
from geom.testing import assert_gradients
from geom.values import replace

PARENT = torch.tensor([-1, 0, 1, 0])


def small(dtype: torch.dtype = torch.float64, method: str = "lbs") -> BodyModel:
    """An arm of three joints and a joint beside it, with 20 vertices about them."""
    generator = torch.Generator().manual_seed(0)
    joints = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 1.8, 0.1], [0.7, 0, 0]], dtype=dtype)
    vertices = joints.repeat(5, 1) + 0.2 * torch.randn(20, 3, dtype=dtype, generator=generator)
    weights = torch.softmax(-20 * (vertices[:, None] - joints).square().sum(-1), -1)
    corrective = make_corrective(PARENT, weights.argmax(-1), width=3, dtype=dtype, generator=generator)
    output = 0.02 * torch.randn(corrective.output.shape, dtype=dtype, generator=generator)
    return make_body(
        vertices,
        torch.tensor([[0, 1, 2], [2, 3, 4]]),
        parent=PARENT,
        joints=joints,
        weights=weights,
        shape_basis=0.05 * torch.randn(3, 20, 3, dtype=dtype, generator=generator),
        skeleton_basis=0.2 * torch.randn(2, 4, 2, dtype=dtype, generator=generator),
        corrective=replace(corrective, output=output),
        names=("root", "elbow", "hand", "side"),
        method=method,
    )


def somewhere(body: BodyModel, *batch: int, seed: int = 1) -> BodyState:
    still = body.state(*batch)
    generator = torch.Generator().manual_seed(seed)
    tangent = torch.randn(*batch, still.tangent_dim, dtype=body.template.dtype, generator=generator)
    return still.retract(0.5 * tangent)


@pytest.mark.parametrize("method", ["lbs", "dqs"])
def test_rest_is_the_template(dtype, method):
    body = small(dtype, method)
    posed = body.apply(body.state(2))
    rounding = 10 * torch.finfo(dtype).eps
    assert posed.vertices.shape == (2, 20, 3)
    assert (posed.vertices - body.template).abs().max() < rounding
    assert (posed.joints - body.joints).abs().max() < rounding


def test_shape_never_moves_joints():
    body = small()
    state = somewhere(body, 3)
    other = replace(state, shape=state.shape + 2.0)
    assert torch.equal(body.apply(state).joints, body.apply(other).joints)  # to the bit
    assert torch.equal(body.apply(state).bones, body.apply(other).bones)
    assert (body.apply(state).vertices - body.apply(other).vertices).abs().max() > 0.01


def test_bones_never_change_offsets():
    body = small()
    state = somewhere(body, 3)
    other = replace(state, skeleton=state.skeleton + 1.0)
    assert torch.equal(body.surface(state), body.surface(other))  # to the bit
    assert (body.apply(state).joints - body.apply(other).joints).abs().max() > 0.01


def test_shape_is_the_same_offset_for_every_skeleton_and_pose():
    body = small()
    state = somewhere(body)
    plain = replace(state, shape=torch.zeros_like(state.shape))
    for skeleton in (state.skeleton, state.skeleton + 1):
        offset = body.surface(replace(state, skeleton=skeleton)) - body.surface(replace(plain, skeleton=skeleton))
        expected = torch.einsum("s,svc->vc", state.shape, body.shape_basis)
        assert offset.allclose(expected, atol=1e-15)


def test_lengths_by_hand():
    """A bone twice as long and thrice as wide, turned by a right angle."""
    body = small()
    basis = torch.zeros(1, 4, 2, dtype=torch.float64)
    basis[0, 0] = torch.tensor([math.log(2), math.log(3)])
    joints = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0.5, 0]], dtype=torch.float64)
    weights = torch.nn.functional.one_hot(torch.arange(20) % 4, 4).double()
    body = make_body(body.template, body.faces, parent=PARENT, joints=joints, weights=weights, skeleton_basis=basis)
    turn = quaternion.exp(torch.tensor([[0.0, 0, math.pi / 2], *[[0.0, 0, 0]] * 3], dtype=torch.float64))
    move = torch.tensor([0.0, 0, 5], dtype=torch.float64)
    posed = body.apply(BodyState(torch.zeros(0).double(), torch.ones(1).double(), turn, move))
    expected = torch.tensor([[0.0, 0, 5], [-2, 0, 5], [-3, 0, 5], [-1, 0, 5]], dtype=torch.float64)
    assert posed.joints.allclose(expected, atol=1e-14)
    x, y, z = body.template[0]  # of joint 0, at its origin: stretched, then turned
    assert posed.vertices[0].allclose(torch.stack([-2 * y, 3 * x, 5 + 3 * z]), atol=1e-14)
    x, y, z = body.template[1]  # of joint 1, whose own stretch is 1
    assert posed.vertices[1].allclose(torch.stack([-2 - (y - 1), x, 5 + z]), atol=1e-14)


def test_turning_the_root_turns_everything():
    body = small()
    state = somewhere(body)
    turn = quaternion.exp(torch.tensor([0.3, -1.0, 0.4], dtype=torch.float64))
    quat = state.quat_wxyz.clone()
    quat[0] = quaternion.multiply(turn, quat[0])
    before, after = body.apply(state), body.apply(replace(state, quat_wxyz=quat))
    centre = before.joints[0]
    expected = quaternion.rotate(turn, before.vertices - centre) + centre
    assert after.vertices.allclose(expected, atol=1e-13)


def test_sparse_weights_are_the_same_body():
    body = small()
    top = body.weights.topk(4, -1)
    sparse = replace(body, weights=top.values, indices=top.indices)
    state = somewhere(body, 2)
    assert sparse.apply(state).vertices.allclose(body.apply(state).vertices, atol=1e-14)


@pytest.mark.usefixtures("unchecked")
def test_gradients():
    bodies = {torch.float64: small(), torch.float32: small().to(torch.float32)}

    def posed(state: BodyState) -> tuple[torch.Tensor, torch.Tensor]:
        found = bodies[state.translation.dtype].apply(state)
        return found.vertices[::5], found.joints

    assert_gradients(posed, somewhere(bodies[torch.float64]), compile=True)
    assert_gradients(posed, bodies[torch.float64].state(), order=0)


def test_saves(tmp_path, dtype):
    body = small(dtype)
    body.save(tmp_path / "body.safetensors")
    again = BodyModel.load(tmp_path / "body.safetensors")
    state = somewhere(body)
    rounding = 20 * torch.finfo(dtype).eps  # memory that is aligned otherwise is summed otherwise
    assert (again.apply(state).vertices - body.apply(state).vertices).abs().max() < rounding
    assert again.names == body.names
    with pytest.raises(FileFormatError):
        BodyState.load(tmp_path / "body.safetensors")


def test_the_synthetic_human():
    """Closed, of a person's size and volume, its weights and names in order, and the corrective nothing at rest."""
    body = synthetic_human()
    assert synthetic_human(dtype=torch.float64).template.dtype == torch.float64
    height = body.template[:, 1].amax() - body.template[:, 1].amin()
    assert 1.6 < height < 1.9 and 2000 < len(body.template) < 6000
    assert len(edges(body.faces)) == len(face_adjacency(body.faces).edges) == 3 * len(body.faces) / 2
    assert 0.05 < mass_properties(body.template, body.faces).volume < 0.1
    assert body.names[:3] == ("pelvis", "left_hip", "right_hip") and len(body.parent) == 22
    assert (body.weights.sum(-1) - 1).abs().max() < 1e-6
    assert torch.equal(body.surface(body.state()), body.template)
    bent = body.state()
    bent.quat_wxyz[body.names.index("left_elbow")] = quaternion.exp(torch.tensor([0.0, -2.0, 0.0]))
    moved = (body.surface(bent) - body.template).norm(dim=-1) > 1e-3
    assert moved.any() and (body.template[moved][:, 0] > 0).all()  # the left arm alone


def test_correctives_keep_the_volume_of_bends():
    body = synthetic_human()
    bent = body.state()
    for name, side in (("left_elbow", -2.0), ("right_elbow", 2.0)):
        bent.quat_wxyz[body.names.index(name)] = quaternion.exp(torch.tensor([0.0, side, 0.0]))

    def volume(posed: BodyModel, state: BodyState) -> float:
        return float(mass_properties(posed.apply(state).vertices, posed.faces).volume)

    whole = volume(body, body.state())
    plain = volume(replace(body, corrective=None), bent)
    assert abs(volume(body, bent) - whole) < 0.5 * abs(plain - whole)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input():
    body = small()
    parts = {"parent": PARENT, "joints": body.joints, "weights": body.weights}
    with pytest.raises(ShapeError, match="weights: expected rows"):
        make_body(body.template, body.faces, **{**parts, "weights": 2 * body.weights})
    with pytest.raises(ShapeError, match="parent: expected int64"):
        make_body(body.template, body.faces, **{**parts, "parent": PARENT + 4})
    with pytest.raises(ShapeError, match="shape_basis: expected"):
        make_body(body.template, body.faces, **parts, shape_basis=body.shape_basis[:, :3])
    with pytest.raises(ShapeError, match="names: expected one for each of 4"):
        make_body(body.template, body.faces, **parts, names=("a",))
    with pytest.raises(ShapeError, match="method: expected one of"):
        make_body(body.template, body.faces, **parts, method="magic")
    with pytest.raises(ShapeError, match="corrective: expected one of 4 joints"):
        other = make_corrective(PARENT, torch.zeros(3, dtype=torch.int64))
        make_body(body.template, body.faces, **parts, corrective=other)
    with pytest.raises(ShapeError, match="state: expected numbers"):
        body.apply(replace(body.state(), shape=torch.zeros(9).double()))
