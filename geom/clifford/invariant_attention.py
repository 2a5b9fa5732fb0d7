"""Attention of multivectors and scalars, its logits invariants of the algebra: inner products and distances."""

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geom.clifford.algebra import PGA, Algebra
from geom.nn.ragged_attention import attention
from geom.roots import safe_sqrt

__all__ = ["attend", "attend_by_products", "geometric_attention", "join_attention"]

Mask = Bool[Tensor, "*mask"] | Float[Tensor, "*mask"]

# Heads have multivectors (..., n, B, c) and scalars (..., n, s).


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


def attend(
    heads: Iterable[tuple[Tensor, Tensor]],
    weights: Tensor | None,
    epsilon: float | None,
    mask: Tensor | None = None,
    offsets: Tensor | None = None,
    key_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`geometric_attention` of queries, keys and values, without distances where epsilon is None.

    Guarantees: differentiable (any order); deterministic; 4e-15 f64, 2e-6 f32 of the greatest value
    """
    queries, keys, values = heads
    v = torch.cat([values[0].flatten(-2), values[1]], -1)
    q, k = _of_queries(*queries, v.shape[-1], weights, epsilon), _of_keys(*keys, v.shape[-1], epsilon)
    scale = ((8 if epsilon is None else 12) * queries[0].shape[-1] + queries[1].shape[-1]) ** -0.5
    out = attention(q, k, v, scale=scale, mask=mask, offsets=offsets, key_offsets=key_offsets)
    x, s = out.split([out.shape[-1] - values[1].shape[-1], values[1].shape[-1]], -1)
    return x.unflatten(-1, (values[0].shape[-2], -1)), s


def attend_by_products(
    heads: Iterable[tuple[Tensor, Tensor]],
    algebra: Algebra,
    mask: Tensor | None,
    offsets: Tensor | None,
    key_offsets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention whose logits are inner products of the algebra, over the root of how many numbers count in them.

    Guarantees: differentiable (any order); deterministic; 4e-15 f64, 2e-6 f32 of the greatest value
    """
    (x, s), (y, t), (value, scalar) = heads
    counting = [i for i, square in enumerate(algebra.squares) if square]
    signs = x.new_tensor([algebra.squares[i] for i in counting])[:, None]
    v = torch.cat([value.flatten(-2), scalar], -1)
    q = _features([x[..., counting, :] * signs], s, v.shape[-1])
    k = _features([y[..., counting, :]], t, v.shape[-1])
    scale = (len(counting) * x.shape[-1] + s.shape[-1]) ** -0.5
    out = attention(q, k, v, scale=scale, mask=mask, offsets=offsets, key_offsets=key_offsets)
    z, u = out.split([out.shape[-1] - scalar.shape[-1], scalar.shape[-1]], -1)
    return z.unflatten(-1, (algebra.size, -1)), u


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
    x, s = attend(heads, scale, epsilon if distance else None, mask)
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
