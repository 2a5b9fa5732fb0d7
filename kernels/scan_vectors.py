"""Selective scans on the CPU, 16 channels at a time: each number of the recurrence is a vector of them.

An item runs through all clouds of one batch. TILE tokens are turned to have their channels side by side, and for each n
the state stays in a register. The state before each tile is kept for the gradients, which run through the tile again.
"""

import math

import numpy as np

from geom.kernels.native import native_kernel
from geom.kernels.scan_chunks import CLOUD, INPUTS, TILE

__all__ = ["BACKWARD", "FORWARD", "LARGEST"]

LARGEST = 256  # states of a channel that the stack has room for


def _horner(terms: list[float]) -> str:
    text = f"REAL({terms[-1]!r})"
    for c in reversed(terms[:-1]):
        text = f"({text} * r + REAL({c!r}))"
    return text


def _fitted(degree: int) -> list[float]:
    """2^r for |r| <= 1/2 as 1 + r q(r): q interpolates (2^r - 1) / r at Chebyshev's points; to 5e-9 for degree 5."""
    log = math.log(2)

    def quotient(r: np.ndarray) -> np.ndarray:
        small = np.abs(r) < 1e-9
        return np.where(small, log, np.expm1(log * r) / np.where(small, 1, r))

    fit = np.polynomial.Chebyshev.interpolate(quotient, degree, [-0.5, 0.5])
    return [1.0, *map(float, fit.convert(kind=np.polynomial.Polynomial).coef)]


def _taylor(degree: int) -> list[float]:
    """The same, to 3e-18 for degree 13."""
    return [math.log(2) ** k / math.factorial(k) for k in range(degree + 1)]


def _turned(name: str) -> str:
    """A square of numbers turned: TILE vectors of one channel each become vectors of one token each."""
    steps = []
    for step in (1, 2, 4, 8):
        low = ", ".join(str(n - step + TILE if n & step else n) for n in range(TILE))
        high = ", ".join(str(n + TILE if n & step else n + step) for n in range(TILE))
        for n in range(TILE):
            if not n & step:
                a, b = f"{name}[{n}]", f"{name}[{n + step}]"
                steps.append(f"{{ const V a = {a}, b = {b}; {a} = __builtin_shufflevector(a, b, {low}); ")
                steps.append(f"{b} = __builtin_shufflevector(a, b, {high}); }}")
    return "".join(steps)


def _summed(name: str) -> str:
    """Each of TILE vectors summed: number n of vector 0 becomes the sum of vector n."""
    steps = []
    for step in (8, 4, 2, 1):
        keep = ", ".join(str(n + TILE if n & step else n) for n in range(TILE))
        swap = ", ".join(str((n ^ step) + TILE if n & step else n ^ step) for n in range(TILE))
        for n in range(step):
            a, b = f"{name}[{n}]", f"{name}[{n + step}]"
            steps.append(f"{{ const V a = {a}, b = {b}; {a} = __builtin_shufflevector(a, b, {keep}) + ")
            steps.append(f"__builtin_shufflevector(a, b, {swap}); }}")
    return "".join(steps)


