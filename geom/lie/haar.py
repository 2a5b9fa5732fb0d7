"""Haar measure of GL+(n) and SL(n), n = 2, 3, in the coordinates of their decompositions, and samples with its weights.

The groups are unimodular: one measure is both left and right invariant, on GL(n) |det g|^-n times Lebesgue's on the
n^2 entries. Densities are natural logarithms and hold up to one constant for each decomposition, group and n
(Helgason, Groups and Geometric Analysis, 1984, chapter I, section 5).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_choice, describe
from geom.errors import ShapeError
from geom.lie import _spectral, linear, quaternion
from geom.values import Value, value

__all__ = ["HaarSample", "log_density_iwasawa", "log_density_polar", "sample"]


def log_density_polar(log_positive: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b"]:
    """log of prod_(i<j) sinh(e_i - e_j)/(e_i - e_j): Haar measure for g = exp(X) R, e the eigenvalues of X.

    d mu(g) = density dX dR, dX Lebesgue's on symmetric matrices (on those of trace 0 for SL), dR Haar's on rotations.
    For S = g g^T = exp(Y), det(S)^(-(n+1)/2) dS = density(Y/2) dY.

    Args: log_positive (..., n, n), n = 2 or 3, read as its symmetric part; float32 or float64.
    Returns: (...), at least 0; 0 where all eigenvalues are equal.
    Raises: ShapeError for another shape.

    Guarantees: differentiable (equal eigenvalues); deterministic; 2e-15 f64, 1e-6 f32 times 1 + |X|
    """
    if log_positive.shape[-2:] not in ((2, 2), (3, 3)):
        raise ShapeError(f"expected a tensor (..., 2, 2) or (..., 3, 3), got {describe(log_positive)}")
    _, e, shift = _spectral.symmetric(log_positive)
    gap = e[..., :, None] - e[..., None, :]
    first, second = _log_sinhc_slope(gap), _log_sinhc_curvature(gap)
    # f(e) = 1/2 sum_ij psi(e_i - e_j) has f_i = sum_j psi'(gap_ij), f_ij = -psi''(gap_ij); psi''(0) leaves the diagonal
    slope = first.sum(-1)
    hessian = torch.diag_embed(second.sum(-1)) - second
    # turning the eigenvectors: (f_i - f_j)/(e_i - e_j), or its limit f_ii - f_ij
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    limit = (diagonal[..., :, None] + diagonal[..., None, :]) / 2 - hessian
    tie = gap.abs() < torch.finfo(gap.dtype).eps ** (1 / 3)
    turning = torch.where(tie, limit, (slope[..., :, None] - slope[..., None, :]) / torch.where(tie, 1, gap))
    own = shift.diagonal(dim1=-2, dim2=-1)
    off = (shift - torch.diag_embed(own)).square()
    quadratic = (hessian * own[..., :, None] * own[..., None, :] + turning * off).sum((-2, -1))
    return _log_sinhc(gap).sum((-2, -1)) / 2 + (slope * own).sum(-1) + quadratic / 2


def log_density_iwasawa(a: Float[Tensor, "*b n"], *, order: str = "kan") -> Float[Tensor, "*b"]:
    """log density of Haar measure for g = K A N, A N K or N A K: 2 rho, 0 or -2 rho, 2 rho = sum_(i<j) log(a_i/a_j).

    d mu(g) = density dk da dn: dk Haar's on rotations, da = prod d a_i / a_i (on diagonals of determinant 1 for SL),
    dn Lebesgue's on the entries above the diagonal of an upper triangular n with ones on its diagonal.

    Args: a (..., n) positive, n = 2 or 3: the diagonal of A, as `linear.iwasawa` returns; order, "kan", "ank" or "nak".
    Returns: (...).
    Raises: ShapeError for another n or order.

    >>> log_density_iwasawa(torch.tensor([torch.e, 1.0])).round(decimals=6).item()
    1.0

    Guarantees: differentiable; deterministic; 4e-16 f64, 3e-7 f32 times 1 + |log a|
    """
    check_choice(order, ("kan", "ank", "nak"), "order")
    if a.shape[-1:] not in ((2,), (3,)):
        raise ShapeError(f"a: expected a tensor (..., 2) or (..., 3), got {describe(a)}")
    sign = {"kan": 1.0, "ank": 0.0, "nak": -1.0}[order]
    rho = [1.0, -1.0] if a.shape[-1] == 2 else [2.0, 0.0, -2.0]
    return (a.log() * (sign * torch.tensor(rho, dtype=a.dtype, device=a.device))).sum(-1)


@value
class HaarSample(Value):
    """Group elements with their inverses and importance weights.

    Fields: `element` (..., n, n); `inverse` (..., n, n); `log_weight` (...), log of Haar density over the density drawn
    from: the mean of exp(log_weight) f(element) estimates the integral of f over Haar measure, that of
    `log_density_polar` with dX in orthonormal coordinates and dR of total mass 1.
    """

    element: Float[Tensor, "*b n n"]
    inverse: Float[Tensor, "*b n n"]
    log_weight: Float[Tensor, "*b"]


def sample(
    count: int,
    *,
    n: int = 2,
    group: str = "gl",
    variance: float | Float[Tensor, "d"] = 0.025,
    method: str = "random",
    rotation: str = "haar",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> HaarSample:
    """Elements g = P R: log P normal about 0 in orthonormal coordinates, R a rotation independent of it.

    Inverses cost nothing: R^T exp(-log P). All numbers come from one point set in the unit cube: "random" independent
    ones, "stratified" one of each coordinate in each of `count` equal strata (Latin hypercube), "sobol" a scrambled
    Sobol set (best where count is a power of 2). Rotations by "haar" take their coordinates from it too, for n = 3 by
    Shoemake's map (Graphics Gems III, 1992); "equispaced" ones are the same each time: for n = 2 the angles
    2 pi i/count from 0 up, so of count = 4 k the quarter turns are among them, for n = 3 super-Fibonacci spirals
    (Alexa, CVPR 2022).

    Args:
        count: how many, at least 1.
        n, group: 2 or 3, "gl" or "sl".
        variance: of log P's coordinates, one for all or one each, in the order of `linear.basis`: (n(n+1)/2,), one
            less for "sl". 0.025 is a variance of 0.1 for log(g g^T).
        method: "random", "stratified" or "sobol".
        rotation: "haar" or "equispaced".
        generator: draws on its device; the same seed gives the same bits on the CPU.
        dtype, device: of the result; torch's default dtype if not given. The arithmetic is float64 on the CPU.
    Returns: HaarSample of batch (count,).
    Raises: ShapeError for other arguments.

    >>> s = sample(8, group="sl", method="sobol", generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> bool(torch.allclose(s.element @ s.inverse, torch.eye(2, dtype=torch.float64), atol=1e-12))
    True

    Guarantees: not differentiable; deterministic (with a generator, CPU); not inside torch.compile
    """
    check_choice(method, ("random", "stratified", "sobol"), "method")
    check_choice(rotation, ("haar", "equispaced"), "rotation")
    if not isinstance(count, int) or count < 1:
        raise ShapeError(f"count: expected an int of at least 1, got {describe(count)}")
    turns = 1 if n == 2 else 3
    elements = linear.basis(n, group=group, dtype=torch.float64)[:-turns]
    spread = torch.as_tensor(variance, dtype=torch.float64).detach().cpu()
    if spread.shape not in ((), (len(elements),)) or not bool(((spread > 0) & spread.isfinite()).all()):
        raise ShapeError(f"variance: expected numbers above 0, one or ({len(elements)},), got {describe(variance)}")

    dimension = len(elements) + (turns if rotation == "haar" else 0)
    cube = _cube(count, dimension, method, generator)
    normal = torch.special.ndtri(cube[:, : len(elements)])
    x = torch.einsum("cd,dij->cij", normal * spread.sqrt(), elements)
    equispaced = _circle if n == 2 else _spirals
    turn = _rotations(cube[:, len(elements) :]) if rotation == "haar" else equispaced(count)
    log_normal = -(normal.square() + torch.log(2 * torch.pi * spread)).sum(-1) / 2
    own = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    return HaarSample(
        (linear.spd_exp(x) @ turn).to(**own),
        (turn.mT @ linear.spd_exp(-x)).to(**own),
        (log_density_polar(x) - log_normal).to(**own),
    )


def _cube(count: int, dimension: int, method: str, generator: torch.Generator | None) -> Tensor:
    """Points (count, dimension) inside the unit cube, float64 on the CPU."""
    where = "cpu" if generator is None else generator.device
    if method == "sobol":
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=where))
        engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
        return engine.draw(count, dtype=torch.float64) + 2.0**-31  # of 30 bits, so 0 is among them
    points = torch.rand(count, dimension, generator=generator, device=where, dtype=torch.float64)
    if method == "stratified":
        order = torch.rand(count, dimension, generator=generator, device=where, dtype=torch.float64).argsort(0)
        points = (order + points) / count
    return points.cpu().clamp(2.0**-53, 1 - 2.0**-53)


def _rotations(cube: Tensor) -> Tensor:
    """The unit interval or cube to rotations, uniform to uniform."""
    if cube.shape[-1] == 1:
        return _turns((2 * cube - 1) * torch.pi)
    u, first, second = cube[:, 0], cube[:, 1] * 2 * torch.pi, cube[:, 2] * 2 * torch.pi
    low, high = (1 - u).sqrt(), u.sqrt()
    return quaternion.to_matrix(
        torch.stack([low * first.sin(), low * first.cos(), high * second.sin(), high * second.cos()], -1)
    )


def _circle(count: int) -> Tensor:
    """The rotations by 2 pi i/count."""
    return _turns(torch.arange(count, dtype=torch.float64)[:, None] * (2 * torch.pi / count))


def _turns(angle: Tensor) -> Tensor:
    """Angles (..., 1) to rotations of the plane."""
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))


def _spirals(count: int) -> Tensor:
    """Super-Fibonacci spirals on the sphere of unit quaternions."""
    s = torch.arange(count, dtype=torch.float64) + 0.5
    # phi^2 = 2 and psi^4 = psi + 4 (Alexa 2022, Algorithm 1); one lies on s/count of the radius, one on the rest
    phi, psi = math.sqrt(2.0), 1.533751168755204288118041
    return _rotations(torch.stack([1 - s / count, (s / phi).frac(), (s / psi).frac()], -1))


def _log_sinhc(d: Tensor) -> Tensor:
    """psi(d) = log(sinh(d)/d)."""
    size = d.abs()
    zero = size == 0
    return size + torch.where(zero, 0, torch.log(-torch.expm1(-2 * size) / torch.where(zero, 1, 2 * size)))


def _log_sinhc_slope(d: Tensor) -> Tensor:
    """psi'(d) = coth(d) - 1/d."""
    small = d.abs() < 0.1
    far, u = torch.where(small, 1, d), torch.where(small, d, 0).square()
    near = d * (1 / 3 + u * (-1 / 45 + u * (2 / 945 + u * (-1 / 4725 + u * (2 / 93555)))))
    return torch.where(small, near, 1 / torch.tanh(far) - 1 / far)


def _log_sinhc_curvature(d: Tensor) -> Tensor:
    """psi''(d) = 1/d^2 - 1/sinh(d)^2."""
    small = d.abs() < 0.1
    far, u = torch.where(small, 1, d), torch.where(small, d, 0).square()
    near = 1 / 3 + u * (-1 / 15 + u * (2 / 189 + u * (-1 / 675 + u * (2 / 10395))))
    return torch.where(small, near, 1 / far.square() - 1 / torch.sinh(far).square())
