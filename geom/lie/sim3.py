"""Sim(3), y = s R x + t, as (quaternion, translation, scale); twists (v, omega, lambda), as Sophus orders them."""

from math import factorial

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import describe
from geom.errors import ShapeError
from geom.lie import _series, quaternion, so3

__all__ = ["exp", "log", "compose", "inverse", "apply", "adjoint", "interpolate", "mean"]

_TERMS = 16  # of the power series: below |z| = 0.71 the first one left out is 1e-17


def exp(twist: Float[Tensor, "*b 7"]) -> tuple[Float[Tensor, "*b 4"], Float[Tensor, "*b 3"], Float[Tensor, "*b"]]:
    """Twist (v, omega, lambda) to (quat_wxyz, translation, scale): s = e^lambda and t = V v.

    V = integral of e^(lambda a) exp(a W) over a in [0, 1] = A I + B W + C W^2 with W = omega x. Along omega it
    multiplies by phi(lambda), across it by phi(lambda + i theta), phi(z) = (e^z - 1)/z (Strasdat 2012, Eq. (5.7)).
    At lambda = 0 it is `se3.exp`.

    Args: twist (..., 7); v in the unit of the translation, omega in radians, lambda the logarithm of the scale, of a
        size whose exponential is finite in the dtype.
    Returns: unit quaternion (..., 4), translation (..., 3), scale (...).

    >>> quat, translation, scale = exp(torch.tensor([1.0, 0, 0, 0, 0, 0, 0.6931472]))
    >>> translation.round(decimals=5).tolist(), scale.round(decimals=5).item()
    ([1.4427000284194946, 0.0, 0.0], 2.0)

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    v, omega, growth = twist[..., :3], twist[..., 3:6], twist[..., 6:]
    square = omega.square().sum(-1, keepdim=True)
    cos, sinc, _ = _series.exponential(square)
    a, b, c = _coefficients(growth, square)
    wv = torch.linalg.cross(omega, v)
    translation = a * v + b * wv + c * torch.linalg.cross(omega, wv)
    return torch.cat([cos, 0.5 * sinc * omega], -1), translation, growth.squeeze(-1).exp()


def log(
    quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*c 3"], scale: Float[Tensor, "*d"]
) -> Float[Tensor, "*e 7"]:
    """(quat_wxyz, translation, scale) to the twist (v, omega, lambda) of least angle: v = V^-1 t, the inverse of `exp`.

    V is never singular for theta <= pi. At angle pi the axis is the one `quaternion.log` returns.

    Args: quat_wxyz (..., 4), unit; translation (..., 3); scale (...), above 0. Batches broadcast.
    Returns: twist (..., 7).

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    omega, growth = quaternion.log(quat_wxyz), scale[..., None].log()
    omega, translation, growth = torch.broadcast_tensors(omega, translation, growth)
    a, b, c = _inverse_coefficients(growth[..., :1], omega.square().sum(-1, keepdim=True))
    wt = torch.linalg.cross(omega, translation)
    return torch.cat([a * translation + b * wt + c * torch.linalg.cross(omega, wt), omega, growth[..., :1]], -1)


def compose(
    quat_a: Float[Tensor, "*b 4"],
    translation_a: Float[Tensor, "*c 3"],
    scale_a: Float[Tensor, "*d"],
    quat_b: Float[Tensor, "*e 4"],
    translation_b: Float[Tensor, "*f 3"],
    scale_b: Float[Tensor, "*g"],
) -> tuple[Float[Tensor, "*h 4"], Float[Tensor, "*h 3"], Float[Tensor, "*h"]]:
    """b first, then a: (q_a q_b, s_a R_a t_b + t_a, s_a s_b). Batches broadcast.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32 of the lengths involved
    """
    quat, scale = quaternion.multiply(quat_a, quat_b), scale_a * scale_b
    translation = scale_a[..., None] * quaternion.rotate(quat_a, translation_b) + translation_a
    batch = torch.broadcast_shapes(quat.shape[:-1], translation.shape[:-1], scale.shape)
    return quat.expand(*batch, 4), translation.expand(*batch, 3), scale.expand(batch)


