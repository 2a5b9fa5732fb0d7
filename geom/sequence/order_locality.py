"""How near the points of a cloud stay to each other in a row: steps along each order, and which grid they are over."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_positive
from geom.points import Points, serialize
from geom.points.cloud import as_points, bounds
from geom.points.morton import corners
from geom.points.serialization import grid_size_of
from geom.values import Value, value

__all__ = ["CURVES", "Locality", "locality"]

CURVES = ("hilbert", "hilbert-transposed", "morton", "morton-transposed", "xyz", "xzy", "yxz", "yzx", "zxy", "zyx")


@value
class Locality(Value):
    """Steps from point to point along orders of one cloud, or of several, between which no step counts.

    Fields: `orders`, their names, K of them; `grid_size`, the cell's edge; float64 (K,): `mean`, `median` and
    `greatest` step, in the unit of the points, and `near`, the share of steps that end in the cell they begin in or in
    one of the 26 around it. Without a step all are 0, and `near` is 1. `str(report)` is a table.
    """

    orders: tuple[str, ...]
    grid_size: float
    mean: Float[Tensor, " k"]
    median: Float[Tensor, " k"]
    greatest: Float[Tensor, " k"]
    near: Float[Tensor, " k"]

    def __str__(self) -> str:
        width = max(len("order"), *map(len, self.orders))
        lines = [f"{'order':{width}}  {'mean':>10}  {'median':>10}  {'greatest':>10}  {'near':>6}"]
        for k, name in enumerate(self.orders):
            steps = "  ".join(f"{float(x[k]):10.4g}" for x in (self.mean, self.median, self.greatest))
            lines.append(f"{name:{width}}  {steps}  {100 * float(self.near[k]):5.1f}%")
        return "\n".join([*lines, f"steps over cells of {self.grid_size:.4g}"])


def locality(
    points: Points | Float[Tensor, "n 3"],
    *,
    orders: Sequence[str] = CURVES,
    grid_size: float | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Locality:
    """Measure what each order makes of a cloud: |p_{i+1} - p_i| along it, and how often it stays among near cells.

    Networks that read points one after the other want short steps, and few long ones. Hilbert's curve steps least, on
    almost any grid; a traverse wants cells of several times the points' spacing, else its lines hold a point each.
    Points of one key keep the order they came in: mix a cloud that comes along a curve before comparing orders.

    Args: points (N, 3) float32 or float64, tensor or Points; orders, names that `geom.points.encode` takes; grid_size,
    the cell's edge, None for that of `geom.points.serialize`, three times the spacing; offsets (B+1,) for several
    clouds; backend "auto", "warp" or "torch".
    Returns: Locality. Raises: ShapeError.

    >>> corners = torch.tensor([[0.0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]])
    >>> report = locality(corners, orders=("hilbert", "morton"), grid_size=1)
    >>> report.greatest.tolist(), report.near.tolist()
    ([1.0, 1.4142135623730951], [1.0, 1.0])

    Guarantees: not differentiable; deterministic; 1e-15 f64, 1e-7 f32 of the greatest coordinate
    """
    names = (orders,) if isinstance(orders, str) else tuple(orders)
    cloud = as_points(points, offsets=offsets)
    size = grid_size_of(cloud, backend=backend) if grid_size is None else check_positive(grid_size, "grid_size")
    rows = serialize(cloud, order=names, grid_size=size, backend=backend).order
    positions, starts = cloud.positions.detach(), bounds(cloud)
    low = corners(positions, starts)[0]
    number = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
    edge = torch.full((), size, dtype=positions.dtype, device=positions.device)
    cells = ((positions - low[number]) / edge).long()
    within = torch.ones(max(0, len(positions) - 1), dtype=torch.bool, device=positions.device)
    ends = starts[1:-1]
    within[ends[(ends > 0) & (ends < len(positions))] - 1] = False  # from the last point of a cloud to the next's first
    found = []
    for row in rows:
        steps = positions[row].double().diff(dim=0).norm(dim=1)[within]
        beside = (cells[row].diff(dim=0).abs().amax(1) <= 1)[within]
        if not len(steps):
            found.append(steps.new_tensor([0.0, 0.0, 0.0, 1.0]))
            continue
        found.append(torch.stack([steps.mean(), steps.median(), steps.amax(), beside.double().mean()]))
    mean, median, greatest, near = torch.stack(found).unbind(1)
    return Locality(names, size, mean, median, greatest, near)
