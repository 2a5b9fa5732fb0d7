"""Geometric attention within clouds of few keys, with one head of them: from planes to planes, a cloud at a time.

Planes are (16, N, C), scalars (N, S). Neighbouring channels of the queries are of neighbouring heads, so that a vector
of them is one feature of LANES heads; those of the result are of one head. Rows of features and values of a cloud's
keys, and what the kernels hold of one query, stay in the first caches. Nothing but planes is read or written.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import warp as wp
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import native_kernel

__all__ = ["LANES", "Clouds", "attend", "differentiate"]

LANES = 8  # heads at a time, of which there are a multiple
_ELEMENTS = 64  # of a range, for each query
_INNER = (0, 2, 3, 4, 8, 9, 10)  # components of which inner products are sums
_NONE = (1, 5, 6, 7, 15)  # components that no feature holds

Kernels = dict[torch.dtype, wp.Kernel]


def _each(components: tuple[int, ...], code: str) -> str:
    """The code for each channel j of each component $, number @ among them."""
    table, code = ", ".join(map(str, components)), code.replace("$", "of[k]").replace("@", "k")
    return f"""{{
        const int of[] = {{{table}}};
        for (int k = 0; k < {len(components)}; ++k)
            #pragma clang loop vectorize(disable) unroll(disable)
            for (int j = 0; j < c; ++j) {code}
    }}"""


def _exponential(degree: int) -> str:
    """2^r for |r| <= 1/2, to 5e-9 for degree 7 and 3e-18 for degree 13."""
    text = "REAL(0)"
    for k in range(degree, -1, -1):
        text = f"({text} * r + REAL({math.log(2) ** k / math.factorial(k)!r}))"
    return text


# e = (e012, e013, e023) w / (w^2 + epsilon) and u = w^2 / (w^2 + epsilon) for w = e123, of one channel
_POINT = """
    const TYPE t0 = AT(11), t1 = AT(12), t2 = AT(13), w = AT(14);
    const TYPE under = 1 / (w * w + (REAL)epsilon), scale = w * under;
    const TYPE e0 = t0 * scale, e1 = t1 * scale, e2 = t2 * scale, u = w * scale;
    const TYPE square = e0 * e0 + e1 * e1 + e2 * e2;
"""


# The gradient in the trivector, from those in e, g0 to g2, and in u
_POINT_ADJOINT = """
    const TYPE along = (g0 * t0 + g1 * t1 + g2 * t2 + gu * w) * ((REAL)epsilon - w * w) * under * under;
    AT(11) = g0 * scale;
    AT(12) = g1 * scale;
    AT(13) = g2 * scale;
    AT(14) = gu * scale + along;
