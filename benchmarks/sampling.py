"""Farthest points and nearest neighbours of clouds as networks take them, by their size: geom, fpsample, scipy, open3d
and torch."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.given import choose, read_scans
from benchmarks.harness import Case
from benchmarks.part import Request, installed
from benchmarks.point_peers import K, Points, geom_knn, open3d_knn, scipy_knn, torch_knn
from benchmarks.points import score as score_neighbors
from benchmarks.report import BEST_PEER
from benchmarks.rows import Library, Operation, contenders

__all__ = ["LIBRARIES", "NOTES", "REFERENCE", "brute_force", "cases", "inputs", "prepare", "score", "truths"]

REFERENCE = BEST_PEER
NOTES = [
    "clouds: uniform on the unit sphere; points of a scan, drawn at random",
    "farthest, n to m: m of n points, begun at the first; fpsample is its fps_sampling, fpsample buckets its "
    "bucket_fps_kdline_sampling with the height of tree that was the fastest; torch: a loop over the samples",
    f"knn: {K} neighbours of every point among all, search structures built inside the clock; torch: cdist and topk",
    "geom, open3d's neighbours, fpsample and torch in float32, scipy and open3d's farthest points in float64; left out "
    "where they take seconds: fpsample's fps_sampling of 100,000 points, torch's loop there and its cdist beyond 1,024",
    "errors of farthest: points that brute force finds from the same first one and this does not (fpsample's buckets "
    "begin elsewhere than told); of knn: the largest of a distance, and how many neighbours are farther than the exact "
    "ones by 1e-6 of the distance",
    "aims: 0.4 ms for 1,024 to 512, 15 for 24,576 to 6,144, 75 for 100,000 to 10,000; 450 ms for the neighbours of "
    "200,000, half of scipy's time",
    "neighbours between clouds, balls and whole scans: benchmark points; voxel grids: benchmark neighbors",
]
_SPHERE = "sphere"
_FARTHEST = [(1_024, 512, 3), (2_048, 512, 3), (24_576, 6_144, 6), (100_000, 10_000, 7)]  # and fpsample's height
_NEIGHBORS = [1_024, 24_576, 200_000]
_FEW, _MANY = 1_024, 100_000  # points up to which torch's cdist is measured, and below which slow samplers are
_SHORT = 2_048  # points up to which one call is too short for the clock


class Given(NamedTuple):
    """`draw(n)`: the cloud (n, 3) of a row; `farthest`: points, samples and the height of fpsample's tree; `neighbors`:
    points."""

    draw: Callable[[int], Points]
    farthest: Sequence[tuple[int, int, int]]
    neighbors: Sequence[int]


def inputs(names: tuple[str, ...]) -> list[str]:
    """The clouds of these names. Raises: GeomError for a name that is not there."""
    return choose([*read_scans(), _SPHERE], names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    scans = read_scans()
    chosen = inputs(request.inputs) or [*list(scans)[:1], _SPHERE]
    found, missing = installed(LIBRARIES)

    def make() -> Iterator[Case]:
        for name in chosen:
            given = prepare(scans.get(name), request.quick)
            libraries = [(library, start(given, threads, request.device)) for library, start in found]
            yield Case(name, contenders(libraries, score, truths(given), _calls))

    return len(chosen), make(), missing


def prepare(scan: Points | None, quick: bool) -> Given:
    """Of a scan, farthest points alone, or of the sphere; the least size where it is to be quick."""
    few = 1 if quick else None
    if scan is None:
        return Given(cache(_sphere), _FARTHEST[:few], _NEIGHBORS[:few])
    mixed = np.random.default_rng(0).permutation(scan)
    return Given(lambda count: mixed[:count], [size for size in _FARTHEST[:few] if size[0] <= len(scan)], [])


def _sphere(count: int) -> Points:
    x = np.random.default_rng(0).standard_normal((count, 3))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def score(method: str, found: Any, truth: Any) -> dict[str, float]:
    """Args: found, the sampled points (m, 3), the first one first; or distances and indices (n, K)."""
    if method.startswith("knn"):
        return score_neighbors(method, found, truth)
    missed = set(map(bytes, truth(len(found), found[0].tobytes()))) - set(map(bytes, found))
    return {"wrong": float(len(missed))}


def _calls(method: str) -> int:
    return 20 if _points_of(method) <= _SHORT else 1


def _points_of(method: str) -> int:
    """Of "farthest, 2,048 to 512" or "knn, 2,048"."""
    return int(method.partition(", ")[2].partition(" to ")[0].replace(",", ""))


def truths(given: Given) -> Callable[[str], Any]:
    """What each method should find, computed once: of knn queries, points and distances, in float64; of farthest a
    function of the number of samples and the first one's bytes."""

    @cache
    def truth(method: str) -> Any:
        cloud = given.draw(_points_of(method))
        if method.startswith("farthest"):
            return cache(lambda count, first: brute_force(cloud, count, np.frombuffer(first, np.float32)))
        from scipy.spatial import KDTree

        wide = cloud.astype(np.float64)
        return wide, wide, KDTree(wide).query(wide, K)[0]

    return truth


