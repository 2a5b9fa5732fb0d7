"""Geometric attention between planes as one step, of which queries, keys and values alone are saved.

Clouds of few keys have kernels of their own. For others, features and values are made anew for the gradients, which are
those of torch's attention on the CPU and of the kernels around it. `geom.clifford.attention` has the readable form,
which gives derivatives of derivatives.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geom.clifford.trilinear import run_kernels

__all__ = ["Layout", "Part", "attend_planes", "can_attend_planes"]

Twin = Callable[..., tuple[Tensor, Tensor]]
_FEW, _SMALL = 8, 32  # more clouds, of several lengths and fewer keys in the mean, are better sorted
_KEYS = 64  # clouds of more have features of their own in memory, for torch's attention


class Part(NamedTuple):
    """Which planes and scalars, of those given, are queries, keys or values, and from which channel and scalar on."""

    planes: int
    scalars: int
    channel: int = 0
    scalar: int = 0


class Layout(NamedTuple):
    """Fields: parts, of queries, keys and values; heads of the queries and of keys and values, c multivectors and
    `scalars` in each, neighbouring channels of neighbouring heads; epsilon of distances; lengths of the clouds, of
    queries and of keys, that stand one after the other."""

    parts: tuple[Part, Part, Part]
    heads: tuple[int, int]
    c: int
    scalars: int
    epsilon: float
    lengths: tuple[Sequence[int], Sequence[int]]

    @property
    def width(self) -> int:
        """Of rows, of which the features of queries and keys fill 12 c + scalars, and those of values all but 0s."""
        return 16 * self.c + self.scalars

    @property
    def scale(self) -> float:
        """Of logits."""
        return 1 / math.sqrt(12 * self.c + self.scalars)


def can_attend_planes(layout: Layout, mask: Tensor | None, *tensors: Tensor) -> bool:
    """Whether `attend_planes` runs on these tensors, and is not slower than sorting the clouds."""
    lengths, keys = layout.lengths
    if not lengths or 0 in lengths or 0 in keys or tensors[0].device.type != "cpu" or not run_kernels(*tensors):
        return False
    if mask is not None and (mask.requires_grad or not (mask.dtype == torch.bool or run_kernels(tensors[0], mask))):
        return False
    if _small_clouds(layout, mask) is not None:
        return True
    alike = len({*zip(lengths, keys, strict=True)}) == 1
    return alike or len(lengths) <= _FEW or sum(keys) >= _SMALL * len(keys)


def _small_clouds(layout: Layout, mask: Tensor | None) -> Any:
    """What the kernels of clouds of few keys take, if these are such clouds."""
    from geom.kernels.clifford_clouds import LANES, Clouds

    heads = layout.heads
    if mask is not None or heads[1] != 1 or max(layout.lengths[1]) > _KEYS or heads[0] % LANES:
        return None
    places = [(part.channel, part.scalar) for part in layout.parts]
    return Clouds(heads[0], layout.c, layout.scalars, layout.epsilon, layout.scale, places, layout.lengths)


def attend_planes(
    twin: Twin,
    layout: Layout,
    weights: Tensor,
    planes: Sequence[Tensor],
    scalars: Sequence[Tensor],
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Planes (16, n, heads c) and scalars (n, heads s) of the result.

    Args: twin, the same from (weights, *planes, *scalars); weights of distances (heads, c); planes (16, N, C) and
    scalars (N, S), contiguous, of which the parts take each channel once; mask, of clouds of one length.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (weights, *planes, *scalars)):
        return _Attention.apply(twin, layout, mask, len(planes), weights, *planes, *scalars)
    return _run(layout, mask, weights, planes, scalars)[:2]


def _heads(layout: Layout) -> list[Any]:
    """Of queries, keys and values, and of the result."""
    from geom.kernels.clifford_attention import Heads

    counts = (layout.heads[0], layout.heads[1], layout.heads[1])
    found = [
        Heads(count, layout.c, layout.scalars, part.channel, part.scalar)
        for count, part in zip(counts, layout.parts, strict=True)
    ]
    return [*found, Heads(layout.heads[0], layout.c, layout.scalars, fastest=False)]


def _of_parts(layout: Layout, planes: Sequence[Tensor], scalars: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those of queries, of keys and of values."""
    return [planes[part.planes] for part in layout.parts], [scalars[part.scalars] for part in layout.parts]


