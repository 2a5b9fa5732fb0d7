"""Bounded biharmonic weights of bones inside a surface, through tetrahedra that fill it."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_positive
from geom.errors import ShapeError
from geom.meshes.distance import SurfaceTree
from geom.meshes.geometry import mass_properties
from geom.meshes.mesh import Mesh
from geom.meshes.tetrahedra import Tetrahedra, tetrahedralize
from geom.points.neighbors import knn
from geom.skinning.biharmonic import biharmonic_weights
from geom.skinning.segments import check_segments, nearest_on_segments

__all__ = ["solid_weights"]

_CELLS = 2500  # lattice cells that fill the volume, if no edge length is given
_TOLERANCE = 1e-4  # of the weights, which the mesh of tetrahedra does not deserve better
_TIE = 1e-6  # bones share a vertex whose distances differ by no more than this share of an edge


def solid_weights(
    mesh: Mesh, segments: Float[Tensor, "j 2 3"], *, edge_length: float | None = None
) -> Float[Tensor, "v j"]:
    """Bounded biharmonic weights of bones that lie inside a surface.

    1. `geom.meshes.tetrahedralize` fills the surface; parts that no bone passes are left out.
    2. Along each bone the nearest vertices are fixed to it, to the nearest of several.
    3. `biharmonic_weights` in the solid; the surface has the weights of the nearest place on the solid's boundary.

    Args:
        mesh: (V, 3), metres; it must enclose something; holes and overlapping parts do little harm.
        segments: the ends of each bone, dtype and device of the mesh.
        edge_length: of the tetrahedra, metres, below the thickness of what is to bend; if not given such that about
            30,000 fill the volume.

    Returns: (V, J), at least 0, rows of sum 1; 0 for a bone that is nowhere the nearest.
    Raises: ShapeError. Warns: as `biharmonic_weights`.

    Guarantees: not differentiable; deterministic; 1e-4 of the weights in the solid
    """
    check_segments(mesh.vertices, segments)
    if not len(mesh.faces):
        raise ShapeError("mesh: expected at least one face, got none")
    exact, bones = Mesh(mesh.vertices.detach().double(), mesh.faces), segments.detach().double()
    h = _edge_length(exact) if edge_length is None else check_positive(edge_length, "edge_length")
    solid = tetrahedralize(exact, edge_length=h)
    solid = _reached(solid, _along(solid.vertices, bones, h))
    fixed = _along(solid.vertices, bones, h)
    distance = nearest_on_segments(solid.vertices[fixed], bones)[0]
    nearest = (distance <= distance.amin(1, keepdim=True) + _TIE * h).double()
    found = biharmonic_weights(*solid, fixed, nearest / nearest.sum(1, keepdim=True), tolerance=_TOLERANCE).weights
    boundary = _boundary(solid.tets)
    close = SurfaceTree.build(Mesh(solid.vertices, boundary)).closest(exact.vertices)
    weights = (close.barycentric[..., None] * found[boundary[close.faces]]).sum(1)
    return (weights / weights.sum(1, keepdim=True)).to(mesh.vertices)


def _edge_length(mesh: Mesh) -> float:
    x = mesh.vertices
    extent = check_positive(float((x.amax(0) - x.amin(0)).max()), "mesh: its extent")
    volume = abs(float(mass_properties(x, mesh.faces).volume))
    return (max(volume, 0.01 * extent**3) / _CELLS) ** (1 / 3)


def _along(vertices: Tensor, bones: Tensor, h: float) -> Tensor:
    """The vertices nearest to places every half edge along the bones, within an edge; of each bone at least one."""
    start, way = bones[:, 0], bones[:, 1] - bones[:, 0]
    steps = (way.norm(dim=1) / (h / 2)).ceil().long().clamp(min=1, max=10_000)
    which = torch.arange(len(bones), device=bones.device).repeat_interleave(steps + 1)
    at = torch.cat([torch.linspace(0, 1, int(n) + 1, dtype=bones.dtype, device=bones.device) for n in steps])
    found = knn(start[which] + at[:, None] * way[which], vertices, 1)
    distance, index = found.distance[:, 0], found.index[:, 0]
    least = torch.full_like(way[:, 0], torch.inf).scatter_reduce(0, which, distance, "amin")
    return index[(distance <= h) | (distance <= least[which])].unique()


def _reached(solid: Tetrahedra, fixed: Tensor) -> Tetrahedra:
    """Without connected parts that have no fixed vertex."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    count = len(solid.vertices)
    i, j = solid.tets[:, [0, 0, 0]].flatten().cpu().numpy(), solid.tets[:, 1:].flatten().cpu().numpy()
    graph = sparse.csr_array((np.ones(len(i)), (i, j)), shape=(count, count))
    part = torch.from_numpy(connected_components(graph, directed=False)[1]).long().to(fixed.device)
    kept = torch.isin(part, part[fixed])
    number = kept.long().cumsum(0) - 1
    return Tetrahedra(solid.vertices[kept], number[solid.tets[kept[solid.tets[:, 0]]]])


def _boundary(tets: Tensor) -> Tensor:
    """Faces (F, 3) that belong to one tetrahedron."""
    faces = torch.cat([tets[:, [k for k in range(4) if k != left]] for left in range(4)]).sort(1).values
    each, times = torch.unique(faces, dim=0, return_counts=True)
    return each[times == 1]
