"""Rotations: against scipy and mpmath, at the angles where formulas change, and under differentiation."""

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import kstest
from torch import Tensor

from geom.lie import quaternion
from geom.testing import assert_gradients

ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 0.99, 1.01, 2.0, math.pi - 1e-3, math.pi - 1e-7]
EPS = {torch.float32: 3e-7, torch.float64: 4e-16}  # what the docstrings guarantee
seeds, dtypes = st.integers(0, 2**31 - 1), st.sampled_from([torch.float32, torch.float64])


def axes(count: int = 50) -> Tensor:
    """Unit axes, those of the coordinates among them, float64."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.cat([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64), x])
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def random_quat(*batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    x = torch.randn(*batch, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)).to(dtype)


def as_scipy(quat_wxyz: Tensor) -> Rotation:
    return Rotation.from_quat(quat_wxyz.double().numpy()[..., [1, 2, 3, 0]])


def precise_exp(rotvec: Tensor) -> Tensor:
    """exp in 50 digits, rounded to float64."""
    with mpmath.workdps(50):
        v = [mpmath.mpf(x) for x in rotvec.tolist()]
        angle = mpmath.sqrt(sum(x * x for x in v))
        k = mpmath.sin(angle / 2) / angle if angle else mpmath.mpf(1) / 2
        return torch.tensor([float(mpmath.cos(angle / 2)), *(float(k * x) for x in v)], dtype=torch.float64)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [*ANGLES, math.pi, 5.0, 20.0])
def test_exp_is_accurate(angle: float, dtype: torch.dtype) -> None:
    rotvec = (angle * axes(8)).to(dtype)
    want = torch.stack([precise_exp(v.double()) for v in rotvec])
    assert (quaternion.exp(rotvec).double() - want).abs().max() < EPS[dtype] * max(1, angle)
    assert (torch.linalg.vector_norm(quaternion.exp(rotvec), dim=-1) - 1).abs().max() < EPS[dtype] * max(2, angle)


@pytest.mark.parametrize("length", [1e6, 1e12, 1e30])
def test_exp_of_a_vector_without_digits_is_a_rotation(length: float, dtype: torch.dtype) -> None:
    rotvec = (length * axes(20)).to(dtype).requires_grad_()
    for f in (quaternion.exp, torch.func.vmap(quaternion.exp)):
        quat = f(rotvec)
        assert (torch.linalg.vector_norm(quat, dim=-1) - 1).abs().max() < 4 * EPS[dtype]
        assert torch.linalg.cross(quat[:, 1:], axes(20).to(dtype)).abs().max() < 4 * EPS[dtype]
        assert torch.autograd.grad(quat.sum(), rotvec)[0].isfinite().all()


@pytest.mark.parametrize("angle", ANGLES)
def test_log_undoes_exp(angle: float, dtype: torch.dtype) -> None:
    rotvec = (angle * axes()).to(dtype)
    again = quaternion.log(quaternion.exp(rotvec))
    if dtype == torch.float32 and angle > math.pi - 1e-6:  # the angle rounds to pi or past it: the same rotation
        again = torch.where((again * rotvec).sum(-1, keepdim=True) < 0, -again, again)
    assert (again - rotvec).abs().max() <= 4 * EPS[dtype] * angle


def test_log_at_pi_is_a_rotation_by_pi(dtype: torch.dtype) -> None:
    rotvec = (math.pi * axes()).to(dtype)
    again = quaternion.log(quaternion.exp(rotvec))
    assert (torch.linalg.vector_norm(again, dim=-1) - math.pi).abs().max() < 4 * EPS[dtype]
    rotations = (quaternion.to_matrix(quaternion.exp(x)) for x in (again, rotvec))
    assert torch.sub(*rotations).abs().max() < 16 * EPS[dtype]
    exact = torch.cat([torch.zeros(56, 1, dtype=dtype), axes().to(dtype)], -1)  # w = 0: the axis of the sign given
    assert (quaternion.log(exact) - math.pi * axes().to(dtype)).abs().max() < 4 * EPS[dtype]
    assert (quaternion.log(-exact) + math.pi * axes().to(dtype)).abs().max() < 4 * EPS[dtype]


@given(seeds, dtypes)
def test_log_is_the_least_angle_whatever_the_sign(seed: int, dtype: torch.dtype) -> None:
    q = random_quat(20, dtype=dtype, seed=seed)
    assert torch.equal(quaternion.log(q), quaternion.log(-q))
    want = torch.from_numpy(as_scipy(q).as_rotvec())
    near_pi = (torch.linalg.vector_norm(want, dim=-1) > math.pi - 1e-3)[:, None]
    assert ((quaternion.log(q) - want).abs() < 8 * EPS[dtype]).logical_or(near_pi).all()


@given(seeds, dtypes)
def test_group_axioms(seed: int, dtype: torch.dtype) -> None:
    a, b, c = (random_quat(dtype=dtype, seed=seed + i) for i in range(3))
    one = torch.tensor([1.0, 0, 0, 0], dtype=dtype)
    mul, tolerance = quaternion.multiply, 4 * EPS[dtype]
    assert (mul(mul(a, b), c) - mul(a, mul(b, c))).abs().max() < tolerance
    assert torch.equal(mul(a, one), a) and torch.equal(mul(one, a), a)
    assert (mul(a, quaternion.conjugate(a)) - one).abs().max() < tolerance
    assert (
        quaternion.conjugate(mul(a, b)) - mul(quaternion.conjugate(b), quaternion.conjugate(a))
    ).abs().max() < tolerance


def test_hamilton_not_jpl() -> None:
    i, j, k = torch.eye(4)[1:]
    assert torch.equal(quaternion.multiply(i, j), k) and torch.equal(quaternion.multiply(j, i), -k)


@given(seeds, dtypes)
def test_matches_scipy(seed: int, dtype: torch.dtype) -> None:
    a, b = random_quat(20, dtype=dtype, seed=seed), random_quat(20, dtype=dtype, seed=seed + 1)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    length = torch.linalg.vector_norm(x, dim=-1).max()
    assert (quaternion.rotate(a, x) - torch.from_numpy(as_scipy(a).apply(x.double()))).abs().max() < 4 * EPS[
        dtype
    ] * length
    assert (quaternion.to_matrix(a) - torch.from_numpy(as_scipy(a).as_matrix())).abs().max() < 4 * EPS[dtype]
    product = quaternion.multiply(a, b)
    want = torch.from_numpy((as_scipy(a) * as_scipy(b)).as_matrix())
    assert (quaternion.to_matrix(product) - want).abs().max() < 8 * EPS[dtype]


def special_rotations() -> Tensor:
    """Identity, half turns about many axes, near both: all four rows of the matrix formula are best once."""
    angles = torch.tensor([0, 1e-9, 1e-5, 1, 2, math.pi - 1e-5, math.pi - 1e-9, math.pi], dtype=torch.float64)
    return quaternion.exp((angles[:, None, None] * axes()).flatten(0, 1))


def test_from_matrix_undoes_to_matrix(dtype: torch.dtype) -> None:
    q = torch.cat([special_rotations(), random_quat(500)]).to(dtype)
    again = quaternion.from_matrix(quaternion.to_matrix(q))
    assert (again[..., 0] >= 0).all() and again.dtype == dtype
    apart = torch.minimum((again - q).abs().amax(-1), (again + q).abs().amax(-1))
    assert apart.max() < 4 * EPS[dtype]


def test_from_matrix_of_a_noisy_rotation_is_unit_and_near(dtype: torch.dtype) -> None:
    q = random_quat(200, dtype=dtype)
    noise = torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    again = quaternion.from_matrix(quaternion.to_matrix(q) + 1e-4 * noise)
    assert (torch.linalg.vector_norm(again, dim=-1) - 1).abs().max() < 2 * EPS[dtype]
    assert ((again * q).sum(-1).abs() - 1).abs().max() < 1e-6


def test_batches_broadcast_and_may_be_empty() -> None:
    a, b = random_quat(4, 1), random_quat(5, seed=1)
    assert quaternion.multiply(a, b).shape == (4, 5, 4)
    assert torch.equal(quaternion.multiply(a, b)[2, 3], quaternion.multiply(a[2, 0], b[3]))
    assert quaternion.rotate(a, torch.rand(5, 3, dtype=torch.float64)).shape == (4, 5, 3)
    empty = torch.zeros(0, 3)
    assert quaternion.to_matrix(quaternion.exp(empty)).shape == (0, 3, 3)
    assert quaternion.log(quaternion.from_matrix(torch.zeros(0, 3, 3))).shape == (0, 3)


# --- slerp, distance, random -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.5, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-6])
def test_slerp_is_accurate(angle: float, dtype: torch.dtype) -> None:
    turn = (angle * axes(20)).to(dtype)
    start = random_quat(len(turn), dtype=dtype)
    end = quaternion.multiply(start, quaternion.exp(turn))
    for t in (0.25, 0.5, 0.9, 1.3):
        for sign in (1, -1):
            found = quaternion.slerp(start, sign * end, t).double()
            want = quaternion.multiply(start.double(), quaternion.exp(t * turn.double()))
            off = quaternion.geodesic_distance(found, want)
            assert off.max() < {torch.float32: 1e-6, torch.float64: 3e-15}[dtype]


def test_slerp_ends_exactly(dtype: torch.dtype) -> None:
    a, b = random_quat(200, dtype=dtype), random_quat(200, dtype=dtype, seed=1)
    assert torch.equal(quaternion.slerp(a, b, 0.0), a)
    nearer = torch.where((a * b).sum(-1, keepdim=True) < 0, -b, b)
    assert torch.equal(quaternion.slerp(a, b, 1.0), nearer)
    mapped = torch.func.vmap(lambda a, b: quaternion.slerp(a, b, 1.0))(a, b)
    assert torch.equal(mapped, nearer)
    t = torch.ones(200, dtype=dtype, requires_grad=True)
    (speed,) = torch.autograd.grad(quaternion.slerp(a, b, t).sum(), t)
    just_before = torch.autograd.grad(quaternion.slerp(a, b, t - 1e-3).sum(), t)[0]
    assert (speed - just_before).abs().max() < 1e-2 and speed.abs().max() > 0.1


def test_no_slerp_goes_the_long_way() -> None:
    a, b = random_quat(2_000_000, dtype=torch.float32), random_quat(2_000_000, dtype=torch.float32, seed=1)
    whole = quaternion.geodesic_distance(a, b)
    for t in (0.25, 0.5):
        assert (quaternion.geodesic_distance(a, quaternion.slerp(a, b, t)) - t * whole).abs().max() < 2e-6


def test_distance_is_the_angle(dtype: torch.dtype) -> None:
    for angle in (0.0, 1e-9, 1e-3, 1.0, 3.0, math.pi - 1e-5):
        turn = (angle * axes(20)).to(dtype)
        start = random_quat(len(turn), dtype=dtype)
        found = quaternion.geodesic_distance(start, -quaternion.multiply(start, quaternion.exp(turn)))
        assert (found - angle).abs().max() < 8 * EPS[dtype]  # what rounding the inputs makes
    q = start.requires_grad_()
    assert not torch.autograd.grad(quaternion.geodesic_distance(q, q.detach()).sum(), q)[0].any()


def test_random_is_uniform() -> None:
    q = quaternion.random(4, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert q.shape == (4, 5000, 4)
    again = quaternion.random(4, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(q, again)
    angle = torch.linalg.vector_norm(quaternion.log(q), dim=-1).flatten().numpy()
    assert kstest(angle, lambda w: (w - np.sin(w)) / np.pi).pvalue > 0.01  # Haar measure: (1 - cos w)/pi
    assert quaternion.random(dtype=torch.float32).dtype == torch.float32


# --- derivatives -----------------------------------------------------------------------------------------------------

SINGULAR = [0.0, 1e-9, 1e-4, 0.99, 2.0 - 1e-3, 2.0, math.pi - 1e-4, math.pi, 5.0]


def rotvec_at(angle: float) -> Tensor:
    return (angle * torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("angle", SINGULAR)
def test_exp_gradcheck(angle: float) -> None:
    torch.autograd.gradcheck(quaternion.exp, rotvec_at(angle))
    torch.autograd.gradgradcheck(quaternion.exp, rotvec_at(angle))


@pytest.mark.parametrize("angle", [a for a in SINGULAR if a != math.pi])
def test_log_gradcheck(angle: float) -> None:
    q = quaternion.exp(rotvec_at(angle)).detach().requires_grad_()
    torch.autograd.gradcheck(quaternion.log, q)
    torch.autograd.gradgradcheck(quaternion.log, q)


@pytest.mark.parametrize("angle", SINGULAR)
def test_gradient_of_the_round_trip_is_the_identity(angle: float, dtype: torch.dtype) -> None:
    """Below pi; past it the least angle is on the other side: I - (2 pi / theta)(I - n n^T)."""
    rotvec = rotvec_at(angle).detach().to(dtype)
    jacobian = torch.autograd.functional.jacobian(lambda v: quaternion.log(quaternion.exp(v)), rotvec)
    eye, n = torch.eye(3, dtype=dtype), rotvec / max(angle, 1e-30)
    other = eye - 2 * math.pi / max(angle, 1e-30) * (eye - torch.outer(n, n))
    want = [eye] if angle < math.pi - 1e-6 else [eye, other] if angle < 3.15 else [other]
    assert min((jacobian - w).abs().max() for w in want) < 300 * EPS[dtype]


@pytest.mark.parametrize("make", [lambda q: q, lambda q: -q], ids=["q", "-q"])
def test_everything_is_finite_at_singular_rotations(make, dtype: torch.dtype) -> None:
    """Values, first and second derivatives: at the identity, at half turns, and where a component is exactly zero."""
    exact = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0.6, 0, 0.8]], dtype=dtype)
    q = make(torch.cat([exact, special_rotations().to(dtype)])).requires_grad_()
    for function in (quaternion.log, lambda q: quaternion.from_matrix(quaternion.to_matrix(q))):
        out = function(q)
        (first,) = torch.autograd.grad(out.square().sum() + out.sum(), q, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), q)
        assert out.isfinite().all() and first.isfinite().all() and second.isfinite().all()


def test_the_rest_gradcheck() -> None:
    a, b = random_quat(3).requires_grad_(), random_quat(3, seed=1).requires_grad_()
    x = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(quaternion.multiply, (a, b))
    torch.autograd.gradcheck(quaternion.rotate, (a, x))
    torch.autograd.gradcheck(quaternion.to_matrix, a)
    torch.autograd.gradcheck(quaternion.from_matrix, quaternion.to_matrix(a).detach().requires_grad_())


@pytest.mark.parametrize("angle", [0.0, 1.5, math.pi])
def test_functorch(angle: float) -> None:
    rotvec = rotvec_at(angle).detach().expand(5, 3)
    together = quaternion.log(quaternion.exp(rotvec))
    mapped = torch.func.vmap(lambda v: quaternion.log(quaternion.exp(v)))(rotvec)
    torch.testing.assert_close(
        quaternion.to_matrix(quaternion.exp(mapped)), quaternion.to_matrix(quaternion.exp(together))
    )
    backward = torch.func.vmap(torch.func.jacrev(quaternion.exp))(rotvec)
    forward = torch.func.vmap(torch.func.jacfwd(quaternion.exp))(rotvec)
    torch.testing.assert_close(backward, forward, rtol=0, atol=1e-14)
    assert torch.func.hessian(lambda v: quaternion.log(quaternion.exp(v)).sum())(rotvec[0]).isfinite().all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", quaternion.__all__)
def test_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    q, v = random_quat(5), torch.rand(5, 3, dtype=torch.float64)
    arguments: dict[str, tuple[Any, ...]] = {
        "exp": (v,),
        "multiply": (q, q.flip(0)),
        "rotate": (q, v),
        "from_matrix": (quaternion.to_matrix(q),),
        "slerp": (q, q.flip(0), 0.3),
        "geodesic_distance": (q, q.flip(0)),
        "random": (5, 2),
    }
    function, given = getattr(quaternion, name), arguments.get(name, (q,))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    got = compiled(*given)
    torch.manual_seed(0)
    torch.testing.assert_close(got, function(*given), rtol=0, atol=1e-15)


def test_slerp_and_distance_under_every_transform() -> None:
    a, b = random_quat(), random_quat(seed=1)
    assert_gradients(quaternion.slerp, a, b, torch.tensor(0.3, dtype=torch.float64), tolerance=1e-13)
    assert_gradients(quaternion.slerp, a, a, torch.tensor(0.3, dtype=torch.float64), tolerance=1e-13)
    assert_gradients(quaternion.geodesic_distance, a, b, tolerance=1e-13)