# What both kernels begin with. Multiplications and additions are fused within an expression and nowhere else.
_BEGIN = """
#ifndef __CUDA_ARCH__
    #pragma clang fp contract(on)
    typedef REAL V __attribute__((ext_vector_type(TILE), aligned(sizeof(REAL))));
    typedef decltype(V() < V()) Bits;
    const REAL magic = sizeof(REAL) == 4 ? REAL(12582912.0) : REAL(6755399441055744.0);  // 1.5 2^23, 1.5 2^52
    const int mantissa = sizeof(REAL) == 4 ? 23 : 52;
    const REAL least = sizeof(REAL) == 4 ? REAL(-126) : REAL(-1022);
    const REAL log2e = REAL(1.4426950408889634), ln2 = REAL(0.6931471805599453);
    // 2^x magnified by 2^(magic' - magic): round(x) is in the last bits of t
    auto power = [&](V x, REAL magic) __attribute__((always_inline)) -> V {
        x = __builtin_elementwise_min(__builtin_elementwise_max(x, (V)least), (V)(-least));
        const V t = x + magic, r = x - (t - magic);
        const V p = sizeof(REAL) == 4 ? SINGLE : DOUBLE;
        return (V)((Bits)p + ((Bits)t << mantissa));
    };
    const REAL magic_decay = magic + REAL(signed_), shift = REAL(-signed_);  // a, or 2 a - 1
    auto sigmoid = [&](V x) __attribute__((always_inline)) -> V { return 1 / (1 + power(-log2e * x, magic)); };
    auto softplus = [&](V x) __attribute__((always_inline)) -> V {
        const V e = power(-log2e * __builtin_elementwise_abs(x), magic);
        const V s = e / (2 + e), q = s * s;  // log(1 + e) = 2 artanh(s)
        V sum = REAL(1) / (2 * TERMS + 1);
        for (int k = TERMS - 1; k >= 0; --k) sum = sum * q + REAL(1) / (2 * k + 1);
        return __builtin_elementwise_max(x, (V)REAL(0)) + 2 * s * sum;
    };
    const long long b = i / slots, slot = i - b * slots, blocks = (width + TILE - 1) / TILE;
    const long long begin_block = blocks * slot / slots, end_block = blocks * (slot + 1) / slots;
    const long long* offsets = (const long long*)offsets_;
    const long long* firsts = (const long long*)firsts_;
    // a tile of tokens, in the order of the scan
    auto load = [&](const REAL* from, int some, int m, V* x) __attribute__((always_inline)) {
        if (channel == 1 && some == TILE) {
            for (int s = 0; s < m; ++s) x[s] = *(const V*)(from + s * token);
        } else if (token == 1 && some == TILE && m == TILE) {
            for (int s = 0; s < TILE; ++s) x[s] = *(const V*)(from + s * channel);
            TURN
        } else {
            for (int s = 0; s < m; ++s) {
                V v = REAL(0);
                for (int j = 0; j < some; ++j) v[j] = from[j * channel + s * token];
                x[s] = v;
            }
        }
        if (reverse) for (int s = 0; s < m / 2; ++s) { const V v = x[s]; x[s] = x[m - 1 - s]; x[m - 1 - s] = v; }
    };
    auto store = [&](REAL* to, int some, int m, V* x) __attribute__((always_inline)) {
        if (reverse) for (int s = 0; s < m / 2; ++s) { const V v = x[s]; x[s] = x[m - 1 - s]; x[m - 1 - s] = v; }
        if (channel == 1 && some == TILE) {
            for (int s = 0; s < m; ++s) *(V*)(to + s * token) = x[s];
        } else if (token == 1 && some == TILE && m == TILE) {
            TURN
            for (int s = 0; s < TILE; ++s) *(V*)(to + s * channel) = x[s];
        } else {
            for (int s = 0; s < m; ++s)
                for (int j = 0; j < some; ++j) to[j * channel + s * token] = x[s][j];
        }
    };
    auto of_channels = [&](const REAL* from, int some) -> V {
        V v = REAL(0);
        for (int j = 0; j < some; ++j) v[j] = from[j];
        return v;
    };
    for (long long block = begin_block; block < end_block; ++block) {
        const long long first = block * TILE, at = b * row + first * channel;
        const int some = width - first < TILE ? width - first : TILE;
        const V skip = D_ ? of_channels((const REAL*)D_ + first, some) : (V)REAL(0);
        const V bias = bias_ ? of_channels((const REAL*)bias_ + first, some) : (V)REAL(0);
        V rate[LARGEST];
        for (int n = 0; n < states; ++n) {
            V v = REAL(0);
            for (int j = 0; j < some; ++j) v[j] = ((const REAL*)A_)[(first + j) * states + n] * log2e;
            rate[n] = v;
        }
"""

_TOKENS = """
                const long long done = (long long)k * TILE, left = end - begin - done;
                const int m = left < TILE ? (int)left : TILE;
                const long long low = reverse ? end - done - m : begin + done;
                const long long start = reverse ? low + m - 1 : low, way = reverse ? -1 : 1;
                const REAL* rows_b = (const REAL*)B_ + b * b_batch + start * b_token;
                const REAL* rows_c = (const REAL*)C_ + b * c_batch + start * c_token;
                const long long step_b = way * b_token, step_c = way * c_token;
                V u[TILE], delta[TILE], x[TILE];
                load((const REAL*)u_ + at + low * token, some, m, u);
                load((const REAL*)delta_ + at + low * token, some, m, delta);
"""


def _complete(code: str) -> str:
    filled = (_BEGIN + code + "\n    }\n#endif\n").replace("TOKENS", _TOKENS)
    words = {
        "SINGLE": _horner(_fitted(5)),
        "DOUBLE": _horner(_taylor(13)),
        "TERMS": "(sizeof(REAL) == 4 ? 8 : 16)",
        "TURN": _turned("x"),
        "SUM_B": _summed("to_b"),
        "SUM_C": _summed("to_c"),
        "CLOUD": CLOUD,
        "TILE": str(TILE),
        "LARGEST": str(LARGEST),
    }
    for word, text in words.items():
        filled = filled.replace(word, text)
    return filled