def inverse(
    quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*b 3"], scale: Float[Tensor, "*b"]
) -> tuple[Float[Tensor, "*b 4"], Float[Tensor, "*b 3"], Float[Tensor, "*b"]]:
    """The similarity that undoes this one: (q*, -R^T t / s, 1 / s).

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32 of the lengths involved
    """
    back = quaternion.conjugate(quat_wxyz)
    return back, -quaternion.rotate(back, translation) / scale[..., None], 1 / scale


def apply(
    quat_wxyz: Float[Tensor, "*b 4"],
    translation: Float[Tensor, "*c 3"],
    scale: Float[Tensor, "*d"],
    points: Float[Tensor, "*e n 3"],
) -> Float[Tensor, "*f n 3"]:
    """s R x + t for points (..., N, 3), one similarity for all N; batches broadcast.

    Raises: ShapeError for points of another shape or dtype.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32 of the lengths involved
    """
    if points.ndim < 2 or points.shape[-1] != 3 or points.dtype != quat_wxyz.dtype:
        raise ShapeError(f"points: expected {quat_wxyz.dtype} of shape (..., N, 3), got {describe(points)}")
    return scale[..., None, None] * quaternion.rotate(quat_wxyz[..., None, :], points) + translation[..., None, :]


def adjoint(
    quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*b 3"], scale: Float[Tensor, "*b"]
) -> Float[Tensor, "*b 7 7"]:
    """Ad_T for twists (v, omega, lambda), T exp(xi) = exp(Ad_T xi) T: [[s R, hat(t) R, -t], [0, R, 0], [0, 0, 1]].

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32 of the lengths involved
    """
    rotation, zero = quaternion.to_matrix(quat_wxyz), torch.zeros_like(translation)
    top = torch.cat(
        [scale[..., None, None] * rotation, so3.hat(translation) @ rotation, -translation[..., :, None]], -1
    )
    middle = torch.cat([torch.zeros_like(rotation), rotation, zero[..., :, None]], -1)
    bottom = torch.cat([zero, zero, torch.ones_like(zero[..., :1])], -1)
    return torch.cat([top, middle, bottom[..., None, :]], -2)


def interpolate(
    quat_a: Float[Tensor, "*b 4"],
    translation_a: Float[Tensor, "*b 3"],
    scale_a: Float[Tensor, "*b"],
    quat_b: Float[Tensor, "*c 4"],
    translation_b: Float[Tensor, "*c 3"],
    scale_b: Float[Tensor, "*c"],
    t: Float[Tensor, "*d"] | float,
) -> tuple[Float[Tensor, "*e 4"], Float[Tensor, "*e 3"], Float[Tensor, "*e"]]:
    """The spiral from a to b, a exp(t log(a^-1 b)), at constant body twist: the scale grows evenly in its logarithm.

    t = 0 gives a exactly, t = 1 gives b to rounding; other t go on along the spiral.

    Args: t (...), of their batch or broadcasting with it, or a number.

    Guarantees: differentiable (0, pi); deterministic; 4e-15 f64, 2e-6 f32 of the lengths involved
    """
    a = (quat_a, translation_a, scale_a)
    step = torch.as_tensor(t, dtype=quat_a.dtype, device=quat_a.device)
    twist = log(*compose(*inverse(*a), quat_b, translation_b, scale_b))
    return compose(*a, *exp(step[..., None] * twist))


