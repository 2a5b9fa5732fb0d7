"""Files in, files out: points and meshes, every byte checked before it is believed."""

from geom.io.formats import load, load_mesh, load_points, save_mesh, save_points

__all__ = ["load", "load_points", "load_mesh", "save_points", "save_mesh"]
