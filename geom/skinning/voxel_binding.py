"""Weights from distances inside a solid of voxels, which broken meshes have too."""

from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from geom.checks import check_indices, check_positive, describe
from geom.errors import ShapeError
from geom.meshes.distance import SurfaceTree
from geom.meshes.mesh import Mesh
from geom.skinning.segments import check_segments, nearest_on_segments

__all__ = ["voxel_weights"]

Array = NDArray[Any]
_BLOCK = 1 << 18  # voxels asked at once
_STEPS = tuple(step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0))  # one of each two opposite ways


def voxel_weights(
    mesh: Mesh,
    segments: Float[Tensor, "b 2 3"],
    *,
    owner: Int64[Tensor, " b"] | None = None,
    resolution: int = 64,
    falloff: float = 0.5,
) -> Float[Tensor, "v j"]:
    """Weights that fall with the way from each joint's bones through the inside of a mesh,

        w ~ 1 / ((1 - falloff) d + falloff d^2)^2,

    d the shortest way between centres of touching voxels (26 neighbours), at least half a voxel, in units of the mean
    way of vertices to their nearest bones. The solid is every voxel that the surface passes through or winds around
    more than half a time: holes, overlapping parts, vertices that stand twice and faces that meet in threes do no harm.
    A bone outside of it starts at the nearest voxel. Parts that no bone reaches take the bone that is nearest in a
    straight line, and joints without a bone have none.

    Args:
        mesh: (V, 3), metres; at least one face; counter-clockwise seen from outside, where it encloses anything.
        segments: the ends of each bone, dtype and device of the mesh; may have length 0.
        owner: the joint that each bone belongs to, whose nearest bone counts; each a joint of its own if None.
        resolution: voxels along the longest side. falloff: in [0, 1]: 0 is 1 / d^2, 1 is 1 / d^4, nearer to rigid.

    Returns: (V, J), J joints, up to the last owner; positive where one is reached, rows of sum 1; computed in float64.
    Raises: ShapeError.
    Dionne & de Lasa 2013, Sec. 3 and Eq. (1).

    Guarantees: not differentiable; deterministic; distances to 10 % and a voxel
    """
    check_segments(mesh.vertices, segments)
    if not isinstance(resolution, int) or isinstance(resolution, bool) or not 2 <= resolution <= 256:
        raise ShapeError(f"resolution: expected an integer from 2 to 256, got {resolution!r}")
    if not 0 <= falloff <= 1:
        raise ShapeError(f"falloff: expected a number in [0, 1], got {falloff!r}")
    owner = torch.arange(len(segments)) if owner is None else owner.cpu()
    if owner.shape != (len(segments),):
        raise ShapeError(f"owner: expected a joint for each of {len(segments)} bones, got {describe(owner)}")
    check_indices(owner[:, None], 1, torch.iinfo(torch.int64).max, "owner", "B")
    x, ends = mesh.vertices.detach().double(), segments.detach().double()
    low, high = x.amin(0), x.amax(0)
    h = check_positive(float((high - low).max()), "mesh: its extent") / resolution
    centres, number = _solid(Mesh(x, mesh.faces), low, high, h)
    graph = _ways(number, h)
    joints = int(owner.max()) + 1
    found = np.stack([_spread(graph, centres, ends.cpu()[owner == joint], h) for joint in range(joints)], 1)
    d = _at_vertices(x.cpu().numpy(), centres, found, number, low.cpu().numpy(), h)
    stray = ~np.isfinite(d).any(1)
    straight, nearest = nearest_on_segments(x, ends)[0].cpu()[torch.from_numpy(stray)].min(1)
    d[stray, owner[nearest].numpy()] = straight.numpy()
    reached = np.isfinite(d)
    d = np.maximum(d, h / 2) / np.maximum(d.min(1), h / 2).mean()
    d[~reached] = 1
    weights = np.where(reached, 1 / np.square((1 - falloff) * d + falloff * np.square(d)), 0)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True)).to(mesh.vertices)


def _solid(mesh: Mesh, low: Tensor, high: Tensor, h: float) -> tuple[Array, Array]:
    """Centres (N, 3) of the voxels of the solid, and their numbers in the grid, -1 elsewhere."""
    if not len(mesh.faces):
        raise ShapeError("mesh: expected at least one face, got none")
    counts = [int(n) for n in ((high - low) / h).ceil().clamp(min=1).add(2).tolist()]
    device = low.device
    cell = torch.cartesian_prod(*[torch.arange(n, device=device) for n in counts])
    centres = low + (cell - 0.5) * h  # one voxel beyond the bounds
    tree = SurfaceTree.build(mesh)
    solid = []
    for part in centres.split(_BLOCK):
        crossed = (tree.closest(part).points - part).abs().amax(1) <= h / 2
        solid.append(crossed | (tree.winding_number(part) > 0.5))
    kept = torch.cat(solid).cpu().numpy()
    number = np.full(len(kept), -1)
    number[kept] = np.arange(kept.sum())
    return centres.cpu().numpy()[kept], number.reshape(counts)


def _ways(number: Array, h: float) -> Any:
    """Lengths between the centres of voxels that touch, sparse."""
    from scipy import sparse

    start, stop, length = [], [], []
    for step in _STEPS:
        here = tuple(slice(max(0, -k), n - max(0, k)) for k, n in zip(step, number.shape, strict=True))
        there = tuple(slice(max(0, k), n - max(0, -k)) for k, n in zip(step, number.shape, strict=True))
        a, b = number[here].ravel(), number[there].ravel()
        both = (a >= 0) & (b >= 0)
        start.append(a[both])
        stop.append(b[both])
        length.append(np.full(both.sum(), h * np.linalg.norm(step)))
    count = int(number.max()) + 1
    return sparse.csr_array(
        (np.concatenate(length), (np.concatenate(start), np.concatenate(stop))), shape=(count, count)
    )


def _spread(graph: Any, centres: Array, bones: Tensor, h: float) -> Array:
    """Distances (N,) of the voxels from those that some bones pass."""
    from scipy.sparse.csgraph import dijkstra

    straight = nearest_on_segments(torch.from_numpy(centres), bones)[0]
    near = straight <= straight.amin(0).clamp(min=0.5 * 3**0.5 * h)
    begun = near.any(1).nonzero()[:, 0].numpy()
    if not len(begun):
        return np.full(len(centres), np.inf)
    return dijkstra(graph, directed=False, indices=begun, min_only=True)


def _at_vertices(x: Array, centres: Array, found: Array, number: Array, low: Array, h: float) -> Array:
    """Distances (V, J) at vertices: the least over the voxels around, and the way to their centres."""
    cell = np.clip(np.floor((x - low) / h).astype(int) + 1, 1, np.array(number.shape) - 2)
    best = np.full((len(x), found.shape[1]), np.inf)
    for step in product((-1, 0, 1), repeat=3):
        near = number[tuple((cell + step).T)]
        inside = np.flatnonzero(near >= 0)
        near = near[inside]
        way = np.linalg.norm(x[inside] - centres[near], axis=1)
        best[inside] = np.minimum(best[inside], found[near] + way[:, None])
    return best
