"""`pytorch3d.ops.sample_points_from_meshes`."""

from typing import Any

import torch
from torch import Tensor

from geom.compat.pytorch3d.packing import surfaces
from geom.errors import ShapeError
from geom.meshes import Mesh, sample_surface

__all__ = ["sample_points_from_meshes"]


def sample_points_from_meshes(
    meshes: Any, num_samples: int = 10000, return_normals: bool = False, return_textures: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Points uniform over each surface, and their faces' unit normals; 0 for a mesh without faces in the batch.

    The numbers are torch's own, so `torch.manual_seed` fixes them; they are not those that pytorch3d draws.

    Args: meshes, pytorch3d's Meshes, a Mesh or a list of Mesh; return_textures must be False: textures are
    pytorch3d's own.
    Returns: samples (N, num_samples, 3), and with return_normals (samples, normals), gradients flow to the vertices.
    Raises: ShapeError, also for a batch without a face.

    Guarantees: differentiable (in the vertices); deterministic under a seed; 2e-16 f64, 2e-7 f32 of the extent
    """
    if return_textures:
        raise ShapeError("return_textures: expected False, as textures are pytorch3d's own, got True")
    parts = surfaces(meshes)
    if not sum(len(faces) for _, faces in parts):
        raise ShapeError("meshes: expected at least one face, got none")
    points, normals = [], []
    for vertices, faces in parts:
        empty = vertices.new_zeros(num_samples, 3)
        found = sample_surface(Mesh(vertices, faces), num_samples) if len(faces) else None
        points.append(empty if found is None else found.points)
        normals.append(empty if found is None else found.normals)
    return (torch.stack(points), torch.stack(normals)) if return_normals else torch.stack(points)
