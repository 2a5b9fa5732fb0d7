"""The layout of networks: multivectors as planes (B, ..., C), one for each component, of items by C channels.

Channels of neighbours are neighbours in memory, and the components of a grade stand together: products run through
vectors of channels, and linear maps are matrix products of whole grades.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import describe
from geom.clifford.trilinear import run_kernels
from geom.errors import ShapeError

__all__ = ["from_planes", "to_planes"]


def to_planes(x: Float[Tensor, "*n c blades"]) -> Float[Tensor, "blades *n c"]:
    """Multivectors (..., C, B) as planes (B, ..., C), contiguous.

    Guarantees: differentiable (any order); deterministic; exact
    """
    return _turn(x, False)


def from_planes(x: Float[Tensor, "blades *n c"]) -> Float[Tensor, "*n c blades"]:
    """Planes (B, ..., C) as multivectors (..., C, B), contiguous.

    Guarantees: differentiable (any order); deterministic; exact
    """
    return _turn(x, True)


def _turn(x: Tensor, back: bool) -> Tensor:
    size = x.shape[0 if back else -1] if x.ndim else 0
    if x.ndim < 2 or size.bit_count() != 1:
        shape = "(B, ..., C)" if back else "(..., C, B)"
        raise ShapeError(f"x: expected a tensor {shape}, B a power of 2, got {describe(x)}")
    if not run_kernels(x):
        return x.movedim(0, -1).contiguous() if back else x.movedim(-1, 0).contiguous()
    if torch.is_grad_enabled() and x.requires_grad:
        return _Turn.apply(x, back)
    return _run_turn(x, back)


def _run_turn(x: Tensor, back: bool) -> Tensor:
    from geom.kernels import clifford

    if back:
        return clifford.from_planes(x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])).view(*x.shape[1:], len(x))
    return clifford.to_planes(x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])).view(x.shape[-1], *x.shape[:-1])


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, back: bool) -> Tensor:
        ctx.back = back
        return _run_turn(x, back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _turn(grad, not ctx.back), None
