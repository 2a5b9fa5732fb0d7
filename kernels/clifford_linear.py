"""Equivariant linear maps of planes (16, N, C) of `PGA`, all in one launch: what matrix products of few channels take
to start, and to add up, is then no more than they are.

A tile of results, some rows by some vectors of channels, stays in registers. Each is the sum of at most two products:
of the same component, and of the one with e0 or without it.
"""

import torch
import warp as wp
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import native_kernel

__all__ = ["apply", "can_differentiate", "differentiate"]

Kernels = dict[torch.dtype, wp.Kernel]
_MAPS = 9
_GRADES = [0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4]
_FREE = {1: 0, 5: 2, 6: 3, 7: 4, 11: 8, 12: 9, 13: 10, 15: 14}  # the component that e0 multiplies, by each with e0
_SCALES = (1, 4, 6, 4, 1, 1, 3, 3, 1)  # of which the maps are divided by the roots
_ROWS = {1: 12, 2: 6, 3: 4, 4: 4}


def _table(name: str, numbers: list[int]) -> str:
    return f"const int {name}[] = {{{', '.join(map(str, numbers))}}};"


_BEGIN = f"""
    #pragma clang fp contract(on)
    typedef REAL V __attribute__((ext_vector_type(64 / sizeof(REAL)), aligned(sizeof(REAL))));
    typedef REAL Half __attribute__((ext_vector_type(32 / sizeof(REAL)), aligned(sizeof(REAL))));
    const int lanes = 64 / sizeof(REAL);
    const REAL scales[] = {{{", ".join(f"REAL({count**-0.5!r})" for count in _SCALES)}}};
    {_table("grade", _GRADES)}
    {_table("to_free", [_FREE.get(k, -1) for k in range(16)])}
"""
# sum over k of a[r down + k along] b[k step + ...], for ROWS r and COLUMNS vectors
_ADD = """
    for (long long k = 0; k < depth; ++k) {
        V row[COLUMNS];
        for (int v = 0; v < COLUMNS; ++v) row[v] = *(const V*)(b + k * step + v * lanes);
        #pragma clang loop unroll(full)
        for (int r = 0; r < ROWS; ++r) {
            const REAL one = a[r * down + k * along];
            for (int v = 0; v < COLUMNS; ++v) sum[r][v] += row[v] * one;
        }
    }
"""


def _tile(rows: int, columns: int, code: str) -> str:
    return code.replace("ADD", _ADD).replace("ROWS", str(rows)).replace("COLUMNS", str(columns))


