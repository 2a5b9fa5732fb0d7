"""Layers of attention between multivectors: plans, self attention, cross attention."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from geom.checks import check_integer, check_offsets, check_positive
from geom.clifford.algebra import PGA, Algebra
from geom.clifford.attention_planes import Layout, Part, attend_planes, can_attend_planes
from geom.clifford.invariant_attention import Mask, attend, attend_by_products, geometric_attention, join_attention
from geom.clifford.linear import EquiLinear, apply_together, check_join, enter, leave
from geom.clifford.tracks import TrackHeads, Tracks
from geom.errors import ShapeError

__all__ = ["AttentionPlan", "CrossAttention", "SelfAttention", "geometric_attention", "join_attention"]


@dataclass(frozen=True)
class AttentionPlan:
    """The shape of an attention layer, the defaults being those of GATr.

    Fields:
        heads: of C multivectors and S scalars each has max(increase C // heads, 1) and max(increase S // heads, 4).
        multi_query: one head of keys and values for all of the queries.
        increase: see heads.
        rotary: rotary positions, along the items, of the scalars, in each head an even number, at least 8.
        epsilon: of the weights e123 of points, 1e-3: squares far below it count as no point.
        distance: whether distances of points count, or inner products alone; None for where the algebra is `PGA`.

    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; exact
    """

    heads: int = 8
    multi_query: bool = True
    increase: int = 2
    rotary: bool = False
    epsilon: float = 1e-3
    distance: bool | None = None

    def __post_init__(self) -> None:
        check_integer(self.heads, "heads")
        check_integer(self.increase, "increase")
        check_positive(self.epsilon, "epsilon")

    def sizes(self, channels: int, scalars: int) -> tuple[int, int]:
        """How many multivectors and scalars each head has. Guarantees: not differentiable; deterministic; exact"""
        own = max(self.increase * scalars // self.heads, 4) if scalars else 0
        if self.rotary and own:
            own = max(own + own % 2, 8)
        return max(self.increase * channels // self.heads, 1), own


def _rotate(s: Tensor, offsets: Tensor | None) -> Tensor:
    """Scalars (..., n, heads, s) turned by their positions along the items, two by two (Su et al., 2021)."""
    half = s.shape[-1] // 2
    rate = 4096.0 ** (-torch.arange(half, device=s.device, dtype=torch.float64) / half)
    place = torch.arange(s.shape[-3], device=s.device)
    if offsets is not None:
        place = place - torch.repeat_interleave(offsets[:-1], offsets.diff(), output_size=len(place))
    angle = (place[:, None] * rate)[:, None]
    cos, sin = angle.cos().to(s), angle.sin().to(s)
    a, b = s.split(half, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class _DistanceWeights(nn.Module):
    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.log_weights = nn.Parameter(torch.ones(heads, 1, channels))


class _Attention(nn.Module):
    """What self and cross attention share: heads of queries, keys and values, and the way out."""

    def __init__(self, plan: AttentionPlan, sizes: tuple[int, int], algebra: Algebra = PGA) -> None:
        super().__init__()
        self.plan, (self.head_channels, self.head_scalars), self.algebra = plan, sizes, algebra
        self.distance = check_join(plan.distance, algebra, "distance")
        if self.distance:
            self.attention = _DistanceWeights(plan.heads, sizes[0])

    def _split(self, x: Tensor, s: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Planes (B, ..., n, c heads) and scalars, heads fastest: (..., heads, n, B, c) and (..., heads, n, s)."""
        x = x.unflatten(-1, (self.head_channels, heads)).movedim(0, -3).movedim(-1, -4)
        return x, s.unflatten(-1, (s.shape[-1] // heads, heads)).movedim(-1, -3)

    def _attend(
        self,
        planes: Sequence[Tensor],
        scalars: Sequence[Tensor | None],
        parts: tuple[Part, Part, Part],
        key_heads: int,
        mask: Tensor | None,
        offsets: Tensor | None,
        key_offsets: Tensor | None,
        more: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Planes (B, ..., n, heads c) and scalars (..., n, heads s), from those (..., n, C) that the parts are of.

        Heads have `more` scalars than the layer's.
        """
        heads, c, own = self.plan.heads, self.head_channels, self.head_scalars + more
        ss = [x.new_zeros((*x.shape[1:-1], 0)) if s is None else s for x, s in zip(planes, scalars, strict=True)]
        counts = (heads, key_heads, key_heads)
        if self.plan.rotary and own:
            found = [
                ss[part.scalars].narrow(-1, part.scalar, own * count) for part, count in zip(parts, counts, strict=True)
            ]
            for k, count in enumerate(counts[:2]):
                found[k] = _rotate(found[k].unflatten(-1, (own, count)).mT, offsets).mT.flatten(-2)
            ss, parts = (
                found,
                (
                    Part(parts[0].planes, 0, parts[0].channel),
                    Part(parts[1].planes, 1, parts[1].channel),
                    Part(parts[2].planes, 2, parts[2].channel),
                ),
            )
        items = [planes[part.planes].shape[1:-1] for part in parts[:2]]
        count = len(planes)

        def twin(weights: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            """From planes (16, N, C) and scalars (N, S)."""
            operands = []
            for part, number in zip(parts, counts, strict=True):
                shape = planes[part.planes].shape[1:-1]
                x = tensors[part.planes].narrow(-1, part.channel, c * number).unflatten(1, shape)
                s = tensors[count + part.scalars].narrow(-1, part.scalar, own * number).unflatten(0, shape)
                operands.append(self._split(x, s, number))
            if self.distance:
                x, s = attend(operands, weights[:, None, None], self.plan.epsilon, mask, offsets, key_offsets)
            else:
                x, s = attend_by_products(operands, self.algebra, mask, offsets, key_offsets)
            x = x.movedim(-4, -3).movedim(-2, 0).flatten(-2)
            return x.flatten(1, -2), s.movedim(-3, -2).flatten(-2).flatten(0, -2)

        flat = [x.flatten(1, -2).contiguous() for x in planes], [s.flatten(0, -2).contiguous() for s in ss]
        weights = self.attention.log_weights.exp()[:, 0] if self.distance else flat[0][0].new_ones(heads, c)
        lengths = _lengths(items, (heads, key_heads), mask, offsets, key_offsets) if self.distance else None
        layout = None if lengths is None else Layout(parts, (heads, key_heads), c, own, self.plan.epsilon, lengths)
        if layout is not None and can_attend_planes(layout, mask, weights, *flat[0], *flat[1]):
            if mask is not None and mask.ndim > 4:
                mask = mask.expand(*items[0][:-1], *mask.shape[-3:])
            x, s = attend_planes(twin, layout, weights, *flat, mask)
        else:
            x, s = twin(weights, *flat[0], *flat[1])
        return x.unflatten(1, items[0]), s.unflatten(0, items[0]) if own else None


def _lengths(
    items: Sequence[torch.Size],
    heads: tuple[int, int],
    mask: Tensor | None,
    offsets: Tensor | None,
    key_offsets: Tensor | None,
) -> tuple[list[int], list[int]] | None:
    """How many queries and keys each cloud has, of those in `items`; None where `attention` has an error to raise."""
    if torch.compiler.is_compiling():
        return None
    (*batch, n), (*others, m) = items
    if offsets is None and key_offsets is None:
        fits = mask is None or _broadcasts(mask, (*batch, heads[0], n, m))
        return ([n] * math.prod(batch), [m] * math.prod(batch)) if fits and batch == others else None
    if offsets is None or mask is not None or batch:
        return None
    found = []
    for own, count in ((offsets, n), (offsets if key_offsets is None else key_offsets, m)):
        found.append(check_offsets(own, count, device=own.device).diff().tolist())
    return (found[0], found[1]) if len(found[0]) == len(found[1]) else None


def _broadcasts(mask: Tensor, shape: tuple[int, ...]) -> bool:
    try:
        return torch.broadcast_shapes(mask.shape, shape) == shape
    except RuntimeError:
        return False


def _append(scalars: Tensor | None, start: int, count: int, rows: Tensor) -> Tensor:
    """Some of the scalars (..., n, S), and rows (..., n, heads, D), heads fastest."""
    rows = rows.mT.flatten(-2)
    return rows if scalars is None else torch.cat([scalars.narrow(-1, start, count), rows], -1)


class SelfAttention(_Attention):
    """Multi-head or multi-query attention of multivectors and scalars among the items of a cloud.

    Queries, keys and values are `EquiLinear` maps of the input, attention is `geometric_attention`, whose weights of
    distances are exp(log_weights), learned, and the result passes another `EquiLinear`.

    Args:
        in_channels, out_channels, in_scalars, out_scalars: 0 for no scalars.
        plan: heads and positions.
        extra_channels, extra_scalars: further ones that the call takes for queries and keys (and, unless multi_query,
            values).
        init: of the last map.
        algebra: of the B blades of multivectors.
        tracks: how many tracks of each degree come and go, in networks.
        generator: draws the first weights.

    The call: multivectors (..., n, C, B), scalars (..., n, S) or None; extra, the further multivectors and scalars;
        mask, as in `geom.nn.attention`, that broadcasts to (..., heads, n, n); offsets of clouds that stand one after
        the other, without batch axes. The result: multivectors, and scalars or None.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 4e-15 f64, 2e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_scalars: int = 0,
        out_scalars: int = 0,
        *,
        plan: AttentionPlan = AttentionPlan(),
        extra_channels: int = 0,
        extra_scalars: int = 0,
        init: str = "default",
        algebra: Algebra = PGA,
        tracks: Mapping[int, int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        c, s = sizes = plan.sizes(in_channels, in_scalars)
        super().__init__(plan, sizes, algebra)
        wide, more = in_channels + extra_channels, in_scalars + extra_scalars
        self.qkv_module = nn.Module()
        if plan.multi_query:
            for name, heads, inner in (
                ("q", plan.heads, (wide, more)),
                ("k", 1, (wide, more)),
                ("v", 1, (in_channels, in_scalars)),
            ):
                layer = EquiLinear(inner[0], heads * c, inner[1], heads * s, algebra=algebra, generator=generator)
                self.qkv_module.add_module(f"{name}_linear", layer)
        else:
            counts = 3 * plan.heads * c, more, 3 * plan.heads * s
            layer = EquiLinear(wide, *counts, algebra=algebra, generator=generator)
            self.qkv_module.add_module("in_linear", layer)
        self.out_linear = EquiLinear(
            *(plan.heads * c, out_channels, plan.heads * s, out_scalars),
            init=init,
            algebra=algebra,
            generator=generator,
        )
        self.tracks = None
        if tracks:
            if plan.rotary:
                raise ShapeError(f"plan: expected no rotary positions beside tracks, got {plan}")
            few = 1 if plan.multi_query else plan.heads
            self.tracks = TrackHeads(tracks, heads=plan.heads, few=few, increase=plan.increase, generator=generator)

    def forward(
        self,
        multivectors: Float[Tensor, "*b n c_in blades"],
        scalars: Float[Tensor, "*b n s_in"] | None = None,
        *,
        extra: tuple[Float[Tensor, "*b n c_x blades"] | None, Float[Tensor, "*b n s_x"] | None] = (None, None),
        mask: Mask | None = None,
        offsets: Int64[Tensor, "clouds"] | None = None,
    ) -> tuple[Float[Tensor, "*b n c_out blades"], Float[Tensor, "*b n s_out"] | None]:
        more = None if extra[0] is None else enter(extra[0], "extra", self.algebra)
        x, s = self.planes(enter(multivectors, algebra=self.algebra), scalars, (more, extra[1]), mask, offsets)
        return leave(x), s

    def _layers(self) -> list[EquiLinear]:
        return [layer for layer in self.qkv_module.children() if isinstance(layer, EquiLinear)]

    def planes(
        self,
        x: Tensor,
        s: Tensor | None,
        extra: tuple[Tensor | None, Tensor | None] = (None, None),
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The layer on planes (B, ..., n, C).

        Guarantees: differentiable (any order); deterministic; 4e-15 f64, 2e-6 f32 of the greatest entry
        """
        return self.planes_and_tracks(x, s, None, extra, mask, offsets)[:2]

    def planes_and_tracks(
        self,
        x: Tensor,
        s: Tensor | None,
        tracks: Tracks | None,
        extra: tuple[Tensor | None, Tensor | None] = (None, None),
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tracks | None]:
        """The layer on planes (B, ..., n, C), and on tracks (2 l + 1, ..., n, C_l) where it has any.

        Guarantees: differentiable (any order); deterministic; 4e-15 f64, 2e-6 f32 of the greatest entry
        """
        if x.ndim < 3:
            raise ShapeError(
                f"multivectors: expected a tensor (..., n, channels, {self.algebra.size}), got {tuple(x.shape[1:])} of "
                "them"
            )
        wide = x if extra[0] is None else torch.cat([x, extra[0]], -1)
        more = s if extra[1] is None else extra[1] if s is None else torch.cat([s, extra[1]], -1)
        heads, layers = self.plan.heads, self._layers()
        c, own = self.head_channels, self.head_scalars
        if (wide is x and more is s) or len(layers) == 1:
            y, t = apply_together(layers, wide, more)
            places = (0, heads, heads + (1 if self.plan.multi_query else heads))
            parts = [Part(0, 0, c * place, own * place) for place in places]
            planes, scalars = [y], [t]
        else:
            inputs = ((wide, more), (wide, more), (x, s))
            found = [layer.planes(*pair) for layer, pair in zip(layers, inputs, strict=True)]
            parts = [Part(k, k) for k in range(3)]
            planes, scalars = [y for y, _ in found], [t for _, t in found]
        key_heads = 1 if self.plan.multi_query else heads
        depth = 0
        if self.tracks is not None and tracks is not None:  # their numbers are further scalars of each head
            rows = self.tracks.split(tracks)
            depth = rows[0].shape[-1]
            scalars = [
                _append(scalars[part.scalars], part.scalar, own * count, row)
                for part, count, row in zip(parts, (heads, key_heads, key_heads), rows, strict=True)
            ]
            if len(planes) == 1:
                starts = accumulate((x.shape[-1] for x in scalars), initial=0)
                parts = [Part(0, 0, part.channel, start) for part, start in zip(parts, starts, strict=False)]
                scalars = [torch.cat(scalars, -1)]
        out, t = self._attend(planes, scalars, (parts[0], parts[1], parts[2]), key_heads, mask, offsets, offsets, depth)
        if self.tracks is None or not depth or t is None:
            return *self.out_linear.planes(out, t), None
        t, values = t.unflatten(-1, (heads, -1)).split([own, depth], -1)
        return *self.out_linear.planes(out, t.flatten(-2) if own else None), self.tracks.join(values)


class CrossAttention(_Attention):
    """Attention of multivectors and scalars of one cloud to those of another, with one head of keys and values.

    Args:
        query_channels, key_channels, out_channels; query_scalars, key_scalars, out_scalars, 0 for none: of queries, of
            keys and values, whose numbers also give those of the heads, and of the result.
        plan: heads; without rotary positions.
        generator: draws the first weights.

    The call: multivectors (..., n, C_q, 16) and (..., m, C_k, 16); scalars of each, or None; mask, as in
        `geom.nn.attention`, that broadcasts to (..., heads, n, m); offsets of clouds of queries and key_offsets of keys
        that stand one after the other. The result: multivectors (..., n, C, 16), and scalars or None.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 4e-15 f64, 2e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        query_channels: int,
        key_channels: int,
        out_channels: int,
        query_scalars: int = 0,
        key_scalars: int = 0,
        out_scalars: int = 0,
        *,
        plan: AttentionPlan = AttentionPlan(),
        generator: torch.Generator | None = None,
    ) -> None:
        if plan.rotary or not plan.multi_query:
            raise ShapeError(f"plan: expected multi_query without rotary positions, got {plan}")
        c, s = sizes = plan.sizes(key_channels, key_scalars)
        super().__init__(plan, sizes)
        self.q_linear = EquiLinear(query_channels, plan.heads * c, query_scalars, plan.heads * s, generator=generator)
        self.k_linear = EquiLinear(key_channels, c, key_scalars, s, generator=generator)
        self.v_linear = EquiLinear(key_channels, c, key_scalars, s, generator=generator)
        self.out_linear = EquiLinear(plan.heads * c, out_channels, plan.heads * s, out_scalars, generator=generator)

    def forward(
        self,
        queries: Float[Tensor, "*b n c_q 16"],
        keys: Float[Tensor, "*b m c_k 16"],
        query_scalars: Float[Tensor, "*b n s_q"] | None = None,
        key_scalars: Float[Tensor, "*b m s_k"] | None = None,
        *,
        mask: Mask | None = None,
        offsets: Int64[Tensor, "clouds"] | None = None,
        key_offsets: Int64[Tensor, "clouds"] | None = None,
    ) -> tuple[Float[Tensor, "*b n c_out 16"], Float[Tensor, "*b n s_out"] | None]:
        x, y = enter(queries, "queries"), enter(keys, "keys")
        found = [
            layer.planes(*pair)
            for layer, pair in (
                (self.q_linear, (x, query_scalars)),
                (self.k_linear, (y, key_scalars)),
                (self.v_linear, (y, key_scalars)),
            )
        ]
        planes, scalars = [y for y, _ in found], [t for _, t in found]
        parts = Part(0, 0), Part(1, 1), Part(2, 2)
        out, s = self.out_linear.planes(*self._attend(planes, scalars, parts, 1, mask, offsets, key_offsets))
        return leave(out), s
