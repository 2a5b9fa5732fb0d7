"""Exact nearest neighbours and radius search in one call.

Each has a Warp kernel (CPU and CUDA), through a `NeighborTree` that is built and forgotten, and a torch twin by brute
force, which is its oracle.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from geom.points.cloud import Points, as_points, bounds, offsets_of
from geom.points.tree import Neighborhoods, Neighbors, NeighborTree, checked_query, distances, square_limit

__all__ = ["ball_query", "knn", "radius_search"]

_CHUNK = 1 << 22  # distances the twin holds at once


def knn(
    query: Points | Tensor,
    points: Points | Tensor,
    k: int,
    *,
    query_offsets: Tensor | None = None,
    offsets: Tensor | None = None,
    max_distance: float | None = None,
    backend: str = "auto",
) -> Neighbors:
    """The k nearest points of each query, exactly, by Euclidean distance; ties go to the lower index.

    Args: query (N, 3) and points (M, 3), tensors or Points, of one dtype and device; k >= 1; offsets of the ragged
    batches, query cloud b against point cloud b, indices into the whole of `points`; max_distance: neighbours farther
    are missing; backend "auto", "warp" (a tree) or "torch" (brute force, the oracle; "auto" under torch.func).
    Returns: Neighbors(index (N, k) int64, distance (N, k)), nearest first; -1 and inf where there are fewer than k.
    Gradients flow through the distances to both; at distance 0 the gradient is 0.
    Raises: ShapeError.

    >>> line = torch.tensor([[0., 0, 0], [1, 0, 0], [3, 0, 0]])
    >>> knn(line, line, 2).index.tolist()
    [[0, 1], [1, 0], [2, 1]]

    Guarantees: differentiable (coincident points); deterministic; 4e-16 f64, 3e-7 f32
    """
    from geom.kernels import bridge

    cloud = as_points(points, offsets=offsets)
    tensors = (cloud.positions, query.positions if isinstance(query, Points) else query)
    if bridge.choose(backend, *(t for t in tensors if isinstance(t, Tensor))):
        return NeighborTree.build(cloud).knn(query, k, offsets=query_offsets, max_distance=max_distance)
    starts = bounds(cloud)
    asked, query_bounds = checked_query(query, query_offsets, cloud.positions, starts, k)
    limit = square_limit(max_distance)
    index = [asked.new_empty((0, k), dtype=torch.int64)]
    for q, p, start in _pairs(asked.detach(), query_bounds, cloud.positions.detach(), starts):
        square, order = (q[:, None] - p).square().sum(-1).sort(stable=True, dim=-1)
        near = torch.where(square > limit, -1, order + start)[:, :k]
        index.append(torch.nn.functional.pad(near, (0, k - near.shape[1]), value=-1))
    ids = torch.cat(index)
    return Neighbors(ids, distances(asked, cloud.positions, ids))


def radius_search(
    query: Points | Tensor,
    points: Points | Tensor,
    radius: float,
    *,
    query_offsets: Tensor | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Neighborhoods:
    """All points at a distance of at most `radius` from each query, exactly, as a ragged list.

    Args: as `knn`; radius in the unit of the points.
    Returns: Neighborhoods(index (M,) int64, distance (M,), offsets (N+1,) int64), each query's by rising index.
    How many there are depends on the data: not under torch.func.vmap, nor torch.compile(fullgraph=True).
    Raises: ShapeError.

    >>> line = torch.tensor([[0., 0, 0], [1, 0, 0], [3, 0, 0]])
    >>> radius_search(line, line, 1.5).offsets.tolist()
    [0, 2, 4, 5]

    Guarantees: differentiable (coincident points); deterministic; 4e-16 f64, 3e-7 f32
    """
    from geom.kernels import bridge

    cloud = as_points(points, offsets=offsets)
    tensors = (cloud.positions, query.positions if isinstance(query, Points) else query)
    if bridge.choose(backend, *(t for t in tensors if isinstance(t, Tensor))):
        return NeighborTree.build(cloud).radius_search(query, radius, offsets=query_offsets)
    starts = bounds(cloud)
    asked, query_bounds = checked_query(query, query_offsets, cloud.positions, starts, 1)
    square_radius = square_limit(radius, "radius")
    index, count = [query_bounds.new_empty(0)], [query_bounds.new_empty(0)]
    for q, p, start in _pairs(asked.detach(), query_bounds, cloud.positions.detach(), starts):
        gap = (q[:, None] - p).square().sum(-1)
        row, column = (gap <= square_radius).nonzero(as_tuple=True)
        index.append(column + start)
        count.append(torch.bincount(row, minlength=len(q)))
    ids, counts = torch.cat(index), torch.cat(count)
    owner = torch.repeat_interleave(torch.arange(len(asked), device=asked.device), counts)
    distance = distances(asked[owner], cloud.positions, ids[:, None])[:, 0]
    return Neighborhoods(ids, distance, offsets_of(counts))


def ball_query(
    query: Points | Tensor,
    points: Points | Tensor,
    radius: float,
    k: int,
    *,
    query_offsets: Tensor | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Neighbors:
    """The first k points, by index, nearer than `radius` to each query: neighbourhoods of one size.

    Unlike `radius_search`, a point at a distance of just `radius` stays out (the ball query of PointNet++).

    Args: as `knn`; radius in the unit of the points.
    Returns: Neighbors(index (N, k) int64, distance (N, k)), by rising index; -1 and inf where there are fewer than k.
    Gradients flow through the distances to both; at distance 0 the gradient is 0.
    Raises: ShapeError.

    >>> line = torch.tensor([[0., 0, 0], [1, 0, 0], [3, 0, 0]])
    >>> ball_query(line, line, 1.5, 2).index.tolist()
    [[0, 1], [0, 1], [2, -1]]

    Guarantees: differentiable (coincident points); deterministic; 4e-16 f64, 3e-7 f32
    """
    from geom.kernels import bridge

    cloud = as_points(points, offsets=offsets)
    tensors = (cloud.positions, query.positions if isinstance(query, Points) else query)
    if bridge.choose(backend, *(t for t in tensors if isinstance(t, Tensor))):
        return NeighborTree.build(cloud).ball_query(query, radius, k, offsets=query_offsets)
    starts = bounds(cloud)
    asked, query_bounds = checked_query(query, query_offsets, cloud.positions, starts, k)
    square_radius = square_limit(radius, "radius")
    index = [asked.new_empty((0, k), dtype=torch.int64)]
    for q, p, start in _pairs(asked.detach(), query_bounds, cloud.positions.detach(), starts):
        inside = (q[:, None] - p).square().sum(-1) < square_radius
        place = torch.arange(len(p), device=p.device)
        first = torch.where(inside, place, len(p)).sort(dim=-1).values[:, :k]
        near = torch.where(first < len(p), first + start, -1)
        index.append(torch.nn.functional.pad(near, (0, k - near.shape[1]), value=-1))
    ids = torch.cat(index)
    return Neighbors(ids, distances(asked, cloud.positions, ids))


def _pairs(
    query: Tensor, query_offsets: Tensor, points: Tensor, offsets: Tensor
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The twin's work: (chunk of queries, their cloud's points, index of its first point)."""
    for a, b, start, stop in zip(query_offsets[:-1], query_offsets[1:], offsets[:-1], offsets[1:], strict=True):
        rows = query[int(a) : int(b)]
        for chunk in rows.split(max(1, _CHUNK // max(1, int(stop - start)))) if len(rows) else ():
            yield chunk, points[int(start) : int(stop)], int(start)
