"""Linear attention, with and without decay, and the delta rule: recurrences of a matrix for each head."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_offsets, check_same, describe
from geom.errors import ShapeError
from geom.kernels.pointwise import chosen

__all__ = ["additive_gates", "delta_rule", "delta_rule_by_torch", "linear_attention", "linear_attention_by_torch"]

_LARGEST = 256  # features of a head that the kernels have room for


def linear_attention(
    queries: Float[Tensor, "*b n heads d"],
    keys: Float[Tensor, "*b n heads d"],
    values: Float[Tensor, "*b n heads e"],
    log_decay: Float[Tensor, "*b n heads d"] | Float[Tensor, "*b n heads"] | None = None,
    *,
    scale: float | None = None,
    offsets: Int64[Tensor, " clouds"] | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*b n heads e"]:
    """Causal attention without softmax, gated where decays are given, in one pass over the tokens.

        S_t = diag(exp log_decay_t) S_{t-1} + k_t v_t^T        out_t = scale S_t^T q_t

    for each head: Katharopoulos et al., "Transformers are RNNs" (2020), Section 3.4, without the normaliser, and with
    decays Yang et al., "Gated linear attention transformers" (2023). One decay for a whole head gives RetNet's
    retention, and with q, k, v, log_decay = C, B, delta u, delta A and scale 1 the scan of Mamba-2 (Dao and Gu, 2024).

    Args:
        queries, keys (..., L, H, D), values (..., L, H, E), of float32 or float64.
        log_decay: (..., L, H, D), or (..., L, H) for whole heads, at most 0; none means no decay.
        scale: 1 / sqrt(D) if not given.
        offsets: (clouds + 1,) int64 of clouds that stand one after the other, tensors being (N, H, D): S is 0 at the
            first token of each.
        reverse: from the last token of each cloud to its first.
        backend: "auto", "warp" or "torch".

    Returns: (..., L, H, E).

    Raises: ShapeError.

    The kernels take D and E up to 256; gradients are the same recurrence with its roles exchanged, and keep no states.
    That of log_decay is a running sum of q dq - k dk in float64, good to 3e-6 for float32 operands. Derivatives of
    derivatives and torch.func run `linear_attention_by_torch`, a loop over tokens.

    >>> one = torch.ones(3, 1, 1)
    >>> linear_attention(one, one, one).flatten().tolist()
    [1.0, 2.0, 3.0]

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 5e-7 f32 of the greatest entry
    """
    _check(queries, keys, values)
    if isinstance(log_decay, Tensor) and log_decay.shape == keys.shape[:-1]:
        log_decay = log_decay[..., None].expand_as(keys)
    if log_decay is not None and (not isinstance(log_decay, Tensor) or log_decay.shape != keys.shape):
        raise ShapeError(f"log_decay: expected a tensor {tuple(keys.shape)}, got {describe(log_decay)}")
    operands = [queries, keys, values] + ([] if log_decay is None else [log_decay])
    scale = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    q, k, v, g = queries * scale, keys, values, log_decay
    bounds = _offsets(queries, offsets)
    if not _kernels(backend, operands):
        return linear_attention_by_torch(q, k, v, g, None if offsets is None else bounds, reverse)
    flat = [None if x is None else x.reshape(-1, *x.shape[-2:]) for x in (q, k, v, g)]
    return _ATTEND(*flat, bounds, reverse).reshape(values.shape)


def delta_rule(
    queries: Float[Tensor, "*b n heads d"],
    keys: Float[Tensor, "*b n heads d"],
    values: Float[Tensor, "*b n heads e"],
    rates: Float[Tensor, "*b n heads"],
    *,
    scale: float | None = None,
    offsets: Int64[Tensor, " clouds"] | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*b n heads e"]:
    """A memory that is told, for each key, only what it does not yet know.

        S_t = S_{t-1} + rate_t k_t (v_t - S_{t-1}^T k_t)^T        out_t = scale S_t^T q_t

    Schlag et al., "Linear transformers are secretly fast weight programmers" (2021). With unit keys the state is
    multiplied by I - rate k k^T, whose eigenvalue along k is 1 - rate: rates in [0, 1] forget, those up to 2 also
    change the sign (Grazzi et al., 2024).

    Args:
        queries, keys (..., L, H, D), values (..., L, H, E), rates (..., L, H), of float32 or float64. Keys of length 1
            (and rates up to 2) keep the state bounded.
        scale, offsets, reverse, backend: as of `linear_attention`.

    Returns: (..., L, H, E).

    Raises: ShapeError.

    >>> key, value = torch.ones(3, 1, 1), torch.tensor([1.0, 5.0, 7.0])[:, None, None]
    >>> delta_rule(key, key, value, torch.ones(3, 1)).flatten().tolist()
    [1.0, 5.0, 7.0]

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 5e-7 f32 of the greatest entry
    """
    _check(queries, keys, values)
    if not isinstance(rates, Tensor) or rates.shape != keys.shape[:-1]:
        raise ShapeError(f"rates: expected a tensor {tuple(keys.shape[:-1])}, got {describe(rates)}")
    operands = [queries, keys, values, rates]
    scale = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    bounds = _offsets(queries, offsets)
    q = queries * scale
    if not _kernels(backend, operands):
        return delta_rule_by_torch(q, keys, values, rates, None if offsets is None else bounds, reverse)
    flat = (x.reshape(-1, *x.shape[-2:]) for x in (q, keys, values))
    return _DELTA(*flat, rates.reshape(-1, rates.shape[-1]), bounds, reverse)[0].reshape(values.shape)


def additive_gates(
    logits: Float[Tensor, "*b n heads d"], *, offsets: Int64[Tensor, " clouds"] | None = None, reverse: bool = False
) -> tuple[Float[Tensor, "*b n heads d"], Float[Tensor, "*b n heads d"]]:
    """Keys and log decays for `linear_attention` with which each feature's weights over the past sum to 1.

        z_t = log sum_{s <= t} exp logits_s        key_t = exp(logits_t - z_t)        log_decay_t = z_{t-1} - z_t

    the additive recurrence of LightNet (Qin et al., 2024): S_t = sum_s softmax_{s <= t}(logits)_s v_s^T. The first
    token, before which there is no state, decays by 1.

    Args: logits (..., L, H, D) of any size; offsets, reverse as of `linear_attention`.
    Returns: keys and log decays (..., L, H, D).

    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 5e-7 f32
    """
    if not isinstance(logits, Tensor) or logits.ndim < 3:
        raise ShapeError(f"logits: expected a tensor (..., L, H, D), got {describe(logits)}")
    bounds = _offsets(logits, offsets)
    parts = [logits] if offsets is None else [logits[a:b] for a, b in pairwise(bounds.tolist()) if b > a]
    keys, decays = [], []
    for part in parts:
        part = part.flip(-3) if reverse else part
        z = torch.logcumsumexp(part, -3)
        key, decay = (part - z).exp(), torch.cat([torch.zeros_like(z[..., :1, :, :]), -z.diff(dim=-3)], -3)
        if not z.shape[-3]:
            decay = key
        keys.append(key.flip(-3) if reverse else key)
        decays.append(decay.flip(-3) if reverse else decay)
    if len(parts) == 1:
        return keys[0], decays[0]
    return (torch.cat(keys, -3), torch.cat(decays, -3)) if parts else (logits.exp(), logits)


def _check(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    if not isinstance(queries, Tensor) or queries.ndim < 3:
        raise ShapeError(f"queries: expected a tensor (..., L, H, D), got {describe(queries)}")
    if not isinstance(keys, Tensor) or keys.shape != queries.shape:
        raise ShapeError(f"keys: expected a tensor {tuple(queries.shape)}, got {describe(keys)}")
    if not isinstance(values, Tensor) or values.ndim != keys.ndim or values.shape[:-1] != keys.shape[:-1]:
        raise ShapeError(f"values: expected a tensor {(*keys.shape[:-1], 'E')}, got {describe(values)}")
    check_same(queries, keys, "queries and keys")
    check_same(queries, values, "queries and values")


def _offsets(x: Tensor, offsets: Tensor | None) -> Tensor:
    """Those given, of a tensor (N, H, D), or those of a batch's sequences one after the other."""
    length = x.shape[-3]
    if offsets is None:
        count = x.shape[:-3].numel()
        return torch.arange(count + 1, device=x.device) * length
    if x.ndim != 3:
        raise ShapeError(f"offsets: expected to come with tensors (N, H, D), got {describe(x)}")
    return check_offsets(offsets, length, device=x.device)


