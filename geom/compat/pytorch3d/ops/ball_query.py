"""`pytorch3d.ops.ball_query`: the first K points inside a ball, in padded batches."""

from torch import Tensor

from geom.checks import describe
from geom.compat.pytorch3d.ops.knn import KNN, distances, spread
from geom.compat.pytorch3d.padding import gather, padded, pair, ragged
from geom.errors import ShapeError
from geom.points import neighbors

__all__ = ["ball_query"]


def ball_query(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    K: int = 500,
    radius: float = 0.2,
    return_nn: bool = True,
    skip_points_outside_cube: bool = False,
) -> KNN:
    """The first K points in p2, by index, nearer than `radius` to each point in p1.

    Args: p1 (N, P1, 3) and p2 (N, P2, 3), float32 or float64; lengths (N,) int64, how much of each cloud is not
    padding; return_nn, whether to give the points themselves. `skip_points_outside_cube` changes nothing: a tree skips
    them.
    Returns: KNN(dists, idx, knn): squared distances (N, P1, K), 0 where there is no point more, indices, -1 there, and
    the points (N, P1, K, 3), 0 there, or None. Gradients flow through dists, to both; through knn, to p2.
    Raises: ShapeError, also for points in other than three dimensions.

    Guarantees: differentiable (coincident points); deterministic; 4e-16 f64, 3e-7 f32
    """
    a, b = padded(p1, lengths1, name="p1"), padded(p2, lengths2, name="p2")
    pair(a, b, ("p1", "p2"))
    if p1.shape[2] != 3:
        raise ShapeError(f"p1 and p2: expected points in three dimensions, got {describe(p1)}")
    (query, starts), (points, offsets) = ragged(a), ragged(b)
    found = neighbors.ball_query(query.detach(), points.detach(), radius, K, query_offsets=starts, offsets=offsets)
    index = spread(found.index, a, offsets)
    return KNN(distances(p1, p2, index), index, gather(p2, index) if return_nn else None)
