"""The scan of Mamba-2: a matrix for each head that one number decays, in its state-space dual form."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_offsets, check_same, describe
from geom.errors import ShapeError
from geom.kernels.pointwise import chosen
from geom.sequence.linear import _loop, linear_attention

__all__ = ["state_space_dual", "state_space_dual_by_torch"]

_LARGEST = 128  # channels of a head, and states, that the kernels have room for


def state_space_dual(
    x: Float[Tensor, "*b n heads p"],
    delta: Float[Tensor, "*b n heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "*b n groups s"],
    C: Float[Tensor, "*b n groups s"],
    D: Float[Tensor, " heads"] | None = None,
    *,
    offsets: Int64[Tensor, " clouds"] | None = None,
    reverse: bool = False,
    allow_neg_eigval: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*b n heads p"]:
    """A linear recurrence of an (S, P) matrix for each head, which the token decays by one number.

        h_t = a_t h_{t-1} + delta_t B_t x_t^T        a_t = exp(delta_t A)        y_t = h_t^T C_t + D x_t

    Dao and Gu, "Transformers are SSMs" (2024), Section 5: between tiles of 16 tokens the state goes on, and within one
    y is the matrix (C_t . B_s) a_t ... a_{s+1} delta_s times x, as in their Section 6 (the state-space dual form).
    Arguments and their order are those of mamba-ssm's mamba_chunk_scan_combined.

    Args:
        x: (..., L, H, P) of float32 or float64. delta: (..., L, H), steps, at least 0.
        A: (H,), decay rates, at most 0. D: (H,).
        B, C: (..., L, G, S), each for H / G neighbouring heads.
        offsets: (clouds + 1,) int64 of clouds that stand one after the other, x being (N, H, P): h is 0 before the
            first token of each.
        reverse: from the last token of each cloud to its first.
        allow_neg_eigval: a = 2 exp(delta A) - 1 in [-1, 1], as of `selective_scan`.
        backend: "auto", "warp" or "torch".

    Returns: (..., L, H, P), of x's dtype and device.

    Raises: ShapeError.

    Each token's result is the same bits for any number of threads, and with `offsets` those of each cloud by itself.
    Decays of a tile are running products, never quotients, so that steps of any size and signs are fine; a gradient
    keeps one state for 128 tokens. The kernels of tiles take P and S up to 128, on the CPU; else, and on CUDA,
    `linear_attention` runs, with `allow_neg_eigval` `state_space_dual_by_torch`, a loop over tokens, which derivatives
    of derivatives and torch.func run too.

    >>> one = torch.ones(3, 1, 1)
    >>> state_space_dual(one, torch.full((3, 1), 0.5), torch.zeros(1), one, one).flatten().tolist()
    [0.5, 1.0, 1.5]

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 5e-7 f32 of the greatest entry
    """
    _check(x, delta, A, B, C, D)
    rates = delta * A
    decay = 2 * rates.exp() - 1 if allow_neg_eigval else rates.exp()
    operands = [x, delta, decay, B, C] + ([] if D is None else [D])
    count = x.shape[-3]
    if offsets is not None:
        if x.ndim != 3:
            raise ShapeError(f"offsets: expected to come with x (N, H, P), got {describe(x)}")
        offsets = check_offsets(offsets, count, device=x.device)

    tiles = x.device.type == "cpu" and max(x.shape[-1], B.shape[-1]) <= _LARGEST
    if backend == "warp" and allow_neg_eigval and not tiles:
        raise ShapeError(
            f'backend: expected at most {_LARGEST} channels and states on the CPU for "warp" with allow_neg_eigval, '
            f"got x {describe(x)} and B {describe(B)}"
        )
    if not chosen(backend, operands, fits=tiles or not allow_neg_eigval):
        return state_space_dual_by_torch(x, delta, decay, B, C, D, offsets, reverse)
    if not tiles:
        b, c = (_for_heads(y, x.shape[-2]) for y in (B, C))
        y = linear_attention(
            c, b, delta[..., None] * x, rates, scale=1, offsets=offsets, reverse=reverse, backend=backend
        )
        return y if D is None else y + D[:, None] * x
    if offsets is None:
        offsets = torch.arange(x.shape[:-3].numel() + 1) * count
    flat = (y.reshape(-1, *y.shape[x.ndim - 2 :]) for y in (x, delta, decay, B, C))
    return _DUAL(*flat, D, offsets, reverse).reshape(x.shape)


def _check(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> None:
    if not isinstance(x, Tensor) or x.ndim < 3 or not x.is_floating_point():
        raise ShapeError(f"x: expected a float tensor (..., L, H, P), got {describe(x)}")
    *lead, heads, _ = x.shape
    if not isinstance(B, Tensor) or B.ndim != x.ndim or list(B.shape[:-2]) != lead or not B.shape[-2]:
        raise ShapeError(f"B: expected a tensor {(*lead, 'G', 'S')}, got {describe(B)}")
    if heads % B.shape[-2]:
        raise ShapeError(f"B: expected groups that divide {heads} heads, got {describe(B)}")
    wanted = {"delta": (delta, x.shape[:-1]), "A": (A, (heads,)), "B": (B, B.shape), "C": (C, B.shape)}
    wanted |= {} if D is None else {"D": (D, (heads,))}
    for name, (y, shape) in wanted.items():
        if not isinstance(y, Tensor) or y.shape != shape:
            raise ShapeError(f"{name}: expected a tensor {tuple(shape)}, got {describe(y)}")
        check_same(x, y, f"x and {name}")


def _for_heads(x: Tensor, heads: int) -> Tensor:
    """(..., H, S) of (..., G, S): each group for as many neighbouring heads."""
    return x.repeat_interleave(heads // x.shape[-2], -2)


def state_space_dual_by_torch(
    x: Tensor,
    delta: Tensor,
    decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    offsets: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """The twin of the kernels: the recurrence token by token, with decays (..., L, H).

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 5e-7 f32 of the greatest entry
    """

    def step(state: Tensor, c: Tensor, b: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        state = state * a[..., None] + b[..., None] * v[..., None, :]
        return state, (c[..., None] * state).sum(-2)

    b, c = (_for_heads(y, x.shape[-2]) for y in (B, C))
    y = _loop(step, (c, b, delta[..., None] * x, decay[..., None]), offsets, reverse)
    return y if D is None else y + D[:, None] * x


# --- the kernels as torch ops -----------------------------------------------------------------------------------------

_OPERANDS = "Tensor x, Tensor delta, Tensor decay, Tensor B, Tensor C, Tensor? D, Tensor offsets, bool reverse"


def _forward(*args: Any) -> Tensor:
    from geom.kernels.state_space import scan

    return scan(args[:6], *args[6:])


_DUAL: Any = torch.library.custom_op(
    "geom::state_space_dual", _forward, mutates_args=(), schema=f"({_OPERANDS}) -> Tensor"
)
_DUAL.register_fake(lambda x, *rest: x.new_empty(x.shape))


def _differentiate(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    from geom.kernels.state_space import differentiate

    return differentiate(grad, args[:6], *args[6:])


_ADJOINT: Any = torch.library.custom_op(
    "geom::state_space_dual_adjoint",
    _differentiate,
    mutates_args=(),
    schema=f"(Tensor grad, {_OPERANDS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_ADJOINT.register_fake
def _(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    skip = grad.new_empty(grad.shape[1:2], dtype=torch.float64)
    return *(y.new_empty(y.shape) for y in args[:5]), skip


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.reverse = inputs
    ctx.save_for_backward(*operands)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *operands, offsets = ctx.saved_tensors
    needed = ctx.needs_input_grad[:6]
    if torch.is_grad_enabled():  # for derivatives of derivatives
        own: Any = [None if y is None else y.view_as(y) for y in operands]
        wanted = [y for y, want in zip(own, needed, strict=True) if want]
        out = state_space_dual_by_torch(*own, offsets=offsets, reverse=ctx.reverse)
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True, materialize_grads=True))
        return *(next(found) if want else None for want in needed), None, None
    every = _ADJOINT(grad, *operands, offsets, ctx.reverse)
    return *(g.to(y) if want else None for g, y, want in zip(every, operands, needed, strict=True)), None, None


_DUAL.register_autograd(_backward, setup_context=_keep)