def _kernels(backend: str, operands: Sequence[Tensor]) -> bool:
    for x in operands[1:]:
        check_same(operands[0], x, "operands")
    widest = max(x.shape[-1] for x in operands[:3])
    if backend == "warp" and widest > _LARGEST:
        raise ShapeError(f'backend: expected heads of at most {_LARGEST} features for "warp", got {widest}')
    return chosen(backend, operands, fits=widest <= _LARGEST)


# --- twins: the recurrences, token by token ---------------------------------------------------------------------------


def linear_attention_by_torch(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, offsets: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """The twin of `linear_attention`, with q already scaled.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 5e-7 f32 of the greatest entry
    """

    def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, *g: Tensor) -> tuple[Tensor, Tensor]:
        kept = state * g[0].exp()[..., None] if g else state
        state = kept + k[..., None] * v[..., None, :]
        return state, (q[..., None] * state).sum(-2)

    return _loop(step, (q, k, v) if g is None else (q, k, v, g), offsets, reverse)


def delta_rule_by_torch(
    q: Tensor, k: Tensor, v: Tensor, rates: Tensor, offsets: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """The twin of `delta_rule`, with q already scaled.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 5e-7 f32 of the greatest entry
    """

    def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        new = v - (state * k[..., None]).sum(-2)
        state = state + k[..., None] * (rate * new)[..., None, :]
        return state, (q[..., None] * state).sum(-2)

    return _loop(step, (q, k, v, rates[..., None]), offsets, reverse)


def _loop(step: Any, operands: tuple[Tensor, ...], offsets: Tensor | None, reverse: bool) -> Tensor:
    _, k, v = operands[:3]
    found: list[Tensor] = []
    for begin, end in pairwise([0, v.shape[-3]] if offsets is None else offsets.tolist()):
        own: list[Tensor] = []
        columns: list[Any] = []
        state = k.new_zeros((*k.shape[:-3], *k.shape[-2:], v.shape[-1]))
        for token in range(begin, end)[:: -1 if reverse else 1]:
            if not own:
                columns = [x.unbind(-3) for x in operands]
            state, out = step(state, *(column[token] for column in columns))
            own.append(out)
        found += own[:: -1 if reverse else 1]
    return torch.stack(found, -3) if found else v + 0 * sum(x.sum() for x in operands)


# --- kernels as torch ops ---------------------------------------------------------------------------------------------


def _outer(
    add: Tensor,
    x: Tensor,
    query: Tensor,
    decay: Tensor | None,
    offsets: Tensor,
    reverse: bool,
    on_lanes: bool,
    late: bool,
    exclusive: bool,
) -> Tensor:
    from geom.kernels.recurrences import outer_scan

    return outer_scan(add, x, query, decay, offsets, reverse=reverse, on_lanes=on_lanes, late=late, exclusive=exclusive)


_OUTER: Any = torch.library.custom_op(
    "geom::outer_scan",
    _outer,
    mutates_args=(),
    schema="(Tensor add, Tensor x, Tensor query, Tensor? decay, Tensor offsets, bool reverse, bool on_lanes, "
    "bool late, bool exclusive) -> Tensor",
)
_OUTER.register_fake(lambda add, x, *rest: x.new_empty(x.shape))


def _difference(
    add: Tensor, x: Tensor, query: Tensor, take: Tensor, z: Tensor, offsets: Tensor, reverse: bool
) -> Tensor:
    from geom.kernels.recurrences import outer_difference

    return outer_difference(add, x, query, take, z, offsets, reverse=reverse)


_DIFFERENCE: Any = torch.library.custom_op(
    "geom::outer_difference",
    _difference,
    mutates_args=(),
    schema="(Tensor add, Tensor x, Tensor query, Tensor take, Tensor z, Tensor offsets, bool reverse) -> Tensor",
)
_DIFFERENCE.register_fake(lambda add, x, *rest: x.new_empty(x.shape))


def _attend(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, offsets: Tensor, reverse: bool) -> Tensor:
    return _outer(k, v, q, None if g is None else g.exp(), offsets, reverse, False, False, False)


_ATTEND: Any = torch.library.custom_op(
    "geom::linear_attention",
    _attend,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor offsets, bool reverse) -> Tensor",
)
_ATTEND.register_fake(lambda q, k, v, *rest: v.new_empty(v.shape))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *operands, offsets, ctx.reverse = inputs
    new = output[1:] if isinstance(output, tuple) else ()
    ctx.save_for_backward(*operands, offsets, *new)


