"""Haar measure: densities against the Jacobians of the decompositions, samples against invariance and integrals."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, vmap

import geom.lie.haar as haar
import geom.lie.linear as linear
from geom.errors import ShapeError

GROUPS = [("gl", 2), ("gl", 3), ("sl", 2), ("sl", 3)]
METHODS = ["random", "stratified", "sobol"]
ORDERS = ["kan", "ank", "nak"]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=draw(seed), dtype=torch.float64)


def symmetric(group: str, n: int) -> Tensor:
    """The symmetric part of the basis."""
    return linear.basis(n, group=group, dtype=torch.float64)[: -n * (n - 1) // 2]


# --- densities -------------------------------------------------------------------------------------------------------


def recomposition(name: str, group: str, n: int, fixed: Tensor) -> Callable[[Tensor], Tensor]:
    """Coordinates (scale for SL, diagonal, off-diagonal, a turn of the fixed rotation) to the matrix they make.

    GL's Haar measure is ds times that of SL, s the logarithm of a scale.
    """
    one, b = torch.eye(n, dtype=torch.float64), linear.basis(n, group=group, dtype=torch.float64)

    def recompose(v: Tensor) -> Tensor:
        scale, own = (v[0].exp() * one, v[1:]) if group == "sl" else (one, v)
        x, w = (torch.einsum("d,dij->ij", own[part], b[part]) for part in halves(n))
        k, a, u = torch.linalg.matrix_exp(w) @ fixed, torch.diag(x.diagonal().exp()), one + x.triu(1)
        factors = {"k": k, "a": a, "n": u, "p": torch.linalg.matrix_exp(x)}
        return scale @ torch.linalg.multi_dot([factors[letter] for letter in name] + [one])

    return recompose


def halves(n: int) -> tuple[slice, slice]:
    """Symmetric and skew coordinates."""
    skew = n * (n - 1) // 2
    return slice(0, -skew), slice(-skew, None)


@pytest.mark.parametrize(("group", "n"), GROUPS)
@pytest.mark.parametrize("name", ["pk", *ORDERS])
def test_density_is_the_jacobian_of_the_recomposition(name: str, group: str, n: int) -> None:
    even, skew = halves(n)
    differences = []
    for seed in range(12):
        v = 0.0 * normal(n * n) if seed == 0 else 0.8 * normal(n * n, seed=seed)  # at first all eigenvalues equal
        v[skew] = 0
        fixed = linear.exp(torch.cat([torch.zeros(n * (n + 1) // 2), 2 * normal(n * (n - 1) // 2, seed=seed)]).double())
        recompose = recomposition(name, group, n, fixed)
        slope = jacfwd(recompose)(v).reshape(n * n, n * n)
        want = torch.linalg.slogdet(slope).logabsdet - n * torch.linalg.slogdet(recompose(v)).logabsdet
        own = v[1:] if group == "sl" else v
        x = torch.einsum("d,dij->ij", own[even], symmetric(group, n))
        have = haar.log_density_polar(x) if name == "pk" else haar.log_density_iwasawa(x.diagonal().exp(), order=name)
        differences.append(have - want)
    assert torch.stack(differences).std() < 1e-12


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-3, 0.0999, 0.1001, 1.0, 40.0, 400.0])
def test_polar_density_matches_mpmath(gap: float, dtype: torch.dtype) -> None:
    want, turning = 0.0, 0.0
    if gap:
        with mpmath.workdps(50):
            d = mpmath.mpf(gap)
            want, turning = float(mpmath.log(mpmath.sinh(d) / d)), float(mpmath.coth(d) - 1 / d)
    eps, x = torch.finfo(dtype).eps, torch.tensor([gap / 2, -gap / 2], dtype=dtype)
    rotation = linear.exp(torch.tensor([0.0, 0, 0, 0.9], dtype=dtype))
    assert abs(haar.log_density_polar(torch.diag(x)).item() - want) < 4 * eps * (1 + gap)
    have = haar.log_density_polar(rotation @ torch.diag(x) @ rotation.mT)
    assert have.dtype == dtype and abs(have.item() - want) < 8 * eps * (1 + gap)
    slope = jacrev(haar.log_density_polar)(torch.diag(x))
    want = torch.diag(torch.tensor([turning, -turning], dtype=dtype))
    torch.testing.assert_close(slope, want, rtol=0, atol=16 * eps)


def spectra(n: int) -> dict[str, Tensor]:
    x = normal(n, n)
    two = torch.tensor([0.7] * (n - 1) + [-0.4], dtype=torch.float64)
    q = linear.polar(linear.exp(normal(n * n)))[1]
    return {
        "random": x + x.mT,
        "zero": 0 * x,
        "nearly": torch.eye(n, dtype=torch.float64) + 1e-8 * x,
        "two equal": q @ torch.diag(two) @ q.mT,
        "small gaps": q @ torch.diag(two + torch.tensor([0.05, 0.0, 0.0][:n])) @ q.mT,
    }


@pytest.mark.parametrize("n", [2, 3])
def test_gradcheck(n: int) -> None:
    for x in spectra(n).values():
        x = x.clone().requires_grad_()
        torch.autograd.gradcheck(haar.log_density_polar, x, check_forward_ad=True)
        torch.autograd.gradgradcheck(haar.log_density_polar, x)
    a = normal(4, n).exp().requires_grad_()
    for order in ORDERS:
        torch.autograd.gradcheck(lambda a, order=order: haar.log_density_iwasawa(a, order=order), a)
        torch.autograd.gradgradcheck(lambda a, order=order: haar.log_density_iwasawa(a, order=order), a)


@pytest.mark.parametrize("n", [2, 3])
def test_vmap_and_hessians(n: int) -> None:
    x = torch.stack(list(spectra(n).values()))
    torch.testing.assert_close(vmap(haar.log_density_polar)(x), haar.log_density_polar(x), rtol=0, atol=1e-15)
    want = vmap(hessian(haar.log_density_polar))(x)
    assert want.isfinite().all()
    torch.testing.assert_close(vmap(jacrev(jacrev(haar.log_density_polar)))(x), want, rtol=0, atol=1e-13)
    torch.testing.assert_close(vmap(jacfwd(jacfwd(haar.log_density_polar)))(x), want, rtol=0, atol=1e-13)
    a = normal(4, n).exp()
    torch.testing.assert_close(vmap(haar.log_density_iwasawa)(a), haar.log_density_iwasawa(a), rtol=0, atol=0)
    assert haar.log_density_polar(x[:0]).shape == haar.log_density_iwasawa(a[:0]).shape == (0,)


@pytest.mark.usefixtures("unchecked")
def test_compiles_as_one_graph() -> None:
    x = normal(4, 3, 3).requires_grad_()
    for function in (haar.log_density_polar, lambda x: haar.log_density_iwasawa(x[..., 0].exp(), order="nak")):
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x), rtol=0, atol=1e-14)
        slopes = [torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, function)]
        torch.testing.assert_close(*slopes, rtol=0, atol=1e-14)


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", ["haar", "equispaced"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("group", "n"), GROUPS)
def test_samples_are_elements_with_their_inverses(
    group: str, n: int, method: str, rotation: str, dtype: torch.dtype
) -> None:
    options = {"n": n, "group": group, "method": method, "rotation": rotation, "dtype": dtype}
    s = haar.sample(37, generator=draw(), **options)
    eps = torch.finfo(dtype).eps
    assert s.element.shape == s.inverse.shape == (37, n, n) and s.log_weight.shape == (37,)
    assert s.element.dtype == s.inverse.dtype == s.log_weight.dtype == dtype
    assert (s.element @ s.inverse - torch.eye(n, dtype=dtype)).abs().max() < 32 * eps
    if group == "sl":
        assert (torch.linalg.det(s.element) - 1).abs().max() < 32 * eps
    again, other = haar.sample(37, generator=draw(), **options), haar.sample(37, generator=draw(1), **options)
    assert torch.equal(again.element, s.element) and torch.equal(again.log_weight, s.log_weight)
    assert not torch.equal(other.element, s.element)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("group", "n"), GROUPS)
def test_sample_has_the_law_stated(group: str, n: int, method: str) -> None:
    count, even = 4096, len(symmetric(group, n))
    variance = torch.linspace(0.02, 0.2, even, dtype=torch.float64)
    s = haar.sample(count, n=n, group=group, variance=variance, method=method, generator=draw(), dtype=torch.float64)
    v = linear.log(s.element, group=group)[:, :even] / variance.sqrt()
    assert v.mean(0).abs().max() < 4 / count**0.5
    assert (torch.cov(v.mT) - torch.eye(even, dtype=torch.float64)).abs().max() < 4 * (2 / count) ** 0.5
    log_normal = -(v.square() + torch.log(2 * torch.pi * variance)).sum(-1) / 2
    x = torch.einsum("cd,dij->cij", v * variance.sqrt(), symmetric(group, n))
    torch.testing.assert_close(s.log_weight, haar.log_density_polar(x) - log_normal, rtol=0, atol=1e-11)
    _, r = linear.polar(s.element)
    check_uniform(r, 4 / count**0.5)
    if method != "random":  # one of each coordinate in each stratum
        cell = (torch.special.ndtr(v) * count).floor()
        assert (cell.sort(0).values == torch.arange(count, dtype=torch.float64)[:, None]).all()


def check_uniform(rotation: Tensor, tolerance: float) -> None:
    """First and second moments are those of Haar's measure on rotations."""
    n = rotation.shape[-1]
    assert rotation.mean(0).abs().max() < tolerance
    second = torch.einsum("cij,ckl->ikjl", rotation, rotation) / len(rotation)
    one = torch.eye(n, dtype=torch.float64)
    delta = one[:, :, None, None] * one / n
    if n == 2:  # SO(2) keeps the invariant J (x) J too
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        delta = delta + turn[:, :, None, None] * turn / n
    assert (second - delta).abs().max() < tolerance


