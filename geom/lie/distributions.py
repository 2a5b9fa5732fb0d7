"""Distributions on rotations and rigid motions: IGSO(3), the heat kernel, and the concentrated Gaussian on SE(3).

Densities on rotations are with respect to the uniform probability (Haar) measure: the uniform density is 1. The angle
of a uniform rotation has the density (1 - cos w)/pi on [0, pi].
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_positive, check_same, describe, readable
from geom.errors import ShapeError
from geom.lie import _series, quaternion, se3

__all__ = [
    "gaussian_log_density",
    "gaussian_sample",
    "igso3_angle_cdf",
    "igso3_angle_density",
    "igso3_log_density",
    "igso3_sample",
    "igso3_score",
]

Sigma = float | Float[Tensor, "*s"]

_CHARACTERS = 9  # the next is 21 exp(-55) at sigma = 1
_TERMS = 10  # of the series of sin(x/2) under a Gaussian of deviation at most 1
_NEWTON = 5  # steps of the inverse of the angle's distribution


def igso3_log_density(quat_wxyz: Float[Tensor, "*b 4"], sigma: Sigma) -> Float[Tensor, "*d"]:
    """Log density of IGSO(3), Brownian motion from the identity at time sigma^2, against the uniform measure.

    f(w) = sum_l (2l + 1) exp(-l (l + 1) sigma^2/2) sin((l + 1/2) w)/sin(w/2), w the angle (Nikolayev and Savyolova
    1997). Above sigma = 1 that sum is taken; below, its Poisson dual, the Gaussian's images around the circle,
    f(w) = sqrt(2 pi) exp(sigma^2/8)/sigma^3 sum_k (-1)^k (w + 2 pi k) exp(-(w + 2 pi k)^2/(2 sigma^2))/sin(w/2).
    Both have all their digits at the switch. For small sigma, exp(sigma v) with v normal in R^3.

    Args: quat_wxyz (..., 4), unit; sigma, radians, one number or a tensor that broadcasts with the batch, 1e-6 or more.
    Returns: log density (...).
    Raises: ShapeError for a sigma that is not above 0.

    Differentiable in both, twice; 0 and pi are as good as any angle. For the rotation g from a mean m pass m^-1 g.

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32 of 1 + |log f|
    """
    rotvec = quaternion.log(quat_wxyz)
    return _heat(rotvec.square().sum(-1), _sigma(sigma, quat_wxyz))[0]


def igso3_score(quat_wxyz: Float[Tensor, "*b 4"], sigma: Sigma) -> Float[Tensor, "*d 3"]:
    """Gradient of `igso3_log_density` under a perturbation on the right: d log f(q exp(delta)) / d delta at 0.

    (d log f/dw) times the rotation's axis; -rotvec/sigma^2 for small sigma, 0 at the identity and at angle pi.

    Args: quat_wxyz (..., 4), unit; sigma, radians, one number or a tensor that broadcasts with the batch, 1e-6 or more.
    Returns: tangent vector (..., 3), 1/radians.
    Raises: ShapeError for a sigma that is not above 0.

    Accurate to 1e-15 f64, 5e-7 f32 of angle/sigma^2 times 1 + 1/sigma^2: near pi, where the score turns round within
    sigma^2, it shows how the angle is rounded.

    Guarantees: differentiable (0, pi); deterministic
    """
    rotvec = quaternion.log(quat_wxyz)
    return 2 * _heat(rotvec.square().sum(-1), _sigma(sigma, quat_wxyz))[1][..., None] * rotvec


def igso3_angle_density(angle: Float[Tensor, "*b"], sigma: Sigma) -> Float[Tensor, "*d"]:
    """Density of the angle of an IGSO(3) rotation, f(w) (1 - cos w)/pi, on [0, pi].

    Args: angle (...), radians in [0, pi]; sigma, radians, one number or a tensor that broadcasts with it.
    Returns: density (...), 1/radians.
    Raises: ShapeError for a sigma that is not above 0.

    Guarantees: differentiable (0, pi); deterministic; 4e-15 f64, 2e-6 f32 of 1 + |log f|, relative
    """
    return _angle_density(angle, _sigma(sigma, angle))


def igso3_angle_cdf(angle: Float[Tensor, "*b"], sigma: Sigma) -> Float[Tensor, "*d"]:
    """Probability that an IGSO(3) rotation turns by at most `angle`; both series of f integrated term by term.

    >>> igso3_angle_cdf(torch.tensor(torch.pi / 2, dtype=torch.float64), 10.0).mul(torch.pi).round(decimals=6)
    tensor(0.5708, dtype=torch.float64)

    Args: angle (...), radians in [0, pi]; sigma, radians, one number or a tensor that broadcasts with it.
    Returns: probability (...).
    Raises: ShapeError for a sigma that is not above 0.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 1e-6 f32
    """
    return _cdf(angle, _sigma(sigma, angle))


def igso3_sample(
    sigma: Sigma,
    *batch: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*d 4"]:
    """Random rotations from IGSO(3): a uniform axis, and the angle by its inverse distribution, solved to rounding.

    Args:
        sigma: radians, one number or a tensor, 1e-6 or more.
        batch: sizes that lead the result; the shape of a tensor `sigma` follows.
        generator: of the device asked for. The same seed gives the same bits on the CPU, whatever the dtype.
        dtype, device: those of the result; by default those of a tensor `sigma`, else torch's own.
    Returns: unit quaternion (*batch, *sigma.shape, 4), real part not negative.
    Raises: ShapeError for a sigma that is not above 0.

    >>> igso3_sample(0.1, 5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5, 4])

    The angle's first derivative in a tensor `sigma` is exact (implicit differentiation of its distribution).

    Guarantees: differentiable in sigma (once); deterministic given the generator's state
    """
    if isinstance(sigma, Tensor):
        dtype, device = dtype or sigma.dtype, device or sigma.device
    dtype = dtype or torch.get_default_dtype()
    like = torch.empty((), dtype=torch.float64, device=device)
    sigma = _sigma(sigma, like)
    shape = (*batch, *sigma.shape) if isinstance(sigma, Tensor) else batch
    level = torch.rand(shape, generator=generator, dtype=like.dtype, device=device)
    axis = torch.randn((*shape, 3), generator=generator, dtype=like.dtype, device=device)
    axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
    return quaternion.exp(_angle_at(level, sigma)[..., None] * axis).to(dtype)


def gaussian_log_density(
    quat_wxyz: Float[Tensor, "*b 4"],
    translation: Float[Tensor, "*b 3"],
    mean_quat_wxyz: Float[Tensor, "*m 4"],
    mean_translation: Float[Tensor, "*m 3"],
    covariance: Float[Tensor, "*c 6 6"],
) -> Float[Tensor, "*d"]:
    """Log density of the Gaussian on SE(3), T = mean exp(xi) with xi ~ N(0, covariance), against dR dt.

    log N(xi; 0, covariance) - log |det J_r(xi)| with xi = log(mean^-1 T); J_r is the right Jacobian, its determinant
    (2 (1 - cos w)/w^2)^2 (Barfoot and Furgale 2014, Eq. (34)). dR dt is the bi-invariant measure that is dv domega at
    the identity; add log(8 pi^2) for the density against the uniform probability on rotations. Turns beyond pi are
    left out: concentrated means rotations well within it (their share is 1e-9 for deviations of 0.5 rad).

    Args:
        quat_wxyz, translation: (..., 4), unit, and (..., 3).
        mean_quat_wxyz, mean_translation: the mean, broadcast with the first.
        covariance: (..., 6, 6) in the order (v, omega), positive definite.
    Returns: log density (...).
    Raises: ShapeError where the covariance is not positive definite, and for dtypes that differ.

    Guarantees: differentiable (0); deterministic; 4e-15 f64, 2e-6 f32 times the covariance's condition
    """
    check_same(quat_wxyz, covariance, "pose and covariance")
    factor, definite = _semidefinite_factor(covariance)
    if readable(definite) and not bool(definite.all()):
        raise ShapeError("covariance: expected positive definite matrices, got one that leaves a motion without spread")
    inverse = quaternion.conjugate(mean_quat_wxyz)
    apart = translation - mean_translation
    xi = se3.log(quaternion.multiply(inverse, quat_wxyz), quaternion.rotate(inverse, apart))
    _, sinc, _ = _series.exponential(xi[..., 3:].square().sum(-1, keepdim=True))
    white = torch.linalg.solve_triangular(factor, xi[..., None], upper=False)[..., 0]
    spread = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * white.square().sum(-1) - spread - 3 * math.log(2 * math.pi) - 4 * sinc[..., 0].log()


def gaussian_sample(
    mean_quat_wxyz: Float[Tensor, "*m 4"],
    mean_translation: Float[Tensor, "*m 3"],
    covariance: Float[Tensor, "*c 6 6"],
    *batch: int,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "*d 4"], Float[Tensor, "*d 3"]]:
    """Random poses from the Gaussian on SE(3): mean exp(xi), xi = L z ~ N(0, covariance), L L^T = covariance.

    Args:
        mean_quat_wxyz, mean_translation: (..., 4), unit, and (..., 3).
        covariance: (..., 6, 6) in the order (v, omega), positive semidefinite; a singular one leaves motions still.
        batch: sizes that lead the result; the shape of mean and covariance, broadcast, follows.
        generator: of the mean's device.
    Returns: unit quaternion (*batch, ..., 4), translation (*batch, ..., 3).
    Raises: ShapeError where a variance is negative, and for dtypes that differ.

    Differentiable in mean and covariance, singular ones included (z is held).

    Guarantees: differentiable; deterministic given the generator's state
    """
    check_same(mean_quat_wxyz, covariance, "mean and covariance")
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    if readable(variances) and bool((variances < 0).any()):
        raise ShapeError(f"covariance: expected no negative variance, got {float(variances.min()):g}")
    factor, _ = _semidefinite_factor(covariance)
    shape = torch.broadcast_shapes(mean_quat_wxyz.shape[:-1], covariance.shape[:-2])
    z = torch.randn((*batch, *shape, 6), generator=generator, dtype=covariance.dtype, device=covariance.device)
    quat, translation = se3.exp((factor @ z[..., None])[..., 0])
    turned = quaternion.rotate(mean_quat_wxyz, translation)
    return quaternion.multiply(mean_quat_wxyz, quat), mean_translation + turned


def _sigma(sigma: float | Tensor, like: Tensor) -> float | Tensor:
    """Sigma checked, a tensor in the dtype and on the device of `like`."""
    if not isinstance(sigma, Tensor):
        return check_positive(sigma, "sigma")
    if not sigma.is_floating_point() or (readable(sigma) and not bool((sigma > 0).all())):
        raise ShapeError(f"sigma: expected numbers above 0, got {describe(sigma)}")
    return sigma.to(like)


def _heat(square: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    """log f and d log f/d(w^2), for w^2 (...)."""
    if not isinstance(sigma, Tensor):
        return (_images if sigma < 1 else _characters)(square, square.new_tensor(sigma))
    small, one = sigma < 1, torch.ones_like(sigma)
    near, far = _images(square, torch.where(small, sigma, one)), _characters(square, torch.where(small, one, sigma))
    return torch.where(small, near[0], far[0]), torch.where(small, near[1], far[1])


def _characters(square: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """`_heat` by sum_l (2l + 1) exp(-l (l + 1) sigma^2/2) D_l, D_l = 1 + 2 cos w + ... + 2 cos(l w), for sigma >= 1."""
    cosine, sinc, _ = (x[..., 0] for x in _series.exponential(square[..., None]))
    cos = 1 - 0.5 * square * sinc.square()
    kernel, slope = (torch.ones_like(cos), 1 + 2 * cos), (torch.zeros_like(cos), torch.full_like(cos, 2.0))
    total = total_slope = torch.zeros_like(cos)
    for degree in range(1, _CHARACTERS + 1):
        weight = (2 * degree + 1) * torch.exp(-0.5 * degree * (degree + 1) * sigma.square())
        total, total_slope = total + weight * kernel[1], total_slope + weight * slope[1]
        slope = slope[1], 2 * (kernel[1] + cos * slope[1]) - slope[0]
        kernel = kernel[1], 2 * cos * kernel[1] - kernel[0]
    return torch.log1p(total), -0.5 * sinc * cosine * total_slope / (1 + total)  # d cos(w)/d(w^2) = -sin(w)/(2 w)


def _images(square: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """`_heat` by the Gaussian and its two nearest images, for sigma <= 1; the next are 1e-17 of it.

    The images add to the Gaussian's w the share e = exp(-c) (4 pi a sinh(a w)/(a w) - 2 cosh(a w)), c = pi a.
    """
    variance = sigma.square()
    a = 2 * math.pi / variance
    decay = torch.exp(-math.pi * a)
    argument = (a * a) * square
    series = argument < 1
    # sinh(x)/x, cosh(x) and the slope of the first in x^2, as series in x^2 and closed
    z = torch.where(series, argument, torch.zeros_like(argument))
    sinch = cosh = bend = torch.zeros_like(z)
    for k in range(9, -1, -1):
        factorial = math.factorial(2 * k + 1)
        sinch, cosh = sinch * z + 1 / factorial, cosh * z + (2 * k + 1) / factorial
        bend = bend * z + (k + 1) / math.factorial(2 * k + 3)
    share = decay * (4 * math.pi * a * sinch - 2 * cosh)
    share_slope = decay * a * a * (4 * math.pi * a * bend - sinch)
    w = torch.where(series, torch.ones_like(square), square).sqrt()
    turns = 2 * math.pi / w
    plus, minus = torch.exp(a * (w - math.pi)), torch.exp(-a * (w + math.pi))
    far = plus * (turns - 1) - minus * (turns + 1)
    far_slope = (a * (plus * (turns - 1) + minus * (turns + 1)) - turns / w * (plus - minus)) / (2 * w)
    share, share_slope = torch.where(series, share, far), torch.where(series, share_slope, far_slope)
    _, sinc, _ = _series.exponential(square[..., None])
    cot = _series.inverse_left(square[..., None])
    constant = variance / 8 + 0.5 * math.log(8 * math.pi) - 3 * sigma.log()
    log = constant - 0.5 * square / variance - sinc[..., 0].log() + torch.log1p(share)
    return log, 0.5 * (cot[..., 0] - 1 / variance) + share_slope / (1 + share)


def _angle_density(angle: Tensor, sigma: float | Tensor) -> Tensor:
    log, _ = _heat(angle.square(), sigma)
    return 2 / math.pi * torch.sin(angle / 2).square() * log.exp()


def _cdf(angle: Tensor, sigma: float | Tensor) -> Tensor:
    if not isinstance(sigma, Tensor):
        return (_images_cdf if sigma < 1 else _characters_cdf)(angle, angle.new_tensor(sigma))
    small, one = sigma < 1, torch.ones_like(sigma)
    near = _images_cdf(angle, torch.where(small, sigma, one))
    return torch.where(small, near, _characters_cdf(angle, torch.where(small, one, sigma)))


def _characters_cdf(angle: Tensor, sigma: Tensor) -> Tensor:
    """(1/pi) sum_l (2l + 1) exp(-l (l + 1) sigma^2/2) (sin(l w)/l - sin((l + 1) w)/(l + 1))."""
    twice, last, sine = 2 * angle.cos(), torch.zeros_like(angle), angle.sin()
    total = angle - sine
    for degree in range(1, _CHARACTERS + 1):
        last, sine = sine, twice * sine - last
        weight = (2 * degree + 1) * torch.exp(-0.5 * degree * (degree + 1) * sigma.square())
        total = total + weight * (last / degree - sine / (degree + 1))
    return total / math.pi


def _images_cdf(angle: Tensor, sigma: Tensor) -> Tensor:
    """G(w) + G(2 pi + w) - G(2 pi - w), G(x) = c int_0^x t sin(t/2) exp(-t^2/(2 sigma^2)) dt.

    With c = (2/pi) sqrt(2 pi) exp(sigma^2/8)/sigma^3, y = x/sigma and the sine's series integrated by parts,
    G = erf(y/sqrt(2)) - sqrt(2/pi) y exp(-y^2/2) sum_i r_i y^(2 i)/(2 i + 1)!!, where r_i = exp(s) sum_(j >= i)
    (-s)^j/j!, s = sigma^2/8.
    """
    angle, sigma = torch.broadcast_tensors(angle, sigma)
    # at y = 15 the tail is 1e-49
    y = (torch.stack([angle, 2 * math.pi + angle, 2 * math.pi - angle]) / sigma).clamp(max=15)
    small, square = sigma.square() / 8, y.square()
    tail = torch.zeros_like(sigma)
    total = torch.zeros_like(y)
    for i in range(_TERMS, -1, -1):
        tail = tail + torch.exp(small) * (-small) ** i / math.factorial(i)
        total = total * square + tail / math.prod(range(1, 2 * i + 2, 2))
    own, above, below = torch.erf(y / math.sqrt(2)) - math.sqrt(2 / math.pi) * y * torch.exp(-0.5 * square) * total
    return own + (above - below)


def _angle_at(level: Tensor, sigma: float | Tensor) -> Tensor:
    """The angle whose probability is `level`: Newton's method, kept in a bracket; float64."""
    fixed = sigma.detach() if isinstance(sigma, Tensor) else sigma
    # from the Maxwell distribution (Wilson and Hilferty 1931) that small sigma has, or the uniform one of large
    root = level ** (1 / 3)
    normal = math.sqrt(2) * torch.special.erfinv((2 * level - 1).clamp(-1 + 1e-15, 1 - 1e-15))
    chi = (3 * (1 - 2 / 27 + normal * math.sqrt(2 / 27)).clamp(min=0) ** 3).sqrt()
    angle = torch.minimum(fixed * torch.maximum(chi, 1.555 * root), math.pi * root)
    beyond = torch.exp(-0.5 * (torch.ones_like(level) * math.pi / fixed).square())  # what a Gaussian has beyond pi
    low, high = torch.zeros_like(angle), torch.full_like(angle, math.pi)
    for _ in range(_NEWTON):
        reached, density = _cdf(angle, fixed).clamp(0, 1 - 1e-16), _angle_density(angle, fixed)
        above = reached > level
        low, high = torch.where(above, low, angle), torch.where(above, angle, high)
        # on the cube root, which starts straight, or on the logarithm of the Gaussian's tail
        excess, rest = 3 * (reached - reached ** (2 / 3) * root), 1 - reached + beyond
        excess = torch.where(level > 0.9, rest * torch.log((1 - level + beyond) / rest), excess)
        step = excess / density.clamp(min=torch.finfo(density.dtype).tiny)
        angle = (angle - step).clamp((angle + low) / 2, (angle + high) / 2)
    if not isinstance(sigma, Tensor):
        return angle
    # implicit differentiation: the value stays
    density = _angle_density(angle, fixed)
    moved = _cdf(angle, sigma)  # of sigma alone, as the angle is held
    flat = density <= 0
    return angle - torch.where(flat, 0, (moved - moved.detach()) / torch.where(flat, torch.ones_like(density), density))


def _semidefinite_factor(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Lower L with L L^T = covariance, and whether that is definite.

    Cholesky, with a column of zeros where no variance is left: below 32 eps of what there was.
    """
    rest, columns, definite = covariance, [], []
    for j in range(6):
        pivot = rest[..., j, j]
        held = pivot > 32 * torch.finfo(pivot.dtype).eps * covariance[..., j, j]
        root = torch.where(held, pivot, torch.ones_like(pivot)).sqrt()
        column = torch.where(held[..., None], rest[..., j] / root[..., None], torch.zeros_like(rest[..., j]))
        column = torch.cat([torch.zeros_like(column[..., :j]), column[..., j:]], -1)
        rest = rest - column[..., :, None] * column[..., None, :]
        columns.append(column)
        definite.append(held)
    return torch.stack(columns, -1), torch.stack(definite, -1).all(-1)
