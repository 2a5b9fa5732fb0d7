"""Rigid motions from twists: against mpmath's matrix exponential, at the angles where formulas change."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geom.lie import Rigid, quaternion, se3, so3
from geom.testing import assert_equivariant, assert_gradients

ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 0.99, 1.01, 2.0, math.pi - 1e-3, math.pi - 1e-7]
EPS = {torch.float32: 1e-6, torch.float64: 2e-15}  # what the docstrings guarantee
SINGULAR = [0.0, 1e-9, 1e-4, 0.99, 1.01, 2.0, math.pi - 1e-4, math.pi]


def twists(angle: float, count: int = 20) -> Tensor:
    """(v, omega) with |omega| = angle and v of unit length, float64."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v, omega = (part / torch.linalg.vector_norm(part, dim=-1, keepdim=True) for part in (x[:, :3], x[:, 3:]))
    return torch.cat([v, angle * omega], -1)


def precise_exp(twist: Tensor) -> Tensor:
    """The exponential of the 4 x 4 matrix of a twist in 40 digits, rounded to float64."""
    with mpmath.workdps(40):
        a, b, c, x, y, z = (mpmath.mpf(k) for k in twist.tolist())
        m = mpmath.expm(mpmath.matrix([[0, -z, y, a], [z, 0, -x, b], [-y, x, 0, c], [0, 0, 0, 0]]))
        return torch.tensor([[float(m[i, j]) for j in range(4)] for i in range(4)], dtype=torch.float64)


@pytest.mark.parametrize("angle", [*ANGLES, math.pi, 5.0])
def test_exp_is_accurate(angle: float, dtype: torch.dtype) -> None:
    twist = twists(angle, 6).to(dtype)
    want = torch.stack([precise_exp(t.double()) for t in twist])
    quat, translation = se3.exp(twist)
    assert quat.dtype == translation.dtype == dtype
    assert (Rigid(quat, translation).to_matrix().double() - want).abs().max() < EPS[dtype] * max(1, angle)


@pytest.mark.parametrize("angle", ANGLES)
def test_log_undoes_exp(angle: float, dtype: torch.dtype) -> None:
    twist = twists(angle).to(dtype)
    again = se3.log(*se3.exp(twist))
    if dtype == torch.float32 and angle > math.pi - 1e-6:  # the angle rounds to pi: the same motion, another twist
        assert (Rigid(*se3.exp(again)).to_matrix() - Rigid(*se3.exp(twist)).to_matrix()).abs().max() < 8 * EPS[dtype]
    else:
        assert (again - twist).abs().max() < 4 * EPS[dtype]


def test_log_at_pi_is_the_same_motion(dtype: torch.dtype) -> None:
    twist = twists(math.pi).to(dtype)
    again = se3.log(*se3.exp(twist))
    assert (Rigid(*se3.exp(again)).to_matrix() - Rigid(*se3.exp(twist)).to_matrix()).abs().max() < 8 * EPS[dtype]


@given(st.integers(0, 2**31 - 1), st.floats(0, math.pi - 1e-3), st.sampled_from([torch.float32, torch.float64]))
def test_one_parameter_groups(seed: int, angle: float, dtype: torch.dtype) -> None:
    """exp(s xi) exp(t xi) = exp((s + t) xi), exp(-xi) = exp(xi)^-1, and Ad: T exp(xi) T^-1 = exp(Ad_T xi)."""
    xi = twists(angle, 1)[0].to(dtype)
    half, whole, back = (Rigid(*se3.exp(k * xi)).to_matrix() for k in (0.5, 1.0, -1.0))
    assert (half @ half - whole).abs().max() < 4 * EPS[dtype]
    assert (back @ whole - torch.eye(4, dtype=dtype)).abs().max() < 4 * EPS[dtype]
    other = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    pose = Rigid.identity(dtype=dtype).retract(other)
    v, omega = quaternion.rotate(pose.quat_wxyz, xi[:3]), quaternion.rotate(pose.quat_wxyz, xi[3:])
    moved = torch.cat([v + torch.linalg.cross(pose.translation, omega), omega])
    left = pose.retract(xi).compose(pose.inverse()).to_matrix()
    scale = 1 + float(pose.translation.norm()) * (1 + angle)
    assert (left - Rigid(*se3.exp(moved)).to_matrix()).abs().max() < 8 * EPS[dtype] * scale


def test_without_rotation_it_is_the_translation(dtype: torch.dtype) -> None:
    twist = twists(0.0).to(dtype)
    quat, translation = se3.exp(twist)
    assert torch.equal(translation, twist[:, :3]) and torch.equal(quat[:, 0], torch.ones(20, dtype=dtype))
    assert torch.equal(se3.log(quat, translation), twist)


