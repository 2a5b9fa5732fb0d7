"""From the voxels of a skeleton to its ends, branch points and the chains between them: bones for a rig."""

from itertools import pairwise, product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from geom.checks import FLOATS, describe
from geom.errors import ShapeError

__all__ = ["skeleton_graph"]

Graph = list[set[int]]


def skeleton_graph(
    skeleton: Float[Tensor, "*size"] | Bool[Tensor, "*size"], *, steps: int | None = None
) -> tuple[Int64[Tensor, "v dim"], Int64[Tensor, "e 2"]]:
    """The graph of a skeleton (H, W) or (D, H, W), such as `skeletonize` leaves: voxels, and chains as edges.

    Voxels that touch are linked. Links that triangles of touching voxels make superfluous go, those by a corner first,
    then those by an edge, where the topology stays (edge collapses of the flag complex, Boissonnat and Pritam 2020).
    Ends, branch points and lone voxels are then vertices, and chains of voxels with two neighbours edges. The graph has
    as many independent rings as the skeleton has tunnels, if it has no cavities.

    Args: skeleton, numbers above 0.5 count as ones; steps, how many steps from voxel to voxel an edge may stand for:
    longer chains get vertices between. None: no more than make each edge one of two different vertices, and each two
    vertices those of one edge.
    Returns: vertices (V, 2 or 3) int64, voxels (y, x) or (z, y, x) in the order of the volume; edges (E, 2) int64 into
    them, the lower one first, sorted. No two edges are the same.
    Raises: ShapeError.

    >>> cross = torch.zeros(5, 7)
    >>> cross[2] = cross[:, 3] = 1
    >>> vertices, edges = skeleton_graph(cross)
    >>> vertices.tolist()
    [[0, 3], [2, 0], [2, 3], [2, 6], [4, 3]]
    >>> edges.tolist()
    [[0, 2], [1, 2], [2, 3], [2, 4]]

    Guarantees: not differentiable; deterministic; exact
    """
    if not isinstance(skeleton, Tensor) or skeleton.dtype not in (*FLOATS, torch.bool) or skeleton.ndim not in (2, 3):
        raise ShapeError(
            f"skeleton: expected a float32, float64 or bool tensor (H, W) or (D, H, W), got {describe(skeleton)}"
        )
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ShapeError(f"steps: expected None or an int of at least 1, got {describe(steps)}")
    ones = (skeleton.detach() > 0.5).cpu().numpy()
    places = np.argwhere(ones)
    graph = _joined(ones, places)
    _collapse(graph, places)
    edges: set[tuple[int, int]] = set()
    for chain in sorted(_chains(graph), key=len):  # those that have no voxel between their ends first
        last = len(chain) - 1
        pieces = max(-(-last // (steps or last)), 3 if chain[0] == chain[-1] else 1)
        cut = [chain[last * k // pieces] for k in range(pieces + 1)]
        if len(cut) == 2 and (min(cut), max(cut)) in edges:
            cut.insert(1, chain[last // 2])
        edges |= {(min(pair), max(pair)) for pair in pairwise(cut)}
    alone = [k for k, near in enumerate(graph) if not near]
    kept = sorted({*alone, *(k for edge in edges for k in edge)})
    number = {k: n for n, k in enumerate(kept)}
    rows = sorted((number[a], number[b]) for a, b in edges)
    device = skeleton.device
    return (
        torch.from_numpy(places[kept]).reshape(-1, skeleton.ndim).to(device),
        torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 2),
    )


def _joined(ones: np.ndarray, places: np.ndarray) -> Graph:
    """The neighbours of each one, by faces, edges and corners."""
    index = np.full(np.add(ones.shape, 2), -1)
    index[tuple(places.T + 1)] = np.arange(len(places))
    graph: Graph = [set() for _ in places]
    for offset in product((-1, 0, 1), repeat=ones.ndim):
        if any(offset):
            for near, other in zip(graph, index[tuple((places + 1 + offset).T)].tolist(), strict=True):
                if other >= 0:
                    near.add(other)
    return graph


def _collapse(graph: Graph, places: np.ndarray) -> None:
    """Take away edges whose common neighbours are one of them and neighbours of that one: the topology stays."""
    pairs = [(a, b) for a, near in enumerate(graph) for b in sorted(near) if a < b]
    length = np.abs(np.diff(places[np.array(pairs, dtype=np.int64).reshape(-1, 2)], axis=1)).sum((1, 2))
    pairs = [pairs[k] for k in np.argsort(-length, kind="stable")]
    count = len(pairs) + 1
    while len(pairs) < count:
        count, left = len(pairs), []
        for a, b in pairs:
            common = graph[a] & graph[b]
            if any(common - graph[c] == {c} for c in common):
                graph[a].remove(b)
                graph[b].remove(a)
            else:
                left.append((a, b))
        pairs = left


def _chains(graph: Graph) -> list[list[int]]:
    """Walks from one vertex that has not two neighbours to the next, and rings from their first voxel back to it."""
    chains, passed = [], set()

    def walk(chain: list[int]) -> None:
        while len(graph[chain[-1]]) == 2 and chain[-1] != chain[0]:
            passed.add(chain[-1])
            chain.append(next(k for k in sorted(graph[chain[-1]]) if k != chain[-2]))
        chains.append(chain)

    for start in [k for k, near in enumerate(graph) if len(near) != 2]:
        for k in sorted(graph[start]):
            if k not in passed and (len(graph[k]) == 2 or start < k):
                walk([start, k])
    for start in [k for k, near in enumerate(graph) if len(near) == 2]:
        if start not in passed:
            passed.add(start)
            walk([start, min(graph[start])])
    return chains
