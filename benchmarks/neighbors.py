"""The pieces under registration: trees, nearest neighbours, voxel grids, normals.

Trees stand before the clock starts where neighbours are timed; normals include the search of their neighbours.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Case, Contender
from benchmarks.pairs import Array, Pair, choose_pairs, first_and_largest, inputs, read_pairs
from benchmarks.part import Request, installed
from benchmarks.point_peers import open3d_tensors

__all__ = ["NOTES", "REFERENCE", "cases", "inputs"]

REFERENCE = "small_gicp"
NOTES = [
    "knn-10: the source's own points; knn-1: the target's points, moved by the label, among the source's; the tree is "
    "built before the clock starts",
    "normals of 10 neighbours include tree and search; voxel grids of the pair's voxel size",
    "geom and open3d.t in float32; small_gicp, scipy and open3d's legacy clouds in float64",
    "distance_m: largest difference from scipy's distances; angle_deg: median angle to normals from numpy's eigh",
]
_K = 10


class _Input(NamedTuple):
    """Float32 `points` and `queries`, and what is true of them."""

    points: NDArray[np.float32]
    queries: NDArray[np.float32]
    voxel: float
    near: dict[str, Array]
    normals: Array


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    pairs = read_pairs()
    chosen = choose_pairs(pairs, request.inputs) or first_and_largest(pairs)
    makers, missing = installed(
        [
            ("geom", _geom),
            ("scipy", _scipy),
            ("small_gicp", _small_gicp),
            ("open3d", _open3d),
            ("open3d", _open3d_tensor),
        ]
    )

    def make() -> Iterator[Case]:
        for pair in chosen:
            given = _prepare(pair)
            contenders = [c for maker in makers for c in maker(given, threads, request.device)]
            yield Case(pair.name, contenders, f"{len(given.points)} points, {len(given.queries)} queries")

    return len(chosen), make(), missing


def _prepare(pair: Pair) -> _Input:
    from scipy.spatial import KDTree

    back = np.linalg.inv(pair.pose)
    queries = (pair.target @ back[:3, :3].T + back[:3, 3]).astype(np.float32)
    x = pair.source.astype(np.float64)
    tree = KDTree(x)
    distance, index = tree.query(x, _K)
    near = x[index] - x[index].mean(1, keepdims=True)
    normals = np.linalg.eigh(near.swapaxes(1, 2) @ near)[1][..., 0]
    truth = {"knn-10": distance, "knn-1": tree.query(queries.astype(np.float64))[0][:, None]}
    return _Input(pair.source, queries, pair.setting.voxel, truth, normals)


def _work(
    library: str, method: str, start: Callable[[], Callable[[], Any]], score: Callable[[Any], dict[str, float]]
) -> Contender:
    return Contender(library, method, lambda seed: start(), lambda output, seed: score(output))


def _searches(
    library: str, given: _Input, query: Callable[[str, int], Callable[[], Any]], distance: Callable[[Any], Any]
) -> Iterator[Contender]:
    """Both searches; `query(method, k)` prepares the tree and returns the work, `distance` its result's distances."""
    for method, k in (("knn-10", _K), ("knn-1", 1)):

        def score(found: Any, method: str = method, k: int = k) -> dict[str, float]:
            gap = np.asarray(distance(found), dtype=np.float64).reshape(-1, k) - given.near[method]
            return {"distance_m": float(np.abs(gap).max())}

        yield _work(library, method, lambda method=method, k=k: query(method, k), score)


def _count(points: Any) -> dict[str, float]:
    return {"voxel_points": float(len(points))}


def _angle(given: _Input, normals: Any) -> dict[str, float]:
    sine = np.linalg.norm(np.cross(np.asarray(normals, dtype=np.float64)[:, :3], given.normals), axis=-1)
    return {"angle_deg": float(np.degrees(np.median(np.arcsin(sine.clip(0, 1)))))}


