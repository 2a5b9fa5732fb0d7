"""Attention within patches along orders of voxels, in blocks and a U-shaped net, as Point Transformer V3 has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from geom.errors import ShapeError
from geom.nn import KernelMap, SubmanifoldConv3d, Voxels, attention, merge_voxels, submanifold_map
from geom.nn.serialized_attention import Patches, patches
from geom.points import serialize
from geom.values import replace

__all__ = ["SerializedBlock", "SerializedPlan", "SerializedTransformer", "pool_by_code", "voxel_orders"]

ORDERS = ("morton", "morton-transposed", "hilbert", "hilbert-transposed")


def voxel_orders(voxels: Voxels, orders: Sequence[str] = ORDERS, *, bits: int | None = None) -> Int64[Tensor, "k n"]:
    """The voxels along curves through their own cells, counted from each cloud's least corner.

    Args: voxels; orders, K names that `geom.points.encode` takes; bits an axis, None for as many as the widest cloud
    needs. Returns: (K, N) indices, cloud after cloud. Raises: ShapeError.

    >>> voxel_orders(Voxels(torch.tensor([[0, 0, 1], [4, 4, 4], [0, 0, 0]]), torch.rand(3, 1)), ["morton"]).tolist()
    [[2, 0, 1]]

    Guarantees: not differentiable; deterministic; exact
    """
    cells = voxels.grid.double()
    return serialize(cells, order=tuple(orders), grid_size=1.0, bits=bits, offsets=voxels.offsets).order


def pool_by_code(code: Int64[Tensor, " n"], steps: int = 1) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " n"]]:
    """Cells of 2^steps an edge, read off the codes of finer ones: code >> 3 steps, on Morton's and Hilbert's curves.

    Each coarse cell is a run of the curve, and the shifted code its place along the coarse curve, as `encode` with
    `steps` bits fewer gives it. Codes of clouds, whose number stands above, stay apart. Pooling of Point Transformer
    V3 (Wu et al., 2024), Section 4.1; `merge_voxels` makes the same cells of grids that begin at even ones.

    Args: code (N,) int64, as `geom.points.encode` gives it; steps, at least 1.
    Returns: the coarse codes (M,), rising, and the coarse cell (N,) of each. Raises: ShapeError.

    >>> pool_by_code(torch.tensor([9, 1, 0, 15]))[0].tolist()
    [0, 1]

    Guarantees: not differentiable; deterministic; exact
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 21:
        raise ShapeError(f"steps: expected an integer from 1 to 21, got {steps!r}")
    coarse, index = (code >> 3 * steps).unique(return_inverse=True)
    return coarse, index


