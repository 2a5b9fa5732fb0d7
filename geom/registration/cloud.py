"""A cloud made ready for registration: thinned, about its own centre, with its tree and its normals."""

from typing import NamedTuple

import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.points import NeighborTree, Points
from geom.points.morton import corners
from geom.points.normals import local_shape
from geom.points.voxels import cell_mean, voxels

__all__ = ["Cloud", "choose_voxel_size", "prepare"]

NEIGHBORS = 10  # of a normal; what small_gicp takes
_SAMPLE = 4096


class Cloud(NamedTuple):
    """`tree` over points about `center` (3,) float64; `normals` (N, 3) or None; `radius`, root mean square, metres."""

    tree: NeighborTree
    normals: Tensor | None
    center: Tensor
    radius: float

    @property
    def points(self) -> Tensor:
        return self.tree.positions


def prepare(points: Points, voxel_size: float, *, normals: bool, name: str) -> Cloud:
    """Thin to one point a voxel, and move the centre of the extent to 0: the rest may then run in float32."""
    x = points.positions.detach()
    cells = voxels(x, torch.tensor([0, len(x)], device=x.device), voxel_size)
    thin = cell_mean(x, cells)
    if len(thin) < 3:
        raise ShapeError(
            f"voxel_size: expected one that leaves at least 3 points of {name}, got {voxel_size:g}, "
            f"which leaves {len(thin)}"
        )
    low, high = (corner[0].double() for corner in corners(thin, cells.offsets))
    center = (low + high) / 2
    exact = thin.double() - center
    local = exact.to(thin.dtype)
    tree = NeighborTree.trusted(local, cells.offsets)
    radius = max(float(exact.square().sum() / len(exact)) ** 0.5, 1e-12)
    found = local_shape(local, tree.nearest(local, cells.offsets, NEIGHBORS)[0])[1] if normals else None
    return Cloud(tree, found, center.cpu(), radius)


def choose_voxel_size(points: Points) -> float:
    """A fortieth of the median distance from the median point: about 0.3 m for a LiDAR scan, 3 cm for a room.

    Raises: ShapeError where half of the points are one and the same.
    """
    x = points.positions.detach()
    x = x[:: max(1, len(x) // _SAMPLE)].double()
    distance = (x - x.median(0).values).square().sum(-1).sqrt().median()
    if not distance > 0:
        raise ShapeError("source: expected points apart from each other, got half of them in one place")
    return float(distance) / 40
