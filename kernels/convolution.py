"""Depthwise causal convolution along the tokens of clouds: y_t = bias + sum_k weight_k x_{t-k}, within each cloud.

An item is TOKENS tokens and as many channels as fit one vector; on CUDA one channel, neighbouring threads neighbours.
"""

from typing import Any

from torch import Tensor

from geom.kernels import bridge
from geom.kernels.lanes import LANES, VECTORS
from geom.kernels.native import native_kernel

__all__ = ["convolve", "differentiate"]

_TOKENS = 64
_LEAST = 100_000  # numbers below which a second thread costs more than it saves

_BEGIN = (
    VECTORS
    + """
    const long long* offsets = (const long long*)offsets_;
    const long long blocks = (width + WIDTH - 1) / WIDTH, tile = i / blocks, block = i - tile * blocks;
    const int some = width - block * WIDTH < WIDTH ? (int)(width - block * WIDTH) : WIDTH;
    const long long first = tile * TOKENS, last = first + TOKENS < tokens ? first + TOKENS : tokens;
    const REAL* x = (const REAL*)x_ + block * WIDTH;
    V weight[LARGEST];
    for (int k = 0; k < taps; ++k) weight[k] = load((const REAL*)weight_ + k * width + block * WIDTH, some);
    const V bias = bias_ ? load((const REAL*)bias_ + block * WIDTH, some) : (V)REAL(0);
    long long cloud = 0, above = clouds;  // of the token: the last whose offset is not beyond it
    while (above - cloud > 1) {
        const long long middle = (cloud + above) / 2;
        if (offsets[middle] <= first) cloud = middle; else above = middle;
    }
"""
)
_INPUTS = (
    "x_: int64, weight_: int64, bias_: int64, offsets_: int64, tokens: int64, width: int64, clouds: int64, "
    "taps: int32, reverse: int32"
)
LARGEST = 16  # taps


def _complete(code: str) -> str:
    words = {"TOKENS": _TOKENS, "LARGEST": LARGEST}
    for word, value in words.items():
        code = code.replace(word, str(value))
    return code


_CONVOLVE = native_kernel(
    __name__,
    "convolve",
    f"{_INPUTS}, out_: int64",
    _complete(
        _BEGIN
        + """
    REAL* out = (REAL*)out_ + block * WIDTH;
    for (long long t = first; t < last; ++t) {
        while (offsets[cloud + 1] <= t) ++cloud;
        const long long room = reverse ? offsets[cloud + 1] - 1 - t : t - offsets[cloud], way = reverse ? 1 : -1;
        const int some_taps = room + 1 < taps ? (int)room + 1 : taps;
        V y = bias;
        for (int k = 0; k < some_taps; ++k) y += weight[k] * load(x + (t + k * way) * width, some);
        store(out + t * width, some, y);
    }
    """
    ),
)

# For each tile of tokens the sums that make the gradients of weight and bias, (tiles, taps + 1, C).
_ADJOINT = native_kernel(
    __name__,
    "convolve_adjoint",
    f"{_INPUTS}, grad_: int64, g_x_: int64, sums_: int64",
    _complete(
        _BEGIN
        + """
    const REAL* grad = (const REAL*)grad_ + block * WIDTH;
    REAL* g_x = (REAL*)g_x_ + block * WIDTH;
    V sums[LARGEST], sum = REAL(0) * bias;
    for (int k = 0; k < taps; ++k) sums[k] = REAL(0);
    for (long long t = first; t < last; ++t) {
        while (offsets[cloud + 1] <= t) ++cloud;
        const long long room = reverse ? offsets[cloud + 1] - 1 - t : t - offsets[cloud], way = reverse ? 1 : -1;
        const long long rest = reverse ? t - offsets[cloud] : offsets[cloud + 1] - 1 - t;
        const V g = load(grad + t * width, some);
        const int before = room + 1 < taps ? (int)room + 1 : taps, after = rest + 1 < taps ? (int)rest + 1 : taps;
        for (int k = 0; k < before; ++k) sums[k] += g * load(x + (t + k * way) * width, some);
        sum += g;
        V y = REAL(0);
        for (int k = 0; k < after; ++k) y += weight[k] * load(grad + (t - k * way) * width, some);
        store(g_x + t * width, some, y);
    }
    REAL* own = (REAL*)sums_ + tile * (taps + 1) * width + block * WIDTH;
    for (int k = 0; k < taps; ++k) store(own + k * width, some, sums[k]);
    store(own + taps * width, some, sum);
    """
    ),
)


def _run(
    kernel: Any, x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, reverse: bool, *rest: Tensor
) -> None:
    (count, width), lanes = x.shape, 1 if x.device.type == "cuda" else LANES
    weight, offsets = weight.t().contiguous(), offsets.contiguous()
    bias = None if bias is None else bias.contiguous()
    addresses = [0 if y is None else y.data_ptr() for y in (x, weight, bias, offsets)]
    sizes = (count, width, offsets.shape[0] - 1, weight.shape[0], int(reverse))
    items = -(-count // _TOKENS) * -(-width // lanes)
    grain = 1 + _LEAST // (lanes * _TOKENS)
    arguments = (*addresses, *sizes, *(y.data_ptr() for y in rest))
    bridge.launch(kernel[x.dtype], items, *arguments, device=x.device, grain=grain)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, reverse: bool) -> Tensor:
    """(N, C) of x (N, C), weight (C, K), column k for the token k steps before, bias (C,), offsets (clouds + 1,)."""
    x, out = x.contiguous(), x.new_empty(x.shape)
    _run(_CONVOLVE, x, weight, bias, offsets, reverse, out)
    return out


@bridge.small_operations()
def differentiate(
    grad: Tensor, x: Tensor, weight: Tensor, offsets: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    x, grad, g_x = x.contiguous(), grad.contiguous(), x.new_empty(x.shape)
    sums = x.new_empty((-(-x.shape[0] // _TOKENS), weight.shape[1] + 1, x.shape[1]))
    _run(_ADJOINT, x, weight, None, offsets, reverse, grad, g_x, sums)
    total = sums.sum(0)
    return g_x, total[:-1].t().contiguous(), total[-1]
