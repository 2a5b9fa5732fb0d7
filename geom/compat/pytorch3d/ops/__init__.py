"""`pytorch3d.ops`: neighbours, sampling, alignment of points, rows moved as s X R + T; Laplacians of meshes."""

from geom.compat.pytorch3d.ops.ball_query import ball_query
from geom.compat.pytorch3d.ops.knn import KNN, knn_gather, knn_points
from geom.compat.pytorch3d.ops.laplacian_matrices import cot_laplacian, laplacian
from geom.compat.pytorch3d.ops.points_alignment import (
    ICPSolution,
    SimilarityTransform,
    corresponding_points_alignment,
    iterative_closest_point,
)
from geom.compat.pytorch3d.ops.points_normals import (
    estimate_pointcloud_local_coord_frames,
    estimate_pointcloud_normals,
)
from geom.compat.pytorch3d.ops.sample_farthest_points import sample_farthest_points
from geom.compat.pytorch3d.ops.sample_points_from_meshes import sample_points_from_meshes

__all__ = [
    "ICPSolution",
    "SimilarityTransform",
    "corresponding_points_alignment",
    "iterative_closest_point",
    "cot_laplacian",
    "laplacian",
    "sample_points_from_meshes",
    "KNN",
    "ball_query",
    "estimate_pointcloud_local_coord_frames",
    "estimate_pointcloud_normals",
    "knn_gather",
    "knn_points",
    "sample_farthest_points",
]
