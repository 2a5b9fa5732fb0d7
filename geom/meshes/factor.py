"""Sparse factorisation of symmetric matrices over the vertices of a mesh: once, for many right-hand sides."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["SYMMETRIC", "SymmetricFactor", "dissect"]

Array = NDArray[Any]
SYMMETRIC: dict[str, Any] = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}  # of scipy's splu
_LEAF = 64  # vertices below which a part is not cut again


class SymmetricFactor:
    """L D L^T of a sparse symmetric positive definite matrix whose rows stand at places in space.

    Rows are eliminated by nested dissection: space is halved, and again, and the rows that touch the other half come
    last. On surfaces that fills in a quarter of what minimum degree does (41,000 vertices: 0.2 s instead of 50 s).
    Without places they are eliminated as they stand.
    """

    def __init__(self, matrix: Any, places: Array | None = None) -> None:
        from scipy import sparse  # 0.2 s that `import geom.meshes` need not spend
        from scipy.sparse.linalg import splu

        rows = sparse.csr_array(matrix)
        self._order = None if places is None else dissect(rows, places)
        ordered = rows if self._order is None else rows[self._order][:, self._order]
        found = splu(ordered.tocsc(), permc_spec="NATURAL", **SYMMETRIC)
        lower, starts = found.L, found.L.indptr.astype(np.int64)
        count = len(starts) - 1
        below = lower.indices != np.repeat(np.arange(count, dtype=np.int32), np.diff(starts))
        starts, rows = (torch.from_numpy(x) for x in (starts - np.arange(count + 1), lower.indices[below]))
        values, pivots = (torch.from_numpy(x) for x in (lower.data[below], found.U.diagonal()))
        self._parts = starts, rows, values, pivots

    def solve(self, right: Array) -> Array:
        """The solution (V, B) for right-hand sides (V, B), float64."""
        from geom.kernels.triangular import solve_factored

        given = right if self._order is None else right[self._order]
        found = solve_factored(*self._parts, torch.from_numpy(np.ascontiguousarray(given))).numpy()
        if self._order is None:
            return found
        result = np.empty_like(found)
        result[self._order] = found
        return result


def dissect(rows: Any, places: Array) -> Array:
    """The order of elimination."""
    side = np.zeros(len(places), dtype=bool)

    def order(part: Array) -> list[Array]:
        if len(part) <= _LEAF:
            return [part]
        x = places[part]
        sorting = np.argpartition(x[:, np.argmax(np.ptp(x, axis=0))], len(part) // 2)
        left, right = part[sorting[: len(part) // 2]], part[sorting[len(part) // 2 :]]
        side[right] = True
        near = rows[left]
        owner = np.repeat(np.arange(len(left)), np.diff(near.indptr))
        border = np.zeros(len(left), dtype=bool)
        border[owner[side[near.indices]]] = True
        side[right] = False
        return [*order(left[~border]), *order(right), left[border]]

    return np.concatenate(order(np.arange(len(places))))
