"""Neighbours and the Chamfer distance in geom and its peers, each on its own types."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CAP",
    "K",
    "Given",
    "Library",
    "Operation",
    "geom",
    "open3d",
    "scipy",
    "torch_cdist",
]

K = 16
CAP = 32  # neighbours of a ball query


class Given(NamedTuple):
    """Float32: the `whole` cloud (N, 3), and parts of it drawn at random, `query` and `points` (M, 3); `radius` of the
    ball query."""

    whole: NDArray[np.float32]
    query: NDArray[np.float32]
    points: NDArray[np.float32]
    radius: float


class Operation(NamedTuple):
    """`call()` is timed; `read` makes of its result what is scored: distances and indices (M, K), numbers of
    neighbours (M,), or a distance."""

    call: Callable[[], Any]
    read: Callable[[Any], Any]


Library = dict[str, Operation]


def geom(given: Given, threads: int, device: str) -> Library:
    import torch

    from geom import points as p

    whole, query, points = (torch.from_numpy(x).to(device) for x in given[:3])
    near = lambda found: (found.distance.cpu().numpy(), found.index.cpu().numpy())  # noqa: E731
    count = lambda found: (found.index >= 0).sum(1).cpu().numpy()  # noqa: E731

    return {
        "knn": Operation(lambda: p.knn(query, points, K), near),
        "knn, whole": Operation(lambda: p.knn(whole, whole, K), near),
        "ball query": Operation(lambda: p.ball_query(query, points, given.radius, CAP), count),
        "chamfer": Operation(lambda: p.chamfer(query, points), float),
    }


def scipy(given: Given, threads: int, device: str) -> Library:
    from scipy.spatial import KDTree

    whole, query, points = (x.astype(np.float64) for x in given[:3])

    def nearest(x: Any, y: Any, k: int) -> Any:
        return KDTree(y).query(x, k, workers=threads)

    def chamfer() -> Any:
        return (nearest(query, points, 1)[0] ** 2).mean() + (nearest(points, query, 1)[0] ** 2).mean()

    return {
        "knn": Operation(lambda: nearest(query, points, K), lambda found: found),
        "knn, whole": Operation(lambda: nearest(whole, whole, K), lambda found: found),
        "ball query": Operation(
            lambda: KDTree(points).query_ball_point(query, given.radius, workers=threads, return_sorted=True),
            lambda found: np.minimum([len(x) for x in found], CAP),
        ),
        "chamfer": Operation(chamfer, float),
    }


def open3d(given: Given, threads: int, device: str) -> Library:
    import open3d as o3d

    core: Any = o3d.core  # its stubs do not know its overloads
    place = core.Device("CUDA:0" if device == "cuda" and core.cuda.is_available() else "CPU:0")
    whole, query, points = (core.Tensor(x, device=place) for x in given[:3])

    def nearest(x: Any, y: Any, k: int) -> Any:
        tree = core.nns.NearestNeighborSearch(y)
        tree.knn_index()
        return tree.knn_search(x, k)

    def near(found: Any) -> Any:
        return np.sqrt(found[1].cpu().numpy()), found[0].cpu().numpy()

    def ball() -> Any:
        tree = core.nns.NearestNeighborSearch(points)
        tree.hybrid_index(given.radius)
        return tree.hybrid_search(query, given.radius, CAP)

    def chamfer() -> Any:
        return sum(nearest(x, y, 1)[1].cpu().numpy().mean() for x, y in ((query, points), (points, query)))

    return {
        "knn": Operation(lambda: nearest(query, points, K), near),
        "knn, whole": Operation(lambda: nearest(whole, whole, K), near),
        "ball query": Operation(ball, lambda found: found[2].cpu().numpy()),
        "chamfer": Operation(chamfer, float),
    }


def torch_cdist(given: Given, threads: int, device: str) -> Library:
    """What is written where nothing is installed: all distances, then the least of them."""
    import torch

    query, points = (torch.from_numpy(x).to(device) for x in (given.query, given.points))

    def ball() -> Any:
        number = torch.arange(len(points), device=device).expand(len(query), -1)
        far = torch.cdist(query, points) >= given.radius
        return number.masked_fill(far, len(points)).topk(CAP, largest=False).values

    def chamfer() -> Any:
        distance = torch.cdist(query, points)
        return distance.amin(1).square().mean() + distance.amin(0).square().mean()

    return {
        "knn": Operation(
            lambda: torch.cdist(query, points).topk(K, largest=False), lambda x: tuple(y.cpu().numpy() for y in x)
        ),
        "ball query": Operation(ball, lambda found: (found < len(points)).sum(1).cpu().numpy()),
        "chamfer": Operation(chamfer, float),
    }
