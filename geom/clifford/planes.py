"""The layout of networks: multivectors as planes (B, N, C), one for each component, of N items by C channels.

Channels of neighbours are neighbours in memory, and the components of a grade stand together: products run through
vectors of channels, and linear maps are matrix products of whole grades.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import describe
from geom.clifford.trilinear import run_kernels
from geom.errors import ShapeError

__all__ = ["from_planes", "to_planes"]


def to_planes(x: Float[Tensor, "n c blades"]) -> Float[Tensor, "blades n c"]:
    """Multivectors (N, C, B) as planes (B, N, C), contiguous.

    Guarantees: differentiable (any order); deterministic; exact
    """
    return _turn(x, False)


def from_planes(x: Float[Tensor, "blades n c"]) -> Float[Tensor, "n c blades"]:
    """Planes (B, N, C) as multivectors (N, C, B), contiguous.

    Guarantees: differentiable (any order); deterministic; exact
    """
    return _turn(x, True)


def _turn(x: Tensor, back: bool) -> Tensor:
    size = x.shape[0 if back else -1] if x.ndim else 0
    if x.ndim != 3 or size.bit_count() != 1:
        shape = "(B, N, C)" if back else "(N, C, B)"
        raise ShapeError(f"x: expected a tensor {shape}, B a power of 2, got {describe(x)}")
    if not run_kernels(x):
        return x.permute((1, 2, 0) if back else (2, 0, 1)).contiguous()
    if torch.is_grad_enabled() and x.requires_grad:
        return _Turn.apply(x, back)
    return _run_turn(x, back)


def _run_turn(x: Tensor, back: bool) -> Tensor:
    from geom.kernels import clifford

    return clifford.from_planes(x) if back else clifford.to_planes(x)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, back: bool) -> Tensor:
        ctx.back = back
        return _run_turn(x, back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _turn(grad, not ctx.back), None