def _geom(given: _Input, threads: int, device: str) -> Iterator[Contender]:
    import torch

    from geom.points import NeighborTree, estimate_normals, voxel_downsample

    points, queries = (torch.from_numpy(x).to(device) for x in (given.points, given.queries))

    def query(method: str, k: int) -> Callable[[], Any]:
        tree = NeighborTree.build(points)
        return lambda: tree.knn(points if method == "knn-10" else queries, k)

    yield _work("geom", "tree", lambda: lambda: NeighborTree.build(points), lambda tree: {})
    yield from _searches("geom", given, query, lambda found: found.distance.cpu())
    yield _work("geom", "voxels", lambda: lambda: voxel_downsample(points, given.voxel), lambda x: _count(x.positions))
    yield _work("geom", "normals", lambda: lambda: estimate_normals(points, k=_K), lambda x: _angle(given, x.cpu()))


def _scipy(given: _Input, threads: int, device: str) -> Iterator[Contender]:
    from scipy.spatial import KDTree

    points, queries = given.points.astype(np.float64), given.queries.astype(np.float64)

    def query(method: str, k: int) -> Callable[[], Any]:
        tree = KDTree(points)
        return lambda: tree.query(points if method == "knn-10" else queries, k, workers=threads)

    yield _work("scipy", "tree", lambda: lambda: KDTree(points), lambda tree: {})
    yield from _searches("scipy", given, query, lambda found: found[0])


def _small_gicp(given: _Input, threads: int, device: str) -> Iterator[Contender]:
    import small_gicp

    points, queries = given.points.astype(np.float64), given.queries.astype(np.float64)

    def query(method: str, k: int) -> Callable[[], Any]:
        tree = small_gicp.KdTree(points, num_threads=threads)
        return lambda: tree.batch_knn_search(points if method == "knn-10" else queries, k, num_threads=threads)

    def normals() -> Callable[[], Any]:
        cloud = small_gicp.PointCloud(points)

        def work() -> Any:
            small_gicp.estimate_normals(cloud, num_neighbors=_K, num_threads=threads)
            return cloud

        return work

    yield _work("small_gicp", "tree", lambda: lambda: small_gicp.KdTree(points, num_threads=threads), lambda tree: {})
    yield from _searches("small_gicp", given, query, lambda found: np.sqrt(found[1]))
    thin = lambda: small_gicp.voxelgrid_sampling(points, given.voxel, num_threads=threads)  # noqa: E731
    yield _work("small_gicp", "voxels", lambda: thin, lambda cloud: _count(cloud.points()))
    yield _work("small_gicp", "normals", normals, lambda cloud: _angle(given, cloud.normals()))


def _open3d(given: _Input, threads: int, device: str) -> Iterator[Contender]:
    import open3d as o3d

    points = o3d.utility.Vector3dVector(given.points.astype(np.float64))
    cloud = o3d.geometry.PointCloud(points)

    def normals() -> Callable[[], Any]:
        fresh = o3d.geometry.PointCloud(points)

        def work() -> Any:
            fresh.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(_K))
            return fresh

        return work

    yield _work("open3d", "tree", lambda: lambda: o3d.geometry.KDTreeFlann(cloud), lambda tree: {})
    yield _work("open3d", "voxels", lambda: lambda: cloud.voxel_down_sample(given.voxel), lambda x: _count(x.points))
    yield _work("open3d", "normals", normals, lambda x: _angle(given, x.normals))


def _open3d_tensor(given: _Input, threads: int, device: str) -> Iterator[Contender]:
    import open3d as o3d

    core: Any = o3d.core  # its stubs do not know its overloads
    tensor: Any = o3d.t
    points, queries = open3d_tensors(given.points, given.queries, device=device)
    cloud = tensor.geometry.PointCloud(points)

    def build() -> Any:
        tree = core.nns.NearestNeighborSearch(points)
        tree.knn_index()
        return tree

    def query(method: str, k: int) -> Callable[[], Any]:
        tree = build()
        return lambda: tree.knn_search(points if method == "knn-10" else queries, k)

    def normals() -> Callable[[], Any]:
        fresh = tensor.geometry.PointCloud(points)

        def work() -> Any:
            fresh.estimate_normals(max_nn=_K)
            return fresh.point.normals

        return work

    def thin() -> Any:
        return cloud.voxel_down_sample(given.voxel).point.positions

    yield _work("open3d.t", "tree", lambda: build, lambda tree: {})
    yield from _searches("open3d.t", given, query, lambda found: np.sqrt(found[1].cpu().numpy()))
    yield _work("open3d.t", "voxels", lambda: thin, _count)
    yield _work("open3d.t", "normals", normals, lambda x: _angle(given, x.cpu().numpy()))