def test_equispaced_rotations_of_the_plane() -> None:
    for count in (1, 8, 10):
        s = haar.sample(count, rotation="equispaced", generator=draw(), dtype=torch.float64)
        angle = linear.log(s.element)[:, 3] / math.sqrt(2)
        want = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
        want = torch.where(want > math.pi + 1e-9, want - 2 * math.pi, want)
        assert (angle - want).abs().max() < 1e-14  # each once: the last is not the first again


def test_equispaced_rotations_of_space_are_even() -> None:
    count, options = 512, {"n": 3, "variance": 1e-20, "dtype": torch.float64}
    even = haar.sample(count, rotation="equispaced", generator=draw(), **options).element
    check_uniform(even, 0.01)

    def least_angle(r: Tensor) -> float:
        trace = torch.einsum("cij,dij->cd", r, r) - 5 * torch.eye(count, dtype=torch.float64)
        return math.degrees(2 * math.asin(((3 - trace.max().item()) / 4) ** 0.5))

    assert least_angle(even) > 20 and least_angle(haar.sample(count, generator=draw(), **options).element) < 10


def bump(g: Tensor) -> Tensor:
    """Smooth, of compact support in |log P| < 0.8, invariant under nothing."""
    n = g.shape[-1]
    p, r = linear.polar(g)
    x = linear.spd_log(p)
    inside = (1 - x.square().sum((-2, -1)) / 0.64).clamp(min=0) ** 2
    return inside * (2 + (r * normal(n, n)).sum((-2, -1)) / n + x[..., 0, 1])


