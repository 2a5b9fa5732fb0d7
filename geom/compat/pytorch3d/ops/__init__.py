"""`pytorch3d.ops`: alignment of point sets, rows transformed as s X R + T."""

from geom.compat.pytorch3d.ops.points_alignment import (
    ICPSolution,
    SimilarityTransform,
    corresponding_points_alignment,
    iterative_closest_point,
)

__all__ = ["ICPSolution", "SimilarityTransform", "corresponding_points_alignment", "iterative_closest_point"]
