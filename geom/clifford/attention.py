"""Attention between multivectors by invariants: inner products and distances."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from geom.checks import check_positive
from geom.clifford.algebra import PGA
from geom.clifford.linear import EquiLinear, apply_together, check_size, enter, leave
from geom.errors import ShapeError
from geom.nn.ragged_attention import attention
from geom.roots import safe_sqrt

__all__ = ["AttentionPlan", "CrossAttention", "SelfAttention", "geometric_attention", "join_attention"]

Mask = Bool[Tensor, "*mask"] | Float[Tensor, "*mask"]


@dataclass(frozen=True)
class AttentionPlan:
    """The shape of an attention layer, the defaults being those of GATr.

    Fields:
        heads: of C multivectors and S scalars each has max(increase C // heads, 1) and max(increase S // heads, 4).
        multi_query: one head of keys and values for all of the queries.
        increase: see heads.
        rotary: rotary positions, along the items, of the scalars, in each head an even number, at least 8.
        epsilon: of the weights e123 of points, 1e-3: squares far below it count as no point.

    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; exact
    """

    heads: int = 8
    multi_query: bool = True
    increase: int = 2
    rotary: bool = False
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        check_size(self.heads, "heads")
        check_size(self.increase, "increase")
        check_positive(self.epsilon, "epsilon")

    def sizes(self, channels: int, scalars: int) -> tuple[int, int]:
        """How many multivectors and scalars each head has. Guarantees: not differentiable; deterministic; exact"""
        own = max(self.increase * scalars // self.heads, 4) if scalars else 0
        if self.rotary and own:
            own = max(own + own % 2, 8)
        return max(self.increase * channels // self.heads, 1), own


# --- features ---------------------------------------------------------------------------------------------------------
# Heads have multivectors (..., n, 16, c) and scalars (..., n, s).


def _features(parts: Sequence[Tensor], s: Tensor, width: int) -> Tensor:
    """Parts (..., n, k, c) and scalars, then zeros up to the width of values: torch's attention wants as many."""
    parts = [*(part.flatten(-2) for part in parts), s]
    missing = max(0, width - sum(part.shape[-1] for part in parts))
    return torch.cat([*parts, s.new_zeros(()).expand(*s.shape[:-1], missing)], -1)


def _split(x: Tensor, epsilon: float | None) -> tuple[list[Tensor], Tensor, Tensor]:
    """Components without e0, of which inner products are sums; (e012, e013, e023) and e123, of which distances are (and
    without them inner products too), times w / (w^2 + epsilon) for w = e123."""
    scalar, _, vector, _, bivector, point, weight, _ = x.split((1, 1, 3, 3, 3, 3, 1, 1), -2)
    if epsilon is None:
        return [scalar, vector, bivector, weight], point, weight
    scale = weight / (weight.square() + epsilon)
    return [scalar, vector, bivector], point * scale, weight * scale


def _of_queries(x: Tensor, s: Tensor, width: int, weights: Tensor | None, epsilon: float | None) -> Tensor:
    parts, e, w = _split(x, epsilon)
    if epsilon is not None:
        distance = torch.cat([e.square().sum(-2, keepdim=True), w.square(), e * w], -2)
        parts.append(distance if weights is None else distance * weights)
    return _features(parts, s, width)


def _of_keys(x: Tensor, s: Tensor, width: int, epsilon: float | None) -> Tensor:
    parts, e, w = _split(x, epsilon)
    if epsilon is not None:
        parts += [-w.square(), -e.square().sum(-2, keepdim=True), 2 * e * w]
    return _features(parts, s, width)


def _attend(
    heads: Iterable[tuple[Tensor, Tensor]],
    weights: Tensor | None,
    epsilon: float | None,
    mask: Tensor | None = None,
    offsets: Tensor | None = None,
    key_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    queries, keys, values = heads
    v = torch.cat([values[0].flatten(-2), values[1]], -1)
    q, k = _of_queries(*queries, v.shape[-1], weights, epsilon), _of_keys(*keys, v.shape[-1], epsilon)
    scale = ((8 if epsilon is None else 12) * queries[0].shape[-1] + queries[1].shape[-1]) ** -0.5
    out = attention(q, k, v, scale=scale, mask=mask, offsets=offsets, key_offsets=key_offsets)
    x, s = out.split([out.shape[-1] - values[1].shape[-1], values[1].shape[-1]], -1)
    return x.unflatten(-1, (PGA.size, -1)), s


def geometric_attention(
    queries: tuple[Float[Tensor, "*b h n c 16"], Float[Tensor, "*b h n s"]],
    keys: tuple[Float[Tensor, "*b #h m c 16"], Float[Tensor, "*b #h m s"]],
    values: tuple[Float[Tensor, "*b #h m cv 16"], Float[Tensor, "*b #h m sv"]],
    *,
    weights: Float[Tensor, "*h #n c"] | None = None,
    distance: bool = True,
    epsilon: float = 1e-3,
    mask: Mask | None = None,
) -> tuple[Float[Tensor, "*b h n cv 16"], Float[Tensor, "*b h n sv"]]:
    """Attention whose logits are invariant to Pin(3, 0, 1) (Brehmer et al., 2023, Eq. (7); de Haan et al., 2024).

        logit = (sum_c <q_c, k_c>' + q_s . k_s - sum_c weight_c w_q^2 w_k^2 |p_q - p_k|^2) / sqrt(12 c + s)

    <,>' is `PGA.inner_product` without e123, p the points of the trivectors, and w^2 of each is w'^2 / (w'^2 + epsilon)
    for its weight w' = e123, so about 1, and 0 where it holds no point.

    Args:
        queries, keys, values: multivectors (..., H, n, c, 16) and scalars (..., H, n, s); one head of keys and values
            serves all of the queries.
        weights: of the distances (H, 1, c), 1 if not given.
        distance: whether there are any; without, e123 is part of the inner product, and the divisor sqrt(8 c + s).
        epsilon: see above.
        mask: as in `geom.nn.attention`; where it hides all keys, the result is 0.

    Returns: multivectors (..., H, n, c_v, 16) and scalars (..., H, n, s_v). Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 4e-15 f64, 2e-6 f32 of the greatest value
    """
    heads = [(x.mT, s) for x, s in (queries, keys, values)]
    scale = None if weights is None else weights[..., None, :]
    x, s = _attend(heads, scale, epsilon if distance else None, mask)
    return x.mT, s


def join_attention(
    queries: tuple[Float[Tensor, "*b h n c 16"], Float[Tensor, "*b h n s"]],
    keys: tuple[Float[Tensor, "*b h m c 16"], Float[Tensor, "*b h m s"]],
    values: tuple[Float[Tensor, "*b h m cv 16"], Float[Tensor, "*b h m sv"]],
    *,
    mask: Mask | None = None,
) -> tuple[Float[Tensor, "*b h n cv 16"], Float[Tensor, "*b h n sv"]]:
    """Attention by inner products and the sizes of joins, which for points is how far they are apart:

        logit = (sum_c <q_c, k_c> - sqrt(sum_c |join(q_c, k_c)|^2) + q_s . k_s) / sqrt(16 c + s)

    It holds n m c multivectors; `geometric_attention` takes its place for many items.

    Args and Returns: as of `geometric_attention`. Raises: ShapeError.

    Guarantees: differentiable (first order at joins of 0); deterministic; 4e-15 f64, 2e-6 f32 of the greatest value
    """
    (x, s), (y, t), (value, scalar) = queries, keys, values
    x, y = x[..., :, None, :, :], y[..., None, :, :, :]
    joins = PGA.join(x, y)
    squares = PGA.inner_product(joins, joins).sum(-1)
    logits = PGA.inner_product(x, y).sum(-1) - safe_sqrt(squares) + s @ t.mT
    logits = logits / math.sqrt(2 * 8 * x.shape[-2] + s.shape[-1])
    if mask is not None:
        logits = torch.where(mask, logits, -math.inf) if mask.dtype == torch.bool else logits + mask
    none = logits.detach().amax(-1, keepdim=True) == -math.inf
    weights = torch.where(none, 0, torch.where(none, 0, logits).softmax(-1))
    return (weights @ value.flatten(-2)).unflatten(-1, value.shape[-2:]), weights @ scalar


# --- layers -----------------------------------------------------------------------------------------------------------


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

    def __init__(self, plan: AttentionPlan, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.plan, (self.head_channels, self.head_scalars) = plan, sizes
        self.attention = _DistanceWeights(plan.heads, sizes[0])

    def _split(self, x: Tensor, s: Tensor | None, groups: int, heads: int) -> list[tuple[Tensor, Tensor]]:
        """Planes (16, ..., n, groups c heads), heads fastest: (..., heads, n, 16, c) and (..., n, heads, s)."""
        xs = x.unflatten(-1, (groups, self.head_channels, heads)).movedim(-3, 0).movedim(1, -3).movedim(-1, -4)
        if s is None:
            return [(y, y.new_zeros((*y.shape[:-4], y.shape[-3], heads, 0))) for y in xs]
        ss = s.unflatten(-1, (groups, self.head_scalars, heads)).movedim(-3, 0).mT
        return list(zip(xs, ss, strict=True))

    def _attend(
        self,
        heads: Iterable[tuple[Tensor, Tensor]],
        mask: Tensor | None,
        offsets: Tensor | None,
        key_offsets: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Planes (16, ..., n, heads c) and scalars (..., n, heads s)."""
        queries, keys, values = heads
        if self.plan.rotary and self.head_scalars:
            queries, keys = ((x, _rotate(s, offsets)) for x, s in (queries, keys))
        turned = ((x, s.movedim(-2, -3)) for x, s in (queries, keys, values))
        weights = self.attention.log_weights.exp()[..., None, :]
        x, s = _attend(turned, weights, self.plan.epsilon, mask, offsets, key_offsets)
        x = x.movedim(-4, -3).movedim(-2, 0).flatten(-2)
        return x, s.movedim(-3, -2).flatten(-2) if self.head_scalars else None


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
        generator: draws the first weights.

    The call: multivectors (..., n, C, 16), scalars (..., n, S) or None; extra, the further multivectors and scalars;
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
        generator: torch.Generator | None = None,
    ) -> None:
        c, s = sizes = plan.sizes(in_channels, in_scalars)
        super().__init__(plan, sizes)
        wide, more = in_channels + extra_channels, in_scalars + extra_scalars
        self.qkv_module = nn.Module()
        if plan.multi_query:
            for name, heads, inner in (
                ("q", plan.heads, (wide, more)),
                ("k", 1, (wide, more)),
                ("v", 1, (in_channels, in_scalars)),
            ):
                layer = EquiLinear(inner[0], heads * c, inner[1], heads * s, generator=generator)
                self.qkv_module.add_module(f"{name}_linear", layer)
        else:
            layer = EquiLinear(wide, 3 * plan.heads * c, more, 3 * plan.heads * s, generator=generator)
            self.qkv_module.add_module("in_linear", layer)
        self.out_linear = EquiLinear(
            plan.heads * c, out_channels, plan.heads * s, out_scalars, init=init, generator=generator
        )

    def forward(
        self,
        multivectors: Float[Tensor, "*b n c_in 16"],
        scalars: Float[Tensor, "*b n s_in"] | None = None,
        *,
        extra: tuple[Float[Tensor, "*b n c_x 16"] | None, Float[Tensor, "*b n s_x"] | None] = (None, None),
        mask: Mask | None = None,
        offsets: Int64[Tensor, "clouds"] | None = None,
    ) -> tuple[Float[Tensor, "*b n c_out 16"], Float[Tensor, "*b n s_out"] | None]:
        more = None if extra[0] is None else enter(extra[0], "extra")
        x, s = self.planes(enter(multivectors), scalars, (more, extra[1]), mask, offsets)
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
        """The layer on planes (16, ..., n, C).

        Guarantees: differentiable (any order); deterministic; 4e-15 f64, 2e-6 f32 of the greatest entry
        """
        if x.ndim < 3:
            raise ShapeError(
                f"multivectors: expected a tensor (..., n, channels, 16), got {tuple(x.shape[1:])} of them"
            )
        wide = x if extra[0] is None else torch.cat([x, extra[0]], -1)
        more = s if extra[1] is None else extra[1] if s is None else torch.cat([s, extra[1]], -1)
        heads, layers = self.plan.heads, self._layers()
        if len(layers) == 1:
            split = self._split(*layers[0].planes(wide, more), 3, heads)
        elif wide is x and more is s:
            y, t = apply_together(layers, x, s)
            counts = (heads, 1, 1)
            ys = y.split([self.head_channels * count for count in counts], -1)
            ts = [None] * 3 if t is None else t.split([self.head_scalars * count for count in counts], -1)
            split = [self._split(a, b, 1, count)[0] for a, b, count in zip(ys, ts, counts, strict=True)]
        else:
            inputs = ((wide, more), (wide, more), (x, s))
            split = [
                self._split(*layer.planes(*pair), 1, count)[0]
                for layer, pair, count in zip(layers, inputs, (heads, 1, 1), strict=True)
            ]
        return self.out_linear.planes(*self._attend(split, mask, offsets, offsets))


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
        heads = [
            self._split(*layer.planes(*pair), 1, count)[0]
            for layer, pair, count in (
                (self.q_linear, (x, query_scalars), self.plan.heads),
                (self.k_linear, (y, key_scalars), 1),
                (self.v_linear, (y, key_scalars), 1),
            )
        ]
        out, s = self.out_linear.planes(*self._attend(heads, mask, offsets, key_offsets))
        return leave(out), s
