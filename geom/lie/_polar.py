"""The nearest rotation to a 3x3 matrix, with the derivative that stays exact where singular values meet."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geom.kernels.pointwise import fused

__all__ = ["OPEN", "nearest_rotation"]

OPEN = {torch.float32: 2e-6, torch.float64: 4e-15}  # 16 eps: below this gap rounding decides the rotation


def nearest_rotation(matrix: Float[Tensor, "*b 3 3"]) -> tuple[Float[Tensor, "*b 3 3"], Float[Tensor, "*b"]]:
    """The rotation R that maximises tr(R^T M), so is nearest to M, and how firmly M holds it.

    M = U S V^T, R = U diag(1, 1, d) V^T with d = det(U V^T), gap = (s2 + d s3)/s1 in [0, 2]; 2 for a scaled rotation,
    0 where M leaves a rotation open: rank below 2, or a reflection with s2 = s3. A gap below `OPEN` counts as 0. There
    R is the maximiser nearest to the identity (the identity for M = 0; of M = -s Q with a rotation Q, where maximisers
    form a plane's worth, one of them).

    R^T dR = hat(w) with (tr(P) I - P) w = vee(R^T dM - dM^T R), P = R^T M: only the sums s_i + s_j stand in a
    denominator, equal singular values are as good as any. An open rotation takes no part: w is the least one that fits.
    Derivatives are exact to third order where gap > 0, and finite everywhere.

    Args: matrix (..., 3, 3), any; float32 or float64.
    Returns: rotation (..., 3, 3), gap (...) without gradient.

    Guarantees: differentiable (any rank); deterministic; 2e-15 f64, 1e-6 f32 divided by the gap
    """
    polar = _Polar if torch.compiler.is_compiling() else _PolarForward
    rotation, gap, _, _ = polar.apply(matrix)
    return rotation, gap


class _Polar(torch.autograd.Function):
    """`decompose`, with the derivative of R."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return decompose(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        rotation, *rest = output
        ctx.mark_non_differentiable(*rest)
        ctx.save_for_backward(*inputs, rotation, *rest[1:])
        ctx.save_for_forward(*inputs, rotation, *rest[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _derivative(grads[0], *ctx.saved_tensors)


class _PolarForward(_Polar):
    """The same with forward mode, which torch.compile does not trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, None, None, None]:
        return _derivative(tangents[0], *ctx.saved_tensors), None, None, None


@fused("rotations.polar", [(3, 3)], [(3, 3), (), (3, 3), (3,)])
def decompose(
    matrix: Float[Tensor, "*b 3 3"],
) -> tuple[Float[Tensor, "*b 3 3"], Float[Tensor, "*b"], Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3"]]:
    """R and its gap, the right singular vectors V as rows, and K's eigenvalues in that basis, K = tr(P) I - P.

    One-sided Jacobi (Hestenes 1958), the column of larger norm first: five sweeps converge for every kind of matrix
    tried, graded and rank-deficient ones included.
    """
    m = matrix.reshape(-1, 3, 3).permute(1, 2, 0).contiguous()  # the batch last: operations run along it
    size = m.abs().amax((0, 1))
    m = m / torch.where(size > 0, size, torch.ones_like(size))
    columns, least = list(m.unbind(1)), torch.finfo(m.dtype).tiny ** 0.5
    for p, q in 5 * ((0, 1), (0, 2), (1, 2)):
        a, b = columns[p], columns[q]
        twice, difference = 2 * _dot(a, b), _dot(a - b, a + b)
        r = (difference.abs() + (difference.square() + twice.square()).sqrt()).clamp(min=least)
        ordered = difference >= 0
        x, y = torch.where(ordered, r, twice), torch.where(ordered, twice, r)
        scale = torch.rsqrt(x.square() + y.square())
        cos, sin = x * scale, y * scale
        columns[p], columns[q] = cos * a + sin * b, cos * b - sin * a
    frame = _frame(columns[0], columns[1])
    other = _frame((m * frame[0][:, None]).sum(0), (m * frame[1][:, None]).sum(0))
    left = torch.stack(frame, 1).permute(2, 0, 1).reshape(matrix.shape)
    right = torch.stack(other).permute(2, 0, 1).reshape(matrix.shape)
    s = ((left.mT @ matrix) * right).sum(-1)  # the frames are right-handed: s3 has the sign d
    stiffness = (s.sum(-1, keepdim=True) - s).clamp(min=0)
    zero = s[..., 0] <= 0
    gap = stiffness[..., 0] / torch.where(zero, torch.ones_like(zero, dtype=s.dtype), s[..., 0])
    rotation = _least_turn(left @ right, right[..., 0, :], gap < OPEN[matrix.dtype])
    one = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    rotation = rotation + rotation @ (one - rotation.mT @ rotation) / 2  # orthogonal to the last digit
    return torch.where(zero[..., None, None], one, rotation), gap, right, stiffness


def _least_turn(rotation: Tensor, axis: Tensor, open_: Tensor) -> Tensor:
    """R exp(phi hat(axis)) where that is open, with the phi that brings it nearest to the identity; else R."""
    axis = axis[..., None, :].expand_as(rotation)
    once = torch.linalg.cross(rotation, axis)
    twice = torch.linalg.cross(once, axis)
    # the trace is const + sin(phi) tr(once) - cos(phi) tr(twice)
    angle = torch.atan2(_trace(once), -_trace(twice)) * open_
    return rotation + angle.sin()[..., None, None] * once + (1 - angle.cos())[..., None, None] * twice


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


def _frame(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The right-handed orthonormal frame on a, then b (3, n); any axes where they leave them open."""
    first = _unit(a, torch.eye(3, dtype=a.dtype, device=a.device)[:, :1], 0)
    x, y, z = first.unbind(0)
    zero = torch.zeros_like(x)
    spare = torch.where(x.square() < 0.5, torch.stack([zero, z, -y]), torch.stack([-z, zero, x]))
    for least in (0, 0.5):  # twice is enough: what is left of b may be rounding along a
        b = _unit(b - _dot(first, b) * first, spare, least)
    return first, b, torch.linalg.cross(first, b, dim=0)


def _unit(x: Tensor, spare: Tensor, least: float) -> Tensor:
    x = torch.where(_dot(x, x) > least, x, spare)
    return x / _dot(x, x).sqrt()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _derivative(change: Tensor, matrix: Tensor, rotation: Tensor, right: Tensor, stiffness: Tensor) -> Tensor:
    """R hat(w), K w = vee(R^T X - X^T R): the derivative along X, and, being self-adjoint, the adjoint applied to X."""
    # 1/K^2, which second derivatives hold, must not overflow
    held = stiffness > (OPEN[matrix.dtype] * stiffness[..., 2:]).clamp(min=torch.finfo(matrix.dtype).tiny ** 0.5)
    inverse = held / torch.where(held, stiffness, torch.ones_like(stiffness))

    def solve(x: Tensor) -> Tensor:
        return ((right @ x[..., None] * inverse[..., None]).mT @ right)[..., 0, :]

    # vee(R^T X - X^T R) is the sum over rows x cross r, and the rows of R hat(w) are r cross w
    moment = torch.linalg.cross(change, rotation).sum(-2)
    trace = (matrix * rotation).sum((-2, -1))[..., None]
    turn = solve(moment)
    # each brings no more than rounding to the value, and one more exact order of its derivatives
    for _ in range(2):
        stiff = trace * turn - (rotation.mT @ (matrix @ turn[..., None]))[..., 0]
        turn = turn + solve(moment - stiff)
    return torch.linalg.cross(rotation, turn[..., None, :].expand_as(rotation))
