"""Points in a row: codes of grid cells along Morton, Hilbert and traverse curves, and the orders they give."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from geom.checks import check_choice, check_offsets, check_positive, describe, readable
from geom.errors import ShapeError
from geom.points.cloud import Points, as_points, bounds
from geom.points.morton import cell_order, corners, sort_codes
from geom.points.neighbors import knn
from geom.points.orders import ORDERS, cell_at, code_of, traverse_official
from geom.values import Value, value

__all__ = ["Serialization", "decode", "encode", "grid_size_of", "serialize"]

_BITS = 21  # an axis: three of them fit 63 bits
_SAMPLE = 1024  # points whose nearest other point tells the spacing


@value
class Serialization(Value):
    """Points in one order, or in K: `serialization[k]` is the k-th of several.

    Fields, int64: `code` (*K, N) of each point; `order` (*K, N), the points' indices from one end of the curve to the
    other, cloud after cloud; `inverse` (*K, N), each point's place in it: `x[order][inverse]` is x.
    """

    code: Int64[Tensor, "*k n"]
    order: Int64[Tensor, "*k n"]
    inverse: Int64[Tensor, "*k n"]


def encode(
    grid: Int[Tensor, "n 3"],
    *,
    order: str,
    bits: int | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Int64[Tensor, " n"]:
    """Place of each grid cell along a curve; the number of its cloud stands above the cell's own 3 `bits` bits.

    - "morton": bits interleaved, x_i at 3 i + 2, y_i at 3 i + 1, z_i at 3 i.
    - "hilbert": Skilling's curve (Programming the Hilbert curve, 2004), the bits that Point Transformer V3 has: from
      cell to cell one step along one axis. It depends on `bits` modulo 3: fix them where orders are to be compared.
    - "morton-transposed", "hilbert-transposed": the same with x and y exchanged.
    - "xyz", "xzy", ... "zyx": the consistent traverse of Point Cloud Mamba (Zhang et al., 2024), first letter fastest,
      last slowest. With cells (u, v, w) so named, v runs back where w is odd and u where v + w is odd:
      code = (w 2^b + v') 2^b + u', v' = v or 2^b - 1 - v, u' = u or 2^b - 1 - u. A full box of any extents is walked by
      steps of one cell, and the order depends neither on `bits` nor on the other cells.
    - "xyz-official", ...: the keys of that paper's released code, for its checkpoints: +-u and a constant, which tell
      apart neither v nor w, and change with the greatest coordinates in the batch. They may be negative; `bits` only
      bound the coordinates.

    Args: grid (N, 3) int64 or int32, in [0, 2^bits); order, a name above; bits an axis, 1 to 21, or None for as many
    as the greatest coordinate of the batch has; offsets (B+1,) for several clouds, 3 bits + ceil(log2 B) <= 63; backend
    "auto", "warp" or "torch". torch.func transforms and torch.compile need `bits`, and then do not look at the numbers.
    Returns: (N,).
    Raises: ShapeError, also for coordinates out of range.

    >>> encode(torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), order="xyz").tolist()
    [0, 1, 2, 3]

    Guarantees: not differentiable; deterministic; exact
    """
    if not isinstance(grid, Tensor) or grid.dtype not in (torch.int64, torch.int32) or grid.shape[1:] != (3,):
        raise ShapeError(f"grid: expected an int64 or int32 tensor (N, 3), got {describe(grid)}")
    check_choice(order, ORDERS, "order")
    width = _check_bits(bits)
    starts = None if offsets is None else check_offsets(offsets, grid.shape[0], device=grid.device)
    low, high = (x.item() for x in grid.aminmax()) if readable(grid) and grid.numel() else (0, 0)
    if width is None:
        if not readable(grid):
            raise ShapeError("bits: expected a number under torch.func transforms and torch.compile, got None")
        width = min(_BITS, max(1, int(high).bit_length()))
    if low < 0 or high >= 1 << width:
        raise ShapeError(f"grid: expected coordinates in [0, {1 << width}), got {low} to {high}")
    _check_room(width, 1 if starts is None else len(starts) - 1)
    grid, (curve, axes) = grid.long(), ORDERS[order]
    cloud = _clouds(starts, grid.shape[0])
    native = _native(backend, grid)
    if curve == "official":
        return traverse_official(grid, axes, cloud)
    code = _encode(grid, curve, axes, width) if native else code_of(grid[:, axes], curve, width)
    return code if cloud is None else code | cloud << 3 * width


def decode(code: Int64[Tensor, " n"], *, order: str, bits: int, backend: str = "auto") -> Int64[Tensor, "n 3"]:
    """The grid cell of each code: `encode` with as many `bits` undone; the cloud's number is `code >> 3 * bits`.

    Args: code (N,) int64, of at least 0; order, any name that `encode` takes save the official keys, which name no
    cell; bits an axis, 1 to 21; backend "auto", "warp" or "torch".
    Returns: (N, 3) int64.
    Raises: ShapeError.

    >>> decode(torch.arange(4), order="hilbert", bits=1).tolist()
    [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 0]]

    Guarantees: not differentiable; deterministic; exact
    """
    if not isinstance(code, Tensor) or code.dtype != torch.int64 or code.ndim != 1:
        raise ShapeError(f"code: expected an int64 tensor (N,), got {describe(code)}")
    check_choice(order, [name for name, (curve, _) in ORDERS.items() if curve != "official"], "order")
    width = _check_bits(bits)
    if width is None:
        raise ShapeError(f"bits: expected an integer from 1 to {_BITS}, got None")
    if readable(code) and code.numel() and int(code.min()) < 0:
        raise ShapeError(f"code: expected numbers of at least 0, got {int(code.min())}")
    curve, axes = ORDERS[order]
    if _native(backend, code):
        return _decode(code, curve, axes, width)
    cells = cell_at(code & (1 << 3 * width) - 1, curve, width)
    return cells[:, [axes.index(axis) for axis in range(3)]]


def serialize(
    points: Points | Float[Tensor, "n 3"],
    *,
    order: str | Sequence[str],
    grid_size: float | None = None,
    bits: int | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Serialization:
    """Points sorted along a curve through the cells of a grid at their cloud's least corner, floor((p - low) / size).

    Points of one cell keep their order; each cloud is sorted apart. Several orders share one grid and one sort, which
    looks at the bits in use alone. A traverse wants cells of two to four times the points' spacing: on finer ones its
    lines hold a point each and the walk only jumps. Point Cloud Mamba's grid stands still instead, floor(p / size) less
    its least: `encode` that one for its checkpoints. Not under torch.func.vmap, nor torch.compile(fullgraph=True).

    Args: points (N, 3) float32 or float64, tensor or Points; order, a name that `encode` takes, or several; grid_size,
    the cell's edge in the unit of the points, None for `grid_size_of` them; bits an axis, None for as many as the
    widest cloud needs; offsets (B+1,) for several clouds; backend "auto", "warp" or "torch".
    Returns: Serialization of (N,) for one name, of (K, N) for several.
    Raises: ShapeError, also where the extent holds more cells than `bits`, or 63 bits for cell and cloud, can name.

    >>> line = torch.tensor([[0.0, 0, 0], [3, 0, 0], [1, 0, 0], [2, 0, 0]])
    >>> serialize(line, order=("xyz", "hilbert"), grid_size=1).order.tolist()
    [[0, 2, 3, 1], [0, 2, 3, 1]]

    Guarantees: not differentiable; deterministic; exact
    """
    cloud = as_points(points, offsets=offsets)
    names = [order] if isinstance(order, str) else list(order)
    if not names:
        raise ShapeError("order: expected at least one name, got none")
    for name in names:
        check_choice(name, ORDERS, "order")
    positions, starts = cloud.positions.detach(), bounds(cloud)
    clouds, count, device = len(starts) - 1, len(positions), positions.device
    native = _native(backend, starts)
    width = _check_bits(bits)
    most = width or min(_BITS, (63 - _cloud_bits(clouds)) // 3)
    _check_room(most, clouds)
    low, high = corners(positions, starts)
    extent = (high - low).amax() if clouds else positions.new_zeros(())
    least = _least_size(extent, most)
    size = max(3 * _spacing(positions, starts, backend), least) if grid_size is None else grid_size
    size = check_positive(size, "grid_size")
    edge = torch.full((), size, dtype=positions.dtype, device=device)  # a tensor: true division on every device
    cells = float(extent / edge)  # the same operation as on the points: no coordinate is above
    if not cells < 1 << most:
        raise ShapeError(f"grid_size: expected at least {least:.3g} for this extent and {most} bits, got {size:.3g}")
    width = width or max(1, int(cells).bit_length())
    number = _clouds(starts, count)
    grid = ((positions - (low if number is None else low[number])) / edge).long() if count else starts.new_empty((0, 3))

    code = torch.empty((len(names), count), dtype=torch.int64, device=device)
    for row, (curve, axes) in zip(code, (ORDERS[name] for name in names), strict=True):
        if curve == "official":
            row.copy_(traverse_official(grid, axes, number))
            continue
        if native:
            _run("encode", grid, curve, axes, width, row)
        else:
            row.copy_(code_of(grid[:, axes], curve, width))
        if number is not None:
            row |= number << 3 * width
    places, inverse = _sorted(code, starts, 3 * width, native, official=any(ORDERS[n][0] == "official" for n in names))
    if isinstance(order, str):
        return Serialization(code[0], places[0], inverse[0])
    return Serialization(code, places, inverse)


def grid_size_of(
    points: Points | Float[Tensor, "n 3"],
    *,
    bits: int | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> float:
    """The cell's edge that `serialize` takes if none is given: three times the points' spacing.

    That is the mean distance to the nearest other point, over at most 2,047 of them; more where so many cells would be
    too many. Without two points apart it is the least that there is.

    Args: points (N, 3) float32 or float64, tensor or Points; bits, offsets, backend as of `serialize`.
    Returns: the edge, in the unit of the points.
    Raises: ShapeError.

    >>> grid_size_of(torch.tensor([[0.0, 0, 0], [3, 0, 0], [1, 0, 0], [2, 0, 0]]))
    3.0

    Guarantees: not differentiable; deterministic; exact, of the sample
    """
    cloud = as_points(points, offsets=offsets)
    positions, starts = cloud.positions.detach(), bounds(cloud)
    clouds = len(starts) - 1
    most = _check_bits(bits) or min(_BITS, (63 - _cloud_bits(clouds)) // 3)
    _check_room(most, clouds)
    low, high = corners(positions, starts)
    extent = (high - low).amax() if clouds else positions.new_zeros(())
    return max(3 * _spacing(positions, starts, backend), _least_size(extent, most))


def _least_size(extent: Tensor, bits: int) -> float:
    """Of a cell, so that as many bits count them."""
    return max(float(extent) / (2**bits - 0.5), torch.finfo(extent.dtype).tiny)


def _sorted(code: Tensor, starts: Tensor, used: int, native: bool, *, official: bool) -> tuple[Tensor, Tensor]:
    """Permutation of each row of codes (K, N) by their `used` bits, stable and cloud by cloud, and its inverse."""
    if official and code.numel():  # of any sign and of as many bits as they like
        code = code - code.amin(1, keepdim=True)
        used = max(1, int(code.max()).bit_length())
    rows, count = code.shape
    if native and code.device.type == "cpu":
        shifts = count * torch.arange(rows)[:, None]
        ends = torch.cat([(starts[:-1] + shifts).reshape(-1), starts.new_tensor([rows * count])])
        order, inverse = sort_codes(code.reshape(-1), ends, used, count, invert=True)
        return order.reshape(rows, count), inverse.reshape(rows, count)
    order = torch.stack([cell_order(row, starts, backend="torch")[1] for row in code])
    along = torch.arange(count, device=code.device).expand(rows, count)
    return order, torch.empty_like(order).scatter_(1, order, along)


def _spacing(positions: Tensor, starts: Tensor, backend: str) -> float:
    """Mean distance to the nearest other point, 0 where there is none."""
    every = max(1, len(positions) // _SAMPLE)
    asked = positions[::every].contiguous()
    asked_starts = (starts + every - 1) // every  # of the multiples of `every`, as many stand before
    near = knn(asked, positions, 2, query_offsets=asked_starts, offsets=starts, backend=backend).distance[:, 1].double()
    near = near[near < float("inf")]
    return float(near.mean()) if len(near) else 0.0


def _clouds(starts: Tensor | None, count: int) -> Tensor | None:
    """Each point's cloud, None where there is one."""
    if starts is None or len(starts) <= 2:
        return None
    return torch.repeat_interleave(starts.diff(), output_size=count)