def _rows(
    layout: Layout, weights: Tensor, planes: Sequence[Tensor], scalars: Sequence[Tensor], heads: list[Any]
) -> list[Tensor]:
    """Rows (N, heads, width) of queries, keys and values."""
    from geom.kernels.clifford_attention import features, pack

    found = []
    for kind, (part, own) in enumerate(zip(layout.parts, heads, strict=False)):
        x, s = planes[part.planes], scalars[part.scalars]
        rows = x.new_empty(x.shape[1], own.heads, layout.width)
        if kind == 2:
            pack(own, x, s, rows)
        else:
            features(own, x, s, rows, None if kind else weights, kind == 1, layout.epsilon)
        found.append(rows)
    return found


def _clouds(layout: Layout) -> list[tuple[slice, slice, int]]:
    """Queries and keys of runs of clouds of one length, and how many clouds there are in each."""
    lengths, keys = layout.lengths
    if len({*lengths}) == len({*keys}) == 1:
        return [(slice(0, sum(lengths)), slice(0, sum(keys)), len(lengths))]
    found: list[tuple[slice, slice, int]] = []
    last = None
    n = m = 0
    for pair in zip(*layout.lengths, strict=True):
        own = (slice(n, n + pair[0]), slice(m, m + pair[1]), 1)
        if pair == last:
            before = found.pop()
            own = (slice(before[0].start, own[0].stop), slice(before[1].start, own[1].stop), before[2] + 1)
        found.append(own)
        last, n, m = pair, n + pair[0], m + pair[1]
    return found


def _of_clouds(x: Tensor, own: slice, count: int, fold: bool) -> Tensor:
    """Rows as torch's attention wants them, (clouds, heads, n, width); folded, heads of queries are rows of one."""
    x = x[own]
    return x.view(count, 1, -1, x.shape[-1]) if fold else x.view(count, -1, *x.shape[1:]).transpose(1, 2)


