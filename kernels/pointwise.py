"""Fused functions: a torch formula over small arrays, batch by batch, with one kernel that does all of it at once.

`@fused("module.name", ...)` keeps the formula below it as the readable twin, and runs the kernel `name` of
`geom.kernels.module` in its place on plain float32 and float64 tensors: one pass over memory, and in the backward pass
the kernel `name_adjoint` where there is one. The twin itself runs under torch.compile, which fuses it on its own, under
`torch.func`, forward-mode differentiation and tracing, on other devices, and for derivatives of derivatives.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from geom.checks import FLOATS, check_shape
from geom.errors import ShapeError

__all__ = ["chosen", "fused", "readable"]

F = TypeVar("F", bound=Callable[..., Any])
Shape = tuple[int, ...]
_PLAIN = (Tensor, torch.nn.Parameter)
_HALF = {torch.float16, torch.bfloat16}


def fused(name: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Callable[[F], F]:
    """Run the kernel "module.name" for the torch formula below, which stays as `__wrapped__`.

    `inputs` and `outputs`: what each operand and result holds for one element, e.g. (4,) or (3, 3). Batches before it
    broadcast. float16 and bfloat16 operands are computed in float32 and rounded once.
    """
    module, _, key = name.partition(".")

    def decorate(twin: F) -> F:
        parameters = inspect.signature(twin)

        @functools.cache
        def formula(name: str) -> Any:
            """The kernel, or None; Warp is imported by the first call."""
            return import_module(f"geom.kernels.{module}").FORMULAS.get(name)

        class Fused(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *operands: Tensor) -> Any:
                ctx.save_for_backward(*operands)
                return formula(key).run(operands, inputs, outputs)

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
                operands, needed, again = ctx.saved_tensors, ctx.needs_input_grad, torch.is_grad_enabled()
                adjoint = formula(f"{key}_adjoint")
                if not again and adjoint is not None and readable(grads):
                    found = adjoint.run((*operands, *grads), (*inputs, *outputs), inputs)
                    found = found if isinstance(found, tuple) else (found,)
                    pairs = zip(found, operands, needed, strict=True)
                    return tuple(g.sum_to_size(x.shape) if wanted else None for g, x, wanted in pairs)
                with torch.enable_grad():  # the twin's own derivative, of any order
                    aliases = [x.view_as(x) for x in operands]
                    result = twin(*aliases)
                    wanted = [x for x, want in zip(aliases, needed, strict=True) if want]
                    found = iter(torch.autograd.grad(result, wanted, grads, create_graph=again))
                return tuple(next(found) if want else None for want in needed)

        @functools.wraps(twin)
        def call(*operands: Any, **named: Any) -> Any:
            if torch.compiler.is_compiling():
                return twin(*operands, **named)
            if named:
                operands = parameters.bind(*operands, **named).args
            for x, own, parameter in zip(operands, inputs, parameters.parameters, strict=False):
                check_shape(x, own, parameter)
            if len(operands) != len(inputs) or not readable(operands):
                kinds = {x.dtype for x in operands}
                if len(kinds) > 1:
                    names = ", ".join(parameters.parameters)
                    raise ShapeError(f"{names}: expected one dtype, got {', '.join(sorted(map(str, kinds)))}")
                if kinds and kinds <= _HALF:
                    result = call(*(x.float() for x in operands))
                    kind = operands[0].dtype
                    return tuple(x.to(kind) for x in result) if isinstance(result, tuple) else result.to(kind)
                return twin(*operands)
            if torch.is_grad_enabled() and any(x.requires_grad for x in operands):
                return Fused.apply(*operands)
            return formula(key).run(operands, inputs, outputs)

        return call  # type: ignore[return-value]

    return decorate


def chosen(backend: str, operands: Sequence[Tensor], *, fits: bool = True) -> bool:
    """Whether a kernel that is a torch operator is to run: as `bridge.choose` says, where the operands fit it, in what
    torch compiles and on tensors that are `readable`. Raises: ShapeError, as `bridge.choose`."""
    from geom.kernels.bridge import choose

    return choose(backend, *operands) and fits and (torch.compiler.is_compiling() or readable(operands))


def readable(operands: Sequence[Tensor]) -> bool:
    """Whether a kernel may read these tensors' memory, and nothing watches the operations that it would skip."""
    first = operands[0]
    for x in operands:
        if type(x) not in _PLAIN or x.dtype != first.dtype or x.device != first.device or x.is_neg():
            return False
        if is_functorch_wrapped_tensor(x) or not torch._C._has_storage(x):
            return False
    return (
        first.dtype in FLOATS
        and first.device.type in ("cpu", "cuda")
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None
    )
