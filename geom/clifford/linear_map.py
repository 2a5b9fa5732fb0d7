"""Linear maps between multivectors that commute with Pin(p, q, r), as few matrix products over whole grades."""

import math
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_same, check_shape, describe
from geom.clifford.algebra import PGA, Algebra
from geom.clifford.planes import from_planes, to_planes
from geom.clifford.trilinear import Trilinear
from geom.errors import ShapeError
from geom.kernels.blades import Signature

__all__ = ["equivariant_linear", "linear_planes"]


def equivariant_linear(
    x: Float[Tensor, "*b c_in blades"], weight: Float[Tensor, "c_out c_in maps"], algebra: Algebra = PGA
) -> Float[Tensor, "*b c_out blades"]:
    """out_y = sum_xa weight_yxa B_a x_x over channels x and the maps B_a of `algebra.linear_basis()`.

    In the basis of GATr (Brehmer et al., 2023, Eq. (4)): weights 0 to n act on the grades, n + 1 to 2 n multiply grades
    0 to n - 1 by e0, each map of Frobenius norm 1. Blades of one grade, and those of it without e0, stand together, so
    that 2 n + 1 matrix products over 3 2^(n-1) pairs of blades replace 4^n: 24 for 256 in `PGA`.

    Args: x multivectors (..., C_in, B); weight (C_out, C_in, M), M = n + 1, or 2 n + 1 where r is 1, of x's dtype and
    device; algebra, with r 0 or 1.
    Raises: ShapeError.

    x and weight alone are saved for the gradients, which are of any order.

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 6e-7 f32 of the greatest entry
    """
    check_shape(x, (algebra.size,), "x")
    _check(x, weight, algebra, x.ndim - 2)
    planes = to_planes(x.reshape(-1, *x.shape[-2:]))
    return from_planes(linear_planes(planes, weight, algebra)).reshape(*x.shape[:-2], weight.shape[0], algebra.size)


def linear_planes(
    x: Float[Tensor, "blades n c_in"], weight: Float[Tensor, "c_out c_in maps"], algebra: Algebra = PGA
) -> Float[Tensor, "blades n c_out"]:
    """`equivariant_linear` of planes (B, N, C); x may be some channels of a wider tensor.

    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 6e-7 f32 of the greatest entry
    """
    if x.ndim != 3 or x.shape[0] != algebra.size:
        raise ShapeError(f"x: expected a tensor ({algebra.size}, N, C_in), got {describe(x)}")
    _check(x, weight, algebra, 2)
    return _LINEAR(0, x, weight, algebra.signature)


def _check(x: Tensor, weight: Tensor, algebra: Algebra, channels: int) -> None:
    if algebra.r > 1:
        raise ShapeError(f"algebra: expected at most one null vector, got {algebra}")
    maps = (1 + algebra.r) * algebra.dimension + 1
    if not isinstance(weight, Tensor) or weight.ndim != 3 or weight.shape[2] != maps:
        raise ShapeError(f"weight: expected a tensor (C_out, C_in, {maps}), got {describe(weight)}")
    if channels < 0 or x.shape[channels] != weight.shape[1]:
        raise ShapeError(f"x: expected {weight.shape[1]} channels, as weight has, got {describe(x)}")
    check_same(x, weight, "x and weight")


class _Layout(NamedTuple):
    """The number of components of each grade; of its blades without and with e0 in turn, 1 | e0 | e1.. | e01.. | ...;
    and the scale of each map."""

    grades: list[int]
    halves: list[int]
    scales: list[float]


@cache
def _layout(p: int, q: int, r: int) -> _Layout:
    n = p + q + r
    grades = [math.comb(n, k) for k in range(n + 1)]
    free = [math.comb(n - 1, k) for k in range(n if r else 0)]  # blades without e0, which e0 makes as many with it
    return _Layout(grades, [count for count in free for _ in (0, 1)], [count**-0.5 for count in (*grades, *free)])


def _rows(x: Tensor, layout: _Layout) -> tuple[list[Tensor], list[Tensor]]:
    """What each map reads and where it writes, as matrices of channels."""
    n, rows = x.shape[1], x.reshape(-1, x.shape[2])
    grades = rows.split([n * count for count in layout.grades])
    halves = rows.split([n * count for count in layout.halves]) if layout.halves else ()
    return [*grades, *halves[0::2]], [*grades, *halves[1::2]]


def run_linear(slot: int, x: Tensor, y: Tensor, signature: Signature = PGA.signature) -> Tensor:
    """A slot of the form below, on the memory of plain tensors.

    Guarantees: not differentiable; deterministic; 2e-15 f64, 6e-7 f32 of the greatest entry
    """
    from geom.kernels import clifford_linear

    if signature == PGA.signature and x.device.type == "cpu":
        if slot < 2:
            return clifford_linear.apply(x, y, slot == 1)
        if clifford_linear.can_differentiate(x, y):
            return clifford_linear.differentiate(x, y)
    layout = _layout(*signature)
    scale = y.new_tensor(layout.scales)
    if slot == 2:
        out = x.new_empty((len(layout.scales), x.shape[2], y.shape[2]))
        for own, grad, source in zip(out, _rows(x, layout)[1], _rows(y, layout)[0], strict=True):
            torch.mm(grad.T, source, out=own)
        return torch.mul(out.permute(1, 2, 0), scale, out=x.new_empty((*out.shape[1:], len(out))))
    out = x.new_empty((*x.shape[:2], y.shape[slot]))
    matrices = torch.mul(y.permute(2, 0, 1), scale[:, None, None], out=y.new_empty(len(scale), *y.shape[:2]))
    source, target = _rows(x, layout)[slot], _rows(out, layout)[1 - slot]
    for a, (rows, own, matrix) in enumerate(zip(source, target, matrices.mT if slot == 0 else matrices, strict=True)):
        if a < len(layout.grades):
            torch.mm(rows, matrix, out=own)
        else:
            own.addmm_(rows, matrix)
    return out


def _twin(slot: int, x: Tensor, y: Tensor, signature: Signature) -> Tensor:
    form = ("jni,oia->kno", "kno,oia->jni", "kno,jni->oia")[slot]
    return torch.einsum(f"akj,{form}", Algebra(*signature).linear_basis().to(x), x, y)


def _empty(slot: int, x: Tensor, y: Tensor, signature: Signature) -> Tensor:
    if slot == 2:
        return x.new_empty((x.shape[2], y.shape[2], len(_layout(*signature).scales)))
    return x.new_empty((*x.shape[:2], y.shape[slot]))


# sum_y g_y . (w x)_y of g (B, N, C_out), x (B, N, C_in) and w (C_out, C_in, M)
_LINEAR = Trilinear("clifford_linear", "int[] signature", run=run_linear, twin=_twin, empty=_empty)
