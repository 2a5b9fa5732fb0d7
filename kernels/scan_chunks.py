"""Selective scans in three passes over tiles of tokens, for CUDA: one thread for each channel of each tile.

1. `ends`: each tile from a state of zero, its last state and the product of its decays. 2. `joins`: through the tiles
of each cloud, the state that each begins with. 3. `values`, each tile again from that state. The gradients run the same
passes backwards. The source runs on the CPU as well, one item after the other, which is how it is tested.

States are (B, blocks, tiles, N, TILE), TILE channels side by side, as `geom.kernels.scan` keeps them.
"""

from geom.kernels.native import native_kernel

__all__ = ["ADJOINT_ENDS", "ADJOINT_VALUES", "CLOUD", "ENDS", "INPUTS", "JOINS", "SUMS", "TILE", "VALUES", "WARP"]

TILE = 16  # tokens of a tile, and channels that stand side by side
WARP = 32  # channels of one sum in the gradients of B and C

# what every kernel of a scan is told first, as numbers: addresses, strides, sizes, flags
INPUTS = (
    "u_: int64, delta_: int64, A_: int64, B_: int64, C_: int64, D_: int64, z_: int64, bias_: int64, "
    "row: int64, b_batch: int64, b_token: int64, b_state: int64, c_batch: int64, c_token: int64, c_state: int64, "
    "batches: int64, width: int64, tokens: int64, states: int64, clouds: int64, tiles: int64, "
    "signed_: int32, soft: int32, reverse: int32, channel: int64, token: int64, offsets_: int64, firsts_: int64"
)

# the cloud whose tile this is
CLOUD = """
    long long below = 0, above = clouds;
    while (above - below > 1) {
        const long long middle = (below + above) / 2;
        if (firsts[middle] <= tile) below = middle; else above = middle;
    }
"""

_BEGIN = """
    const long long* offsets = (const long long*)offsets_;
    const long long* firsts = (const long long*)firsts_;
    const REAL twice = signed_ ? REAL(2) : REAL(1), shift = signed_ ? REAL(-1) : REAL(0);  // a, or 2 a - 1
"""

_TILE = (
    _BEGIN
    + """
    const long long padded = (width + WARP - 1) / WARP * WARP;
    const long long d = i % padded, tile = i / padded % tiles, b = i / padded / tiles;
    const bool real = d < width && tile < firsts[clouds];  // others only take part in sums
    const long long c = real ? d : 0;
    CLOUD
    const long long done = (tile - firsts[below]) * TILE, left = offsets[below + 1] - offsets[below] - done;
    const int m = !real ? 0 : left < TILE ? (int)left : TILE;
    const long long start = reverse ? offsets[below + 1] - 1 - done : offsets[below] + done, way = reverse ? -1 : 1;
    const long long at = b * row + c * channel + start * token, step = way * token;
    const long long states_at = (((b * ((width + TILE - 1) / TILE) + c / TILE) * tiles + tile) * states) * TILE;
    const REAL* A = (const REAL*)A_ + c * states;
    const REAL* B = (const REAL*)B_ + b * b_batch + start * b_token;
    const REAL* C = (const REAL*)C_ + b * c_batch + start * c_token;
    const long long step_b = way * b_token, step_c = way * c_token;
    const REAL bias = bias_ && real ? ((const REAL*)bias_)[c] : REAL(0);
    const REAL skip = D_ && real ? ((const REAL*)D_)[c] : REAL(0);
    auto sigmoid = [&](REAL x) -> REAL { return x < 0 ? wp::exp(x) / (1 + wp::exp(x)) : 1 / (1 + wp::exp(-x)); };
    auto softplus = [&](REAL x) -> REAL {
        const REAL e = wp::exp(x < 0 ? x : -x), s = e / (2 + e), q = s * s;  // log(1 + e) = 2 artanh(s)
        const int terms = sizeof(REAL) == 4 ? 8 : 16;
        REAL sum = REAL(1) / (2 * terms + 1);
        for (int k = terms - 1; k >= 0; --k) sum = sum * q + REAL(1) / (2 * k + 1);
        return (x > 0 ? x : REAL(0)) + 2 * s * sum;
    };
    REAL u[TILE], raw[TILE], delta[TILE], gate[TILE], open[TILE];
    for (int s = 0; s < TILE; ++s) {
        u[s] = s < m ? ((const REAL*)u_)[at + s * step] : REAL(0);
        raw[s] = s < m ? ((const REAL*)delta_)[at + s * step] + bias : REAL(0);
        delta[s] = soft && s < m ? softplus(raw[s]) : raw[s];
        gate[s] = z_ && s < m ? ((const REAL*)z_)[at + s * step] : REAL(0);
        open[s] = z_ ? sigmoid(gate[s]) : REAL(0);
    }
    auto decay = [&](int s, int n) -> REAL { return twice * wp::exp(delta[s] * A[n]) + shift; };
"""
)


