"""How sure a pose is: directions that the data do not hold, and a covariance that shared errors do not fool."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["DEGENERATE", "PoseUncertainty", "held_motions", "pose_uncertainty"]

DEGENERATE = 0.03  # real scenes hold every motion at 0.1 or more; noisy normals on a corridor make up 0.005 to 0.03
_FEW = 20  # groups below which their scatter says less than the residuals' variance


class PoseUncertainty(NamedTuple):
    """`covariance` (6, 6), its inverse `information` (6, 6), and orthonormal `degenerate_directions` (k, 6)."""

    covariance: Tensor
    information: Tensor
    degenerate_directions: Tensor


def held_motions(
    held_by: Float[Tensor, "6 6"], motion: Float[Tensor, "6 6"], count: int, radius: float
) -> tuple[Float[Tensor, "6"], Float[Tensor, "6 6"]]:
    """How far the surfaces hold each motion: `share` (6,) rising, and `unit` (6, 6), its twists in columns.

    share is the mean of (n . d)^2 over the mean of |d|^2, n the surface normal at a match and d the point's motion: the
    generalised eigenproblem held_by x = share motion x, free of units; below 0.03 a motion is degenerate. Each twist
    moves the points by a root mean square of one metre, or turns by 10/radius about an axis that all of them lie on.

    Args: held_by and motion (6, 6), sums over `count` matches of (n . d)^2 and |d|^2 as forms in twists about the
    cloud's centre; radius of the cloud, metres.
    """
    scale = torch.ones(6, dtype=torch.float64)
    scale[3:] = 1 / radius
    mean = scale[:, None] * scale / max(1, count)
    root = torch.linalg.cholesky(motion * mean + 0.01 * torch.eye(6, dtype=torch.float64))
    unit = scale[:, None] * torch.linalg.inv(root).T
    share, turn = torch.linalg.eigh(unit.T @ (held_by / max(1, count)) @ unit)
    return share, unit @ turn


def pose_uncertainty(
    hessian: Float[Tensor, "6 6"],
    share: Float[Tensor, "6"],
    unit: Float[Tensor, "6 6"],
    curvature: tuple[Float[Tensor, "6 6"], Float[Tensor, "6 6"]],
    scores: Float[Tensor, "n 6"],
    group: Int64[Tensor, " n"],
    *,
    residual_variance: float,
    radius: float,
    frame: Float[Tensor, "6 6"],
) -> PoseUncertainty:
    """Sandwich covariance K^-1 B K^-T of the pose where the gradient vanishes (Huber 1967; Liang and Zeger 1986).

    B = sum over groups of g g^T, g the sum of a group's scores: errors within a group may depend on each other
    (points matched to one neighbourhood share its points, normals and voxels), between groups they are independent. B
    is multiplied by m/(m - 7) for m groups; below 20 groups the residuals' variance times H takes its place. K is the
    gradient's own derivative, H corrected by what `curvature` found on a part of the points with matches free to
    change, within a twentieth of H and twice H.

    The variance of a degenerate direction is that of a root mean square motion of `radius`: nothing is known within the
    scene. No variance is below a motion of 1e-8 radius, so that exact data have a finite information.

    Args: hessian (6, 6) and scores (n, 6), the gradient of each match, in twists (v, omega) about the cloud's centre;
    share and unit, from `held_motions`; curvature, K and H on a part of the points; group (n,); residual_variance, of
    the weighted residuals; radius of the cloud, metres; frame (6, 6), from those twists to the ones reported.
    """
    held, to_twist = share >= DEGENERATE, frame @ unit

    def reduced(matrix: Tensor) -> Tensor:
        return (unit.T @ matrix @ unit)[held][:, held]

    h = reduced(hessian)
    inverse = _inverse_slope(h, *map(reduced, curvature))
    ids, index = torch.unique(group, return_inverse=True)
    count = len(ids)
    if count < _FEW:
        middle = residual_variance * h
    else:
        sums = scores.new_zeros((count, 6)).index_add(0, index, scores)
        sums = (sums @ unit)[:, held]
        middle = count / (count - 7) * sums.T @ sums
    spread = inverse @ middle @ inverse
    spread = spread + (1e-8 * radius) ** 2 * torch.eye(len(spread), dtype=torch.float64)
    variance = torch.diag(torch.full((6,), radius**2, dtype=torch.float64))
    certainty = torch.diag(torch.full((6,), radius**-2, dtype=torch.float64))
    place = held.nonzero()[:, 0]
    variance[place[:, None], place] = spread
    certainty[place[:, None], place] = torch.linalg.inv(spread)
    from_twist = torch.linalg.inv(to_twist)
    covariance, information = to_twist @ variance @ to_twist.T, from_twist.T @ certainty @ from_twist
    directions = torch.linalg.qr(to_twist[:, ~held]).Q.T
    return PoseUncertainty((covariance + covariance.T) / 2, (information + information.T) / 2, directions)


def _inverse_slope(h: Tensor, k_part: Tensor, h_part: Tensor) -> Tensor:
    """K^-1 with K = H^(1/2) S H^(1/2), S = h_part^(-1/2) k_part h_part^(-1/2) symmetric, eigenvalues in [1/20, 2]."""
    root = _power(h_part, -0.5)
    share = root @ k_part @ root
    values, vectors = torch.linalg.eigh((share + share.T) / 2)
    inner = vectors / values.clamp(0.05, 2.0) @ vectors.T
    half = _power(h, -0.5)
    return half @ inner @ half


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    least = values.amax().clamp(min=1e-300) * 1e-12 if len(values) else 0.0
    return vectors * values.clamp(min=least) ** exponent @ vectors.T
