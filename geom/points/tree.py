"""A tree of points for exact neighbour queries: build it once, ask it often. Its kernels run on CPU and CUDA."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.autograd import forward_ad

from geom.checks import check_integer, check_positive, check_same
from geom.errors import ShapeError
from geom.points.cloud import Points, as_points, bounds, offsets_of
from geom.points.morton import morton_order
from geom.roots import safe_norm
from geom.values import Value, value

__all__ = ["Neighborhoods", "Neighbors", "NeighborTree", "checked_query", "distances", "square_limit"]

_LARGE = 1 << 14  # points whose order is worth a second thread
_MANY = 1 << 12  # queries from which putting them in order costs less than it saves


class Neighbors(NamedTuple):
    """`index` (N, k) int64 and `distance` (N, k), nearest first; a missing neighbour is -1 at distance inf."""

    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride] (the tuple's own is not missed)
    distance: Tensor


class Neighborhoods(NamedTuple):
    """Neighbours of query i: entries `offsets[i]` to `offsets[i + 1]` of `index` (M,) int64 and `distance` (M,), by
    rising index; `offsets` (N + 1,) int64."""

    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    distance: Tensor
    offsets: Tensor


@value
class NeighborTree(Value):
    """Points prepared for neighbour queries: a tree of eights. Build once, ask often.

    Fields are the kernels' own arrays (see `geom.kernels.neighbors`); make one with `NeighborTree.build`.
    """

    positions: Float[Tensor, "n 3"]
    offsets: Int64[Tensor, " b_plus_1"]
    leaf_points: Float[Tensor, "leaves 3 8"]
    leaf_index: Int32[Tensor, "leaves 8"]
    boxes: Float[Tensor, "nodes 6 8"]
    bases: Int32[Tensor, "levels b_plus_1"]
    node_bases: Int32[Tensor, " levels"]

    @classmethod
    def build(cls, points: Points | Tensor, *, offsets: Tensor | None = None) -> "NeighborTree":
        """Sort and box the points. O(N log N).

        Args: points (N, 3) float32 or float64; offsets (B+1,) for several clouds.
        Raises: ShapeError.

        Guarantees: not differentiable; deterministic; exact f64, exact f32
        """
        cloud = as_points(points, offsets=offsets)
        return cls.trusted(cloud.positions, bounds(cloud))

    @classmethod
    def trusted(cls, positions: Tensor, offsets: Tensor) -> "NeighborTree":
        """`build` for points that have been checked: (N, 3) finite, offsets (B+1,) on their device."""
        return cls(positions, offsets, *_build(positions.detach(), offsets))

    def knn(
        self,
        query: Points | Tensor,
        k: int,
        *,
        offsets: Tensor | None = None,
        max_distance: float | None = None,
    ) -> Neighbors:
        """The k nearest points of each query; as `geom.points.knn`, with `offsets` those of the queries."""
        asked, starts = self._asked(query, offsets, k)
        index, square = self.nearest(asked, starts, k, square_limit(max_distance), scattered=len(asked) >= _MANY)
        tracked = _tracked(asked, self.positions)
        return Neighbors(index, distances(asked, self.positions, index) if tracked else square.sqrt_())

    def nearest(
        self, query: Tensor, offsets: Tensor, k: int, limit: float = float("inf"), *, scattered: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`knn` for queries that have been checked: index and squared distance, not differentiable.

        `scattered` queries are asked in Morton order: where they are many, walks that follow each other closely pay.
        """
        return _knn(query.detach(), offsets, *self.arrays()[:5], k, limit, scattered)

    def radius_search(self, query: Points | Tensor, radius: float, *, offsets: Tensor | None = None) -> Neighborhoods:
        """All points within `radius` of each query; as `geom.points.radius_search`."""
        from geom.kernels import bridge, neighbors

        asked, starts = self._asked(query, offsets, 1)
        square_radius = square_limit(radius, "radius")
        q, dtype, device = asked.detach().contiguous(), asked.dtype, asked.device
        count = torch.empty(len(q), dtype=torch.int64, device=device)
        tree = self.arrays()
        bridge.launch(neighbors.radius_count[dtype], len(q), q, starts, *tree, square_radius, count, device=device)
        rows = offsets_of(count)
        total = int(rows[-1])
        index, square = count.new_empty(total), q.new_empty(total)
        args = (q, starts, *tree, square_radius, rows, index, square)
        bridge.launch(neighbors.radius_fill[dtype], len(q), *args, device=device)
        if not _tracked(asked, self.positions):
            return Neighborhoods(index, square.sqrt(), rows)
        owner = torch.repeat_interleave(torch.arange(len(q), device=device), count)
        return Neighborhoods(index, distances(asked[owner], self.positions, index[:, None])[:, 0], rows)

    def ball_query(self, query: Points | Tensor, radius: float, k: int, *, offsets: Tensor | None = None) -> Neighbors:
        """The first k points nearer than `radius` to each query; as `geom.points.ball_query`."""
        asked, starts = self._asked(query, offsets, k)
        index, square = _ball_query(asked.detach(), starts, *self.arrays()[:5], k, square_limit(radius, "radius"))
        tracked = _tracked(asked, self.positions)
        return Neighbors(index, distances(asked, self.positions, index) if tracked else square.sqrt_())

    def arrays(self) -> tuple[Tensor | int, ...]:
        """The tree as the kernels take it, see `geom.kernels.neighbors`."""
        fields = (self.leaf_points, self.leaf_index, self.boxes, self.bases, self.node_bases)
        return (*fields, self.bases.shape[1], self.bases.shape[0] - 1)

    def _asked(self, query: Points | Tensor, offsets: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        return checked_query(query, offsets, self.positions, self.offsets, k)


def checked_query(
    query: Points | Tensor, query_offsets: Tensor | None, points: Tensor, offsets: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Positions (N, 3) and offsets of queries that fit the points, for k neighbours. Raises: ShapeError."""
    asked = as_points(query, "query", offsets=query_offsets)
    check_same(asked.positions, points, "query and points")
    starts = bounds(asked)
    if starts.shape != offsets.shape:
        raise ShapeError(f"query: expected {len(offsets) - 1} clouds as in points, got {len(starts) - 1}")
    check_integer(k, "k")
    return asked.positions, starts.to(points.device)


def square_limit(x: float | None, name: str = "max_distance") -> float:
    """The square of a distance, inf for None; a product, since ** raises where it overflows."""
    return float("inf") if x is None else check_positive(x, name) * float(x)


def _tracked(query: Tensor, points: Tensor) -> bool:
    """Whether a derivative may be asked for, of reverse or forward mode."""
    if torch.is_grad_enabled() and (query.requires_grad or points.requires_grad):
        return True
    return any(forward_ad.unpack_dual(x).tangent is not None for x in (query, points))


def distances(query: Tensor, points: Tensor, index: Tensor) -> Tensor:
    """Distances through the coordinates, for derivatives: 0 at coincident points (double where), inf at index -1."""
    near = torch.cat([points, points.new_zeros((1, 3))])[index]  # -1 takes the last row, also where there is no other
    gap = safe_norm(query[:, None] - near)
    return torch.where(index < 0, torch.full_like(gap, float("inf")), gap)


@torch.library.custom_op(
    "geom::neighbor_tree",
    mutates_args=(),
    schema="(Tensor points, Tensor offsets) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _build(points: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from geom.kernels import bridge, neighbors

    points = points.contiguous()
    out = _empty_tree(points, offsets)
    leaf_points, leaf_index, boxes, bases, node_bases = out
    count = len(points)
    ordered = _median_order if points.device.type == "cpu" else morton_order  # medians make the tighter boxes
    order = ordered(points, offsets)
    sizes, width = offsets.diff(), neighbors.WIDTH
    for level in range(len(bases)):
        sizes = (sizes + width - 1) // width
        bases[level, 1:] = sizes.cumsum(0)
    bases[:, 0] = 0
    capacities = _capacities(count, len(offsets) - 1)
    starts = [0, 0]  # level 0 are leaves, in arrays of their own
    for capacity in capacities[1:-1]:
        starts.append(starts[-1] + capacity)
    node_bases.copy_(torch.tensor(starts, dtype=torch.int32))
    kernel, stride, device = neighbors.leaves[points.dtype], len(offsets), points.device
    args = (points, order, offsets, bases, stride, 0, leaf_points, leaf_index)
    bridge.launch(kernel, capacities[0], *args, device=device)
    kernel = neighbors.nodes[points.dtype]
    for level in range(1, len(capacities)):
        args = (leaf_points, bases, stride, level, starts[level], starts[level - 1], boxes)
        bridge.launch(kernel, capacities[level], *args, device=device)
    return out


def _median_order(points: Tensor, offsets: Tensor) -> Tensor:
    """The leaves' order, one thread a range: where clouds are fewer than threads, their halves, halved again."""
    from geom.kernels import bridge, neighbors

    kernel, count = neighbors.median_parts[points.dtype], len(points)
    order, work, edges, fresh = torch.empty(count, dtype=torch.int64), torch.empty_like(points), offsets, 1
    while len(edges) - 1 < torch.get_num_threads() and count // len(edges) >= _LARGE:
        args = (points, edges, work, order, fresh, 1)
        bridge.launch(kernel, len(edges) - 1, *args, device=points.device, grain=1)
        spans = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        cuts = [(neighbors.middle(a, b) if b - a > neighbors.WIDTH else a, b) for a, b in spans]
        edges, fresh = torch.tensor([0, *(at for cut in cuts for at in cut)]), 0
    args = (points, edges, work, order, fresh, 0)
    grain = 1 if count >= _LARGE else len(edges)
    bridge.launch(kernel, len(edges) - 1, *args, device=points.device, grain=grain)
    return order


def _capacities(count: int, clouds: int) -> list[int]:
    """Room for the nodes of each level, whatever the clouds' sizes: ceil(n_b / 8) summed is at most N // 8 + B."""
    levels, most = [count // 8 + clouds], count
    while True:
        most = (most + 7) // 8
        levels.append(levels[-1] // 8 + clouds)
        if most <= 8:
            return levels


@_build.register_fake
def _empty_tree(points: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    capacities = _capacities(points.shape[0], offsets.shape[0] - 1)
    return (
        points.new_empty((capacities[0], 3, 8)),
        points.new_empty((capacities[0], 8), dtype=torch.int32),
        points.new_empty((sum(capacities[1:]), 6, 8)),
        points.new_empty((len(capacities), offsets.shape[0]), dtype=torch.int32),
        points.new_empty(len(capacities), dtype=torch.int32),
    )


@torch.library.custom_op(
    "geom::knn",
    mutates_args=(),
    schema="(Tensor query, Tensor query_offsets, Tensor leaf_points, Tensor leaf_index, Tensor boxes, Tensor bases, "
    "Tensor node_bases, int k, float limit, bool scattered=False) -> (Tensor, Tensor)",
)
def _knn(
    query: Tensor,
    query_offsets: Tensor,
    leaf_points: Tensor,
    leaf_index: Tensor,
    boxes: Tensor,
    bases: Tensor,
    node_bases: Tensor,
    k: int,
    limit: float,
    scattered: bool = False,
) -> tuple[Tensor, Tensor]:
    from geom.kernels import bridge, neighbors

    index = torch.empty((len(query), k), dtype=torch.int64, device=query.device)
    square = torch.empty((len(query), k), dtype=query.dtype, device=query.device)
    tree = (leaf_points, leaf_index, boxes, bases, node_bases, bases.shape[1], bases.shape[0] - 1)
    chunks = -(-len(query) // neighbors.CHUNK)
    order = morton_order(query, query_offsets) if scattered else index.new_empty(0)
    args = (query.contiguous(), order, query_offsets, *tree, k, limit, len(query), index, square)
    bridge.launch(neighbors.knn[query.dtype], chunks, *args, device=query.device, grain=2048 // neighbors.CHUNK)
    return index, square


@_knn.register_fake
def _(
    query: Tensor,
    query_offsets: Tensor,
    leaf_points: Tensor,
    leaf_index: Tensor,
    boxes: Tensor,
    bases: Tensor,
    node_bases: Tensor,
    k: int,
    limit: float,
    scattered: bool = False,
) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], k)
    return query.new_empty(shape, dtype=torch.int64), query.new_empty(shape)


@torch.library.custom_op(
    "geom::ball_query",
    mutates_args=(),
    schema="(Tensor query, Tensor query_offsets, Tensor leaf_points, Tensor leaf_index, Tensor boxes, Tensor bases, "
    "Tensor node_bases, int k, float square_radius) -> (Tensor, Tensor)",
)
def _ball_query(query: Tensor, query_offsets: Tensor, *tree_and_more: Any) -> tuple[Tensor, Tensor]:
    from geom.kernels import bridge, neighbors

    *tree, k, square_radius = tree_and_more
    index = torch.empty((len(query), k), dtype=torch.int64, device=query.device)
    square = torch.empty((len(query), k), dtype=query.dtype, device=query.device)
    bases = tree[3]
    args = (query.contiguous(), query_offsets, *tree, bases.shape[1], bases.shape[0] - 1, k, square_radius)
    bridge.launch(neighbors.ball_query[query.dtype], len(query), *args, index, square, device=query.device)
    return index, square


@_ball_query.register_fake
def _(query: Tensor, query_offsets: Tensor, *tree_and_more: Any) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], tree_and_more[-2])
    return query.new_empty(shape, dtype=torch.int64), query.new_empty(shape)
