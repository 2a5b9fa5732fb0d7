"""`pytorch3d.ops.laplacian_matrices`: sparse Laplacians with pytorch3d's signs and scales."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.meshes.geometry import area_vectors, check_surface, gather_corners

__all__ = ["cot_laplacian", "laplacian"]


def cot_laplacian(
    verts: Float[Tensor, "v 3"], faces: Int64[Tensor, "f 3"], eps: float = 1e-12
) -> tuple[Float[Tensor, "v v"], Float[Tensor, "v 1"]]:
    """L_ij = cot a + cot b over the angles opposite edge ij, without 1/2, and 0 on the diagonal.

    Args: verts (V, 3); faces (F, 3); eps, the least squared area of a face.
    Returns: L (V, V) sparse COO, coalesced; inv_areas (V, 1), one over the summed areas of the faces around each
    vertex, 0 where there are none.
    Raises: ShapeError.

    Guarantees: differentiable; deterministic on the CPU; 1e-15 f64, 5e-7 f32 on well-shaped faces
    """
    check_surface(verts, faces)
    corners = verts[faces]
    after, before = corners.roll(-1, 1) - corners, corners.roll(1, 1) - corners
    area = (area_vectors(verts, faces).square().sum(-1) / 4).clamp(min=eps).sqrt()
    cot = (after * before).sum(-1) / (2 * area)[:, None]
    start, stop = faces[:, [1, 2, 0]].flatten(), faces[:, [2, 0, 1]].flatten()
    both = torch.stack([torch.cat([start, stop]), torch.cat([stop, start])])
    size = (len(verts), len(verts))
    matrix = torch.sparse_coo_tensor(both, cot.flatten().repeat(2), size, check_invariants=False).coalesce()
    total = gather_corners(area[:, None, None].expand(-1, 3, 1), faces, len(verts))
    return matrix, torch.where(total > 0, 1 / torch.where(total > 0, total, 1.0), 0.0)


def laplacian(verts: Float[Tensor, "v 3"], edges: Int64[Tensor, "e 2"]) -> Float[Tensor, "v v"]:
    """The mean of the neighbours less oneself: L_ij = 1 / neighbours of i, L_ii = -1.

    Args: verts (V, 3), for their number, dtype and device; edges (E, 2), each once.
    Returns: (V, V) sparse COO, coalesced; -1 on the diagonal of a vertex without neighbours too.

    Guarantees: not differentiable; deterministic; 1e-16 f64, 6e-8 f32
    """
    count = len(verts)
    start, stop = torch.cat([edges, edges.flip(1)]).unbind(-1)
    each = torch.arange(count, device=verts.device)
    share = 1 / torch.bincount(start, minlength=count).to(verts.dtype)[start]
    places = torch.stack([torch.cat([start, each]), torch.cat([stop, each])])
    values = torch.cat([share, -torch.ones_like(verts[:, 0]).detach()])
    return torch.sparse_coo_tensor(places, values, (count, count), check_invariants=False).coalesce()
