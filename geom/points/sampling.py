"""Farthest point sampling: a few points of each cloud that cover it evenly."""

import torch
from jaxtyping import Int64
from torch import Tensor

from geom.checks import readable
from geom.errors import ShapeError
from geom.points.cloud import Points, as_points, bounds, offsets_of
from geom.points.morton import morton_order

__all__ = ["farthest_point_sample"]

_SMALL = 2048  # points of the largest cloud up to which ordering them costs more than it saves


def farthest_point_sample(
    points: Points | Tensor,
    count: int | Int64[Tensor, " b"],
    *,
    offsets: Tensor | None = None,
    random_start: bool = False,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Int64[Tensor, " m"]:
    """Indices of `count` points of each cloud: its first one, then again and again the one farthest from all before.

    Each next sample is argmax_i min_s |x_i - x_s|^2, the lowest index where several are as far; a point comes twice
    only when all places are taken. The same indices as by brute force, ties included, whatever the order of the points:
    squares are rounded, then added x first. Above some 2,000 points, buckets that a new sample cannot change are
    skipped.

    Args: points (N, 3) float32 or float64, tensor or Points; count, at most the points there are, for each cloud the
    same or (B,) int64; offsets (B+1,) for several clouds; random_start: begin at a random point, drawn with
    `generator`, instead of each cloud's first; backend "auto", "warp" or "torch" (brute force, the oracle; "auto" under
    torch.func).
    Returns: (M,) int64 into the whole of `points`, cloud by cloud, in the order of sampling; M is the sum of counts.
    Gradients flow through `points[index]`.
    Raises: ShapeError, also where a cloud has fewer points than `count`.

    >>> line = torch.tensor([[0., 0, 0], [1, 0, 0], [5, 0, 0], [3, 0, 0]])
    >>> farthest_point_sample(line, 3).tolist()
    [0, 2, 3]

    Guarantees: not differentiable; deterministic; exact f64, exact f32
    """
    from geom.kernels import bridge

    cloud = as_points(points, offsets=offsets)
    x, edges = cloud.positions.detach(), bounds(cloud)
    clouds = len(edges) - 1
    rows, total = _rows(count, edges, x)
    starts = edges[:-1]
    if random_start:
        draw = torch.rand(
            clouds, generator=generator, dtype=torch.float64, device=generator.device if generator else None
        )
        starts = starts + (draw.to(x.device) * edges.diff()).long()
    if bridge.choose(backend, x):
        return _farthest(x, edges, starts, rows, total)
    return brute_force(x, edges, starts, rows)


def brute_force(x: Tensor, edges: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """The twin, for points (N, D): each sample against all points of its cloud."""
    found = []
    spans = zip(edges[:-1].tolist(), edges[1:].tolist(), starts.unbind(), rows.diff().tolist(), strict=True)
    for begin, end, start, count in spans:
        columns = x[begin:end].unbind(-1)
        sample, nearest = start - begin, torch.full_like(columns[0], float("inf"))
        for _ in range(count):
            found.append(sample + begin)
            gap = torch.zeros_like(nearest)
            for column in columns:
                gap = gap + (column - column.index_select(0, sample[None])).square()
            nearest = torch.minimum(nearest, gap)
            sample = nearest.argmax()
    return torch.stack(found) if found else starts.new_empty(0)


def _rows(count: object, edges: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """Where each cloud's samples begin (B+1,), and how many there are."""
    clouds = len(edges) - 1
    if isinstance(count, Tensor):
        if count.dtype != torch.int64 or count.shape != (clouds,):
            raise ShapeError(f"count: expected an integer or an int64 tensor ({clouds},), got {tuple(count.shape)}")
        each = count.to(x.device)
        total = int(each.sum())
    elif isinstance(count, int) and not isinstance(count, bool):
        each, total = torch.full((clouds,), count, device=x.device), count * clouds
    else:
        raise ShapeError(f"count: expected an integer or an int64 tensor ({clouds},), got {count!r}")
    if readable(edges) and not bool(((each >= 0) & (each <= edges.diff())).all()):
        raise ShapeError(
            f"count: expected 0 to {edges.diff().tolist()[:8]} samples of each cloud, got {each.tolist()[:8]}"
        )
    return offsets_of(each), total


@torch.library.custom_op(
    "geom::farthest_points",
    mutates_args=(),
    schema="(Tensor points, Tensor offsets, Tensor starts, Tensor rows, SymInt total) -> Tensor",
)
def _farthest(points: Tensor, offsets: Tensor, starts: Tensor, rows: Tensor, total: int) -> Tensor:
    from geom.kernels import bridge, sampling

    points, device = points.contiguous(), points.device
    count, clouds = len(points), len(offsets) - 1
    index = torch.empty(total, dtype=torch.int64, device=device)
    buckets, groups = count // sampling.BUCKET + clouds, count // (sampling.BUCKET * sampling.GROUP) + clouds
    largest = int(offsets.diff().max()) if clouds else 0
    ordered = device.type == "cpu" and largest > _SMALL
    order = morton_order(points, offsets) if ordered else torch.arange(count, device=device)
    store = points.new_empty(4 * sampling.BUCKET * buckets)
    ids = index.new_empty(sampling.BUCKET * buckets, dtype=torch.int32)
    boxes, tops = points.new_empty(6 * (sampling.GROUP + 1) * groups), points.new_empty((sampling.GROUP + 1) * groups)
    args = (points, order, offsets, starts.contiguous(), rows, groups, store, ids, boxes, tops, index)
    items = clouds * sampling.BLOCK if device.type == "cuda" else clouds
    bridge.launch(sampling.farthest_points[points.dtype], items, *args, device=device, grain=1)
    return index


@_farthest.register_fake
def _(points: Tensor, offsets: Tensor, starts: Tensor, rows: Tensor, total: int) -> Tensor:
    return points.new_empty(total, dtype=torch.int64)
