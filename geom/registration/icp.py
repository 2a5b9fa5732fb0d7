"""Iterative closest points: point to point, point to plane, GICP and VGICP, on one problem."""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from geom.checks import check_choice, check_integer, check_positive, check_rigid, check_same, describe
from geom.errors import GeomError, ShapeError
from geom.kernels.bridge import small_operations
from geom.lie import Rigid, quaternion
from geom.optim import least_squares
from geom.optim.robust import KERNELS
from geom.points import Points
from geom.points.cloud import as_points
from geom.registration.alignment import METHODS, Alignment
from geom.registration.cloud import Cloud, choose_voxel_size, prepare
from geom.registration.result import Registration
from geom.registration.uncertainty import pose_uncertainty

__all__ = ["icp"]

Pose = Rigid | Tensor
_STEP = (0.004, 1e-3)  # converged below this part of a voxel (1 mm in 25 cm) and this angle, radians
_GROUP = 16  # target points in a row, in Morton order, whose errors may depend on each other


@overload
def icp(
    source: Points | Tensor,
    target: Points | Tensor,
    *,
    init: Pose | None = ...,
    method: str = ...,
    max_distance: float | None = ...,
    voxel_size: float | None = ...,
    max_iterations: int = ...,
    robust: str | None = ...,
) -> Registration: ...
@overload
def icp(
    source: Sequence[Points | Tensor],
    target: Sequence[Points | Tensor],
    *,
    init: Pose | Sequence[Pose] | None = ...,
    method: str = ...,
    max_distance: float | None = ...,
    voxel_size: float | None = ...,
    max_iterations: int = ...,
    robust: str | None = ...,
) -> list[Registration]: ...
def icp(
    source: Any,
    target: Any,
    *,
    init: Any = None,
    method: str = "gicp",
    max_distance: float | None = None,
    voxel_size: float | None = None,
    max_iterations: int = 30,
    robust: str | None = None,
) -> Registration | list[Registration]:
    """Find the rigid motion that carries `source` onto `target`, from a guess near it.

    Near means that most points start within about `max_distance` of their place. An rmse of several voxels or a small
    overlap says that the guess was not. "gicp" is the most accurate; "vgicp" is faster and coarser.

    Minimises sum rho(e^T M e)/2 over matches e = q - T p by Gauss-Newton, matching anew at every step:
    "point" M = I (Besl and McKay 1992); "plane" M = n n^T (Chen and Medioni 1991); "gicp" M = (C_q + R C_p R^T)^-1 with
    C = diag(1e-3, 1, 1) along each point's normal (Segal et al. 2009, Eq. (2)); "vgicp" the same against the mean
    of each target voxel of edge `max_distance` (Koide et al. 2021, Eq. (13)). Both clouds are first thinned to one
    point a voxel and moved to their own centres, so coordinates far from the origin cost no accuracy (float64 input).

    Args:
        source, target: (N, 3) and (M, 3) tensors or Points, metres, float32 or float64 (the accuracy of the inner
            arithmetic), at least 3 points each; or lists of them, or ragged batches: pairs.
        init: guess of T_target_source, a Rigid or a (4, 4) matrix (for pairs, one or a list); None: the identity.
        method: "point", "plane", "gicp" or "vgicp".
        max_distance: matches farther are left out, metres. None: three times the median distance at the guess, but 4 to
            16 voxels.
        voxel_size: metres. None: a fortieth of the source's median distance from its median point.
        max_iterations: steps, at most; a step below 0.4 % of a voxel and 1 mrad is the last.
        robust: None, "huber", "cauchy" or "gm", its scale from the residuals' median at every step.
    Returns: Registration (a list of them for pairs), on the CPU in float64. Its covariance counts errors shared by
        neighbouring points as shared; motions that the surfaces leave open (along a corridor) are named in
        `degenerate_directions`, and the guess is kept there.
    Raises: ShapeError for input that is no cloud, has fewer than 3 points or NaN; GeomError where at the guess fewer
        than 3 points have a match; warns ConvergenceWarning where `max_iterations` came first.

    >>> cloud = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    >>> icp(cloud, cloud + 0.01, method="point").value.translation.round(decimals=3).tolist()
    [0.01, 0.01, 0.01]

    Guarantees: not differentiable; deterministic (any number of threads); 1 mm and 1 mrad of the optimum at 25 cm
    """
    with small_operations():
        sources, targets = _clouds(source, "source"), _clouds(target, "target")
    single = len(sources) == len(targets) == 1 and not isinstance(source, (list, tuple))
    if len(sources) != len(targets):
        raise ShapeError(f"source and target: expected as many of each, got {len(sources)} and {len(targets)}")
    check_choice(method, METHODS, "method")
    check_choice(robust, (None, *KERNELS), "robust")
    check_integer(max_iterations, "max_iterations")
    guesses = init if isinstance(init, (list, tuple)) else [init] * len(sources)
    if len(guesses) != len(sources):
        raise ShapeError(f"init: expected one pose or {len(sources)}, got {len(guesses)}")
    results = []
    for s, t, guess in zip(sources, targets, guesses, strict=True):
        check_same(s.positions, t.positions, "source and target")
        size = choose_voxel_size(s) if voxel_size is None else check_positive(voxel_size, "voxel_size")
        reach = None if max_distance is None else check_positive(max_distance, "max_distance")
        with small_operations():
            results.append(_register(s, t, _guess(guess), method, reach, size, max_iterations, robust))
    return results[0] if single else results


