"""Neighbours and the Chamfer distance in geom and its peers, each on its own types."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import Library, Operation

__all__ = [
    "CAP",
    "K",
    "Given",
    "Points",
    "geom",
    "geom_knn",
    "open3d",
    "open3d_knn",
    "open3d_tensors",
    "scipy",
    "scipy_knn",
    "torch_cdist",
    "torch_knn",
]

K = 16
CAP = 32  # neighbours of a ball query


Points = NDArray[np.float32]


class Given(NamedTuple):
    """Float32: the `whole` cloud (N, 3), and parts of it drawn at random, `query` and `points` (M, 3); `radius` of the
    ball query."""

    whole: Points
    query: Points
    points: Points
    radius: float


# --- neighbours of `query` among `points`, what searches them built inside -------------------------------------------


def geom_knn(query: Points, points: Points, device: str) -> Operation:
    import torch

    from geom.points import knn

    x, y = (torch.from_numpy(z).to(device) for z in (query, points))
    return Operation(lambda: knn(x, y, K), lambda found: (found.distance.cpu().numpy(), found.index.cpu().numpy()))


def scipy_knn(query: Points, points: Points, threads: int) -> Operation:
    from scipy.spatial import KDTree

    x, y = (z.astype(np.float64) for z in (query, points))
    return Operation(lambda: KDTree(y).query(x, K, workers=threads))


def open3d_knn(query: Points, points: Points, device: str) -> Operation:
    x, y = open3d_tensors(query, points, device=device)
    read = lambda found: (np.sqrt(found[1].cpu().numpy()), found[0].cpu().numpy())  # noqa: E731
    return Operation(lambda: _nearest(x, y, K), read)


def torch_knn(query: Points, points: Points, device: str) -> Operation:
    """What is written where nothing is installed: all distances, then the least of them."""
    import torch

    x, y = (torch.from_numpy(z).to(device) for z in (query, points))
    read = lambda found: tuple(z.cpu().numpy() for z in found)  # noqa: E731
    return Operation(lambda: torch.cdist(x, y).topk(K, largest=False), read)


def open3d_tensors(*arrays: Any, device: str) -> list[Any]:
    """On the GPU where geom is and open3d has one."""
    import open3d as o3d

    core: Any = o3d.core  # its stubs do not know its overloads
    place = core.Device("CUDA:0" if device == "cuda" and core.cuda.is_available() else "CPU:0")
    return [core.Tensor(x, device=place) for x in arrays]


def _nearest(x: Any, y: Any, k: int) -> Any:
    import open3d as o3d

    core: Any = o3d.core
    tree = core.nns.NearestNeighborSearch(y)
    tree.knn_index()
    return tree.knn_search(x, k)


# --- all that the benchmark "points" measures: numbers of neighbours (M,) of balls, and a distance --------------------


def geom(given: Given, threads: int, device: str) -> Library:
    import torch

    from geom import points as p

    query, points = (torch.from_numpy(x).to(device) for x in given[1:3])
    count = lambda found: (found.index >= 0).sum(1).cpu().numpy()  # noqa: E731

    return {
        "knn": geom_knn(given.query, given.points, device),
        "knn, whole": geom_knn(given.whole, given.whole, device),
        "ball query": Operation(lambda: p.ball_query(query, points, given.radius, CAP), count),
        "chamfer": Operation(lambda: p.chamfer(query, points), float),
    }


def scipy(given: Given, threads: int, device: str) -> Library:
    from scipy.spatial import KDTree

    query, points = (x.astype(np.float64) for x in given[1:3])

    def chamfer() -> Any:
        pairs = ((query, points), (points, query))
        return sum((KDTree(y).query(x, workers=threads)[0] ** 2).mean() for x, y in pairs)

    return {
        "knn": scipy_knn(given.query, given.points, threads),
        "knn, whole": scipy_knn(given.whole, given.whole, threads),
        "ball query": Operation(
            lambda: KDTree(points).query_ball_point(query, given.radius, workers=threads, return_sorted=True),
            lambda found: np.minimum([len(x) for x in found], CAP),
        ),
        "chamfer": Operation(chamfer, float),
    }


def open3d(given: Given, threads: int, device: str) -> Library:
    import open3d as o3d

    core: Any = o3d.core
    query, points = open3d_tensors(given.query, given.points, device=device)

    def ball() -> Any:
        tree = core.nns.NearestNeighborSearch(points)
        tree.hybrid_index(given.radius)
        return tree.hybrid_search(query, given.radius, CAP)

    def chamfer() -> Any:
        return sum(_nearest(x, y, 1)[1].cpu().numpy().mean() for x, y in ((query, points), (points, query)))

    return {
        "knn": open3d_knn(given.query, given.points, device),
        "knn, whole": open3d_knn(given.whole, given.whole, device),
        "ball query": Operation(ball, lambda found: found[2].cpu().numpy()),
        "chamfer": Operation(chamfer, float),
    }


def torch_cdist(given: Given, threads: int, device: str) -> Library:
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
        "knn": torch_knn(given.query, given.points, device),
        "ball query": Operation(ball, lambda found: (found < len(points)).sum(1).cpu().numpy()),
        "chamfer": Operation(chamfer, float),
    }