def _again(ctx: Any, twin: Any, operands: Sequence[Tensor | None], offsets: Tensor, grad: Tensor) -> tuple[Any, ...]:
    """Gradients that can be differentiated: those of the twin."""
    own: list[Any] = [None if x is None else x.view_as(x) for x in operands]
    wanted = [x for x, want in zip(own, ctx.needs_input_grad, strict=False) if want]
    out = twin(*own, offsets, ctx.reverse)
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True, materialize_grads=True))
    return *(next(found) if want else None for want in ctx.needs_input_grad[:4]), None, None


def _attend_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    q, k, v, g, offsets = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _again(ctx, linear_attention_by_torch, (q, k, v, g), offsets, grad)
    from geom.kernels.bridge import small_operations

    with small_operations():
        decay, back = None if g is None else g.exp(), not ctx.reverse
        gq = _OUTER(v, k, grad, decay, offsets, ctx.reverse, True, False, False)
        gk = _OUTER(grad, q, v, decay, offsets, back, True, True, False)
        gv = _OUTER(q, grad, k, decay, offsets, back, False, True, False)
        gg = None if g is None else _sum_onward(q.double() * gq - k.double() * gk, offsets, ctx.reverse).to(g)
    return gq, gk, gv, gg, None, None


def _sum_onward(x: Tensor, offsets: Tensor, reverse: bool) -> Tensor:
    """For each token the sum from it to the last of its cloud, or to the first in reverse."""
    before = torch.cat([x.new_zeros((1, *x.shape[1:])), x.cumsum(0)])
    cloud = torch.searchsorted(offsets, torch.arange(x.shape[0], device=x.device), right=True) - 1
    if reverse:
        return before[1:] - before[offsets[cloud]]
    return before[offsets[cloud + 1]] - before[:-1]


