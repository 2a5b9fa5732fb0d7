"""SE(3) as (quaternion, translation), twists (v, omega) with translation first, as Sophus and manif order them."""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import describe
from geom.errors import ShapeError
from geom.kernels.pointwise import fused
from geom.lie import _series, quaternion, so3

__all__ = [
    "exp",
    "log",
    "compose",
    "inverse",
    "apply",
    "adjoint",
    "interpolate",
    "mean",
    "left_jacobian",
    "left_jacobian_inverse",
    "right_jacobian",
    "right_jacobian_inverse",
    "to_dual_quaternion",
    "from_dual_quaternion",
]


@fused("rotations.se3_exp", [(6,)], [(4,), (3,)])
def exp(twist: Float[Tensor, "*b 6"]) -> tuple[Float[Tensor, "*b 4"], Float[Tensor, "*b 3"]]:
    """Twist (v, omega) to (quat_wxyz, translation): t = V(omega) v with V = I + s2 W + s3 W^2.

    s2 = (1 - cos theta)/theta^2, s3 = (theta - sin theta)/theta^3, W = omega x (Sola et al. 2018, Eq. (174)).

    Args: twist (..., 6); v in the unit of the translation, omega in radians.
    Returns: unit quaternion (..., 4), translation (..., 3).

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    v, omega = twist[..., :3], twist[..., 3:]
    cos, sinc, cubic = _series.exponential(omega.square().sum(-1, keepdim=True))
    wv = torch.linalg.cross(omega, v)
    # (1 - cos theta)/theta^2 is sinc(theta/2)^2 / 2
    translation = v + 0.5 * sinc.square() * wv + cubic * torch.linalg.cross(omega, wv)
    return torch.cat([cos, 0.5 * sinc * omega], -1), translation


@fused("rotations.se3_log", [(4,), (3,)], [(6,)])
def log(quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*c 3"]) -> Float[Tensor, "*d 6"]:
    """(quat_wxyz, translation) to the twist (v, omega) of least angle: v = (I - W/2 + eta W^2) t.

    eta = (1 - (theta/2) cot(theta/2))/theta^2. At angle pi the axis is the one `quaternion.log` returns.

    Args: quat_wxyz (..., 4), unit; translation (..., 3).
    Returns: twist (..., 6).

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    omega = quaternion.log(quat_wxyz)
    omega, translation = torch.broadcast_tensors(omega, translation)
    wt = torch.linalg.cross(omega, translation)
    eta = _series.inverse_left(omega.square().sum(-1, keepdim=True))
    return torch.cat([translation - 0.5 * wt + eta * torch.linalg.cross(omega, wt), omega], -1)


@fused("rotations.se3_compose", [(4,), (3,), (4,), (3,)], [(4,), (3,)])
def compose(
    quat_a: Float[Tensor, "*b 4"],
    translation_a: Float[Tensor, "*c 3"],
    quat_b: Float[Tensor, "*d 4"],
    translation_b: Float[Tensor, "*e 3"],
) -> tuple[Float[Tensor, "*f 4"], Float[Tensor, "*f 3"]]:
    """b first, then a: (q_a q_b, R_a t_b + t_a). Batches broadcast.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32 of the lengths involved
    """
    quat = quaternion.multiply(quat_a, quat_b)
    translation = quaternion.rotate(quat_a, translation_b) + translation_a
    batch = torch.broadcast_shapes(quat.shape[:-1], translation.shape[:-1])
    return quat.expand(*batch, 4), translation.expand(*batch, 3)


@fused("rotations.se3_inverse", [(4,), (3,)], [(4,), (3,)])
def inverse(
    quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*c 3"]
) -> tuple[Float[Tensor, "*d 4"], Float[Tensor, "*d 3"]]:
    """The motion that undoes this one: (q*, -R^T t).

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32 of the lengths involved
    """
    back = quaternion.conjugate(quat_wxyz)
    moved = -quaternion.rotate(back, translation)
    return back.expand(*moved.shape[:-1], 4), moved


def apply(
    quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*c 3"], points: Float[Tensor, "*d n 3"]
) -> Float[Tensor, "*e n 3"]:
    """R x + t for points (..., N, 3), one motion for all N; batches broadcast.

    Raises: ShapeError for points of another shape or dtype.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32 of the lengths involved
    """
    if points.ndim < 2 or points.shape[-1] != 3 or points.dtype != quat_wxyz.dtype:
        raise ShapeError(f"points: expected {quat_wxyz.dtype} of shape (..., N, 3), got {describe(points)}")
    return _move(quat_wxyz[..., None, :], translation[..., None, :], points)


@fused("rotations.se3_move", [(4,), (3,), (3,)], [(3,)])
def _move(
    quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*c 3"], point: Float[Tensor, "*d 3"]
) -> Float[Tensor, "*e 3"]:
    return quaternion.rotate(quat_wxyz, point) + translation


