"""Padded batches of points: their lengths, the points themselves as one ragged batch, and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from geom.checks import FLOATS, describe
from geom.errors import ShapeError
from geom.points.cloud import offsets_of

__all__ = ["Padded", "gather", "inside", "padded", "pair", "ragged"]


@runtime_checkable
class _Pointclouds(Protocol):
    """What of pytorch3d's Pointclouds is asked; `normals_padded` where there is one."""

    def points_padded(self) -> Tensor: ...
    def num_points_per_cloud(self) -> Tensor: ...


class Padded(NamedTuple):
    """`points` (N, P, D); `lengths` (N,) int64, None where every cloud has P; `normals` (N, P, 3) or None."""

    points: Tensor
    lengths: Tensor | None
    normals: Tensor | None

    def sizes(self) -> Tensor:
        """(N,) int64."""
        n, p, _ = self.points.shape
        return torch.full((n,), p, device=self.points.device) if self.lengths is None else self.lengths


def padded(
    points: Any, lengths: Any = None, normals: Any = None, name: str = "points", *, half: bool = False
) -> Padded:
    """Points (N, P, D) of float32 or float64, with `half` of any float, or a Pointclouds, which brings the rest.

    Raises: ShapeError.
    """
    if isinstance(points, _Pointclouds):
        normals = getattr(points, "normals_padded", lambda: None)()
        points, lengths = points.points_padded(), points.num_points_per_cloud()
    fits = isinstance(points, Tensor) and (points.is_floating_point() if half else points.dtype in FLOATS)
    if not fits or points.ndim != 3:
        kinds = "float" if half else "float32 or float64"
        raise ShapeError(f"{name}: expected a {kinds} tensor (N, P, D) or a Pointclouds object, got {describe(points)}")
    if lengths is not None:
        if not isinstance(lengths, Tensor) or lengths.shape != points.shape[:1] or lengths.is_floating_point():
            raise ShapeError(f"{name}: expected lengths ({len(points)},) of int64, got {describe(lengths)}")
        lengths = lengths.to(points.device, torch.int64)
        if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= points.shape[1]:
            raise ShapeError(f"{name}: expected lengths of 0 to {points.shape[1]}, got {lengths.tolist()[:8]}")
    if normals is not None and (not isinstance(normals, Tensor) or normals.shape != points.shape):
        raise ShapeError(f"{name}: expected normals {tuple(points.shape)}, got {describe(normals)}")
    return Padded(points, lengths, normals)


def pair(x: Padded, y: Padded, names: Sequence[str]) -> None:
    """Raise ShapeError unless both have one batch, dimension, dtype and device."""
    a, b = x.points, y.points
    if a.shape[::2] != b.shape[::2] or a.dtype != b.dtype or a.device != b.device:
        raise ShapeError(
            f"{names[0]} and {names[1]}: expected one batch size, dimension, dtype and device, got {describe(a)} on "
            f"{a.device} and {describe(b)} on {b.device}"
        )


def inside(batch: Padded) -> Tensor:
    """(N, P) bool: which are points, not padding."""
    return torch.arange(batch.points.shape[1], device=batch.points.device) < batch.sizes()[:, None]


def ragged(batch: Padded) -> tuple[Tensor, Tensor]:
    """The points (M, D) without padding, and offsets (N+1,)."""
    sizes = batch.sizes()
    points = batch.points.flatten(0, 1) if batch.lengths is None else batch.points[inside(batch)]
    return points, offsets_of(sizes)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (N, P, U) at index (N, ...), each of its own cloud: (N, ..., U); 0 at index -1."""
    if not x.shape[1]:
        return x.new_zeros((*index.shape, x.shape[2]))
    cloud = torch.arange(len(x), device=x.device).reshape(-1, *[1] * (index.ndim - 1))
    rows = x[cloud, index.clamp(min=0)]
    return torch.where((index < 0)[..., None], torch.zeros_like(rows), rows)
