"""What shape is this? A small Point Cloud Mamba, its weights shipped, that names clouds."""

import json
from collections.abc import Mapping
from importlib.resources import as_file, files

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geom.checks import check_points
from geom.errors import FileFormatError, ShapeError
from geom.points import Points
from geom.points.cloud import as_points
from geom.sequence.point_cloud_mamba import PointCloudMamba

__all__ = ["classify", "load_classifier", "normalize_cloud", "segment"]

_POINTS = 512


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


def load_classifier() -> tuple[PointCloudMamba, tuple[str, ...]]:
    """The shipped network, in eval mode, and the names of its classes.

    It was trained on points of chairs and monitors (ModelNet10, as 32^3 occupancy) and of solids:
    `assets/sequence/train_classifier.py`, whose report lies beside the weights.

    Raises: FileFormatError where the installation is broken.

    Guarantees: not differentiable; deterministic; exact
    """
    folder = files("geom.assets") / "sequence"
    with as_file(folder / "shapes.json") as about, as_file(folder / "shapes.safetensors") as weights:
        try:
            names = tuple(json.loads(about.read_text())["names"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(about, f"expected names of shapes, got {error!r}") from error
        return PointCloudMamba.load(weights), names


@torch.no_grad()
def classify(
    points: Points | Float[Tensor, "n 3"],
    *,
    views: int = 4,
    seed: int = 0,
) -> Mapping[str, float]:
    """Probabilities of the names of `load_classifier`, the greatest first.

    The mean over `views` draws of at most 512 points each, taken to the unit ball by `normalize_cloud`. Shapes of other
    kinds get one of the names all the same.

    Args: points (N, 3), any unit, one shape, of at least 32 points that are not all one; z up, though most shapes are
    known however they lie; views of at least 1; seed of the draws.
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
    drawn = [torch.randperm(len(x), generator=generator)[:_POINTS].to(x.device) for _ in range(views)]
    each = [normalize_cloud(x[rows]).float() for rows in drawn]
    ends = torch.tensor([0, *(len(rows) for rows in drawn)]).cumsum(0).to(x.device)
    mean = network.to(x.device)(torch.cat(each), offsets=ends).softmax(1).mean(0)
    return {names[k]: float(mean[k]) for k in mean.argsort(descending=True).tolist()}


@torch.no_grad()
def segment(
    points: Float[Tensor, "n 3"],
    *,
    network: nn.Module,
    views: int = 4,
    points_each: int = 768,
    seed: int = 0,
) -> Float[Tensor, "n k"]:
    """Probabilities of parts for each point, by a segmenter that was trained on clouds of fewer points.

    The points, taken to the unit ball by `normalize_cloud`, are dealt into clouds of about `points_each`, `views` times
    over, and each point's results are averaged: a network sees them as far apart as those it was trained on.

    Args: points (N, 3) of one shape; network (points, offsets=) -> logits (N, K), a `PointCloudMambaSegmenter` say;
    views; points_each; seed of the dealing.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic
    """
    if views < 1 or points_each < 1:
        raise ShapeError(f"views, points_each: expected at least 1, got {views} and {points_each}")
    x = normalize_cloud(check_points(points, minimum=1))
    deals = max(1, round(len(x) / points_each))
    ends = torch.arange(deals + 1, device=x.device) * len(x) // deals
    generator, total = torch.Generator().manual_seed(seed), torch.zeros(())
    for _ in range(views):
        rows = torch.randperm(len(x), generator=generator).to(x.device)
        found = torch.empty_like(rows).scatter_(0, rows, torch.arange(len(x), device=x.device))
        total = total + network(x[rows], offsets=ends).softmax(1)[found] / views
    return total