def adjoint(quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 6 6"]:
    """Ad_T for twists (v, omega), T exp(xi) = exp(Ad_T xi) T: [[R, hat(t) R], [0, R]].

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32 of the lengths involved
    """
    rotation = quaternion.to_matrix(quat_wxyz)
    return _blocks(rotation, so3.hat(translation) @ rotation)


def interpolate(
    quat_a: Float[Tensor, "*b 4"],
    translation_a: Float[Tensor, "*b 3"],
    quat_b: Float[Tensor, "*c 4"],
    translation_b: Float[Tensor, "*c 3"],
    t: Float[Tensor, "*d"] | float,
) -> tuple[Float[Tensor, "*e 4"], Float[Tensor, "*e 3"]]:
    """The screw motion from a to b, a exp(t log(a^-1 b)), at constant body twist.

    Rotation by less than pi about one axis while sliding along it. t = 0 gives a exactly, t = 1 gives b to rounding;
    other t go on along the screw.

    Args: t (...), of their batch or broadcasting with it, or a number.

    Guarantees: differentiable (0, pi); deterministic; 4e-15 f64, 2e-6 f32 of the lengths involved
    """
    twist = log(*compose(*inverse(quat_a, translation_a), quat_b, translation_b))
    step = t[..., None].to(quat_a) if isinstance(t, Tensor) else t
    return compose(quat_a, translation_a, *exp(step * twist))


def mean(
    quat_wxyz: Float[Tensor, "*b n 4"],
    translation: Float[Tensor, "*b n 3"],
    weights: Float[Tensor, "*c n"] | None = None,
) -> tuple[Float[Tensor, "*d 4"], Float[Tensor, "*d 3"]]:
    """The barycentre over the last batch dimension: sum_i w_i log(T^-1 T_i) = 0 (Pennec & Arsigny 2013, Eq. (5.4)).

    It moves with the poses when they are moved from either side. Its rotation is `so3.mean`; its translation then
    solves a linear system. Unique for rotations within pi/2 of one another.

    Args: quat_wxyz (..., N, 4), translation (..., N, 3), N >= 1; weights (..., N), not negative, of a sum above zero.
    Raises: ShapeError for an empty set, a negative weight, or weights that are all zero.

    Guarantees: differentiable (0, pi); deterministic; 1e-14 f64, 5e-6 f32 of the lengths involved
    """
    matrix = quaternion.to_matrix(quat_wxyz)
    middle = so3.mean(matrix, weights)
    back = middle.mT[..., None, :, :]
    turn = so3.left_jacobian_inverse(so3.log(back @ matrix)) @ back
    turn = turn if weights is None else weights[..., None, None] * turn
    pull = (turn @ translation[..., None]).sum(-3)[..., 0]
    return quaternion.from_matrix(middle), torch.linalg.solve(turn.sum(-3), pull)


def left_jacobian(twist: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 6 6"]:
    """J with exp(xi + dxi) = exp(J dxi) exp(xi): [[J3, Q], [0, J3]] (Barfoot & Furgale 2014, Eq. (100) and (102)).

    Guarantees: differentiable (0, pi); deterministic; 4e-15 f64, 2e-6 f32
    """
    return _blocks(so3.left_jacobian(twist[..., 3:]), _coupling(twist))


def left_jacobian_inverse(twist: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 6 6"]:
    """The inverse of `left_jacobian`, for angles below 2 pi: [[J3', -J3' Q J3'], [0, J3']], J3' = J3^-1.

    Guarantees: differentiable (0, pi); deterministic; 1e-14 f64, 5e-6 f32
    """
    back = so3.left_jacobian_inverse(twist[..., 3:])
    return _blocks(back, -back @ _coupling(twist) @ back)


def right_jacobian(twist: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 6 6"]:
    """J with exp(xi + dxi) = exp(xi) exp(J dxi): the left one of -xi.

    Guarantees: differentiable (0, pi); deterministic; 4e-15 f64, 2e-6 f32
    """
    return left_jacobian(-twist)


def right_jacobian_inverse(twist: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 6 6"]:
    """The inverse of `right_jacobian`, for angles below 2 pi.

    Guarantees: differentiable (0, pi); deterministic; 1e-14 f64, 5e-6 f32
    """
    return left_jacobian_inverse(-twist)


def to_dual_quaternion(quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 8"]:
    """Unit dual quaternion (real, dual), each (w, x, y, z): dual = (0, t) q / 2.

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    pure = torch.cat([torch.zeros_like(translation[..., :1]), translation], -1)
    return torch.cat([quat_wxyz, 0.5 * quaternion.multiply(pure, quat_wxyz)], -1)


def from_dual_quaternion(dual_quaternion: Float[Tensor, "*b 8"]) -> tuple[Float[Tensor, "*b 4"], Float[Tensor, "*b 3"]]:
    """Dual quaternion (real, dual) to (quat_wxyz, translation), normalised first: t = 2 dual real* / |real|^2.

    Blends of several, as in dual-quaternion skinning, may have any length (Kavan et al. 2008, Eq. (4)); where their
    real part is zero, no rotation is there to be read, and the identity is returned with zero gradient.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    real, dual = dual_quaternion[..., :4], dual_quaternion[..., 4:]
    square = real.square().sum(-1, keepdim=True)
    none = square == 0
    one = torch.cat([torch.ones_like(square), torch.zeros_like(real[..., 1:])], -1)
    real, square = torch.where(none, one, real), torch.where(none, torch.ones_like(square), square)
    translation = 2 * quaternion.multiply(dual, quaternion.conjugate(real))[..., 1:] / square
    return real / square.sqrt(), torch.where(none, torch.zeros_like(translation), translation)


def _blocks(diagonal: Tensor, corner: Tensor) -> Tensor:
    """[[diagonal, corner], [0, diagonal]]."""
    top = torch.cat([diagonal, corner], -1)
    return torch.cat([top, torch.cat([torch.zeros_like(diagonal), diagonal], -1)], -2)


def _coupling(twist: Tensor) -> Tensor:
    """Q of Eq. (102), with P = hat(v) and W = hat(omega)."""
    omega = twist[..., 3:]
    u = omega.square().sum(-1, keepdim=True)
    third = _series.exponential(u)[2][..., None]
    fourth, fifth = (x[..., None] for x in _series.jacobian(u))
    p, w = so3.hat(twist[..., :3]), so3.hat(omega)
    wp, pw = w @ p, p @ w
    wpw = wp @ w
    return 0.5 * p + third * (wp + pw + wpw) + fourth * (w @ wp + pw @ w - 3 * wpw) + fifth * (wpw @ w + w @ wpw)
