"""Motion bases: each point's rigid motion is a blend of a few that all points share (Shape of Motion)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import describe
from geom.errors import ShapeError
from geom.lie import so3
from geom.skinning.influences import blend, check_influences, flatten_poses

__all__ = ["blend_bases", "motion_bases"]


def motion_bases(
    points: Float[Tensor, "*a p 3"],
    weights: Float[Tensor, "p k"],
    rotations: Float[Tensor, "*b j 6"],
    translations: Float[Tensor, "*b j 3"],
    *,
    indices: Int64[Tensor, "p k"] | None = None,
) -> Float[Tensor, "*c p 3"]:
    """R x + t with (R, t) of `blend_bases`: neither linear skinning, since every R is a rotation, nor dual quaternions.

    Args: points (P, 3), or (..., P, 3), each pose its own; the rest as `blend_bases`.
    Returns: (..., P, 3), the batches of points and bases broadcast.
    Raises: ShapeError.

    >>> turn = torch.tensor([[1.0, 0, 0, 0, 1, 0], [0, 1, 0, -1, 0, 0]])  # none, and a quarter about z
    >>> x = motion_bases(torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.5, 0.5]]), turn, torch.zeros(2, 3))
    >>> x
    tensor([[0.7071, 0.7071, 0.0000]])

    Guarantees: differentiable (parallel columns); deterministic; 2e-15 f64, 1e-6 f32 of the lengths involved
    """
    check_influences(points, weights, rotations, (6,), indices, "points", "rotations")
    moves = blend_bases(weights, rotations, translations, indices=indices)
    batch, points, moves = flatten_poses(points, moves.flatten(-2))
    x, y, z, t = moves.unflatten(-1, (3, 4)).unbind(-1)
    return (x * points[..., :1] + y * points[..., 1:2] + z * points[..., 2:] + t).reshape(*batch, *points.shape[-2:])


def blend_bases(
    weights: Float[Tensor, "p k"],
    rotations: Float[Tensor, "*b j 6"],
    translations: Float[Tensor, "*b j 3"],
    *,
    indices: Int64[Tensor, "p k"] | None = None,
) -> Float[Tensor, "*b p 3 4"]:
    """The rigid motion [R | t] of each point: R = GS(sum_k w_k r_k), t = sum_k w_k t_k, GS Gram-Schmidt.

    Rotations blend as six numbers, their first two columns, and are made orthonormal once (`geom.lie.so3.from_6d`).
    Where the blended columns vanish or are parallel, a coordinate axis stands in, with zero gradient: bases of opposite
    rotations give a rotation, if not a meaningful one.

    Args: weights (P, J), or (P, K) for the bases that `indices` name: of softmax, say; rotations (..., J, 6), the
    columns of `geom.lie.so3.to_6d`; translations (..., J, 3); indices (P, K) int64 in [0, J).
    Returns: (..., P, 3, 4): for `lbs`, bones with one for each point.
    Raises: ShapeError.
    Wang et al. 2024, Shape of Motion, Eq. (3).

    Guarantees: differentiable (parallel columns); deterministic; 1e-15 f64, 6e-7 f32 over the blended columns' length
    """
    check_influences(weights.new_zeros(len(weights), 3), weights, rotations, (6,), indices, "points", "rotations")
    own = (*rotations.shape[:-1], 3)
    if not isinstance(translations, Tensor) or translations.shape != own:
        raise ShapeError(f"translations: expected a tensor {own}, got {describe(translations)}")
    mixed = blend(weights, torch.cat([rotations, translations], -1), indices)
    return torch.cat([so3.from_6d(mixed[..., :6]), mixed[..., 6:, None]], -1)
