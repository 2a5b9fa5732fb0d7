"""Local registration from perturbed labels: geom.icp, small_gicp, open3d's two interfaces.

Timed: everything from raw clouds in the library's own types to the pose. Each thins both clouds with its own voxel
grid, takes 10 neighbours for normals and covariances where its method needs them, matches within the same distance, and
stops by its own rule, after 30 iterations at most. geom works in float32 here, as open3d's tensors do, and its time
includes the pose's covariance, which the others do not compute.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.harness import Case, Contender
from benchmarks.pairs import Array, Pair, choose_pairs, first_and_largest, inputs, pose_errors, read_pairs
from benchmarks.part import Request, installed
from benchmarks.point_peers import open3d_tensors

__all__ = ["NOTES", "REFERENCE", "cases", "inputs"]

REFERENCE = "small_gicp"
NOTES = [
    "timed from raw clouds to the pose: voxel grid, search structure, normals of 10 neighbours, at most 30 iterations",
    "every library stops by its own rule: geom at a step below 0.4 % of a voxel and 1 mrad, small_gicp below 1 mm (for "
    "scan_object 0.02 mm) and 1.75 mrad, open3d at relative changes of fitness and rmse below 1e-6",
    "geom and open3d's tensors in float32, small_gicp and open3d's legacy clouds in float64",
    "geom's time includes the pose's covariance",
    "errors are distances from the label, so below the label's own error they say nothing",
]
_ITERATIONS = 30
_NEIGHBORS = 10

Work = Callable[[], Any]


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    pairs = read_pairs()
    chosen = choose_pairs(pairs, request.inputs) or (first_and_largest(pairs) if request.quick else pairs)
    makers, missing = installed(
        [("geom", _geom), ("small_gicp", _small_gicp), ("open3d", _open3d), ("open3d", _open3d_tensor)]
    )

    def make() -> Iterator[Case]:
        for pair in chosen:
            contenders = [c for maker in makers for c in maker(pair, threads, request.device)]
            yield Case(pair.name, contenders, pair.label)

    return len(chosen), make(), missing


def _contender(
    library: str, method: str, pair: Pair, start: Callable[[Array], Work], pose: Callable[[Any], Array]
) -> Contender:
    return Contender(
        library,
        method,
        lambda seed: start(pair.start(seed)),
        lambda output, seed: pose_errors(pose(output), pair.pose),
    )


def _geom(pair: Pair, threads: int, device: str) -> Iterator[Contender]:
    import torch

    from geom.registration import icp

    source, target = (torch.from_numpy(x).to(device) for x in (pair.source, pair.target))

    def contender(method: str) -> Contender:
        def start(guess: Array) -> Work:
            init = torch.from_numpy(guess)
            return lambda: icp(
                source,
                target,
                init=init,
                method=method,
                max_distance=pair.setting.reach,
                voxel_size=pair.setting.voxel,
                max_iterations=_ITERATIONS,
            )

        return _contender("geom", method, pair, start, lambda found: found.T_target_source.numpy())

    yield from map(contender, ("point", "plane", "gicp", "vgicp"))


def _small_gicp(pair: Pair, threads: int, device: str) -> Iterator[Contender]:
    import small_gicp

    source, target = (x.astype(np.float64) for x in (pair.source, pair.target))

    def contender(method: str, kind: str) -> Contender:
        def start(guess: Array) -> Work:
            return lambda: small_gicp.align(
                target,
                source,
                guess,
                registration_type=kind,
                voxel_resolution=pair.setting.reach,
                downsampling_resolution=pair.setting.voxel,
                max_correspondence_distance=pair.setting.reach,
                num_threads=threads,
                max_iterations=_ITERATIONS,
                translation_epsilon=pair.setting.stop,
            )

        return _contender("small_gicp", method, pair, start, lambda found: found.T_target_source)

    kinds = {"point": "ICP", "plane": "PLANE_ICP", "gicp": "GICP", "vgicp": "VGICP"}
    yield from (contender(method, kind) for method, kind in kinds.items())


def _open3d(pair: Pair, threads: int, device: str) -> Iterator[Contender]:
    import open3d as o3d

    registration: Any = o3d.pipelines.registration
    search = o3d.geometry.KDTreeSearchParamKNN(_NEIGHBORS)
    criteria = registration.ICPConvergenceCriteria(max_iteration=_ITERATIONS)
    voxel, reach = pair.setting.voxel, pair.setting.reach

    def cloud(points: Any) -> Any:
        return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.astype(np.float64)))

    source, target = cloud(pair.source), cloud(pair.target)

    def work(method: str, guess: Array) -> Any:
        a, b = source.voxel_down_sample(voxel), target.voxel_down_sample(voxel)
        if method != "point":
            b.estimate_normals(search)
        if method == "gicp":
            a.estimate_normals(search)
            estimate = registration.TransformationEstimationForGeneralizedICP()
            return registration.registration_generalized_icp(a, b, reach, guess, estimate, criteria)
        to_plane = registration.TransformationEstimationPointToPlane()
        estimate = to_plane if method == "plane" else registration.TransformationEstimationPointToPoint()
        return registration.registration_icp(a, b, reach, guess, estimate, criteria)

    def contender(method: str) -> Contender:
        def start(guess: Array) -> Work:
            return lambda: work(method, guess)

        return _contender("open3d", method, pair, start, lambda found: found.transformation)

    yield from map(contender, ("point", "plane", "gicp"))


def _open3d_tensor(pair: Pair, threads: int, device: str) -> Iterator[Contender]:
    import open3d as o3d

    registration: Any = o3d.t.pipelines.registration
    tensor: Any = o3d.t
    core: Any = o3d.core  # its stubs do not know its overloads
    source, target = map(tensor.geometry.PointCloud, open3d_tensors(pair.source, pair.target, device=device))
    voxel, reach = pair.setting.voxel, pair.setting.reach
    criteria = registration.ICPConvergenceCriteria(max_iteration=_ITERATIONS)

    def start(guess: Array) -> Work:
        init = core.Tensor(guess)

        def work() -> Any:
            a, b = source.voxel_down_sample(voxel), target.voxel_down_sample(voxel)
            b.estimate_normals(max_nn=_NEIGHBORS)
            return registration.icp(a, b, reach, init, registration.TransformationEstimationPointToPlane(), criteria)

        return work

    yield _contender("open3d.t", "plane", pair, start, lambda found: found.transformation.cpu().numpy())