"""


def _channel(code: str, kind: str, at: str) -> str:
    """The code for channel j, or for one of several heads, whose component $ is `at`."""
    for k in range(11, 15):
        code = code.replace(f"AT({k})", at.replace("$", str(k)))
    return code.replace("TYPE", kind)


_OF_QUERY = "(*(const V*)(x + $ * q_plane + j * heads))"
_TO_QUERY = "(*(V*)(x + $ * q_plane + j * heads))"
_OF_KEY = "x[$ * k_plane + j]"

# What both kernels begin with. Multiplications and additions are fused within an expression and nowhere else.
_BEGIN = f"""
    #pragma clang fp contract(on)
    typedef REAL V __attribute__((ext_vector_type(LANES), aligned(sizeof(REAL))));
    typedef REAL U __attribute__((ext_vector_type(16), aligned(sizeof(REAL))));
    typedef decltype(V() < V()) Bits;
    const long long begin = (long long)i * grain, end = begin + grain < count ? begin + grain : count;
    const long long features = (12 * c + scalars + 3) / 4 * 4, width = (16 * c + scalars + 15) / 16 * 16;
    const long long* q_offsets = (const long long*)q_offsets_;
    const long long* k_offsets = (const long long*)k_offsets_;
    REAL* room = (REAL*)scratch_ + i * size;
    auto take = [&](long long numbers) -> REAL* {{
        REAL* found = room;
        room += (numbers + 15) / 16 * 16;
        return found;
    }};
    REAL* turned = take(heads * c);  // the weights of distances, heads fastest
    REAL* keys = take(most * features);
    REAL* values = take(most * width);
    V* query = (V*)take(features * LANES);
    V* weights = (V*)take(most * LANES);
    REAL* rows = take(LANES * width);
    for (int j = 0; j < c; ++j) for (int h = 0; h < heads; ++h) turned[j * heads + h] = ((REAL*)weights_)[h * c + j];

    auto read_keys = [&](long long first, int m) {{
        for (int r = 0; r < m; ++r) {{
            const REAL* x = (const REAL*)k_ + (first + r) * k_row;
            const REAL* s = (const REAL*)ks_ + (first + r) * ks_row;
            REAL* f = keys + r * features;
            {_each(_INNER, "f[@ * c + j] = x[$ * k_plane + j];")}
            for (int j = 0; j < c; ++j) {{
                {_channel(_POINT, "REAL", _OF_KEY)}
                REAL* own = f + 7 * c + j;
                own[0] = -u * u;
                own[c] = -square;
                own[2 * c] = 2 * e0 * u;
                own[3 * c] = 2 * e1 * u;
                own[4 * c] = 2 * e2 * u;
            }}
            for (int j = 0; j < scalars; ++j) f[12 * c + j] = s[j];
            for (long long j = 12 * c + scalars; j < features; ++j) f[j] = 0;
            x = (const REAL*)v_ + (first + r) * v_row;
            s = (const REAL*)vs_ + (first + r) * vs_row;
            f = values + r * width;
            for (int k = 0; k < 16; ++k) for (int j = 0; j < c; ++j) f[k * c + j] = x[k * v_plane + j];
            for (int j = 0; j < scalars; ++j) f[16 * c + j] = s[j];
            for (long long j = 16 * c + scalars; j < width; ++j) f[j] = 0;
        }}
    }};
    auto read_query = [&](long long n, int head) {{
        const REAL* x = (const REAL*)q_ + n * q_row + head;
        const REAL* s = (const REAL*)qs_ + n * qs_row + head;
        {_each(_INNER, f"query[@ * c + j] = {_OF_QUERY};")}
        for (int j = 0; j < c; ++j) {{
            {_channel(_POINT, "V", _OF_QUERY)}
            const V weight = *(const V*)(turned + j * heads + head);
            V* own = query + 7 * c + j;
            own[0] = square * weight;
            own[c] = u * u * weight;
            own[2 * c] = e0 * u * weight;
            own[3 * c] = e1 * u * weight;
            own[4 * c] = e2 * u * weight;
        }}
        for (int j = 0; j < scalars; ++j) query[12 * c + j] = *(const V*)(s + j * heads);
        for (long long j = 12 * c + scalars; j < features; ++j) query[j] = (REAL)0;
    }};
    // 2^x for x <= 0: round(x) is in the last bits of t
    auto power = [&](V x) __attribute__((always_inline)) -> V {{
        const REAL least = sizeof(REAL) == 4 ? REAL(-126) : REAL(-1022);
        const REAL magic = sizeof(REAL) == 4 ? REAL(12582912.0) : REAL(6755399441055744.0);  // 1.5 2^23, 1.5 2^52
        x = x < least ? (V)least : x;
        const V t = x + magic, r = x - (t - magic);
        const V p = sizeof(REAL) == 4 ? {_exponential(7)} : {_exponential(13)};
        return (V)((Bits)p + ((Bits)t << (sizeof(REAL) == 4 ? 23 : 52)));
    }};
    auto weigh = [&](int m) {{
        int r = 0;
        for (; r + 4 <= m; r += 4) {{
            const REAL* f = keys + r * features;
            V a[4] = {{(REAL)0, (REAL)0, (REAL)0, (REAL)0}}, b[4] = {{(REAL)0, (REAL)0, (REAL)0, (REAL)0}};
            for (long long j = 0; j < features; j += 2)
                for (int k = 0; k < 4; ++k) {{
                    a[k] += query[j] * f[k * features + j];
                    b[k] += query[j + 1] * f[k * features + j + 1];
                }}
            for (int k = 0; k < 4; ++k) weights[r + k] = a[k] + b[k];
        }}
        for (; r < m; ++r) {{
            const REAL* f = keys + r * features;
            V a = (REAL)0, b = (REAL)0;
            for (long long j = 0; j < features; j += 2) {{
                a += query[j] * f[j];
                b += query[j + 1] * f[j + 1];
            }}
            weights[r] = a + b;
        }}
        V top = weights[0], sum = (REAL)0;
        for (r = 1; r < m; ++r) top = weights[r] > top ? weights[r] : top;
        for (r = 0; r < m; ++r) {{
            weights[r] = power((weights[r] - top) * (REAL)(scale_of_logits * {1 / math.log(2)!r}));
            sum += weights[r];
        }}
        sum = 1 / sum;
        for (r = 0; r < m; ++r) weights[r] *= sum;
    }};
    // c numbers of each component of each head, one after the other, and the row of that head
    #define EACH_HEAD(CODE) \\
        if (c == 4) {{ typedef REAL Four __attribute__((ext_vector_type(4), aligned(sizeof(REAL)))); \\
            for (int k = 0; k < 16; ++k) for (int h = 0; h < LANES; ++h) {{ \\
                Four& a = *(Four*)(x + k * o_plane + h * 4); Four& b = *(Four*)(rows + h * width + k * 4); CODE }} }} \\
        else for (int k = 0; k < 16; ++k) for (int h = 0; h < LANES; ++h) for (int j = 0; j < c; ++j) {{ \\
                REAL& a = x[k * o_plane + h * c + j]; REAL& b = rows[h * width + k * c + j]; CODE }} \\
        for (int h = 0; h < LANES; ++h) for (int j = 0; j < scalars; ++j) {{ \\
            REAL& a = s[h * scalars + j]; REAL& b = rows[h * width + 16 * c + j]; CODE }}