@dataclass(frozen=True)
class SerializedPlan:
    """The shape of a `SerializedTransformer`. Defaults are those published for Point Transformer V3.

    Fields: `widths`, `depths` (blocks) and `heads` of the stages going down, the grid halved between them; those of the
    stages going up, from the coarse one to the fine one, one fewer; `patch`, voxels that see each other; `orders`,
    which the blocks take in turn; `expand`, width inside a block's network. Raises: ShapeError.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 8, 16, 32)
    up_widths: tuple[int, ...] = (256, 128, 64, 64)
    up_depths: tuple[int, ...] = (2, 2, 2, 2)
    up_heads: tuple[int, ...] = (16, 8, 4, 4)
    patch: int = 1024
    orders: tuple[str, ...] = ORDERS
    expand: int = 4

    def __post_init__(self) -> None:
        stages = len(self.widths)
        for name in ("depths", "heads", "up_widths", "up_depths", "up_heads"):
            wanted = stages - name.startswith("up")
            if len(getattr(self, name)) != wanted:
                raise ShapeError(f"{name}: expected {wanted} numbers for {stages} stages, got {getattr(self, name)}")
        if not stages or not self.orders:
            raise ShapeError("widths, orders: expected at least one each, got none")


class SerializedBlock(nn.Module):
    """What is around a voxel, attention within its patch, and a network of two layers, each added to what was there.

        x = x + layer_norm(W submanifold convolution(x));  x = x + attention(layer_norm(x));  x = x + mlp(layer_norm(x))

    Point Transformer V3 (Wu et al., 2024), Section 4.2: the convolution is its conditional position.

    Args: width, a multiple of heads; expand, of the network's inner width; generator of the convolution's weights.
    The call: voxels, features (N, width); their `Patches` along an order; their `submanifold_map` of 3 x 3 x 3.
    Returns: voxels, the same cells. Raises: ShapeError.

    Guarantees: differentiable; deterministic; 1e-14 f64, 3e-6 f32 of the greatest entry
    """

    def __init__(self, width: int, heads: int, *, expand: int = 4, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if heads < 1 or width < heads or width % heads:
            raise ShapeError(f"width: expected a multiple of {heads} heads, got {width!r}")
        self.heads = heads
        self.conv = SubmanifoldConv3d(width, width, generator=generator)
        self.position = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expand * width), nn.GELU(), nn.Linear(expand * width, width))

    def forward(self, voxels: Voxels, cut: Patches, kernel_map: KernelMap) -> Voxels:
        x = voxels.features
        x = x + self.position(self.conv(voxels, kernel_map).features)
        x = x + self.out_proj(self._attend(self.attention_norm(x), cut))
        return replace(voxels, features=x + self.mlp(self.mlp_norm(x)))

    def _attend(self, x: Tensor, cut: Patches) -> Tensor:
        parts = [y.unflatten(-1, (self.heads, -1)) for y in self.qkv_proj(x).chunk(3, -1)]
        if cut.size is None:  # (H, M, D), patches of several sizes
            ragged = [y[cut.index].transpose(0, 1) for y in parts]
            y = attention(*ragged, offsets=cut.offsets).transpose(0, 1)
        else:  # (P, H, size, D)
            even = [y[cut.index].unflatten(0, (-1, cut.size)).transpose(1, 2) for y in parts]
            y = attention(*even).transpose(1, 2).flatten(0, 1)
        return y[cut.home].flatten(1)


class _Stage(nn.Module):
    """Blocks on one grid, which take the orders in turn."""

    def __init__(
        self, width: int, heads: int, depth: int, plan: SerializedPlan, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.plan = plan
        self.blocks = nn.ModuleList(
            SerializedBlock(width, heads, expand=plan.expand, generator=generator) for _ in range(depth)
        )

    def forward(self, voxels: Voxels, generator: torch.Generator | None) -> Voxels:
        names = self.plan.orders
        if generator is not None:
            names = tuple(names[k] for k in torch.randperm(len(names), generator=generator).tolist())
        used = names[: len(self.blocks)]
        if not used:
            return voxels
        cuts = [patches(row, self.plan.patch, offsets=voxels.offsets) for row in voxel_orders(voxels, used)]
        kernel_map = submanifold_map(voxels)
        for k, block in enumerate(self.blocks):
            voxels = block(voxels, cuts[k % len(cuts)], kernel_map)
        return voxels


class SerializedTransformer(nn.Module):
    """A U-shaped net over voxels, whose blocks attend within patches along several orders: Point Transformer V3.

    Going down, each stage's voxels are projected and merged by two along each axis, by their greatest features; going
    up, the coarse features are projected and added to the projected ones of the stage they came from.

    Wu et al., "Point Transformer V3: simpler, faster, stronger" (2024), Section 4, without its stochastic depth, and
    with layer norms where it has batch norms, so that clouds of a batch do not touch each other.

    Args: in_features, out_features of a voxel; plan; generator of the convolutions' first weights.
    The call: voxels, each cell once, features (N, in_features); generator: shuffle the orders in each stage, for
    training. Returns: (N, out_features), a row for each voxel. Raises: ShapeError.

    >>> plan = SerializedPlan((8, 16), (1, 1), (2, 2), (8,), (1,), (2,), patch=16)
    >>> cells = torch.cartesian_prod(*[torch.arange(4)] * 3)
    >>> SerializedTransformer(3, 5, plan)(Voxels(cells, cells.float())).shape
    torch.Size([64, 5])

    Guarantees: differentiable (greatest features: the first of equals); deterministic; 1e-13 f64, 1e-5 f32 of the
    greatest entry
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        plan: SerializedPlan = SerializedPlan(),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.plan, widths, ups = plan, plan.widths, plan.up_widths
        self.embed = nn.Sequential(nn.Linear(in_features, widths[0]), nn.LayerNorm(widths[0]), nn.GELU())
        self.down = nn.ModuleList(
            _Stage(width, heads, depth, plan, generator)
            for width, heads, depth in zip(widths, plan.heads, plan.depths, strict=True)
        )
        self.pools = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.pool_norms = nn.ModuleList(nn.Sequential(nn.LayerNorm(b), nn.GELU()) for b in widths[1:])
        self.up = nn.ModuleList(
            _Stage(width, heads, depth, plan, generator)
            for width, heads, depth in zip(ups, plan.up_heads, plan.up_depths, strict=True)
        )

        def projections(before: Sequence[int]) -> nn.ModuleList:
            pairs = zip(before, ups, strict=True)
            return nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU()) for a, b in pairs)

        self.unpools, self.skips = projections((widths[-1], *ups)[: len(ups)]), projections(widths[-2::-1])
        self.head = nn.Linear(ups[-1] if ups else widths[-1], out_features)

    def forward(self, voxels: Voxels, *, generator: torch.Generator | None = None) -> Float[Tensor, "n out_features"]:
        first = self.embed[0]
        assert isinstance(first, nn.Linear)
        if voxels.features.shape[1] != first.in_features:
            raise ShapeError(f"voxels: expected {first.in_features} features each, got {voxels.features.shape[1]}")
        voxels = replace(voxels, features=self.embed(voxels.features))
        kept = []
        for k, stage in enumerate(self.down):
            if k:
                wide = replace(voxels, features=self.pools[k - 1](voxels.features))
                coarse, index = merge_voxels(wide, stride=2, reduce="max")
                kept.append((voxels, index))
                voxels = replace(coarse, features=self.pool_norms[k - 1](coarse.features))
            voxels = stage(voxels, generator)
        for unpool, skip, stage in zip(self.unpools, self.skips, self.up, strict=True):
            fine, index = kept.pop()
            features = skip(fine.features) + unpool(voxels.features)[index]
            voxels = stage(replace(fine, features=features), generator)
        return self.head(voxels.features)
