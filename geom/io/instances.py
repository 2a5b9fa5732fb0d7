"""Meshes placed in a scene, joined into one: what glTF and USD share."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.io.bytes import Source
from geom.io.geometry import Geometry, checked

__all__ = ["Instance", "join"]


@dataclass(frozen=True, eq=False)
class Instance:
    """One mesh in its own frame and its place in the world.

    Fields: `matrix` (4, 4) float64, acts on columns; `positions` (N, 3); `faces` (F, 3) int64; `normals` and `colors`
    (N, 3) or None.
    """

    matrix: NDArray[np.float64]
    positions: NDArray[Any]
    faces: NDArray[Any]
    normals: NDArray[Any] | None = None
    colors: NDArray[Any] | None = None


def join(source: Source, instances: Iterable[Instance]) -> Geometry:
    """One mesh in world coordinates, instance after instance; vertices keep their order and are never merged.

    x' = A x + t in float64, rounded once; normals by the cofactors of A, n' ~ A^-T n, with length 1; where A mirrors,
    faces are turned so that they stay counter-clockwise. The identity changes no bit. Normals are None unless all parts
    have them; parts without colours are white where others have them.

    Raises: FileFormatError, also where instances multiply to far more than the file's size.
    """
    checked_parts: list[Geometry] = []
    size = 0
    for part in instances:
        size += 400 + 16 * len(part.positions) + 24 * len(part.faces)
        size += sum(12 * len(x) for x in (part.normals, part.colors) if x is not None)
        source.budget(2 * size, "instances")  # each alone, then all in one
        local = checked(source, part.positions, faces=part.faces, normals=part.normals, colors=part.colors)
        checked_parts.append(_place(source, part.matrix, local))
    if not checked_parts:
        return Geometry(np.empty((0, 3), np.float32), np.empty((0, 3), np.int64))
    if len(checked_parts) == 1:
        return checked_parts[0]
    starts = np.cumsum([0, *(len(p.positions) for p in checked_parts)])
    faces = [p.faces + start for p, start in zip(checked_parts, starts, strict=False) if p.faces is not None]
    colored = any(p.colors is not None for p in checked_parts)
    white = [np.ones(p.positions.shape, np.float32) if colored and p.colors is None else None for p in checked_parts]
    return Geometry(
        np.concatenate([p.positions for p in checked_parts]),
        faces=np.concatenate(faces),
        normals=_all_or_none([p.normals for p in checked_parts]),
        colors=_all_or_none([w if w is not None else p.colors for p, w in zip(checked_parts, white, strict=True)]),
    )


def _all_or_none(parts: list[NDArray[Any] | None]) -> NDArray[Any] | None:
    present = [p for p in parts if p is not None]
    return np.concatenate(present) if len(present) == len(parts) else None


def _place(source: Source, matrix: NDArray[np.float64], part: Geometry) -> Geometry:
    if np.array_equal(matrix, np.eye(4)):
        return part
    if not np.isfinite(matrix).all():
        raise source.fail("a transform overflows")
    a, dtype = matrix[:3, :3], part.positions.dtype
    with np.errstate(over="ignore", invalid="ignore"):
        positions = (part.positions @ a.T + matrix[:3, 3]).astype(dtype)
        unit = a / max(float(np.abs(a).max()), 1e-300)
        cofactors = np.stack([np.cross(unit[1], unit[2]), np.cross(unit[2], unit[0]), np.cross(unit[0], unit[1])])
        mirrored = float(unit[0] @ cofactors[0]) < 0
        normals = part.normals
        if normals is not None:
            turned = normals @ (cofactors.T * (-1 if mirrored else 1))
            length = np.linalg.norm(turned, axis=1, keepdims=True)
            normals = (turned / np.where(length > 0, length, 1)).astype(dtype)
    faces = part.faces[:, ::-1] if mirrored and part.faces is not None else part.faces
    return checked(source, positions, faces=faces, normals=normals, colors=part.colors)
