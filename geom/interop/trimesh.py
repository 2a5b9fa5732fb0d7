"""trimesh: Trimesh and PointCloud, coordinates float64, colours 8-bit RGBA; poses are 4x4 arrays for column vectors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geom.errors import ShapeError
from geom.interop.layouts import checked_rigid
from geom.interop.peers import as_float64, refuse, to_colors
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points

__all__ = ["from_trimesh", "to_trimesh"]


def to_trimesh(value: Rigid | Points | Mesh) -> Any:
    """A `Mesh` to a Trimesh, `Points` to a trimesh PointCloud, a `Rigid` to the array that trimesh's transforms are.

    Vertices and faces are handed over as they are: nothing is merged or reordered (`process=False`).

    Args: value, a mesh with normals and colours, one cloud with colours (a batch goes cloud by cloud, `points[i]`), or
    poses in any batch shape. Normals and intensities of a cloud have no room in a PointCloud and stay behind.
    Returns: `trimesh.Trimesh`, `trimesh.PointCloud`, or float64 (..., 4, 4); detached. Colours are rounded to 8 bits.
    Raises: ShapeError for a batch of clouds or anything else.

    Guarantees: not differentiable; deterministic; exact f64, exact f32 (colours 2e-3, poses 1e-15)
    """
    if isinstance(value, Rigid):
        return as_float64(value.to(torch.float64).to_matrix())
    if not isinstance(value, Points | Mesh):
        raise refuse(value, "a Rigid, a Points or a Mesh")
    import trimesh

    if isinstance(value, Points):
        if len(value) != 1:
            raise ShapeError(f"value: expected one cloud, points[i], got a batch of {len(value)}")
        return trimesh.PointCloud(as_float64(value.positions), colors=_bytes(value.colors))
    return trimesh.Trimesh(
        as_float64(value.vertices),
        value.faces.cpu().numpy().copy(),
        vertex_normals=None if value.normals is None else as_float64(value.normals),
        vertex_colors=_bytes(value.colors),
        process=False,
    )


def from_trimesh(value: Any) -> Rigid | Points | Mesh:
    """A Trimesh, a trimesh PointCloud or a transform to a `Mesh`, `Points` or a `Rigid`: the inverse of `to_trimesh`.

    Args: value, `trimesh.Trimesh`, `trimesh.PointCloud` or an array (..., 4, 4). Vertex normals are taken where the
    mesh holds them, given or computed before, and not computed; colours where they are defined per vertex.
    Returns: float64 on the CPU, colours float32; a Rigid has w >= 0.
    Raises: ShapeError for anything else, a transform that is no rigid motion included.

    Guarantees: not differentiable; deterministic; exact f64, exact f32 (poses 1e-15)
    """
    if isinstance(value, np.ndarray) and value.ndim >= 2:
        return checked_rigid(torch.from_numpy(np.array(value, np.float64)), "value")
    import trimesh

    if not isinstance(value, trimesh.Trimesh | trimesh.PointCloud):
        raise refuse(value, "a Trimesh, a trimesh PointCloud or a transform (..., 4, 4)")
    vertices = torch.from_numpy(np.array(value.vertices, np.float64)).reshape(-1, 3)
    visual: Any = value.visual  # of several kinds; a texture's colours are not per vertex
    given = visual.kind == "vertex" and np.shape(visual.vertex_colors) == (len(vertices), 4)
    colors = to_colors(visual.vertex_colors[:, :3] / 255) if given else None
    if isinstance(value, trimesh.PointCloud):
        return Points(vertices, colors=colors)
    held = "vertex_normals" in value._cache  # as trimesh's own writers ask
    normals = torch.from_numpy(np.array(value.vertex_normals, np.float64)) if held else None
    return Mesh(vertices, torch.from_numpy(np.array(value.faces, np.int64)).reshape(-1, 3), normals, colors)


def _bytes(colors: Tensor | None) -> NDArray[np.uint8] | None:
    return None if colors is None else np.rint(as_float64(colors.clamp(0, 1)) * 255).astype(np.uint8)