def brute_force(points: Points, count: int, first: Points) -> Points:
    """Farthest points from `first`, one of the points, on, each next against all; squares summed x first."""
    sample = int(np.flatnonzero((points == first).all(1))[0])
    x, y, z = np.ascontiguousarray(points.T)
    nearest, found = np.full(len(points), np.inf, dtype=np.float32), []
    for _ in range(count):
        found.append(sample)
        square = (x - x[sample]) ** 2 + (y - y[sample]) ** 2 + (z - z[sample]) ** 2
        np.minimum(nearest, square, out=nearest)
        sample = int(nearest.argmax())
    return points[found]


# --- libraries: operations by method, `call()` timed, `read` for `score` ----------------------------------------------


def _library(
    given: Given,
    sample: Callable[[int, int, int], Operation] | None,
    search: Callable[[int], Operation] | None,
    most: tuple[float, float] = (float("inf"), float("inf")),
) -> Library:
    """Of as many points as given by `most`, of farthest points and of neighbours."""
    found = {}
    if sample is not None:
        found |= {f"farthest, {n:,} to {m:,}": sample(n, m, height) for n, m, height in given.farthest if n <= most[0]}
    if search is not None:
        found |= {f"knn, {n:,}": search(n) for n in given.neighbors if n <= most[1]}
    return found


def _geom(given: Given, threads: int, device: str) -> Library:
    import torch

    from geom.points import farthest_point_sample

    def sample(n: int, m: int, height: int) -> Operation:
        x = torch.from_numpy(given.draw(n)).to(device)
        return Operation(lambda: farthest_point_sample(x, m), lambda index: x[index].cpu().numpy())

    return _library(given, sample, lambda n: geom_knn(given.draw(n), given.draw(n), device))


def _fpsample(given: Given, threads: int, device: str, *, buckets: bool) -> Library:
    import fpsample as f

    def sample(n: int, m: int, height: int) -> Operation:
        x = given.draw(n)
        read = lambda index: x[index.astype(np.int64)]  # noqa: E731
        if buckets:
            return Operation(lambda: f.bucket_fps_kdline_sampling(x, m, height, start_idx=0), read)
        return Operation(lambda: f.fps_sampling(x, m, start_idx=0), read)

    return _library(given, sample, None, (float("inf") if buckets else _MANY - 1, 0))


def _scipy(given: Given, threads: int, device: str) -> Library:
    return _library(given, None, lambda n: scipy_knn(given.draw(n), given.draw(n), threads))


def _open3d(given: Given, threads: int, device: str) -> Library:
    import open3d as o3d

    def sample(n: int, m: int, height: int) -> Operation:
        points = o3d.utility.Vector3dVector(given.draw(n))
        cloud = o3d.geometry.PointCloud(points)  # its tensors take a hundred times as long
        return Operation(lambda: cloud.farthest_point_down_sample(m), lambda found: np.float32(found.points))

    return _library(given, sample, lambda n: open3d_knn(given.draw(n), given.draw(n), device))


def _torch(given: Given, threads: int, device: str) -> Library:
    """What is written where nothing is installed."""
    import torch

    def farthest(x: Any, m: int) -> Any:
        found = torch.zeros(m, dtype=torch.int64, device=x.device)
        nearest = torch.full(x.shape[:1], torch.inf, device=x.device)
        for i in range(1, m):
            nearest = torch.minimum(nearest, (x - x[found[i - 1]]).square().sum(1))
            found[i] = nearest.argmax()
        return found

    def sample(n: int, m: int, height: int) -> Operation:
        x = torch.from_numpy(given.draw(n)).to(device)
        return Operation(lambda: farthest(x, m), lambda index: x[index].cpu().numpy())

    search = lambda n: torch_knn(given.draw(n), given.draw(n), device)  # noqa: E731
    return _library(given, sample, search, (_MANY - 1, _FEW))


LIBRARIES: list[tuple[str, tuple[str, Callable[[Given, int, str], Library]]]] = [
    ("geom", ("geom", _geom)),
    ("fpsample", ("fpsample", partial(_fpsample, buckets=False))),
    ("fpsample", ("fpsample buckets", partial(_fpsample, buckets=True))),
    ("scipy", ("scipy", _scipy)),
    ("open3d", ("open3d", _open3d)),
    ("torch", ("torch", _torch)),
]
