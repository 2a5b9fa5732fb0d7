"""Laplacians of a triangle mesh as sparse matrices, and the areas that belong to its vertices.

All are positive semi-definite: L u is minus the Laplacian of u, integrated over each vertex's area.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_choice
from geom.errors import ShapeError
from geom.meshes.geometry import area_vectors, check_faces, check_surface, edges, gather_corners, length

__all__ = ["cotangent_laplacian", "cotangents", "uniform_laplacian", "vertex_areas"]


def cotangent_laplacian(vertices: Float[Tensor, "v 3"], faces: Int64[Tensor, "f 3"]) -> Float[Tensor, "v v"]:
    """Stiffness matrix of linear finite elements: L_ij = -(cot a + cot b) / 2 over the angles a, b opposite edge ij.

    L_ii = -sum of the others in its row. With `vertex_areas` A, u -> -(L u) / A is the Laplace-Beltrami operator. Each
    cotangent is bounded by 1 / sqrt(eps), 6.7e7 in float64 and 2.9e3 in float32, as if no angle were nearer to 0 or pi
    than sqrt(eps); a face with a side of length 0 adds nothing.

    Args: vertices (V, 3) float32 or float64; faces (F, 3) int64. Any sizes; no unit (it is free of scale).
    Returns: (V, V) sparse COO, coalesced, symmetric; gradients, first and second, flow through its values.
    Raises: ShapeError.
    Pinkall & Polthier 1993, Eq. (8).

    >>> square = torch.tensor([[0., 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    >>> cotangent_laplacian(square, torch.tensor([[0, 1, 2], [0, 2, 3]])).to_dense()[0].abs().tolist()
    [1.0, 0.5, 0.0, 0.5]

    Guarantees: differentiable (faces without area); deterministic on the CPU; 1e-15 f64, 5e-7 f32 on even faces
    """
    if vertices.ndim != 2:
        raise ShapeError(f"vertices: expected a tensor (V, 3), got shape {tuple(vertices.shape)}")
    cot = cotangents(vertices, faces)
    start, stop = faces[:, [1, 2, 0]].flatten(), faces[:, [2, 0, 1]].flatten()  # the side opposite each corner
    return graph_laplacian(start, stop, cot.flatten() / 2, len(vertices))


def uniform_laplacian(faces: Int64[Tensor, "f 3"], count: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Laplacian of the graph of edges: L_ii = number of neighbours, L_ij = -1 for neighbours i, j.

    Args: faces (F, 3) int64; count, the number of vertices V; dtype of the values, torch's default if not given.
    Returns: (V, V) sparse COO, coalesced, symmetric.
    Raises: ShapeError.

    >>> uniform_laplacian(torch.tensor([[0, 1, 2]]), 3).to_dense()[0].tolist()
    [2.0, -1.0, -1.0]

    Guarantees: not differentiable; deterministic; exact f64, exact f32
    """
    check_faces(faces)
    if not isinstance(count, int) or (faces.numel() and count <= int(faces.max())):
        raise ShapeError(f"count: expected an integer above every index in faces, got {count!r}")
    start, stop = edges(faces).unbind(-1)
    weight = torch.ones(len(start), dtype=dtype or torch.get_default_dtype(), device=faces.device)
    return graph_laplacian(start, stop, weight, count)


def vertex_areas(
    vertices: Float[Tensor, "*b v 3"], faces: Int64[Tensor, "f 3"], *, kind: str = "barycentric"
) -> Float[Tensor, "*b v"]:
    """The area of surface that belongs to each vertex, the lumped mass matrix's diagonal; they sum to the whole area.

    Args:
        vertices: (..., V, 3) float32 or float64, metres.
        faces: (F, 3) int64.
        kind: "barycentric", a third of each face around the vertex; or "voronoi", the points nearest to it, with the
            rule for obtuse faces of Meyer et al. 2003, Sec. 3.3: half of the face to the obtuse corner, a quarter to
            the others.

    Returns: (..., V), square metres; 0 for a vertex without a face.
    Raises: ShapeError.

    Guarantees: differentiable (faces without area); deterministic on the CPU; 1e-15 f64, 5e-7 f32
    """
    check_surface(vertices, faces)
    check_choice(kind, ("barycentric", "voronoi"), "kind")
    area = (length(area_vectors(vertices, faces)) / 2)[..., None].expand(*vertices.shape[:-2], len(faces), 3)
    share = area / 3
    if kind == "voronoi":
        cot = cotangents(vertices, faces)
        corners = vertices[..., faces, :]
        opposite = (corners.roll(-1, -2) - corners.roll(1, -2)).square().sum(-1) * cot / 8
        obtuse = cot < 0
        split = torch.where(obtuse, area / 2, area / 4)
        share = torch.where(obtuse.any(-1, keepdim=True), split, opposite.roll(1, -1) + opposite.roll(-1, -1))
    return gather_corners(share[..., None], faces, vertices.shape[-2])[..., 0]


def cotangents(vertices: Tensor, faces: Tensor) -> Tensor:
    """(..., F, 3): the cotangent of each corner's angle, bounded by 1 / sqrt(eps); 0 at a side of length 0."""
    check_surface(vertices, faces)
    # coordinates first and faces last: everything that follows runs along memory
    rows = vertices.movedim(-1, 0).contiguous().index_select(-1, faces.mT.flatten())
    corners = rows.unflatten(-1, (3, len(faces))).movedim(-2, 1)  # (coordinate, corner, ..., face)
    sides = corners.roll(-1, 1) - corners.roll(1, 1)  # opposite each corner
    normal = torch.linalg.cross(sides[:, 0], sides[:, 1], dim=0)
    after, before = sides.roll(-1, 1), sides.roll(1, 1)
    size = length(sides.movedim(0, -1))
    least = torch.finfo(vertices.dtype).eps ** 0.5 * size.roll(-1, 0) * size.roll(1, 0)
    sine = torch.maximum(length(normal.movedim(0, -1)), least)
    none = sine == 0
    found = torch.where(none, 0.0, -(after * before).sum(0) / torch.where(none, 1.0, sine))
    return found.movedim(0, -1)


def graph_laplacian(start: Tensor, stop: Tensor, weight: Tensor, count: int, backend: str = "auto") -> Tensor:
    """D - W, sparse (count, count), of edges (start, stop) of these weights; those named twice add up."""
    from geom.kernels import bridge

    warp = bridge.choose(backend, weight) and start.device.type == "cpu"  # one thread counts: not for CUDA
    indices, forth, back, diagonal = (_counted if warp else _sorted)(start, stop, count)
    into = torch.cat([forth, back, diagonal[start], diagonal[stop]])
    values = weight.new_zeros(indices.shape[1]).index_add(0, into, torch.cat([-weight, -weight, weight, weight]))
    return _Sparse.apply(values, indices, count)


class _Sparse(torch.autograd.Function):
    """A sparse matrix (count, count) of values at sorted indices; torch's own drops second derivatives."""

    @staticmethod
    def forward(values: Tensor, indices: Tensor, count: int) -> Tensor:
        return torch.sparse_coo_tensor(indices, values, (count, count), check_invariants=False, is_coalesced=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.count = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (indices,) = grads, ctx.saved_tensors
        pattern = _Sparse.forward(grad.new_ones(indices.shape[1], layout=torch.strided), indices, ctx.count)
        return grad.sparse_mask(pattern).values(), None, None


def _counted(start: Tensor, stop: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_sorted`, by counting, on the CPU."""
    from geom.kernels import bridge, edges

    sides = len(start)
    head, cursor, diagonal = (start.new_zeros(n) for n in (count + 1, count, count))
    entries, rows, columns = (start.new_empty(n) for n in (4 * sides, 2 * sides + count, 2 * sides + count))
    forth, back, size = start.new_empty(sides), start.new_empty(sides), start.new_empty(1)
    ends = (start.contiguous(), stop.contiguous(), sides, count)
    found = (rows, columns, forth, back, diagonal, size)
    bridge.launch(edges.edge_pattern[torch.float64], 1, *ends, head, entries, cursor, *found, device=start.device)
    n = int(size)
    return torch.stack([rows[:n], columns[:n]]), forth, back, diagonal


def _sorted(start: Tensor, stop: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices (2, N), row by row, of the edges both ways and the diagonal; which of them are (start, stop),
    (stop, start) and the diagonal."""
    keys = [start * count + stop, stop * count + start]
    diagonal = torch.arange(count, device=start.device) * (count + 1)
    keys, places = torch.unique(torch.cat([*keys, diagonal]), return_inverse=True)
    return torch.stack([keys // count, keys % count]), *places.split([len(start), len(start), count])
