"""Polygons to triangles."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.io.bytes import Source

__all__ = ["fan", "whole"]


def fan(source: Source, indices: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Triangles (F, 3) of polygons, each a fan about its first corner: (0, 1, 2), (0, 2, 3), ...

    Args: indices (C,) or any shape, the corners of all polygons one after the other; lengths (P,), corners of each.
    Raises: FileFormatError where a polygon has fewer than 3 corners or `indices` are not whole int64 numbers.
    """
    lengths = lengths.astype(np.int64)
    if lengths.size and lengths.min() < 3:
        raise source.fail(f"faces: expected polygons of at least 3 corners, got one of {lengths.min()}")
    corners = whole(source, indices, "face index").reshape(-1)
    if lengths.size and (lengths == 3).all():
        return corners.reshape(-1, 3)
    first = np.cumsum(lengths) - lengths
    triangles = np.empty((int((lengths - 2).sum()), 3), np.int64)
    place = np.repeat(first - (np.cumsum(lengths - 2) - (lengths - 2)), lengths - 2)
    place += np.arange(len(triangles))  # of corner k in triangle (0, k+1, k+2) of its polygon
    triangles[:, 0] = corners[np.repeat(first, lengths - 2)]
    triangles[:, 1] = corners[place + 1]
    triangles[:, 2] = corners[place + 2]
    return triangles


def whole(source: Source, numbers: NDArray[Any], what: str) -> NDArray[np.int64]:
    """Numbers of any type as int64. Raises: FileFormatError where one is not a whole number below 2^53."""
    if numbers.dtype.kind == "f":
        for part in np.array_split(np.atleast_1d(numbers), 1 + numbers.size // 500_000):
            good = (np.abs(part) < 2.0**53) & (np.rint(part) == part)  # false for NaN
            if not good.all():
                raise source.fail(f"{what}: expected whole numbers, got {part[~good][0]}")
    elif numbers.dtype.kind == "u" and numbers.dtype.itemsize == 8 and numbers.size and numbers.max() >= 2**63:
        raise source.fail(f"{what}: expected an index, got {numbers.max()}")
    elif numbers.dtype.kind not in "iu":
        raise source.fail(f"{what}: expected whole numbers, got {numbers.dtype}")
    return numbers.astype(np.int64, copy=False)