def test_shapes() -> None:
    quat, translation = se3.exp(torch.zeros(2, 0, 6))
    assert quat.shape == (2, 0, 4) and translation.shape == (2, 0, 3)
    assert se3.log(quat, translation).shape == (2, 0, 6)


# --- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", SINGULAR)
def test_exp_gradcheck(angle: float) -> None:
    twist = twists(angle, 1)[0].requires_grad_()
    torch.autograd.gradcheck(se3.exp, twist)
    torch.autograd.gradgradcheck(se3.exp, twist)


@pytest.mark.parametrize("angle", SINGULAR[:-1])
def test_log_gradcheck(angle: float) -> None:
    quat, translation = (x.requires_grad_() for x in se3.exp(twists(angle, 1)[0]))
    torch.autograd.gradcheck(se3.log, (quat, translation))
    torch.autograd.gradgradcheck(se3.log, (quat, translation))


@pytest.mark.parametrize("angle", SINGULAR[:-1])
def test_gradient_of_the_round_trip_is_the_identity(angle: float, dtype: torch.dtype) -> None:
    twist = twists(angle, 1)[0].to(dtype)
    jacobian = torch.func.jacrev(lambda xi: se3.log(*se3.exp(xi)))(twist)
    assert (jacobian - torch.eye(6, dtype=dtype)).abs().max() < 100 * EPS[dtype]


def test_derivatives_are_finite_at_pi(dtype: torch.dtype) -> None:
    half_turns = torch.cat([torch.zeros(3, 1), torch.eye(3)], -1).to(dtype).requires_grad_()
    translation = torch.rand(3, 3, dtype=dtype, requires_grad=True)
    twist = se3.log(half_turns, translation)
    first = torch.autograd.grad(twist.square().sum(), (half_turns, translation), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (half_turns, translation))
    assert all(x.isfinite().all() for x in (twist, *first, *second))


