"""`pytorch3d.ops.knn`: nearest neighbours in padded batches."""

from typing import NamedTuple

import torch
from torch import Tensor

from geom.checks import check_choice, check_integer, describe
from geom.compat.pytorch3d.padding import Padded, gather, inside, padded, pair, ragged
from geom.errors import ShapeError
from geom.points import knn

__all__ = ["KNN", "knn_gather", "knn_points"]

_CHUNK = 1 << 22  # differences held at once


class KNN(NamedTuple):
    """`dists` and `idx` (N, P1, K), and the neighbours `knn` (N, P1, K, D) where asked for."""

    dists: Tensor
    idx: Tensor
    knn: Tensor | None


def knn_points(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    norm: int = 2,
    K: int = 1,
    version: int = -1,
    return_nn: bool = False,
    return_sorted: bool = True,
) -> KNN:
    """The K nearest points in p2 of each point in p1, nearest first.

    Args: p1 (N, P1, D) and p2 (N, P2, D), float32 or float64; lengths (N,) int64, how much of each cloud is not
    padding; norm 2, for squared distances, or 1; return_nn, whether to give the neighbours themselves. `version` and
    `return_sorted` change nothing: there is one way, and it sorts. In three dimensions, norm 2, by a tree.
    Returns: KNN(dists, idx, knn), 0 in place of missing neighbours and in the rows of padding. Gradients flow through
    dists, to both; through knn, to p2.
    Raises: ShapeError.

    Guarantees: differentiable (coincident points); deterministic; 4e-16 f64, 3e-7 f32
    """
    a, b = padded(p1, lengths1, name="p1"), padded(p2, lengths2, name="p2")
    pair(a, b, ("p1", "p2"))
    check_choice(norm, (1, 2), "norm")
    check_integer(K, "K")
    if norm == 2 and p1.shape[2] == 3:
        (query, starts), (points, offsets) = ragged(a), ragged(b)
        found = knn(query.detach(), points.detach(), K, query_offsets=starts, offsets=offsets).index
        index = spread(found, a, offsets)
    else:
        index = _brute_force(a, b, norm, K)
    missing = index < 0
    gap = distances(p1, p2, index, norm)
    index = torch.where(missing, torch.zeros_like(index), index)
    return KNN(gap, index, knn_gather(p2, index, lengths2) if return_nn else None)


def knn_gather(x: Tensor, idx: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The rows of x that `knn_points` names: out[n, l, k] = x[n, idx[n, l, k]].

    Args: x (N, M, U); idx (N, L, K) int64; lengths (N,), as lengths2 of `knn_points`.
    Returns: (N, L, K, U), 0 for neighbours k >= lengths[n].
    Raises: ShapeError.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    if not isinstance(x, Tensor) or x.ndim != 3 or not isinstance(idx, Tensor) or idx.ndim != 3 or len(idx) != len(x):
        raise ShapeError(f"x and idx: expected tensors (N, M, U) and (N, L, K), got {describe(x)} and {describe(idx)}")
    if lengths is None:
        return gather(x, idx)
    there = torch.arange(idx.shape[2], device=x.device) < lengths.to(x.device)[:, None]
    return gather(x, torch.where(there[:, None], idx, torch.full_like(idx, -1)))


def distances(p1: Tensor, p2: Tensor, index: Tensor, norm: int = 2) -> Tensor:
    """Squared distances, or for norm 1 sums of absolute differences, to p2 at index (N, P1, K); 0 at index -1."""
    gap = p1[:, :, None] - gather(p2, index)
    size = gap.abs().sum(-1) if norm == 1 else gap.square().sum(-1)
    return torch.where(index < 0, torch.zeros_like(size), size)


def spread(found: Tensor, to: Padded, offsets: Tensor) -> Tensor:
    """Indices (M, K) into a ragged batch as padded ones (N, P, K) into each cloud; -1 for missing and for padding."""
    n, p, _ = to.points.shape
    index = found.new_full((n, p, found.shape[1]), -1)
    index[inside(to)] = found
    return torch.where(index < 0, index, index - offsets[:-1, None, None])


def _brute_force(a: Padded, b: Padded, norm: int, k: int) -> Tensor:
    n, p, _ = a.points.shape
    index = torch.full((n, p, k), -1, device=a.points.device)
    for cloud, (size1, size2) in enumerate(zip(a.sizes().tolist(), b.sizes().tolist(), strict=True)):
        query, points = a.points[cloud, :size1].detach(), b.points[cloud, :size2].detach()
        have, start = min(k, size2), 0
        for rows in query.split(max(1, _CHUNK // max(1, points.numel()))):
            gap = rows[:, None] - points
            size = gap.abs().sum(-1) if norm == 1 else gap.square().sum(-1)
            index[cloud, start : start + len(rows), :have] = size.sort(stable=True, dim=-1).indices[:, :have]
            start += len(rows)
    return index
