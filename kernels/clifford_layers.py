"""The norm of rows of planes (16, N, C) and its adjoint, and the adjoint of gates, each in one pass over memory."""

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import native_kernel

__all__ = ["differentiate_gate", "differentiate_norm", "norm"]

_COUNTED = (0, 2, 3, 4, 8, 9, 10, 14)  # components without e0
_ROWS = """
    #ifndef __CUDA_ARCH__
    #pragma clang fp contract(on)
    #endif
    const long long begin = (long long)i * grain, end = begin + grain < count ? begin + grain : count;
    for (long long n = begin; n < end; ++n) {
        BODY
    }
"""
_X = "const REAL* __restrict__ x = (const REAL*)x_ + n * channels;"


def _sum(terms: list[str]) -> str:
    """C++ for the `total` over the channels @ of several terms: 16 channels at a time, in a fixed order."""
    loops = []
    for term in terms:
        some, one = term.replace("@", "(c + k)"), term.replace("@", "c")
        loops.append(f"for (c = 0; c + 16 <= channels; c += 16) for (int k = 0; k < 16; ++k) sums[k] += {some};")
        loops.append(f"for (; c < channels; ++c) sums[0] += {one};")
    rest = "REAL total = 0; for (int k = 0; k < 16; ++k) total += sums[k];"
    return f"REAL sums[16] = {{0}}; long long c; {' '.join(loops)} {rest}"


_norm = native_kernel(
    __name__,
    "norm",
    "x_: int64, out_: int64, scales_: int64, channels: int64, floor: float64, count: int64, grain: int64",
    _ROWS.replace(
        "BODY",
        f"""{_X}
        const long long plane = count * channels;
        REAL* __restrict__ out = (REAL*)out_ + n * channels;
        {_sum([f"x[{i} * plane + @] * x[{i} * plane + @]" for i in _COUNTED])}
        const REAL mean = total / channels;
        const REAL scale = 1 / sqrt(mean > (REAL)floor ? mean : (REAL)floor);
        ((REAL*)scales_)[n] = mean > (REAL)floor ? scale : -scale;
        for (int k = 0; k < 16; ++k) for (c = 0; c < channels; ++c) out[k * plane + c] = x[k * plane + c] * scale;""",
    ),
)
_ADD = " ".join(f"for (c = 0; c < channels; ++c) out[{i} * plane + c] += x[{i} * plane + c] * slope;" for i in _COUNTED)
_norm_adjoint = native_kernel(
    __name__,
    "differentiate_norm",
    "x_: int64, scales_: int64, grad_: int64, out_: int64, channels: int64, count: int64, grain: int64",
    _ROWS.replace(
        "BODY",
        f"""{_X}
        const long long plane = count * channels;
        const REAL* __restrict__ g = (const REAL*)grad_ + n * channels;
        REAL* __restrict__ out = (REAL*)out_ + n * channels;
        const REAL kept = ((const REAL*)scales_)[n], scale = kept < 0 ? -kept : kept;
        {_sum([f"x[{i} * plane + @] * g[{i} * plane + @]" for i in range(16)])}
        const REAL slope = kept < 0 ? (REAL)0 : -total * scale * scale * scale / channels;
        for (int k = 0; k < 16; ++k) for (c = 0; c < channels; ++c) out[k * plane + c] = g[k * plane + c] * scale;
        {_ADD}""",
    ),
)
_gate_adjoint = native_kernel(
    __name__,
    "differentiate_gate",
    "x_: int64, gates_: int64, grad_: int64, out_: int64, dots_: int64, channels: int64, count: int64, grain: int64",
    _ROWS.replace(
        "BODY",
        f"""{_X}
        const long long plane = count * channels;
        const REAL* __restrict__ g = (const REAL*)grad_ + n * channels;
        const REAL* __restrict__ gates = (const REAL*)gates_ + n * channels;
        REAL* __restrict__ out = (REAL*)out_ + n * channels;
        REAL* __restrict__ dots = (REAL*)dots_ + n * channels;
        for (long long c = 0; c < channels; ++c) dots[c] = x[c] * g[c];
        for (int k = 1; k < 16; ++k)
            for (long long c = 0; c < channels; ++c) dots[c] += x[k * plane + c] * g[k * plane + c];
        for (int k = 0; k < 16; ++k)
            for (long long c = 0; c < channels; ++c) out[k * plane + c] = g[k * plane + c] * gates[c];""",
    ),
)


def norm(x: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """x (16, N, C) over the root of the mean square of its rows, or of the floor; those scales (N,), negative at the
    floor."""
    x = x.contiguous()
    out, scales = torch.empty_like(x), x.new_empty(x.shape[1])
    pointers = (x.data_ptr(), out.data_ptr(), scales.data_ptr())
    bridge.launch_range(_norm[x.dtype], x.shape[1], *pointers, x.shape[2], floor, device=x.device)  # type: ignore[arg-type]
    return out, scales


def differentiate_norm(x: Tensor, scales: Tensor, grad: Tensor) -> Tensor:
    """The gradient in x, from the one in the result."""
    x, grad = x.contiguous(), grad.contiguous()
    out = torch.empty_like(x)
    pointers = (x.data_ptr(), scales.data_ptr(), grad.data_ptr(), out.data_ptr())
    bridge.launch_range(_norm_adjoint[x.dtype], x.shape[1], *pointers, x.shape[2], device=x.device)
    return out


def differentiate_gate(x: Tensor, gates: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Of gates (N, C) times planes x: the gradients in x and in gates."""
    x, gates, grad = x.contiguous(), gates.contiguous(), grad.contiguous()
    out, dots = torch.empty_like(x), torch.empty_like(gates)
    pointers = (x.data_ptr(), gates.data_ptr(), grad.data_ptr(), out.data_ptr(), dots.data_ptr())
    bridge.launch_range(_gate_adjoint[x.dtype], x.shape[1], *pointers, x.shape[2], device=x.device)
    return out, dots
