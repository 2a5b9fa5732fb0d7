"""The selective scan of Mamba (Gu and Dao, 2023, Algorithm 2), with its gradients."""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import silu, softplus

from geom.checks import check_offsets, check_same, describe
from geom.errors import ShapeError
from geom.kernels.pointwise import chosen

__all__ = ["selective_scan", "selective_scan_by_torch"]

_LARGEST = 256  # states of a channel that the kernels have room for
_HALF = (torch.float16, torch.bfloat16)
Flags = tuple[bool, bool, bool]


def selective_scan(
    u: Float[Tensor, "b d l"],
    delta: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b n l"],
    C: Float[Tensor, "b n l"],
    D: Float[Tensor, " d"] | None = None,
    z: Float[Tensor, "b d l"] | None = None,
    delta_bias: Float[Tensor, " d"] | None = None,
    delta_softplus: bool = False,
    *,
    offsets: Int64[Tensor, " clouds"] | None = None,
    reverse: bool = False,
    allow_neg_eigval: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Any:
    """A linear recurrence of N states for each of D channels, whose step, input and output depend on the token.

        h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        y_t = C_t . h_t + D u_t        out_t = y_t silu(z_t)

    for each channel, h before the first token 0: Gu and Dao, "Mamba" (2023), Algorithm 2, its decay exact and its input
    by Euler's rule, as in their code. Arguments and their order are those of mamba-ssm.

    Args:
        u, delta, z: (B, D, L) of float32 or float64; any strides. Memory in which channels are neighbours, as of a
            transposed (B, L, D), is read in place, and the result is laid out like it.
        A: (D, N), decay rates, at most 0. B, C: (B, N, L). D, delta_bias: (D,).
        delta_softplus: steps are softplus(delta + delta_bias).
        offsets: (clouds + 1,) int64 of clouds that stand one after the other, with B = 1: the state is 0 at the first
            token of each.
        reverse: from the last token of each cloud to its first.
        allow_neg_eigval: decays 2 exp(delta A) - 1 in [-1, 1] (Grazzi et al., "Unlocking state-tracking in linear RNNs
            through negative eigenvalues", 2024): states that can change sign, as counting parity needs.
        return_last_state: also the state after each sequence's last step, (B, D, N), or (clouds, D, N) with `offsets`.
        backend: "auto", "warp" or "torch".

    Returns: (B, D, L), of u's dtype and device, or a pair with the last state.

    Raises: ShapeError.

    Each token's result is the same bits for any number of threads, and with `offsets` those of each cloud by itself.
    The gradients keep 1/16 of the states and compute the others again; those of A, D and delta_bias are compensated
    sums. Steps of any size are fine: decays are at least 2^-126 (2^-1022 in float64) rather than 0. Derivatives of
    derivatives, torch.func, forward mode and more than 256 states run `selective_scan_by_torch`, a loop over tokens.
    float16 and bfloat16 operands are computed in float32. CUDA takes three passes over tiles of 16 tokens.

    >>> u, delta = torch.ones(1, 1, 3), torch.full((1, 1, 3), 0.5)
    >>> selective_scan(u, delta, -torch.zeros(1, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3))
    tensor([[[0.5000, 1.0000, 1.5000]]])

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 2e-7 f32 of the greatest entry, gradients 3e-6 f32
    """
    operands = (u, delta, A, B, C, D, z, delta_bias)
    _check(*operands)
    if offsets is not None:
        offsets = check_offsets(offsets, u.shape[2], device=u.device)
        if u.shape[0] != 1:
            raise ShapeError(f"u: expected (1, D, L) with offsets, got {describe(u)}")
    flags = bool(allow_neg_eigval), bool(delta_softplus), bool(reverse)
    if u.dtype in _HALF and backend != "torch":
        wide = [None if x is None else x.float() for x in operands]
        out, last = _run(wide, offsets, flags, backend)
        out, last = out.to(u.dtype), last.to(u.dtype)
    else:
        out, last = _run(operands, offsets, flags, backend)
    return (out, last) if return_last_state else out


def _run(operands: Any, offsets: Tensor | None, flags: Flags, backend: str) -> tuple[Tensor, Tensor]:
    given, states = [x for x in operands if x is not None], operands[2].shape[1]
    if backend == "warp" and states > _LARGEST:
        raise ShapeError(f'backend: expected at most {_LARGEST} states for "warp", got {states}')
    if not chosen(backend, given, fits=states <= _LARGEST):
        return selective_scan_by_torch(operands, offsets, flags)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    out, last, _ = _SCAN(*operands, offsets, *flags, keep)
    return out, last if offsets is None else last.squeeze(0)


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *others: Tensor | None) -> None:
    if not isinstance(u, Tensor) or u.ndim != 3 or not u.is_floating_point():
        raise ShapeError(f"u: expected a float tensor (B, D, L), got {describe(u)}")
    batch, width, length = u.shape
    if not isinstance(A, Tensor) or A.ndim != 2 or A.shape[0] != width:
        raise ShapeError(f"A: expected a tensor ({width}, N), got {describe(A)}")
    of_states, D, z, bias = (batch, A.shape[1], length), *others
    wanted = {"delta": (delta, u.shape), "A": (A, A.shape), "B": (B, of_states), "C": (C, of_states)}
    wanted |= {"D": (D, (width,)), "z": (z, u.shape), "delta_bias": (bias, (width,))}
    for name, (x, shape) in wanted.items():
        if x is None and name in ("D", "z", "delta_bias"):
            continue
        if not isinstance(x, Tensor) or x.shape != shape:
            raise ShapeError(f"{name}: expected a tensor {tuple(shape)}, got {describe(x)}")
        check_same(u, x, f"u and {name}")