def _clouds(x: Any, name: str) -> list[Points]:
    many = x if isinstance(x, (list, tuple)) else [x]
    clouds = [as_points(each, name, minimum=3) for each in many]
    return [cloud[i] for cloud in clouds for i in range(len(cloud))]


def _guess(init: Any) -> Rigid:
    if init is None:
        return Rigid.identity(dtype=torch.float64)
    if isinstance(init, Rigid):
        pose = init.to(device="cpu", dtype=torch.float64)
        if pose.quat_wxyz.shape != (4,):
            raise ShapeError(f"init: expected one pose, got a batch of shape {tuple(pose.quat_wxyz.shape[:-1])}")
        length = torch.linalg.vector_norm(pose.quat_wxyz)
        if not bool(torch.isfinite(pose.translation).all()) or not 0.999 < float(length) < 1.001:
            raise ShapeError("init: expected a finite translation and a unit quaternion")
        return Rigid(pose.quat_wxyz / length, pose.translation)
    try:
        matrix = torch.as_tensor(init, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"init: expected a Rigid or a (4, 4) matrix, got {describe(init)}") from error
    if matrix.shape != (4, 4) or not bool(torch.isfinite(matrix).all()):
        raise ShapeError(f"init: expected a finite (4, 4) matrix, got {describe(matrix)}")
    return Rigid.from_matrix(check_rigid(matrix, "init"))


def _register(
    source: Points,
    target: Points,
    guess: Rigid,
    method: str,
    max_distance: float | None,
    voxel_size: float,
    max_iterations: int,
    robust: str | None,
) -> Registration:
    a = prepare(source, voxel_size, normals=method in ("gicp", "vgicp"), name="source")
    b = prepare(target, voxel_size, normals=True, name="target")
    shift = quaternion.rotate(guess.quat_wxyz, a.center) - b.center
    start = Rigid(guess.quat_wxyz, guess.translation + shift)  # between the two centred frames
    reach = _choose_distance(a, b, start, voxel_size) if max_distance is None else max_distance
    problem = Alignment(a, b, method, reach, robust)
    problem.find(problem.pose(start))
    if int((problem.found >= 0).sum()) < 3:
        raise GeomError(
            f"no overlap: at the initial pose fewer than 3 source points lie within {reach:.3g} m of the target; "
            "give a better init or a larger max_distance"
        )
    tolerance = torch.tensor([_STEP[0] * voxel_size] * 3 + [_STEP[1]] * 3, dtype=torch.float64)
    fit = least_squares(problem, start, max_iterations=max_iterations, tolerance=tolerance, damping=0)
    pose = problem.pose(fit.value)
    problem.find(pose)
    total = problem.sums(pose, scores=True)
    count = max(1, int(total.matches))
    rmse = (total.square / count).sqrt()
    matches = problem.found.cpu().long()
    matched = matches >= 0
    probe = max(float(rmse), 1e-4 * voxel_size) / 2
    steps = torch.tensor([probe] * 3 + [probe / a.radius] * 3, dtype=torch.float64)
    sure = pose_uncertainty(
        total.hessian,
        *problem.motions(pose, every=1 if problem.sliding else None),
        problem.curvature(fit.value, steps),
        total.scores[matched],
        matches[matched] // min(_GROUP, max(1, count // 500)),
        residual_variance=float(2 * total.cost) / max(1, count * (1 if method == "plane" else 3) - 6),
        radius=a.radius,
        frame=Rigid(torch.eye(4, dtype=torch.float64)[0], a.center).adjoint(),
    )
    back = fit.value.translation + b.center - quaternion.rotate(fit.value.quat_wxyz, a.center)
    return Registration(
        value=Rigid(fit.value.quat_wxyz, back),
        cost=total.cost,
        covariance=sure.covariance,
        converged=fit.converged,
        iterations=fit.iterations,
        information=sure.information,
        rmse=rmse,
        overlap=total.matches / len(a.points),
        degenerate_directions=sure.degenerate_directions,
        method=method,
        voxel_size=voxel_size,
        max_distance=reach,
    )


def _choose_distance(source: Cloud, target: Cloud, start: Rigid, voxel_size: float) -> float:
    moved = start.to(source.points.device, source.points.dtype).apply(source.points)
    distance = target.tree.knn(moved, 1, max_distance=16 * voxel_size).distance[:, 0]
    found = distance[torch.isfinite(distance)]
    middle = float(found.median()) if len(found) else 0.0
    return min(max(3 * middle, 4 * voxel_size), 16 * voxel_size)
