"""Converters to and from other libraries, lossless where both sides have room; each is imported when it is called.

`to_x` takes values of `geom` (Rigid, Points, Mesh, quaternions) and gives the other library's objects, `from_x` the
way back. Positions, batches and dtypes are said in each docstring, and so is what stays behind.
"""

from geom.interop.e3nn import from_e3nn, irreps_to_multivectors, multivectors_to_irreps, to_e3nn
from geom.interop.layouts import (
    quat_wxyz_to_xyzw,
    quat_xyzw_to_wxyz,
    rigid_from_row_vectors,
    rigid_to_row_vectors,
)
from geom.interop.open3d import from_open3d, to_open3d
from geom.interop.pypose import from_pypose, to_pypose
from geom.interop.pytorch3d import from_pytorch3d, to_pytorch3d
from geom.interop.roma import from_roma, to_roma
from geom.interop.scipy import from_scipy, to_scipy
from geom.interop.trimesh import from_trimesh, to_trimesh
from geom.interop.warp import from_warp, to_warp

__all__ = [
    "quat_wxyz_to_xyzw",
    "quat_xyzw_to_wxyz",
    "rigid_to_row_vectors",
    "rigid_from_row_vectors",
    "to_scipy",
    "from_scipy",
    "to_roma",
    "from_roma",
    "to_pypose",
    "from_pypose",
    "to_e3nn",
    "from_e3nn",
    "multivectors_to_irreps",
    "irreps_to_multivectors",
    "to_open3d",
    "from_open3d",
    "to_trimesh",
    "from_trimesh",
    "to_pytorch3d",
    "from_pytorch3d",
    "to_warp",
    "from_warp",
]