def _hiding(layout: Layout, mask: Tensor | None, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The mask as numbers (clouds, heads, n, m) to add, and which queries (clouds, n, heads, 1) it leaves no key."""
    if mask is None:
        return None, None
    (lengths, keys), heads = layout.lengths, layout.heads[0]
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape) if mask.ndim < 4 else mask.reshape(-1, *mask.shape[-3:])
    seen = mask if mask.dtype == torch.bool else mask > -math.inf
    none = ~seen.any(-1, keepdim=True)
    added = torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~(seen | none), -math.inf)
    if mask.dtype != torch.bool:
        added = torch.where(seen, mask, added).to(like)
    return added.expand(len(lengths), heads, lengths[0], keys[0]), none.transpose(1, 2)


def _run(
    layout: Layout, mask: Tensor | None, weights: Tensor, planes: Sequence[Tensor], scalars: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    from geom.kernels.clifford_attention import unpack
    from geom.kernels.clifford_clouds import attend

    clouds = _small_clouds(layout, mask)
    if clouds is not None:
        return *attend(clouds, *_of_parts(layout, planes, scalars), weights), []
    heads = _heads(layout)
    q, k, v = _rows(layout, weights, planes, scalars, heads)
    fold, (added, none) = layout.heads[1] == 1 and mask is None, _hiding(layout, mask, q)
    runs = _clouds(layout)
    parts, sums = [], []
    for own, others, count in runs:
        operands = [_of_clouds(x, at, count, fold) for x, at in ((q, own), (k, others), (v, others))]
        if not fold:
            operands[1:] = [x.expand(-1, layout.heads[0], -1, -1) for x in operands[1:]]
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *operands, attn_mask=added, scale=layout.scale
        )
        parts.append(out.reshape(-1, *q.shape[1:]) if fold else out.transpose(1, 2).reshape(-1, *q.shape[1:]))
        sums.append(total)
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    if none is not None:
        rows = rows.view(len(layout.lengths[0]), -1, *rows.shape[1:]).masked_fill(none, 0).view_as(rows)
    x = q.new_empty(16, len(q), layout.heads[0] * layout.c)
    s = q.new_empty(len(q), layout.heads[0] * layout.scalars)
    unpack(heads[3], x, s, rows)
    return x, s, sums


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, twin: Twin, layout: Layout, mask: Tensor | None, count: int, weights: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, s, sums = _run(layout, mask, weights, tensors[:count], tensors[count:])
        ctx.save_for_backward(mask, weights, *tensors, *((x, s, *sums) if sums else ()))
        ctx.twin, ctx.layout, ctx.count, ctx.total = twin, layout, count, len(tensors)
        return x, s

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mask, weights, *rest = ctx.saved_tensors
        tensors, result = rest[: ctx.total], rest[ctx.total :]
        if torch.is_grad_enabled() or not run_kernels(*grads, *tensors):
            with torch.enable_grad():
                own = [z.view_as(z) if z.requires_grad else z.detach().requires_grad_() for z in (weights, *tensors)]
                found = torch.autograd.grad(
                    ctx.twin(*own), own, grads, create_graph=torch.is_grad_enabled(), allow_unused=True
                )
        else:
            found = _differentiate(ctx.layout, mask, weights, tensors, ctx.count, result, grads)
        wanted = ctx.needs_input_grad[4:]
        return None, None, None, None, *(g if want else None for g, want in zip(found, wanted, strict=True))


def _differentiate(
    layout: Layout,
    mask: Tensor | None,
    weights: Tensor,
    tensors: Sequence[Tensor],
    count: int,
    result: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> list[Tensor]:
    from geom.kernels.clifford_attention import differentiate_features, pack, unpack
    from geom.kernels.clifford_clouds import differentiate

    planes, scalars, heads = tensors[:count], tensors[count:], _heads(layout)
    found = [torch.empty_like(z) for z in tensors]
    given = grads[0].contiguous(), grads[1].contiguous()
    clouds = _small_clouds(layout, mask)
    if clouds is not None:
        own = list(zip(*_of_parts(layout, found[:count], found[count:]), strict=True))
        return [differentiate(clouds, *_of_parts(layout, planes, scalars), weights, given, own), *found]
    x, s, *sums = result
    q, k, v = _rows(layout, weights, planes, scalars, heads)
    out, grad = torch.empty_like(q), torch.empty_like(q)
    pack(heads[3], x, s, out)
    pack(heads[3], *given, grad)
    fold, (added, none) = layout.heads[1] == 1 and mask is None, _hiding(layout, mask, q)
    if none is not None:
        grad = grad.view(len(layout.lengths[0]), -1, *q.shape[1:]).masked_fill_(none, 0).view_as(q)
    parts: list[list[Tensor]] = [[], [], []]
    for (own, others, clouds), total in zip(_clouds(layout), sums, strict=True):
        own_q, own_out, own_grad = (_of_clouds(z, own, clouds, fold) for z in (q, out, grad))
        keys = [_of_clouds(z, others, clouds, fold) for z in (k, v)]
        if not fold:
            keys = [z.expand(-1, layout.heads[0], -1, -1) for z in keys]
        of_rows = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            own_grad, own_q, *keys, own_out, total, 0.0, False, attn_mask=added, scale=layout.scale
        )
        for n, (g, like) in enumerate(zip(of_rows, (q, k, v), strict=True)):
            if n and layout.heads[1] == 1 and not fold:
                g = g.sum(1, keepdim=True)
            parts[n].append(g.reshape(-1, *like.shape[1:]) if fold else g.transpose(1, 2).reshape(-1, *like.shape[1:]))
    rows = [part[0] if len(part) == 1 else torch.cat(part) for part in parts]
    dots = weights.new_empty(len(q), *weights.shape)
    for kind, (part, own) in enumerate(zip(layout.parts, heads, strict=False)):
        x, s = planes[part.planes], scalars[part.scalars]
        gx, gs = found[part.planes], found[count + part.scalars]
        if kind == 2:
            unpack(own, gx, gs, rows[2])
        else:
            given = (None, True) if kind else (weights, False)
            differentiate_features(own, x, s, rows[kind], *given, layout.epsilon, (gx, gs), None if kind else dots)
    return [dots.sum(0), *found]