_ATTEND.register_autograd(_attend_backward, setup_context=_keep)


def _delta(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, offsets: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    from geom.kernels.recurrences import delta_rule

    return delta_rule(k, v, q, rates, offsets, reverse)


_DELTA: Any = torch.library.custom_op(
    "geom::delta_rule",
    _delta,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor rates, Tensor offsets, bool reverse) -> (Tensor, Tensor)",
)
_DELTA.register_fake(lambda q, k, v, *rest: (v.new_empty(v.shape), v.new_empty(v.shape)))


def _delta_adjoint(q: Tensor, k: Tensor, grad: Tensor, rates: Tensor, offsets: Tensor, reverse: bool) -> Tensor:
    from geom.kernels.recurrences import delta_rule_adjoint

    return delta_rule_adjoint(k, grad, q, rates, offsets, reverse)


_DELTA_ADJOINT: Any = torch.library.custom_op(
    "geom::delta_rule_adjoint",
    _delta_adjoint,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor grad, Tensor rates, Tensor offsets, bool reverse) -> Tensor",
)
_DELTA_ADJOINT.register_fake(lambda q, k, grad, *rest: grad.new_empty(grad.shape))


def _delta_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    # With u = rate new the state is a sum of k u^T, and its gradient one of q g^T and -k (rate du)^T, which nearly
    # cancel and so are one sum: each part of the gradients reads one of the two, before or after the step.
    q, k, v, rates, offsets, new = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _again(ctx, delta_rule_by_torch, (q, k, v, rates), offsets, grad)
    from geom.kernels.bridge import small_operations

    with small_operations():
        on, back = ctx.reverse, not ctx.reverse
        rate = rates[..., None]
        u, gu = rate * new, _DELTA_ADJOINT(q, k, grad, rates, offsets, back)
        gv = rate * gu
        gq = _OUTER(u, k, grad, None, offsets, on, False, False, False)
        gk = _DIFFERENCE(grad, q, u, gv, k, offsets, back) - _OUTER(u, k, gv, None, offsets, on, False, False, True)
        return gq, gk, gv, (new * gu).sum(-1), None, None


_DELTA.register_autograd(_delta_backward, setup_context=_keep)