def selective_scan_by_torch(operands: Any, offsets: Tensor | None, flags: Flags) -> tuple[Tensor, Tensor]:
    """The twin of the kernels: the recurrence token by token, and the last states.

    Args: operands (u, delta, A, B, C, D, z, delta_bias); flags (allow_neg_eigval, delta_softplus, reverse).

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 3e-7 f32 of the greatest entry
    """
    u, delta, A, B, C, D, z, bias = operands
    signed, soft, reverse = flags
    if bias is not None:
        delta = delta + bias[:, None]
    if soft:
        delta = softplus(delta, threshold=40)
    bounds = [0, u.shape[2]] if offsets is None else offsets.tolist()
    ys, states = [], []
    for begin, end in pairwise(bounds):
        h = torch.zeros_like(u[:, :, :1].sum(2)[..., None] * A)  # (B, D, N)
        own = []
        steps = [x[..., begin:end].unbind(2) for x in (u, delta, B, C)]
        for u_t, delta_t, B_t, C_t in list(zip(*steps, strict=True))[:: -1 if reverse else 1]:
            decay = torch.exp(delta_t[..., None] * A)
            decay = 2 * decay - 1 if signed else decay
            h = decay * h + (delta_t * u_t)[..., None] * B_t[:, None]
            own.append((h * C_t[:, None]).sum(2))
        ys += own[:: -1 if reverse else 1]
        states.append(h)
    y = torch.stack(ys, 2) if ys else u
    y = y if D is None else y + D[:, None] * u
    last = states[0] if offsets is None else torch.cat([*states, u.new_empty((0, *A.shape))])
    return y if z is None else y * silu(z), last


# --- the kernels as one torch op --------------------------------------------------------------------------------------

_OPERANDS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias"
_REST = "Tensor? offsets, bool signed, bool soft, bool reverse"


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *operands, offsets, signed, soft, reverse, keep = args
    from geom.kernels.scan import scan

    out, last, kept = scan(operands, offsets, (signed, soft, reverse), keep=keep)
    return out, last if offsets is not None else last.squeeze(1), kept


