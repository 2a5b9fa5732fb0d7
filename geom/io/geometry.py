"""What every reader returns and every writer takes: plain arrays, checked once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geom.errors import ShapeError
from geom.io.bytes import Source
from geom.io.colors import unit_colors
from geom.io.faces import whole
from geom.meshes import Mesh
from geom.points import Points

__all__ = ["Geometry", "checked", "from_mesh", "from_points", "text_precision", "to_mesh", "to_points"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Points or a mesh as arrays.

    Fields: `positions` (N, 3) float32 or float64; `faces` (F, 3) int64, None where the file declares no faces;
    `normals` (N, 3) as positions; `colors` (N, 3) float32 in [0, 1]; `intensities` (N,) float32; `offsets` (B+1,)
    int64.
    """

    positions: Array
    faces: Array | None = None
    normals: Array | None = None
    colors: Array | None = None
    intensities: Array | None = None
    offsets: Array | None = None


def checked(
    source: Source,
    positions: Array,
    *,
    faces: Array | None = None,
    normals: Array | None = None,
    colors: Array | None = None,
    intensities: Array | None = None,
    offsets: Array | None = None,
) -> Geometry:
    """Arrays of any number type and byte order as one `Geometry`.

    Raises: FileFormatError where a number is not finite, a shape is wrong or a face names a vertex that is not there.
    """
    count = len(positions)
    real = np.promote_types(positions.dtype.newbyteorder("="), np.float32)  # int32 and wider: float64
    xyz = _finite(source, positions, (count, 3), real, "positions")
    if positions.dtype.kind in "iu" and real == np.float64:
        small = xyz.astype(np.float32)
        xyz = small if np.array_equal(small, positions) else xyz
    if faces is not None:
        faces = _owned(whole(source, faces, "face index"))
        if faces.size and (faces.min() < 0 or faces.max() >= count):
            raise source.fail(f"faces: expected indices in [0, {count}), got {faces.min()} to {faces.max()}")
    if normals is not None:
        normals = _finite(source, normals, (count, 3), xyz.dtype, "normals")
    if colors is not None:
        if colors.shape != (count, 3):
            raise source.fail(f"colors: expected shape {(count, 3)}, got {colors.shape}")
        colors = unit_colors(source, colors)
    if intensities is not None:
        intensities = _finite(source, intensities, (count,), np.dtype(np.float32), "intensities")
    if offsets is not None:
        offsets = _owned(whole(source, offsets, "offset"))
        rising = offsets.ndim == 1 and offsets.size > 0 and bool((np.diff(offsets) >= 0).all())
        if not rising or offsets[0] != 0 or offsets[-1] != count:
            raise source.fail(f"offsets: expected to rise from 0 to {count}")
    return Geometry(xyz, faces, normals, colors, intensities, offsets)


def _finite(source: Source, x: Array, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> Array:
    if x.shape != shape:
        raise source.fail(f"{what}: expected shape {shape}, got {x.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        x = _owned(x.astype(dtype, copy=False))
    finite = np.isfinite(x)
    if not finite.all():
        bad = int((~finite).any(-1).sum()) if x.ndim == 2 else int((~finite).sum())
        raise source.fail(f"{what}: expected finite numbers, got NaN, inf or overflow in {bad} of {shape[0]}")
    return x


def _owned(x: Array) -> Array:
    """The array in memory of its own, rows one after the other: torch takes neither views of a file nor turned ones."""
    x = np.ascontiguousarray(x)
    return x if x.flags.writeable else x.copy()


def text_precision(xyz: NDArray[np.float64], declared: str | None) -> Array:
    """Coordinates from a text without types: float32, or float64 where that would move one too far.

    Too far is more than 1e-6 of the longest side of the bounding box. `declared`, "float32" or "float64", has the
    first word.
    """
    if declared == "float64":
        return xyz
    with np.errstate(over="ignore", invalid="ignore"):
        small = xyz.astype(np.float32)
        if declared == "float32" or not len(xyz):
            return small
        shift = max(np.abs(small[:, k] - xyz[:, k]).max() for k in range(3))
        extent = (xyz.max(0) - xyz.min(0)).max()
    return xyz if shift > 1e-6 * extent else small


def to_points(source: Source, geometry: Geometry, dtype: torch.dtype | None) -> Points:
    """The value `Points`; of a mesh, its vertices."""
    return Points(
        _real(source, geometry.positions, dtype),
        normals=None if geometry.normals is None else _real(source, geometry.normals, dtype),
        colors=_tensor(geometry.colors),
        intensities=_tensor(geometry.intensities),
        offsets=_tensor(geometry.offsets),
    )


def to_mesh(source: Source, geometry: Geometry, dtype: torch.dtype | None) -> Mesh:
    """The value `Mesh`. Raises: FileFormatError where the file declares no faces."""
    if geometry.faces is None:
        raise source.fail("declares no faces: it is a point cloud, load_points reads it")
    return Mesh(
        _real(source, geometry.positions, dtype),
        torch.from_numpy(geometry.faces),
        normals=None if geometry.normals is None else _real(source, geometry.normals, dtype),
        colors=_tensor(geometry.colors),
    )


def _tensor(x: Array | None) -> Tensor | None:
    return None if x is None else torch.from_numpy(x)


def _real(source: Source, x: Array, dtype: torch.dtype | None) -> Tensor:
    tensor = torch.from_numpy(x).to(dtype)
    if dtype == torch.float32 and x.dtype == np.float64 and not bool(torch.isfinite(tensor).all()):
        raise source.fail("holds numbers beyond the range of float32: load it with dtype=torch.float64")
    return tensor


def from_points(points: Points) -> Geometry:
    """The arrays of `Points`, off the device and the graph. Raises: ShapeError where a number is not finite."""
    if not isinstance(points, Points):
        raise ShapeError(f"points: expected a geom.points.Points, got a {type(points).__name__}")
    xyz = _array(points.positions, None, "positions")
    return Geometry(
        xyz,
        normals=None if points.normals is None else _array(points.normals, xyz.dtype, "normals"),
        colors=None if points.colors is None else _colors(points.colors),
        intensities=None if points.intensities is None else _array(points.intensities, np.float32, "intensities"),
        offsets=None if points.offsets is None else points.offsets.cpu().numpy(),
    )


def from_mesh(mesh: Mesh) -> Geometry:
    """The arrays of a `Mesh`, off the device and the graph. Raises: ShapeError where a number is not finite."""
    if not isinstance(mesh, Mesh):
        raise ShapeError(f"mesh: expected a geom.meshes.Mesh, got a {type(mesh).__name__}")
    xyz = _array(mesh.vertices, None, "vertices")
    return Geometry(
        xyz,
        faces=mesh.faces.detach().cpu().numpy(),
        normals=None if mesh.normals is None else _array(mesh.normals, xyz.dtype, "normals"),
        colors=None if mesh.colors is None else _colors(mesh.colors),
    )


def _array(x: Tensor, dtype: Any, what: str) -> Array:
    array = x.detach().cpu().contiguous().numpy()
    with np.errstate(over="ignore"):
        array = array if dtype is None else array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise ShapeError(f"{what}: expected finite numbers to write, got NaN or inf")
    return array


def _colors(x: Tensor) -> Array:
    colors = _array(x, np.float32, "colors")
    if colors.size and (colors.min() < 0 or colors.max() > 1):
        raise ShapeError(f"colors: expected numbers in [0, 1] to write, got {colors.min()} to {colors.max()}")
    return colors