def _complete(code: str) -> str:
    return code.replace("CLOUD", CLOUD).replace("TILE", str(TILE)).replace("WARP", str(WARP))


# Item (b, tile, d), d up to whole warps: the state after the tile, had it begun with 0, and the product of its decays.
ENDS = native_kernel(
    __name__,
    "ends",
    f"{INPUTS}, ends_: int64, decays_: int64",
    _complete(
        _TILE
        + """
    if (!real) return;
    for (int n = 0; n < states; ++n) {
        REAL h = REAL(0), all = REAL(1);
        for (int s = 0; s < m; ++s) {
            const REAL a = decay(s, n);
            h = a * h + delta[s] * u[s] * B[s * step_b + n * b_state];
            all *= a;
        }
        ((REAL*)ends_)[states_at + n * TILE + c % TILE] = h;
        ((REAL*)decays_)[states_at + n * TILE + c % TILE] = all;
    }
    """
    ),
)

# Item (b, block of channels, n, channel): ends become what comes in, from `backward` the other way, beginning with
# what `first` holds for each cloud, or with 0; what comes out of a cloud goes to `last`.
JOINS = native_kernel(
    __name__,
    "joins",
    f"{INPUTS}, ends_: int64, decays_: int64, first_: int64, last_: int64, backward: int32",
    _complete(
        _BEGIN
        + """
    const long long blocks = (width + TILE - 1) / TILE;
    const long long j = i % TILE, n = i / TILE % states, block = i / TILE / states % blocks;
    const long long b = i / TILE / states / blocks;
    if (block * TILE + j >= width) return;
    for (long long cloud = 0; cloud < clouds; ++cloud) {
        const long long place = (((b * clouds + cloud) * blocks + block) * states + n) * TILE + j;
        const long long begin = firsts[cloud], count = firsts[cloud + 1] - begin;
        REAL carry = first_ ? ((const REAL*)first_)[place] : REAL(0);
        for (long long k = 0; k < count; ++k) {
            const long long tile = backward ? begin + count - 1 - k : begin + k;
            const long long at = (((b * blocks + block) * tiles + tile) * states + n) * TILE + j;
            const REAL end = ((const REAL*)ends_)[at], all = ((const REAL*)decays_)[at];
            ((REAL*)ends_)[at] = carry;
            carry = all * carry + end;
        }
        if (last_) ((REAL*)last_)[place] = carry;
    }
    """
    ),
)

# Item (b, tile, d): the results.
VALUES = native_kernel(
    __name__,
    "values",
    f"{INPUTS}, kept_: int64, out_: int64",
    _complete(
        _TILE
        + """
    REAL y[TILE];
    for (int s = 0; s < TILE; ++s) y[s] = skip * u[s];
    for (int n = 0; real && n < states; ++n) {
        REAL h = ((const REAL*)kept_)[states_at + n * TILE + c % TILE];
        for (int s = 0; s < m; ++s) {
            h = decay(s, n) * h + delta[s] * u[s] * B[s * step_b + n * b_state];
            y[s] += h * C[s * step_c + n * c_state];
        }
    }
    for (int s = 0; s < m; ++s) ((REAL*)out_)[at + s * step] = z_ ? y[s] * gate[s] * open[s] : y[s];
    """
    ),
)

_GRADIENT = """
    REAL g[TILE];
    for (int s = 0; s < TILE; ++s) {
        g[s] = s < m ? ((const REAL*)g_)[at + s * step] : REAL(0);
        if (z_) g[s] *= gate[s] * open[s];
    }
"""

# Item (b, tile, d): the gradient in the state before the tile, had nothing come in from behind, and the decays.
ADJOINT_ENDS = native_kernel(
    __name__,
    "adjoint_ends",
    f"{INPUTS}, g_: int64, ends_: int64, decays_: int64",
    _complete(
        _TILE
        + _GRADIENT
        + """
    if (!real) return;
    for (int n = 0; n < states; ++n) {
        REAL on = REAL(0), all = REAL(1);
        for (int s = m - 1; s >= 0; --s) {
            const REAL a = decay(s, n);
            on = a * (g[s] * C[s * step_c + n * c_state] + on);
            all *= a;
        }
        ((REAL*)ends_)[states_at + n * TILE + c % TILE] = on;
        ((REAL*)decays_)[states_at + n * TILE + c % TILE] = all;
    }
    """
    ),
)

