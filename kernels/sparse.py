"""Sparse voxels: a hash of their cells, sums and greatest rows of segments, and convolution over a table of neighbours.

A table (K, M) int32 names, for kernel element k and output row o, the input row that stands there, or -1.
"""

from typing import Any

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import native_kernel

__all__ = ["BLOCK", "convolve", "insert", "locate", "mirror", "segment_extreme", "segment_sum", "weigh"]

BLOCK = 256  # rows of one item
PANEL = 16  # channels of one pass
_TILE = 4  # rows of one pass, or input channels: 4 x 64 bytes of sums fit the registers of AVX2 and AVX-512

_SUM = native_kernel(
    __name__,
    "segment_sum",
    "values: real[], order: int64[], starts: int64[], sums: real[]",
    # Item i is a segment. Sums run in float64, in the order of the segment.
    """
    const int width = values.shape[1];
    const long long begin = starts.data[i], end = starts.data[i + 1];
    for (int left = 0; left < width; left += PANEL) {
        const int some = width - left < PANEL ? width - left : PANEL;
        double total[PANEL];
        for (int j = 0; j < PANEL; ++j) total[j] = 0;
        for (long long k = begin; k < end; ++k) {
            const REAL* row = values.data + order.data[k] * width + left;
            for (int j = 0; j < some; ++j) total[j] += (double)row[j];
        }
        for (int j = 0; j < some; ++j) sums.data[(long long)i * width + left + j] = (REAL)total[j];
    }
    """.replace("PANEL", str(PANEL)),
)

# segment_sum(values (N, C), order (N,) int64, starts (S+1,) int64) -> (S, C): the sum of values[order[k]] over
# starts[s] <= k < starts[s+1]; differentiable in values where `order` is a permutation.
segment_sum: Any = bridge.operator(
    "segment_sum",
    "(Tensor values, Tensor order, Tensor starts) -> Tensor",
    kernel=_SUM.__getitem__,
    output=lambda values, order, starts: values.new_empty((starts.shape[0] - 1, values.shape[1])),
    items=lambda values, order, starts: starts.shape[0] - 1,
)


