"""Linear finite elements on tetrahedra: the stiffness matrix, and the volume that belongs to each vertex."""

from itertools import combinations, permutations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.meshes.laplacian import graph_laplacian
from geom.meshes.tetrahedra import volumes

__all__ = ["tetrahedral_laplacian", "voronoi_volumes"]


def tetrahedral_laplacian(vertices: Float[Tensor, "v 3"], tets: Int64[Tensor, "t 4"]) -> Float[Tensor, "v v"]:
    """Stiffness matrix L_ij = integral of grad u_i . grad u_j, sparse, positive semi-definite, rows of sum 0.

    Args: vertices (V, 3), metres; tets (T, 4) int64, of volumes that are not 0.

    Guarantees: differentiable (tetrahedra without volume); deterministic on the CPU; 1e-12 f64 on even tetrahedra
    """
    volume = volumes(vertices, tets).abs()
    corners = vertices[tets]
    inverse = torch.linalg.inv(corners[:, 1:] - corners[:, :1])  # columns: gradients of corners 1, 2 and 3
    gradient = torch.cat([-inverse.sum(-1, keepdim=True), inverse], -1).mT
    i, j = torch.tensor(list(combinations(range(4), 2)), device=tets.device).unbind(-1)
    weight = -volume[:, None] * (gradient[:, i] * gradient[:, j]).sum(-1)
    return graph_laplacian(tets[:, i].flatten(), tets[:, j].flatten(), weight.flatten(), len(vertices))


def voronoi_volumes(vertices: Float[Tensor, "v 3"], tets: Int64[Tensor, "t 4"]) -> Float[Tensor, " v"]:
    """The lumped mass matrix's diagonal: of each tetrahedron, what is nearer to a vertex than to the three others.

    A tetrahedron falls into 24 pieces, each between a corner, the middle of an edge, the circumcentre of a face and its
    own. A circumcentre that lies outside gives way: that of a face to the middle of its longest side, that of a
    tetrahedron to that of the face it lies farthest behind (in barycentric coordinates). They sum to the whole volume,
    and each is positive.

    Args: as `tetrahedral_laplacian`. Returns: (V,), cubic metres; 0 for a vertex without a tetrahedron.
    Meyer et al. 2003, Sec. 3.3, one dimension up.

    Guarantees: differentiable (tetrahedra without volume); deterministic on the CPU; 1e-12 f64 on even tetrahedra
    """
    corners = vertices[tets]
    faces = [tuple(k for k in range(4) if k != opposite) for opposite in range(4)]
    centres = torch.stack([_face_centres(corners[:, face]) for face in faces], 1)
    sides = corners[:, 1:] - corners[:, :1]
    to_centre = torch.linalg.solve(2 * sides, sides.square().sum(-1))
    share = torch.linalg.solve(sides.mT, to_centre)
    share = torch.cat([1 - share.sum(-1, keepdim=True), share], -1)
    least, behind = share.min(-1)
    snapped = centres.gather(1, behind[:, None, None].expand(-1, 1, 3))[:, 0]
    centre = torch.where(least[:, None] < 0, snapped, corners[:, 0] + to_centre)
    sign = volumes(vertices, tets).sign()
    total = vertices.new_zeros(len(vertices))
    for i, j, k, last in permutations(range(4)):
        turns = sum(a > b for a, b in combinations((i, j, k, last), 2))
        middle = (corners[:, j] - corners[:, i]) / 2
        area = torch.linalg.cross(middle, centres[:, last] - corners[:, i])
        piece = (area * (centre - corners[:, i])).sum(-1) / 6
        total = total.index_add(0, tets[:, i], sign * piece * (-1) ** turns)
    return total


def _face_centres(corners: Tensor) -> Tensor:
    """Circumcentres (T, 3) of triangles (T, 3, 3), or the middle of the longest side where they lie outside."""
    opposite = (corners.roll(-1, 1) - corners.roll(1, 1)).square().sum(-1)
    share = opposite * (opposite.sum(-1, keepdim=True) - 2 * opposite)
    obtuse = share < 0
    share = torch.where(obtuse.any(-1, keepdim=True), (~obtuse).to(share.dtype), share)
    return (share[..., None] * corners).sum(1) / share.sum(-1, keepdim=True)