FORWARD = native_kernel(
    __name__,
    "scan",
    f"{INPUTS}, slots: int64, out_: int64, kept_: int64, last_: int64",
    _complete("""
        for (long long cloud = 0; cloud < clouds; ++cloud) {
            const long long begin = offsets[cloud], end = offsets[cloud + 1];
            V state[LARGEST];
            for (int n = 0; n < states; ++n) state[n] = REAL(0);
            for (int k = 0; (long long)k * TILE < end - begin; ++k) {
                TOKENS
                if (kept_) {
                    V* kept = (V*)kept_ + ((b * blocks + block) * tiles + firsts[cloud] + k) * states;
                    for (int n = 0; n < states; ++n) kept[n] = state[n];
                }
                V y[TILE];
                for (int s = 0; s < m; ++s) {
                    if (soft) delta[s] = softplus(delta[s] + bias); else delta[s] += bias;
                    y[s] = skip * u[s];
                    u[s] *= delta[s];
                }
                auto run = [&](const int m) __attribute__((always_inline)) {
                    for (int n = 0; n < states; ++n) {
                        const V own = rate[n];
                        const REAL* from_b = rows_b + n * b_state;
                        const REAL* from_c = rows_c + n * c_state;
                        V h = state[n];
                        for (int s = 0; s < m; ++s) {
                            const V decay = power(delta[s] * own, magic_decay) + shift;
                            h = decay * h + u[s] * from_b[s * step_b];
                            y[s] += h * from_c[s * step_c];
                        }
                        state[n] = h;
                    }
                };
                if (m == TILE) run(TILE); else run(m);
                if (z_) {
                    load((const REAL*)z_ + at + low * token, some, m, x);
                    for (int s = 0; s < m; ++s) y[s] *= x[s] * sigmoid(x[s]);
                }
                for (int s = 0; s < m; ++s) x[s] = y[s];
                store((REAL*)out_ + at + low * token, some, m, x);
            }
            V* last = (V*)last_ + ((b * clouds + cloud) * blocks + block) * states;
            for (int n = 0; n < states; ++n) last[n] = state[n];
        }
    """),
)


