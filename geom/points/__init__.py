"""Point clouds: the value `Points`, neighbours, sampling, orders, voxel grids, local shape and distances."""

from geom.points.cloud import Points
from geom.points.interpolation import interpolate
from geom.points.metrics import chamfer, hausdorff
from geom.points.neighbors import ball_query, knn, radius_search
from geom.points.normals import estimate_covariances, estimate_normals
from geom.points.sampling import farthest_point_sample
from geom.points.serialization import Serialization, decode, encode, grid_size_of, serialize
from geom.points.transport import Transport, earth_movers
from geom.points.tree import Neighborhoods, Neighbors, NeighborTree
from geom.points.voxels import voxel_downsample

__all__ = [
    "Points",
    "Neighbors",
    "Neighborhoods",
    "NeighborTree",
    "ball_query",
    "knn",
    "radius_search",
    "farthest_point_sample",
    "voxel_downsample",
    "Serialization",
    "decode",
    "encode",
    "serialize",
    "grid_size_of",
    "estimate_covariances",
    "estimate_normals",
    "interpolate",
    "Transport",
    "chamfer",
    "earth_movers",
    "hausdorff",
]
