"""Which voxel a convolution's kernel finds where: a hash of cells, and maps built once for all layers on a grid."""

from itertools import product

import torch
from jaxtyping import Int32, Int64
from torch import Tensor
from typing_extensions import Self

from geom.checks import check_offsets
from geom.errors import ShapeError
from geom.nn.voxels import Triple, Voxels, axis_bits, check_grid, group_cells, starts_of, triple
from geom.points.morton import corners
from geom.values import Value, value

__all__ = ["KernelMap", "lookup", "strided_map", "submanifold_map"]

_Three = tuple[int, int, int]


@value
class KernelMap(Value):
    """The voxels that a kernel of K elements meets: built once, good for every layer between the same voxels.

    Element k of a kernel (K_x, K_y, K_z) is (k_x K_y + k_y) K_z + k_z, the last axis fastest.

    Fields: `neighbors` (K, M) int32, the source voxel under element k of target voxel o, -1 for none; `transposed`
    (K, N) int32, the target voxel that has source voxel i under its element k, -1 for none, the same pairs by source;
    `source` (N, 3) and `target` (M, 3) int64, the grids; their offsets, or None.
    """

    neighbors: Int32[Tensor, "k m"]
    transposed: Int32[Tensor, "k n"]
    source: Int64[Tensor, "n 3"]
    target: Int64[Tensor, "m 3"]
    source_offsets: Int64[Tensor, " b_plus_1"] | None = None
    target_offsets: Int64[Tensor, " b_plus_1"] | None = None

    def transpose(self) -> Self:
        """The map the other way, from target to source: what an inverse convolution needs."""
        ends = (self.target, self.source, self.target_offsets, self.source_offsets)
        return type(self)(self.transposed, self.neighbors, *ends)


def submanifold_map(
    voxels: Voxels, *, kernel_size: Triple = 3, dilation: Triple = 1, backend: str = "auto"
) -> KernelMap:
    """The map of a submanifold convolution: the voxels stay, each meets those around it (Graham et al., 2018).

    Under element k of the voxel at o lies the cell o + (k - (K - 1) / 2) dilation.

    Args: voxels, each cell once; kernel_size odd, and dilation, one number or one an axis; backend "auto", "warp" or
    "torch": a hash of the cells for the CPU, or a search in their sorted names.
    Returns: KernelMap from the voxels to themselves.
    Raises: ShapeError, also for a cell that comes twice, and for a cloud more than 2^21 cells wide.

    >>> row = Voxels(torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 9]]), torch.rand(3, 1))
    >>> submanifold_map(row, kernel_size=(1, 1, 3)).neighbors.tolist()
    [[-1, 0, -1], [0, 1, 2], [1, -1, -1]]

    Guarantees: not differentiable; deterministic; exact
    """
    size, apart = triple(kernel_size, "kernel_size", 1), triple(dilation, "dilation", 1)
    if not all(n % 2 for n in size):
        raise ShapeError(f"kernel_size: expected odd numbers, which have a middle, got {kernel_size!r}")
    from geom.kernels import bridge

    with bridge.small_operations():
        return _submanifold(voxels, size, apart, _native(backend, voxels.grid))


def strided_map(
    voxels: Voxels,
    *,
    kernel_size: Triple = 2,
    stride: Triple = 2,
    padding: Triple = 0,
    dilation: Triple = 1,
    shape: tuple[int, int, int] | None = None,
    backend: str = "auto",
) -> KernelMap:
    """The map of a strided convolution to the coarser grid: its voxels are all cells that reach one of the fine ones.

    Under element k of the coarse cell o lies the cell x = o stride - padding + k dilation, so x reaches those o for
    which (x + padding - o stride) / dilation is a whole number in [0, K). The grid has no end; with `shape` it is the
    box [0, shape), and the coarse one, as a dense convolution's and spconv's, is
    [0, floor((shape + 2 padding - dilation (K - 1) - 1) / stride) + 1). Cells come in Morton order.

    Args: voxels, each cell once; kernel_size, stride, padding and dilation, one number or one an axis; shape, the
    box's cells along each axis; backend "auto", "warp" or "torch".
    Returns: KernelMap from the voxels to the coarser ones; its `transpose()` leads back to exactly the voxels.
    Raises: ShapeError, also for cells outside the box, cells that come twice, and a cloud more than 2^21 cells wide.

    >>> row = Voxels(torch.tensor([[0, 0, -1], [0, 0, 0], [0, 0, 1]]), torch.rand(3, 1))
    >>> down = strided_map(row, kernel_size=(1, 1, 2), stride=(1, 1, 2))
    >>> down.target.tolist(), down.neighbors.tolist()
    ([[0, 0, -1], [0, 0, 0]], [[-1, 1], [0, 2]])

    Guarantees: not differentiable; deterministic; exact
    """
    size, step = triple(kernel_size, "kernel_size", 1), triple(stride, "stride", 1)
    pad, apart = triple(padding, "padding", 0), triple(dilation, "dilation", 1)
    box = None if shape is None else triple(shape, "shape", 1)
    from geom.kernels import bridge

    with bridge.small_operations():
        return _strided(voxels, size, step, pad, apart, box, "warp" if _native(backend, voxels.grid) else "torch")


