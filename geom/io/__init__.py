"""Files in, files out: points, meshes and rigs (`geom.skinning.load_rig`), every byte checked before it is believed."""

from geom.io.formats import load, load_mesh, load_points, save_mesh, save_points
from geom.io.rig import Rig

__all__ = ["load", "load_points", "load_mesh", "save_points", "save_mesh", "Rig"]
