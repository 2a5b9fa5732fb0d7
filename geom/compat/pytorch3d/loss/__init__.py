"""`pytorch3d.loss`: the Chamfer distance of points, losses of meshes."""

from geom.compat.pytorch3d.loss.chamfer import chamfer_distance
from geom.compat.pytorch3d.loss.mesh import mesh_edge_loss, mesh_laplacian_smoothing, mesh_normal_consistency

__all__ = ["chamfer_distance", "mesh_edge_loss", "mesh_laplacian_smoothing", "mesh_normal_consistency"]
