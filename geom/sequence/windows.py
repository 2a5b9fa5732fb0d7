"""Voxels in a row, window after window, and the row cut into groups of one size: what LION's operators run along."""

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from geom.checks import check_choice, check_integer, check_offsets, describe
from geom.errors import ShapeError
from geom.nn.serialized_attention import Patches
from geom.nn.voxels import Triple, Voxels, starts_of, triple
from geom.points.morton import cell_order

__all__ = ["equal_groups", "window_order"]


def window_order(voxels: Voxels, window: Triple, *, axis: str = "x", shift: bool = False) -> Int64[Tensor, " n"]:
    """Voxels sorted window by window, and within each window line by line.

        W = floor((g + s) / w),  i = (g + s) - w W,  s = floor(w / 2) if shifted, else 0
        axis "x": by (W_x, W_y, W_z, i_x, i_y, i_z)        axis "y": by (W_y, W_x, W_z, i_y, i_x, i_z)

    LION (Liu et al., 2024, Section 3.2): along x and then along y, neighbours of two axes come near in the row. The
    keys hold no extents of a grid, so that a voxel's window depends on nothing but its own cell. It looks at the cells:
    not under torch.func.vmap, nor torch.compile(fullgraph=True).

    Args: voxels; window (w_x, w_y, w_z) in cells, or one number; axis "x" or "y", which lines run along the row's
    slowest direction; shift, by half a window.
    Returns: (N,) indices of the voxels, cloud after cloud.
    Raises: ShapeError, also for a batch so wide that its windows do not fit 63 bits.

    >>> row = Voxels(torch.tensor([[3, 0, 0], [0, 2, 0], [1, 0, 0]]), torch.rand(3, 1))
    >>> window_order(row, (2, 4, 1), axis="x").tolist(), window_order(row, (2, 4, 1), axis="y").tolist()
    ([1, 2, 0], [2, 1, 0])

    Guarantees: not differentiable; deterministic; exact
    """
    check_choice(axis, ("x", "y"), "axis")
    size = triple(window, "window", 1)
    grid, offsets = voxels.grid, starts_of(voxels)
    if not len(grid):
        return grid.new_empty(0)
    moved = grid + grid.new_tensor([w // 2 if shift else 0 for w in size])
    outer = moved.div(grid.new_tensor(size), rounding_mode="floor")
    inner = moved - outer * grid.new_tensor(size)
    low = outer.amin(0)
    counts = (outer.amax(0) - low + 1).tolist()
    places = math.prod(counts) * math.prod(size)
    if places >= 1 << 63:
        raise ShapeError(f"voxels: expected windows of fewer than 2^63 cells in all, got {places:.3g}")
    axes = (0, 1, 2) if axis == "x" else (1, 0, 2)
    key = torch.zeros_like(grid[:, 0])
    for columns, sizes in ((outer - low, counts), (inner, size)):
        for k in axes:
            key = key * sizes[k] + columns[:, k]
    return cell_order(key, offsets, bits=max(1, (places - 1).bit_length()))[1]


def equal_groups(order: Int64[Tensor, " n"], size: int, *, offsets: Int64[Tensor, " clouds"] | None = None) -> Patches:
    """Cut an order into groups of `size` items each, regardless of where windows end.

        place j of group k of a cloud of n items: item k size + j if that is below n; else item (k - 1) size + j, which
        the group before has at the same place; in a cloud of one group, items over again: j mod n

    LION (Liu et al., 2024), whose kernels want groups of one size. An item's own place is the first that holds it; what
    an operator makes of the others is dropped. Unlike `patches`, a cloud with fewer items than `size` is filled up, and
    a group's last places hold what is in the middle of the group before. It looks at the offsets: not under
    torch.func.vmap, nor torch.compile(fullgraph=True).

    Args: order int64 (N,), the items cloud after cloud, as `window_order` and `geom.points.serialize` give them; size,
    at least 1; offsets (B+1,).
    Returns: Patches: `x[cut.index].unflatten(0, (-1, size))` are the groups, `y.flatten(0, 1)[cut.home]` goes back.
    Raises: ShapeError.

    >>> cut = equal_groups(torch.arange(5), 3)
    >>> cut.index.tolist(), cut.home.tolist()
    ([0, 1, 2, 3, 4, 2], [0, 1, 2, 3, 4])
    >>> equal_groups(torch.arange(2), 5).index.tolist()
    [0, 1, 0, 1, 0]

    Guarantees: not differentiable; deterministic; exact
    """
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.ndim != 1:
        raise ShapeError(f"order: expected an int64 tensor (N,), got {describe(order)}")
    check_integer(size, "size")
    device, count = order.device, len(order)
    bounds = check_offsets(offsets, count, device=device)
    lengths = bounds.diff()
    each = (lengths + size - 1) // size  # groups of a cloud
    first = (each.cumsum(0) - each) * size
    total = int(each.sum()) * size
    clouds = torch.arange(len(lengths), device=device)
    cloud = clouds.repeat_interleave(each * size, output_size=total)
    length, place = lengths[cloud], torch.arange(total, device=device) - first[cloud]
    source = torch.where(place < length, place, torch.where(length > size, place - size, place % length.clamp(min=1)))

    own = clouds.repeat_interleave(lengths, output_size=count)
    within = count == 0 or (int(order.min()) >= 0 and int(order.max()) < count)
    home = torch.full_like(order, -1)
    if within:
        home[order] = torch.arange(count, device=device) + (first - bounds[:-1])[own]
    if not within or bool((home < 0).any()) or not torch.equal(own[order], own):
        raise ShapeError(f"order: expected each of {count} items once, cloud after cloud, got others")
    ends = torch.arange(0, total + 1, size, device=device)
    return Patches(order[source + bounds[cloud]], ends, home, size)
