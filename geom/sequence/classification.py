"""What shape is this? A small Point Cloud Mamba, its weights shipped, that names clouds."""

import json
from collections.abc import Mapping
from importlib.resources import as_file, files
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geom.checks import check_points
from geom.errors import FileFormatError, ShapeError
from geom.points import Points
from geom.points.cloud import as_points
from geom.sequence.decoders import PointCloudMambaSegmenter
from geom.sequence.shape_classifier import ShapeClassifier

__all__ = ["classify", "draw", "load_classifier", "load_segmenter", "normalize_cloud", "segment"]

_Network = TypeVar("_Network", PointCloudMambaSegmenter, ShapeClassifier)
_POINTS = 256  # of a draw, which are in the middle of what the network was trained on
_SHAKE = 0.06  # of the radius: deviation of what fills a draw up, the most that the network was trained on


def normalize_cloud(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Points with the middle of their bounding box at 0 and the farthest at distance 1.

    Args: points (N, 3), N of at least 1. Returns: (N, 3); all zeros where the points are one.

    >>> normalize_cloud(torch.tensor([[1.0, 0, 0], [5, 0, 0]])).tolist()
    [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]

    Guarantees: differentiable (but for one point); deterministic; 2e-16 f64, 1e-7 f32
    """
    centred = points - (points.amax(0) / 2 + points.amin(0) / 2)
    reach = centred.square().sum(1).amax()
    still = reach == 0
    return centred / torch.where(still, 1, reach).sqrt()


def load_classifier() -> tuple[ShapeClassifier, tuple[str, ...]]:
    """The shipped network, in eval mode, and the names of its classes.

    It was trained on points of chairs and monitors (ModelNet10, as 32^3 occupancy) and of solids, 128 to 384 of each:
    `assets/sequence/train_classifier.py`, whose report lies beside the weights. It wants clouds as `draw` makes them.

    Raises: FileFormatError where the installation is broken.

    Guarantees: not differentiable; deterministic; exact
    """
    return _shipped(ShapeClassifier, "shapes")


def load_segmenter() -> tuple[PointCloudMambaSegmenter, tuple[str, ...]]:
    """The shipped network that tells a cap's crown from its brim, in eval mode, and the names of the parts: `segment`.

    It was trained on caps that are made, of 512 points, the front at +x and the top at +y, in the unit ball, and is to
    be shown caps that stand so: `assets/sequence/train_parts.py`, whose report lies beside the weights.

    Raises: FileFormatError where the installation is broken.

    >>> network, names = load_segmenter()
    >>> names, segment(torch.rand(600, 3), network=network).shape
    (('crown', 'brim'), torch.Size([600, 2]))

    Guarantees: not differentiable; deterministic; exact
    """
    return _shipped(PointCloudMambaSegmenter, "caps")


def _shipped(kind: type[_Network], name: str) -> tuple[_Network, tuple[str, ...]]:
    folder = files("geom.assets") / "sequence"
    with as_file(folder / f"{name}.json") as about, as_file(folder / f"{name}.safetensors") as weights:
        try:
            names = tuple(json.loads(about.read_text())["names"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(about, f"expected names, got {error!r}") from error
        return kind.load(weights), names


def draw(points: Float[Tensor, "n 3"], *, generator: torch.Generator | None = None) -> Float[Tensor, "m 3"]:
    """256 points of a cloud, taken to the unit ball by `normalize_cloud`: what `classify` shows the network.

    A cloud of fewer points is filled up with copies of them, each shaken by a normal deviate of 0.06 of the radius:
    the network sees local neighbourhoods, which are as wide then as those of 256 points.

    Args: points (N, 3), N of at least 1; generator of the CPU. Returns: (256, 3). Raises: ShapeError.

    >>> draw(torch.rand(40, 3)).shape
    torch.Size([256, 3])

    Guarantees: differentiable; deterministic; 2e-16 f64, 1e-7 f32
    """
    check_points(points, minimum=1)
    rows = torch.randperm(len(points), generator=generator)
    x = normalize_cloud(points[rows[:_POINTS].to(points.device)])
    missing = _POINTS - len(x)
    if missing > 0:
        again = torch.arange(missing, device=x.device) % len(x)
        noise = torch.randn(missing, 3, generator=generator, dtype=x.dtype).to(x.device)
        x = torch.cat([x, x[again] + _SHAKE * noise])
    return x


@torch.no_grad()
def classify(
    points: Points | Float[Tensor, "n 3"],
    *,
    views: int = 8,
    seed: int = 0,
) -> Mapping[str, float]:
    """Probabilities of the names of `load_classifier`, the greatest first.

    The mean over `views` draws of 256 points each (`draw`). Shapes of other kinds get one of the names all the same.

    Args: points (N, 3), any unit, one shape, of at least 32 points that are not all one, on its surface or in the cells
    of it; z up, though most shapes are known however they lie; views of at least 1; seed of the draws.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic
    """
    cloud = as_points(points)
    if len(cloud) != 1 or len(cloud.positions) < 32 or views < 1:
        raise ShapeError(
            f"points, views: expected one cloud of at least 32 points, and at least 1 view, got {len(cloud)} of "
            f"{len(cloud.positions)} in all, and {views}"
        )
    x = cloud.positions.double()
    if bool((x == x[0]).all()):
        raise ShapeError("points: expected a shape, got one place")
    generator = torch.Generator().manual_seed(seed)
    network, names = load_classifier()
    drawn = torch.cat([draw(x, generator=generator) for _ in range(views)]).float()
    ends = torch.arange(views + 1, device=x.device) * _POINTS
    mean = network.to(x.device)(drawn, offsets=ends).softmax(1).mean(0)
    return {names[k]: float(mean[k]) for k in mean.argsort(descending=True).tolist()}


@torch.no_grad()
def segment(
    points: Float[Tensor, "n 3"],
    *,
    network: nn.Module,
    views: int = 4,
    points_each: int = 512,
    seed: int = 0,
) -> Float[Tensor, "n k"]:
    """Probabilities of parts for each point, by a segmenter that was trained on clouds of fewer points.

    The points, taken to the unit ball by `normalize_cloud`, are dealt into clouds of about `points_each`, `views` times
    over, and each point's results are averaged: a network sees them as far apart as those it was trained on.

    Args: points (N, 3) of one shape; network (points, offsets=) -> logits (N, K), a `PointCloudMambaSegmenter` say, or
    that of `load_segmenter`; views; points_each, as many as in the clouds of its training (512 for the shipped one);
    seed of the dealing.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic
    """
    if views < 1 or points_each < 1:
        raise ShapeError(f"views, points_each: expected at least 1, got {views} and {points_each}")
    x = normalize_cloud(check_points(points, minimum=1))
    deals = max(1, round(len(x) / points_each))
    ends = torch.arange(deals + 1, device=x.device) * len(x) // deals
    generator, total = torch.Generator().manual_seed(seed), torch.zeros(())
    seen = x.to(next(network.parameters(), x).dtype)
    for _ in range(views):
        rows = torch.randperm(len(x), generator=generator).to(x.device)
        found = torch.empty_like(rows).scatter_(0, rows, torch.arange(len(x), device=x.device))
        total = total + network(seen[rows], offsets=ends).softmax(1)[found].to(x) / views
    return total
