"""IGSO(3) against its series in many digits, samplers against their distributions, and derivatives at 0 and pi."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from geom.errors import ShapeError
from geom.lie import distributions as D
from geom.lie import quaternion, se3

SIGMAS = [0.05, 0.3, 0.7, 0.999, 1.0, 1.5, 3.0, 10.0]
ANGLES = [0.0, 1e-8, 0.05, 0.3, 1.0, 2.0, 3.14, math.pi]
EPS = {torch.float32: 1e-6, torch.float64: 2e-15}
seeds = st.integers(0, 2**31 - 1)
double = {"dtype": torch.float64}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact(angle: float, sigma: float) -> tuple[float, float, float]:
    """log f, its derivative in the angle and the angle's distribution: the sum over l, in as many digits as needed."""
    with mpmath.workdps(60 + int(2.3 / sigma**2)):
        w, s = mpmath.mpf(angle), mpmath.mpf(sigma)
        cos, sin = mpmath.cos(w), mpmath.sin(w)
        below, kernel, low, slope = mpmath.mpf(1), 1 + 2 * cos, mpmath.mpf(0), mpmath.mpf(2)
        total, total_slope, reached, degree, sine, last = below, low, w - sin, 0, sin, mpmath.mpf(0)
        ratio, decay = mpmath.exp(-(s**2)), mpmath.mpf(1)
        power = ratio
        while True:
            degree += 1
            decay, power = decay * power, power * ratio
            weight = (2 * degree + 1) * decay
            total, total_slope = total + weight * kernel, total_slope + weight * slope
            sine, last = 2 * cos * sine - last, sine
            reached += weight * (last / degree - sine / (degree + 1))
            if weight * degree**3 < mpmath.mpf(10) ** (-mpmath.mp.dps + 15):
                return float(mpmath.log(total)), float(-sin * total_slope / total), float(reached / mpmath.pi)
            low, slope = slope, 2 * kernel + 2 * cos * slope - low
            below, kernel = kernel, 2 * cos * kernel - below


