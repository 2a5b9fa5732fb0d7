"""Attention over batches, masks and clouds of different lengths, with derivatives of any order."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from geom.checks import check_offsets, check_same, describe
from geom.errors import ShapeError
from geom.kernels.pointwise import readable

__all__ = ["attention"]


def attention(
    queries: Float[Tensor, "*b heads n d"],
    keys: Float[Tensor, "*b #heads m d"],
    values: Float[Tensor, "*b #heads m e"],
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "*mask"] | Float[Tensor, "*mask"] | None = None,
    offsets: Int64[Tensor, "clouds"] | None = None,
    key_offsets: Int64[Tensor, "clouds"] | None = None,
) -> Float[Tensor, "*b heads n e"]:
    """out_i = sum_j softmax_j(scale q_i . k_j + mask_ij) v_j, for each head.

    Args:
        queries (..., H, n, D), keys (..., H, m, D), values (..., H, m, E), of one dtype and device; one head of keys
            and values serves all of the queries.
        scale: 1 / sqrt(D) if not given.
        mask: broadcasts to (..., H, n, m): bool, true where a query sees a key, or float, added to the logits.
        offsets: for n queries of several clouds one after the other, without batch axes: each sees the keys of its own.
        key_offsets: those of the keys, where they are others.

    Returns: (..., H, n, E); 0 for a query that sees no key.

    Clouds of one length are one batch: nothing is padded, and the result is that of each cloud by itself.

    Raises: ShapeError.

    >>> x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    >>> both = attention(x, x, x, offsets=torch.tensor([0, 2, 5]))
    >>> bool((both[:, :2] - attention(x[:, :2], x[:, :2], x[:, :2])).abs().max() < 1e-6)
    True

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest value
    """
    _check(queries, keys, values)
    scale = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    if offsets is None and key_offsets is None:
        return _attend(queries, keys, values, mask, scale)
    if offsets is None or mask is not None or queries.ndim != 3:
        raise ShapeError(
            f"offsets: expected to come with queries (H, N, D) and without mask, got {describe(queries)} and "
            f"mask {describe(mask)}, offsets {describe(offsets)}"
        )
    return _attend_clouds(queries, keys, values, offsets, offsets if key_offsets is None else key_offsets, scale)


def _check(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    for x, name in ((queries, "queries"), (keys, "keys"), (values, "values")):
        if not isinstance(x, Tensor) or x.ndim < 3:
            raise ShapeError(f"{name}: expected a tensor (..., heads, items, features), got {describe(x)}")
    heads = (1, queries.shape[-3])
    batch = queries.shape[:-3]
    if keys.shape[:-3] != batch or keys.shape[-3] not in heads or keys.shape[-1] != queries.shape[-1]:
        raise ShapeError(f"keys: expected batch, heads and features of {tuple(queries.shape)}, got {describe(keys)}")
    if values.shape[:-1] != keys.shape[:-1]:
        raise ShapeError(f"values: expected one for each key of {tuple(keys.shape)}, got {describe(values)}")
    check_same(queries, keys, "queries and keys")
    check_same(queries, values, "queries and values")


def _attend_clouds(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, key_offsets: Tensor, scale: float
) -> Tensor:
    device = queries.device
    offsets = check_offsets(offsets, queries.shape[1], device=device)
    key_offsets = check_offsets(key_offsets, keys.shape[1], "key_offsets", device=device)
    if offsets.shape != key_offsets.shape:
        raise ShapeError(f"key_offsets: expected {len(offsets)} of them, got {len(key_offsets)}")
    starts, key_starts = offsets[:-1].tolist(), key_offsets[:-1].tolist()
    of_length: dict[tuple[int, int], list[int]] = {}
    for cloud, lengths in enumerate(zip(offsets.diff().tolist(), key_offsets.diff().tolist(), strict=True)):
        if lengths[0]:
            of_length.setdefault(lengths, []).append(cloud)

    def rows(begins: list[int], clouds: list[int], length: int) -> Tensor:
        first = torch.tensor([begins[cloud] for cloud in clouds], device=device)
        return first[:, None] + torch.arange(length, device=device)

    places, parts = [], []
    for (length, key_length), clouds in of_length.items():
        own, others = rows(starts, clouds, length), rows(key_starts, clouds, key_length)
        q, k, v = (x[:, index].movedim(0, 1) for x, index in ((queries, own), (keys, others), (values, others)))
        places.append(own.flatten())
        parts.append(_attend(q, k, v, None, scale).movedim(1, 0).flatten(1, 2))
    if not parts:
        return queries.new_zeros((*queries.shape[:-1], values.shape[-1]))
    return torch.cat(parts, 1)[:, torch.cat(places).argsort()]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    shape = (*queries.shape[:-1], values.shape[-1])
    if 0 in (*queries.shape, *values.shape):
        return queries.new_zeros(shape) + 0 * (queries.sum() + keys.sum() + values.sum())
    seeing = None
    if mask is not None:
        try:
            mask = mask.expand(*queries.shape[:-1], keys.shape[-2])
        except RuntimeError:
            wanted = (*queries.shape[:-1], keys.shape[-2])
            raise ShapeError(f"mask: expected to broadcast to {wanted}, got {describe(mask)}") from None
        seen = mask if mask.dtype == torch.bool else mask > -math.inf
        seeing = seen.any(-1, keepdim=True)  # others look at all keys, and forget what they saw
        mask = mask | ~seeing if mask.dtype == torch.bool else torch.where(seeing, mask, 0).to(queries)
    width = values.shape[-1]
    queries, keys, values = _pad(queries, keys, values)
    keys, values = (x.expand(*queries.shape[:-2], *x.shape[-2:]) for x in (keys, values))
    operands = (queries, keys, values)
    fused = not torch.compiler.is_compiling() and readable(operands) and not (mask is not None and mask.requires_grad)
    if not fused:
        out = _attend_by_sums(queries, keys, values, mask, scale)
    elif torch.is_grad_enabled() and any(x.requires_grad for x in operands):
        out = _Fused.apply(*operands, mask, scale)
    else:
        out = _attend_fused(queries, keys, values, mask, scale)
    out = out[..., :width]
    return out if seeing is None else torch.where(seeing, out, 0)


def _pad(*operands: Tensor) -> list[Tensor]:
    """Zeros for features that queries and keys, or values, have fewer of: torch's attention on the CPU keeps no logits
    where there are as many."""
    width = max(x.shape[-1] for x in operands)
    return [pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in operands]


def _attend_by_sums(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The twin of `_attend_fused`."""
    logits = scale * queries @ keys.mT
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1) @ values


def _attend_fused(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """torch's attention."""
    batch = queries.shape[:-3]
    parts = [x.reshape(-1, *x.shape[-3:]) for x in (queries, keys, values)]
    if mask is not None:
        mask = mask.reshape(-1, *mask.shape[-3:])
    out = scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale)
    return out.reshape(*batch, *out.shape[1:])


class _Fused(torch.autograd.Function):
    """torch's attention has first derivatives only; those of derivatives are the twin's."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(queries, keys, values)
        ctx.mask, ctx.scale = mask, scale
        with torch.enable_grad():
            q, k, v = ctx.own = [x.detach().requires_grad_() for x in (queries, keys, values)]
            ctx.out = _attend_fused(q, k, v, mask, scale)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        again = torch.is_grad_enabled()
        if again:
            with torch.enable_grad():
                own = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in ctx.saved_tensors]
                q, k, v = own
                out = _attend_by_sums(q, k, v, ctx.mask, ctx.scale)
        else:
            own, out = ctx.own, ctx.out
        found = torch.autograd.grad(out, own, grad, create_graph=again, retain_graph=True)
        return *(g if want else None for g, want in zip(found, ctx.needs_input_grad, strict=False)), None, None
