"""Clouds to learn shapes from: points on occupied cells and on solids that are made here, moved about; and a PointNet.

What `train_classifier.py` and `train_parts.py` share.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from geom.lie import quaternion
from geom.sequence.classification import normalize_cloud
from geom.sequence.grouping import PointLayer

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("GEOM_DATA", HERE.parents[1] / "../shared/data")) / "pointclouds"
SOLIDS = ("ball", "cylinder", "cone", "ring")


def load_cells(path: Path) -> tuple[Tensor, Tensor]:
    """Occupied cells (M, 32, 32, 32) bool, z up, and their labels (M,)."""
    with np.load(path) as file:
        cells = np.unpackbits(file["vox"], axis=1).reshape(-1, 32, 32, 32).astype(bool)
        return torch.from_numpy(cells), torch.from_numpy(file["label"]).long()


def faces(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Middles (F, 3) of the sides of occupied cells beside empty ones, in cells, and the axis (F,) across each."""
    middles, axes = [], []
    padded = torch.nn.functional.pad(cells, (1,) * 6)
    for axis in range(3):
        for side in (-1, 1):
            free = cells & ~padded.roll(-side, axis)[1:-1, 1:-1, 1:-1]
            place = free.nonzero().float()
            place[:, axis] += side / 2
            middles.append(place)
            axes.append(torch.full((len(place),), axis))
    return torch.cat(middles), torch.cat(axes)


def sample_cells(surface: tuple[Tensor, Tensor], count: int) -> Tensor:
    """Points (count, 3) on a surface of `faces`; one time in four each in the middle of its side instead."""
    middles, axes = surface
    chosen = torch.randint(len(middles), (count,))
    spread = torch.rand(count, 3) - 0.5
    spread[torch.arange(count), axes[chosen]] = 0
    return middles[chosen] + (spread if torch.rand(()) < 0.75 else 0)


def sample_solid(kind: int, count: int) -> Tensor:
    """Points (count, 3) on a solid of SOLIDS, of any proportions."""
    turn, u = 2 * math.pi * torch.rand(count), torch.rand(count)
    ratio = float(torch.rand(()))
    if kind == 0:
        return torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
    if kind == 3:
        thin, own = 0.1 + 0.35 * ratio, 2 * math.pi * torch.rand(count)
        reach = 1 + thin * own.cos()
        return torch.stack([reach * turn.cos(), reach * turn.sin(), thin * own.sin()], 1)
    tall, lid = 0.4 + 3 * ratio, torch.rand(count)
    side = 2 * tall if kind == 1 else math.hypot(1, tall)  # in areas of half a lid
    ends = 2.0 if kind == 1 else 1.0
    on_end = lid * (side + ends) > side
    high = torch.where(on_end, (torch.rand(count) < 0.5).float() if kind == 1 else torch.zeros(count), u)
    if kind == 2:
        high = torch.where(on_end, 0.0, 1 - u.sqrt())
    reach = torch.where(on_end, u.sqrt(), 1.0 if kind == 1 else 1 - high)
    return torch.stack([reach * turn.cos(), reach * turn.sin(), tall * high], 1)


def rotation(angle: Tensor, up: int) -> Tensor:
    """The turn (3, 3) about axis `up`."""
    turn = torch.zeros(3)
    turn[up] = angle
    return quaternion.to_matrix(quaternion.exp(turn))


def sample_volume(cells: Tensor, count: int) -> Tensor:
    """Points (count, 3) in occupied cells of (K, 3) whole numbers, anywhere or, one time in three, in their middles."""
    chosen = cells[torch.randint(len(cells), (count,))].float()
    return chosen + (torch.rand(count, 3) - 0.5 if torch.rand(()) < 0.67 else 0)


def move(points: Tensor, *, up: int, any_turn: float) -> Tensor:
    """Points mirrored, stretched by up to a fifth, turned about `up` (a part `any_turn` about any axis)."""
    stretch = (0.4 * torch.rand(3) - 0.2).exp()
    stretch[(up + 1) % 3] *= 1 if torch.rand(()) < 0.5 else -1
    turn = rotation(2 * math.pi * torch.rand(()), up)
    points = points * stretch @ turn.T
    tilt = quaternion.random() if torch.rand(()) < any_turn else quaternion.exp(0.06 * torch.randn(3))
    return normalize_cloud(quaternion.rotate(tilt, points))


def damage(
    points: Tensor, count: int, *, shake: float = 0.0, cut: float = 0.0, stray: float = 0.0, slope: float = 0.0
) -> Tensor:
    """Some points (count, 3) of a cloud in the unit ball, as a bad scan has them, taken to the unit ball again.

    Args: shake, deviation of normal noise; cut, part that is missing on one side; stray, part that lies anywhere in the
    ball; slope, of the logarithm of the density along some direction.
    """
    sides = torch.nn.functional.normalize(torch.randn(3, 2), dim=0)
    along, across = (points @ sides).T
    order = (slope * along - torch.empty(len(points)).exponential_().log()).argsort(descending=True)
    if cut:
        order = order[(across >= across.quantile(cut))[order]]
    points = points[order[:count]]
    if stray:
        some = torch.randn(round(stray * count), 3)
        some = torch.nn.functional.normalize(some, dim=1) * torch.rand(len(some), 1) ** (1 / 3)
        points = torch.cat([some, points[len(some) :]])
    return normalize_cloud(points + shake * torch.randn(points.shape))


class PointNet(nn.Module):
    """PointNet without its transforms (Qi et al., 2017): layers on points, the greatest of all, and layers on that.

    With `parts` the logits of each point, from its own features and the cloud's. Trained beside ours to compare.
    """

    def __init__(self, classes: int, *, channels: int = 3, parts: bool = False, dropout: float = 0.3) -> None:
        super().__init__()
        self.parts = parts
        self.near = nn.Sequential(PointLayer(channels, 64), PointLayer(64, 64))
        self.far = nn.Sequential(PointLayer(64, 128), PointLayer(128, 512))
        self.head = nn.Sequential(
            PointLayer(512 + 64 * parts, 256), nn.Dropout(dropout), PointLayer(256, 128), nn.Linear(128, classes)
        )

    def forward(self, points: Tensor, features: Tensor | None = None, *, offsets: Tensor) -> Tensor:
        near = self.near(points)
        whole = torch.stack([x.amax(0) for x in self.far(near).split(offsets.diff().tolist())])
        if self.parts:
            whole = torch.cat([near, whole.repeat_interleave(offsets.diff(), 0)], 1)
        return self.head(whole)
