"""Derivatives of forms that are linear in each of three arguments.

The derivatives of F(a, b, c) in a, in b and in c, its slots 0, 1 and 2, are functions of the other two arguments. Each
is linear in both, and its own derivatives are the other two slots: the three are closed under differentiation.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from geom.checks import FLOATS
from geom.kernels.pointwise import readable

__all__ = ["Trilinear", "run_kernels"]


class Trilinear:
    """A family of forms. Calling it gives a slot at the two other arguments x and y in their order.

    Args:
        name, schema: of the torch op that runs under torch.compile, and of the arguments `kind` that name one form.
        run: function (slot, x, y, *kind) on the memory of plain tensors.
        twin: the same in differentiable torch operations, for torch.func, forward-mode differentiation, other dtypes.
        empty: a tensor of the shape of the result.
        both: function (x, y, grad, *kind) for both derivatives of slot 0 at once.

    The call is differentiable to any order, and saves x and y alone.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        run: Callable[..., Tensor],
        twin: Callable[..., Tensor],
        empty: Callable[..., Tensor],
        both: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.run, self.twin, self.both = run, twin, both
        self.op: Any = torch.library.custom_op(
            f"geom::{name}",
            lambda x, y, slot, *kind: run(slot, x, y, *map(_hashable, kind)),
            mutates_args=(),
            schema=f"(Tensor x, Tensor y, int slot, {schema}) -> Tensor",
        )
        self.op.register_fake(lambda x, y, slot, *kind: empty(slot, x, y, *map(_hashable, kind)))
        self.op.register_autograd(self._backward, setup_context=_keep)

    def __call__(self, slot: int, x: Tensor, y: Tensor, *kind: Any) -> Tensor:
        if torch.compiler.is_compiling() and x.dtype == y.dtype and x.dtype in FLOATS:
            return self.op(x, y, slot, *kind)
        if not run_kernels(x, y):
            return self.twin(slot, x, y, *kind)
        if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
            return _Derivative.apply(x, y, self, slot, *kind)
        return self.run(slot, x, y, *kind)

    def _backward(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        grads = (
            self.op(*pair, slot, *ctx.kind) if want else None
            for (slot, pair), want in zip(_others(ctx.slot, x, y, grad), ctx.needs_input_grad, strict=False)
        )
        return *grads, None, *(None for _ in ctx.kind)


def run_kernels(*operands: Tensor) -> bool:
    """Whether these are plain float32 or float64 tensors, neither traced, nor compiled, nor transformed."""
    return not torch.compiler.is_compiling() and readable(operands)


def _hashable(x: Any) -> Any:
    """Tuples for the lists that torch makes of them."""
    return tuple(x) if isinstance(x, list) else x


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, ctx.slot, *ctx.kind = inputs
    ctx.save_for_backward(x, y)


def _others(slot: int, x: Tensor, y: Tensor, grad: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """The slots that are the derivatives of this one in x and in y, and their arguments."""
    arguments = [x, y]
    arguments.insert(slot, grad)
    for other in range(3):
        if other != slot:
            yield other, [z for n, z in enumerate(arguments) if n != other]


class _Derivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, form: Trilinear, slot: int, *kind: Any) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.form, ctx.slot, ctx.kind = form, slot, kind
        return form.run(slot, x, y, *kind)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x, y), form, wanted = ctx.saved_tensors, ctx.form, ctx.needs_input_grad[:2]
        rest = (None, None, *(None for _ in ctx.kind))
        if form.both and ctx.slot == 0 and all(wanted) and not torch.is_grad_enabled() and run_kernels(grad, x, y):
            return *form.both(x, y, grad, *ctx.kind), *rest
        others = zip(_others(ctx.slot, x, y, grad), wanted, strict=True)
        return *(form(slot, *pair, *ctx.kind) if want else None for (slot, pair), want in others), *rest
