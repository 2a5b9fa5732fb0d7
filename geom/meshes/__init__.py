"""Triangle meshes."""

from geom.meshes.mesh import Mesh

__all__ = ["Mesh"]
