"""PointMamba: patches of a cloud along two curves, one behind the other, through plain Mamba blocks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geom.checks import check_integer, check_offsets, check_points
from geom.errors import ShapeError
from geom.nn import BatchNorm
from geom.points import farthest_point_sample, knn, serialize
from geom.sequence.mamba import Mamba

__all__ = ["PointMamba", "PointMambaPlan"]

_ORDERS = ("hilbert", "hilbert-transposed")


@dataclass(frozen=True)
class PointMambaPlan:
    """The shape of a `PointMamba`. Defaults are the published ones for ModelNet40; ScanObjectNN has 128 patches.

    Fields: `classes`; `patches` of each cloud, and `neighbors`, points of each patch; `width` of a token; `depth`,
    blocks; `head`, width of the classifier; `dropout` in it; `grid_size`, the cell's edge, for clouds in the unit ball,
    and `bits` an axis of the curves, fixed, so that a cloud's order does not depend on the others of its batch.
    Raises: ShapeError.
    """

    classes: int = 40
    patches: int = 64
    neighbors: int = 32
    width: int = 384
    depth: int = 12
    head: int = 256
    dropout: float = 0.5
    grid_size: float = 0.02
    bits: int = 10

    def __post_init__(self) -> None:
        for name in ("classes", "patches", "neighbors", "width", "depth", "head"):
            check_integer(getattr(self, name), name)


class _PatchEncoder(nn.Module):
    """Points of a patch about its centre (M, k, 3) -> one token (M, width): two shared layers, the patch's greatest
    beside each, two more, and the greatest again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv1d(3, 128, 1), BatchNorm(128), nn.ReLU(), nn.Conv1d(128, 256, 1))
        self.second_conv = nn.Sequential(nn.Conv1d(512, 512, 1), BatchNorm(512), nn.ReLU(), nn.Conv1d(512, width, 1))

    def forward(self, x: Float[Tensor, "m k 3"]) -> Float[Tensor, "m c"]:
        h = self.first_conv(x.mT)
        h = torch.cat([h.amax(2, keepdim=True).expand_as(h), h], 1)
        return self.second_conv(h).amax(2)


class _Block(nn.Module):
    """residual = residual + hidden, hidden = mixer(norm(residual))."""

    def __init__(self, width: int, depth: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.mixer = Mamba(width, layers=depth, generator=generator)
        self.norm = nn.LayerNorm(width)


class _Mixer(nn.Module):
    def __init__(self, width: int, depth: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(width, depth, generator) for _ in range(depth))
        self.norm_f = nn.LayerNorm(width)

    def forward(self, hidden: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        residual = torch.zeros_like(hidden)
        for layer in self.layers:
            assert isinstance(layer, _Block)
            residual = residual + hidden
            hidden = layer.mixer(layer.norm(residual))
        return self.norm_f(residual + hidden)


class PointMamba(nn.Module):
    """Classify clouds: Liang et al., "PointMamba: a simple state space model for point cloud analysis" (2024).

        tokens = patch encoder(k nearest points of farthest samples, about them) + position(samples)
        one sequence: tokens along Hilbert's curve, times gamma_1 plus beta_1, then all of them again along the
            transposed one, times gamma_2 plus beta_2
        through blocks of one direction; the mean over the sequence; a classifier of three layers

    Args: plan; generator of the first weights of the mixers.
    The call: points (N, 3), clouds in the unit ball, offsets (B+1,) or None for one; or (B, N, 3).
    Returns: logits (B, classes). `features` gives the mean token (B, width).
    Raises: ShapeError, also for a cloud of fewer points than patches or neighbours, and for one whose extent is more
    than 2^bits cells.

    Modules have the names of the published code, so that its state dicts are ones for `load_state_dict`.

    >>> net = PointMamba(PointMambaPlan(classes=3, patches=8, neighbors=4, width=16, depth=2)).eval()
    >>> net(torch.rand(50, 3), offsets=torch.tensor([0, 20, 50])).shape
    torch.Size([2, 3])

    Guarantees: differentiable (any order); deterministic but for dropout; 1e-13 f64, 2e-5 f32 of the greatest logit
    """

    def __init__(
        self,
        plan: PointMambaPlan = PointMambaPlan(),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.plan, width = plan, plan.width
        self.encoder = _PatchEncoder(width)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.blocks = _Mixer(width, plan.depth, generator)
        self.norm = nn.LayerNorm(width)
        for k in (1, 2):
            scale = torch.randn(width, generator=generator) * 0.02 + 1
            self.register_parameter(f"OrderScale_gamma_{k}", nn.Parameter(scale))
            shift = torch.randn(width, generator=generator) * 0.02
            self.register_parameter(f"OrderScale_beta_{k}", nn.Parameter(shift))
        layers: list[nn.Module] = []
        for before, after in ((width, plan.head), (plan.head, plan.head)):
            layers += [nn.Linear(before, after), BatchNorm(after), nn.ReLU(), nn.Dropout(plan.dropout)]
        self.cls_head_finetune = nn.Sequential(*layers, nn.Linear(plan.head, plan.classes))

    def forward(
        self, points: Float[Tensor, "*b n 3"], *, offsets: Tensor | None = None
    ) -> Float[Tensor, "clouds classes"]:
        return self.cls_head_finetune(self.features(points, offsets=offsets))

    def features(
        self, points: Float[Tensor, "*b n 3"], *, offsets: Tensor | None = None
    ) -> Float[Tensor, "clouds width"]:
        """The mean over the sequence, before the classifier. Arguments as of the call."""
        plan = self.plan
        if isinstance(points, Tensor) and points.ndim == 3 and offsets is None:
            clouds, count = points.shape[:2]
            points, offsets = points.flatten(0, 1), torch.arange(clouds + 1, device=points.device) * count
        points = check_points(points)
        bounds = check_offsets(offsets, len(points), device=points.device)
        clouds, least = len(bounds) - 1, max(plan.patches, plan.neighbors)
        if clouds and int(bounds.diff().min()) < least:
            raise ShapeError(f"points: expected at least {least} of each cloud, got {int(bounds.diff().min())}")
        centres = points[farthest_point_sample(points, plan.patches, offsets=bounds)]
        ends = torch.arange(clouds + 1, device=points.device) * plan.patches
        near = knn(centres.detach(), points.detach(), plan.neighbors, query_offsets=ends, offsets=bounds).index
        tokens = self.encoder(points[near] - centres[:, None])
        position = self.pos_embed(centres)
        order = serialize(centres, order=_ORDERS, grid_size=plan.grid_size, bits=plan.bits, offsets=ends).order
        runs = []
        for k, row in enumerate(order, 1):
            gamma, beta = self.get_parameter(f"OrderScale_gamma_{k}"), self.get_parameter(f"OrderScale_beta_{k}")
            runs.append((tokens[row] * gamma + beta + position[row]).unflatten(0, (clouds, plan.patches)))
        return self.norm(self.blocks(torch.cat(runs, 1))).mean(1)