@pytest.mark.parametrize(("group", "n"), GROUPS)
def test_weighted_sample_is_invariant(group: str, n: int) -> None:
    count = 2**14
    s = haar.sample(count, n=n, group=group, variance=0.16, generator=draw(), dtype=torch.float64)
    v = normal(n * n - (group == "sl"), seed=3)
    h = linear.exp(0.4 * v / v.norm(), group=group)
    weight = s.log_weight.exp()
    for moved in (h @ s.element, s.element @ h, s.inverse):  # left, right, inverse: the groups are unimodular
        change = weight * (bump(moved) - bump(s.element))
        error = change.std() / count**0.5
        assert change.mean().abs() < 3 * error
        assert error < 0.05 * (weight * bump(s.element)).mean()  # tight enough to see what is wrong
    if n == 2:
        wrong = bump(h @ s.element) - bump(s.element)  # without weights
        assert wrong.mean().abs() > 10 * wrong.std() / count**0.5


def gaussian_error(method: str, group: str, n: int, count: int, seed: int, rotation: str = "haar") -> float:
    """Relative error of the integral of exp(-|X|^2/2t)/density (1 + tr(C R)/8), which is (2 pi t)^(d/2)."""
    variance, t, even = 0.05, 0.04, len(symmetric(group, n))
    s = haar.sample(
        count,
        n=n,
        group=group,
        variance=variance,
        method=method,
        rotation=rotation,
        generator=draw(seed),
        dtype=torch.float64,
    )
    p, r = linear.polar(s.element)
    x = linear.spd_log(p)
    f = (1 + (r * normal(n, n)).sum((-2, -1)) / 8) * (-x.square().sum((-2, -1)) / (2 * t)).exp()
    estimate = (f * (s.log_weight - haar.log_density_polar(x)).exp()).mean()
    return estimate.item() / (2 * math.pi * t) ** (even / 2) - 1


