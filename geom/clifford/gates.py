"""Nonlinearities of multivectors: gates by their scalar component, and dropout of whole grades."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from geom.checks import check_choice
from geom.clifford.algebra import PGA, Algebra
from geom.clifford.linear import enter, leave
from geom.clifford.trilinear import run_kernels
from geom.errors import ShapeError

__all__ = ["GATES", "GatedNonlinearity", "GradeDropout", "gate_by_scalar"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")


def _gelu_divided(x: Tensor) -> Tensor:
    return torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x.pow(3)))


# by name: the function of the scalar component that multiplies a multivector, and that of scalars
GATES = {
    "gelu": (_gelu_tanh, gelu),
    "relu": (relu, relu),
    "sigmoid": (torch.sigmoid, torch.sigmoid),
    "gelu_divided": (_gelu_divided, gelu),
}


def gate_by_scalar(
    multivectors: Float[Tensor, "*b 16"], gates: Float[Tensor, "*b 1"], *, activation: str = "gelu"
) -> Float[Tensor, "*b 16"]:
    """activation(gate) x, for gates (..., 1), which are invariants such as the scalar component of x.

    Args: activation "gelu" (its tanh form), "relu", "sigmoid", or "gelu_divided", gelu(g) / g.
    Raises: ShapeError.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    check_choice(activation, GATES, "activation")
    return GATES[activation][0](gates) * multivectors


class GatedNonlinearity(nn.Module):
    """`gate_by_scalar` with the scalar component of each multivector, and the activation of scalars.

    That of scalars is the exact GELU, whereas gates take the tanh form of it.

    Args: activation, as of `gate_by_scalar`; algebra, of the B blades.
    The call: multivectors (..., C, B), scalars (..., S) or None; the result is alike. Raises: ShapeError.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """

    def __init__(self, activation: str = "gelu", *, algebra: Algebra = PGA) -> None:
        super().__init__()
        check_choice(activation, GATES, "activation")
        self.activation, self.algebra = activation, algebra

    def forward(
        self, multivectors: Float[Tensor, "*b c blades"], scalars: Float[Tensor, "*b s"] | None = None
    ) -> tuple[Float[Tensor, "*b c blades"], Float[Tensor, "*b s"] | None]:
        x, s = self.planes(enter(multivectors, algebra=self.algebra), scalars)
        return leave(x), s

    def planes(self, x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer on planes (B, ..., C).

        Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
        """
        gate, scalar = GATES[self.activation]
        y = _Gated.apply(x, gate) if len(x) == PGA.size and x.ndim > 2 and run_kernels(x) else gate(x[0]) * x
        return y, None if s is None else scalar(s)

    def extra_repr(self) -> str:
        return self.activation


class _Gated(torch.autograd.Function):
    """gate(x_0) x, of which x alone is saved, with first derivatives by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gate = gate
        return gate(x[0]) * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        from geom.kernels.clifford_layers import differentiate_gate

        (x,) = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            if again or not run_kernels(x, grad):
                x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                return torch.autograd.grad(ctx.gate(x[0]) * x, x, grad, create_graph=again)[0], None
            first = x[0].detach().requires_grad_()
            gate = ctx.gate(first)
            flat = x.detach().flatten(1, -2), gate.detach().flatten(0, -2), grad.flatten(1, -2)
            out, dots = differentiate_gate(*flat)
            (slope,) = torch.autograd.grad(gate, first, dots.view_as(gate))
        out = out.view_as(x)
        out[0] += slope
        return out, None


class GradeDropout(nn.Module):
    """In training, sets each grade of each channel to 0 with a probability p, all its components at once, and divides
    the rest by 1 - p; of scalars, ordinary dropout.

    Args: p, from 0 to below 1; algebra, of the B blades; generator, or torch's own.
    The call: multivectors (..., C, B), scalars (..., S) or None; the result is alike. Raises: ShapeError.

    Guarantees: differentiable; deterministic for one generator; exact but for the factor
    """

    def __init__(self, p: float, *, algebra: Algebra = PGA, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ShapeError(f"p: expected a number from 0 to below 1, got {p}")
        self.p, self.algebra, self.generator = p, algebra, generator

    def forward(
        self, multivectors: Float[Tensor, "*b c blades"], scalars: Float[Tensor, "*b s"] | None = None
    ) -> tuple[Float[Tensor, "*b c blades"], Float[Tensor, "*b s"] | None]:
        x, s = self.planes(enter(multivectors, algebra=self.algebra), scalars)
        return leave(x), s

    def planes(self, x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer on planes (B, ..., C).

        Guarantees: differentiable; deterministic for one generator; exact but for the factor
        """
        if not self.training or not self.p:
            return x, s
        grades = torch.tensor(self.algebra.grades, device=x.device)
        return x * self._kept(x.new_empty(self.algebra.dimension + 1, *x.shape[1:]))[grades], (
            s if s is None else s * self._kept(torch.empty_like(s))
        )

    def _kept(self, like: Tensor) -> Tensor:
        return like.bernoulli_(1 - self.p, generator=self.generator) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"{self.p}"
