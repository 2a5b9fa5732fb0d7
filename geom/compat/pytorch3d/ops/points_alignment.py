"""Alignment of padded batches of points with pytorch3d's names: rows, s X R + T = Y."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_same, describe
from geom.compat.pytorch3d.padding import Padded, inside, padded, ragged
from geom.errors import ShapeError
from geom.lie import so3
from geom.points import NeighborTree
from geom.roots import safe_sqrt

__all__ = ["ICPSolution", "SimilarityTransform", "corresponding_points_alignment", "iterative_closest_point"]

_log = logging.getLogger(__name__)


class SimilarityTransform(NamedTuple):
    """`R` (N, 3, 3), `T` (N, 3), `s` (N,) of s X R + T, X rows."""

    R: Tensor
    T: Tensor
    s: Tensor


class ICPSolution(NamedTuple):
    """`converged`; `rmse` (N,), None without a step; `Xt`, X moved; `RTs`, the motion; `t_history`, each step's."""

    converged: bool
    rmse: Tensor | None
    Xt: Any
    RTs: SimilarityTransform
    t_history: list[SimilarityTransform]


def corresponding_points_alignment(
    X: Float[Tensor, "n p 3"] | Any,
    Y: Float[Tensor, "n p 3"] | Any,
    weights: Float[Tensor, "n p"] | Sequence[Float[Tensor, " p_i"]] | None = None,
    estimate_scale: bool = False,
    allow_reflection: bool = False,
    eps: float = 1e-9,
) -> SimilarityTransform:
    """The similarity that moves X onto Y in the least squares sense, s X R + T = Y (Umeyama 1991, Eq. (40) to (42)).

    As in pytorch3d, weights enter the centroids as they are and the covariance squared: R and s minimise
    sum w^2 |s (x - x_mean) R - (y - y_mean)|^2 with centroids weighted by w. Weights of 0 and 1, masks, are not
    touched by this.

    Args: X, Y (N, P, 3), tensors or objects with `points_padded()` and `num_points_per_cloud()` (pytorch3d's
    Pointclouds), whose padding takes no part; weights (N, P) not negative, or a list of N tensors (P_i,);
    estimate_scale, else s is 1; allow_reflection, whether R may mirror where that fits better; eps, the least
    denominator of means and of the scale.
    Returns: SimilarityTransform(R, T, s). Where the points leave R open (a line, a point), one of the best, the nearest
    to the identity; pytorch3d's choice differs there.
    Raises: ShapeError for other shapes, dtypes or sizes, and for points in other than three dimensions.
    Warns: UserWarning where a cloud has fewer than four points.

    Guarantees: differentiable (also where R is open); deterministic; 8e-15 f64, 1e-6 f32
    """
    a, b = _clouds(X, "X"), _clouds(Y, "Y")
    x, y = a.points, b.points
    check_same(x, y, "X and Y")
    sizes, sizes_y = a.sizes().tolist(), b.sizes().tolist()
    if x.shape != y.shape or sizes != sizes_y:
        raise ShapeError(
            f"X, Y: expected clouds of equal sizes, got {describe(x)} and {describe(y)}, {sizes}, {sizes_y}"
        )
    if any(size < 4 for size in sizes):
        warnings.warn("a cloud has fewer than four points: its rotation may not be unique", stacklevel=2)
    w = inside(a).to(x) if weights is None else inside(a) * _weights(weights, x, sizes)
    return _align(x, y, w, estimate_scale, allow_reflection, eps)


