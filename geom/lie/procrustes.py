"""Weighted alignment of point sets by least squares: the rigid motion, or the similarity, between matched points."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geom.checks import check_same, describe, readable
from geom.errors import ShapeError
from geom.lie._polar import OPEN, nearest_rotation
from geom.roots import safe_sqrt

__all__ = ["Procrustes", "kabsch", "umeyama"]


class Procrustes(NamedTuple):
    """y = scale * rotation x + translation, how well it fits, and whether the points leave its rotation open.

    `rotation` (..., 3, 3); `translation` (..., 3); `scale` (...); `rmse` (...), the weighted root mean square of the
    distances, gradient 0 where it is 0; `gap` (...), (s2 + d s3)/s1 of the covariance's singular values, without
    gradient: a relative error e of the covariance turns the rotation by up to about e/gap; `ambiguous` (...), where
    gap is below 2e-6 (float32), 4e-15 (float64).
    """

    rotation: Float[Tensor, "*b 3 3"]
    translation: Float[Tensor, "*b 3"]
    scale: Float[Tensor, "*b"]
    rmse: Float[Tensor, "*b"]
    gap: Float[Tensor, "*b"]
    ambiguous: Bool[Tensor, "*b"]


def kabsch(
    source: Float[Tensor, "*a n 3"],
    target: Float[Tensor, "*b n 3"],
    *,
    weights: Float[Tensor, "*c n"] | None = None,
) -> Procrustes:
    """The rigid motion that minimises sum_i w_i |R x_i + t - y_i|^2 (Kabsch 1976; Umeyama 1991, Eqs. (40) and (41)).

    With weighted means m_x, m_y and C = sum_i w_i (y_i - m_y)(x_i - m_x)^T = U S V^T: R = U diag(1, 1, det(U V^T)) V^T,
    t = m_y - R m_x. R is always a proper rotation, for mirrored points too.

    Where several rotations fit equally well (collinear points, two, one or coincident ones, no weight, a mirror image
    with s2 = s3) the answer is the one nearest to the identity, and `ambiguous` says so. Without any weight the first
    point goes to its target. Gradients are exact where the rotation is unique, equal singular values and coplanar
    points included; where it is ambiguous, the open rotation takes no part in them.

    Args:
        source, target: matched points (..., N, 3), N at least 1, one unit; batches broadcast.
        weights: (..., N), 0 or more, any scale; by default all 1.
    Returns: `Procrustes` with scale 1.
    Raises: ShapeError for other shapes, dtypes that differ, and a negative weight.

    >>> turned = torch.tensor([[0.0, 0, 0], [0, 1, 0], [-2, 0, 0], [0, 0, 1]])
    >>> fit = kabsch(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 1]]), turned)
    >>> fit.rotation.round(decimals=5).abs().tolist(), bool(fit.ambiguous)
    ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], False)

    Guarantees: differentiable (any rank); deterministic; 4e-15 f64, 2e-6 f32 divided by the gap
    """
    return _align(source, target, weights, similar=False)


def umeyama(
    source: Float[Tensor, "*a n 3"],
    target: Float[Tensor, "*b n 3"],
    *,
    weights: Float[Tensor, "*c n"] | None = None,
) -> Procrustes:
    """The similarity that minimises sum_i w_i |s R x_i + t - y_i|^2 (Umeyama 1991, Eqs. (40) to (42)).

    `kabsch` with s = tr(R^T C)/sum_i w_i |x_i - m_x|^2, 0 or more; 1 for source points that coincide.

    Args:
        source, target: matched points (..., N, 3), N at least 1; batches broadcast.
        weights: (..., N), 0 or more, any scale; by default all 1.
    Returns: `Procrustes`.
    Raises: ShapeError for other shapes, dtypes that differ, and a negative weight.

    Guarantees: differentiable (any rank); deterministic; 4e-15 f64, 2e-6 f32 divided by the gap
    """
    return _align(source, target, weights, similar=True)


def _align(source: Tensor, target: Tensor, weights: Tensor | None, *, similar: bool) -> Procrustes:
    weights = _checked(source, target, weights)
    total = weights.sum(-1, keepdim=True)
    share = (weights / torch.where(total > 0, total, torch.ones_like(total)))[..., None]
    # from the heaviest point, so that points that coincide are at 0 exactly
    heaviest = weights.argmax(-1)[..., None, None]
    (x, x_mean, x_size), (y, y_mean, y_size) = (_centre(points, share, heaviest) for points in (source, target))
    covariance = (share * y).mT @ x
    rotation, gap = nearest_rotation(covariance)
    scale = torch.ones_like(gap)
    turned = x @ rotation.mT
    if similar:
        square = (share * x.square()).sum((-2, -1))
        spread = square > 0
        ratio = (rotation * covariance).sum((-2, -1)) / torch.where(spread, square, scale)
        scale = torch.where(spread, (y_size / x_size)[..., 0, 0] * ratio, scale)
    error = scale[..., None, None] * x_size * turned - y_size * y
    square = (share * error.square()).sum((-2, -1))
    rmse = safe_sqrt(square)
    moved = scale[..., None] * (rotation @ x_mean.mT)[..., 0]
    return Procrustes(rotation, y_mean[..., 0, :] - moved, scale, rmse, gap, gap < OPEN[gap.dtype])


def _centre(points: Tensor, share: Tensor, heaviest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points from their mean over their size; mean (..., 1, 3); size (..., 1, 1), 1 for points that coincide."""
    shape = torch.broadcast_shapes(points.shape[:-2], heaviest.shape[:-2])
    points, heaviest = points.expand(*shape, *points.shape[-2:]), heaviest.expand(*shape, 1, 3)
    origin = torch.take_along_dim(points, heaviest, -2)
    apart = points - origin
    offset = (share * apart).sum(-2, keepdim=True)
    apart = apart - offset
    # R does not depend on the size; a weight of 0 does not count
    size = (apart.detach().abs() * (share.detach() > 0)).amax((-2, -1), keepdim=True)
    size = torch.where(size > 0, size, torch.ones_like(size))
    return apart / size, origin + offset, size


def _checked(source: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """The weights, 1 by default, after every check."""
    for x, name in ((source, "source"), (target, "target")):
        if not isinstance(x, Tensor) or x.dtype not in OPEN or x.ndim < 2 or x.shape[-1] != 3 or not x.shape[-2]:
            raise ShapeError(
                f"{name}: expected a float32 or float64 tensor (..., N, 3), N at least 1, got {describe(x)}"
            )
    check_same(source, target, "source and target")
    count = source.shape[-2]
    if target.shape[-2] != count:
        raise ShapeError(f"target: expected one point for each of the {count} of source, got {target.shape[-2]}")
    if weights is None:
        return torch.ones(count, dtype=source.dtype, device=source.device)
    if not isinstance(weights, Tensor) or weights.ndim < 1 or weights.shape[-1] != count:
        raise ShapeError(f"weights: expected a tensor (..., {count}), got {describe(weights)}")
    check_same(source, weights, "source and weights")
    if readable(weights) and bool((weights < 0).any()):
        raise ShapeError(f"weights: expected no negative weight, got {float(weights.min()):g}")
    return weights
