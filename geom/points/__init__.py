"""Point clouds: the value `Points`, neighbours, voxel grids and local shape."""

from geom.points.cloud import Points
from geom.points.neighbors import Neighborhoods, Neighbors, NeighborTree, knn, radius_search
from geom.points.normals import estimate_covariances, estimate_normals
from geom.points.voxels import voxel_downsample

__all__ = [
    "Points",
    "Neighbors",
    "Neighborhoods",
    "NeighborTree",
    "knn",
    "radius_search",
    "voxel_downsample",
    "estimate_covariances",
    "estimate_normals",
]
