"""`Voxels`: occupied cells of a grid and their features; points gathered into them, and fine ones into coarse ones."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import Self

from geom.checks import check_choice, check_offsets, check_positive, check_same, describe
from geom.errors import ShapeError
from geom.nn.scatter import REDUCTIONS, reduce_rows
from geom.points import Points, encode
from geom.points.cloud import as_points, one_of
from geom.points.morton import cell_order, cell_starts, corners
from geom.values import Value, value

__all__ = [
    "Triple",
    "Voxels",
    "axis_bits",
    "group_cells",
    "check_grid",
    "merge_voxels",
    "starts_of",
    "triple",
    "voxelize",
]

Triple = int | tuple[int, int, int]  # one number for all axes, or one each

_BITS = 21  # an axis: three of them fit 63 bits
_FAR = 2.0**62


@value
class Voxels(Value):
    """Occupied cells of a grid, each once, with a feature row each; one cloud of them or several in a ragged batch.

    Fields: `grid` (N, 3) int64, of any sign; `features` (N, C); `offsets` (B+1,) int64, the bounds of B clouds, or None
    for one. `voxels[i]` is cloud i; `len(voxels)` is B. Whether a cell comes twice is asked by those who need to know.

    Raises: ShapeError where a field has the wrong shape or dtype.

    >>> two = Voxels(torch.tensor([[0, 0, -4], [0, 0, 1], [0, 0, 1]]), torch.rand(3, 8), torch.tensor([0, 2, 3]))
    >>> len(two), two[1].grid.tolist()
    (2, [[0, 0, 1]])
    """

    grid: Int64[Tensor, "n 3"]
    features: Float[Tensor, "n c"]
    offsets: Int64[Tensor, " b_plus_1"] | None = None

    def __post_init__(self) -> None:
        check_grid(self.grid)
        x, count = self.features, self.grid.shape[0]
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 2 or x.shape[0] != count:
            raise ShapeError(f"features: expected a float tensor ({count}, C), got {describe(x)}")
        if self.offsets is not None:
            check_offsets(self.offsets, count, device=self.grid.device)

    def __len__(self) -> int:
        return 1 if self.offsets is None else self.offsets.numel() - 1

    def __getitem__(self, index: int) -> Self:
        return one_of(self, index)


def voxelize(
    points: Points | Float[Tensor, "n 3"],
    size: float,
    *,
    features: Float[Tensor, "n c"] | None = None,
    offsets: Tensor | None = None,
    reduce: str = "mean",
    backend: str = "auto",
) -> tuple[Voxels, Int64[Tensor, " n"]]:
    """Gather points into the cells floor(p / size), and their features into one row for each occupied cell.

    The grid stands still: its corner is the origin. Cells come in Morton order from their cloud's least corner. How
    many there are depends on the data: not under torch.func.vmap, nor torch.compile(fullgraph=True).

    Args: points (N, 3) float32 or float64, tensor or Points; size, the cell's edge, in the unit of the points; features
    (N, C) of the same dtype and device, None for the positions; offsets (B+1,) for several clouds; reduce "sum",
    "mean", "max" or "min", as in `scatter`; backend "auto", "warp" or "torch".
    Returns: the voxels, with offsets if the input had them, and the voxel of each point (N,) int64.
    Raises: ShapeError, also for a cloud more than 2^21 cells wide (fewer beside very many clouds: 63 bits name a cell).

    >>> voxels, cell = voxelize(torch.tensor([[0.2, 0, 0], [-0.1, 0, 0], [0.4, 0, 0]]), 0.5)
    >>> voxels.grid.tolist(), cell.tolist()
    ([[-1, 0, 0], [0, 0, 0]], [1, 0, 1])

    Guarantees: differentiable (in features, the cells held fixed); deterministic; as `scatter`
    """
    from geom.kernels import bridge

    with bridge.small_operations():
        cloud = as_points(points, offsets=offsets)
        rows = cloud.positions if features is None else features
        cells = (cloud.positions.detach() / check_positive(size, "size")).floor()
        if cells.numel() and not float(cells.abs().max()) < _FAR:
            raise ShapeError(f"size: expected cells numbered below 2^62, got {float(cells.abs().max()):.3g}")
        check_same(rows, cloud.positions, "features and points")
        return merge_voxels(Voxels(cells.long(), rows, cloud.offsets), reduce=reduce, backend=backend)


def merge_voxels(
    voxels: Voxels, *, stride: Triple = 1, reduce: str = "sum", backend: str = "auto"
) -> tuple[Voxels, Int64[Tensor, " n"]]:
    """Merge the voxels of each cell floor(grid / stride) into one, and their features by a reduction.

    Here cells may come more than once; with stride 1 that makes each one unique. Cells come in Morton order from their
    cloud's least corner.

    Args: voxels; stride, one number or one an axis; reduce "sum", "mean", "max" or "min", as in `scatter`; backend
    "auto", "warp" or "torch".
    Returns: the coarse voxels, and the coarse voxel (N,) int64 of each: `coarse.features[index]` goes back.
    Raises: ShapeError, also for a cloud more than 2^21 cells wide.

    >>> fine = Voxels(torch.tensor([[-1, 0, 4], [0, 0, 4], [1, 1, 5]]), torch.tensor([[1.0], [2.0], [3.0]]))
    >>> coarse, index = merge_voxels(fine, stride=2)
    >>> coarse.grid.tolist(), coarse.features[:, 0].tolist(), index.tolist()
    ([[-1, 0, 2], [0, 0, 2]], [1.0, 5.0], [0, 1, 1])

    Guarantees: differentiable (in features); deterministic; as `scatter`
    """
    from geom.kernels import bridge

    check_choice(reduce, REDUCTIONS, "reduce")
    step = triple(stride, "stride", 1)
    warp, grid = bridge.choose(backend, voxels.features), voxels.grid
    with bridge.small_operations():
        if step != (1, 1, 1):
            grid = grid.div(grid.new_tensor(step), rounding_mode="floor")
        order, starts, offsets, index = group_cells(grid, starts_of(voxels), "warp" if warp else "torch")
        rows = reduce_rows(voxels.features, index, len(starts) - 1, reduce, (order, starts) if warp else None)
        return Voxels(grid[order[starts[:-1]]], rows, None if voxels.offsets is None else offsets), index


def group_cells(grid: Tensor, offsets: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows with the same cell of the same cloud, in Morton order: their `order`, where each cell `starts` in it, the
    cells' `offsets`, and the cell `index` of each row."""
    low, high = corners(grid, offsets)
    bits = axis_bits(low, high, 0)
    shifted = grid - (low if len(low) == 1 else low.repeat_interleave(offsets.diff(), 0, output_size=len(grid)))
    keys = encode(shifted, order="morton", bits=bits, offsets=offsets, backend=backend)
    keys, order = cell_order(keys, offsets, bits=3 * bits, backend=backend)
    starts, cell_offsets = cell_starts(keys, offsets)
    sizes = starts.diff()
    cell = torch.repeat_interleave(sizes, output_size=len(grid))
    return order, starts, cell_offsets, torch.empty_like(order).scatter_(0, order, cell)


