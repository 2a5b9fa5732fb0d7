"""Batches of meshes as one packed mesh: pytorch3d's Meshes, or our own."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from geom.checks import describe
from geom.errors import ShapeError
from geom.meshes import Mesh

__all__ = ["Packed", "pack", "surfaces"]


@runtime_checkable
class _Meshes(Protocol):
    """What of pytorch3d's Meshes is asked."""

    def verts_list(self) -> list[Tensor]: ...
    def faces_list(self) -> list[Tensor]: ...


class Packed(NamedTuple):
    """`vertices` (V, 3) of all meshes; `faces` (F, 3) of them; `owner` (V,), the mesh of each; `size` of the batch."""

    vertices: Tensor
    faces: Tensor
    owner: Tensor
    size: int


def surfaces(meshes: Any) -> list[tuple[Tensor, Tensor]]:
    """(vertices, faces) of each mesh. Raises: ShapeError for anything but Meshes, a Mesh or a sequence of Mesh."""
    if isinstance(meshes, _Meshes):
        return list(zip(meshes.verts_list(), meshes.faces_list(), strict=True))
    several = [meshes] if isinstance(meshes, Mesh) else meshes
    if not isinstance(several, Sequence) or not all(isinstance(x, Mesh) for x in several):
        raise ShapeError(f"meshes: expected pytorch3d's Meshes, a Mesh or a list of Mesh, got {describe(meshes)}")
    return [(x.vertices, x.faces) for x in several]


def pack(meshes: Any) -> Packed | None:
    """All meshes as one; None where there is no face at all. Raises: ShapeError."""
    parts = surfaces(meshes)
    if not sum(len(faces) for _, faces in parts):
        return None
    sizes = torch.tensor([len(vertices) for vertices, _ in parts])
    starts = (sizes.cumsum(0) - sizes).tolist()
    vertices = torch.cat([vertices for vertices, _ in parts])
    faces = torch.cat([faces + start for (_, faces), start in zip(parts, starts, strict=True)])
    return Packed(vertices, faces, torch.repeat_interleave(sizes).to(vertices.device), len(parts))