def mean(
    quat_wxyz: Float[Tensor, "*b n 4"],
    translation: Float[Tensor, "*b n 3"],
    scale: Float[Tensor, "*b n"],
    weights: Float[Tensor, "*c n"] | None = None,
) -> tuple[Float[Tensor, "*d 4"], Float[Tensor, "*d 3"], Float[Tensor, "*d"]]:
    """The barycentre over the last batch dimension: sum_i w_i log(T^-1 T_i) = 0 (Pennec & Arsigny 2013, Eq. (5.4)).

    It moves with the similarities when they are moved from either side. Its rotation is `so3.mean`, its scale the
    geometric mean; its translation then solves a linear system. Unique for rotations within pi/2 of one another.

    Args: quat_wxyz (..., N, 4), translation (..., N, 3), scale (..., N), N >= 1; weights (..., N), not negative, of a
        sum above zero.
    Raises: ShapeError for an empty set.

    Guarantees: differentiable (0, pi); deterministic; 1e-14 f64, 5e-6 f32 of the lengths involved
    """
    middle = so3.mean(quaternion.to_matrix(quat_wxyz), weights)
    quat = quaternion.from_matrix(middle)
    omega = quaternion.log(quaternion.multiply(quaternion.conjugate(quat)[..., None, :], quat_wxyz))
    share = torch.ones_like(scale) if weights is None else weights
    share = share / share.sum(-1, keepdim=True)
    growth = scale.log()
    centre = (share * growth).sum(-1)
    w, eye = so3.hat(omega), torch.eye(3, dtype=scale.dtype, device=scale.device)
    coefficients = _inverse_coefficients((growth - centre[..., None])[..., None], omega.square().sum(-1, keepdim=True))
    a, b, c = (x[..., None] for x in coefficients)
    pull = share[..., None, None] * (a * eye + b * w + c * (w @ w)) @ middle.mT[..., None, :, :]
    rest = (pull @ translation[..., None]).sum(-3)[..., 0]
    return quat, torch.linalg.solve(pull.sum(-3), rest), centre.exp()


def _coefficients(growth: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, B, C of V = A I + B W + C W^2 for lambda (..., 1) and theta^2 (..., 1), with z = lambda + i theta.

    A = phi(lambda), B = Im phi(z)/theta, C = (A - Re phi(z))/theta^2. Away from z = 0 these are fractions over |z|^2,
    written so that neither theta^2 nor what is small with it is divided by. Near 0 they are the power series, which
    Horner's rule gives for all three at once: V = sum of M^n/(n + 1)! with M = lambda I + W, W^3 = -theta^2 W.
    """
    radius = growth.square() + square
    slow, near, zero = growth.square() < 0.5, radius < 0.5, torch.zeros_like(growth)
    low, angle = torch.where(slow, growth, zero), torch.where(near, square, zero)
    a, b, c = zero, zero, zero
    for k in range(_TERMS, 0, -1):
        a, b, c = low * a + 1 / factorial(k), a + low * b - angle * c, b + low * c

    cos, sinc, cubic = _series.exponential(square)
    sine, versine = sinc * cos, 0.5 * sinc.square()  # sin(theta)/theta and (1 - cos theta)/theta^2
    safe = torch.where(slow, torch.ones_like(growth), growth)
    a = torch.where(slow, a, safe.expm1() / safe)
    far, e = torch.where(near, torch.ones_like(radius), radius), growth.exp()
    ratio = e / far  # first, so that nothing overflows while e itself does not
    closed_b = ratio * (square * versine + growth * sine) - growth / far * a
    closed_c = (a - e) / far + ratio * (square * cubic + growth * versine)
    return a, torch.where(near, b, closed_b), torch.where(near, c, closed_c)


def _inverse_coefficients(growth: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of V^-1 = (I - q/d W + (q^2 - c p)/d W^2) / A, q = B/A, c = C/A, p = 1 - theta^2 c, d = p^2 + theta^2 q^2.

    The quotient in the ring of polynomials in W with W^3 = -theta^2 W: again nothing small is divided by, and products
    of ratios do not overflow.
    """
    a, b, c = _coefficients(growth, square)
    q, c = b / a, c / a
    p = 1 - square * c
    d = p.square() + square * q.square()
    return 1 / a, -q / (d * a), (q.square() - c * p) / (d * a)
