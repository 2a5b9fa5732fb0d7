"""The scan of one decay for each head, by tiles of 16 tokens, with its gradients: products of small matrices.

    S_t = a_t S_{t-1} + d_t b_t x_t^T        y_t = S_t^T c_t + D x_t

Within a tile y is a matrix of decays times c_t . b_s, times x; between tiles the state goes on, and is read and written
once for 16 tokens. Decays of a tile are running products, so that they may be 0, or below. An item is one cloud and one
head. On the CPU only: its vectors run along the channels of a head, and along the rows of its state.
"""

from typing import Any

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.lanes import LANES
from geom.kernels.native import native_kernel

__all__ = ["LARGEST", "differentiate", "scan"]

LARGEST = 128  # channels of a head, and rows of its state, that the stack has room for
_STRETCH = 8  # tiles whose states the gradients hold at a time, and one state for each stretch
_LEAST = 200_000  # numbers of all tokens' states below which a second thread costs more than it saves

# Matrices are packed with rows of whole vectors, their rest 0, and with TILE rows: b and c (TILE, across), x and the
# gradient (TILE, along), turned ones with TILE columns.
_BEGIN = """
#ifndef __CUDA_ARCH__
    #pragma clang fp contract(on)
    typedef REAL V __attribute__((ext_vector_type(TILE), aligned(sizeof(REAL))));
    const long long head = i % heads, cloud = i / heads, group = head / (heads / groups);
    const long long* ends = (const long long*)offsets_ + cloud;
    const long long begin = ends[0], length = ends[1] - begin;
    const int along = (int)(width + TILE - 1) / TILE * TILE, across = (int)(states + TILE - 1) / TILE * TILE;
    const long long tiles = (length + TILE - 1) / TILE;
    if (tiles == 0) return;
    const REAL skip = D_ ? ((const REAL*)D_)[head] : REAL(0);
    auto place = [&](long long s) -> long long { return reverse ? begin + length - 1 - s : begin + s; };
    auto pack = [&](REAL* to, const REAL* from, long long step, int count, int padded, long long first) {
        for (int j = 0; j < TILE; ++j, to += padded) {
            for (int c = 0; c < padded; c += TILE) *(V*)(to + c) = (V)REAL(0);
            if (first + j >= length) continue;
            const REAL* row = from + place(first + j) * step;
            int c = 0;
            for (; c + TILE <= count; c += TILE) *(V*)(to + c) = *(const V*)(row + c);
            for (; c < count; ++c) to[c] = row[c];
        }
    };
    auto turn = [&](REAL* to, const REAL* from, int padded) {
        for (int c = 0; c < padded; ++c) {
            V v;
            for (int j = 0; j < TILE; ++j) v[j] = from[j * padded + c];
            *(V*)(to + c * TILE) = v;
        }
    };
    // out (rows, columns) = keep from + a b, with a (rows, inner) of any strides, b (inner, columns)
    auto product = [&](REAL* out, const REAL* from, REAL keep, const REAL* a, int down, int right, const REAL* b,
                       int rows, int inner, int columns) {
        for (int c = 0; c < columns; c += TILE) for (int r = 0; r < rows; r += TALL) {
            V sum[TALL];
            for (int j = 0; j < TALL; ++j) sum[j] = (V)REAL(0);
            const REAL* left = a + r * down;
            for (int k = 0; k < inner; ++k) {
                const V v = *(const V*)(b + k * columns + c);
                for (int j = 0; j < TALL; ++j) sum[j] += left[j * down + k * right] * v;
            }
            for (int j = 0; j < TALL; ++j) {
                const int at = (r + j) * columns + c;
                if (keep != REAL(0)) sum[j] += keep * *(const V*)(from + at);
                *(V*)(out + at) = sum[j];
            }
        }
    };
    auto scale = [&](REAL* rows, int columns, V by) {
        for (int j = 0; j < TILE; ++j) for (int c = 0; c < columns; c += TILE) *(V*)(rows + j * columns + c) *= by[j];
    };
    auto total = [&](V x) -> REAL {
        REAL sum = 0;
        for (int j = 0; j < TILE; ++j) sum += x[j];
        return sum;
    };
    const REAL* x_rows = (const REAL*)x_ + head * width;
    const REAL* b_rows = (const REAL*)B_ + group * states;
    const REAL* c_rows = (const REAL*)C_ + group * states;
    alignas(64) REAL x[TILE * LARGEST], b[TILE * LARGEST], c[TILE * LARGEST];
    V within[TILE], since, delta, decay;  // within[t][s]: the decay from s to t, 0 where s > t; since[t]: up to t
    auto open = [&](long long first) {
        pack(x, x_rows, x_step, width, along, first);
        pack(b, b_rows, b_step, states, across, first);
        V row = REAL(0);
        REAL all = 1;
        for (int j = 0; j < TILE; ++j) {
            const bool some = first + j < length;
            const long long at = some ? place(first + j) * heads + head : 0;
            delta[j] = some ? ((const REAL*)delta_)[at] : REAL(0);
            decay[j] = some ? ((const REAL*)decay_)[at] : REAL(1);
            row *= decay[j];
            row[j] = 1;
            within[j] = row;
            since[j] = all *= decay[j];
        }
    };
"""

