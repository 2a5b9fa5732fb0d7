"""`ShapeClassifier`: a Point Cloud Mamba that sees each point twice, and is read at all of its levels."""

import math
import os
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import Self

from geom.checks import check_offsets, check_points
from geom.errors import ShapeError
from geom.nn import scatter
from geom.nn.serialized_attention import principal_coordinates
from geom.sequence.grouping import PointLayer
from geom.sequence.point_cloud_mamba import PointCloudMambaEncoder, PointCloudMambaPlan, load_network, save_network

__all__ = ["ShapeClassifier", "two_frames"]


def two_frames(points: Float[Tensor, "n 3"], offsets: Int64[Tensor, " clouds"] | None = None) -> Float[Tensor, "n 6"]:
    """Points from their clouds' own axes, as of `principal_coordinates`, and beside them as they stand.

    Both with the middle of the cloud's bounding box at 0 and its farthest point at distance 1: the first three do not
    change when a cloud is moved, turned, mirrored or scaled, the last three when it is moved or scaled.

    Args: points (N, 3), offsets (B+1,) of clouds of at least one point. Returns: (N, 6).
    Raises: ShapeError.

    >>> two_frames(torch.tensor([[0.0, 0, 3], [0, 0, 5]]))[:, 3:].tolist()
    [[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]

    Guarantees: not differentiable; deterministic; 1e-15 f64, 1e-6 f32, over the gap of the widths
    """
    check_points(points)
    offsets = check_offsets(offsets, len(points), device=points.device)
    if bool((offsets.diff() < 1).any()):
        raise ShapeError(f"offsets: expected clouds of at least 1 point, got {offsets.diff().tolist()[:8]}")
    own = _normalized(points.detach(), offsets)
    return torch.cat([_normalized(principal_coordinates(own, offsets=offsets), offsets), own], 1)


class ShapeClassifier(nn.Module):
    """Logits of classes for clouds, however they lie, wherever and how large they are.

        x = two_frames(p)        y_i = max over tokens of layer_i(level_i, place), i = 0 ... stages        head(y)

    The levels are those of the encoder of Point Cloud Mamba (Zhang et al., 2024), which walks in the clouds' own axes.
    That network's classifier reads the last level alone; all of them are learned from sooner, as its part segmenter and
    PointNet++ (Qi et al., 2017) do for their cloud-wide features.

    Args: classes; plan, with channels=6; pooled, width of each level's layer; hidden, widths of the head; dropout.
    The call: points (N, 3) float32 or float64; offsets (B+1,), each cloud of at least the product of the plan's
        `reduce` points. The result: logits (B, classes).
    Raises: ShapeError.

    >>> plan = PointCloudMambaPlan(6, width=8, blocks=(1,), orders=("xyz",), expansion=(2,), reduce=(2,))
    >>> ShapeClassifier(3, plan=plan, pooled=(8, 8)).eval()(torch.rand(30, 3), offsets=torch.tensor([0, 12, 30])).shape
    torch.Size([2, 3])

    Guarantees: not differentiable by points; deterministic but for dropout and drop_path; 1e-11 f64, 2e-4 f32 of the
    greatest entry
    """

    def __init__(
        self,
        classes: int,
        *,
        plan: PointCloudMambaPlan,
        pooled: tuple[int, ...] = (256, 256, 256),
        hidden: tuple[int, ...] = (128, 64),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if plan.channels != 6 or len(pooled) != len(plan.widths):
            raise ShapeError(
                f"plan, pooled: expected 6 channels and {len(plan.widths)} widths, got {plan.channels} and {pooled}"
            )
        self.shape: dict[str, Any] = {"classes": classes, "pooled": pooled, "hidden": hidden, "dropout": dropout}
        self.encoder = PointCloudMambaEncoder(plan)
        self.pools = nn.ModuleList(PointLayer(a + 3, b) for a, b in zip(plan.widths, pooled, strict=True))
        widths = (sum(pooled), *hidden)
        layers = [nn.Sequential(PointLayer(a, b), nn.Dropout(dropout)) for a, b in zip(widths, hidden, strict=False)]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def forward(
        self, points: Float[Tensor, "n 3"], *, offsets: Int64[Tensor, " clouds"] | None = None
    ) -> Float[Tensor, "b k"]:
        features = two_frames(points, offsets)
        offsets = check_offsets(offsets, len(points), device=points.device)
        least = math.prod(self.encoder.plan.reduce)
        if not len(points) or int(offsets.diff().min()) < least:
            raise ShapeError(f"points: expected clouds of at least {least}, got {offsets.diff().tolist()[:8]}")
        levels = self.encoder(features[:, :3], features, offsets)
        found = [
            _greatest(pool(torch.cat([level.features, level.points], 1)), level.offsets)
            for pool, level in zip(self.pools, levels, strict=True)
        ]
        return self.head(torch.cat(found, 1))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and plan as safetensors; a failed write leaves the old file."""
        save_network(self, self.encoder.plan, self.shape, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, on the CPU. Raises: FileFormatError if it is something else; OSError as `open`."""
        return load_network(cls, path)


def _normalized(x: Tensor, offsets: Tensor) -> Tensor:
    """Clouds with the middle of their bounding boxes at 0 and the farthest point at distance 1, or all at 0."""
    sizes = offsets.diff()
    low, high = (_greatest(sign * x, offsets) for sign in (-1, 1))
    x = x - ((high - low) / 2).repeat_interleave(sizes, 0, output_size=len(x))
    reach = _greatest(x.square().sum(1, keepdim=True), offsets).sqrt()
    return x / torch.where(reach > 0, reach, 1).repeat_interleave(sizes, 0, output_size=len(x))


def _greatest(x: Tensor, offsets: Tensor) -> Tensor:
    """The greatest entries (B, C) of clouds."""
    sizes = offsets.diff()
    if len(sizes) and bool((sizes == sizes[0]).all()):
        return x.unflatten(0, (len(sizes), -1)).amax(1)
    cloud = torch.repeat_interleave(sizes, output_size=len(x))
    return scatter(x, cloud, len(sizes), reduce="max")
