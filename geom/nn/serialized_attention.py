"""Attention for many items: along an order each patch of neighbours is a cloud of its own."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_offsets, check_points, describe
from geom.errors import ShapeError
from geom.nn.scatter import scatter
from geom.points.cloud import offsets_of
from geom.values import Value, value

__all__ = ["Patches", "patches", "principal_coordinates"]


@value
class Patches(Value):
    """Items cut into patches along an order: `x[index]` is patch after patch, `y[home]` is item after item again.

    Fields: `index` int64 (M,), M >= N, the item at each place of each patch; `offsets` int64 (P+1,), the patches'
    bounds; `home` int64 (N,), the place of each item in the patch that is its own, so that `index[home]` is 0 ... N-1;
    `size`, of all patches, or None where there are others, because a cloud has fewer items, or none at all.
    """

    index: Int64[Tensor, " m"]
    offsets: Int64[Tensor, " bounds"]
    home: Int64[Tensor, " n"]
    size: int | None


def patches(
    order: Int64[Tensor, " n"], size: int, *, shift: int = 0, offsets: Int64[Tensor, " clouds"] | None = None
) -> Patches:
    """Cut an order into patches, within which attention, or any operator on short sequences, then runs.

        patch k of a cloud of n items: from min(max(k size - shift, 0), n - size), `size` items; own are those from
        k size - shift on that no patch before it owns

    All patches of a cloud have one size. At its ends there may be fewer items left than that; such a patch also looks
    at the neighbours before (or, of a shifted one, behind), whose results are dropped, as in Point Transformer V3 (Wu
    et al., 2024, Sec. 4.2). A cloud with fewer than `size` items is one patch, of its own size. Where patches end,
    items do not see each other: orders that differ, or one with and without a shift of size // 2, end elsewhere.

    Args:
        order: int64 (N,), the items one after the other, cloud after cloud, as `geom.points.serialize` gives it.
        size: items of a patch, at least 1.
        shift: from 0 to size - 1.
        offsets: (B+1,), of several clouds.

    Returns: Patches. Raises: ShapeError.

    It looks at the offsets: not under torch.func.vmap, nor torch.compile(fullgraph=True).

    >>> cut = patches(torch.arange(5), 2)
    >>> cut.index.tolist(), cut.home.tolist()
    ([0, 1, 2, 3, 3, 4], [0, 1, 2, 3, 5])
    >>> from geom.nn import attention
    >>> x = torch.randn(1, 5, 4)  # heads, items, features
    >>> y = attention(*[x[:, cut.index]] * 3, offsets=cut.offsets)[:, cut.home]

    Guarantees: not differentiable; deterministic; exact
    """
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.ndim != 1:
        raise ShapeError(f"order: expected an int64 tensor (N,), got {describe(order)}")
    for name, number, least, most in (("size", size, 1, None), ("shift", shift, 0, size)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least or (most and number >= most):
            upto = "" if most is None else f" and below {most}"
            raise ShapeError(f"{name}: expected an integer of at least {least}{upto}, got {number!r}")
    device, count = order.device, len(order)
    bounds = check_offsets(offsets, count, device=device)
    lengths = bounds.diff()
    each = torch.where(lengths > size, (lengths + shift + size - 1) // size, (lengths > 0).long())  # patches of a cloud
    first, number = each.cumsum(0) - each, int(each.sum())
    cloud = _numbers(each, number)
    own = (torch.arange(number, device=device) - first[cloud]) * size - shift
    start = bounds[cloud] + torch.minimum(own, lengths[cloud] - size).clamp(min=0)
    width = lengths[cloud].clamp(max=size)
    ends = offsets_of(width)
    places = torch.arange(int(ends[-1]), device=device) + (start - ends[:-1])[_numbers(width, int(ends[-1]))]

    along, cloud = torch.arange(count, device=device), _numbers(lengths, count)
    patch = first[cloud] + torch.where(each[cloud] > 1, (along - bounds[cloud] + shift) // size, 0)
    home = torch.full_like(order, -1)
    within = count == 0 or (int(order.min()) >= 0 and int(order.max()) < count)
    if within:
        home[order] = along + (ends[:-1] - start)[patch]
    if not within or bool((home < 0).any()) or not torch.equal(cloud[order], cloud):
        raise ShapeError(f"order: expected each of {count} items once, cloud after cloud, got others")
    index = order[places]
    alike = number > 0 and bool((width == size).all())
    return Patches(index, ends, home, size if alike else None)


def _numbers(lengths: Tensor, total: int) -> Tensor:
    """0, 1, 2, ... each as often as its length says."""
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths, output_size=total)


def principal_coordinates(
    points: Float[Tensor, "n 3"], *, offsets: Int64[Tensor, " clouds"] | None = None
) -> Float[Tensor, "n 3"]:
    """Points seen from their own cloud: from its centre along its principal axes, the widest first.

        q_k = e_k . (p - mean p),    sum q_k^3 >= 0,    e_k the eigenvectors of the covariance

    They do not change when the cloud is moved, turned or mirrored, and so does not what is computed from them: orders
    by `geom.points.serialize` are then those of the shape, and a network that uses them is as equivariant as it was.
    Where two principal widths are equal, or an axis has no skewness, as in symmetric shapes, its direction is open: any
    is taken, as rounding has it.

    Args: points (N, 3) float32 or float64; offsets (B+1,) of several clouds. Returns: (N, 3). Raises: ShapeError.

    >>> x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [4, 0, 0], [0, 2, 0], [0, 0, 1]])
    >>> bool((principal_coordinates(x) - principal_coordinates(5 - x[:, [1, 2, 0]])).abs().max() < 1e-5)
    True

    Guarantees: not differentiable; deterministic; 1e-15 f64, 1e-7 f32 of the extent, over the gap of the widths
    """
    x = check_points(points).detach().double()
    bounds = check_offsets(offsets, len(x), device=x.device)
    count, cloud = len(bounds) - 1, _numbers(bounds.diff(), len(x))
    x = x - scatter(x, cloud, count, reduce="mean")[cloud]
    covariance = scatter((x[:, :, None] * x[:, None]).flatten(1), cloud, count, reduce="mean").reshape(-1, 3, 3)
    axes = torch.linalg.eigh(covariance)[1].flip(-1)
    q = (x[:, None] @ axes[cloud])[:, 0]
    skew = scatter(q**3, cloud, count)[cloud]
    return torch.where(skew < 0, -q, q).to(points.dtype)
