"""Drop-in names of other libraries: change the import line, keep the code."""

from geom.compat import pytorch3d

__all__ = ["pytorch3d"]