# Of one component's rows from n to `last`: result channels from `o` on, COLUMNS vectors of them.
_FORWARD_TILE = """
    for (; n + ROWS <= last; n += ROWS) {
        V sum[ROWS][COLUMNS];
        for (int r = 0; r < ROWS; ++r) for (int v = 0; v < COLUMNS; ++v) sum[r][v] = (REAL)0;
        const long long depth = inner, down = x_row, along = 1, step = padded;
        {
            const REAL* a = x + p * x_plane + n * x_row;
            const REAL* b = packed + grade[p] * inner * padded + o;
            ADD
        }
        if (other >= 0) {
            const REAL* a = x + other * x_plane + n * x_row;
            const REAL* b = packed + (5 + (adjoint ? grade[p] : grade[other])) * inner * padded + o;
            V before[ROWS][COLUMNS];  // a sum of its own, for less rounding
            for (int r = 0; r < ROWS; ++r) for (int v = 0; v < COLUMNS; ++v) before[r][v] = sum[r][v];
            for (int r = 0; r < ROWS; ++r) for (int v = 0; v < COLUMNS; ++v) sum[r][v] = (REAL)0;
            ADD
            for (int r = 0; r < ROWS; ++r) for (int v = 0; v < COLUMNS; ++v) sum[r][v] += before[r][v];
        }
        for (int r = 0; r < ROWS; ++r) {
            REAL* to = (REAL*)out_ + (p * rows + n + r) * outer + o;
            #pragma clang loop unroll(full)
            for (int v = 0; v < COLUMNS; ++v) {
                const int left = (int)(outer - o) - v * lanes;
                if (left >= lanes) *(V*)(to + v * lanes) = sum[r][v];
                else if (left == lanes / 2) *(Half*)(to + v * lanes) = sum[r][v].lo;
                else {
                    REAL some[lanes];
                    *(V*)some = sum[r][v];
                    for (int k = 0; k < left; ++k) to[v * lanes + k] = some[k];
                }
            }
        }
    }
"""
_CASES = [
    f"case {vectors}: {{ {_tile(rows, vectors, _FORWARD_TILE)} {_tile(1, vectors, _FORWARD_TILE)} break; }}"
    for vectors, rows in _ROWS.items()
]
_FORWARD = f"""
    {_BEGIN}
    {_table("from_free", [next((e for e, free in _FREE.items() if free == k), -1) for k in range(16)])}
    const long long begin = (long long)i * grain, end = begin + grain < count ? begin + grain : count;
    const long long padded = (outer + lanes - 1) / lanes * lanes, begin_row = (begin + outer - 1) / outer;
    const long long last = (end + outer - 1) / outer;
    const REAL* x = (const REAL*)x_;
    REAL* packed = (REAL*)packed_ + i * {_MAPS} * inner * padded;
    // the weights (C_out, C_in, maps) as (maps, inner, padded)
    const long long of_inner = adjoint ? w_in * {_MAPS} : {_MAPS}, of_outer = adjoint ? {_MAPS} : w_in * {_MAPS};
    for (int a = 0; a < {_MAPS}; ++a) for (long long j = 0; j < inner; ++j) {{
        REAL* to = packed + (a * inner + j) * padded;
        const REAL* from = (const REAL*)w_ + j * of_inner + a;
        #pragma clang loop vectorize(disable)
        for (long long o = 0; o < outer; ++o) to[o] = from[o * of_outer] * scales[a];
        for (long long o = outer; o < padded; ++o) to[o] = 0;
    }}
    for (int p = 0; p < 16; ++p) {{
        const int other = adjoint ? from_free[p] : to_free[p];
        for (long long o = 0; o < outer;) {{
            const long long vectors = (padded - o) / lanes;
            const int columns = vectors > 4 ? (vectors == 5 ? 3 : 4) : (int)vectors;
            long long n = begin_row;
            switch (columns) {{
                {" ".join(_CASES)}
            }}
            o += columns * lanes;
        }}
    }}
"""
_apply: Kernels = native_kernel(
    __name__,
    "apply",
    "adjoint: int64, x_: int64, x_plane: int64, x_row: int64, w_: int64, w_in: int64, inner: int64, outer: int64, "
    "packed_: int64, out_: int64, rows: int64, count: int64, grain: int64",
    f"#ifndef __CUDA_ARCH__\n{_FORWARD}\n#endif\n",
)
# Of one map: channels from o on of one operand by a vector of those of the other, from c on. `swapped`: those are the
# gradients'.
_BACKWARD_TILE = """
    for (; o + ROWS <= few; o += ROWS) {
        V total[ROWS];
        for (int r = 0; r < ROWS; ++r) total[r] = (REAL)0;
        for (int p = 0; p < 16; ++p) {
            const int free = to_free[p], from = map < 5 ? p : free;
            if (map < 5 ? grade[p] != map : free < 0 || grade[free] != map - 5) continue;
            for (long long n = 0; n < rows; n += 128) {  // of which each has a sum of its own, for less rounding
                const long long depth = rows - n < 128 ? rows - n : 128, down = 1;
                const long long along = swapped ? x_row : g_row, step = swapped ? g_row : x_row;
                const REAL* grad = (const REAL*)g_ + p * g_plane + n * g_row;
                const REAL* source = (const REAL*)x_ + from * x_plane + n * x_row;
                const REAL* a = (swapped ? source : grad) + o;
                const REAL* b = (swapped ? grad : source) + c;
                V sum[ROWS][1];
                for (int r = 0; r < ROWS; ++r) sum[r][0] = (REAL)0;
                ADD
                for (int r = 0; r < ROWS; ++r) total[r] += sum[r][0];
            }
        }
        for (int r = 0; r < ROWS; ++r) for (int k = 0; k < lanes; ++k)
            ((REAL*)out_)[(swapped ? (c + k) * few + o + r : (o + r) * many + c + k) * 9 + map] =
                total[r][k] * scales[map];
    }
"""
_BACKWARD = f"""
    {_BEGIN}
    const long long begin = (long long)i * grain, end = begin + grain < count ? begin + grain : count;
    for (int map = 0; map < {_MAPS}; ++map) {{
        const long long place = map * (count / {_MAPS});
        if (place < begin || place >= end) continue;
        for (long long c = 0; c < many; c += lanes) {{
            long long o = 0;
            {" ".join(_tile(rows, 1, _BACKWARD_TILE) for rows in (16, 8, 1))}
        }}
    }}
"""
_differentiate: Kernels = native_kernel(
    __name__,
    "differentiate",
    "g_: int64, g_plane: int64, g_row: int64, x_: int64, x_plane: int64, x_row: int64, few: int64, many: int64, "
    "swapped: int64, out_: int64, rows: int64, count: int64, grain: int64",
    f"#ifndef __CUDA_ARCH__\n{_BACKWARD}\n#endif\n",
)


def apply(x: Tensor, weight: Tensor, adjoint: bool) -> Tensor:
    """Planes (16, N, C_in) times weight (C_out, C_in, 9), or adjoint, planes (16, N, C_out) times its transpose."""
    x = x if x.stride(2) == 1 else x.contiguous()
    weight = weight.contiguous()
    inner, outer = (weight.shape[0], weight.shape[1]) if adjoint else (weight.shape[1], weight.shape[0])
    out = x.new_empty((*x.shape[:2], outer))
    if out.numel():
        packed = x.new_empty(bridge._threads(), _MAPS, inner, outer + 16)
        pointers = (weight.data_ptr(), weight.shape[1], inner, outer, packed.data_ptr(), out.data_ptr())
        args = (int(adjoint), x.data_ptr(), x.stride(0), x.stride(1), *pointers, x.shape[1])
        bridge.launch_range(_apply[x.dtype], x.shape[1] * outer, *args, device=x.device)
    return out


def can_differentiate(grad: Tensor, x: Tensor) -> bool:
    """Whether the channels of one of them fill vectors."""
    lanes = 64 // x.element_size()
    return x.shape[2] % lanes == 0 or grad.shape[2] % lanes == 0


def differentiate(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient (C_out, C_in, 9) in the weight, of planes grad (16, N, C_out) and x (16, N, C_in)."""
    grad, x = (z if z.stride(2) == 1 else z.contiguous() for z in (grad, x))
    inner, outer = x.shape[2], grad.shape[2]
    out = x.new_empty((outer, inner, _MAPS))
    if out.numel():
        swapped = inner % (64 // x.element_size()) != 0
        operands = [number for z in (grad, x) for number in (z.data_ptr(), z.stride(0), z.stride(1))]
        sizes = (inner, outer, 1) if swapped else (outer, inner, 0)
        args = (*operands, *sizes, out.data_ptr(), x.shape[1])
        bridge.launch_range(_differentiate[x.dtype], _MAPS * max(1, x.shape[1] * outer), *args, device=x.device)
    return out
