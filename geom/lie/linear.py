"""GL+(n), SL(n) and SPD(n) for n = 2, 3, on matrices (..., n, n): decompositions and one global chart.

A chart of GL+(n) and SL(n) is the polar one, xi(v) = exp(symmetric part) exp(skew part): onto the whole group, unlike
the matrix exponential (diag(-2, -1/2) has no real logarithm), and smooth both ways but at rotation angle pi.
Coordinates are orthonormal for <X, Y> = tr(X^T Y), rotations too: an angle theta has the coordinate sqrt(2) theta.

Derivatives are exact to second order wherever they exist, at equal singular values too, in forward and reverse mode;
third derivatives are not carried. Determinants are checked where numbers can be looked at, so not inside
torch.compile and torch.func transforms.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import FLOATS, check_choice, describe, readable
from geom.errors import ShapeError
from geom.lie import _spectral, quaternion

__all__ = [
    "basis",
    "hat",
    "vee",
    "exp",
    "log",
    "polar",
    "iwasawa",
    "cartan",
    "spd_exp",
    "spd_log",
    "spd_sqrt",
    "spd_inverse_sqrt",
]

_SIZE = {("gl", 4): 2, ("gl", 9): 3, ("sl", 3): 2, ("sl", 8): 3}  # (group, dimension): n
_DIAGONALS = {  # orthonormal, as rows
    ("gl", 2): [[1.0, 0.0], [0.0, 1.0]],
    ("gl", 3): [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    ("sl", 2): [[math.sqrt(1 / 2), -math.sqrt(1 / 2)]],
    ("sl", 3): [[math.sqrt(1 / 2), -math.sqrt(1 / 2), 0.0], [math.sqrt(1 / 6), math.sqrt(1 / 6), -math.sqrt(2 / 3)]],
}
_PAIRS = {2: [(0, 1)], 3: [(1, 2), (2, 0), (0, 1)]}  # of axes; the rotations by them are about x, y, z for n = 3


# --- the algebra -----------------------------------------------------------------------------------------------------


def basis(
    n: int, *, group: str = "gl", dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "d n n"]:
    """Orthonormal basis of the Lie algebra: diagonal, then symmetric off-diagonal, then skew matrices.

    Diagonal: E_ii for "gl"; diag(1,-1)/sqrt 2, for n = 3 also diag(1,1,-2)/sqrt 6, for "sl". Off-diagonal:
    (E_ij + E_ji)/sqrt 2, skew: (E_ji - E_ij)/sqrt 2, for ij = 12, or for n = 3 for ij = 23, 31, 12: `so3.hat`'s
    generators about x, y, z over sqrt 2.

    Args: n, 2 or 3; group, "gl" or "sl"; dtype, torch's default if not given.
    Returns: (d, n, n), d = n^2 for "gl" and n^2 - 1 for "sl"; tr(B_a^T B_b) = 1 if a = b else 0.
    Raises: ShapeError for another n or group.

    >>> basis(2, group="sl").shape
    torch.Size([3, 2, 2])

    Guarantees: not differentiable; deterministic; 1e-16 f64, 6e-8 f32
    """
    check_choice(n, (2, 3), "n")
    check_choice(group, ("gl", "sl"), "group")
    # numbers first: nothing here needs a device before the end
    rows = [[[d[i] if i == j else 0.0 for j in range(n)] for i in range(n)] for d in _DIAGONALS[group, n]]
    for sign in (1.0, -1.0):
        for i, j in _PAIRS[n]:
            element = [[0.0] * n for _ in range(n)]
            element[j][i], element[i][j] = math.sqrt(1 / 2), sign * math.sqrt(1 / 2)
            rows.append(element)
    return torch.tensor(rows, dtype=dtype, device=device)


def hat(coordinates: Float[Tensor, "*b d"], *, group: str = "gl") -> Float[Tensor, "*b n n"]:
    """Coordinates to the matrix sum_a v_a B_a over `basis`.

    Args: coordinates (..., d), d = n^2 for "gl", n^2 - 1 for "sl"; float32 or float64.
    Returns: (..., n, n).
    Raises: ShapeError for another d or group.

    Guarantees: differentiable; deterministic; 2e-16 f64, 1e-7 f32
    """
    n = _size(coordinates, group)
    elements = basis(n, group=group, dtype=coordinates.dtype, device=coordinates.device)
    return torch.einsum("...d,dij->...ij", coordinates, elements)


def vee(matrix: Float[Tensor, "*b n n"], *, group: str = "gl") -> Float[Tensor, "*b d"]:
    """Coordinates tr(B_a^T X) over `basis`: the inverse of `hat`; for "sl" the trace is projected away.

    Args: matrix (..., n, n), n = 2 or 3; float32 or float64.
    Returns: (..., d).
    Raises: ShapeError for another shape or group.

    Guarantees: differentiable; deterministic; 2e-16 f64, 1e-7 f32
    """
    n = _check_square(matrix)
    elements = basis(n, group=group, dtype=matrix.dtype, device=matrix.device)
    return torch.einsum("...ij,dij->...d", matrix, elements)


# --- the chart -------------------------------------------------------------------------------------------------------


def exp(coordinates: Float[Tensor, "*b d"], *, group: str = "gl") -> Float[Tensor, "*b n n"]:
    """The chart xi(v) = exp(S) exp(W), S and W the symmetric and the skew part of hat(v).

    Not the group's exponential map unless one part is zero. d xi at v = 0 is `hat`.

    Args: coordinates (..., d), any; float32 or float64.
    Returns: element (..., n, n), det > 0; det = 1 for "sl".
    Raises: ShapeError for another d or group.

    Guarantees: differentiable (0, pi, equal eigenvalues); deterministic; 4e-15 f64, 6e-7 f32 of the norm
    """
    n = _size(coordinates, group)
    split = coordinates.shape[-1] - len(_PAIRS[n])
    elements = basis(n, group=group, dtype=coordinates.dtype, device=coordinates.device)
    even = torch.einsum("...d,dij->...ij", coordinates[..., :split], elements[:split])
    return spd_exp(even) @ _rotation(coordinates[..., split:] * math.sqrt(1 / 2))


def log(element: Float[Tensor, "*b n n"], *, group: str = "gl") -> Float[Tensor, "*b d"]:
    """The chart's inverse: vee(log P + log R) for g = P R; rotation angles in (-pi, pi], or [0, pi] for n = 3.

    The coordinates of a matrix of condition k are good to k times rounding; exp(log(g)) gives back g to rounding.
    For "sl" it is that of g / det(g)^(1/n). Smooth but where R has angle pi: there one of the two sides' values.

    Args: element (..., n, n), n = 2 or 3, det > 0; float32 or float64.
    Returns: coordinates (..., d), d = n^2 for "gl", n^2 - 1 for "sl".
    Raises: ShapeError for another shape or group, or where det <= 0.

    >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> round(log(3 * quarter)[3].item() / 2**0.5, 4)
    1.5708

    Guarantees: differentiable (0, pi, equal singular values); deterministic; exp(log(g)): 4e-14 f64, 6e-6 f32 of |g|
    """
    n = _check_square(element)
    _check_oriented(element)
    u, s, vh, shift = _spectral.singular(element)
    positive, rotation = _spectral.polar(s, shift)
    even = _spectral.rotate(u, _spectral.expand(_spectral.log_table(s), positive - torch.diag_embed(s)))
    turn = _rotation_log(u @ rotation @ vh) * math.sqrt(2)
    elements = basis(n, group=group, dtype=element.dtype, device=element.device)[: -len(_PAIRS[n])]
    return torch.cat([torch.einsum("...ij,dij->...d", even, elements), turn], -1)


# --- decompositions --------------------------------------------------------------------------------------------------


def polar(element: Float[Tensor, "*b n n"]) -> tuple[Float[Tensor, "*b n n"], Float[Tensor, "*b n n"]]:
    """Left polar decomposition g = P R, P symmetric positive definite, R a rotation: `P @ R` gives back g.

    From the singular values of g itself, so of condition k and not k^2; P is symmetric to the last bit.

    Args: element (..., n, n), n = 2 or 3, det > 0; float32 or float64.
    Returns: P (..., n, n), R (..., n, n).
    Raises: ShapeError for another shape, or where det <= 0.

    Guarantees: differentiable (equal singular values); deterministic; P R: 2e-14 f64, 6e-7 f32 of |g|, R^T R: same
    """
    _check_square(element)
    _check_oriented(element)
    u, s, vh, shift = _spectral.singular(element)
    positive, rotation = _spectral.polar(s, shift)
    return _spectral.rotate(u, positive), u @ rotation @ vh


def iwasawa(
    element: Float[Tensor, "*b n n"],
) -> tuple[Float[Tensor, "*b n n"], Float[Tensor, "*b n"], Float[Tensor, "*b n n"]]:
    """Iwasawa decomposition g = K A N: `k * a[..., None, :] @ n` gives back g, which is unique.

    k is a rotation, a the positive diagonal of A, n upper triangular with ones on its diagonal (Householder QR).

    Args: element (..., n, n), n = 2 or 3, det > 0; float32 or float64.
    Returns: k (..., n, n), a (..., n), n (..., n, n).
    Raises: ShapeError for another shape, or where det <= 0.

    Guarantees: differentiable; deterministic; K A N: 4e-15 f64, 2e-6 f32 of |g|, k^T k: same
    """
    _check_square(element)
    _check_oriented(element)
    q, r = torch.linalg.qr(element)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    sign = torch.where(diagonal.detach() < 0, -torch.ones_like(diagonal), torch.ones_like(diagonal))
    return q * sign[..., None, :], diagonal * sign, r / diagonal[..., None]


def cartan(
    element: Float[Tensor, "*b n n"],
) -> tuple[Float[Tensor, "*b n n"], Float[Tensor, "*b n"], Float[Tensor, "*b n n"]]:
    """Cartan decomposition g = K1 A K2: `k1 * a[..., None, :] @ k2` gives back g, with rotations k1 and k2.

    Where two of a agree to 64 eps of the greatest, k1 and k2 are not unique and have no derivative: they get none
    towards turning those two axes. Elsewhere derivatives are exact to second order, and grow as the inverse of the gap.

    Args: element (..., n, n), n = 2 or 3, det > 0; float32 or float64.
    Returns: k1 (..., n, n), a (..., n) positive and falling, k2 (..., n, n).
    Raises: ShapeError for another shape, or where det <= 0.

    Guarantees: differentiable (finite where singular values are equal); deterministic; K1 A K2: 2e-14 f64, 6e-7 f32
    of |g|
    """
    n = _check_square(element)
    _check_oriented(element)
    u, s, vh, shift = _spectral.singular(element)
    si, sj = s[..., :, None], s[..., None, :]
    tie = (si - sj).abs() <= 64 * torch.finfo(s.dtype).eps * s[..., :1, None]
    weight = torch.where(tie, 0, 1 / torch.where(tie, 1, (sj - si) * (sj + si)))
    x, one = torch.diag_embed(s) + shift, torch.eye(n, dtype=s.dtype, device=s.device)
    left = right = one
    for _ in range(2):  # exp(-A) X exp(B) is diagonal to first order, then to second
        a, b = (x * sj + x.mT * si) * weight, (x * si + x.mT * sj) * weight
        turn_left, turn_right = one + a + a @ a / 2, one + b + b @ b / 2
        left, right, x = left @ turn_left, right @ turn_right, turn_left.mT @ x @ turn_right
    # both frames may be left-handed: turn the last axis of each
    sign = torch.cat([torch.ones_like(s[..., 1:]), torch.linalg.det(u).sign()[..., None]], -1)
    return u @ left * sign[..., None, :], x.diagonal(dim1=-2, dim2=-1), sign[..., None] * (right.mT @ vh)


# --- symmetric matrices ----------------------------------------------------------------------------------------------


def spd_exp(matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """Exponential of a symmetric matrix: V exp(diag(e)) V^T, symmetric positive definite.

    Args: matrix (..., n, n), n = 2 or 3, read as its symmetric part; float32 or float64.
    Returns: (..., n, n).
    Raises: ShapeError for another shape.

    Guarantees: differentiable (equal eigenvalues); deterministic; 1e-15 f64, 2e-7 f32 of the norm, times 1 + |X|
    """
    _check_square(matrix)
    frame, values, shift = _spectral.symmetric(matrix)
    return _spectral.rotate(frame, _spectral.expand(_spectral.exp_table(values), shift))


def spd_log(matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """Logarithm of a symmetric positive definite matrix: the inverse of `spd_exp`.

    Args: matrix (..., n, n), n = 2 or 3, read as its symmetric part; float32 or float64.
    Returns: symmetric (..., n, n), good to the condition number times rounding.
    Raises: ShapeError for another shape, or where an eigenvalue is not above 0.

    Guarantees: differentiable (equal eigenvalues); deterministic; spd_exp(spd_log(P)): 4e-14 f64, 6e-6 f32 of |P|
    """
    frame, values, shift = _positive(matrix)
    return _spectral.rotate(frame, _spectral.expand(_spectral.log_table(values), shift))


def spd_sqrt(matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """The symmetric positive definite square root of one.

    Args: matrix (..., n, n), n = 2 or 3, read as its symmetric part; float32 or float64.
    Returns: (..., n, n).
    Raises: ShapeError for another shape, or where an eigenvalue is not above 0.

    Guarantees: differentiable (equal eigenvalues); deterministic; its square: 8e-15 f64, 2e-6 f32 of |P|
    """
    frame, values, shift = _positive(matrix)
    return _spectral.rotate(frame, _spectral.expand(_spectral.sqrt_table(values), shift))


def spd_inverse_sqrt(matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """The inverse of the symmetric positive definite square root: what whitens data of this covariance.

    Args: matrix (..., n, n), n = 2 or 3, read as its symmetric part; float32 or float64.
    Returns: (..., n, n), good to the condition number times rounding.
    Raises: ShapeError for another shape, or where an eigenvalue is not above 0.

    Guarantees: differentiable (equal eigenvalues); deterministic; 4e-15 f64, 1e-6 f32 times the condition number
    """
    frame, values, shift = _positive(matrix)
    return _spectral.rotate(frame, _spectral.expand(_spectral.inverse_sqrt_table(values), shift))


def _positive(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_spectral.symmetric`, checked to be positive definite."""
    _check_square(matrix)
    frame, values, shift = _spectral.symmetric(matrix)
    if readable(values) and not bool((values[..., 0] > 0).all()):
        raise ShapeError(f"matrix: expected eigenvalues above 0, got {values[..., 0].min():.3g} as the least")
    return frame, values, shift


