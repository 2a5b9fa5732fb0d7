"""SO(3) with pytorch3d's names: matrices for column vectors. `eps` and `cos_bound` are taken; nothing is clamped."""

from jaxtyping import Float
from torch import Tensor

from geom.checks import check_shape, readable
from geom.errors import ShapeError
from geom.lie import quaternion, so3

__all__ = [
    "hat",
    "hat_inv",
    "so3_exp_map",
    "so3_exponential_map",
    "so3_log_map",
    "so3_relative_angle",
    "so3_rotation_angle",
]

_SKEW = 1e-5  # pytorch3d's tolerance in `hat_inv`


def so3_exp_map(log_rot: Float[Tensor, "*b 3"], eps: float = 0.0001) -> Float[Tensor, "*b 3 3"]:
    """Rotation vectors to rotation matrices; `geom.lie.so3.exp`. `eps` changes nothing: small angles are exact.

    Raises: ShapeError for another shape.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return so3.exp(check_shape(log_rot, (3,), "log_rot"))


def so3_exponential_map(log_rot: Float[Tensor, "*b 3"], eps: float = 0.0001) -> Float[Tensor, "*b 3 3"]:
    """The older name of `so3_exp_map`.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return so3_exp_map(log_rot, eps)


def so3_log_map(R: Float[Tensor, "*b 3 3"], eps: float = 0.0001, cos_bound: float = 1e-4) -> Float[Tensor, "*b 3"]:
    """Rotation matrices to rotation vectors of least angle; `geom.lie.so3.log`. `eps` and `cos_bound` change nothing.

    Raises: ShapeError for another shape.

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    return so3.log(check_shape(R, (3, 3), "R"))


def so3_relative_angle(
    R1: Float[Tensor, "*b 3 3"],
    R2: Float[Tensor, "*c 3 3"],
    cos_angle: bool = False,
    cos_bound: float = 1e-4,
    eps: float = 1e-4,
) -> Float[Tensor, "*d"]:
    """The angle of R1 R2^T, in [0, pi] radians, or its cosine; see `so3_rotation_angle`.

    Raises: ShapeError for another shape, or a trace that no rotation has.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    turn = check_shape(R1, (3, 3), "R1") @ check_shape(R2, (3, 3), "R2").mT
    return so3_rotation_angle(turn, eps=eps, cos_angle=cos_angle, cos_bound=cos_bound)


def so3_rotation_angle(
    R: Float[Tensor, "*b 3 3"], eps: float = 1e-4, cos_angle: bool = False, cos_bound: float = 1e-4
) -> Float[Tensor, "*b"]:
    """The angle of rotations, in [0, pi] radians, or its cosine (tr R - 1)/2.

    The angle is exact from 0 to pi, with gradient 0 at 0, where pytorch3d extrapolates below an angle of 0.014 (its
    `cos_bound`, which changes nothing here).

    Args: R (..., 3, 3); eps, how far the trace may be outside [-1, 3].
    Raises: ShapeError for another shape, or a trace that no rotation has.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    trace = check_shape(R, (3, 3), "R").diagonal(dim1=-2, dim2=-1).sum(-1)
    if readable(trace) and bool(((trace < -1 - eps) | (trace > 3 + eps)).any()):
        raise ShapeError(f"R: expected rotations, traces in [-1, 3] to {eps}, got others among them")
    if cos_angle:
        return (trace - 1) / 2
    return quaternion.geodesic_distance(quaternion.from_matrix(R), R.new_tensor([1.0, 0, 0, 0]))


def hat(v: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """The matrices of the cross product, hat(v) x = v x x; `geom.lie.so3.hat`.

    Raises: ShapeError for another shape.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    return so3.hat(check_shape(v, (3,), "v"))


def hat_inv(h: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """The vectors of skew matrices, the inverse of `hat`; `geom.lie.so3.vee`.

    Raises: ShapeError for another shape, or a matrix that is not skew to 1e-5.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    if readable(check_shape(h, (3, 3), "h")) and bool(((h + h.mT).abs() > _SKEW).any()):
        raise ShapeError(f"h: expected skew matrices, h + h^T = 0 to {_SKEW}, got others among them")
    return so3.vee(h)
