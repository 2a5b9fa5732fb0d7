"""Conversions between rotations, with pytorch3d's names: matrices for column vectors, quaternions (w, x, y, z)."""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_shape, describe
from geom.errors import ShapeError
from geom.lie import quaternion, so3

__all__ = [
    "axis_angle_to_matrix",
    "axis_angle_to_quaternion",
    "euler_angles_to_matrix",
    "matrix_to_axis_angle",
    "matrix_to_euler_angles",
    "matrix_to_quaternion",
    "matrix_to_rotation_6d",
    "quaternion_apply",
    "quaternion_invert",
    "quaternion_multiply",
    "quaternion_raw_multiply",
    "quaternion_to_axis_angle",
    "quaternion_to_matrix",
    "random_quaternions",
    "random_rotation",
    "random_rotations",
    "rotation_6d_to_matrix",
    "standardize_quaternion",
]

Device = torch.device | str


def quaternion_to_matrix(quaternions: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3 3"]:
    """Quaternions of any length to rotation matrices; `geom.lie.quaternion.to_matrix`: zeros give the identity.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return quaternion.to_matrix(check_shape(quaternions, (4,), "quaternions"))


def matrix_to_quaternion(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 4"]:
    """Rotation matrices to quaternions with w >= 0; `geom.lie.quaternion.from_matrix`.

    Raises: ShapeError for another shape.

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    return quaternion.from_matrix(check_shape(matrix, (3, 3), "matrix"))


def axis_angle_to_quaternion(axis_angle: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4"]:
    """Rotation vectors, of any length, to quaternions; `geom.lie.quaternion.exp`.

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    return quaternion.exp(check_shape(axis_angle, (3,), "axis_angle"))


def quaternion_to_axis_angle(quaternions: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3"]:
    """Unit quaternions to rotation vectors of an angle in [0, 2 pi]: above pi where w < 0, as pytorch3d has it.

    There it is twice the logarithm of the square root of q, (1 + q)/|1 + q|; `geom.lie.quaternion.log`, of q and -q
    alike, is the vector of least angle. At q = -1, where every axis is right, the vector is 0.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    w, xyz = check_shape(quaternions, (4,), "quaternions")[..., :1], quaternions[..., 1:]
    one = torch.cat([torch.ones_like(w), torch.zeros_like(xyz)], -1)
    least = quaternion.log(torch.where(w < 0, one, quaternions))
    square = xyz.square().sum(-1, keepdim=True)
    far = (w < 0) & (square > 0)
    root = torch.cat([square / (1 - torch.where(far, w, torch.zeros_like(w))), xyz], -1)  # 1 + w without cancellation
    root = torch.where(far, root, one)
    root = root / torch.linalg.vector_norm(root, dim=-1, keepdim=True)
    return torch.where(far, 2 * quaternion.log(root), least)


def axis_angle_to_matrix(axis_angle: Float[Tensor, "*b 3"], fast: bool = False) -> Float[Tensor, "*b 3 3"]:
    """Rotation vectors, of any length, to rotation matrices; `geom.lie.so3.exp`.

    `fast` is taken and changes nothing: in pytorch3d it trades accuracy at small angles for speed.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return so3.exp(check_shape(axis_angle, (3,), "axis_angle"))


def matrix_to_axis_angle(matrix: Float[Tensor, "*b 3 3"], fast: bool = False) -> Float[Tensor, "*b 3"]:
    """Rotation matrices to rotation vectors of least angle, in [0, pi]; `geom.lie.so3.log`.

    `fast` is taken and changes nothing: in pytorch3d it trades accuracy near 0 and pi for speed.

    Raises: ShapeError for another shape.

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    return so3.log(check_shape(matrix, (3, 3), "matrix"))


def euler_angles_to_matrix(euler_angles: Float[Tensor, "*b 3"], convention: str) -> Float[Tensor, "*b 3 3"]:
    """Euler angles to rotation matrices: "XYZ" is R_x(a) R_y(b) R_z(c); `geom.lie.so3.from_euler` with capitals.

    Raises: ShapeError for another shape or a convention of other than three capitals, the middle one unlike the others.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return so3.from_euler(check_shape(euler_angles, (3,), "euler_angles"), _capitals(convention))


def matrix_to_euler_angles(matrix: Float[Tensor, "*b 3 3"], convention: str) -> Float[Tensor, "*b 3"]:
    """Rotation matrices to Euler angles; `geom.lie.so3.to_euler` with capitals, finite at gimbal lock too.

    Raises: ShapeError for another shape or a convention as `euler_angles_to_matrix` refuses.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return so3.to_euler(check_shape(matrix, (3, 3), "matrix"), _capitals(convention))


def rotation_6d_to_matrix(d6: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Gram-Schmidt of two rows to a rotation matrix; `geom.lie.so3.from_6d`, which takes columns, transposed.

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    return so3.from_6d(check_shape(d6, (6,), "d6")).mT


def matrix_to_rotation_6d(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 6"]:
    """The first two rows of rotation matrices, one after the other; `geom.lie.so3.to_6d` of the transpose.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    return so3.to_6d(check_shape(matrix, (3, 3), "matrix").mT)


def standardize_quaternion(quaternions: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """The one of q and -q whose real part is not negative.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    return torch.where(check_shape(quaternions, (4,), "quaternions")[..., :1] < 0, -quaternions, quaternions)


def quaternion_raw_multiply(a: Float[Tensor, "*b 4"], b: Float[Tensor, "*c 4"]) -> Float[Tensor, "*d 4"]:
    """Hamilton product, of quaternions of any length; `geom.lie.quaternion.multiply`. Batches broadcast.

    Guarantees: differentiable; deterministic; 4e-16 f64, 3e-7 f32
    """
    return quaternion.multiply(check_shape(a, (4,), "a"), check_shape(b, (4,), "b"))


def quaternion_multiply(a: Float[Tensor, "*b 4"], b: Float[Tensor, "*c 4"]) -> Float[Tensor, "*d 4"]:
    """Hamilton product with the sign that makes the real part not negative. Batches broadcast.

    Guarantees: differentiable; deterministic; 4e-16 f64, 3e-7 f32
    """
    return standardize_quaternion(quaternion_raw_multiply(a, b))


def quaternion_invert(quaternion: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """The inverse of unit quaternions, their conjugate.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    return torch.cat([check_shape(quaternion, (4,), "quaternion")[..., :1], -quaternion[..., 1:]], -1)


def quaternion_apply(quaternion: Float[Tensor, "*b 4"], point: Float[Tensor, "*c 3"]) -> Float[Tensor, "*d 3"]:
    """q (0, p) q*, the rotated points; a quaternion that is not unit scales by its squared length, as in pytorch3d.

    Args: quaternion (..., 4), real part first; point (..., 3); the batches broadcast.
    Raises: ShapeError for another shape.

    Guarantees: differentiable; deterministic; 2e-15 f64, 1e-6 f32 of the point's length
    """
    point = check_shape(point, (3,), "point")
    pure = torch.cat([torch.zeros_like(point[..., :1]), point], -1)
    return quaternion_raw_multiply(quaternion_raw_multiply(quaternion, pure), quaternion_invert(quaternion))[..., 1:]


def random_quaternions(n: int, dtype: torch.dtype | None = None, device: Device | None = None) -> Float[Tensor, "n 4"]:
    """n uniformly distributed rotations with w >= 0, by torch's global generator, as pytorch3d draws them.

    Guarantees: not differentiable; deterministic under torch.manual_seed; unit to 4e-16 f64, 3e-7 f32
    """
    return standardize_quaternion(quaternion.random(n, dtype=dtype, device=device))


def random_rotations(n: int, dtype: torch.dtype | None = None, device: Device | None = None) -> Float[Tensor, "n 3 3"]:
    """n uniformly distributed rotation matrices, by torch's global generator.

    Guarantees: not differentiable; deterministic under torch.manual_seed; 1e-15 f64, 6e-7 f32
    """
    return quaternion.to_matrix(random_quaternions(n, dtype, device))


def random_rotation(dtype: torch.dtype | None = None, device: Device | None = None) -> Float[Tensor, "3 3"]:
    """One uniformly distributed rotation matrix, by torch's global generator.

    Guarantees: not differentiable; deterministic under torch.manual_seed; 1e-15 f64, 6e-7 f32
    """
    return random_rotations(1, dtype, device)[0]


def _capitals(convention: str) -> str:
    if not isinstance(convention, str) or not convention.isupper():
        raise ShapeError(f"convention: expected three capitals of X, Y, Z, got {describe(convention)}")
    return convention