def _cloud_bits(clouds: int) -> int:
    return max(0, clouds - 1).bit_length()


def _check_bits(bits: int | None) -> int | None:
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= _BITS):
        raise ShapeError(f"bits: expected an integer from 1 to {_BITS}, got {describe(bits)}")
    return bits


def _check_room(bits: int, clouds: int) -> None:
    if 3 * bits + _cloud_bits(clouds) > 63:
        most = (63 - _cloud_bits(clouds)) // 3
        raise ShapeError(f"bits: expected at most {most} an axis beside the number of {clouds} clouds, got {bits}")


def _native(backend: str, x: Tensor) -> bool:
    from geom.kernels import bridge

    return bridge.choose(backend, x.view(torch.float64))  # the bridge asks for floats, these kernels for no dtype


def _run(name: str, given: Tensor, curve: str, axes: Sequence[int], bits: int, out: Tensor) -> None:
    from geom.kernels import bridge, codes

    kernel = getattr(codes, name)[torch.float32]  # it sees integers alone: either dtype's will do
    args = (given.contiguous(), codes.CURVES.index(curve), *axes, bits, out)
    chunks = -(-len(out) // codes.CHUNK)
    bridge.launch(kernel, chunks, *args, device=out.device, grain=16384 // codes.CHUNK)


@torch.library.custom_op(
    "geom::encode", mutates_args=(), schema="(Tensor grid, str curve, int[] axes, int bits) -> Tensor"
)
def _encode(grid: Tensor, curve: str, axes: Sequence[int], bits: int) -> Tensor:
    code = grid.new_empty(len(grid))
    _run("encode", grid, curve, axes, bits, code)
    return code


@_encode.register_fake
def _(grid: Tensor, curve: str, axes: Sequence[int], bits: int) -> Tensor:
    return grid.new_empty(grid.shape[0])


@torch.library.custom_op(
    "geom::decode", mutates_args=(), schema="(Tensor code, str curve, int[] axes, int bits) -> Tensor"
)
def _decode(code: Tensor, curve: str, axes: Sequence[int], bits: int) -> Tensor:
    grid = code.new_empty((len(code), 3))
    _run("decode", code, curve, axes, bits, grid)
    return grid


@_decode.register_fake
def _(code: Tensor, curve: str, axes: Sequence[int], bits: int) -> Tensor:
    return code.new_empty((code.shape[0], 3))