@pytest.mark.parametrize("angle", [0.0, 1.5, math.pi])
def test_functorch(angle: float) -> None:
    twist = twists(angle, 5)
    mapped = torch.func.vmap(lambda xi: se3.log(*se3.exp(xi)))(twist)
    if angle < 3:  # at pi either sign of the axis is right
        torch.testing.assert_close(mapped, se3.log(*se3.exp(twist)), rtol=0, atol=1e-14)
    backward, forward = (torch.func.vmap(jac(se3.exp))(twist) for jac in (torch.func.jacrev, torch.func.jacfwd))
    torch.testing.assert_close(backward, forward, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("unchecked")
def test_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    twist = twists(1.0)
    compiled = torch.compile(lambda xi: se3.log(*se3.exp(xi)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(twist), twist, rtol=0, atol=1e-14)


# --- the group and its maps ------------------------------------------------------------------------------------------


def motions(count: int, seed: int = 0, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    return se3.exp(spread * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def matrices(motion: tuple[Tensor, Tensor]) -> Tensor:
    return Rigid(*motion).to_matrix()


def test_functions_are_those_of_the_matrices() -> None:
    a, b, x = motions(20), motions(20, 1), torch.rand(20, 5, 3, dtype=torch.float64)
    assert (matrices(se3.compose(*a, *b)) - matrices(a) @ matrices(b)).abs().max() < 1e-14
    assert (matrices(se3.inverse(*a)) @ matrices(a) - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-14
    homogeneous = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    assert (se3.apply(*a, x) - (homogeneous @ matrices(a).mT)[..., :3]).abs().max() < 1e-14


def test_adjoint_carries_a_twist_across() -> None:
    a, twist = motions(20), 0.5 * torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    left = se3.compose(*a, *se3.exp(twist))
    right = se3.compose(*se3.exp((se3.adjoint(*a) @ twist[..., None])[..., 0]), *a)
    assert (matrices(left) - matrices(right)).abs().max() < 4e-14


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.99, 1.01, 2.5, math.pi, 5.0])
def test_jacobians(angle: float) -> None:
    twist = twists(angle, 1)[0]
    change = torch.func.jacfwd(lambda xi: Rigid.exp(xi).to_matrix())(twist).movedim(-1, 0)
    matrix = Rigid.exp(twist).to_matrix()
    for jacobian, step in (
        (se3.left_jacobian, change @ torch.linalg.inv(matrix)),
        (se3.right_jacobian, torch.linalg.inv(matrix) @ change),
    ):
        want = torch.cat([step[:, :3, 3], so3.vee(step[:, :3, :3])], -1).T
        assert (jacobian(twist) - want).abs().max() < 2e-14
    eye = torch.eye(6, dtype=torch.float64)
    assert (se3.left_jacobian(twist) @ se3.left_jacobian_inverse(twist) - eye).abs().max() < 1e-14
    assert (se3.right_jacobian(twist) @ se3.right_jacobian_inverse(twist) - eye).abs().max() < 1e-14


def test_interpolate_is_a_screw(dtype: torch.dtype) -> None:
    a, b = ([x.to(dtype) for x in motions(50, seed)] for seed in (0, 1))
    start, end = (Rigid(*se3.interpolate(*a, *b, t)) for t in (0.0, 1.0))
    assert torch.equal(start.translation, a[1]) and torch.equal(start.quat_wxyz.abs(), a[0].abs())
    assert (end.to_matrix() - matrices(tuple(b))).abs().max() < 40 * EPS[dtype]
    t = torch.linspace(-0.5, 1.5, 9, dtype=dtype)[:, None]
    path = Rigid(*se3.interpolate(*a, *b, t))
    steps = path[:-1].inverse().compose(path[1:]).log()
    assert (steps - steps[:1]).abs().max() < 60 * EPS[dtype]  # one body twist all the way


@given(st.integers(0, 2**31 - 1), st.integers(1, 7))
def test_mean_is_the_barycentre(seed: int, count: int) -> None:
    near = 0.6 * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(-1, 1)
    poses = Rigid(*motions(1, seed))[0].compose(Rigid.exp(near))
    weights = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    middle = poses.mean(weights)
    pull = (weights[:, None] * middle.inverse().compose(poses).log()).sum(0) / weights.sum()
    assert pull.abs().max() < 2e-14


def test_mean_moves_with_its_poses_from_both_sides() -> None:
    poses = Rigid(*motions(5, spread=0.4))
    for act in (lambda g, x: g.compose(x), lambda g, x: x.compose(g)):
        assert_equivariant(Rigid.mean, poses, act_in=act, act_out=act, elements=Rigid(*motions(4, 9)), tolerance=4e-14)


def test_dual_quaternions() -> None:
    a, b = motions(30), motions(30, 1)
    dual = se3.to_dual_quaternion(*a)
    assert (dual[:, :4] * dual[:, 4:]).sum(-1).abs().max() < 1e-15  # unit: real and dual parts are orthogonal
    for factor in (1.0, -3.0, 1e-3):
        assert (matrices(se3.from_dual_quaternion(factor * dual)) - matrices(a)).abs().max() < 1e-14
    other, product = se3.to_dual_quaternion(*b), se3.to_dual_quaternion(*se3.compose(*a, *b))
    real = quaternion.multiply(dual[:, :4], other[:, :4])
    part = quaternion.multiply(dual[:, :4], other[:, 4:]) + quaternion.multiply(dual[:, 4:], other[:, :4])
    assert (torch.cat([real, part], -1) - product).abs().max() < 1e-14


def test_a_dual_quaternion_without_a_rotation(dtype: torch.dtype) -> None:
    none = torch.zeros(2, 8, dtype=dtype)
    none[1, 4:] = 1
    none.requires_grad_()
    quat, translation = se3.from_dual_quaternion(none)
    assert torch.equal(quat, torch.eye(4, dtype=dtype)[:1].expand(2, 4)) and not translation.any()
    (gradient,) = torch.autograd.grad(quat.sum() + translation.sum(), none)
    assert not gradient.any()


POSE, OTHER = (tuple(x[0] for x in motions(1, seed)) for seed in (0, 1))
TWIST = torch.tensor([0.4, -1.0, 2.0, 0.3, -1.2, 0.8], dtype=torch.float64)
FUNCTIONS = {
    "exp": (se3.exp, (TWIST,)),
    "log": (se3.log, POSE),
    "compose": (se3.compose, (*POSE, *OTHER)),
    "inverse": (se3.inverse, POSE),
    "apply": (se3.apply, (*POSE, torch.rand(4, 3, dtype=torch.float64))),
    "adjoint": (se3.adjoint, POSE),
    "interpolate": (se3.interpolate, (*POSE, *OTHER, torch.tensor(0.3, dtype=torch.float64))),
    "mean": (se3.mean, (*motions(3, spread=0.4), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))),
    "left_jacobian": (se3.left_jacobian, (TWIST,)),
    "left_jacobian_inverse": (se3.left_jacobian_inverse, (TWIST,)),
    "right_jacobian": (se3.right_jacobian, (TWIST,)),
    "right_jacobian_inverse": (se3.right_jacobian_inverse, (TWIST,)),
    "to_dual_quaternion": (se3.to_dual_quaternion, POSE),
    "from_dual_quaternion": (se3.from_dual_quaternion, (se3.to_dual_quaternion(*POSE),)),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", se3.__all__)
def test_every_transform(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    assert_gradients(function, *inputs, compile=True, tolerance=1e-12)


@pytest.mark.parametrize("name", ["left_jacobian", "left_jacobian_inverse"])
@pytest.mark.parametrize("angle", [0.0, 1e-9, math.pi])
def test_derivatives_of_the_jacobians_at_singular_points(name: str, angle: float) -> None:
    assert_gradients(getattr(se3, name), twists(angle, 1)[0])
