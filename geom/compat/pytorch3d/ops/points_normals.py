"""`pytorch3d.ops` of local shape: normals and frames of neighbourhoods, in padded batches."""

from typing import Any

import torch
from torch import Tensor

from geom.checks import describe
from geom.compat.pytorch3d.padding import inside, padded, ragged
from geom.errors import ShapeError
from geom.points import knn
from geom.points.normals import local_shape

__all__ = ["estimate_pointcloud_local_coord_frames", "estimate_pointcloud_normals"]


def estimate_pointcloud_normals(
    pointclouds: Any,
    neighborhood_size: int = 50,
    disambiguate_directions: bool = True,
    *,
    use_symeig_workaround: bool = True,
) -> Tensor:
    """Unit normals: the first column of `estimate_pointcloud_local_coord_frames`, which see.

    Returns: (N, P, 3), 0 for padding.

    Guarantees: not differentiable; deterministic; 1e-12 f64, 1e-4 f32 rad on a well-spread plane
    """
    return estimate_pointcloud_local_coord_frames(pointclouds, neighborhood_size, disambiguate_directions)[1][..., 0]


def estimate_pointcloud_local_coord_frames(
    pointclouds: Any,
    neighborhood_size: int = 50,
    disambiguate_directions: bool = True,
    *,
    use_symeig_workaround: bool = True,
) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the covariance of each point's nearest points, itself among them.

    With `disambiguate_directions`, the first and the last point to the side where at least half of the neighbours lie
    (Tombari et al. 2010), and the second is first x last, which makes the frame a left-handed one, as pytorch3d's;
    without, signs are left open.

    Args: pointclouds (N, P, 3), a tensor or an object with `points_padded()`, `num_points_per_cloud()` and
    `normals_padded()` (pytorch3d's Pointclouds); neighborhood_size, fewer than each cloud's points.
    `use_symeig_workaround` changes nothing: no gradient flows here, which in pytorch3d is infinite on regular grids.
    Returns: curvatures (N, P, 3), rising, and frames (N, P, 3, 3), their columns; 0 for padding.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; 1e-12 f64, 1e-4 f32 rad on a well-spread plane
    """
    batch = padded(pointclouds, name="pointclouds")
    points, sizes = batch.points.detach(), batch.sizes()
    if points.shape[2] != 3:
        raise ShapeError(f"pointclouds: expected points in three dimensions, got {describe(points)}")
    if len(sizes) and int(sizes.min()) <= neighborhood_size:
        raise ShapeError(
            f"neighborhood_size: expected fewer than the {int(sizes.min())} points of a cloud, got {neighborhood_size}"
        )
    flat, offsets = ragged(batch._replace(points=points))
    index = knn(flat, flat, neighborhood_size, query_offsets=offsets, offsets=offsets).index
    values, vectors = torch.linalg.eigh(local_shape(flat, index)[0])
    if disambiguate_directions:
        gap = flat[index] - flat[:, None]
        first, last = _toward_most(vectors[..., 0], gap), _toward_most(vectors[..., 2], gap)
        vectors = torch.stack([first, torch.linalg.cross(first, last), last], -1)
    there = inside(batch)
    curvatures, frames = points.new_zeros(points.shape), points.new_zeros((*points.shape, 3))
    curvatures[there], frames[there] = values, vectors
    return curvatures, frames


def _toward_most(direction: Tensor, gap: Tensor) -> Tensor:
    """Each direction (M, 3), turned where fewer than half of the neighbours (M, K, 3) lie on its side."""
    ahead = ((gap * direction[:, None]).sum(-1) > 0).sum(-1, keepdim=True)
    return torch.where(2 * ahead < gap.shape[1], -direction, direction)