"""
_LOOP = """
    for (long long cloud = 0; cloud < clouds; ++cloud) {
        const long long place = q_offsets[cloud] * ELEMENTS, first = k_offsets[cloud];
        if (place < begin || place >= end) continue;
        const int m = (int)(k_offsets[cloud + 1] - first);
        read_keys(first, m);
        BEFORE
        for (long long n = q_offsets[cloud]; n < q_offsets[cloud + 1]; ++n)
            for (int head = 0; head < heads; head += LANES) {
                REAL* x = (REAL*)o_ + n * heads * c + head * c;
                REAL* s = (REAL*)os_ + n * heads * scalars + head * scalars;
                read_query(n, head);
                weigh(m);
                QUERY
            }
        AFTER
    }
    #undef EACH_HEAD
"""
_FORWARD = """
                for (int h = 0; h < LANES; ++h)
                    for (long long j = 0; j < width; j += 16) {
                        U sum = (REAL)0;
                        for (int r = 0; r < m; ++r)
                            sum += *(const U*)(values + r * width + j) * ((const REAL*)weights)[r * LANES + h];
                        *(U*)(rows + h * width + j) = sum;
                    }
                EACH_HEAD(a = b;)
"""
_ROOM = """
    REAL* values_grad = take(most * width);
    V* keys_grad = (V*)take(most * features * LANES);
    V* slopes = (V*)take(most * LANES);
    V* query_grad = (V*)take(features * LANES);
    REAL* dots = take(heads * c);
    for (long long j = 0; j < LANES * width; ++j) rows[j] = 0;
    auto total = [&](V v) __attribute__((always_inline)) -> REAL {
        REAL sum[LANES];
        for (int h = 0; h < LANES; ++h) sum[h] = v[h];
        for (int step = LANES / 2; step; step /= 2) for (int h = 0; h < step; ++h) sum[h] += sum[h + step];
        return sum[0];
    };
"""
_BEFORE = """
        for (long long j = 0; j < m * width; ++j) values_grad[j] = 0;
        for (long long j = 0; j < m * features; ++j) keys_grad[j] = (REAL)0;
        for (long long j = 0; j < heads * c; ++j) dots[j] = 0;
