"""Skinning weights from one surface to another: copied where they agree, filled in where they do not."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_points, check_positive, check_same
from geom.errors import ShapeError
from geom.meshes.distance import SurfaceTree
from geom.meshes.factor import SymmetricFactor
from geom.meshes.geometry import edges, vertex_normals
from geom.meshes.laplacian import cotangent_laplacian, vertex_areas
from geom.meshes.mesh import Mesh
from geom.skinning.pruning import check_dense

__all__ = ["TransferredWeights", "transfer_weights"]

_SHARE = 0.2  # of the neighbours' mean in each step of smoothing


class TransferredWeights(NamedTuple):
    """`weights` (V, J), at least 0, rows of sum 1; `matched` (V,) bool, where they were copied."""

    weights: Tensor
    matched: Tensor


def transfer_weights(
    source: Mesh,
    weights: Float[Tensor, "s j"],
    target: Mesh,
    *,
    max_distance: float = 0.05,
    max_angle: float = math.radians(30),
    flip_normals: bool = False,
    smoothing: int = 10,
) -> TransferredWeights:
    """Weights of a body for a garment, or of one mesh for another of the same shape.

    1. Each vertex asks the closest place of the source for its weights and its normal, and takes the weights where
       distance and angle between normals are small.
    2. The others minimise tr W^T (L + L A^-1 L) W, those of step 1 held: harmonic and biharmonic in parts that
       balance at the extent, in which lengths are measured here. Negative weights become 0, rows are divided by sums.
    3. The filled-in vertices, and those within max_distance of them along edges, move `smoothing` times a fifth of
       the way to the mean of their neighbours.

    A connected part without any match keeps the weights of the closest places.

    Args:
        source: (S, 3), at least one face. weights: (S, J), at least 0, rows of positive sum. target: (V, 3).
        max_distance: as a share of the target's extent. max_angle: radians.
        flip_normals: count opposite normals as equal, for cloth that is inside out.
        smoothing: steps; 0 leaves step 3 out.

    Returns: TransferredWeights, dtype of `weights`; computed in float64.
    Raises: ShapeError.
    Abdrashitov, Raichstat, Monsen, Hill 2023, Secs. 3.1-3.3.

    Guarantees: not differentiable; deterministic; 1e-12 f64, 1e-6 f32
    """
    check_dense(weights)
    if len(weights) != len(source.vertices):
        raise ShapeError(f"weights: expected a row for each of {len(source.vertices)} vertices, got {len(weights)}")
    if not bool((weights.sum(1) > 0).all()):
        raise ShapeError("weights: expected rows of positive sum, got a row of zeros")
    check_same(weights, source.vertices, "weights and source")
    check_same(check_points(target.vertices, "target.vertices"), source.vertices, "target and source")
    check_positive(max_distance, "max_distance")
    check_positive(max_angle, "max_angle")
    x = target.vertices.detach().double()
    if not len(x):
        return TransferredWeights(weights.new_zeros(0, weights.shape[1]), torch.zeros(0, dtype=torch.bool).to(x.device))
    extent = float((x.amax(0) - x.amin(0)).norm()) or 1.0
    copied, distance, cosine = _closest(source, weights.detach().double(), x, target)
    cosine = cosine.abs() if flip_normals else cosine
    matched = (distance <= max_distance * extent) & (cosine >= math.cos(min(max_angle, math.pi)))
    held = matched | _stray(target, matched)
    found = copied
    if not bool(held.all()):
        found = _inpaint(x / extent, target, copied, held)
    if smoothing and not bool(held.all()):
        found = _smooth(x, target, found, ~held, max_distance * extent, smoothing)
    return TransferredWeights(found.to(weights.dtype), matched)


def _closest(source: Mesh, weights: Tensor, x: Tensor, target: Mesh) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the closest places (V, J), their distances, and the cosines between the normals there and here."""
    surface = Mesh(source.vertices.detach().double(), source.faces)
    close = SurfaceTree.build(surface).closest(x)
    corners, share = source.faces[close.faces], close.barycentric[..., None]
    weights = weights / weights.sum(1, keepdim=True)
    copied = (share * weights[corners]).sum(1)
    there = (share * vertex_normals(surface.vertices, surface.faces)[corners]).sum(1)
    here = vertex_normals(x, target.faces)
    cosine = (torch.nn.functional.normalize(there, dim=1) * torch.nn.functional.normalize(here, dim=1)).sum(1)
    return copied / copied.sum(1, keepdim=True), close.distance, cosine


def _stray(target: Mesh, matched: Tensor) -> Tensor:
    """Vertices of connected parts that have no match."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    start, stop = edges(target.faces).cpu().numpy().T
    count = len(matched)
    graph = sparse.csr_array((np.ones(len(start)), (start, stop)), shape=(count, count))
    part = torch.from_numpy(connected_components(graph, directed=False)[1]).long().to(matched.device)
    found = torch.zeros(count, dtype=torch.bool, device=matched.device).index_fill(0, part[matched], True)
    return ~found[part]


def _inpaint(x: Tensor, target: Mesh, weights: Tensor, held: Tensor) -> Tensor:
    from scipy import sparse

    laplacian = cotangent_laplacian(x, target.faces).cpu()
    L = sparse.csr_array((laplacian.values(), laplacian.indices().numpy()), laplacian.shape)
    area = vertex_areas(x, target.faces).clamp(min=1e-12).cpu().numpy()
    Q = L + L @ sparse.diags_array(1 / area) @ L
    known, given = held.cpu().numpy(), weights.cpu().numpy()
    inner = Q[~known][:, ~known]
    inner = inner + 1e-13 * inner.diagonal().max() * sparse.eye_array(inner.shape[0])  # faces without area tie nothing
    filled = SymmetricFactor(inner, x.cpu().numpy()[~known]).solve(-(Q[~known][:, known] @ given[known]))
    found = given.copy()
    filled = np.maximum(filled, 0)
    total = filled.sum(1, keepdims=True)
    found[~known] = np.where(total > 0, filled / np.where(total > 0, total, 1), given[~known])
    return torch.from_numpy(found).to(weights.device)


def _smooth(x: Tensor, target: Mesh, weights: Tensor, filled: Tensor, reach: float, steps: int) -> Tensor:
    from scipy import sparse
    from scipy.sparse.csgraph import dijkstra

    start, stop = edges(target.faces).unbind(1)
    i, j = torch.cat([start, stop]).cpu().numpy(), torch.cat([stop, start]).cpu().numpy()
    length = (x[start] - x[stop]).norm(dim=1).clamp(min=1e-300).repeat(2).cpu().numpy()
    count = len(x)
    graph = sparse.csr_array((length, (i, j)), shape=(count, count))
    begun = filled.nonzero()[:, 0].cpu().numpy()
    moving = dijkstra(graph, indices=begun, min_only=True, limit=reach) <= reach
    mean = sparse.csr_array((np.ones(len(i)), (i, j)), shape=(count, count))
    degree = mean.sum(1)
    moving &= degree > 0
    mean = sparse.diags_array(1 / np.maximum(degree, 1)) @ mean
    found = weights.cpu().numpy().copy()
    for _ in range(steps):
        found[moving] += _SHARE * (mean[moving] @ found - found[moving])
    return torch.from_numpy(found / found.sum(1, keepdims=True)).to(weights.device)