def iterative_closest_point(
    X: Float[Tensor, "n p 3"] | Any,
    Y: Float[Tensor, "n q 3"] | Any,
    init_transform: SimilarityTransform | None = None,
    max_iterations: int = 100,
    relative_rmse_thr: float = 1e-6,
    estimate_scale: bool = False,
    allow_reflection: bool = False,
    verbose: bool = False,
) -> ICPSolution:
    """Iterative closest points: align X to its nearest ones in Y until the error stops falling (Besl & McKay 1992).

    Each step aligns the X given, not the X moved so far, as `corresponding_points_alignment` does. The batch stops as
    one, when the relative fall of the root mean square error is at most `relative_rmse_thr` in every cloud. Padding
    takes no part, ever; pytorch3d counts it where clouds of X and Y have the same sizes.

    For real scans use `geom.registration.icp`, which rejects outliers and gives an uncertainty.

    Args: X (N, P, 3), Y (N, Q, 3), as in `corresponding_points_alignment`; init_transform, where to start, (R, T, s)
    with batch N; verbose, whether to say the error of each step through `logging`, at level INFO.
    Returns: ICPSolution; `Xt` is a tensor, or X's own kind through `update_padded`. Without an iteration, the start.
    Raises: ShapeError for other shapes, dtypes, sizes or transforms, and for an empty cloud.

    Guarantees: differentiable (through the last alignment); deterministic; 8e-15 f64, 1e-6 f32
    """
    a, b = _clouds(X, "X"), _clouds(Y, "Y")
    x, y = a.points, b.points
    check_same(x, y, "X and Y")
    if len(x) != len(y):
        raise ShapeError(f"X, Y: expected equally many clouds, got {len(x)} and {len(y)}")
    if len(x) and min(int(a.sizes().min()), int(b.sizes().min())) < 1:
        raise ShapeError("X, Y: expected at least one point in each cloud, got an empty one")
    found = _start(init_transform, x)
    there = inside(a)
    w = there.to(x)
    target, offsets = ragged(b)
    tree = NeighborTree.build(target, offsets=offsets)
    moved, history, rmse, converged = _move(x, found), [], None, False
    for step in range(max_iterations):
        query, starts = ragged(a._replace(points=moved))
        nearest = tree.knn(query.detach(), 1, offsets=starts).index[:, 0]
        partner = torch.zeros_like(x).masked_scatter(there[..., None], target[nearest])
        found = _align(x, partner, w, estimate_scale, allow_reflection, 1e-9)
        moved = _move(x, found)
        history.append(found)
        last, rmse = rmse, safe_sqrt(_mean((moved - partner).square().sum(-1, keepdim=True), w, 1e-9)[:, 0, 0])
        fall = torch.ones_like(rmse) if last is None else (last - rmse) / torch.where(last == 0, 1.0, last)
        if verbose:
            _log.info("step %d: rmse %.3g, relative fall %.3g, on average", step, rmse.mean(), fall.mean())
        if bool((fall <= relative_rmse_thr).all()):
            converged = True
            break
    if verbose:
        _log.info("%s in %d steps", "converged" if converged else "not converged", len(history))
    made = moved if isinstance(X, Tensor) else X.update_padded(moved)
    return ICPSolution(converged, rmse, made, found, history)


def _align(x: Tensor, y: Tensor, w: Tensor, scaled: bool, mirrored: bool, eps: float) -> SimilarityTransform:
    middle_x, middle_y = _mean(x, w, eps), _mean(y, w, eps)
    a, b = w[..., None] * (x - middle_x), w[..., None] * (y - middle_y)
    total = w.sum(1).clamp(min=eps)
    covariance = a.mT @ b / total[:, None, None]
    if mirrored:  # the nearest orthogonal matrix of determinant -1 is minus the rotation nearest to minus the matrix
        sign = torch.where(torch.linalg.det(covariance.detach()) < 0, -1.0, 1.0).to(x)[:, None, None]
        R = sign * so3.project(sign * covariance)
    else:
        R = so3.project(covariance)
    s = torch.ones_like(total)
    if scaled:
        s = (R * covariance).sum((1, 2)) / (a.square().sum((1, 2)) / total).clamp(min=eps)
    return SimilarityTransform(R, (middle_y - s[:, None, None] * middle_x @ R)[:, 0], s)


def _move(x: Tensor, by: SimilarityTransform) -> Tensor:
    return by.s[:, None, None] * x @ by.R + by.T[:, None]


def _mean(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return (w[..., None] * x).sum(1, keepdim=True) / w.sum(1).clamp(min=eps)[:, None, None]


def _clouds(clouds: Any, name: str) -> Padded:
    batch = padded(clouds, name=name, half=True)
    if batch.points.shape[2] != 3:
        raise ShapeError(f"{name}: expected points in three dimensions, got {describe(batch.points)}")
    return batch


def _weights(weights: object, x: Tensor, sizes: list[int]) -> Tensor:
    if isinstance(weights, list | tuple):
        if [tuple(w.shape) for w in weights] != [(size,) for size in sizes]:
            raise ShapeError(f"weights: expected tensors of sizes {sizes}, got {[tuple(w.shape) for w in weights]}")
        weights = torch.nn.utils.rnn.pad_sequence(list(weights), batch_first=True)
        weights = torch.nn.functional.pad(weights, (0, x.shape[1] - weights.shape[1]))
    if not isinstance(weights, Tensor) or weights.shape != x.shape[:2]:
        raise ShapeError(f"weights: expected a tensor {tuple(x.shape[:2])} or a list, got {describe(weights)}")
    return weights.to(x)


def _start(given: object, x: Tensor) -> SimilarityTransform:
    n = len(x)
    if given is None:
        one = torch.eye(3, dtype=x.dtype, device=x.device).repeat(n, 1, 1)
        return SimilarityTransform(one, x.new_zeros(n, 3), x.new_ones(n))
    parts = tuple(given) if isinstance(given, tuple) else ()
    shapes = [tuple(p.shape) for p in parts if isinstance(p, Tensor)]
    if shapes != [(n, 3, 3), (n, 3), (n,)]:
        raise ShapeError(f"init_transform: expected (R, T, s) of shapes ({n}, 3, 3), ({n}, 3), ({n},), got {shapes}")
    return SimilarityTransform(*(p.to(x) for p in parts))
