"""Point Cloud Mamba for each point: parts of shapes, and scenes."""

import os
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot, relu
from typing_extensions import Self

from geom.checks import describe
from geom.errors import ShapeError
from geom.nn import BatchNorm
from geom.points import interpolate
from geom.sequence.grouping import PointLayer, ResidualLayer, normalized
from geom.sequence.point_cloud_mamba import (
    PCM,
    Level,
    PointCloudMambaEncoder,
    PointCloudMambaPlan,
    check_clouds,
    load_network,
    save_network,
)

__all__ = ["PointCloudMambaSegmenter"]


class _Propagation(nn.Module):
    """Features carried to the finer level by `interpolate`, joined with its own, through two layers."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.fuse = PointLayer(width_in, width_out, bias=True)
        self.extraction = nn.ModuleDict({"operation": nn.Sequential(ResidualLayer(width_out, bias=True))})

    def forward(self, fine: Level, coarse: Level, x: Tensor) -> Tensor:
        carried = interpolate(fine.points, coarse.points, x, k=3, query_offsets=fine.offsets, offsets=coarse.offsets)
        return self.extraction["operation"](self.fuse(torch.cat([fine.features, carried], 1)))


class PointCloudMambaDecoder(nn.Module):
    """Levels of an encoder to features (N, out_channels) at its first level: from coarse to fine, and what is global.

    Three nearest points carry features down, weighted by inverse squared distances; where the published code adds 1e-8
    to these, `interpolate` needs nothing. The greatest features of each level, and the category, come to every point.

    Args: plan; categories of shapes, 0 for none; width of the global features, and of the category's.
    Parameters are named as the published ones: decode_list, gmp_map_list, gmp_map_end, cls_map.

    Guarantees: differentiable; deterministic; 1e-12 f64, 1e-4 f32 of the greatest entry
    """

    def __init__(self, plan: PointCloudMambaPlan, categories: int, *, width: int = 64) -> None:
        super().__init__()
        encoded = plan.widths[::-1]
        self.categories = categories
        self.decode_list = nn.ModuleList(_Propagation(a + b, b) for a, b in pairwise(encoded))
        if categories:
            self.cls_map = nn.Sequential(PointLayer(categories, width, bias=True), PointLayer(width, width, bias=True))
        self.gmp_map_list = nn.ModuleList(PointLayer(c, width, bias=True) for c in encoded)
        self.gmp_map_end = PointLayer(width * len(encoded), width, bias=True)
        self.out_channels = encoded[-1] + width * (2 if categories else 1)

    def forward(self, levels: list[Level], category: Int64[Tensor, " b"] | None) -> Float[Tensor, "n c"]:
        coarse, *others = levels[::-1]
        x = coarse.features
        for carry, fine in zip(self.decode_list, others, strict=True):
            x, coarse = carry(fine, coarse, x), fine
        top = [
            level.reduce(mapped(level.features), "max")
            for mapped, level in zip(self.gmp_map_list, levels[::-1], strict=True)
        ]
        wide = [self.gmp_map_end(torch.cat(top, 1))]
        if self.categories:
            assert category is not None
            wide.append(self.cls_map(one_hot(category, self.categories).to(x)))
        return torch.cat([x, torch.cat(wide, 1)[coarse.cloud]], 1)


class _PointHead(nn.Module):
    """Logits of each point from its features and the greatest and mean ones of its cloud."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        width *= 3
        self.head = nn.Sequential(
            nn.Sequential(nn.Conv1d(width, width, 1, bias=False), BatchNorm(width)),
            nn.Dropout(dropout),
            nn.Sequential(nn.Conv1d(width, classes, 1)),
        )

    def forward(self, x: Tensor, level: Level) -> Tensor:
        whole = torch.cat([level.reduce(x, how) for how in ("max", "mean")], 1)
        first, dropout, end = self.head
        assert isinstance(first, nn.Sequential) and isinstance(end, nn.Sequential)
        last = end[0]
        assert isinstance(last, nn.Conv1d)
        x = dropout(relu(normalized(first, torch.cat([x, whole[level.cloud]], 1))))
        return linear(x, last.weight[..., 0], last.bias)


class PointCloudMambaSegmenter(nn.Module):
    """Logits of each point: Point Cloud Mamba (Zhang et al., 2024), encoder, decoder, and a head.

    With `categories` the kind of shape is told, as for parts of shapes (the published plan has 16, 7 channels and
    `reduce` (2, 2, 2, 2)); without, as for scenes, where the plan's `windows` cut large clouds, and the published
    features hold the coordinates too.

    Args: classes of points; plan; categories; dropout of the head.
    The call: points (N, 3), features (N, channels), offsets (B+1,), as of `PointCloudMamba`; category int64 (B,), of
        each cloud. The result: logits (N, classes), of the points in their order.
    Raises: ShapeError.

    >>> plan = PointCloudMambaPlan(width=8, blocks=(1, 1), orders=("xyz", "zyx"), expansion=(1, 2), reduce=(2, 2))
    >>> PointCloudMambaSegmenter(4, plan=plan).eval()(torch.rand(30, 3), offsets=torch.tensor([0, 12, 30])).shape
    torch.Size([30, 4])

    Guarantees: differentiable; deterministic but for dropout and drop_path; 1e-12 f64, 1e-4 f32 of the greatest entry
    """

    def __init__(
        self,
        classes: int,
        *,
        plan: PointCloudMambaPlan = PCM,
        categories: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.shape: dict[str, Any] = {"classes": classes, "categories": categories, "dropout": dropout}
        self.encoder = PointCloudMambaEncoder(plan)
        self.decoder = PointCloudMambaDecoder(plan, categories)
        self.head = _PointHead(self.decoder.out_channels, classes, dropout)

    def forward(
        self,
        points: Float[Tensor, "n 3"],
        features: Float[Tensor, "n c"] | None = None,
        *,
        offsets: Int64[Tensor, " clouds"] | None = None,
        category: Int64[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "n k"]:
        points, features, starts = check_clouds(self.encoder.plan, points, features, offsets)
        clouds, kinds = len(starts) - 1, self.decoder.categories
        told = isinstance(category, Tensor) and category.dtype == torch.int64 and category.shape == (clouds,)
        if (category is None) != (not kinds) or (kinds and not told):
            wanted = f"an int64 tensor ({clouds},)" if kinds else "none, of a network without categories"
            raise ShapeError(f"category: expected {wanted}, got {describe(category)}")
        if category is not None and not bool(((category >= 0) & (category < kinds)).all()):
            raise ShapeError(f"category: expected numbers in [0, {kinds}), got {category.tolist()[:8]}")
        levels = self.encoder(points, features, starts)
        return self.head(self.decoder(levels, category), levels[0])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, plan and orders as safetensors; a failed write leaves the old file."""
        save_network(self, self.encoder.plan, self.shape, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, on the CPU. Raises: FileFormatError if it is something else; OSError as `open`."""
        return load_network(cls, path)