def axis_bits(low: Tensor, high: Tensor, margin: int) -> int:
    """Bits an axis for cells between each cloud's corners (B, 3), and a margin about them. Raises: ShapeError."""
    pairs = zip(low.flatten().tolist(), high.flatten().tolist(), strict=True)
    extent = max((b - a for a, b in pairs), default=0) + 2 * margin
    most = min(_BITS, (63 - max(0, len(low) - 1).bit_length()) // 3)
    if extent >= 1 << most:
        raise ShapeError(f"grid: expected a cloud of at most {1 << most} cells along an axis, got {extent + 1}")
    return max(1, extent.bit_length())


def starts_of(voxels: Voxels) -> Tensor:
    """The voxels' offsets (B+1,), on their device, also where they are one cloud."""
    return check_offsets(voxels.offsets, voxels.grid.shape[0], device=voxels.grid.device).contiguous()


def check_grid(x: object, name: str = "grid") -> None:
    """Raise ShapeError unless `x` is an int64 tensor (N, 3)."""
    if not isinstance(x, Tensor) or x.dtype != torch.int64 or x.ndim != 2 or x.shape[1] != 3:
        raise ShapeError(f"{name}: expected an int64 tensor (N, 3), got {describe(x)}")


def triple(x: Triple, name: str, least: int) -> tuple[int, int, int]:
    """One number for each axis. Raises: ShapeError."""
    a = x if isinstance(x, tuple) else (x, x, x)
    if len(a) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < least for n in a):
        raise ShapeError(f"{name}: expected an integer of at least {least}, or three of them, got {x!r}")
    return a