def turn(angle: float | Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The rotation by an angle about a fixed axis."""
    axis = torch.tensor([2 / 3, -2 / 3, 1 / 3], **double)
    return quaternion.exp(torch.as_tensor(angle, **double)[..., None] * axis).to(dtype)


# --- IGSO(3): densities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_log_density_score_and_cdf_are_accurate(sigma: float, dtype: torch.dtype) -> None:
    tolerance = EPS[dtype]
    for angle in ANGLES:
        quat = turn(angle, dtype)
        rounded = float(torch.linalg.vector_norm(quaternion.log(quat.double())))  # the angle that is asked about
        log, slope, _ = exact(rounded, sigma)
        assert abs(float(D.igso3_log_density(quat, sigma)) - log) < tolerance * (1 + abs(log))
        score = D.igso3_score(quat, sigma).double()
        want = slope * quaternion.log(quat.double()) / (rounded or 1.0)
        scale = rounded * (1 / sigma**2 + 1 / sigma**4)
        assert (score - want).abs().max() <= tolerance * scale
        # the same through a tensor sigma, where both series run
        assert abs(float(D.igso3_log_density(quat, torch.tensor(sigma, dtype=dtype))) - log) < tolerance * (
            1 + abs(log)
        )
        plain = torch.tensor(angle, dtype=dtype)
        reached = exact(float(plain), sigma)[2]
        assert abs(float(D.igso3_angle_cdf(plain, sigma)) - reached) < tolerance / 4
        assert abs(float(D.igso3_angle_cdf(plain, torch.tensor(sigma, dtype=dtype))) - reached) < tolerance / 4


def test_small_sigma_is_gaussian() -> None:
    for sigma in (1e-6, 1e-3):
        v = sigma * torch.randn(20, 3, generator=seeded(0), **double)
        normal = -0.5 * (v / sigma).square().sum(-1) - 3 * math.log(sigma * math.sqrt(2 * math.pi))
        uniform = -math.log(8 * math.pi**2)
        assert (D.igso3_log_density(quaternion.exp(v), sigma) + uniform - normal).abs().max() < 10 * sigma**2 + 1e-13
        assert (D.igso3_score(quaternion.exp(v), sigma) + v / sigma**2).abs().max() < 10 * sigma


def test_large_sigma_is_uniform() -> None:
    q = D.igso3_sample(1.0, 100, generator=seeded(0), dtype=torch.float64)
    assert D.igso3_log_density(q, 20.0).abs().max() < 1e-80 and D.igso3_score(q, 20.0).abs().max() < 1e-80
    angle = torch.linspace(0, math.pi, 50, **double)
    assert (D.igso3_angle_density(angle, 20.0) - (1 - angle.cos()) / math.pi).abs().max() < 1e-15


@pytest.mark.parametrize("sigma", SIGMAS)
def test_angle_density_is_the_slope_of_its_distribution(sigma: float) -> None:
    angle = torch.linspace(0, math.pi, 301, **double).requires_grad_()
    (slope,) = torch.autograd.grad(D.igso3_angle_cdf(angle, sigma).sum(), angle)
    density = D.igso3_angle_density(angle.detach(), sigma)
    assert (slope - density).abs().max() < 1e-13 / min(sigma, 1)
    ends = D.igso3_angle_cdf(torch.tensor([0, math.pi], **double), sigma)
    assert (ends - torch.tensor([0, 1.0])).abs().max() < 1e-15


def test_distance_from_uniform() -> None:
    angle = np.linspace(0, np.pi, 20001)
    uniform = (1 - np.cos(angle)) / np.pi
    for sigma, distance in ((1.5, 0.130), (2.0, 0.023), (3.0, 1.5e-4)):
        density = D.igso3_angle_density(torch.from_numpy(angle), sigma).numpy()
        found = integrate.trapezoid(abs(density - uniform), angle) / 2
        assert abs(found - distance) < 0.03 * distance
        mean = math.degrees(integrate.trapezoid(angle * density, angle))
        if sigma == 1.5:
            assert abs(mean - 115.0) < 0.05
    assert abs(math.degrees(integrate.trapezoid(angle * uniform, angle)) - 126.5) < 0.05


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0, 2.0])
def test_score_is_the_gradient_of_the_log_density(sigma: float) -> None:
    q = torch.cat(
        [turn(torch.tensor(ANGLES, **double)), D.igso3_sample(1.0, 20, generator=seeded(0), dtype=torch.float64)]
    )
    delta = torch.zeros(len(q), 3, **double).requires_grad_()
    log = D.igso3_log_density(quaternion.multiply(q, quaternion.exp(delta)), sigma)
    (gradient,) = torch.autograd.grad(log.sum(), delta)
    assert (gradient - D.igso3_score(q, sigma)).abs().max() < 1e-13 / sigma**4


@pytest.mark.parametrize(("angle", "sigma"), [(0.0, 0.4), (1e-9, 1.4), (1.5, 0.95), (math.pi - 1e-3, 0.4), (3.0, 1.4)])
def test_densities_have_exact_derivatives(angle: float, sigma: float) -> None:
    inputs = turn(angle).requires_grad_(), torch.tensor(sigma, **double).requires_grad_()
    for function in (D.igso3_log_density, D.igso3_score):
        assert gradcheck(function, inputs, check_forward_ad=True) and gradgradcheck(function, inputs, atol=1e-4)
    angles = torch.tensor(max(angle, 0.1), **double).requires_grad_(), inputs[1]
    for function in (D.igso3_angle_density, D.igso3_angle_cdf):
        assert gradcheck(function, angles, check_forward_ad=True) and gradgradcheck(function, angles)


@pytest.mark.parametrize("sigma", [1e-6, 0.05, 0.99, 1.0, 50.0])
def test_derivatives_are_finite_everywhere(sigma: float, dtype: torch.dtype) -> None:
    q = torch.cat([turn(torch.tensor(ANGLES, **double), dtype), torch.eye(4, dtype=dtype), -torch.eye(4, dtype=dtype)])
    angle, q = torch.tensor(ANGLES, dtype=dtype).requires_grad_(), q.requires_grad_()
    s = torch.tensor(sigma, dtype=dtype).requires_grad_()
    for function, x in (
        (D.igso3_log_density, q),
        (D.igso3_score, q),
        (D.igso3_angle_density, angle),
        (D.igso3_angle_cdf, angle),
    ):
        out = function(x, s)
        first = torch.autograd.grad(out.sum(), (x, s), create_graph=True)
        assert out.isfinite().all() and all(g.isfinite().all() for g in first)
        if sigma > 1e-3:  # 1/sigma^6 is beyond float32
            second = torch.autograd.grad(sum((g * g.detach().sign()).sum() for g in first), (x, s), allow_unused=True)
            assert all(g.isfinite().all() for g in second if g is not None)


# --- IGSO(3): samples ------------------------------------------------------------------------------------------------


def angles_of(quat: Tensor) -> np.ndarray:
    return torch.linalg.vector_norm(quaternion.log(quat.double()), dim=-1).numpy()


def series_cdf(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """The angle's distribution by numerical integration of f, summed over l (sigma >= 0.3) or over images below."""
    w = np.linspace(0, np.pi, 20001)[1:]
    if sigma >= 0.3:
        degrees = np.arange(60)[:, None]
        weight = (2 * degrees + 1) * np.exp(-degrees * (degrees + 1) * sigma**2 / 2)
        f = (weight * np.sin((degrees + 0.5) * w)).sum(0) / np.sin(w / 2)
    else:
        images = w + 2 * np.pi * np.arange(-2, 3)[:, None]
        signs = np.array([1, -1, 1, -1, 1.0])[:, None]
        f = (signs * images * np.exp(-(images**2) / (2 * sigma**2))).sum(0) / np.sin(w / 2)
        f *= math.sqrt(2 * math.pi) * math.exp(sigma**2 / 8) / sigma**3
    density = np.concatenate([[0.0], f * (1 - np.cos(w)) / np.pi])
    w = np.concatenate([[0.0], w])
    return w, integrate.cumulative_trapezoid(density, w, initial=0)


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.5, 0.9, 1.0, 1.5, 2.0, 3.0, 30.0])
def test_samples_pass_kolmogorov_smirnov(sigma: float, dtype: torch.dtype) -> None:
    q = D.igso3_sample(sigma, 20_000, generator=seeded(1), dtype=dtype)
    w, cdf = series_cdf(sigma)
    assert abs(cdf[-1] - 1) < 1e-5
    assert stats.kstest(angles_of(q), lambda x: np.interp(x, w, cdf)).pvalue > 0.01
    axis = q[:, 1:].double() / torch.linalg.vector_norm(q[:, 1:].double(), dim=-1, keepdim=True)
    for i in range(3):  # a uniform axis has uniform coordinates
        assert stats.kstest(axis[:, i].numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert (torch.linalg.vector_norm(q, dim=-1) - 1).abs().max() < EPS[dtype] and (q[:, 0] >= -EPS[dtype]).all()


def test_samples_of_many_sigmas() -> None:
    sigma = torch.tensor([0.05, 0.4, 0.97, 1.3, 3.0], **double)
    q = D.igso3_sample(sigma, 20_000, generator=seeded(2))
    assert q.shape == (20_000, 5, 4) and q.dtype == torch.float64
    level = D.igso3_angle_cdf(torch.from_numpy(angles_of(q)), sigma)
    for i in range(5):
        assert stats.kstest(level[:, i].numpy(), "uniform").pvalue > 0.01


@given(seeds, st.floats(1e-4, 20))
def test_the_inverse_distribution_is_solved_to_rounding(seed: int, sigma: float) -> None:
    level = torch.rand(1000, generator=seeded(seed), **double)
    level = torch.cat([level, torch.logspace(-16, -2, 50, **double), 1 - torch.logspace(-15, -2, 50, **double)])
    for s in (sigma, torch.tensor(sigma, **double)):
        assert (D.igso3_angle_cdf(D._angle_at(level, s), sigma) - level).abs().max() < 5e-15


def test_same_seed_same_samples() -> None:
    a, b, c = (D.igso3_sample(0.4, 7, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.dtype == torch.get_default_dtype()
    assert torch.equal(D.igso3_sample(0.4, 7, generator=seeded(3), dtype=torch.float64).float(), a)
    assert D.igso3_sample(torch.ones(2, 0), 3).shape == (3, 2, 0, 4) and D.igso3_sample(1.0).shape == (4,)


@pytest.mark.parametrize("value", [0.05, 0.5, 0.99, 1.01, 2.0])
def test_samples_follow_sigma(value: float) -> None:
    def samples(sigma: Tensor) -> Tensor:
        return D.igso3_sample(sigma, 30, generator=seeded(5))

    assert gradcheck(samples, torch.tensor(value, **double).requires_grad_(), rtol=1e-4)


# --- Gaussians on SE(3) ----------------------------------------------------------------------------------------------


def covariance_of(seed: int, scale: float = 0.3) -> Tensor:
    a = torch.randn(6, 6, generator=seeded(seed), **double)
    return scale**2 * (a @ a.T / 6 + 0.1 * torch.eye(6, **double))


def pose(seed: int) -> tuple[Tensor, Tensor]:
    return se3.exp(torch.randn(6, generator=seeded(seed), **double))


def test_gaussian_samples_have_the_covariance(dtype: torch.dtype) -> None:
    (mean_q, mean_t), covariance = pose(1), covariance_of(0)
    q, t = D.gaussian_sample(mean_q.to(dtype), mean_t.to(dtype), covariance.to(dtype), 40_000, generator=seeded(0))
    assert q.dtype == t.dtype == dtype and q.shape == (40_000, 4) and t.shape == (40_000, 3)
    inverse = quaternion.conjugate(mean_q)
    xi = se3.log(quaternion.multiply(inverse, q.double()), quaternion.rotate(inverse, t.double() - mean_t))
    assert (xi.T.cov() - covariance).abs().max() < 0.03 * covariance.diagonal().max()
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), xi.T, upper=False)
    assert stats.kstest(white.square().sum(0).numpy(), stats.chi2(6).cdf).pvalue > 0.01


def test_gaussian_density_is_one_in_total() -> None:
    # the mean of density/proposal over samples of a wider Gaussian, whose Jacobian is measured by differentiation
    covariance, wide = 0.2**2 * torch.eye(6, **double), 0.3**2 * torch.eye(6, **double)
    v = 0.3 * torch.randn(100_000, 6, generator=seeded(0), **double)
    q, t = se3.exp(v)
    jacobian = torch.stack([_right_jacobian_det(x) for x in v[:200]])
    identity = torch.tensor([1.0, 0, 0, 0], **double), torch.zeros(3, **double)
    narrow = D.gaussian_log_density(q, t, *identity, covariance)
    normal = torch.distributions.MultivariateNormal(torch.zeros(6, **double), wide).log_prob(v)
    assert (D.gaussian_log_density(q, t, *identity, wide)[:200] - (normal[:200] - jacobian.log())).abs().max() < 1e-12
    angle = torch.linalg.vector_norm(v[:, 3:], dim=-1)
    proposal = normal - 2 * (2 * (1 - angle.cos()) / angle.square()).log()
    assert abs(float((narrow - proposal).exp().mean()) - 1) < 0.02


def _right_jacobian_det(twist: Tensor) -> Tensor:
    """|det J_r| from the definition: exp(xi)^-1 exp(xi + d) = exp(J_r d)."""
    q, t = se3.exp(twist)
    inverse = quaternion.conjugate(q)

    def step(d: Tensor) -> Tensor:
        moved_q, moved_t = se3.exp(twist + d)
        return se3.log(quaternion.multiply(inverse, moved_q), quaternion.rotate(inverse, moved_t - t))

    return torch.linalg.det(torch.func.jacrev(step)(torch.zeros(6, **double))).abs()


def test_gaussian_density_does_not_see_a_motion_of_the_frame() -> None:
    (a_q, a_t), (m_q, m_t), (q, t) = pose(1), pose(2), pose(3)

    def moved(q: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return quaternion.multiply(a_q, q), a_t + quaternion.rotate(a_q, t)

    here = D.gaussian_log_density(q, t, m_q, m_t, covariance_of(0))
    there = D.gaussian_log_density(*moved(q, t), *moved(m_q, m_t), covariance_of(0))
    assert abs(float(here - there)) < 1e-12 * abs(float(here))


@pytest.mark.parametrize("rank", range(6))
def test_singular_covariances_leave_motions_still(rank: int, dtype: torch.dtype) -> None:
    basis = torch.linalg.qr(torch.randn(6, 6, generator=seeded(rank), **double))[0][:, :rank]
    covariance = (0.04 * basis @ basis.T).to(dtype).requires_grad_()
    mean = torch.tensor([1.0, 0, 0, 0], dtype=dtype), torch.zeros(3, dtype=dtype)
    q, t = D.gaussian_sample(*mean, covariance, 2000, generator=seeded(0))
    xi = se3.log(q, t).double()
    assert (xi.T @ xi / 2000 - covariance.double()).abs().max() < 0.01
    rest = torch.linalg.matrix_norm(xi - xi @ basis @ basis.T)
    assert rest < (1e-6 if dtype == torch.float64 else 2e-2)  # the root of what rounding left
    (first,) = torch.autograd.grad(q.sum() + t.sum(), covariance, create_graph=True)
    assert first.isfinite().all()
    zero = torch.zeros(6, 6, dtype=dtype).requires_grad_()
    q, t = D.gaussian_sample(*mean, zero, generator=seeded(0))
    assert torch.equal(q, mean[0]) and torch.equal(t, mean[1])


def test_gaussian_derivatives() -> None:
    (m_q, m_t), (q, t) = pose(2), pose(3)
    tensors = [x.requires_grad_() for x in (q, t, m_q, m_t)]
    factor = torch.linalg.cholesky(covariance_of(0)).requires_grad_()
    assert gradcheck(lambda *x: D.gaussian_log_density(*x[:4], x[4] @ x[4].T), (*tensors, factor))
    assert gradgradcheck(lambda *x: D.gaussian_log_density(*x[:4], x[4] @ x[4].T), (*tensors, factor), atol=1e-3)
    assert gradcheck(lambda q, t, f: D.gaussian_sample(q, t, f @ f.T, 2, generator=seeded(0)), (m_q, m_t, factor))
    at_mean = torch.autograd.grad(D.gaussian_log_density(q, t, q.detach(), t.detach(), covariance_of(0)), (q, t))
    assert all(g.isfinite().all() for g in at_mean)


def test_gaussian_batches() -> None:
    q, t = D.gaussian_sample(
        *(x.expand(3, 1, -1) for x in pose(0)), covariance_of(0).expand(2, 6, 6), 5, generator=seeded(0)
    )
    assert q.shape == (5, 3, 2, 4) and t.shape == (5, 3, 2, 3)
    assert D.gaussian_log_density(q, t, *pose(0), covariance_of(0)).shape == (5, 3, 2)
    assert D.gaussian_log_density(q[:0], t[:0], *pose(0), covariance_of(0)).shape == (0, 3, 2)


# --- transforms and wrong input --------------------------------------------------------------------------------------


def test_transforms() -> None:
    q, sigma = D.igso3_sample(1.0, 6, generator=seeded(0), dtype=torch.float64), torch.linspace(0.2, 2, 6, **double)
    for function in (D.igso3_log_density, D.igso3_score):
        want = function(q, sigma)
        assert (torch.func.vmap(function)(q, sigma) - want).abs().max() < 1e-13
        forward, reverse = (torch.func.vmap(d(function))(q, sigma) for d in (torch.func.jacfwd, torch.func.jacrev))
        assert (forward - reverse).abs().max() < 1e-10
    poses = D.gaussian_sample(*pose(0), covariance_of(0), 6, generator=seeded(0))
    log = torch.func.vmap(D.gaussian_log_density, in_dims=(0, 0, None, None, None))(*poses, *pose(0), covariance_of(0))
    assert (log - D.gaussian_log_density(*poses, *pose(0), covariance_of(0))).abs().max() < 1e-12


@pytest.mark.usefixtures("unchecked")
def test_compile() -> None:
    q, sigma = D.igso3_sample(1.0, 6, generator=seeded(0)).requires_grad_(), torch.linspace(0.2, 2, 6)
    mean = torch.tensor([1.0, 0, 0, 0]), torch.zeros(3)

    def everything(q: Tensor, sigma: Tensor) -> Tensor:
        igso3 = D.igso3_log_density(q, sigma) + D.igso3_angle_cdf(q[..., 0].abs(), 0.5)
        return igso3 + D.gaussian_log_density(q, q[..., 1:], *mean, torch.eye(6))

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    assert (compiled(q, sigma) - everything(q, sigma)).abs().max() < 1e-4
    gradients = [torch.autograd.grad(f(q, sigma).sum(), q)[0] for f in (compiled, everything)]
    assert torch.sub(*gradients).abs().max() < 1e-3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "sigma", [0.0, -1.0, math.inf, math.nan, torch.tensor([1.0, 0.0]), torch.tensor([1, 2]), "wide"]
)
def test_wrong_sigma(sigma: float | Tensor) -> None:
    q, angle = torch.tensor([1.0, 0, 0, 0]), torch.tensor(1.0)
    for call in (
        lambda: D.igso3_log_density(q, sigma),
        lambda: D.igso3_score(q, sigma),
        lambda: D.igso3_angle_density(angle, sigma),
        lambda: D.igso3_angle_cdf(angle, sigma),
        lambda: D.igso3_sample(sigma, 3),
    ):
        with pytest.raises(ShapeError, match="sigma: expected"):
            call()


@pytest.mark.usefixtures("unchecked")
def test_wrong_covariance() -> None:
    q, t = torch.tensor([1.0, 0, 0, 0]), torch.zeros(3)
    flat = torch.eye(6)
    flat[2, 2] = 0
    with pytest.raises(ShapeError, match="positive definite"):
        D.gaussian_log_density(q, t, q, t, flat)
    flat[2, 2] = -1
    with pytest.raises(ShapeError, match="got -1"):
        D.gaussian_sample(q, t, flat)
    with pytest.raises(ShapeError, match="one dtype"):
        D.gaussian_sample(q, t, torch.eye(6, **double))
    with pytest.raises(ShapeError, match="one dtype"):
        D.gaussian_log_density(q, t, q, t, torch.eye(6, **double))
