"""Neighbours and the Chamfer distance, from raw clouds: geom, scipy, open3d and torch.cdist."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from benchmarks.given import choose, read_scans
from benchmarks.harness import Case
from benchmarks.part import Request, installed
from benchmarks.point_peers import (
    CAP,
    Given,
    K,
    Points,
    geom,
    open3d,
    scipy,
    torch_cdist,
)
from benchmarks.report import BEST_PEER
from benchmarks.rows import by_threads, contenders, untimed

__all__ = ["NOTES", "REFERENCE", "cases", "draw", "inputs", "score", "truths"]

REFERENCE = BEST_PEER
NOTES = [
    f"knn: {K} neighbours of 10,000 points among 10,000 others, drawn at random; whole: of every point of the cloud "
    "among all; search structures are built inside the clock, here and below",
    f"ball query: the same points, at most {CAP} neighbours within 0.05 in the unit cube, in scans within the median "
    "distance of the fifth; of more, geom and torch keep the first, open3d the nearest, scipy all",
    "geom, open3d and torch in float32, scipy in float64; torch cdist: all distances at once",
    "errors of knn: the largest of a distance, and how many neighbours are farther than the exact ones by 1e-6 of the "
    "distance; of the ball query: queries with another number of neighbours; of chamfer: relative",
    "farthest points, and neighbours by the size of a cloud: benchmark sampling",
]
_UNIFORM, _THREADS = "uniform", "threads"
_LIBRARIES = [
    ("geom", ("geom", geom)),
    ("scipy", ("scipy", scipy)),
    ("open3d", ("open3d", open3d)),
    ("torch", ("torch cdist", torch_cdist)),
]


def inputs(names: tuple[str, ...]) -> list[str]:
    """The cases of these names. Raises: GeomError for a name that is not there."""
    return choose([*read_scans(), _UNIFORM, _THREADS], names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    scans = read_scans()
    chosen = inputs(request.inputs) or [*list(scans)[:1], _UNIFORM, _THREADS]
    if threads == 1 or request.device != "cpu":
        chosen = [name for name in chosen if name != _THREADS]
    found, missing = installed(_LIBRARIES)

    def make() -> Iterator[Case]:
        for name in chosen:
            given = draw(scans.get(name), request.quick)
            if name == _THREADS:
                yield _by_threads(given.whole, threads)
                continue
            libraries = [(library, start(given, threads, request.device)) for library, start in found]
            rows = contenders(libraries, score, truths(given))
            yield Case(name, rows, f"{len(given.whole):,} points; ball query within {given.radius:.2g}")

    return len(chosen), make(), missing


def draw(scan: Points | None, quick: bool) -> Given:
    """Of a scan, or of 200,000 points uniform in the unit cube; a tenth of all where it is to be quick."""
    random = np.random.default_rng(0)
    whole = random.random((20_000 if quick else 200_000, 3), dtype=np.float32) if scan is None else scan
    mixed = random.permutation(whole)
    part = 1_000 if quick else 10_000
    query, points = mixed[:part], mixed[part : 2 * part]
    radius = 0.05
    if scan is not None:
        from scipy.spatial import KDTree

        radius = float(np.median(KDTree(points).query(query, 5)[0][:, 4]))
    return Given(whole, query, points, radius)


def truths(given: Given) -> Callable[[str], Any]:
    """What each method should find, computed once, in float64: distances, numbers of neighbours, the distance."""
    from scipy.spatial import KDTree

    whole, query, points = (x.astype(np.float64) for x in given[:3])

    @cache
    def truth(method: str) -> Any:
        if method == "knn, whole":
            return whole, whole, KDTree(whole).query(whole, K)[0]
        if method == "knn":
            return query, points, KDTree(points).query(query, K)[0]
        if method == "ball query":
            return np.minimum(KDTree(points).query_ball_point(query, given.radius, return_length=True), CAP)
        return sum((KDTree(y).query(x)[0] ** 2).mean() for x, y in ((query, points), (points, query)))

    return truth


def score(method: str, found: Any, truth: Any) -> dict[str, float]:
    if method.startswith("knn"):
        (distance, index), (query, points, exact) = found, truth
        real = np.linalg.norm(query[:, None] - points[index], axis=-1)
        wrong = (np.sort(real, 1) > exact * (1 + 1e-6)).sum()
        return {"distance_abs": float(np.abs(distance - exact).max()), "wrong": float(wrong)}
    if method == "ball query":
        return {"wrong": float((found != truth).sum())}
    return {"error_rel": float(abs(found / truth - 1))}


def _by_threads(points: Points, threads: int) -> Case:
    """Neighbours of all points on one thread and on all."""
    import torch
    from scipy.spatial import KDTree

    from geom.points import knn

    cloud, exact = torch.from_numpy(points), points.astype(np.float64)
    searches: dict[str, Callable[[int], Any]] = {
        "geom": lambda count: knn(cloud, cloud, K),
        "scipy": lambda count: KDTree(exact).query(exact, K, workers=count),
    }
    return Case(
        _THREADS,
        [
            untimed(library, "knn, whole, by threads:", lambda search=search: by_threads(search, threads))
            for library, search in searches.items()
        ],
        f"{len(points):,} uniform points",
        timed=False,
    )
