"""Morton (Z) order: cells of a grid, the bits of their coordinates interleaved."""

import torch
from torch import Tensor

__all__ = ["cell_keys", "cell_order", "morton_order"]

CELLS = 1 << 21  # an axis: three of them fit 63 bits


def cell_keys(points: Tensor, offsets: Tensor, origin: Tensor, size: Tensor) -> Tensor:
    """Key of each point's cell on its cloud's grid: origin (B, 3), size (B,); (N,) int64. Cells beyond 2^21 clamp."""
    from geom.kernels import bridge, voxels

    keys = torch.empty(len(points), dtype=torch.int64, device=points.device)
    args = (points.contiguous(), offsets, origin.contiguous(), 1 / size, keys)
    bridge.launch(voxels.morton_keys[points.dtype], len(points), *args, device=points.device)
    return keys


def cell_order(keys: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Keys sorted within each cloud, clouds in their order, and the stable permutation that sorts them."""
    ordered, order = keys.sort(stable=True)
    if len(offsets) > 2:
        cloud = torch.searchsorted(offsets, order, right=True)
        again = cloud.argsort(stable=True)
        ordered, order = ordered[again], order[again]
    return ordered, order


def corners(points: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest coordinates of each cloud, (B, 3) both; 0 for an empty cloud."""
    if len(offsets) == 2 and len(points):
        low, high = torch.aminmax(points.T.contiguous(), dim=1)
        return low[None], high[None]
    sizes = offsets.diff()
    low = torch.segment_reduce(points, "min", lengths=sizes, axis=0, initial=float("inf"))
    high = torch.segment_reduce(points, "max", lengths=sizes, axis=0, initial=-float("inf"))
    empty = (sizes == 0)[:, None]
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)


def morton_order(points: Tensor, offsets: Tensor) -> Tensor:
    """The permutation (N,) int64 that puts each cloud in Morton order on the finest grid over its extent."""
    low, high = corners(points, offsets)
    size = (high - low).amax(-1).clamp(min=torch.finfo(points.dtype).tiny * CELLS) / (CELLS - 1)
    return cell_order(cell_keys(points, offsets, low, size), offsets)[1]