def _rotation(turn: Tensor) -> Tensor:
    """Angle (..., 1) or rotation vector (..., 3) to a rotation matrix."""
    if turn.shape[-1] == 3:
        return quaternion.to_matrix(quaternion.exp(turn))
    cos, sin = turn.cos(), turn.sin()
    return torch.cat([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))


def _rotation_log(rotation: Tensor) -> Tensor:
    """Rotation matrix to its angle (..., 1) in (-pi, pi], or its rotation vector (..., 3)."""
    if rotation.shape[-1] == 3:
        return quaternion.log(quaternion.from_matrix(rotation))
    a, b, c, d = rotation.flatten(-2).split(1, -1)
    return torch.atan2(c - b + 0.0, a + d)  # -0.0 + 0.0 is 0.0: pi, not -pi


def _size(coordinates: object, group: str) -> int:
    """n of coordinates (..., d)."""
    check_choice(group, ("gl", "sl"), "group")
    dims = [(d,) for g, d in _SIZE if g == group]
    if not isinstance(coordinates, Tensor) or coordinates.dtype not in FLOATS or coordinates.shape[-1:] not in dims:
        want = " or ".join(f"(..., {d})" for (d,) in dims)
        raise ShapeError(f"coordinates: expected a float32 or float64 tensor {want}, got {describe(coordinates)}")
    return _SIZE[group, coordinates.shape[-1]]


def _check_square(matrix: Tensor) -> int:
    """n of matrices (..., n, n)."""
    if not isinstance(matrix, Tensor) or matrix.dtype not in FLOATS or matrix.shape[-2:] not in ((2, 2), (3, 3)):
        raise ShapeError(f"expected a float32 or float64 tensor (..., 2, 2) or (..., 3, 3), got {describe(matrix)}")
    return matrix.shape[-1]


def _check_oriented(element: Tensor) -> None:
    if readable(element):
        det = torch.linalg.det(element.detach().double())
        if not bool((det > 0).all()):
            raise ShapeError(f"expected determinants above 0, got {det[~(det > 0)].flatten()[0]:.3g}")
