"""Rotation matrices (3, 3) for column vectors, their maps, and the other coordinates of a rotation."""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_weights, describe
from geom.errors import ShapeError
from geom.kernels.pointwise import fused
from geom.lie import _series, quaternion
from geom.lie._polar import nearest_rotation
from geom.roots import safe_sqrt

__all__ = [
    "exp",
    "log",
    "hat",
    "vee",
    "from_6d",
    "to_6d",
    "from_euler",
    "to_euler",
    "project",
    "mean",
    "left_jacobian",
    "left_jacobian_inverse",
    "right_jacobian",
    "right_jacobian_inverse",
]

_NEWTON = 8  # steps of `mean`; each doubles the digits


@fused("rotations.so3_exp", [(3,)], [(3, 3)])
def exp(rotvec: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Rotation vector (radians) to rotation matrix: exp(hat(rotvec)), by way of the quaternion.

    Args: rotvec (..., 3), any length; float16 to float64.
    Returns: rotation matrix (..., 3, 3).

    >>> exp(torch.tensor([0.0, 0.0, torch.pi / 2])).round(decimals=6).abs().tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return quaternion.to_matrix(quaternion.exp(rotvec))


@fused("rotations.so3_log", [(3, 3)], [(3,)])
def log(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Rotation matrix to the rotation vector of least angle, in [0, pi] radians: the inverse of `exp`.

    At angle pi, where both axes are right, one of them is returned. The matrix is taken to be a rotation (`project`).

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    return quaternion.log(quaternion.from_matrix(matrix))


def hat(vector: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """The matrix of the cross product: hat(v) x = v x x.

    Guarantees: differentiable (0, pi); deterministic; exact f64, exact f32
    """
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def vee(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """The vector of a skew matrix: the inverse of `hat`. Of another matrix, that of its skew part (M - M^T)/2.

    Guarantees: differentiable (0, pi); deterministic; exact f64, exact f32
    """
    skew = matrix - matrix.mT
    return 0.5 * torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)


@fused("rotations.from_6d", [(6,)], [(3, 3)])
def from_6d(columns: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Gram-Schmidt of two columns (a1, a2), any but parallel, to a rotation matrix (Zhou et al. 2019, Eq. (15)).

    Where a1 is zero the x axis stands in for it, and where a2 lies along a1 the coordinate axis that is farthest from
    it, with zero gradient. pytorch3d stores two rows instead: `geom.compat.pytorch3d.transforms.rotation_6d_to_matrix`.

    Args: columns (..., 6), of any length but overflowing.
    Returns: rotation matrix (..., 3, 3), orthogonal to rounding however close a1 and a2 come.

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    first, second = columns.unflatten(-1, (2, 3)).unbind(-2)
    number = torch.arange(3, device=columns.device)
    first = _unit(first, (number == 0).to(first))
    held = first.detach()
    far = (number == held.abs().argmin(-1, keepdim=True)).to(held)
    other = far - held * (held * far).sum(-1, keepdim=True)
    second = _unit(second, other)
    for _ in range(2):  # once loses digits where the columns are close
        rest = second - (first * second).sum(-1, keepdim=True) * first
        second = _unit(rest, other, 4 * torch.finfo(rest.dtype).eps)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


def to_6d(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 6"]:
    """The first two columns of a rotation matrix, one after the other: a right inverse of `from_6d`.

    Guarantees: differentiable (0, pi); deterministic; exact f64, exact f32
    """
    return matrix[..., :2].mT.flatten(-2)


def from_euler(angles: Float[Tensor, "*b 3"], convention: str) -> Float[Tensor, "*b 3 3"]:
    """Three turns about coordinate axes to a rotation matrix: "XYZ" is R_x(a) R_y(b) R_z(c).

    Capitals turn about the axes as they move along (intrinsic), small letters about fixed ones (extrinsic: "xyz" is
    R_z(c) R_y(b) R_x(a)), as in scipy. A middle axis equal to a neighbour is refused.

    Args: angles (..., 3), radians; convention of three letters.
    Returns: rotation matrix (..., 3, 3).
    Raises: ShapeError for another convention.

    >>> from_euler(torch.tensor([0.0, torch.pi, 0.0]), "ZYX").round().diagonal().tolist()
    [-1.0, 1.0, -1.0]

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    axes, extrinsic = _axes(convention)
    if angles.shape[-1:] != (3,):
        raise ShapeError(f"angles: expected a tensor (..., 3), got {describe(angles)}")
    half = angles / 2
    cos, sin, zero = half.cos(), half.sin(), torch.zeros_like(half[..., 0])
    turns = []
    for k, axis in enumerate(axes):
        parts = [cos[..., k], zero, zero, zero]
        parts[1 + axis] = sin[..., k]
        turns.append(torch.stack(parts, -1))
    first, second, third = reversed(turns) if extrinsic else turns
    return quaternion.to_matrix(quaternion.multiply(quaternion.multiply(first, second), third))


def to_euler(matrix: Float[Tensor, "*b 3 3"], convention: str) -> Float[Tensor, "*b 3"]:
    """Rotation matrix to the three angles of `from_euler`, by way of the quaternion (Bernardes & Viollet 2022, Alg. 1).

    The middle angle is in [-pi/2, pi/2] for three different axes and in [0, pi] for equal outer ones, the others in
    [-pi, pi]. Where the outer axes fall together (gimbal lock) the last one turned is 0; the gradient there is finite,
    and it grows without bound on the way.

    Args: matrix (..., 3, 3), a rotation; convention as in `from_euler`.
    Returns: angles (..., 3), radians.
    Raises: ShapeError for another convention.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    axes, fixed = _axes(convention)
    i, j, k = axes if fixed else axes[::-1]
    equal = i == k
    k = 3 - i - j if equal else k
    sign = (i - j) * (j - k) * (k - i) / 2
    rows = [[0.0, 0.0, 0.0] for _ in range(3)]
    rows[0][i], rows[1][j], rows[2][k] = 1.0, 1.0, sign
    return _to_euler(matrix, matrix.new_tensor([*rows, [equal, fixed, 1 if equal else sign]]))


@fused("rotations.to_euler", [(3, 3), (4, 3)], [(3,)])
def _to_euler(matrix: Float[Tensor, "*b 3 3"], axes: Float[Tensor, "*c 4 3"]) -> Float[Tensor, "*d 3"]:
    """axes: in rows the first, the second, and the third with its sign, or what is third where the outer ones are
    equal; then whether they are, whether the axes stay fixed, and the sign of the last angle."""
    quat = quaternion.from_matrix(matrix)
    w, (x, y, z) = quat[..., 0], (axes[..., :3, :] @ quat[..., 1:, None])[..., 0].unbind(-1)
    equal, fixed, sign = axes[..., 3, :].unbind(-1)
    equal, fixed = equal > 0, fixed > 0
    a, b = torch.where(equal, w, w - y), torch.where(equal, x, x + z)
    c, d = torch.where(equal, y, y + w), torch.where(equal, z, z - x)
    total, difference = _atan2(b, a), _atan2(d, c)
    low, high = c.square() + d.square(), a.square() + b.square()
    middle = 2 * _atan2(safe_sqrt(low), safe_sqrt(high))
    middle = torch.where(equal, middle, middle - torch.pi / 2)
    tiny = (8 * torch.finfo(matrix.dtype).eps) ** 2
    bottom, top = low < tiny, high < tiny
    # at a lock only the sum or the difference is there: all of it is the first turn's, none the last's
    lock = torch.where(bottom, 2 * total, torch.where(fixed, -2 * difference, 2 * difference))
    locked, zero = bottom | top, torch.zeros_like(total)
    first = torch.where(locked, torch.where(fixed, lock, zero), total - difference)
    last = torch.where(locked, torch.where(fixed, zero, lock), total + difference)
    last = sign * last
    first, last = torch.where(fixed, first, last), torch.where(fixed, last, first)
    return torch.stack([_wrap(first), middle, _wrap(last)], -1)


def project(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """The rotation nearest to any matrix in the Frobenius norm: U diag(1, 1, det(U V^T)) V^T of M = U S V^T.

    Where several are equally near (rank below two, or a reflection with its smallest singular values equal) the one
    nearest to the identity is returned, and the gradient along what is open is zero. Exact gradients elsewhere, also
    at equal singular values.

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    if matrix.dtype in (torch.float16, torch.bfloat16):
        return nearest_rotation(matrix.float())[0].to(matrix.dtype)
    return nearest_rotation(matrix)[0]


def mean(matrix: Float[Tensor, "*b n 3 3"], weights: Float[Tensor, "*c n"] | None = None) -> Float[Tensor, "*d 3 3"]:
    """The Karcher mean over the last batch dimension: sum_i w_i log(R^T R_i) = 0, by Newton's method.

    Starts from the projected arithmetic mean. Unique for rotations within pi/2 of one another; where they surround the
    sphere a stationary point near the start is returned. Differentiable to third order through the equation it solves.

    Args: matrix (..., N, 3, 3), N >= 1; weights (..., N), not negative, of any sum above zero.
    Returns: rotation matrix (..., 3, 3).
    Raises: ShapeError for an empty set, a negative weight, or weights that are all zero.

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    if matrix.ndim < 3 or matrix.shape[-3] == 0:
        raise ShapeError(f"matrix: expected rotations (..., N, 3, 3) with N of at least 1, got {describe(matrix)}")
    share = torch.ones_like(matrix[..., 0, 0]) if weights is None else check_weights(weights)
    share = (share / share.sum(-1, keepdim=True))[..., None]
    start = nearest_rotation((share[..., None] * matrix).sum(-3))[0].detach()
    for step in range(_NEWTON):
        kept = (share, matrix) if step >= _NEWTON - 2 else (share.detach(), matrix.detach())
        start = _newton(start, *kept)
    return start


def left_jacobian(rotvec: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """J with exp(v + dv) = exp(J dv) exp(v): I + s2 W + s3 W^2 (Sola et al. 2018, Eq. (145)).

    s2 = (1 - cos theta)/theta^2, s3 = (theta - sin theta)/theta^3, W = hat(rotvec).

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    _, sinc, cubic = _series.exponential(rotvec.square().sum(-1, keepdim=True))
    return _polynomial(rotvec, 0.5 * sinc.square(), cubic)


def left_jacobian_inverse(rotvec: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """The inverse of `left_jacobian`: I - W/2 + eta W^2, eta = (1 - (theta/2) cot(theta/2))/theta^2, theta < 2 pi.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    eta = _series.inverse_left(rotvec.square().sum(-1, keepdim=True))
    return _polynomial(rotvec, torch.full_like(eta, -0.5), eta)


def right_jacobian(rotvec: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """J with exp(v + dv) = exp(v) exp(J dv): the left one of -v.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return left_jacobian(-rotvec)


def right_jacobian_inverse(rotvec: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """The inverse of `right_jacobian`, for angles below 2 pi.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return left_jacobian_inverse(-rotvec)


def _polynomial(rotvec: Tensor, linear: Tensor, square: Tensor) -> Tensor:
    """I + linear W + square W^2, with W^2 = v v^T - |v|^2 I."""
    w = hat(rotvec)
    eye = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return eye + linear[..., None] * w + square[..., None] * (w @ w)


def _newton(start: Tensor, share: Tensor, matrix: Tensor) -> Tensor:
    tangent = log(start.mT[..., None, :, :] @ matrix)
    hessian = (share[..., None] * left_jacobian_inverse(tangent)).sum(-3)
    step = torch.linalg.solve(hessian, (share * tangent).sum(-2))
    return start @ exp(step)


def _unit(vector: Tensor, instead: Tensor, smallest: float = 0.0) -> Tensor:
    """vector/|vector| without overflow, or `instead` where it is no longer than `smallest`."""
    size = vector.detach().abs().amax(-1, keepdim=True)
    zero = size <= smallest
    kept = torch.where(zero, instead, vector / torch.where(zero, torch.ones_like(size), size))
    return kept / torch.linalg.vector_norm(kept, dim=-1, keepdim=True)


def _axes(convention: str) -> tuple[list[int], bool]:
    """Axis numbers, and whether they stay fixed."""
    extrinsic = isinstance(convention, str) and convention.islower()
    letters = "xyz" if extrinsic else "XYZ"
    if not isinstance(convention, str) or len(convention) != 3 or any(c not in letters for c in convention):
        raise ShapeError(f"convention: expected three axes like 'XYZ' or 'zyx', got {describe(convention)}")
    if convention[1] in (convention[0], convention[2]):
        raise ShapeError(f"convention: expected a middle axis unlike its neighbours, got {convention!r}")
    return [letters.index(c) for c in convention], extrinsic


def _atan2(y: Tensor, x: Tensor) -> Tensor:
    """atan2 with 0, and gradient 0, where both are 0."""
    zero = (y == 0) & (x == 0)
    return torch.atan2(y, torch.where(zero, torch.ones_like(x), x))


def _wrap(angle: Tensor) -> Tensor:
    """To [-pi, pi]."""
    return angle - 2 * torch.pi * torch.round(angle / (2 * torch.pi))
