"""LION: linear operators over equal groups of voxels, in blocks that merge them and expand them again."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from geom.checks import describe
from geom.errors import ShapeError
from geom.nn import BatchNorm, Voxels, merge_voxels, scatter
from geom.nn.serialized_attention import Patches
from geom.nn.voxels import triple
from geom.points import Points
from geom.points.cloud import as_points, bounds
from geom.sequence.mamba import Mamba
from geom.sequence.voxel_merge import Shape, VoxelMerge, coarse_shape, expand_voxels
from geom.sequence.windows import equal_groups, window_order
from geom.values import replace

__all__ = ["LION", "LIONBlock", "LIONLayer", "LIONPlan", "Operator", "VoxelEncoder", "bidirectional_mamba"]

Operator = Callable[[int], nn.Module]  # of a width, a module (G, K, width) -> (G, K, width)


def bidirectional_mamba(width: int) -> nn.Module:
    """`Mamba` in both directions: the operator that LION has if it is given none."""
    return Mamba(width, bidirectional=True)


@dataclass(frozen=True)
class LIONPlan:
    """The shape of a `LION`: blocks, each with its window in cells and its group in voxels, and the layers behind them.

    Defaults are the published ones. After each block the height is halved; the layer `last` runs on what is left; the
    layers of `bev` (bird's eye view) run on whole columns, merged into one voxel each, and without them there are none.

    Fields: `width`, features of a voxel; `windows` and `groups`, one for each block; `depth`, merges within a block;
    `last_window`, `last_group`; `bev_windows`, `bev_groups`; `generated`, the share of voxels that spread where the
    height is halved. Raises: ShapeError.
    """

    width: int = 64
    windows: tuple[Shape, ...] = ((13, 13, 32), (13, 13, 16), (13, 13, 8), (13, 13, 4))
    groups: tuple[int, ...] = (4096, 2048, 1024, 512)
    depth: int = 2
    last_window: Shape = (13, 13, 2)
    last_group: int = 256
    bev_windows: tuple[Shape, ...] = ((25, 25, 1), (37, 37, 1), (51, 51, 1))
    bev_groups: tuple[int, ...] = (512, 1024, 2048)
    generated: float = 0.2

    def __post_init__(self) -> None:
        for ours, theirs in (("windows", "groups"), ("bev_windows", "bev_groups")):
            a, b = len(getattr(self, ours)), len(getattr(self, theirs))
            if a != b:
                raise ShapeError(f"{theirs}: expected one for each of {a} {ours}, got {b}")
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise ShapeError(f"{name}: expected an integer of at least 1, got {getattr(self, name)!r}")


class LIONLayer(nn.Module):
    """Operators over groups of voxels sorted by windows, along x and then along y.

        for each axis: f = f + layer_norm(operator(f in groups))

    LION (Liu et al., 2024), Section 3.2; the norm comes after the operator.

    Args: width; window in cells; group, voxels of each; shift of the windows by half; operator, see `Operator`;
    checkpoint, keep what each operator was given, and run it again for its gradients.
    The call: voxels, features (N, width) -> voxels, the same cells. Raises: ShapeError.

    >>> line = Voxels(torch.arange(30)[:, None] * torch.tensor([1, 0, 2]), torch.rand(30, 8))
    >>> LIONLayer(8, (4, 4, 4), 16)(line).features.shape
    torch.Size([30, 8])

    Guarantees: differentiable (any order); deterministic; 1e-13 f64, 1e-5 f32 of the greatest entry, with `Mamba`
    """

    def __init__(
        self,
        width: int,
        window: Shape,
        group: int,
        *,
        shift: bool = False,
        operator: Operator = bidirectional_mamba,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.window, self.group, self.shift = width, triple(window, "window", 1), group, shift
        self.checkpoint = checkpoint
        self.operators = nn.ModuleDict({axis: operator(width) for axis in "xy"})
        self.norms = nn.ModuleDict({axis: nn.LayerNorm(width) for axis in "xy"})

    def forward(self, voxels: Voxels) -> Voxels:
        _check_width(voxels, self.width)
        x = voxels.features
        for axis in "xy":
            order = window_order(voxels, self.window, axis=axis, shift=self.shift)
            cut = equal_groups(order, self.group, offsets=voxels.offsets)
            if self.checkpoint and torch.is_grad_enabled():
                x = recomputed(self._mix, x, axis, cut, use_reentrant=False)
            else:
                x = self._mix(x, axis, cut)
        return replace(voxels, features=x)

    def _mix(self, x: Tensor, axis: str, cut: Patches) -> Tensor:
        y = self.operators[axis](x.index_select(0, cut.index).unflatten(0, (-1, self.group)))
        return x + self.norms[axis](y.flatten(0, 1).index_select(0, cut.home))


class LIONBlock(nn.Module):
    """Layers down a pyramid of merged voxels, and up again over what each level was.

        down, k = 0 ... depth - 1:  f = f + position(cells),  f = layer_k(f),  keep,  merge by 2
        up:                         f = layer_k(f),  expand onto what was kept,  layer_norm

    Every second layer's windows are shifted. LION (Liu et al., 2024), Section 3.5: with depth 2, four layers of two
    operators. Positions are cells in [-pi, pi] of the box through a network of two layers.

    Args: width, window, group, operator, checkpoint: as of `LIONLayer`; depth; generator of the descriptors' first
    weights.
    The call: voxels, each cell once, of the box [0, shape), and shape. Returns: voxels, the same cells.
    Raises: ShapeError.

    Guarantees: differentiable; deterministic; 1e-13 f64, 2e-5 f32 of the greatest entry, with `Mamba`
    """

    def __init__(
        self,
        width: int,
        window: Shape,
        group: int,
        *,
        depth: int = 2,
        operator: Operator = bidirectional_mamba,
        checkpoint: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()

        def layers() -> nn.ModuleList:
            return nn.ModuleList(
                LIONLayer(width, window, group, shift=k % 2 == 1, operator=operator, checkpoint=checkpoint)
                for k in range(depth)
            )

        self.width = width
        self.positions = nn.ModuleList(
            nn.Sequential(nn.Linear(3, width), BatchNorm(width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.encoder, self.decoder = layers(), layers()
        self.merges = nn.ModuleList(VoxelMerge(width, generator=generator) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))

    def forward(self, voxels: Voxels, shape: Shape) -> Voxels:
        _check_width(voxels, self.width)
        kept = []
        for position, layer, merge in zip(self.positions, self.encoder, self.merges, strict=True):
            here = position(_places(voxels, shape))
            voxels = layer(replace(voxels, features=voxels.features + here))
            coarse, index = merge(voxels, shape)
            kept.append((index, voxels))
            voxels, shape = coarse, coarse_shape(shape, 2)
        for layer, norm in zip(self.decoder, self.norms, strict=True):
            voxels = expand_voxels(layer(voxels), *kept.pop())
            voxels = replace(voxels, features=norm(voxels.features))
        return voxels


class LION(nn.Module):
    """A backbone for lidar: voxels of a wide scene mixed by linear operators over groups of thousands.

    Blocks at full resolution, the height halved after each (empty voxels appear where features are strong), a layer on
    what is left, and layers on whole columns. Liu et al., "LION: linear group RNN for 3D object detection in point
    clouds" (2024), after its equations; `LIONPlan()` has its sizes. The published layers over windows of one cell in
    height are run on merged columns.

    Args: plan; operator, any `Operator`: a module (G, K, C) -> (G, K, C), such as `Mamba` (both directions, if not
    given), `Mamba2` or `LinearAttention`; checkpoint, for training in little memory: of each layer only what its
    operators were given is kept, and they run again for their gradients, which stay the same; generator of the
    descriptors' first weights.
    The call: voxels, features (N, width), each cell once, in the box [0, shape), and shape, its cells along x, y and z,
    as `VoxelEncoder` has them. Returns: the voxels of the last level, and their box's shape. Raises: ShapeError.

    Norms of layers that add little magnify gradients: before training theirs are of 1e8 and more on a whole frame, and
    want a bound, as the published training has (10, `geom.train.TrainConfig.clip`).

    >>> plan = LIONPlan(width=8, windows=((5, 5, 8), (5, 5, 4)), groups=(32, 16), last_group=8, bev_windows=(),
    ...     bev_groups=())
    >>> cells = torch.arange(64)
    >>> voxels = Voxels(torch.stack([cells % 9, cells // 9, cells % 7], -1), torch.rand(64, 8))
    >>> out, shape = LION(plan)(voxels, (9, 9, 7))
    >>> shape, out.features.shape[1]
    ((9, 9, 2), 8)

    Guarantees: differentiable; deterministic; 1e-12 f64, 1e-4 f32 of the greatest entry, with `Mamba`
    """

    def __init__(
        self,
        plan: LIONPlan = LIONPlan(),
        *,
        operator: Operator = bidirectional_mamba,
        checkpoint: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.plan, width = plan, plan.width
        self.blocks = nn.ModuleList(
            LIONBlock(
                width, window, group, depth=plan.depth, operator=operator, checkpoint=checkpoint, generator=generator
            )
            for window, group in zip(plan.windows, plan.groups, strict=True)
        )
        self.merges = nn.ModuleList(
            VoxelMerge(width, stride=(1, 1, 2), generated=plan.generated, generator=generator) for _ in plan.windows
        )
        self.last = LIONLayer(width, plan.last_window, plan.last_group, operator=operator, checkpoint=checkpoint)
        self.bev_norm = nn.LayerNorm(width) if plan.bev_windows else nn.Identity()
        self.bev = nn.ModuleList(
            LIONLayer(width, window, group, operator=operator, checkpoint=checkpoint)
            for window, group in zip(plan.bev_windows, plan.bev_groups, strict=True)
        )

    def forward(self, voxels: Voxels, shape: Shape) -> tuple[Voxels, Shape]:
        shape, grid = triple(shape, "shape", 1), voxels.grid
        _check_width(voxels, self.plan.width)
        if len(grid) and (int(grid.min()) < 0 or bool((grid.amax(0) >= grid.new_tensor(shape)).any())):
            raise ShapeError(
                f"voxels: expected cells in [0, {shape}), got {grid.amin(0).tolist()} to {grid.amax(0).tolist()}"
            )
        for block, merge in zip(self.blocks, self.merges, strict=True):
            voxels, _ = merge(block(voxels, shape), shape)
            shape = coarse_shape(shape, (1, 1, 2))
        voxels = self.last(voxels)
        if len(self.bev):
            voxels, _ = merge_voxels(voxels, stride=(1, 1, shape[2]))
            voxels, shape = replace(voxels, features=self.bev_norm(voxels.features)), (shape[0], shape[1], 1)
        for layer in self.bev:
            voxels = layer(voxels)
        return voxels, shape


class VoxelEncoder(nn.Module):
    """Points gathered into voxels, each with learned features of all points in it (dynamic voxelisation).

        f_i = [p_i, features_i, p_i - mean of its voxel, p_i - centre of its cell]
        h = relu(batch_norm(W f)); the voxel's feature is the greatest h, channel by channel

    in two layers, the first of which hands on half as many channels and, beside them, its voxel's greatest.

    Args: width, features of a voxel, even; features beside the position that a point brings; low and high corners of
    the box, metres; size of a cell, metres, along each axis; points outside of the box are left out. `shape` says how
    many cells it has. The call: points (N, 3), tensor or Points, their features (N, F) or None, offsets (B+1,) or None.
    Returns: Voxels with features (M, width), offsets if the points had them. Raises: ShapeError.

    >>> encode = VoxelEncoder(8, low=(0, 0, 0), high=(1, 1, 0.5), size=(0.5, 0.5, 0.5)).eval()
    >>> voxels = encode(torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.3, 0.4], [0.9, 0.1, 0.2], [5, 0, 0]]))
    >>> encode.shape, voxels.grid.tolist()
    ((2, 2, 1), [[0, 0, 0], [1, 0, 0]])

    Guarantees: differentiable (cells held fixed); deterministic; 1e-14 f64, 1e-5 f32 of the greatest entry
    """

    def __init__(
        self,
        width: int = 64,
        *,
        features: int = 0,
        low: Sequence[float],
        high: Sequence[float],
        size: Sequence[float] = (0.2, 0.2, 0.125),
    ) -> None:
        super().__init__()
        if len(low) != 3 or len(high) != 3 or len(size) != 3 or min(size) <= 0:
            raise ShapeError(f"low, high, size: expected three numbers each, sizes above 0, got {low}, {high}, {size}")
        if width < 2 or width % 2:
            raise ShapeError(f"width: expected an even number, got {width!r}")
        x, y, z = (math.ceil((b - a) / s - 1e-6) for a, b, s in zip(low, high, size, strict=True))
        self.shape: Shape = triple((x, y, z), "high", 1)
        self.low, self.size, self.features = tuple(map(float, low)), tuple(map(float, size)), features
        half = width // 2
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in ((9 + features, half), (width, width)))
        self.norms = nn.ModuleList(BatchNorm(n, eps=1e-3, momentum=0.01) for n in (half, width))

    def forward(
        self,
        points: Points | Float[Tensor, "n 3"],
        features: Float[Tensor, "n f"] | None = None,
        *,
        offsets: Tensor | None = None,
    ) -> Voxels:
        cloud = as_points(points, offsets=offsets)
        p, starts = cloud.positions, bounds(cloud)
        if (0 if features is None else features.shape[-1]) != self.features or (
            features is not None and features.shape[:-1] != p.shape[:1]
        ):
            raise ShapeError(f"features: expected a tensor ({len(p)}, {self.features}), got {describe(features)}")
        low, size = p.new_tensor(self.low), p.new_tensor(self.size)
        cells = ((p.detach() - low) / size).floor().clamp(-1, max(self.shape)).long()
        inside = ((cells >= 0) & (cells < cells.new_tensor(self.shape))).all(-1)
        kept = torch.cat([starts[:1], inside.long().cumsum(0)])[starts]
        rows = inside.nonzero()[:, 0]
        p, cells = p[rows], cells[rows]
        voxels, index = merge_voxels(Voxels(cells, p, None if cloud.offsets is None else kept), reduce="mean")
        parts = [p, p - voxels.features[index], p - low - (cells + 0.5) * size]
        x = torch.cat(parts if features is None else [p, features[rows], *parts[1:]], -1)
        best = x
        for k, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = torch.relu(norm(layer(x if k == 0 else torch.cat([x, best[index]], -1))))
            best = scatter(x, index, len(voxels.grid), reduce="max")
        return replace(voxels, features=best)


def _places(voxels: Voxels, shape: Shape) -> Tensor:
    """Cells (N, 3) as (g - shape / 2) 2 pi / shape."""
    box = voxels.features.new_tensor(shape)
    return (voxels.grid.to(box.dtype) / box - 0.5) * (2 * math.pi)


def _check_width(voxels: Voxels, width: int) -> None:
    if voxels.features.shape[1] != width:
        raise ShapeError(f"voxels: expected {width} features each, got {voxels.features.shape[1]}")
