"""`pytorch3d.loss.chamfer_distance`, in padded batches."""

from typing import Any

import torch
from torch import Tensor

from geom.checks import check_choice, describe
from geom.compat.pytorch3d.ops.knn import knn_gather, knn_points
from geom.compat.pytorch3d.padding import Padded, inside, padded, pair
from geom.errors import ShapeError

__all__ = ["chamfer_distance"]

Loss = Tensor | tuple[Tensor, Tensor]


def chamfer_distance(
    x: Any,
    y: Any,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    x_normals: Tensor | None = None,
    y_normals: Tensor | None = None,
    weights: Tensor | None = None,
    batch_reduction: str | None = "mean",
    point_reduction: str | None = "mean",
    norm: int = 2,
    single_directional: bool = False,
    abs_cosine: bool = True,
) -> tuple[Loss, Loss | None]:
    """Distances of each point to the other cloud's nearest one, squared (norm 2) or L1, reduced over points and batch.

    Args: x (N, P1, D) and y (N, P2, D), float32 or float64, or objects like pytorch3d's Pointclouds, which bring
    lengths and normals; lengths (N,) int64; normals as the points; weights (N,), not negative, of the clouds;
    batch_reduction "mean" (over the weights' sum), "sum" or None; point_reduction "mean", "sum", "max" (of both
    directions) or None, the distances themselves, only with batch_reduction None; single_directional, only from x to y,
    else both, summed; abs_cosine, whether normals may point either way.
    Returns: the loss, and the same of 1 - |cos| between the normals of nearest points, None without normals. Tensors,
    or a pair of them, from x and from y, for point_reduction None.
    Raises: ShapeError.

    Guarantees: differentiable (coincident points); deterministic; 1e-15 f64, 1e-6 f32
    """
    check_choice(batch_reduction, ("mean", "sum", None), "batch_reduction")
    check_choice(point_reduction, ("mean", "sum", "max", None), "point_reduction")
    check_choice(norm, (1, 2), "norm")
    if point_reduction is None and batch_reduction is not None:
        raise ShapeError(f"batch_reduction: expected None, as point_reduction is, got {batch_reduction!r}")
    a, b = padded(x, x_lengths, x_normals, "x"), padded(y, y_lengths, y_normals, "y")
    pair(a, b, ("x", "y"))
    if point_reduction == "max" and (a.normals is not None or b.normals is not None):
        raise ShapeError('normals: expected None for point_reduction "max"')
    weights = _weights(weights, a.points)
    ways = [(a, b)] if single_directional else [(a, b), (b, a)]
    parts = [_one_way(here, there, weights, point_reduction, norm, abs_cosine) for here, there in ways]
    loss = _reduced([part[0] for part in parts], weights, point_reduction, batch_reduction)
    normals = [part[1] for part in parts if part[1] is not None]
    return loss, _reduced(normals, weights, point_reduction, batch_reduction) if normals else None


def _one_way(
    here: Padded, there: Padded, weights: Tensor | None, reduction: str | None, norm: int, abs_cosine: bool
) -> tuple[Tensor, Tensor | None]:
    found = knn_points(here.points, there.points, here.lengths, there.lengths, norm=norm)
    values = [found.dists[..., 0]]
    if here.normals is not None and there.normals is not None:
        near = knn_gather(there.normals, found.idx, there.lengths)[..., 0, :]
        cosine = torch.nn.functional.cosine_similarity(here.normals, near, dim=2, eps=1e-6)
        values.append(torch.where(inside(here), 1 - (cosine.abs() if abs_cosine else cosine), torch.zeros_like(cosine)))
    sizes = here.sizes().clamp(min=1)
    made = []
    for value in values:
        value = value if weights is None else value * weights[:, None]
        if reduction == "max":
            value = value.amax(1) if value.shape[1] else value.sum(1)
        elif reduction is not None:
            value = value.sum(1) / (sizes if reduction == "mean" else 1)
        made.append(value)
    return made[0], made[1] if len(made) > 1 else None


def _reduced(ways: list[Tensor], weights: Tensor | None, points: str | None, batch: str | None) -> Loss:
    if points is None:
        return (ways[0], ways[1]) if len(ways) > 1 else ways[0]
    total = torch.stack(ways).amax(0) if points == "max" else torch.stack(ways).sum(0)
    if batch is None:
        return total
    if batch == "sum":
        return total.sum()
    whole = torch.full_like(total.sum(), max(1, len(total))) if weights is None else weights.sum()
    return total.sum() / torch.where(whole == 0, torch.ones_like(whole), whole)


def _weights(weights: object, points: Tensor) -> Tensor | None:
    if weights is None:
        return None
    if not isinstance(weights, Tensor) or weights.shape != points.shape[:1]:
        raise ShapeError(f"weights: expected a tensor ({len(points)},), got {describe(weights)}")
    if not bool((weights >= 0).all()):
        raise ShapeError(f"weights: expected numbers of at least 0, got {weights.tolist()[:8]}")
    return weights.to(points)