"""
_BACKWARD = f"""
                EACH_HEAD(b = a;)
                V mean = (REAL)0;
                for (int r = 0; r < m; ++r) {{
                    for (int h = 0; h < LANES; ++h) {{
                        U sum = (REAL)0;
                        for (long long j = 0; j < width; j += 16)
                            sum += *(const U*)(rows + h * width + j) * *(const U*)(values + r * width + j);
                        const auto half = sum.lo + sum.hi;
                        const auto quarter = half.lo + half.hi;
                        slopes[r][h] = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
                    }}
                    mean += slopes[r] * weights[r];
                    for (long long j = 0; j < width; j += 16) {{
                        U sum = *(const U*)(values_grad + r * width + j);
                        for (int h = 0; h < LANES; ++h)
                            sum += *(const U*)(rows + h * width + j) * ((const REAL*)weights)[r * LANES + h];
                        *(U*)(values_grad + r * width + j) = sum;
                    }}
                }}
                for (int r = 0; r < m; ++r) slopes[r] = (slopes[r] - mean) * weights[r] * (REAL)scale_of_logits;
                for (long long j = 0; j < features; ++j) query_grad[j] = (REAL)0;
                for (int r = 0; r < m; ++r) {{
                    const V slope = slopes[r];
                    const REAL* f = keys + r * features;
                    V* g = keys_grad + r * features;
                    for (long long j = 0; j < features; ++j) {{
                        query_grad[j] += slope * f[j];
                        g[j] += slope * query[j];
                    }}
                }}
                {{
                    const V* f = query_grad;
                    REAL* x = (REAL*)gq_ + n * q_row + head;
                    {_each(_INNER, f"{_TO_QUERY} = f[@ * c + j];")}
                    {_each(_NONE, f"{_TO_QUERY} = (REAL)0;")}
                    for (int j = 0; j < scalars; ++j)
                        *(V*)((REAL*)gqs_ + n * qs_row + head + j * heads) = f[12 * c + j];
                    for (int j = 0; j < c; ++j) {{
                        const REAL* x = (const REAL*)q_ + n * q_row + head;
                        {_channel(_POINT, "V", _OF_QUERY)}
                        const V weight = *(const V*)(turned + j * heads + head);
                        const V m0 = f[9 * c + j], m1 = f[10 * c + j], m2 = f[11 * c + j];
                        const V of_square = f[7 * c + j], of_u = f[8 * c + j], dot = e0 * m0 + e1 * m1 + e2 * m2;
                        *(V*)(dots + j * heads + head) += square * of_square + u * u * of_u + u * dot;
                        const V g0 = (2 * e0 * of_square + u * m0) * weight;
                        const V g1 = (2 * e1 * of_square + u * m1) * weight;
                        const V g2 = (2 * e2 * of_square + u * m2) * weight;
                        const V gu = (2 * u * of_u + dot) * weight;
                        {{
                            REAL* x = (REAL*)gq_ + n * q_row + head;
                            {_channel(_POINT_ADJOINT, "V", _TO_QUERY)}
                        }}
                    }}
                }}
"""
_AFTER = f"""
        for (int j = 0; j < c; ++j) for (int h = 0; h < heads; ++h)
            ((REAL*)dots_)[(cloud * heads + h) * c + j] = dots[j * heads + h];
        for (int r = 0; r < m; ++r) {{
            REAL* f = keys + r * features;
            for (long long j = 0; j < features; ++j) f[j] = total(keys_grad[r * features + j]);
            REAL* x = (REAL*)gk_ + (first + r) * k_row;
            {_each(_INNER, f"{_OF_KEY} = f[@ * c + j];")}
            {_each(_NONE, f"{_OF_KEY} = 0;")}
            for (int j = 0; j < scalars; ++j) ((REAL*)gks_)[(first + r) * ks_row + j] = f[12 * c + j];
            for (int j = 0; j < c; ++j) {{
                const REAL* x = (const REAL*)k_ + (first + r) * k_row;
                {_channel(_POINT, "REAL", _OF_KEY)}
                const REAL m0 = f[9 * c + j], m1 = f[10 * c + j], m2 = f[11 * c + j];
                const REAL of_square = -f[8 * c + j], of_u = -f[7 * c + j];
                const REAL g0 = 2 * (e0 * of_square + u * m0);
                const REAL g1 = 2 * (e1 * of_square + u * m1);
                const REAL g2 = 2 * (e2 * of_square + u * m2);
                const REAL gu = 2 * (u * of_u + e0 * m0 + e1 * m1 + e2 * m2);
                {{
                    REAL* x = (REAL*)gk_ + (first + r) * k_row;
                    {_channel(_POINT_ADJOINT, "REAL", _OF_KEY)}
                }}
            }}
            f = values_grad + r * width;
            x = (REAL*)gv_ + (first + r) * v_row;
            for (int k = 0; k < 16; ++k) for (int j = 0; j < c; ++j) x[k * v_plane + j] = f[k * c + j];
            for (int j = 0; j < scalars; ++j) ((REAL*)gvs_)[(first + r) * vs_row + j] = f[16 * c + j];
        }}
