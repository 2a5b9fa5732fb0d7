"""Normalisation of multivectors and scalars."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from geom.clifford.linear import enter, leave
from geom.clifford.trilinear import run_kernels

__all__ = ["EquiLayerNorm"]


class EquiLayerNorm(nn.Module):
    """x / sqrt(max(mean over channels of <x, x>, floor)), and the layer norm of scalars; neither has parameters.

    <x, x> is that of `PGA.inner_product`, which counts no component with e0. Half precision is computed in float32.

    Args: floor, 0.01 in GATr (Brehmer et al., 2023, Section 3).
    The call: multivectors (..., C, 16), scalars (..., S) or None; the result is alike. Raises: ShapeError.

    >>> round(EquiLayerNorm()(torch.full((1, 16), 5.0))[0].square()[0, 0].item(), 6)
    0.125

    Guarantees: differentiable (0); deterministic; 4e-16 f64, 3e-7 f32 of the greatest entry
    """

    def __init__(self, *, floor: float = 0.01) -> None:
        super().__init__()
        self.floor = floor

    def forward(
        self, multivectors: Float[Tensor, "*b c 16"], scalars: Float[Tensor, "*b s"] | None = None
    ) -> tuple[Float[Tensor, "*b c 16"], Float[Tensor, "*b s"] | None]:
        x, s = self.planes(enter(multivectors), scalars)
        return leave(x), s

    def planes(self, x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer on planes (16, ..., C).

        Guarantees: differentiable (0); deterministic; 4e-16 f64, 3e-7 f32 of the greatest entry
        """
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        y = _Normalised.apply(y, self.floor) if run_kernels(y) else _normalise(y, self.floor)[0]
        if s is not None and s.shape[-1]:
            s = layer_norm(s.to(torch.promote_types(s.dtype, torch.float32)), s.shape[-1:]).to(s.dtype)
        return y.to(x.dtype), s


def _normalise(x: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    scalar, _, vector, _, bivector, _, trivector, _ = x.split((1, 1, 3, 3, 3, 3, 1, 1))
    square = (scalar.square() + trivector.square())[0] + vector.square().sum(0) + bivector.square().sum(0)
    scale = square.mean(-1, keepdim=True).clamp(min=floor).rsqrt()
    return x * scale, scale


class _Normalised(torch.autograd.Function):
    """`_normalise`, of which x and scales alone are saved, with first derivatives by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, floor: float) -> Tensor:
        y, scale = _normalise(x, floor)
        ctx.save_for_backward(x, scale)
        ctx.floor = floor
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(_normalise(x, ctx.floor)[0], x, grad, create_graph=True)[0], None
        slope = (grad * x).sum((0, -1))[..., None] * scale.pow(3) / -x.shape[-1]
        slope = torch.where(scale.pow(-2) > ctx.floor, slope, 0)
        out = grad * scale
        for part, own in zip(
            out.split((1, 1, 3, 3, 3, 3, 1, 1))[::2], x.split((1, 1, 3, 3, 3, 3, 1, 1))[::2], strict=True
        ):
            part.addcmul_(own, slope)
        return out, None
