"""Voxel grids: one mean point for each occupied cell."""

from typing import NamedTuple

import torch
from torch import Tensor

from geom.checks import check_positive
from geom.errors import ShapeError
from geom.points.cloud import Points, as_points, bounds
from geom.points.morton import CELLS, cell_keys, cell_order, cell_starts, corners

__all__ = ["voxel_downsample"]


class Voxels(NamedTuple):
    """Occupied cells, in Morton order: `keys` (V,), the points' `order` (N,) and where each cell `starts` in it
    (V+1,), the grid's `origin` (B, 3), the cells' `offsets` (B+1,)."""

    keys: Tensor
    order: Tensor
    starts: Tensor
    origin: Tensor
    offsets: Tensor


def voxels(points: Tensor, offsets: Tensor, voxel_size: float, *, backend: str = "auto") -> Voxels:
    """Group points by the cells of a grid anchored half a cell below their cloud's least corner.

    The anchor moves with the cloud, so the cells do not depend on where the origin is or on the rest of the batch.
    """
    from geom.kernels import bridge

    backend = "warp" if bridge.choose(backend, points) else "torch"
    low, high = corners(points, offsets)
    extent = float((high - low).max()) if len(points) else 0.0
    if extent / voxel_size > CELLS - 2:
        raise ShapeError(
            f"voxel_size: expected at least {extent / (CELLS - 2):.3g} for this extent, got {voxel_size:.3g}"
        )
    bits = 3 * int(extent / voxel_size + 2).bit_length()
    origin = low - voxel_size / 2
    size = torch.full((len(low),), voxel_size, dtype=points.dtype, device=points.device)
    keys = cell_keys(points, offsets, origin, size, backend=backend)
    keys, order = cell_order(keys, offsets, bits=bits, backend=backend)
    starts, cell_offsets = cell_starts(keys, offsets)
    return Voxels(keys[starts[:-1]], order, starts, origin, cell_offsets)


def cell_mean(values: Tensor, cells: Voxels, *, backend: str = "auto") -> Tensor:
    """Mean of values (N, C) over each cell, (V, C); summed in float64, in the order of the points."""
    from geom.kernels import bridge
    from geom.kernels.voxels import segment_mean

    if bridge.choose(backend, values):
        return segment_mean(values, cells.order, cells.starts)
    sizes = cells.starts.diff()
    cell = torch.repeat_interleave(sizes)
    total = torch.zeros((len(sizes), values.shape[1]), dtype=torch.float64, device=values.device)
    total = total.index_add(0, cell, values[cells.order].double())
    return (total / sizes[:, None]).to(values.dtype)


def voxel_downsample(
    points: Points | Tensor, voxel_size: float, *, offsets: Tensor | None = None, backend: str = "auto"
) -> Points:
    """One point for each occupied voxel: the mean of its points, and of their normals, colours and intensities.

    The grid is anchored half a voxel below each cloud's least corner, so the result moves with the cloud. Voxels come
    in Morton order; mean normals are made unit again, or stay 0 where they cancel. How many voxels there are depends on
    the data: not under torch.func.vmap, nor torch.compile(fullgraph=True).

    Args: points (N, 3) float32 or float64, tensor or Points; voxel_size, the cell's edge, in the unit of the points;
    offsets (B+1,) for several clouds; backend "auto", "warp" or "torch".
    Returns: Points, with offsets if the input had them.
    Raises: ShapeError, also where the extent holds more than 2^21 voxels along an axis.

    >>> voxel_downsample(torch.tensor([[0., 0, 0], [0.2, 0, 0], [1, 0, 0]]), 0.5).positions[:, 0].tolist()
    [0.10000000149011612, 1.0]

    Guarantees: differentiable (in values, the cells held fixed); deterministic; 2e-16 f64, 1e-7 f32
    """
    cloud = as_points(points, offsets=offsets)
    size = check_positive(voxel_size, "voxel_size")
    cells = voxels(cloud.positions.detach(), bounds(cloud), size, backend=backend)

    def mean(x: Tensor | None) -> Tensor | None:
        return None if x is None else cell_mean(x[:, None] if x.ndim == 1 else x, cells, backend=backend)

    normals, intensities = mean(cloud.normals), mean(cloud.intensities)
    if normals is not None:
        square = normals.square().sum(-1, keepdim=True)
        normals = normals / torch.where(square > 0, square, torch.ones_like(square)).sqrt()
    positions = cell_mean(cloud.positions, cells, backend=backend)
    return Points(
        positions,
        normals=normals,
        colors=mean(cloud.colors),
        intensities=None if intensities is None else intensities[:, 0],
        offsets=None if cloud.offsets is None else cells.offsets,
    )