def lookup(
    voxels: Voxels, grid: Int64[Tensor, "m 3"], *, offsets: Tensor | None = None, backend: str = "auto"
) -> Int64[Tensor, " m"]:
    """The row of the voxel at each cell, -1 where there is none; cells of cloud i are looked up among its voxels.

    Args: voxels, each cell once; grid (M, 3) int64; offsets (B+1,) of the cells, as many clouds as the voxels have;
    backend "auto", "warp" or "torch".
    Returns: (M,).
    Raises: ShapeError, also for a voxel that comes twice, and for a cloud more than 2^21 cells wide.

    >>> lookup(Voxels(torch.tensor([[0, 0, -4], [0, 0, 1]]), torch.rand(2, 1)), torch.tensor([[0, 0, 1], [9, 0, 0]]))
    tensor([ 1, -1])

    Guarantees: not differentiable; deterministic; exact
    """
    check_grid(grid)
    starts, asked = starts_of(voxels), check_offsets(offsets, grid.shape[0], device=grid.device)
    if len(asked) != len(starts):
        raise ShapeError(f"offsets: expected those of {len(starts) - 1} clouds, got {len(asked) - 1}")
    from geom.kernels import bridge, sparse

    with bridge.small_operations():
        low, high = corners(voxels.grid, starts)
        bits = axis_bits(low, high, 0)
        keys, queries = _keys(voxels.grid, low, starts, bits), _keys(grid, low, asked, bits)
        if not _native(backend, grid):
            return _find(*_sorted(keys, voxels.grid), queries)
        rows = torch.empty_like(queries)
        slots = _hash(keys, voxels.grid)
        bridge.launch(sparse.locate[torch.float32], len(rows), queries, *slots, rows, device=grid.device)
        return rows


