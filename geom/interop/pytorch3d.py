"""pytorch3d: Transform3d for row vectors, batches of Meshes and Pointclouds; quaternions (w, x, y, z) as here."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.interop.layouts import rigid_from_row_vectors, rigid_to_row_vectors
from geom.interop.peers import PeerMissingError, refuse
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points

__all__ = ["from_pytorch3d", "to_pytorch3d"]

_INSTALL = "it has no wheel; build it from source as its INSTALL.md says (for transforms, geom.compat.pytorch3d serves)"


def to_pytorch3d(value: Rigid | Points | Mesh | Sequence[Mesh]) -> Any:
    """A `Rigid` to a Transform3d, `Points` to Pointclouds, meshes to Meshes; all tensors are shared, not copied.

    Args: value, a Rigid of batch shape (N,) or (), which becomes (1,); Points, a cloud of the batch each, colours as
    features; a Mesh or several, colours as TexturesVertex. Intensities have no room of their own and stay behind.
    Returns: `pytorch3d.transforms.Transform3d`, `pytorch3d.structures.Pointclouds` or `Meshes`.
    Raises: ShapeError for anything else; MissingDependencyError without pytorch3d.

    Guarantees: differentiable; deterministic; exact f64, exact f32 (poses 1e-15 f64, 6e-7 f32)
    """
    if isinstance(value, Rigid):
        if value.quat_wxyz.ndim > 2:
            batch = tuple(value.quat_wxyz.shape[:-1])
            raise ShapeError(f"value: expected a Rigid of batch shape () or (N,), got {batch}")
        return _pytorch3d("transforms").Transform3d(matrix=rigid_to_row_vectors(value))
    if isinstance(value, Points):
        sizes = [len(value.positions)] if value.offsets is None else value.offsets.diff().tolist()
        fields = (value.positions, value.normals, value.colors)
        points, normals, features = (None if x is None else list(x.split(sizes)) for x in fields)
        return _pytorch3d("structures").Pointclouds(points=points, normals=normals, features=features)
    meshes = [value] if isinstance(value, Mesh) else value
    if not isinstance(meshes, Sequence) or not all(isinstance(mesh, Mesh) for mesh in meshes):
        raise refuse(value, "a Rigid, a Points, a Mesh or several")
    normals = _all_or_none([mesh.normals for mesh in meshes], "normals")
    colors = _all_or_none([mesh.colors for mesh in meshes], "colors")
    return _pytorch3d("structures").Meshes(
        verts=[mesh.vertices for mesh in meshes],
        faces=[mesh.faces for mesh in meshes],
        textures=None if colors is None else _pytorch3d("renderer").TexturesVertex(verts_features=colors),
        verts_normals=normals,
    )


def from_pytorch3d(value: Any) -> Rigid | Points | list[Mesh]:
    """A Transform3d, Pointclouds or Meshes to a `Rigid` (N,), `Points` or a list of `Mesh`: inverse of `to_pytorch3d`.

    The objects of `geom.compat.pytorch3d` are taken as well: what counts are the getters `get_matrix`, `points_list`
    and `verts_list`, so pytorch3d itself need not be there.

    Args: value. Features of three channels are colours; others, and textures that are not per vertex, stay behind. So
    do normals of Meshes that were not given or computed before.
    Returns: Rigid of batch shape (N,) with w >= 0; Points with offsets (N+1,); N meshes. Same dtype and device.
    Raises: ShapeError for anything else, a Transform3d that scales or mirrors included.

    Guarantees: differentiable; deterministic; exact f64, exact f32 (poses 1e-15 f64, 6e-7 f32)
    """
    if hasattr(value, "get_matrix"):
        return rigid_from_row_vectors(value.get_matrix())
    if hasattr(value, "points_list"):
        positions = value.points_list()
        ends = torch.tensor([0, *(len(x) for x in positions)], dtype=torch.int64).cumsum(0)
        colors = _colors(value.features_list())
        normals = value.normals_list()
        return Points(
            torch.cat(positions) if positions else torch.zeros(0, 3),
            torch.cat(normals) if normals else None,
            torch.cat(colors) if colors else None,
            offsets=ends.to(positions[0].device) if positions else ends,
        )
    if hasattr(value, "verts_list"):
        vertices = value.verts_list()
        none = [None] * len(vertices)
        normals = value.verts_normals_list() if value.has_verts_normals() else none
        textures = value.textures
        colors = _colors(textures.verts_features_list()) if hasattr(textures, "verts_features_list") else None
        return [Mesh(*x) for x in zip(vertices, value.faces_list(), normals, colors or none, strict=True)]
    raise refuse(value, "a pytorch3d Transform3d, Pointclouds or Meshes")


def _colors(features: Sequence[Tensor] | None) -> list[Tensor] | None:
    return list(features) if features and all(x.shape[-1] == 3 for x in features) else None


def _all_or_none(fields: list[Tensor | None], name: str) -> list[Tensor] | None:
    found = [x for x in fields if x is not None]
    if found and len(found) < len(fields):
        raise ShapeError(
            f"{name}: expected all meshes of a batch to have them or none, got {len(found)} of {len(fields)}"
        )
    return found or None


def _pytorch3d(part: str) -> Any:
    try:
        import_module("pytorch3d")
        return import_module(f"pytorch3d.{part}")
    except ImportError as error:
        raise PeerMissingError("pytorch3d", purpose="to_pytorch3d", install=_INSTALL) from error