_FORWARD = """
    alignas(64) REAL state[LARGEST * LARGEST], y[TILE * LARGEST], turned[LARGEST * TILE], mixed[TILE * TILE];
    for (int k = 0; k < across * along; ++k) state[k] = 0;
    for (long long tile = 0; tile < tiles; ++tile) {
        const long long first = tile * TILE;
        open(first);
        pack(c, c_rows, c_step, states, across, first);
        turn(turned, b, across);
        product(mixed, 0, 0, c, across, 1, turned, TILE, states, TILE);
        for (int t = 0; t < TILE; ++t) *(V*)(mixed + t * TILE) *= within[t] * delta;
        product(y, 0, 0, mixed, TILE, 1, x, TILE, TILE, along);
        scale(c, across, since);
        product(y, y, 1, c, across, 1, state, TILE, states, along);
        scale(b, across, within[TILE - 1] * delta);
        product(state, state, since[TILE - 1], b, 1, across, x, across, TILE, along);
        for (int j = 0; j < TILE && first + j < length; ++j) {
            REAL* to = (REAL*)out_ + (place(first + j) * heads + head) * width;
            for (int k = 0; k < width; ++k) to[k] = y[j * along + k] + skip * x[j * along + k];
        }
    }
#endif
"""

# The state before each stretch of tiles is made first, turned. From the last stretch to the first the states before its
# tiles are made again, and its tiles run back: the gradient in the state after a tile, `after`, is carried both ways
# round, for it is read along both of its sides.
_BACKWARD = """
    alignas(64) REAL g[TILE * LARGEST], turned[LARGEST * TILE], to_x[TILE * LARGEST], to_b[TILE * LARGEST],
        to_c[TILE * LARGEST], after[LARGEST * LARGEST], other[LARGEST * LARGEST];
    alignas(64) V scores[TILE], mixed[TILE], pairs[TILE];
    const int size = across * along;
    const long long near = tiles < STRETCH ? tiles : STRETCH, slots = near + (tiles + STRETCH - 1) / STRETCH;
    REAL* kept = (REAL*)kept_ + (((const long long*)firsts_)[cloud] * heads + head * slots) * size;
    REAL* stretches = kept + near * size;
    for (int k = 0; k < size; ++k) stretches[k] = after[k] = other[k] = 0;
    auto proceed = [&](REAL* to, const REAL* from, long long tile) {
        open(tile * TILE);
        scale(b, across, within[TILE - 1] * delta);
        product(to, from, since[TILE - 1], x, 1, along, b, along, TILE, across);
    };
    for (long long tile = 0; tile < (tiles - 1) / STRETCH * STRETCH; ++tile) {
        REAL* to = stretches + (tile / STRETCH + 1) * size;
        proceed(to, tile % STRETCH ? to : to - size, tile);
    }
    for (long long tile = tiles - 1; tile >= 0; --tile) {
        const long long stretch = tile / STRETCH, nearest = stretch * STRETCH;
        if (tile == tiles - 1 || tile % STRETCH == STRETCH - 1) {
            for (int k = 0; k < size; ++k) kept[k] = stretches[stretch * size + k];
            for (long long t = nearest; t < tile; ++t) {
                REAL* from = kept + (t - nearest) * size;
                proceed(from + size, from, t);
            }
        }
        const REAL* before = kept + (tile - nearest) * size;
        const long long first = tile * TILE;
        open(first);
        pack(c, c_rows, c_step, states, across, first);
        pack(g, (const REAL*)grad_ + head * width, heads * width, width, along, first);
        turn(turned, b, across);
        product((REAL*)scores, 0, 0, c, across, 1, turned, TILE, states, TILE);  // [t][s] = c_t . b_s
        turn(turned, x, along);
        product((REAL*)pairs, 0, 0, g, along, 1, turned, TILE, width, TILE);  // [t][s] = g_t . x_s
        const V until = within[TILE - 1];  // the decay from s to the last
        V to_delta = REAL(0), known = REAL(0), asked = REAL(0), same;
        for (int t = 0; t < TILE; ++t) {
            same[t] = pairs[t][t];
            mixed[t] = scores[t] * within[t];
            to_delta += mixed[t] * pairs[t];
            scores[t] *= pairs[t] * delta;
            pairs[t] *= within[t] * delta;
        }
        product(to_c, 0, 0, g, along, 1, before, TILE, width, across);
        product(to_b, 0, 0, x, along, 1, other, TILE, width, across);
        for (int j = 0; j < TILE; ++j) {
            V p = REAL(0), q = REAL(0);
            for (int k = 0; k < across; k += TILE) {
                p += *(V*)(to_b + j * across + k) * *(V*)(b + j * across + k);
                q += *(V*)(to_c + j * across + k) * *(V*)(c + j * across + k);
            }
            known[j] = total(p);  // b . after x
            asked[j] = total(q);  // c . before g
        }
        to_delta += until * known;
        known *= delta;
        V sums = REAL(0);
        for (int k = 0; k < size; k += TILE) sums += *(const V*)(before + k) * *(V*)(other + k);
        const REAL through = total(sums);
        // In the decay of t: what stood before t, to t - 1, with what is asked after, from t on.
        V later = REAL(0), to_decay = REAL(0);
        REAL onward = 0;
        for (int t = TILE - 1; t >= 0; --t) {
            const REAL next = t + 1 < TILE ? decay[t + 1] : REAL(0);
            onward = asked[t] + next * onward;
            later = scores[t] + next * later;
            to_decay[t] = (t ? since[t - 1] : REAL(1)) * (until[t] * through + onward);
            if (t) to_decay[t] += total(within[t - 1] * (until[t] * known + later));
        }
        scale(to_c, across, since);
        product(to_c, to_c, 1, (REAL*)pairs, TILE, 1, b, TILE, TILE, across);
        scale(to_b, across, until * delta);
        product(to_b, to_b, 1, (REAL*)pairs, 1, TILE, c, TILE, TILE, across);
        product(to_x, 0, 0, (REAL*)mixed, 1, TILE, g, TILE, TILE, along);
        scale(b, across, until);
        product(to_x, to_x, 1, b, across, 1, after, TILE, states, along);
        scale(c, across, since);
        product(after, after, since[TILE - 1], c, 1, across, g, across, TILE, along);
        product(other, other, since[TILE - 1], g, 1, along, c, along, TILE, across);
        for (int j = 0; j < TILE && first + j < length; ++j) {
            const long long at = place(first + j) * heads + head;
            ((REAL*)to_delta_)[at] = to_delta[j];
            ((REAL*)to_decay_)[at] = to_decay[j];
            ((REAL*)same_)[at] = same[j];
            for (int k = 0; k < width; ++k)
                ((REAL*)to_x_)[at * width + k] = delta[j] * to_x[j * along + k] + skip * g[j * along + k];
            for (int k = 0; k < states; ++k) {
                ((REAL*)to_b_)[at * states + k] = to_b[j * across + k];
                ((REAL*)to_c_)[at * states + k] = to_c[j * across + k];
            }
        }
    }
#endif
"""

