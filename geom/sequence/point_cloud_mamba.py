"""Point Cloud Mamba (Zhang et al., 2024): clouds put in six and more orders, one after the other, and scanned."""

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import Self

from geom.checks import check_choice, check_integer, check_offsets, check_points, check_positive, describe
from geom.errors import FileFormatError, ShapeError
from geom.nn import BatchNorm, scatter
from geom.points import encode, farthest_point_sample, serialize
from geom.points.cloud import offsets_of
from geom.sequence.grouping import LocalGrouper, PointLayer, PreExtraction, group
from geom.sequence.mamba import Mamba
from geom.train import load_checkpoint, save_checkpoint

__all__ = ["PCM", "PCM_TINY", "Level", "PointCloudMamba", "PointCloudMambaPlan"]

_TRAVERSES = ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx")
_ORDERS = (*_TRAVERSES, "hilbert", "morton", "hilbert-transposed", "morton-transposed")
_BITS = 16  # of an axis: a fixed number, so that a cloud's order does not depend on the clouds beside it
_TINY = 1e-6


@dataclass(frozen=True)
class PointCloudMambaPlan:
    """The shape of a `PointCloudMamba`; `PCM` and `PCM_TINY` are the published ones.

    Fields:
        channels: numbers that come with each point.
        width: of the embedding. expansion: each stage's width over that of the stage before.
        blocks: scans in each stage. orders: of each scan, names of `geom.points.encode`.
        reduce: points of a stage for each point that the next keeps. neighbors: of a group.
        prompts: tokens that tell the order, before and behind. prompt_width: before each stage's projection.
        drop_path: part of the clouds for which the last scan is left out while training, less for those before.
        grid_size: edge of the cells that are put in order, in the unit of the points, for the points there are; cells
            grow as points get fewer, by the root of their ratio. A traverse wants two to four times their spacing.
        windows: tokens of a window in each stage, for scenes: each window is scanned by itself, its coordinates taken
            to [0, 1]; what does not fill a window is left out, farthest points first. None for whole clouds.
        official_orders: as in the released code, for its checkpoints: traverse keys that tell apart their first axis
            only; cells of floor(p / grid_size) that do not grow; curves as deep as the greatest cell of all clouds.
        official_windows: each token's coordinates taken to [0, 1] by its own least and greatest of the three.

    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; exact
    """

    channels: int = 3
    width: int = 384
    expansion: tuple[int, ...] = (1, 1, 2, 1)
    blocks: tuple[int, ...] = (1, 2, 2, 4)
    orders: tuple[str, ...] = (*_TRAVERSES, "hilbert", "morton", "morton-transposed")
    reduce: tuple[int, ...] = (1, 2, 2, 2)
    neighbors: int = 12
    prompts: int = 6
    prompt_width: int = 384
    drop_path: float = 0.1
    grid_size: float = 0.1
    windows: tuple[int, ...] | None = None
    official_orders: bool = False
    official_windows: bool = False

    def __post_init__(self) -> None:
        for name in ("channels", "width", "neighbors", "prompt_width"):
            check_integer(getattr(self, name), name)
        stages = len(self.blocks)
        for name, least in (("expansion", 1), ("blocks", 0), ("reduce", 1), ("windows", 1)):
            x = getattr(self, name)
            if x is not None and (len(x) != stages or min(x, default=0) < least):
                raise ShapeError(f"{name}: expected {stages} integers of at least {least}, got {x}")
        if len(self.orders) != sum(self.blocks):
            raise ShapeError(f"orders: expected {sum(self.blocks)}, one a block, got {len(self.orders)}")
        for order in self.orders:
            check_choice(order, _ORDERS, "orders")
        if self.prompts < 0 or not 0 <= self.drop_path < 1:
            raise ShapeError(
                f"prompts, drop_path: expected at least 0, and in [0, 1), got {self.prompts}, {self.drop_path}"
            )
        check_positive(self.grid_size, "grid_size")

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the embedding, and behind each stage."""
        found = [self.width]
        for factor in self.expansion:
            found.append(found[-1] * factor)
        return tuple(found)

    @property
    def unique_orders(self) -> tuple[str, ...]:
        """The orders, as they first appear: whose prompts are whose."""
        return tuple(dict.fromkeys(self.orders))


PCM = PointCloudMambaPlan()
PCM_TINY = PointCloudMambaPlan(width=192, blocks=(1, 1, 2, 2), orders=_TRAVERSES)


class Level(NamedTuple):
    """Points behind a stage: `points` (M, 3), `features` (M, C), `offsets` (B+1,)."""

    points: Tensor
    features: Tensor
    offsets: Tensor

    def reduce(self, x: Tensor, how: str) -> Tensor:
        """`geom.nn.scatter` of x (M, C) over each cloud's points: (B, C)."""
        return scatter(x, self.cloud, len(self.offsets) - 1, reduce=how)

    @property
    def cloud(self) -> Tensor:
        """The cloud (M,) of each point."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.points))


class _Block(nn.Module):
    """r + h, its norm, a mixer: the results are h, the mixer's alone, and the sum r, which goes on beside it."""

    def __init__(self, width: int, drop: float, layers: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.mixer = Mamba(width, bidirectional=True, layers=layers)
        self.drop = drop

    def forward(self, h: Tensor, r: Tensor | None, offsets: Tensor) -> tuple[Tensor, Tensor]:
        if r is None:
            r = h
        elif self.training and self.drop > 0:
            sizes = offsets.diff()
            kept = torch.rand(len(sizes), device=h.device) >= self.drop
            share = kept.to(h) / (1 - self.drop)
            r = r + h * share.repeat_interleave(sizes, output_size=len(h))[:, None]
        else:
            r = r + h
        x, sizes = self.norm(r), offsets.diff()
        even = len(sizes) and bool((sizes == sizes[0]).all())
        return self.mixer(x.unflatten(0, (len(sizes), -1))).flatten(0, 1) if even else self.mixer(x, offsets), r


class PointCloudMambaEncoder(nn.Module):
    """Points to levels of features: what `PointCloudMamba` and the segmenters have below their heads.

    Args: plan. The call: points (N, 3), features (N, channels), offsets (B+1,). The result: a list of `Level`, the
    embedding first, then one a stage, whose points stand in the stage's last order.

    Each stage groups points (`group`, `PreExtraction`) and scans them once a block: put in the block's order, shown
    where they are by a linear map of their coordinates, the order's prompts before and behind.

    Parameters are named as the published ones: embedding, local_grouper_list, pre_blocks_list, mamba_blocks_list,
    residual_proj_blocks_list, pos_proj, order_prompt, order_prompt_proj.

    Guarantees: differentiable; deterministic but for drop_path; 1e-12 f64, 1e-4 f32 of the greatest entry
    """

    def __init__(self, plan: PointCloudMambaPlan = PCM) -> None:
        super().__init__()
        self.plan, widths = plan, plan.widths
        stages = range(len(plan.blocks))
        self.embedding = PointLayer(plan.channels, plan.width)
        if plan.prompts:
            self.order_prompt = nn.Embedding(len(plan.unique_orders) * plan.prompts, plan.prompt_width)
            self.order_prompt_proj = nn.ModuleList(
                nn.Linear(plan.prompt_width, widths[i + 1], bias=False) for i in stages
            )
        self._one_position = len(set(widths)) == 1  # one map for all stages then
        self.pos_proj = (
            nn.Linear(3, widths[0], bias=False)
            if self._one_position
            else nn.ModuleList(nn.Linear(3, widths[i + 1], bias=False) for i in stages)
        )
        self.local_grouper_list = nn.ModuleList(LocalGrouper(widths[i]) for i in stages)
        self.pre_blocks_list = nn.ModuleList(PreExtraction(widths[i], widths[i + 1]) for i in stages)
        self.residual_proj_blocks_list = nn.ModuleList(
            nn.Identity() if i == 0 or widths[i] == widths[i + 1] else nn.Linear(widths[i], widths[i + 1], bias=False)
            for i in stages
        )
        total = sum(plan.blocks)
        drops = iter([0.0, *(plan.drop_path * k / max(1, total - 1) for k in range(total))])  # the last is not used
        self.mamba_blocks_list = nn.ModuleList(
            nn.Sequential(*(_Block(widths[i + 1], next(drops), total) for _ in range(plan.blocks[i]))) for i in stages
        )

    def forward(
        self,
        points: Float[Tensor, "n 3"],
        features: Float[Tensor, "n c"],
        offsets: Int64[Tensor, " clouds"],
    ) -> list[Level]:
        plan, p = self.plan, points
        h, r = self.embedding(features), None
        levels = [Level(p, h, offsets)]
        orders, current, cells = iter(plan.orders), None, plan.grid_size
        for i, blocks in enumerate(self.mamba_blocks_list):
            groups = group(p, plan.neighbors, reduce=plan.reduce[i], offsets=offsets)
            h = self.pre_blocks_list[i](self.local_grouper_list[i], h, p, groups)
            p, offsets = p[groups.anchors], groups.offsets
            r = None if r is None else self.residual_proj_blocks_list[i](r[groups.anchors])
            cells *= 1 if plan.official_orders else math.sqrt(plan.reduce[i])
            assert isinstance(blocks, nn.Sequential)
            for block in blocks:
                order = next(orders)
                if order != current:
                    place, current = self._place(p, order, cells, offsets), order
                    p, h, r = p[place], h[place], None if r is None else r[place]
                windows, seen = offsets, p
                if plan.windows:
                    keep, offsets, windows, seen = _windows(p, plan.windows[i], offsets, plan.official_windows)
                    p, h, r = p[keep], h[keep], None if r is None else r[keep]
                h = h + (self.pos_proj if self._one_position else self.pos_proj[i])(seen)  # type: ignore[operator]
                h, r = self._scan(block, h, r, windows, order, i)
            levels.append(Level(p, h, offsets))
        return levels

    def _scan(
        self, block: nn.Module, h: Tensor, r: Tensor | None, offsets: Tensor, order: str, stage: int
    ) -> tuple[Tensor, Tensor]:
        """One block on tokens between their order's prompts."""
        count = self.plan.prompts
        if not count:
            return block(h, r, offsets)
        row = count * self.plan.unique_orders.index(order)
        prompt = self.order_prompt_proj[stage](self.order_prompt.weight[row : row + count])
        sizes = offsets.diff() + 2 * count
        wide = offsets_of(sizes)
        cloud = torch.repeat_interleave(sizes, output_size=len(h) + 2 * count * len(sizes))
        along = torch.arange(len(cloud), device=h.device) - wide[cloud]
        behind = along - (sizes[cloud] - count)
        inside = (along >= count) & (behind < 0)
        prompted = torch.where(behind < 0, along, behind)
        index = torch.where(inside, torch.cumsum(inside, 0) - 1 + count, prompted)
        own = inside.nonzero()[:, 0]
        framed = (None if x is None else torch.cat([prompt, x]).index_select(0, index) for x in (h, r))
        found, carried = block(*framed, wide)
        return found.index_select(0, own), carried.index_select(0, own)

    def _place(self, p: Tensor, order: str, cells: float, offsets: Tensor) -> Tensor:
        """Points in order, cloud after cloud; those of one cell as they stood."""
        p = p.detach()
        if not self.plan.official_orders:
            return serialize(p, order=order, grid_size=cells, bits=_BITS, offsets=offsets).order
        sizes = offsets.diff()
        cloud = torch.repeat_interleave(sizes, output_size=len(p))
        grid = torch.floor(p / p.new_tensor(cells)).long()
        low = torch.stack([x.amin(0) for x in grid.split(sizes.tolist())])
        name = f"{order}-official" if order in _TRAVERSES else order
        code = encode(grid - low[cloud], order=name, offsets=offsets)
        first = code.argsort(stable=True)
        return first[cloud[first].argsort(stable=True)]


def _windows(p: Tensor, size: int, offsets: Tensor, official: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which tokens stay, clouds' and windows' offsets, and the tokens' coordinates within their windows.

    Clouds of no more than `size` tokens are one window, in coordinates of their own.
    """
    sizes = offsets.diff()
    whole = sizes <= size
    counts = torch.where(whole, sizes, sizes // size * size)
    ends = offsets_of(counts)
    keep = farthest_point_sample(p.detach(), counts, offsets=offsets).sort().values
    each = torch.where(whole, 1, counts // size)
    lengths = torch.where(whole, counts, size).repeat_interleave(each)
    windows = offsets_of(lengths)
    p = p[keep]
    if official:
        base, top = p.amin(1, keepdim=True), p.amax(1, keepdim=True)
    else:
        window = torch.repeat_interleave(lengths, output_size=len(p))
        base, top = (scatter(p, window, len(lengths), reduce=name)[window] for name in ("min", "max"))
    taken = (p - base) / (top - base + _TINY)
    return keep, ends, windows, torch.where(whole.repeat_interleave(counts)[:, None], p, taken)


class _Head(nn.Module):
    """Linear layers with norms between, 512 and 256 wide."""

    def __init__(self, width: int, classes: int, hidden: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in zip((width, *hidden[:-1]), hidden, strict=True):
            layers += [nn.Sequential(nn.Linear(a, b, bias=False), BatchNorm(b), nn.ReLU()), nn.Dropout(dropout)]
        layers.append(nn.Sequential(nn.Linear(hidden[-1], classes)))
        self.head = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class PointCloudMamba(nn.Module):
    """A classifier of clouds: Point Cloud Mamba (Zhang et al., 2024), encoder, greatest features, and a head.

    Points are expected centred, within the unit ball; `grid_size` of the plan is in their unit. All clouds of a batch
    are seen by themselves, of whatever sizes, so that in eval mode no result depends on the others, but with
    `official_orders`. Nothing that depends on chance or on the process enters: prompts belong to the orders as they
    first appear in the plan, where the released code has them as a set happens to have them.

    Args: classes; plan; hidden, widths of the head; dropout of the head.
    The call: points (N, 3) float32 or float64; features (N, channels), the points themselves where there are none;
        offsets (B+1,), each cloud of at least the product of the plan's `reduce` points. The result: logits
        (B, classes), of their dtype.
    Raises: ShapeError.

    State dicts of the published code load: `geom.sequence.official.load_official`.

    >>> plan = PointCloudMambaPlan(width=8, blocks=(1, 1), orders=("xyz", "zyx"), expansion=(1, 2), reduce=(1, 2))
    >>> PointCloudMamba(3, plan=plan).eval()(torch.rand(30, 3), offsets=torch.tensor([0, 12, 30])).shape
    torch.Size([2, 3])

    Guarantees: differentiable; deterministic but for dropout and drop_path; 1e-12 f64, 1e-4 f32 of the greatest entry
    """

    def __init__(
        self,
        classes: int,
        *,
        plan: PointCloudMambaPlan = PCM,
        hidden: tuple[int, ...] = (512, 256),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.shape: dict[str, Any] = {"classes": classes, "hidden": hidden, "dropout": dropout}
        self.encoder = PointCloudMambaEncoder(plan)
        self.prediction = _Head(plan.widths[-1], classes, hidden, dropout)

    def forward(
        self,
        points: Float[Tensor, "n 3"],
        features: Float[Tensor, "n c"] | None = None,
        *,
        offsets: Int64[Tensor, " clouds"] | None = None,
    ) -> Float[Tensor, "b k"]:
        points, features, offsets = check_clouds(self.encoder.plan, points, features, offsets)
        last = self.encoder(points, features, offsets)[-1]
        return self.prediction(last.reduce(last.features, "max"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, plan and orders as safetensors; a failed write leaves the old file."""
        save_network(self, self.encoder.plan, self.shape, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, on the CPU. Raises: FileFormatError if it is something else; OSError as `open`."""
        return load_network(cls, path)


def check_clouds(
    plan: PointCloudMambaPlan, points: Tensor, features: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, features and offsets of clouds that the plan can take. Raises: ShapeError."""
    check_points(points)
    starts = check_offsets(offsets, len(points), device=points.device)
    features = points if features is None else features
    if not isinstance(features, Tensor) or features.shape != (len(points), plan.channels):
        raise ShapeError(f"features: expected a tensor ({len(points)}, {plan.channels}), got {describe(features)}")
    least, sizes = math.prod(plan.reduce), starts.diff()
    if not len(sizes) or int(sizes.min()) < least:
        raise ShapeError(f"points: expected clouds of at least {least}, got {sizes.tolist()[:8]}")
    return points, features, starts


def save_network(module: nn.Module, plan: PointCloudMambaPlan, shape: dict[str, Any], path: Any) -> None:
    """Weights, and all there is to build their module again."""
    save_checkpoint(path, {"plan": dataclasses.asdict(plan), "shape": shape, "module": module.state_dict()})


def load_network(cls: Any, path: Any) -> Any:
    """A module of class `cls`, as it was saved, in eval mode. Raises: FileFormatError."""
    state = load_checkpoint(path)
    try:
        network = cls(plan=PointCloudMambaPlan(**state["plan"]), **state["shape"])
        network.load_state_dict(state["module"])
    except (KeyError, TypeError, RuntimeError, ShapeError) as error:
        raise FileFormatError(path, f"expected a saved {cls.__name__}, got {error!r}") from error
    return network.eval()
