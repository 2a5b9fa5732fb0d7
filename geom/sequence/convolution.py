"""Depthwise causal convolution along the tokens of clouds."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_offsets, check_same, describe
from geom.errors import ShapeError
from geom.kernels.pointwise import chosen

__all__ = ["causal_convolution", "causal_convolution_by_torch"]

_LARGEST = 16  # taps that the kernels have room for


def causal_convolution(
    x: Float[Tensor, "*b n c"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"] | None = None,
    *,
    offsets: Int64[Tensor, " clouds"] | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*b n c"]:
    """y_t = bias + sum_k weight_{K-1-k} x_{t-k} for each channel, what stands before the first token being 0.

    Args:
        x: (..., L, C) of float32 or float64. weight: (C, K), as of torch's Conv1d, whose last tap is the token itself.
        bias: (C,).
        offsets: (clouds + 1,) int64 of clouds that stand one after the other in x (N, C); none sees another.
        reverse: sums over the tokens after, y_t = bias + sum_k weight_{K-1-k} x_{t+k}.
        backend: "auto", "warp" or "torch".

    Returns: (..., L, C).

    Raises: ShapeError.

    >>> causal_convolution(torch.ones(4, 1), torch.ones(1, 3)).flatten().tolist()
    [1.0, 2.0, 3.0, 3.0]

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 5e-7 f32 of the greatest entry
    """
    if not isinstance(x, Tensor) or x.ndim < 2:
        raise ShapeError(f"x: expected a tensor (..., L, C), got {describe(x)}")
    width = x.shape[-1]
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[0] != width or not weight.shape[1]:
        raise ShapeError(f"weight: expected a tensor ({width}, K), got {describe(weight)}")
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != (width,)):
        raise ShapeError(f"bias: expected a tensor ({width},), got {describe(bias)}")
    for other, name in ((weight, "weight"), (bias, "bias")):
        if other is not None:
            check_same(x, other, f"x and {name}")
    if offsets is not None:
        if x.ndim != 2:
            raise ShapeError(f"offsets: expected to come with x (N, C), got {describe(x)}")
        offsets = check_offsets(offsets, x.shape[0], device=x.device)

    taps = weight.shape[1]
    if backend == "warp" and taps > _LARGEST:
        raise ShapeError(f'backend: expected at most {_LARGEST} taps for "warp", got {taps}')
    given = [y for y in (x, weight, bias) if y is not None]
    if not chosen(backend, given, fits=taps <= _LARGEST) or not x.numel():
        return causal_convolution_by_torch(x, weight, bias, offsets, reverse)
    if offsets is None:
        offsets = torch.arange(x.shape[:-2].numel() + 1, device=x.device) * x.shape[-2]
    return _CONVOLVE(x.reshape(-1, width), weight, bias, offsets, reverse).reshape(x.shape)


def causal_convolution_by_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """The twin of the kernels: a sum of shifted copies.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 5e-7 f32 of the greatest entry
    """
    length, taps = x.shape[-2], weight.shape[1]
    if offsets is None:
        room = torch.arange(length, device=x.device)
        room = room.flip(0) if reverse else room
    else:
        lengths = offsets.diff()
        begins, ends = (y.repeat_interleave(lengths, output_size=length) for y in (offsets[:-1], offsets[1:]))
        place = torch.arange(length, device=x.device)
        room = ends - 1 - place if reverse else place - begins
    y = torch.zeros_like(x) * weight[:, 0] if bias is None else bias.expand_as(x)
    for k in range(min(taps, length)):
        moved = x.roll(-k if reverse else k, -2)
        y = y + torch.where((room >= k)[:, None], moved, 0) * weight[:, taps - 1 - k]
    return y


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, reverse: bool) -> Tensor:
    from geom.kernels.convolution import convolve

    return convolve(x, weight.flip(1), bias, offsets, reverse)


def _differentiate(grad: Tensor, x: Tensor, weight: Tensor, offsets: Tensor, reverse: bool) -> list[Tensor]:
    from geom.kernels.convolution import differentiate

    g_x, g_weight, g_bias = differentiate(grad, x, weight.flip(1), offsets, reverse)
    return [g_x, g_weight.flip(1), g_bias.clone()]


_CONVOLVE: Any = torch.library.custom_op(
    "geom::causal_convolution",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor offsets, bool reverse) -> Tensor",
)
_CONVOLVE.register_fake(lambda x, *rest: x.new_empty(x.shape))
_ADJOINT: Any = torch.library.custom_op(
    "geom::causal_convolution_adjoint",
    _differentiate,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor offsets, bool reverse) -> Tensor[]",
)
_ADJOINT.register_fake(
    lambda grad, x, weight, *rest: [x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(x.shape[1])]
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.reverse = inputs
    ctx.save_for_backward(*operands)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias, offsets = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():  # for derivatives of derivatives
        own: list[Any] = [None if y is None else y.view_as(y) for y in (x, weight, bias)]
        out = causal_convolution_by_torch(own[0], own[1], own[2], offsets, ctx.reverse)
        chosen = [y for y, want in zip(own, wanted, strict=True) if want]
        every = iter(torch.autograd.grad(out, chosen, grad, create_graph=True, materialize_grads=True))
        found = [next(every) if want else None for want in wanted]
    else:
        every = _ADJOINT(grad, x, weight, offsets, ctx.reverse)
        found = [y if want else None for y, want in zip(every, wanted, strict=True)]
    return *found, None, None


_CONVOLVE.register_autograd(_backward, setup_context=_keep)