_INPUTS = (
    "x_: int64, delta_: int64, decay_: int64, B_: int64, C_: int64, D_: int64, offsets_: int64, x_step: int64, "
    "b_step: int64, c_step: int64, tokens: int64, clouds: int64, heads: int64, groups: int64, width: int64, "
    "states: int64, reverse: int32"
)


def _complete(code: str) -> str:
    code = "#ifdef __AVX512F__\n#define TALL 8\n#else\n#define TALL 4\n#endif\n" + _BEGIN + code + "#undef TALL\n"
    return code.replace("TILE", str(LANES)).replace("LARGEST", str(LARGEST)).replace("STRETCH", str(_STRETCH))


_SCAN = native_kernel(__name__, "state_space_scan", f"{_INPUTS}, out_: int64", _complete(_FORWARD))
_ADJOINT = native_kernel(
    __name__,
    "state_space_adjoint",
    f"{_INPUTS}, grad_: int64, firsts_: int64, kept_: int64, to_x_: int64, to_delta_: int64, to_decay_: int64, "
    "to_b_: int64, to_c_: int64, same_: int64",
    _complete(_BACKWARD),
)


def _rows(x: Tensor) -> Tensor:
    """Memory in which the numbers of a token stand one after the other; tokens may be apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _run(kernel: Any, operands: tuple[Any, ...], offsets: Tensor, reverse: bool, *others: Tensor) -> None:
    x, delta, decay, B, C, D = operands
    (count, heads, width), (groups, states), clouds = x.shape, B.shape[1:], offsets.shape[0] - 1
    x, B, C = map(_rows, (x, B, C))
    held = [
        x,
        delta.contiguous(),
        decay.contiguous(),
        B,
        C,
        None if D is None else D.contiguous(),
        offsets.contiguous(),
    ]
    steps = x.stride(0), B.stride(0), C.stride(0)
    sizes = (*steps, count, clouds, heads, groups, width, states, int(reverse))
    items = clouds * heads
    grain = 1 + items * _LEAST // max(1, count * heads * states * width)
    addresses = [0 if y is None else y.data_ptr() for y in held]
    results = [y.data_ptr() for y in others]
    bridge.launch(kernel[x.dtype], items, *addresses, *sizes, *results, device=x.device, grain=grain)


def scan(operands: tuple[Any, ...], offsets: Tensor, reverse: bool) -> Tensor:
    """y (N, H, P) of x (N, H, P), delta, decay (N, H), B, C (N, G, S), D (H,) or None; offsets (clouds + 1,).

    P and S up to `LARGEST`, on the CPU; any strides, and those of a slice of a token's channels are read in place.
    """
    out = torch.empty(operands[0].shape, dtype=operands[0].dtype)
    _run(_SCAN, operands, offsets, reverse, out)
    return out


def differentiate(
    grad: Tensor, operands: tuple[Any, ...], offsets: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in x, delta, decay, B, C and D (H,), the last of float64, from that in y.

    Beside them one state for each stretch of 8 tiles of 16 tokens is made, and for each cloud the 8 of one stretch.
    """
    x, delta, _, B, _, _ = operands
    (count, heads, width), (groups, states) = x.shape, B.shape[1:]
    tiles = (offsets.diff() + (LANES - 1)) // LANES
    firsts = torch.zeros_like(offsets)
    torch.cumsum(tiles.clamp(max=_STRETCH) + (tiles + (_STRETCH - 1)) // _STRETCH, 0, out=firsts[1:])
    along, across = (-(-n // LANES) * LANES for n in (width, states))
    kept = x.new_empty((heads * int(firsts[-1]), across * along))
    to_x, to_delta, to_decay, same = (torch.empty(y.shape, dtype=x.dtype) for y in (x, delta, delta, delta))
    to_b, to_c = (x.new_empty((count, heads, states)) for _ in range(2))
    results = firsts, kept, to_x, to_delta, to_decay, to_b, to_c, same
    _run(_ADJOINT, operands, offsets, reverse, grad.contiguous(), *results)
    b, c = (y.unflatten(1, (groups, -1)).sum(2) if groups < heads else y for y in (to_b, to_c))
    return to_x, to_delta, to_decay, b, c, same.sum(0, dtype=torch.float64)
