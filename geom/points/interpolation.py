"""Features carried from some points to others, by inverse squared distance."""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_same, describe
from geom.errors import ShapeError
from geom.points.cloud import Points, as_points
from geom.points.neighbors import knn

__all__ = ["interpolate"]


def interpolate(
    query: Points | Tensor,
    points: Points | Tensor,
    features: Float[Tensor, "m *c"],
    *,
    k: int = 3,
    query_offsets: Tensor | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Float[Tensor, "n *c"]:
    """The features of each query's k nearest points, weighted by their inverse squared distances.

    f(q) = sum_i w_i f_i / sum_i w_i, w_i = 1 / |q - x_i|^2 (PointNet++, Qi et al. 2017, Eq. (2), p = 2). The weights
    are taken relative to the nearest point's, d_1^2 / d_i^2: no epsilon, and a query that lies on a point gets that
    point's features exactly (the mean of theirs where it lies on several).

    Args: query (N, 3) and points (M, 3), tensors or Points, of one dtype and device; features (M, ...) of that dtype;
    k >= 1 (fewer where a cloud has fewer); offsets of the ragged batches as in `knn`; backend "auto", "warp" or
    "torch".
    Returns: (N, ...), dtype of the features. Gradients flow to the features and to both positions, the neighbours held;
    at a coincident point those of positions are 0.
    Raises: ShapeError, also for a cloud of no points.

    >>> line = torch.tensor([[0., 0, 0], [1, 0, 0], [3, 0, 0]])
    >>> interpolate(torch.tensor([[1., 0, 0], [0.5, 0, 0]]), line, torch.tensor([0., 1, 5]), k=2).tolist()
    [1.0, 0.5]

    Guarantees: differentiable (coincident points); deterministic; 2e-15 f64, 1e-6 f32
    """
    cloud = as_points(points, offsets=offsets, minimum=1)
    asked = as_points(query, "query", offsets=query_offsets)
    if not isinstance(features, Tensor) or features.ndim < 1 or len(features) != len(cloud.positions):
        raise ShapeError(f"features: expected a tensor ({len(cloud.positions)}, ...), got {describe(features)}")
    check_same(features, cloud.positions, "features and points")
    held = [x.positions.detach() for x in (asked, cloud)]
    index = knn(held[0], held[1], k, query_offsets=asked.offsets, offsets=cloud.offsets, backend=backend).index
    missing, near = index < 0, index.clamp(min=0)
    square = (asked.positions[:, None] - cloud.positions[near]).square().sum(-1)
    zero = square == 0
    ratio = square[:, :1] / torch.where(zero, torch.ones_like(square), square)
    ratio = torch.where(missing, torch.zeros_like(square), torch.where(zero, torch.ones_like(square), ratio))
    weight = ratio / ratio.sum(-1, keepdim=True)
    return (weight.reshape(*weight.shape, *[1] * (features.ndim - 1)) * features[near]).sum(1)
