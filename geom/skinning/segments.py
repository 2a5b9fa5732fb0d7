"""Bones as segments: how far places are from them, and the boundary conditions that handles set."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_indices, check_points, check_same, describe
from geom.errors import ShapeError

__all__ = ["HandleConditions", "cage_conditions", "check_segments", "handle_conditions", "nearest_on_segments"]


class HandleConditions(NamedTuple):
    """`fixed` (F,) int64, the vertices on handles, rising; `values` (F, J), their weights, rows of sum 1."""

    fixed: Tensor
    values: Tensor


def handle_conditions(
    vertices: Float[Tensor, "v 3"], segments: Float[Tensor, "j 2 3"], *, tolerance: float = 1e-6
) -> HandleConditions:
    """What vertices that lie on bones and points are fixed to: 1 for their handle, 0 for the others.

    Args:
        vertices: (V, 3), metres. segments: the ends of each bone; a point is a bone of length 0.
        tolerance: how far from a handle a vertex still lies on it, as a share of the vertices' extent.
    Returns: HandleConditions; a vertex on several handles, as at a joint, is shared evenly.
    Raises: ShapeError, also for a handle without a vertex.
    Jacobson et al. 2011, Eq. (3).

    >>> line = torch.tensor([[0., 0, 0], [0.5, 0, 0], [1, 0, 0], [2, 0, 0]])
    >>> found = handle_conditions(line, torch.stack([line[:2], line[1:3]]))
    >>> found.fixed.tolist(), found.values.tolist()
    ([0, 1, 2], [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])

    Guarantees: not differentiable; deterministic; exact f64, exact f32
    """
    check_segments(vertices, segments)
    near = _extent(vertices) * tolerance
    on = nearest_on_segments(vertices.detach(), segments.detach())[0] <= near
    empty = (~on.any(0)).nonzero()[:, 0].tolist()
    if empty:
        raise ShapeError(f"segments: expected a vertex within {near:.2g} m of each, got none for {empty[:8]}")
    fixed = on.any(1).nonzero()[:, 0]
    values = on[fixed].to(vertices.dtype)
    return HandleConditions(fixed, values / values.sum(1, keepdim=True))


def cage_conditions(
    vertices: Float[Tensor, "v 3"],
    cage: Float[Tensor, "c 3"],
    edges: Int64[Tensor, "e 2"],
    *,
    tolerance: float = 1e-6,
) -> HandleConditions:
    """What vertices on the edges of a cage are fixed to: linear along an edge between the handles at its two ends.

    Args: as `handle_conditions`; cage, one handle a corner; edges, int64, pairs of corners.
    Returns: HandleConditions with values (F, C); of several edges the first that is nearest counts.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; 1e-15 f64, 5e-7 f32
    """
    check_points(cage, "cage", minimum=1)
    check_indices(edges, 2, len(cage), "edges", "E")
    segments = cage[edges].detach()
    check_segments(vertices, segments)
    distance, share = nearest_on_segments(vertices.detach(), segments)
    least, which = distance.min(1)
    fixed = (least <= _extent(vertices) * tolerance).nonzero()[:, 0]
    share, which = share[fixed].gather(1, which[fixed, None]), which[fixed]
    values = vertices.new_zeros(len(fixed), len(cage)).scatter_add(1, edges[which], torch.cat([1 - share, share], 1))
    return HandleConditions(fixed, values)


def nearest_on_segments(
    points: Float[Tensor, "n 3"], segments: Float[Tensor, "j 2 3"]
) -> tuple[Float[Tensor, "n j"], Float[Tensor, "n j"]]:
    """Distances of points from segments, and where along each, in [0, 1], the nearest place lies."""
    start, way = segments[:, 0], segments[:, 1] - segments[:, 0]
    square = way.square().sum(-1)
    from_start = points[:, None] - start
    share = ((from_start * way).sum(-1) / torch.where(square > 0, square, 1.0)).clamp(0, 1)
    return (from_start - share[..., None] * way).norm(dim=-1), share


def check_segments(points: Tensor, segments: Tensor) -> None:
    """Raises: ShapeError unless these are points (N, 3), at least one, and finite segments (J, 2, 3), at least one."""
    check_points(points, "vertices", minimum=1)
    if not isinstance(segments, Tensor) or segments.ndim != 3 or segments.shape[1:] != (2, 3) or not len(segments):
        raise ShapeError(f"segments: expected a float tensor (J, 2, 3), J at least 1, got {describe(segments)}")
    check_same(segments, points, "segments and vertices")
    check_points(segments.reshape(-1, 3), "segments")


def _extent(vertices: Tensor) -> float:
    return float((vertices.amax(0) - vertices.amin(0)).norm())
