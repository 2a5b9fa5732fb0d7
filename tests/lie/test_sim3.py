"""Similarities from twists: against mpmath's matrix exponential, where formulas change; `Sim3` as a value."""

import itertools
import math

import mpmath
import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import Rigid, quaternion, se3, sim3
from geom.lie.similarity import Sim3
from geom.testing import assert_gradients

# 0.5 = |z|^2 is where the power series ends
ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 0.5, 0.7, 0.71, 1.0, 2.0, math.pi - 1e-4, math.pi - 1e-7]
GROWTHS = [0.0, 1e-12, -1e-12, 1e-4, -1e-4, 0.5, -0.5, 0.7, 0.71, -0.71, 1.0, -1.0, 3.0, -3.0, 30.0, -30.0]
EPS = {torch.float32: 1e-6, torch.float64: 2e-15}  # what the docstrings guarantee


def twists(angle: float, growth: float, count: int = 10) -> Tensor:
    """(v, omega, lambda) with |v| = 1 and |omega| = angle, float64."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v, omega = (part / torch.linalg.vector_norm(part, dim=-1, keepdim=True) for part in (x[:, :3], x[:, 3:]))
    return torch.cat([v, angle * omega, torch.full((count, 1), growth, dtype=torch.float64)], -1)


def random_sim3(*batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Sim3:
    draw = torch.Generator().manual_seed(seed)
    return Sim3.exp(torch.randn(*batch, 7, generator=draw, dtype=torch.float64)).to(dtype)


def rows(twist: Tensor) -> list[list[mpmath.mpf]]:
    a, b, c, x, y, z, s = (mpmath.mpf(k) for k in twist.tolist())
    return [[s, -z, y, a], [z, s, -x, b], [-y, x, s, c], [0, 0, 0, 0]]


def precise_exp(twist: Tensor) -> Tensor:
    """The exponential of the 4 x 4 matrix of a twist in 40 digits, rounded to float64."""
    with mpmath.workdps(40):
        m = mpmath.expm(mpmath.matrix(rows(twist)))
        return torch.tensor([[float(m[i, j]) for j in range(4)] for i in range(4)], dtype=torch.float64)


def precise_derivative(twist: Tensor, direction: Tensor) -> Tensor:
    """That of the translation: a corner of exp [[M, D], [0, M]]."""
    with mpmath.workdps(40):
        m, d = rows(twist), rows(direction)
        block = [[*a, *b] for a, b in zip(m, d, strict=True)] + [[0, 0, 0, 0, *a] for a in m]
        whole = mpmath.expm(mpmath.matrix(block))
        return torch.tensor([float(whole[i, 7]) for i in range(3)], dtype=torch.float64)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [*ANGLES, math.pi, 5.0])
def test_exp_is_accurate(angle: float, dtype: torch.dtype) -> None:
    for growth in GROWTHS:
        twist = twists(angle, growth, 1).to(dtype)
        want = torch.stack([precise_exp(t.double()) for t in twist])
        quat, translation, scale = sim3.exp(twist)
        assert quat.dtype == translation.dtype == scale.dtype == dtype
        size = torch.linalg.vector_norm(want[:, :3, 3], dim=-1)
        error = torch.linalg.vector_norm(translation - want[:, :3, 3], dim=-1) / size
        assert error.max() < EPS[dtype] * max(1, angle / 3), growth
        rotation = want[:, :3, :3] / math.exp(float(twist[0, 6]))
        assert (quaternion.to_matrix(quat) - rotation).abs().max() < EPS[dtype] * max(1, angle / 3)
        assert (scale.double() / math.exp(float(twist[0, 6])) - 1).abs().max() < EPS[dtype]


@pytest.mark.parametrize("angle", ANGLES)
def test_log_undoes_exp(angle: float, dtype: torch.dtype) -> None:
    for growth in GROWTHS:
        twist = twists(angle, growth).to(dtype)
        again = sim3.log(*sim3.exp(twist))
        if dtype == torch.float32 and angle > math.pi - 1e-6:  # the angle rounds to pi: the same map, another twist
            a, b = Sim3.exp(again).to_matrix(), Sim3.exp(twist).to_matrix()
            assert (a - b).abs().max() < 4 * EPS[dtype] * max(1, math.exp(growth)), growth
        else:
            assert (again - twist).abs().max() < EPS[dtype] * max(1, abs(growth)), growth


@pytest.mark.parametrize("growth", GROWTHS)
def test_log_at_pi_is_the_same_map(growth: float, dtype: torch.dtype) -> None:
    twist = twists(math.pi, growth).to(dtype)
    a, b = Sim3.exp(Sim3.exp(twist).log()).to_matrix(), Sim3.exp(twist).to_matrix()
    assert (a - b).abs().max() < 4 * EPS[dtype] * max(1, math.exp(growth))


@pytest.mark.parametrize("angle", [*ANGLES, math.pi])
def test_without_growth_it_is_the_rigid_motion(angle: float, dtype: torch.dtype) -> None:
    twist = twists(angle, 0.0).to(dtype)
    quat, translation, scale = sim3.exp(twist)
    want = se3.exp(twist[:, :6])
    assert torch.equal(scale, torch.ones_like(scale)) and (quat - want[0]).abs().max() < EPS[dtype]
    assert (translation - want[1]).abs().max() < EPS[dtype]
    back = sim3.log(quat, translation, scale)
    assert (back[:, :6] - se3.log(quat, translation)).abs().max() < EPS[dtype] and (back[:, 6] == 0).all()


def test_great_and_small_scales_stay_finite(dtype: torch.dtype) -> None:
    """Up to the ends of the exponent, in value and gradient; products of coefficients alone would overflow."""
    end = 80.0 if dtype == torch.float32 else 700.0
    for angle, growth in itertools.product([0.0, 1e-4, 2.0, math.pi], [end, -end]):
        twist = twists(angle, growth).to(dtype).requires_grad_()
        again = sim3.log(*sim3.exp(twist))
        (gradient,) = torch.autograd.grad(again.sum(), twist)
        assert gradient.isfinite().all()
        if angle < 3:
            assert (again - twist).abs().max() < EPS[dtype] * end


def test_adjoint_moves_twists(dtype: torch.dtype) -> None:
    """T exp(xi) T^-1 = exp(Ad_T xi), and Ad is a homomorphism."""
    a, b = random_sim3(20, dtype=dtype), random_sim3(20, dtype=dtype, seed=1)
    xi = 0.3 * b.log()
    left = a.compose(Sim3.exp(xi)).compose(a.inverse()).to_matrix()
    right = Sim3.exp((a.adjoint() @ xi[..., None]).squeeze(-1)).to_matrix()
    size = a.to_matrix().abs().amax() * a.inverse().to_matrix().abs().amax()
    assert (left - right).abs().max() < 16 * EPS[dtype] * size
    product = a.adjoint() @ b.adjoint()
    assert (a.compose(b).adjoint() - product).abs().max() < 8 * EPS[dtype] * product.abs().max()


def test_interpolate_is_a_spiral(dtype: torch.dtype) -> None:
    a, b = random_sim3(50, dtype=dtype), random_sim3(50, dtype=dtype, seed=1)
    size = a.to_matrix().abs().amax() * a.inverse().to_matrix().abs().amax() * b.to_matrix().abs().amax()
    assert torch.equal(a.interpolate(b, 0.0).to_matrix(), a.to_matrix())
    assert (a.interpolate(b, 1.0).to_matrix() - b.to_matrix()).abs().max() < EPS[dtype] * size
    third = a.interpolate(b, torch.full((50,), 1 / 3, dtype=dtype))
    step = a.inverse().compose(third)
    again = a.compose(step).compose(step).compose(step)
    assert (again.to_matrix() - b.to_matrix()).abs().max() < 8 * EPS[dtype] * size
    want = a.scale ** (2 / 3) * b.scale ** (1 / 3)
    assert ((third.scale - want) / want).abs().max() < 4 * EPS[dtype]
    assert a[:, None].interpolate(b[:1], torch.zeros(3, dtype=dtype)).scale.shape == (50, 3)


def test_mean_is_the_barycentre(dtype: torch.dtype) -> None:
    """sum_i w_i log(mean^-1 T_i) = 0, and it moves with the maps from both sides."""
    near = Sim3.exp(0.4 * random_sim3(5, 9, dtype=dtype).log())
    weights = torch.rand(5, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    for w in (None, weights, torch.arange(9, dtype=dtype)):
        middle = near.mean(w)
        assert middle.scale.shape == (5,) and middle.scale.dtype == dtype
        share = torch.ones_like(weights) if w is None else w
        pull = (share[..., None] * middle[:, None].inverse().compose(near).log()).sum(-2)
        assert pull.abs().max() < 16 * EPS[dtype] * share.sum(-1).max()
    g, h = random_sim3(dtype=dtype, seed=3), random_sim3(dtype=dtype, seed=4)
    moved = g.compose(near).compose(h).mean(weights).to_matrix()
    want = g.compose(near.mean(weights)).compose(h).to_matrix()
    assert (moved - want).abs().max() < 32 * EPS[dtype] * want.abs().max()
    one = near[:, :1]
    assert (one.mean().to_matrix() - one[:, 0].to_matrix()).abs().max() < 4 * EPS[dtype]


# --- the value -------------------------------------------------------------------------------------------------------


def test_matrix_round_trip(dtype: torch.dtype) -> None:
    x = random_sim3(3, 50, dtype=dtype)
    again = Sim3.from_matrix(x.to_matrix())
    assert ((again.scale - x.scale) / x.scale).abs().max() < EPS[dtype] and again.scale.dtype == dtype
    assert (quaternion.to_matrix(again.quat_wxyz) - quaternion.to_matrix(x.quat_wxyz)).abs().max() < EPS[dtype]
    assert torch.equal(again.translation, x.translation)
    assert x.to_matrix()[0, 0, 3].tolist() == [0, 0, 0, 1]
    huge = torch.diag(torch.tensor([1e15, 1e15, 1e15, 1], dtype=dtype))  # its determinant is inf in float32
    assert abs(float(Sim3.from_matrix(huge).scale) / 1e15 - 1) < EPS[dtype]


def test_applies_scale_rotation_translation_in_this_order(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    s = random_sim3(4, dtype=dtype)
    rigid = Rigid(s.quat_wxyz, s.translation)
    want = rigid.apply(s.scale[:, None, None] * x)
    assert (s.apply(x) - want).abs().max() < 8 * EPS[dtype] * s.scale.max() * x.abs().max()
    built = Sim3.from_rigid(rigid, s.scale)
    assert torch.equal(built.apply(x), s.apply(x))
    assert torch.equal(Sim3.from_rigid(rigid).scale, torch.ones(4, dtype=dtype))
    assert torch.equal(Sim3.from_rigid(rigid, 2.0).scale, torch.full((4,), 2.0, dtype=dtype))


def test_as_a_value(tmp_path) -> None:
    x = random_sim3(5, 6)
    assert x[2].scale.shape == (6,) and x[2, 3].scale.shape == () and x[..., 1].translation.shape == (5, 3)
    x.save(tmp_path / "sim3.safetensors")
    assert torch.equal(Sim3.load(tmp_path / "sim3.safetensors").scale, x.scale)
    assert torch.equal((x @ x).to_matrix(), x.compose(x).to_matrix())
    assert x.apply(torch.zeros(6, 9, 3, dtype=torch.float64)).shape == (5, 6, 9, 3)
    assert (
        random_sim3(2).retract(torch.ones(2, 7, dtype=torch.float64)).quat_wxyz.norm(dim=-1) - 1
    ).abs().max() < 1e-15


def test_empty_batches() -> None:
    x = Sim3.exp(torch.zeros(2, 0, 7))
    assert x.log().shape == (2, 0, 7) and x.adjoint().shape == (2, 0, 7, 7) and x.inverse().scale.shape == (2, 0)
    assert Sim3.from_matrix(x.to_matrix()).scale.shape == (2, 0) and x.apply(torch.zeros(5, 3)[None]).shape[1] == 0
    assert Sim3.identity(0, 3).mean().scale.shape == (0,)
    quat, translation, scale = Sim3.identity(3, 1).quat_wxyz, torch.zeros(4, 3), torch.ones(())
    assert sim3.log(quat, translation, scale).shape == (3, 4, 7)
    assert [y.shape for y in sim3.compose(quat, translation, scale, quat, translation, scale)] == [
        (3, 4, 4),
        (3, 4, 3),
        (3, 4),
    ]


@pytest.mark.usefixtures("unchecked")
def test_wrong_input_is_refused() -> None:
    one = Rigid.identity(2)
    with pytest.raises(ShapeError, match=r"scale: expected a tensor \(2,\) as the translation, got .*\(2, 1\)"):
        Sim3(one.quat_wxyz, one.translation, torch.ones(2, 1))
    with pytest.raises(ShapeError, match=r"quat_wxyz: expected a tensor \(\.\.\., 4\), got .*\(2, 3\)"):
        Sim3(one.translation, one.translation, torch.ones(2))
    with pytest.raises(ShapeError, match=r"expected a tensor \(\.\.\., 4, 4\), got .*\(3, 3\)"):
        Sim3.from_matrix(torch.eye(3))
    for bad in (torch.diag(torch.tensor([1.0, 1, -1, 1])), torch.zeros(4, 4), torch.diag(torch.tensor([1.0, 1, 0, 1]))):
        with pytest.raises(ShapeError, match="determinants above 0, got 0 or less in 1 of 2"):
            Sim3.from_matrix(torch.stack([bad, torch.eye(4)]))
    with pytest.raises(ShapeError, match=r"scale: expected numbers above 0, got 0\.0 among them"):
        Sim3.from_rigid(one, torch.tensor([1.0, 0.0]))
    with pytest.raises(ShapeError, match=r"points: expected torch.float32 of shape \(\.\.\., N, 3\)"):
        Sim3.identity().apply(torch.zeros(3))
    with pytest.raises(ShapeError, match="N of at least 1"):
        Sim3.identity(0).mean()


# --- derivatives -----------------------------------------------------------------------------------------------------

SINGULAR = list(itertools.product([1e-9, 0.5, math.pi - 1e-4, math.pi], [0.0, -3.0]))


@pytest.mark.parametrize(("angle", "growth"), SINGULAR)
def test_derivatives(angle: float, growth: float) -> None:
    twist = twists(angle, growth, 1)[0]
    assert_gradients(sim3.exp, twist)
    assert_gradients(sim3.log, *sim3.exp(twist), order=2 if angle < math.pi else 0)


@pytest.mark.parametrize("angle", ANGLES)
def test_gradient_of_the_round_trip_is_the_identity(angle: float, dtype: torch.dtype) -> None:
    for growth in GROWTHS[:-2]:
        twist = twists(angle, growth, 1)[0].to(dtype)
        if float(torch.linalg.vector_norm(twist[3:6])) < 3.1415925:
            jacobian = torch.func.jacrev(lambda xi: sim3.log(*sim3.exp(xi)))(twist)
            assert (jacobian - torch.eye(7, dtype=dtype)).abs().max() < EPS[dtype], growth


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.03, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("growth", [0.0, 1e-3, 0.03, -0.5, 1.0])
def test_derivative_of_exp_is_accurate(angle: float, growth: float, dtype: torch.dtype) -> None:
    """Quotients of small numbers lose digits twice as fast here as in the value."""
    twist = twists(angle, growth, 1)[0].to(dtype)
    jacobian = torch.func.jacrev(lambda xi: sim3.exp(xi)[1])(twist)[:, 3:]  # in v it is the map itself
    want = torch.stack([precise_derivative(twist, e) for e in torch.eye(7)[3:]], -1)
    assert (jacobian - want).abs().max() < EPS[dtype]


def test_derivatives_of_the_value() -> None:
    a, b = random_sim3(), random_sim3(seed=1)
    x = torch.rand(2, 3, dtype=torch.float64)
    assert_gradients(lambda a, b, x: a.compose(b.inverse()).apply(x), a, b, x)
    assert_gradients(lambda a, b: a.interpolate(b, 0.3).to_matrix(), a, b, order=1)
    assert_gradients(lambda a, xi: a.retract(xi).adjoint(), a, torch.zeros(7, dtype=torch.float64))
    assert_gradients(lambda a: Sim3.from_matrix(a.to_matrix()).to_matrix(), a)
    assert_gradients(lambda xi, w: Sim3.exp(xi).mean(w).log(), 0.3 * random_sim3(3).log(), x[0], order=1, vmap=False)


@pytest.mark.usefixtures("unchecked")
def test_compiles_as_one_graph() -> None:
    a, b = random_sim3(5), random_sim3(5, seed=1)

    def everything(a: Sim3, b: Sim3, x: Tensor) -> Tensor:
        return Sim3.from_matrix(a.interpolate(b, 0.3).to_matrix()).inverse().apply(x)

    assert_gradients(
        everything, a, b, torch.rand(5, 4, 3, dtype=torch.float64), order=0, forward=False, vmap=False, compile=True
    )
