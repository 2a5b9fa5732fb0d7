"""open3d: PointCloud and TriangleMesh, their numbers float64 on the CPU; poses are 4x4 arrays for column vectors."""

from importlib import import_module
from typing import Any

import numpy as np
import torch

from geom.errors import MissingDependencyError, ShapeError
from geom.interop.layouts import checked_rigid
from geom.interop.peers import as_float64, refuse, to_colors
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points

__all__ = ["from_open3d", "to_open3d"]


def to_open3d(value: Rigid | Points | Mesh) -> Any:
    """`Points` to an open3d PointCloud, a `Mesh` to a TriangleMesh, a `Rigid` to the array that open3d's poses are.

    Args: value, one cloud with normals and colours (a batch goes cloud by cloud, `points[i]`), a mesh with normals and
    colours, or poses in any batch shape. Intensities have no room in a PointCloud and stay behind.
    Returns: `open3d.geometry.PointCloud`, `open3d.geometry.TriangleMesh`, or float64 (..., 4, 4); detached.
    Raises: ShapeError for a batch of clouds or anything else; MissingDependencyError without open3d.

    Guarantees: not differentiable; deterministic; exact f64, exact f32 (poses 1e-15)
    """
    if isinstance(value, Rigid):
        return as_float64(value.to(torch.float64).to_matrix())
    if not isinstance(value, Points | Mesh):
        raise refuse(value, "a Rigid, a Points or a Mesh")
    try:
        o3d = import_module("open3d")
    except ImportError as error:
        raise MissingDependencyError("open3d", extra="viz", purpose="to_open3d") from error
    vectors = o3d.utility.Vector3dVector
    if isinstance(value, Mesh):
        faces = o3d.utility.Vector3iVector(value.faces.cpu().contiguous().numpy().astype(np.int32))
        made, prefix = o3d.geometry.TriangleMesh(vectors(as_float64(value.vertices)), faces), "vertex_"
    elif len(value) == 1:
        made, prefix = o3d.geometry.PointCloud(vectors(as_float64(value.positions))), ""
    else:
        raise ShapeError(f"value: expected one cloud, points[i], got a batch of {len(value)}")
    for name, x in (("normals", value.normals), ("colors", value.colors)):
        if x is not None:
            setattr(made, prefix + name, vectors(as_float64(x)))
    return made


def from_open3d(value: Any) -> Rigid | Points | Mesh:
    """An open3d PointCloud, TriangleMesh or pose to `Points`, a `Mesh` or a `Rigid`: the inverse of `to_open3d`.

    Args: value, of `open3d.geometry` or its tensor twin `open3d.t.geometry`, or an array (..., 4, 4). What has no room
    here (covariances, uvs, triangle normals) stays behind.
    Returns: float64 on the CPU, colours float32; a Rigid has w >= 0.
    Raises: ShapeError for anything else, a pose that is no rigid motion and a face without its vertex included.

    Guarantees: not differentiable; deterministic; exact f64, exact f32 (poses 1e-15)
    """
    if isinstance(value, np.ndarray):
        return checked_rigid(torch.from_numpy(np.array(value, np.float64)), "value")
    value = value.to_legacy() if hasattr(value, "to_legacy") else value  # the tensor twin of either
    if hasattr(value, "points") and hasattr(value, "has_covariances"):
        normals = torch.from_numpy(np.array(value.normals)) if value.has_normals() else None
        colors = to_colors(value.colors) if value.has_colors() else None
        return Points(torch.from_numpy(np.array(value.points)), normals, colors)
    if hasattr(value, "vertices") and hasattr(value, "has_triangles"):
        normals = torch.from_numpy(np.array(value.vertex_normals)) if value.has_vertex_normals() else None
        colors = to_colors(value.vertex_colors) if value.has_vertex_colors() else None
        faces = torch.from_numpy(np.array(value.triangles, np.int64))
        return Mesh(torch.from_numpy(np.array(value.vertices)), faces, normals, colors)
    raise refuse(value, "an open3d PointCloud, TriangleMesh or pose (..., 4, 4)")
