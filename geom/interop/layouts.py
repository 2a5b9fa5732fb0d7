"""Orders and transposes that other libraries use: quaternions with the real part last, matrices for row vectors."""

from jaxtyping import Float
from torch import Tensor

from geom.checks import check_rigid, check_shape, describe
from geom.errors import ShapeError
from geom.lie import Rigid

__all__ = [
    "checked_rigid",
    "quat_wxyz_to_xyzw",
    "quat_xyzw_to_wxyz",
    "rigid_from_row_vectors",
    "rigid_to_row_vectors",
]


def quat_wxyz_to_xyzw(quat_wxyz: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """(w, x, y, z), as here, pytorch3d and e3nn, to (x, y, z, w), as scipy, roma, pypose, ROS and Warp.

    Args: quat_wxyz (..., 4), any dtype.
    Returns: the same numbers (..., 4), real part last.
    Raises: ShapeError for another shape.

    >>> import torch
    >>> quat_wxyz_to_xyzw(torch.tensor([1., 2, 3, 4])).tolist()
    [2.0, 3.0, 4.0, 1.0]

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    return check_shape(quat_wxyz, (4,), "quat_wxyz").roll(-1, -1)


def quat_xyzw_to_wxyz(quat_xyzw: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """(x, y, z, w) to (w, x, y, z): the inverse of `quat_wxyz_to_xyzw`.

    Args: quat_xyzw (..., 4), any dtype.
    Returns: the same numbers (..., 4), real part first.
    Raises: ShapeError for another shape.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    return check_shape(quat_xyzw, (4,), "quat_xyzw").roll(1, -1)


def rigid_to_row_vectors(rigid: Rigid) -> Float[Tensor, "*b 4 4"]:
    """The matrix M of (y, 1) = (x, 1) M for points that are rows: R transposed, the translation in the last row.

    Args: rigid, any batch shape.
    Returns: (..., 4, 4), what pytorch3d's `Transform3d(matrix=...)` takes.

    >>> rigid_to_row_vectors(Rigid.identity())[3].tolist()
    [0.0, 0.0, 0.0, 1.0]

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    if not isinstance(rigid, Rigid):
        raise ShapeError(f"rigid: expected a Rigid, got {describe(rigid)}")
    return rigid.to_matrix().mT


def rigid_from_row_vectors(matrix: Float[Tensor, "*b 4 4"]) -> Rigid:
    """The motion of a row-vector matrix: the inverse of `rigid_to_row_vectors`; the quaternion comes back with w >= 0.

    Args: matrix (..., 4, 4), float32 or float64.
    Returns: Rigid, same dtype and device.
    Raises: ShapeError for another shape, and for a matrix that is no rigid motion: scaled, mirrored or projective.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    return checked_rigid(check_shape(matrix, (4, 4), "matrix").mT, "matrix")


def checked_rigid(matrix: Tensor, name: str) -> Rigid:
    """Rigid.from_matrix (column vectors) where nothing would be lost. Raises: ShapeError, see `check_rigid`."""
    return Rigid.from_matrix(check_rigid(matrix, name))
