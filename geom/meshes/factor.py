"""Sparse factorisation of symmetric matrices over the vertices of a mesh: once, for many right-hand sides."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SymmetricFactor"]

Array = NDArray[Any]
_LEAF = 64  # vertices below which a part is not cut again


class SymmetricFactor:
    """LU factors of a sparse symmetric positive definite matrix whose rows stand at places in space.

    Rows are eliminated by nested dissection: space is halved, and again, and the rows that touch the other half come
    last. On surfaces that fills in a quarter of what minimum degree does (41,000 vertices: 0.2 s instead of 50 s).
    """

    def __init__(self, matrix: Any, places: Array) -> None:
        from scipy import sparse  # 0.2 s that `import geom.meshes` need not spend
        from scipy.sparse.linalg import splu

        rows = sparse.csr_array(matrix)
        self._order = dissect(rows, places)
        self._factor = splu(
            rows[self._order][:, self._order].tocsc(),
            permc_spec="NATURAL",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )

    def solve(self, right: Array) -> Array:
        """The solution (V, B) for right-hand sides (V, B)."""
        result = np.empty_like(right)
        result[self._order] = self._factor.solve(np.ascontiguousarray(right[self._order]))
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