def _submanifold(voxels: Voxels, size: _Three, apart: _Three, native: bool) -> KernelMap:
    grid, offsets = voxels.grid.contiguous(), starts_of(voxels)
    low, high = corners(grid, offsets)
    margin = max(n // 2 * d for n, d in zip(size, apart, strict=True))
    bits = axis_bits(low, high, margin)
    keys = _keys(grid, low - margin, offsets, bits)
    ways = product(*([(k - n // 2) * d for k in range(n)] for n, d in zip(size, apart, strict=True)))
    steps = torch.tensor([(x << 2 * bits) + (y << bits) + z for x, y, z in ways], device=grid.device)
    if native:
        from geom.kernels import bridge, sparse

        slots = _hash(keys, grid)
        table = torch.full((len(steps), len(keys)), -1, dtype=torch.int32)
        kernel = sparse.mirror[torch.float32]  # it sees integers alone: either dtype's will do
        items = -(-len(keys) // sparse.BLOCK)
        bridge.launch(kernel, items, keys, steps, *slots, table, device=grid.device, grain=16)
    else:
        ordered, rows = _sorted(keys, grid)
        table = torch.stack([_find(ordered, rows, keys + step) for step in steps]).int()
    return KernelMap(table, table.flip(0), voxels.grid, voxels.grid, voxels.offsets, voxels.offsets)


def _strided(
    voxels: Voxels, size: _Three, step: _Three, pad: _Three, apart: _Three, box: _Three | None, backend: str
) -> KernelMap:
    grid, offsets, count = voxels.grid, starts_of(voxels), len(voxels.grid)
    axis_bits(*corners(grid, offsets), 0)
    if box is not None and count and (int(grid.min()) < 0 or bool((grid >= grid.new_tensor(box)).any())):
        raise ShapeError(f"shape: expected cells in [0, {box}), got {grid.amin(0).tolist()} to {grid.amax(0).tolist()}")

    steps, moved = grid.new_tensor(step), grid + grid.new_tensor(pad)
    last = moved.div(steps, rounding_mode="floor")  # the last coarse cell that begins before the voxel
    fits = []  # along each axis (T, N): whether the voxel lies under an element of the coarse cell T before that one
    for a in range(3):
        reach = torch.arange((size[a] - 1) * apart[a] // step[a] + 1, device=grid.device)
        to = last[:, a] - reach[:, None]
        under = moved[:, a] - to * step[a]
        good = under < size[a] * apart[a]
        if apart[a] > 1:
            good &= under % apart[a] == 0
        if box is not None:
            end = (box[a] + 2 * pad[a] - apart[a] * (size[a] - 1) - 1) // step[a] + 1
            good &= (to >= 0) & (to < end)
        fits.append(good)
    ways = list(product(*(range(len(good)) for good in fits)))
    row, way = torch.stack([fits[0][x] & fits[1][y] & fits[2][z] for x, y, z in ways], 1).nonzero().unbind(1)
    target = last.index_select(0, row) - grid.new_tensor(ways).index_select(0, way)
    under = moved.index_select(0, row) - target * steps
    x, y, z = (under if apart == (1, 1, 1) else under // grid.new_tensor(apart)).unbind(1)
    element = (x * size[1] + y) * size[2] + z

    order, starts, target_offsets, index = group_cells(target, torch.searchsorted(row, offsets), backend)
    neighbors = torch.full((size[0] * size[1] * size[2], len(starts) - 1), -1, dtype=torch.int32, device=grid.device)
    transposed = neighbors.new_full((len(neighbors), count), -1)
    here, number = element * neighbors.shape[1] + index, row.int()
    neighbors.view(-1)[here] = number
    transposed.view(-1)[element * count + row] = index.int()
    lost = row[neighbors.view(-1)[here] != number]
    if len(lost):
        raise _twice(grid, int(lost[0]))
    ends = None if voxels.offsets is None else target_offsets
    return KernelMap(neighbors, transposed, grid, target[order[starts[:-1]]], voxels.offsets, ends)


def _keys(grid: Tensor, low: Tensor, offsets: Tensor, bits: int) -> Tensor:
    """One number for each cell: its cloud, then x, y and z from the cloud's `low` corner (B, 3); -1 for one outside."""
    clouds = len(low)
    cell = grid - (low if clouds == 1 else low.repeat_interleave(offsets.diff(), 0, output_size=len(grid)))
    x, y, z = cell.unbind(1)
    key = (x << bits | y) << bits | z
    if clouds > 1:
        number = torch.arange(clouds, device=grid.device)
        key = key | number.repeat_interleave(offsets.diff(), output_size=len(grid)) << 3 * bits
    inside = ((x | y | z) >> bits) == 0  # a negative one has its sign above
    return torch.where(inside, key, -1)


def _hash(keys: Tensor, grid: Tensor) -> tuple[int, Tensor, Tensor]:
    """A table of at least twice as many slots as keys, as its kernels take it."""
    from geom.kernels import bridge, sparse

    bits = max(1, (2 * len(keys) - 1).bit_length())
    slot_key = torch.full((1 << bits,), -1, dtype=torch.int64)
    slot_row, twice = torch.empty(1 << bits, dtype=torch.int32), torch.full((1,), -1, dtype=torch.int32)
    slots = (64 - bits, slot_key, slot_row)
    bridge.launch(sparse.insert[torch.float32], 1, keys, *slots, twice, device=keys.device)
    if int(twice) >= 0:
        raise _twice(grid, int(twice))
    return slots


def _sorted(keys: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    ordered, rows = keys.sort(stable=True)
    again = (ordered[1:] == ordered[:-1]).nonzero()
    if len(again):
        raise _twice(grid, int(rows[again[-1] + 1]))
    return ordered, rows


def _find(ordered: Tensor, rows: Tensor, queries: Tensor) -> Tensor:
    """The row of each key, -1 where there is none."""
    if not len(ordered):
        return torch.full_like(queries, -1)
    at = torch.searchsorted(ordered, queries).clamp(max=len(ordered) - 1)
    return torch.where(ordered[at] == queries, rows[at], -1)


def _twice(grid: Tensor, row: int) -> ShapeError:
    cell = grid[row].tolist()
    return ShapeError(f"voxels: expected each cell once, got {cell} again in row {row}; merge_voxels makes it one")


def _native(backend: str, grid: Tensor) -> bool:
    """Whether the kernels run; those of this file are for the CPU, and on CUDA torch sorts and searches."""
    from geom.kernels import bridge

    return bridge.choose(backend, grid.view(torch.float64)) and grid.device.type == "cpu"
