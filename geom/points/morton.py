"""Morton (Z) order: cells of a grid, the bits of their coordinates interleaved."""

import torch
from jaxtyping import Int64
from torch import Tensor

__all__ = ["cell_keys", "cell_order", "cell_starts", "corners", "deinterleave", "interleave", "morton_order"]

CELLS = 1 << 21  # an axis: three of them fit 63 bits
_SPREAD = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def interleave(cells: Int64[Tensor, "*b 3"]) -> Int64[Tensor, "*b"]:
    """Bits of coordinates in [0, 2^21) interleaved, the first axis lowest of each three."""
    x = cells
    for shift, mask in _SPREAD:
        x = (x | x << shift) & mask
    return x[..., 0] | x[..., 1] << 1 | x[..., 2] << 2


def deinterleave(codes: Int64[Tensor, "*b"]) -> Int64[Tensor, "*b 3"]:
    """The coordinates that `interleave` made codes of."""
    x = torch.stack([codes, codes >> 1, codes >> 2], -1) & _SPREAD[-1][1]
    masks = [mask for _, mask in _SPREAD[-2::-1]] + [CELLS - 1]
    for (shift, _), mask in zip(reversed(_SPREAD), masks, strict=True):
        x = (x | x >> shift) & mask
    return x


def cell_keys(points: Tensor, offsets: Tensor, origin: Tensor, size: Tensor, *, backend: str = "auto") -> Tensor:
    """Key of each point's cell on its cloud's grid: origin (B, 3), size (B,); (N,) int64. Cells beyond 2^21 clamp."""
    from geom.kernels import bridge, voxels

    inverse = 1 / size
    if bridge.choose(backend, points):
        keys = torch.empty(len(points), dtype=torch.int64, device=points.device)
        args = (points.contiguous(), offsets, origin.contiguous(), inverse, len(points), keys)
        chunks = -(-len(points) // voxels.CHUNK)
        kernel = voxels.morton_keys[points.dtype]
        bridge.launch(kernel, chunks, *args, device=points.device, grain=8192 // voxels.CHUNK)
        return keys
    cloud = torch.repeat_interleave(offsets.diff())
    return interleave(((points - origin[cloud]) * inverse[cloud, None]).clamp(0, CELLS - 1).long())


def cell_order(keys: Tensor, offsets: Tensor, *, bits: int = 63, backend: str = "warp") -> tuple[Tensor, Tensor]:
    """Keys of so many bits sorted within each cloud, clouds in their order, and the stable permutation that does it."""
    if backend == "warp" and keys.device.type == "cpu":  # a third of torch's time, and clouds apart at no cost
        order, ordered = sort_codes(keys, offsets, bits, len(keys))
        return ordered, order
    ordered, order = keys.sort(stable=True)
    if len(offsets) > 2:
        again = torch.searchsorted(offsets, order, right=True).argsort(stable=True)
        ordered, order = ordered[again], order[again]
    return ordered, order


def cell_starts(keys: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Where each run of equal keys of one cloud begins, (V+1,), and the offsets (B+1,) of the clouds' runs."""
    first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    first[1:] = keys[1:] != keys[:-1]
    first[offsets[:-1][offsets[:-1] < len(keys)]] = True
    starts = torch.cat([first.nonzero()[:, 0], offsets[-1:]])
    return starts, torch.searchsorted(starts[:-1], offsets)


def sort_codes(
    codes: Tensor, offsets: Tensor, bits: int, period: int, *, invert: bool = False
) -> tuple[Tensor, Tensor]:
    """Stable permutation of each cloud by its codes' lowest `bits` bits, on the CPU, and the codes so ordered or, with
    `invert`, its inverse. Clouds may follow in several orders: places count from the start of each `period` codes."""
    from geom.kernels import bridge
    from geom.kernels import codes as kernels

    spare, order, second = torch.empty_like(codes), torch.empty_like(codes), torch.empty_like(codes)
    clouds = len(offsets) - 1
    args = (codes, offsets, bits, period, int(invert), spare, order, second)
    kernel = kernels.sort_codes[torch.float32]  # it sees integers alone: either dtype's will do
    grain = 1 + 16384 * clouds // max(1, len(codes))  # clouds are about that many points in all
    bridge.launch(kernel, clouds, *args, device=codes.device, grain=grain)
    return order, second


def corners(points: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest coordinates of each cloud, (B, 3) both; 0 for an empty cloud."""
    found = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for axis in range(3):  # a column at a time: five times faster than over rows of three
            column = points[start:stop, axis]
            found += torch.aminmax(column) if start < stop else [points.new_zeros(()), points.new_zeros(())]
    both = torch.stack(found).reshape(-1, 3, 2) if found else points.new_zeros((0, 3, 2))
    return both[..., 0], both[..., 1]


def morton_order(points: Tensor, offsets: Tensor) -> Tensor:
    """The permutation (N,) int64 that puts each cloud in Morton order on the finest grid over its extent."""
    low, high = corners(points, offsets)
    size = (high - low).amax(-1).clamp(min=torch.finfo(points.dtype).tiny * CELLS) / (CELLS - 1)
    return cell_order(cell_keys(points, offsets, low, size), offsets)[1]
