"""Rigid motions from twists: against mpmath's matrix exponential, at the angles where formulas change."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geom.lie import Rigid, quaternion, se3

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