"""
_TRIPLE = ", ".join(
    f"{x}_: int64, {x}_plane: int64, {x}_row: int64, {x}s_: int64, {x}s_row: int64" for x in ("q", "k", "v")
)
_HEAD = f"{_TRIPLE}, weights_: int64, q_offsets_: int64, k_offsets_: int64, clouds: int64, most: int64, heads: int64, "
_HEAD += "c: int64, scalars: int64, epsilon: float64, scale_of_logits: float64, scratch_: int64, size: int64, "
_HEAD += "o_: int64, o_plane: int64, os_: int64, "
_TAIL = "count: int64, grain: int64"
_GRADS = "gq_: int64, gqs_: int64, gk_: int64, gks_: int64, gv_: int64, gvs_: int64, dots_: int64, "


def _build(backward: bool) -> Kernels:
    parts = (_ROOM, _BEFORE, _BACKWARD, _AFTER) if backward else ("", "", _FORWARD, "")
    loop = _LOOP.replace("ELEMENTS", str(_ELEMENTS))
    for place, part in zip(("BEFORE", "QUERY", "AFTER"), parts[1:], strict=True):
        loop = loop.replace(place, part)
    code = f"#ifndef __CUDA_ARCH__\n{_BEGIN}{parts[0]}{loop}\n#endif\n".replace("LANES", str(LANES))
    name = "differentiate" if backward else "attend"
    return native_kernel(__name__, name, f"{_HEAD}{_GRADS if backward else ''}{_TAIL}", code)


_attend, _differentiate = _build(False), _build(True)


class Clouds(NamedTuple):
    """Heads of the queries, of c multivectors and of scalars each; epsilon of distances; the factor of logits; the
    channel and scalar from which on queries, keys and values are in their planes; lengths of the clouds, of queries and
    of keys."""

    heads: int
    c: int
    scalars: int
    epsilon: float
    scale: float
    places: Sequence[tuple[int, int]]
    lengths: tuple[Sequence[int], Sequence[int]]

    def size(self, backward: bool) -> int:
        """How many numbers a thread holds, at most."""
        most, features, width = max(self.lengths[1]), 12 * self.c + self.scalars + 3, 16 * self.c + self.scalars + 15
        once = self.heads * self.c + most * (features + width + LANES) + LANES * (features + width)
        more = most * (width + features * LANES + LANES) + features * LANES + self.heads * self.c
        return once + (more if backward else 0) + 16 * 11


def _launch(
    kernels: Kernels,
    own: Clouds,
    planes: Sequence[Tensor],
    scalars: Sequence[Tensor],
    weights: Tensor,
    result: tuple[Tensor, Tensor],
    found: Sequence[tuple[Tensor, Tensor]] = (),
    dots: Tensor | None = None,
) -> None:
    """`found`: the gradients of planes and scalars of queries, keys and values."""
    starts = [torch.tensor([0, *accumulate(lengths)]) for lengths in own.lengths]
    count = len(result[1]) * _ELEMENTS
    size = own.size(bool(found))
    scratch = weights.new_empty(bridge._threads() * size)
    args: list[float] = []
    for x, s, place in zip(planes, scalars, own.places, strict=True):
        args += [_first(x, place[0]), x.stride(0), x.stride(1), _first(s, place[1]), s.stride(0)]
    args += [weights.data_ptr(), starts[0].data_ptr(), starts[1].data_ptr(), len(own.lengths[0]), max(own.lengths[1])]
    args += [own.heads, own.c, own.scalars, own.epsilon, own.scale, scratch.data_ptr(), size]
    args += [result[0].data_ptr(), result[0].stride(0), result[1].data_ptr()]
    for (x, s), place in zip(found, own.places, strict=False):
        args += [_first(x, place[0]), _first(s, place[1])]
    if dots is not None:
        args.append(dots.data_ptr())
    bridge.launch_range(kernels[weights.dtype], count, *args, device=weights.device)  # type: ignore[arg-type]


def _first(x: Tensor, place: int) -> int:
    return x.data_ptr() + place * x.element_size()


def attend(own: Clouds, planes: Sequence[Tensor], scalars: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Planes (16, N, heads c) and scalars (N, heads s) of the result, from those that hold queries, keys and values,
    and the weights (heads, c) of distances, all contiguous."""
    n = planes[0].shape[1]
    x = planes[0].new_empty(16, n, own.heads * own.c)
    s = x.new_empty(n, own.heads * own.scalars)
    _launch(_attend, own, planes, scalars, weights, (x, s))
    return x, s


def differentiate(
    own: Clouds,
    planes: Sequence[Tensor],
    scalars: Sequence[Tensor],
    weights: Tensor,
    grads: tuple[Tensor, Tensor],
    found: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """Into `found`, pairs laid out as planes and scalars are, the gradients in queries, keys and values from those in
    the result, contiguous. The gradient in the weights is returned."""
    dots = weights.new_empty(len(own.lengths[0]), *weights.shape)
    _launch(_differentiate, own, planes, scalars, weights, grads, found, dots)
    return dots.sum(0)