BACKWARD = native_kernel(
    __name__,
    "scan_adjoint",
    f"{INPUTS}, slots: int64, kept_: int64, g_: int64, g_last_: int64, gu_: int64, gdelta_: int64, gA_: int64, "
    "sums_b_: int64, sums_c_: int64, gD_: int64, gz_: int64, gbias_: int64, "
    "carried_: int64, first_tile: int64, last_tile: int64",
    # Tiles from last_tile - 1 down to first_tile; what those before go on with is in `carried`, (B, blocks, 3 N + 4,
    # TILE), 0 at first. Gradients of A, D and the bias are those of each batch, of B and C sums over the channels of
    # each slot, (B, slots, last_tile - first_tile, N, TILE): an item runs through its channels in their order, and
    # nobody else adds to its slot.
    _complete("""
        // sums over all tokens, tile by tile, with what rounding took from them
        struct Sum { V total, lost; } *carried = (Sum*)((V*)carried_ + (b * blocks + block) * (3 * states + 4));
        Sum g_skip = carried[0], g_bias = carried[1], g_rate[LARGEST];
        V carry[LARGEST];
        for (int n = 0; n < states; ++n) {
            g_rate[n] = carried[2 + n];
            carry[n] = ((V*)(carried + 2 + states))[n];
        }
        auto add = [](Sum& sum, V x) {
            x -= sum.lost;
            const V total = sum.total + x;
            sum.lost = (total - sum.total) - x;
            sum.total = total;
        };
        long long tile = last_tile - 1;
        CLOUD
        for (; tile >= first_tile; --tile) {
            while (firsts[below] > tile) --below;
            const long long cloud = below, begin = offsets[cloud], end = offsets[cloud + 1], k = tile - firsts[cloud];
            if (tile == firsts[cloud + 1] - 1) {
                const V* last = (const V*)g_last_ + ((b * clouds + cloud) * blocks + block) * states;
                for (int n = 0; n < states; ++n) carry[n] = g_last_ ? last[n] : (V)REAL(0);
            }
            TOKENS
            const V* kept = (const V*)kept_ + ((b * blocks + block) * tiles + tile) * states;
            const long long sums_at = ((b * slots + slot) * (last_tile - first_tile) + tile - first_tile) * states;
            V* own_b = (V*)sums_b_ + sums_at;
            V* own_c = (V*)sums_c_ + sums_at;
            V g[TILE], raw[TILE], product[TILE], y[TILE], g_product[TILE], g_delta[TILE];
            load((const REAL*)g_ + at + low * token, some, m, x);
            for (int s = 0; s < m; ++s) {
                raw[s] = delta[s] + bias;
                if (soft) delta[s] = softplus(raw[s]); else delta[s] = raw[s];
                product[s] = delta[s] * u[s];
                y[s] = skip * u[s];
                g[s] = x[s];
                g_product[s] = REAL(0);
                g_delta[s] = REAL(0);
            }
            V gate[TILE], open[TILE];
            if (z_) {
                load((const REAL*)z_ + at + low * token, some, m, x);
                for (int s = 0; s < m; ++s) {
                    gate[s] = x[s];
                    open[s] = sigmoid(x[s]);
                    g[s] *= gate[s] * open[s];
                }
            }
            auto run = [&](const int m) __attribute__((always_inline)) {
                for (int n = 0; n < states; ++n) {
                    const V own = rate[n];
                    const REAL* from_b = rows_b + n * b_state;
                    const REAL* from_c = rows_c + n * c_state;
                    V h = kept[n], decay[TILE], before[TILE], to_b[TILE], to_c[TILE];
                    for (int s = 0; s < m; ++s) {
                        decay[s] = power(delta[s] * own, magic_decay) + shift;
                        before[s] = h;
                        h = decay[s] * h + product[s] * from_b[s * step_b];
                        to_c[s] = g[s] * h;
                        if (z_) y[s] += h * from_c[s * step_c];
                    }
                    V on = carry[n], sum = REAL(0);
                    for (int s = m - 1; s >= 0; --s) {
                        const V g_h = g[s] * from_c[s * step_c] + on;
                        to_b[s] = g_h * product[s];
                        g_product[s] += g_h * from_b[s * step_b];
                        on = decay[s] * g_h;
                        const V g_power = (on - shift * g_h) * before[s];
                        g_delta[s] += g_power * own;
                        sum += g_power * delta[s];
                    }
                    carry[n] = on;
                    add(g_rate[n], sum);
                    for (int s = m; s < TILE; ++s) to_b[s] = to_c[s] = REAL(0);
                    SUM_B
                    SUM_C
                    own_b[n] = block == begin_block ? to_b[0] : own_b[n] + to_b[0];
                    own_c[n] = block == begin_block ? to_c[0] : own_c[n] + to_c[0];
                }
            };
            if (m == TILE) run(TILE); else run(m);
            if (z_) {
                load((const REAL*)g_ + at + low * token, some, m, x);
                for (int s = 0; s < m; ++s) x[s] *= y[s] * open[s] * (1 + gate[s] * (1 - open[s]));
                store((REAL*)gz_ + at + low * token, some, m, x);
            }
            V skips = REAL(0), biases = REAL(0);
            for (int s = 0; s < m; ++s) {
                g_delta[s] = g_delta[s] * ln2 + g_product[s] * u[s];
                if (soft) g_delta[s] *= sigmoid(raw[s]);
                skips += g[s] * u[s];
                biases += g_delta[s];
                x[s] = g_product[s] * delta[s] + g[s] * skip;
            }
            add(g_skip, skips);
            add(g_bias, biases);
            store((REAL*)gu_ + at + low * token, some, m, x);
            for (int s = 0; s < m; ++s) x[s] = g_delta[s];
            store((REAL*)gdelta_ + at + low * token, some, m, x);
        }
        carried[0] = g_skip;
        carried[1] = g_bias;
        for (int n = 0; n < states; ++n) {
            carried[2 + n] = g_rate[n];
            ((V*)(carried + 2 + states))[n] = carry[n];
        }
        if (first_tile > 0) continue;
        for (int j = 0; j < some; ++j) {
            const long long c = b * width + first + j;
            for (int n = 0; n < states; ++n) ((REAL*)gA_)[c * states + n] = g_rate[n].total[j];
            if (gD_) ((REAL*)gD_)[c] = g_skip.total[j];
            if (gbias_) ((REAL*)gbias_)[c] = g_bias.total[j];
        }
    """),
)
