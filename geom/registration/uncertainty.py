"""How sure a pose is: directions that the data do not hold, and a covariance that shared errors do not fool."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["PoseUncertainty", "pose_uncertainty", "twist_adjoint"]

DEGENERATE = 0.01  # mean of (normal . motion)^2 below which a direction counts as not held
_FEW = 20  # groups below which their scatter says less than the residuals' variance


class PoseUncertainty(NamedTuple):
    """`covariance` (6, 6), its inverse `information` (6, 6), and orthonormal `degenerate_directions` (k, 6)."""

    covariance: Tensor
    information: Tensor
    degenerate_directions: Tensor


def twist_adjoint(rotation: Float[Tensor, "3 3"], translation: Float[Tensor, "3"]) -> Float[Tensor, "6 6"]:
    """Ad_T for twists (v, omega): T exp(xi) = exp(Ad_T xi) T, with blocks [[R, [t]x R], [0, R]]."""
    columns = torch.linalg.cross(translation[:, None].expand(3, 3), rotation, dim=0)
    top = torch.cat([rotation, columns], -1)
    return torch.cat([top, torch.cat([torch.zeros_like(rotation), rotation], -1)])


def pose_uncertainty(
    hessian: Float[Tensor, "6 6"],
    held_by: Float[Tensor, "6 6"],
    curvature: tuple[Float[Tensor, "6 6"], Float[Tensor, "6 6"]],
    scores: Float[Tensor, "n 6"],
    group: Int64[Tensor, " n"],
    *,
    residual_variance: float,
    radius: float,
    frame: Float[Tensor, "6 6"],
) -> PoseUncertainty:
    """Sandwich covariance K^-1 B K^-T of the pose where the gradient vanishes (Huber 1967; Liang and Zeger 1986).

    B = sum over groups of g g^T, g the sum of a group's scores: errors within a group may depend on each other in any way
    (points matched to one neighbourhood share its points, normals and voxels), between groups they are independent. B
    is multiplied by m/(m - 7) for m groups; below 20 groups the residuals' variance times H takes its place. K is the
    gradient's own derivative, H corrected by what `curvature` found on a part of the points with matches free to
    change, within a twentieth of H and twice H.

    A direction is degenerate where `held_by`, the mean over the matches of (n . d)^2 with n the surface normal and d the
    point's motion, rotations measured by the arc at `radius`, is below 0.01. Its variance is set to radius^2: nothing
    is known within the scene. No variance is below (1e-8 radius)^2, so that exact data have a finite information.

    Args: hessian, held_by (6, 6) and scores (n, 6), the gradient of each match, in twists (v, omega) about the cloud's
    centre; group (n,); residual_variance, of the weighted residuals; radius of the cloud, metres; frame (6, 6), from
    those twists to the ones reported.
    """
    scale = torch.ones(6, dtype=torch.float64)
    scale[3:] = 1 / radius
    share, basis = torch.linalg.eigh(held_by * scale[:, None] * scale)
    held = share >= DEGENERATE
    to_twist = frame * scale @ basis  # from the basis, where everything is in metres, to the reported twists
    def reduced(matrix: Tensor) -> Tensor:
        return (basis.T @ (matrix * scale[:, None] * scale) @ basis)[held][:, held]

    h = reduced(hessian)
    inverse = _inverse_slope(h, *map(reduced, curvature))
    ids, index = torch.unique(group, return_inverse=True)
    count = len(ids)
    if count < _FEW:
        middle = residual_variance * h
    else:
        sums = scores.new_zeros((count, 6)).index_add(0, index, scores)
        sums = (sums * scale @ basis)[:, held]
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
    """K^-1 with K = H^(1/2) S H^(1/2), S = h_part^(-1/2) k_part h_part^(-1/2) symmetric with eigenvalues in [1/20, 2]."""
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