def _keep_segments(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _spread(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    order, starts = ctx.saved_tensors
    rows = grad.repeat_interleave(starts.diff(), 0, output_size=order.shape[0])
    return torch.zeros_like(rows).index_copy(0, order, rows), None, None


segment_sum.register_autograd(_spread, setup_context=_keep_segments)

_EXTREME = native_kernel(
    __name__,
    "segment_extreme",
    "values: real[], order: int64[], starts: int64[], least: int32, found: real[], rows: int64[]",
    # Item i is a segment.
    """
    const int width = values.shape[1];
    const long long begin = starts.data[i], end = starts.data[i + 1];
    for (int left = 0; left < width; left += PANEL) {
        const int some = width - left < PANEL ? width - left : PANEL;
        REAL top[PANEL];
        long long taken[PANEL];
        for (int j = 0; j < PANEL; ++j) { top[j] = REAL(0); taken[j] = -1; }
        for (long long k = begin; k < end; ++k) {
            const long long row = order.data[k];
            for (int j = 0; j < some; ++j) {
                const REAL x = values.data[row * width + left + j];
                if (taken[j] < 0 || (least ? x < top[j] : x > top[j])) { top[j] = x; taken[j] = row; }
            }
        }
        for (int j = 0; j < some; ++j) {
            found.data[(long long)i * width + left + j] = top[j];
            rows.data[(long long)i * width + left + j] = (wp::int64)taken[j];
        }
    }
    """.replace("PANEL", str(PANEL)),
)

# segment_extreme(values (N, C), order, starts, least) -> two (S, C): for each segment and column the greatest or least
# value, 0 for an empty segment, and its row, the first of equals, -1 for an empty segment; differentiable in values.
segment_extreme: Any = bridge.operator(
    "segment_extreme",
    "(Tensor values, Tensor order, Tensor starts, bool least) -> (Tensor, Tensor)",
    kernel=_EXTREME.__getitem__,
    output=lambda values, order, starts, least: (
        values.new_empty((starts.shape[0] - 1, values.shape[1])),
        starts.new_empty((starts.shape[0] - 1, values.shape[1])),
    ),
    items=lambda values, order, starts, least: starts.shape[0] - 1,
)


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.count = inputs[0].shape[0]
    ctx.save_for_backward(output[1])


def _to_rows(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, None, None, None]:
    (rows,) = ctx.saved_tensors
    every = grad.new_zeros((ctx.count + 1, grad.shape[1]))  # the last row takes what belongs to none
    return every.scatter(0, torch.where(rows < 0, ctx.count, rows), grad)[: ctx.count], None, None, None


segment_extreme.register_autograd(_to_rows, setup_context=_keep_rows)

# Where the search for `key` ends, its own slot or an empty one: open addressing, linear steps, Fibonacci hashing.
_PROBE = """
    unsigned long long at = (unsigned long long)key * 0x9E3779B97F4A7C15ull >> shift;
    while (slot_key.data[at] != key && slot_key.data[at] != -1) at = (at + 1) & mask;
"""
_SLOTS = "shift: int32, slot_key: int64[], slot_row: int32[]"

insert = native_kernel(
    __name__,
    "insert",
    f"keys: int64[], {_SLOTS}, twice: int32[]",
    # One item: rows go in one after the other. `twice` gets a row whose key another one has.
    """
    const unsigned long long mask = (1ull << (64 - shift)) - 1;
    for (int r = 0; r < keys.shape[0]; ++r) {
        const wp::int64 key = keys.data[r];
        PROBE
        if (slot_key.data[at] == key) twice.data[0] = r;
        slot_key.data[at] = key;
        slot_row.data[at] = r;
    }
    """.replace("PROBE", _PROBE),
)

locate = native_kernel(
    __name__,
    "locate",
    f"keys: int64[], {_SLOTS}, rows: int64[]",
    # Item i is a key: its row, or -1; keys below 0 have none.
    """
    const unsigned long long mask = (1ull << (64 - shift)) - 1;
    const wp::int64 key = keys.data[i];
    PROBE
    rows.data[i] = key >= 0 && slot_key.data[at] == key ? (wp::int64)slot_row.data[at] : -1;
    """.replace("PROBE", _PROBE),
)

mirror = native_kernel(
    __name__,
    "mirror",
    f"keys: int64[], steps: int64[], {_SLOTS}, table: int32[]",
    # Item i is a block of voxels. Of two opposite kernel elements one is searched and gives both; the middle one is the
    # voxel itself. No two items write the same entry: a voxel has one neighbour behind each element.
    """
    const unsigned long long mask = (1ull << (64 - shift)) - 1;
    const int count = keys.shape[0], size = steps.shape[0], begin = BLOCK * i;
    const int end = begin + BLOCK < count ? begin + BLOCK : count;
    for (int k = 0; k < size / 2; ++k) {
        for (int r = begin; r < end; ++r) {
            const wp::int64 key = keys.data[r] + steps.data[k];
            PROBE
            if (slot_key.data[at] != key) continue;
            const int other = slot_row.data[at];
            table.data[(long long)k * count + r] = other;
            table.data[(long long)(size - 1 - k) * count + other] = r;
        }
    }
    for (int r = begin; r < end; ++r) table.data[(long long)(size / 2) * count + r] = r;
    """.replace("PROBE", _PROBE).replace("BLOCK", str(BLOCK)),
)

# The rows from `begin` on that kernel element k has an input for: `count` pairs of an output row and an input row.
_PAIRS = """
        const wp::int32* entry = table.data + (long long)k * total + begin;
        for (int j = 0; j < size; ++j) {
            to[count] = begin + j;
            from[count] = entry[j];
            count += entry[j] >= 0;
        }
"""

# A panel of 64 bytes is one register of AVX-512 and two of AVX2, where loops would not always become vectors: these
# kernels are for the CPU alone. On CUDA torch's matrix products run instead.
_PANEL = """
#ifndef __CUDA_ARCH__
    const int WIDTH = 64 / (int)sizeof(REAL);
    typedef REAL Panel __attribute__((ext_vector_type(WIDTH), aligned(sizeof(REAL))));
"""

_convolve = native_kernel(
    __name__,
    "convolve",
    "input: real[], weight: real[], table: int32[], output: real[]",
    # Item i is a block of output rows, which stays in the cache while the kernel's elements pass over it. The weights
    # (K, C, D') have their columns filled up with zeros to whole panels. A row's sum runs over k, then over c, in the
    # same instructions wherever it stands in its tile, so its bits depend on nothing but its inputs.
    (
        _PANEL
        + """
    const int elements = weight.shape[0], inner = weight.shape[1], stride = weight.shape[2], outer = output.shape[1];
    const int total = table.shape[1], begin = BLOCK * i, size = total - begin < BLOCK ? total - begin : BLOCK;
    int to[BLOCK + 1], from[BLOCK + TILE];
    for (long long j = 0; j < (long long)size * outer; ++j) output.data[(long long)begin * outer + j] = REAL(0);
    for (int k = 0; k < elements; ++k) {
        int count = 0;
        PAIRS
        for (int j = 0; j < TILE; ++j) from[count + j] = 0;  // what fills up the last tile, and is not kept
        for (int left = 0; left < outer; left += WIDTH) {
            const REAL* panel = weight.data + (long long)k * inner * stride + left;
            const int width = outer - left < WIDTH ? outer - left : WIDTH;
            for (int g = 0; g < count; g += TILE) {
                Panel sum[TILE];
                const REAL* row[TILE];
                for (int r = 0; r < TILE; ++r) {
                    sum[r] = REAL(0);
                    row[r] = input.data + (long long)from[g + r] * inner;
                }
                for (int c = 0; c < inner; ++c) {
                    const Panel w = *(const Panel*)(panel + (long long)c * stride);
                    for (int r = 0; r < TILE; ++r) sum[r] += row[r][c] * w;
                }
                for (int r = 0; r < TILE && g + r < count; ++r) {
                    REAL* own = output.data + (long long)to[g + r] * outer + left;
                    if (width == WIDTH) *(Panel*)own += sum[r];
                    else for (int d = 0; d < width; ++d) own[d] += sum[r][d];
                }
            }
        }
    }
#endif
    """
    )
    .replace("PAIRS", _PAIRS)
    .replace("BLOCK", str(BLOCK))
    .replace("TILE", str(_TILE)),
)

_weigh = native_kernel(
    __name__,
    "weigh",
    "input: real[], output: real[], table: int32[], weight: float64[]",
    # Item i is a kernel element's panel of output channels: the sum over pairs of input row times output row, block by
    # block in the dtype, and over blocks in float64.
    (
        _PANEL
        + """
    const int inner = input.shape[1], outer = output.shape[1], total = table.shape[1];
    const int panels = (outer + WIDTH - 1) / WIDTH, k = i / panels, left = i % panels * WIDTH;
    const int width = outer - left < WIDTH ? outer - left : WIDTH;
    double* own = weight.data + (long long)k * inner * outer + left;
    for (int c = 0; c < inner; ++c) for (int d = 0; d < width; ++d) own[(long long)c * outer + d] = 0;
    int to[2 * BLOCK + 1], from[2 * BLOCK + 1], count = 0;
    Panel right[2 * BLOCK];
    for (int begin = 0; begin < total; begin += BLOCK) {
        const int size = total - begin < BLOCK ? total - begin : BLOCK;
        PAIRS
        if (count < BLOCK && begin + size < total) continue;
        for (int j = 0; j < count; ++j) {
            const REAL* row = output.data + (long long)to[j] * outer + left;
            if (width == WIDTH) right[j] = *(const Panel*)row;
            else for (int d = 0; d < WIDTH; ++d) right[j][d] = d < width ? row[d] : REAL(0);
        }
        for (int c = 0; c < inner; c += TILE) {
            Panel sum[TILE];
            int column[TILE];
            for (int r = 0; r < TILE; ++r) {
                column[r] = c + r < inner ? c + r : inner - 1;
                sum[r] = REAL(0);
            }
            for (int j = 0; j < count; ++j) {
                const REAL* row = input.data + (long long)from[j] * inner;
                for (int r = 0; r < TILE; ++r) sum[r] += row[column[r]] * right[j];
            }
            for (int r = 0; r < TILE && c + r < inner; ++r)
                for (int d = 0; d < width; ++d) own[(long long)(c + r) * outer + d] += (double)sum[r][d];
        }
        count = 0;
    }
#endif
    """
    )
    .replace("PAIRS", _PAIRS)
    .replace("BLOCK", str(BLOCK))
    .replace("TILE", str(_TILE)),
)


def convolve(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Rows sum_k features[table[k]] weight[k], an absent row being 0: (M, D) of (N, C), (K, C, D) and (K, M)."""
    rows, width = table.shape[1], weight.shape[2]
    filled = weight.new_zeros((*weight.shape[:2], _panels(weight) * 64 // weight.itemsize))
    filled[..., :width] = weight
    out = features.new_empty((rows, width))
    args = (features.contiguous(), filled, table.contiguous(), out)
    bridge.launch(_convolve[features.dtype], -(-rows // BLOCK), *args, device=features.device, grain=4096 // BLOCK)
    return out


def weigh(features: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    """Matrices sum_o features[table[k, o]]^T grad[o], an absent row being 0: (K, C, D) of (N, C), (M, D) and (K, M)."""
    elements, rows = table.shape
    out = features.new_empty((elements, features.shape[1], grad.shape[1]), dtype=torch.float64)
    items = elements * _panels(grad)
    args = (features.contiguous(), grad.contiguous(), table.contiguous(), out)
    grain = 1 + items * 4096 // max(1, rows)
    bridge.launch(_weigh[features.dtype], items, *args, device=features.device, grain=grain)
    return out.to(features.dtype)


def _panels(x: Tensor) -> int:
    """How many panels of 64 bytes hold the last axis."""
    return -(-x.shape[-1] * x.itemsize // 64)
