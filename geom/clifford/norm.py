"""Normalisation of multivectors and scalars."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from geom.clifford.algebra import PGA, Algebra
from geom.clifford.linear import enter, leave
from geom.clifford.trilinear import run_kernels

__all__ = ["EquiLayerNorm"]


class EquiLayerNorm(nn.Module):
    """x / sqrt(max(mean over channels of <x, x>, floor)), and the layer norm of scalars; neither has parameters.

    <x, x> is that of `algebra.inner_product`, which in `PGA` counts no component with e0. Where squares have both
    signs, as in `CGA` and `STA`, it is the sum over grades of |<x_k, x_k>| (Spinner et al., 2024): where x is null in
    each grade, as points of `CGA` are, that is 0, and the floor counts. Half precision is computed in float32.

    Args: algebra, of the B blades; floor, 0.01 in GATr (Brehmer et al., 2023, Section 3).
    The call: multivectors (..., C, B), scalars (..., S) or None; the result is alike. Raises: ShapeError.

    >>> round(EquiLayerNorm()(torch.full((1, 16), 5.0))[0].square()[0, 0].item(), 6)
    0.125

    Guarantees: differentiable (0); deterministic; 4e-16 f64, 3e-7 f32 of the greatest entry
    """

    def __init__(self, *, algebra: Algebra = PGA, floor: float = 0.01) -> None:
        super().__init__()
        self.algebra, self.floor = algebra, floor

    def forward(
        self, multivectors: Float[Tensor, "*b c blades"], scalars: Float[Tensor, "*b s"] | None = None
    ) -> tuple[Float[Tensor, "*b c blades"], Float[Tensor, "*b s"] | None]:
        x, s = self.planes(enter(multivectors, algebra=self.algebra), scalars)
        return leave(x), s

    def planes(self, x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer on planes (B, ..., C).

        Guarantees: differentiable (0); deterministic; 4e-16 f64, 3e-7 f32 of the greatest entry
        """
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.algebra == PGA and y.ndim > 2 and run_kernels(y):
            y = _Normalised.apply(y, self.floor)
        else:
            y = _normalise(y, self.floor, self.algebra)
        if s is not None and s.shape[-1]:
            s = layer_norm(s.to(torch.promote_types(s.dtype, torch.float32)), s.shape[-1:]).to(s.dtype)
        return y.to(x.dtype), s


def _normalise(x: Tensor, floor: float, algebra: Algebra = PGA) -> Tensor:
    """The twin of the kernel."""
    kinds = list(zip(algebra.grades, algebra.squares, strict=True))
    mixed = [k for k in range(algebra.dimension + 1) if (k, 1) in kinds and (k, -1) in kinds]
    own = x.new_tensor([float(abs(square)) * (grade not in mixed) for grade, square in kinds])
    squares = torch.tensordot(own, x.square(), 1)
    if mixed:
        rows = x.new_tensor([[float(square * (grade == k)) for grade, square in kinds] for k in mixed])
        squares = squares + torch.tensordot(rows, x.square(), 1).abs().sum(0)
    return x * squares.mean(-1, keepdim=True).clamp(min=floor).rsqrt()


class _Normalised(torch.autograd.Function):
    """`_normalise`, of which x and scales alone are saved, with first derivatives by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, floor: float) -> Tensor:
        from geom.kernels.clifford_layers import norm

        y, scales = norm(x.flatten(1, -2), floor)
        ctx.save_for_backward(x, scales)
        ctx.floor = floor
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        from geom.kernels.clifford_layers import differentiate_norm

        x, scales = ctx.saved_tensors
        if torch.is_grad_enabled() or not run_kernels(x, grad):
            with torch.enable_grad():
                y = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                out = _normalise(y, ctx.floor)
                return torch.autograd.grad(out, y, grad, create_graph=torch.is_grad_enabled())[0], None
        return differentiate_norm(x.flatten(1, -2), scales, grad.flatten(1, -2)).view(x.shape), None