# Item (b, tile, d): gradients; that of A for each tile, those of B and C as sums over the channels of each warp, in
# (B, warps, tiles, N, TILE), which on the CPU begin with 0.
ADJOINT_VALUES = native_kernel(
    __name__,
    "adjoint_values",
    f"{INPUTS}, kept_: int64, ends_: int64, g_: int64, gu_: int64, gdelta_: int64, gA_: int64, gB_: int64, "
    "gC_: int64, gz_: int64",
    _complete(
        _TILE
        + _GRADIENT
        + """
    REAL y[TILE], g_product[TILE], g_delta[TILE];
    for (int s = 0; s < TILE; ++s) { y[s] = skip * u[s]; g_product[s] = g_delta[s] = REAL(0); }
    const long long sums_at = ((b * (padded / WARP) + d / WARP) * tiles + tile) * states * TILE;
    auto sum = [&](REAL* to, REAL value) {
        #ifdef __CUDA_ARCH__
        for (int k = WARP / 2; k > 0; k /= 2) value += __shfl_down_sync(0xffffffffu, value, k);
        if (d % WARP == 0) *to = value;
        #else
        *to += value;
        #endif
    };
    for (int n = 0; n < states; ++n) {
        REAL h = real ? ((const REAL*)kept_)[states_at + n * TILE + c % TILE] : REAL(0);
        REAL on = real ? ((const REAL*)ends_)[states_at + n * TILE + c % TILE] : REAL(0), g_rate = REAL(0);
        REAL a[TILE], before[TILE];
        for (int s = 0; s < TILE; ++s) {
            before[s] = h;
            a[s] = REAL(0);
            if (s < m) {
                a[s] = decay(s, n);
                h = a[s] * h + delta[s] * u[s] * B[s * step_b + n * b_state];
                y[s] += h * C[s * step_c + n * c_state];
            }
            sum((REAL*)gC_ + sums_at + n * TILE + s, s < m ? g[s] * h : REAL(0));
        }
        for (int s = TILE - 1; s >= 0; --s) {
            REAL g_b = REAL(0);
            if (s < m) {
                const REAL g_h = g[s] * C[s * step_c + n * c_state] + on;
                g_b = g_h * delta[s] * u[s];
                g_product[s] += g_h * B[s * step_b + n * b_state];
                on = a[s] * g_h;
                const REAL g_power = (on - shift * g_h) * before[s];
                g_delta[s] += g_power * A[n];
                g_rate += g_power * delta[s];
            }
            sum((REAL*)gB_ + sums_at + n * TILE + s, g_b);
        }
        if (real) ((REAL*)gA_)[states_at + n * TILE + c % TILE] = g_rate;
    }
    for (int s = 0; s < m; ++s) {
        if (z_) {
            const REAL whole = ((const REAL*)g_)[at + s * step];
            ((REAL*)gz_)[at + s * step] = whole * y[s] * open[s] * (1 + gate[s] * (1 - open[s]));
        }
        const REAL sum_delta = g_delta[s] + g_product[s] * u[s];
        ((REAL*)gdelta_)[at + s * step] = soft ? sum_delta * sigmoid(raw[s]) : sum_delta;
        ((REAL*)gu_)[at + s * step] = g_product[s] * delta[s] + g[s] * skip;
    }
    """
    ),
)

# Item (b, tile, n) of `count` tiles from first_tile on: the gradients of B and C, (B, tokens, N), from sums that are
# (B, parts, count, N, TILE).
SUMS = native_kernel(
    __name__,
    "sums",
    f"{INPUTS}, sums_b_: int64, sums_c_: int64, gB_: int64, gC_: int64, parts: int64, first_tile: int64, count: int64",
    _complete(
        _BEGIN
        + """
    const long long n = i % states, tile = first_tile + i / states % count, b = i / states / count;
    if (tile >= firsts[clouds]) return;
    CLOUD
    const long long done = (tile - firsts[below]) * TILE, left = offsets[below + 1] - offsets[below] - done;
    const int m = left < TILE ? (int)left : TILE;
    const long long start = reverse ? offsets[below + 1] - 1 - done : offsets[below] + done, way = reverse ? -1 : 1;
    auto sum = [&](const REAL* sums, REAL* to) {
        REAL total[TILE];
        for (int s = 0; s < TILE; ++s) total[s] = REAL(0);
        for (long long part = 0; part < parts; ++part) {
            const REAL* own = sums + (((b * parts + part) * count + tile - first_tile) * states + n) * TILE;
            for (int s = 0; s < TILE; ++s) total[s] += own[s];
        }
        to += (b * tokens + start) * states + n;
        for (int s = 0; s < m; ++s) to[s * way * states] = total[s];
    };
    sum((const REAL*)sums_b_, (REAL*)gB_);
    sum((const REAL*)sums_c_, (REAL*)gC_);
    """
    ),
)