def _empty(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from geom.kernels.scan import TILE, count_tiles

    u, A, offsets, keep = args[0], args[2], args[8], args[12]
    (batch, width, length), states = u.shape, A.shape[1]
    clouds = 1 if offsets is None else offsets.shape[0] - 1
    last = (batch, width, states) if offsets is None else (batch, clouds, width, states)
    kept = (batch, -(-width // TILE), count_tiles(length, clouds), states, TILE) if keep else (0,)
    return _like(u), u.new_empty(last), u.new_empty(kept)


def _like(u: Tensor) -> Tensor:
    from geom.kernels.scan import side_by_side

    if side_by_side(u):
        return u.new_empty((u.shape[0], u.shape[2], u.shape[1])).transpose(1, 2)
    return u.new_empty(u.shape)


_SCAN: Any = torch.library.custom_op(
    "geom::selective_scan",
    _forward,
    mutates_args=(),
    schema=f"({_OPERANDS}, {_REST}, bool keep) -> (Tensor, Tensor, Tensor)",
)
_SCAN.register_fake(_empty)


def _differentiate(grad: Tensor, grad_last: Tensor | None, kept: Tensor, *args: Any) -> list[Tensor]:
    *operands, offsets, signed, soft, reverse = args
    from geom.kernels.scan import differentiate

    if grad_last is not None and offsets is None:
        grad_last = grad_last[:, None]
    found = differentiate(grad, grad_last, kept, operands, offsets, (signed, soft, reverse))
    return [x for x in found if x is not None]


_ADJOINT: Any = torch.library.custom_op(
    "geom::selective_scan_adjoint",
    _differentiate,
    mutates_args=(),
    schema=f"(Tensor grad, Tensor? grad_last, Tensor kept, {_OPERANDS}, {_REST}) -> Tensor[]",
)


@_ADJOINT.register_fake
def _(grad: Tensor, grad_last: Tensor | None, kept: Tensor, *args: Any) -> list[Tensor]:
    u, _, A, B, _, D, z, bias = args[:8]
    of_states = (u.new_empty((B.shape[0], B.shape[2], B.shape[1])).transpose(1, 2) for _ in range(2))
    every = (_like(u), _like(u), u.new_empty(A.shape), *of_states)
    gates = (None if D is None else u.new_empty(D.shape), None if z is None else _like(u))
    return [x for x in (*every, *gates, None if bias is None else u.new_empty(bias.shape)) if x is not None]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *operands, ctx.offsets, signed, soft, reverse, _ = inputs
    ctx.flags = signed, soft, reverse
    ctx.save_for_backward(*operands, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *operands, kept = ctx.saved_tensors
    rest = (None,) * 5
    if grad is None and grad_last is None:
        return (None,) * 8 + rest
    if torch.is_grad_enabled():  # for derivatives of derivatives
        own: list[Any] = [None if x is None else x.view_as(x) for x in operands]
        out, last = selective_scan_by_torch(own, ctx.offsets, ctx.flags)
        last = last if ctx.offsets is None else last[None]
        wanted = [x for x, want in zip(own, ctx.needs_input_grad, strict=False) if want]
        pairs = [(y, g) for y, g in ((out, grad), (last, grad_last)) if g is not None and y.requires_grad]
        ys, gs = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(ys, wanted, gs, create_graph=True, materialize_grads=True))
    else:
        grad = torch.zeros_like(operands[0]) if grad is None else grad
        every = iter(_ADJOINT(grad, grad_last, kept, *operands, ctx.offsets, *ctx.flags))
        each = [None if x is None else next(every) for x in operands]
        found = iter([g for g, want in zip(each, ctx.needs_input_grad, strict=False) if want])
    return *(next(found) if want else None for want in ctx.needs_input_grad[:8]), *rest


_SCAN.register_autograd(_backward, setup_context=_keep)