@pytest.mark.parametrize(("group", "n"), GROUPS)
def test_weights_give_the_integral_and_points_that_fill_space_give_it_better(group: str, n: int) -> None:
    count, trials = 1024, 12
    rms = {
        method: (sum(gaussian_error(method, group, n, count, seed) ** 2 for seed in range(trials)) / trials) ** 0.5
        for method in METHODS
    }
    assert rms["random"] < 0.03 and rms["sobol"] < rms["random"] / 5
    # strata take away what is a sum of functions of one coordinate, which turns in space are not
    assert rms["stratified"] < rms["random"] / (4 if n == 2 else 1.5)
    assert abs(gaussian_error("sobol", group, n, 2**12, 0, rotation="equispaced")) < 3e-3


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_refuses_wrong_input() -> None:
    with pytest.raises(ShapeError, match=r"expected a tensor \(\.\.\., 2, 2\) or \(\.\.\., 3, 3\), got .*\(4, 4\)"):
        haar.log_density_polar(torch.eye(4))
    with pytest.raises(ShapeError, match=r"a: expected a tensor \(\.\.\., 2\) or \(\.\.\., 3\)"):
        haar.log_density_iwasawa(torch.ones(4))
    with pytest.raises(ShapeError, match="order: expected one of 'kan', 'ank', 'nak', got str 'akn'"):
        haar.log_density_iwasawa(torch.ones(2), order="akn")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: expected an int of at least 1, got int 0"),
        ({"count": 2.0}, "count: expected an int"),
        ({"n": 4}, "n: expected one of 2, 3"),
        ({"group": "so"}, "group: expected one of 'gl', 'sl'"),
        ({"method": "grid"}, "method: expected one of 'random', 'stratified', 'sobol'"),
        ({"rotation": "none"}, "rotation: expected one of 'haar', 'equispaced'"),
        ({"variance": 0.0}, "variance: expected numbers above 0"),
        ({"variance": torch.ones(3), "group": "sl"}, r"variance: expected numbers above 0, one or \(2,\)"),
    ],
)
def test_sample_refuses_wrong_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        haar.sample(**{"count": 4, **options})
