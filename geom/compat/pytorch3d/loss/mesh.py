"""`pytorch3d.loss` for meshes: Laplacian smoothing, edge lengths, normal consistency.

Each is a mean over the batch of a mean over the mesh; a batch without a face gives 0.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_choice
from geom.compat.pytorch3d.ops.laplacian_matrices import cot_laplacian, laplacian
from geom.compat.pytorch3d.packing import Packed, pack, surfaces
from geom.meshes import edges, face_adjacency
from geom.meshes.geometry import length, unit

__all__ = ["mesh_edge_loss", "mesh_laplacian_smoothing", "mesh_normal_consistency"]


def mesh_laplacian_smoothing(meshes: Any, method: str = "uniform") -> Float[Tensor, "..."]:
    """Mean length of the Laplacian of the vertices; its weights count as constants.

    Args: meshes, pytorch3d's Meshes, a Mesh or a list of Mesh; method "uniform", |mean of the neighbours - v|; "cot",
    with cotangent weights; "cotcurv", |sum of cot (v_j - v_i)| / (4 area), a multiple of the mean curvature.
    Returns: (). A vertex without a face counts with its distance from the origin for "uniform" and "cot".
    Raises: ShapeError.
    Desbrun et al. 1999; Nealen et al. 2006.

    Guarantees: differentiable (vertices whose Laplacian is 0); deterministic on the CPU; 1e-14 f64, 1e-6 f32
    """
    check_choice(method, ("uniform", "cot", "cotcurv"), "method")
    mesh = pack(meshes)
    if mesh is None:
        return _nothing(meshes)
    x, fixed = mesh.vertices, mesh.vertices.detach()
    if method == "uniform":
        change = laplacian(fixed, edges(mesh.faces)) @ x
    else:
        matrix, inverse = cot_laplacian(fixed, mesh.faces)
        total = matrix.sum(1).to_dense()[:, None]
        if method == "cot":
            positive = total > 0
            change = (matrix @ x) * torch.where(positive, 1 / torch.where(positive, total, 1.0), total) - x
        else:
            change = (matrix @ x - total * x) * inverse / 4
    return _mean(length(change), mesh.owner, mesh)


def mesh_edge_loss(meshes: Any, target_length: float = 0.0) -> Float[Tensor, "..."]:
    """Mean of (length - target_length)^2 over the edges.

    Args: meshes, pytorch3d's Meshes, a Mesh or a list of Mesh; target_length, in their unit.
    Returns: ().
    Raises: ShapeError.

    Guarantees: differentiable (edges of length 0); deterministic on the CPU; 1e-15 f64, 1e-6 f32
    """
    mesh = pack(meshes)
    if mesh is None:
        return _nothing(meshes)
    start, stop = edges(mesh.faces).unbind(-1)
    gap = length(mesh.vertices[start] - mesh.vertices[stop]) - target_length
    return _mean(gap.square(), mesh.owner[start], mesh)


def mesh_normal_consistency(meshes: Any) -> Float[Tensor, "..."]:
    """Mean of 1 - cos of the angle between the normals of each two faces that share an edge, turned so that they agree.

    Args: meshes, pytorch3d's Meshes, a Mesh or a list of Mesh.
    Returns: (); 0 where no two faces share an edge. A face without area counts as one at a right angle.
    Raises: ShapeError.

    Guarantees: differentiable (faces without area); deterministic on the CPU; 1e-15 f64, 1e-6 f32
    """
    mesh = pack(meshes)
    if mesh is None:
        return _nothing(meshes)
    pairs = face_adjacency(mesh.faces)
    if not len(pairs.faces):
        return mesh.vertices.sum() * 0
    start, stop = pairs.edges.unbind(-1)
    third = mesh.faces[pairs.faces].sum(-1) - pairs.edges.sum(-1, keepdim=True)  # (P, 2): the corners off the edge
    x = mesh.vertices
    side = (x[stop] - x[start])[:, None].expand(-1, 2, 3)
    first, second = unit(torch.linalg.cross(side, x[third] - x[start][:, None])).unbind(1)
    return _mean(1 + (first * second).sum(-1), mesh.owner[start], mesh)


def _mean(values: Tensor, owner: Tensor, mesh: Packed) -> Tensor:
    """The mean over each mesh's values, then over meshes."""
    number = torch.bincount(owner, minlength=mesh.size)
    return (values / number[owner]).sum() / mesh.size


def _nothing(meshes: Any) -> Tensor:
    """0 that depends on the vertices, where there are any."""
    return sum((vertices.sum() * 0 for vertices, _ in surfaces(meshes)), start=torch.zeros(()))
