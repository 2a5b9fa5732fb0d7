"""Local shape: covariances of neighbourhoods and surface normals."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_integer, check_points, describe
from geom.errors import ShapeError
from geom.points.cloud import Points, as_points
from geom.points.neighbors import knn

__all__ = ["estimate_covariances", "estimate_normals"]


def estimate_covariances(
    points: Points | Tensor, *, k: int = 20, offsets: Tensor | None = None, backend: str = "auto"
) -> Float[Tensor, "n 3 3"]:
    """Covariance of each point's k nearest points, itself among them: mean of (x - mean)(x - mean)^T.

    Args: points (N, 3) float32 or float64, tensor or Points; k >= 3 neighbours (fewer where the cloud has fewer);
    offsets (B+1,) for several clouds; backend "auto", "warp" or "torch".
    Returns: (N, 3, 3) symmetric, positive semi-definite to rounding, in the squared unit of the points.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; 1e-15 f64, 1e-6 f32 of the largest entry
    """
    return _local_shape(as_points(points, offsets=offsets), k, backend)[0]


def estimate_normals(
    points: Points | Tensor,
    *,
    k: int = 20,
    offsets: Tensor | None = None,
    viewpoint: Tensor | None = None,
    backend: str = "auto",
) -> Float[Tensor, "n 3"]:
    """Unit normals: the direction in which each point's k nearest points spread least.

    With a `viewpoint` (3,) they point toward it; without one, the component of largest size is positive. A
    neighbourhood on a line gives some normal across it, one that is a single place gives 0; equal spread in all
    directions gives any unit vector, the same one each time.

    Args: points (N, 3) float32 or float64, tensor or Points; k >= 3; offsets (B+1,) for several clouds; viewpoint, the
    sensor's place in the frame of the points; backend "auto", "warp" or "torch".
    Returns: (N, 3), dtype of the points.
    Raises: ShapeError.

    >>> grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0), torch.zeros(1))
    >>> estimate_normals(grid, k=9)[0].tolist()
    [0.0, 0.0, 1.0]

    Guarantees: not differentiable; deterministic; 1e-12 f64, 1e-4 f32 rad on a well-spread plane
    """
    cloud = as_points(points, offsets=offsets)
    normals = _local_shape(cloud, k, backend)[1]
    if viewpoint is None:
        return normals
    if not isinstance(viewpoint, Tensor) or viewpoint.shape != (3,):
        raise ShapeError(f"viewpoint: expected a float tensor (3,), got {describe(viewpoint)}")
    eye = check_points(viewpoint[None], "viewpoint").to(cloud.positions)
    toward = ((eye - cloud.positions) * normals).sum(-1, keepdim=True)
    return torch.where(toward < 0, -normals, normals)


def _local_shape(cloud: Points, k: int, backend: str) -> tuple[Tensor, Tensor]:
    check_integer(k, "k", 3)
    return local_shape(cloud.positions, knn(cloud, cloud, k, backend=backend).index, backend=backend)


def local_shape(
    points: Float[Tensor, "n 3"], index: Int64[Tensor, "n k"], *, backend: str = "auto"
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"]]:
    """Covariance (N, 3, 3) of the points that `index` (N, k) names for each (-1: none), and its flattest direction."""
    from geom.kernels import bridge, covariances

    x = points.detach().contiguous()
    if bridge.choose(backend, x):
        covariance, normal = x.new_empty((len(x), 3, 3)), torch.empty_like(x)
        args = (x, index.contiguous(), index.shape[1], covariance, normal)
        bridge.launch(covariances.covariances[x.dtype], len(x), *args, device=x.device)
        return covariance, normal
    there = (index >= 0)[..., None]
    near = (x[index.clamp(min=0)].double() - x[:, None].double()) * there
    gap = (near - near.sum(1, keepdim=True) / there.sum(1, keepdim=True)) * there
    covariance = gap.mT @ gap / there.sum(1, keepdim=True)
    values, vectors = torch.linalg.eigh(covariance)
    normal = vectors[..., 0] * (values[:, 2:] > 0)
    largest = torch.take_along_dim(normal, normal.abs().argmax(-1, keepdim=True), -1)
    return covariance.to(x.dtype), torch.where(largest < 0, -normal, normal).to(x.dtype)
