"""A cloud made ready for registration: thinned, about its own centre, with its tree and its normals."""

from typing import NamedTuple

import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.points import NeighborTree, Points, voxel_downsample
from geom.points.normals import local_shape

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
    thin = voxel_downsample(Points(points.positions.detach()), voxel_size).positions
    if len(thin) < 3:
        raise ShapeError(
            f"voxel_size: expected one that leaves at least 3 points of {name}, got {voxel_size:g}, which leaves {len(thin)}"
        )
    low, high = torch.aminmax(thin.double(), dim=0)
    center = (low + high) / 2
    local = (thin.double() - center).to(thin.dtype)
    tree = NeighborTree.build(local)
    radius = max(float(local.double().square().sum(-1).mean().sqrt()), 1e-12)
    found = local_shape(local, tree.knn(local, NEIGHBORS).index)[1] if normals else None
    return Cloud(tree, found, center.cpu(), radius)


def choose_voxel_size(points: Points) -> float:
    """A fortieth of the median distance from the median point: about 0.3 m for a LiDAR scan, 3 cm for a room."""
    x = points.positions.detach()
    x = x[:: max(1, len(x) // _SAMPLE)].double()
    distance = (x - x.median(0).values).square().sum(-1).sqrt().median()
    return max(float(distance) / 40, 1e-9)
