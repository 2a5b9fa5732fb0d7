"""What slim networks do between matrix products, each in one pass over memory: norms, and attention's features.

Scalars are z (N, Z), planes and points x (8, N, C); a kernel's item is a range of the N rows.
"""

import struct

import torch
import warp as wp
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import native_kernel

__all__ = ["differentiate_features", "differentiate_norm", "features", "join", "normalise", "split"]

_ROWS = """
    #ifndef __CUDA_ARCH__
    #pragma clang fp contract(fast) reassociate(on)
    #endif
    const long long begin = (long long)i * grain, end = begin + grain < count ? begin + grain : count;
    for (long long n = begin; n < end; ++n) { BODY }
"""

# --- norms ------------------------------------------------------------------------------------------------------------

_NORMALISE = """
    const REAL* __restrict__ z = (const REAL*)z_ + n * zs;
    const REAL* __restrict__ x = (const REAL*)x_ + n * c;
    REAL* __restrict__ zo = (REAL*)zo_ + n * zs;
    REAL* __restrict__ xo = (REAL*)xo_ + n * c;
    REAL* stats = (REAL*)stats_ + n * 4;
    const long long plane = count * c;
    const REAL floor = 0.01;
    REAL mean = 0, square = 0, normals = 0, weights = 0;
    for (int k = 0; k < zs; ++k) mean += z[k];
    mean /= zs;
    for (int k = 0; k < zs; ++k) square += (z[k] - mean) * (z[k] - mean);
    const REAL inverse = REAL(1) / sqrt(square / zs + REAL(1e-5));
    for (int k = 0; k < zs; ++k) zo[k] = (z[k] - mean) * inverse;
    for (int k = 1; k < 4; ++k) for (int j = 0; j < c; ++j) normals += x[k * plane + j] * x[k * plane + j];
    for (int j = 0; j < c; ++j) weights += x[7 * plane + j] * x[7 * plane + j];
    normals /= c; weights /= c;
    const REAL a = REAL(1) / sqrt(normals > floor ? normals : floor);
    const REAL b = REAL(1) / sqrt(weights > floor ? weights : floor);
    for (int k = 0; k < 8; ++k) {
        const REAL scale = k < 4 ? a : b;
        for (int j = 0; j < c; ++j) xo[k * plane + j] = x[k * plane + j] * scale;
    }
    stats[0] = mean; stats[1] = inverse; stats[2] = normals > floor ? a : -a; stats[3] = weights > floor ? b : -b;
"""

_NORMALISE_ADJOINT = """
    const REAL* __restrict__ z = (const REAL*)z_ + n * zs;
    const REAL* __restrict__ x = (const REAL*)x_ + n * c;
    const REAL* __restrict__ gz = (const REAL*)gz_ + n * zs;
    const REAL* __restrict__ gx = (const REAL*)gx_ + n * c;
    const REAL* stats = (const REAL*)stats_ + n * 4;
    REAL* __restrict__ zo = (REAL*)zo_ + n * zs;
    REAL* __restrict__ xo = (REAL*)xo_ + n * c;
    const long long plane = count * c;
    const REAL mean = stats[0], inverse = stats[1];
    REAL sum = 0, along = 0;
    for (int k = 0; k < zs; ++k) { sum += gz[k]; along += gz[k] * (z[k] - mean); }
    sum /= zs; along *= inverse * inverse / zs;
    for (int k = 0; k < zs; ++k) zo[k] = (gz[k] - sum - (z[k] - mean) * along) * inverse;
    for (int half = 0; half < 8; half += 4) {
        const REAL own = stats[2 + half / 4], scale = own < 0 ? -own : own;
        REAL slope = 0;
        if (own > 0) for (int k = half; k < half + 4; ++k)
            for (int j = 0; j < c; ++j) slope += gx[k * plane + j] * x[k * plane + j];
        slope *= -own * own * own / c;
        for (int k = half; k < half + 4; ++k) {
            const REAL more = (half ? k == 7 : k > 0) ? slope : REAL(0);
            for (int j = 0; j < c; ++j) xo[k * plane + j] = gx[k * plane + j] * scale + x[k * plane + j] * more;
        }
    }
"""

_Z_X = "z_: int64, x_: int64"
_TAIL = "zs: int64, c: int64, count: int64, grain: int64"
_normalise = native_kernel(
    __name__, "normalise", f"{_Z_X}, zo_: int64, xo_: int64, stats_: int64, {_TAIL}", _ROWS.replace("BODY", _NORMALISE)
)
_differentiate_norm = native_kernel(
    __name__,
    "differentiate_norm",
    f"{_Z_X}, gz_: int64, gx_: int64, stats_: int64, zo_: int64, xo_: int64, {_TAIL}",
    _ROWS.replace("BODY", _NORMALISE_ADJOINT),
)


def normalise(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both normalised, and what the adjoint wants to know of them."""
    z, x = z.contiguous(), x.contiguous()
    results = torch.empty_like(z), torch.empty_like(x), z.new_empty((len(z), 4))
    _launch(_normalise, len(z), (z, x, *results), z.shape[1], x.shape[2])
    return results


def differentiate_norm(z: Tensor, x: Tensor, grad_z: Tensor, grad_x: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients in z and x, from those in the results."""
    z, x, grad_z, grad_x = (y.contiguous() for y in (z, x, grad_z, grad_x))
    results = torch.empty_like(z), torch.empty_like(x)
    _launch(_differentiate_norm, len(z), (z, x, grad_z, grad_x, stats, *results), z.shape[1], x.shape[2])
    return results


def _launch(kernels: dict[torch.dtype, wp.Kernel], rows: int, tensors: tuple[Tensor, ...], *sizes: int) -> None:
    if rows:
        kernel = kernels[tensors[0].dtype]
        bridge.launch_range(kernel, rows, *(y.data_ptr() for y in tensors), *sizes, device=tensors[0].device)


# --- features ---------------------------------------------------------------------------------------------------------

# Heads of queries, of keys and of values follow each other in z and x, inner scalars and c planes and points each. A
# row of the results holds the heads, and of each the scalars, then 8 c numbers, c of each kind.
_HEADS = """
    const long long all = heads + 2 * few, depth = inner + 8 * c, plane = count * all * c;
    union { long long bits; double number; } known; known.bits = epsilon_;
    const REAL epsilon = (REAL)known.number;
    for (int head = 0; head < all; ++head) {
        const int kind = head < heads ? 0 : head < heads + few ? 1 : 2;
        const long long own = kind == 0 ? n * heads + head : n * few + head - heads - (kind == 2 ? few : 0);
        const long long at = (n * all + head) * inner, place = (n * all + head) * c;
        BODY
    }
"""

_FEATURES = """
        REAL* __restrict__ out = (REAL*)(kind == 0 ? q_ : kind == 1 ? k_ : v_) + own * depth;
        const REAL* __restrict__ z = (const REAL*)z_ + at;
        const REAL* __restrict__ x = (const REAL*)x_ + place;
        for (int j = 0; j < inner; ++j) out[j] = z[j];
        out += inner;
        if (kind == 2) {
            for (int k = 0; k < 8; ++k) for (int j = 0; j < c; ++j) out[k * c + j] = x[k * plane + j];
            continue;
        }
        for (int k = 0; k < 3; ++k) for (int j = 0; j < c; ++j) out[k * c + j] = x[(k + 1) * plane + j];
        const REAL* weights = (const REAL*)weights_ + head * c;
        for (int j = 0; j < c; ++j) {
            const REAL w = x[7 * plane + j], f = w / (w * w + epsilon), u = w * f;
            const REAL e0 = x[4 * plane + j] * f, e1 = x[5 * plane + j] * f, e2 = x[6 * plane + j] * f;
            const REAL square = e0 * e0 + e1 * e1 + e2 * e2, scale = kind ? REAL(2) : weights[j];
            out[3 * c + j] = kind ? -u * u : square * scale;
            out[4 * c + j] = kind ? -square : u * u * scale;
            out[5 * c + j] = e0 * u * scale;
            out[6 * c + j] = e1 * u * scale;
            out[7 * c + j] = e2 * u * scale;
        }
"""

_FEATURES_ADJOINT = """
        const REAL* __restrict__ g = (const REAL*)(kind == 0 ? q_ : kind == 1 ? k_ : v_) + own * depth;
        const REAL* __restrict__ x = (const REAL*)x_ + place;
        REAL* __restrict__ zo = (REAL*)z_ + at;
        REAL* __restrict__ xo = (REAL*)xo_ + place;
        for (int j = 0; j < inner; ++j) zo[j] = g[j];
        g += inner;
        if (kind == 2) {
            for (int k = 0; k < 8; ++k) for (int j = 0; j < c; ++j) xo[k * plane + j] = g[k * c + j];
            continue;
        }
        for (int j = 0; j < c; ++j) xo[j] = 0;
        for (int k = 0; k < 3; ++k) for (int j = 0; j < c; ++j) xo[(k + 1) * plane + j] = g[k * c + j];
        const REAL* weights = (const REAL*)weights_ + head * c;
        for (int j = 0; j < c; ++j) {
            const REAL w = x[7 * plane + j], r = REAL(1) / (w * w + epsilon), f = w * r, u = w * f;
            const REAL q0 = x[4 * plane + j], q1 = x[5 * plane + j], q2 = x[6 * plane + j];
            const REAL e0 = q0 * f, e1 = q1 * f, e2 = q2 * f, scale = kind ? REAL(1) : weights[j];
            // of |e|^2, u^2 and e u
            const REAL a = kind ? -g[4 * c + j] : g[3 * c + j], b = kind ? -g[3 * c + j] : g[4 * c + j];
            const REAL two = kind ? REAL(2) : REAL(1);
            const REAL h0 = two * g[5 * c + j], h1 = two * g[6 * c + j], h2 = two * g[7 * c + j];
            const REAL along = h0 * e0 + h1 * e1 + h2 * e2;
            const REAL ge0 = scale * (2 * a * e0 + h0 * u), ge1 = scale * (2 * a * e1 + h1 * u);
            const REAL ge2 = scale * (2 * a * e2 + h2 * u), gu = scale * (2 * b * u + along);
            const REAL product = a * (e0 * e0 + e1 * e1 + e2 * e2) + b * u * u + along * u;
            if (!kind) ((REAL*)wo_)[(n * heads + head) * c + j] = product;
            xo[4 * plane + j] = ge0 * f;
            xo[5 * plane + j] = ge1 * f;
            xo[6 * plane + j] = ge2 * f;
            xo[7 * plane + j] = gu * f + (ge0 * q0 + ge1 * q1 + ge2 * q2 + gu * w) * (epsilon - w * w) * r * r;
        }
"""
# the values that heads of queries found, of rows (N, heads, inner + 8 c), to z (N, heads inner) and x (8, N, heads c)
_JOIN = """
    const long long depth = inner + 8 * c, plane = count * heads * c;
    for (int head = 0; head < heads; ++head) {
        REAL* __restrict__ own = (REAL*)rows_ + (n * heads + head) * depth;
        REAL* __restrict__ z = (REAL*)z_ + (n * heads + head) * inner;
        REAL* __restrict__ x = (REAL*)x_ + (n * heads + head) * c;
        for (int j = 0; j < inner; ++j) SCALARS
        own += inner;
        for (int k = 0; k < 8; ++k) for (int j = 0; j < c; ++j) PLANES
    }
"""
_QKV = "q_: int64, k_: int64, v_: int64"
_SIZES = "inner: int64, c: int64, heads: int64, few: int64, epsilon_: int64, count: int64, grain: int64"
_features = native_kernel(
    __name__,
    "features",
    f"{_Z_X}, weights_: int64, {_QKV}, {_SIZES}",
    _ROWS.replace("BODY", _HEADS).replace("BODY", _FEATURES),
)
_differentiate_features = native_kernel(
    __name__,
    "differentiate_features",
    f"x_: int64, weights_: int64, {_QKV}, z_: int64, xo_: int64, wo_: int64, {_SIZES}",
    _ROWS.replace("BODY", _HEADS).replace("BODY", _FEATURES_ADJOINT),
)
_joins = {
    back: native_kernel(
        __name__,
        f"join_{back}",
        f"rows_: int64, {_Z_X}, inner: int64, c: int64, heads: int64, count: int64, grain: int64",
        _ROWS.replace("BODY", _JOIN.replace("SCALARS", scalars).replace("PLANES", planes)),
    )
    for back, scalars, planes in (
        (False, "z[j] = own[j];", "x[k * plane + j] = own[k * c + j];"),
        (True, "own[j] = z[j];", "own[k * c + j] = x[k * plane + j];"),
    )
}


def join(rows: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """Rows (N, H, inner + 8 c) as z (N, H inner) and x (8, N, H c)."""
    rows = rows.contiguous()
    count, heads, depth = rows.shape
    inner = depth - 8 * c
    results = rows.new_empty((count, heads * inner)), rows.new_empty((8, count, heads * c))
    _launch(_joins[False], count, (rows, *results), inner, c, heads)
    return results


def split(z: Tensor, x: Tensor, heads: int) -> Tensor:
    """The inverse of `join`."""
    z, x = z.contiguous(), x.contiguous()
    inner, c = z.shape[1] // heads, x.shape[2] // heads
    rows = z.new_empty((len(z), heads, inner + 8 * c))
    _launch(_joins[True], len(z), (rows, z, x), inner, c, heads)
    return rows


def features(z: Tensor, x: Tensor, weights: Tensor, epsilon: float, few: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (N, H, D), keys and values (N, few, D) of z (N, (H + 2 few) inner) and x (8, N, (H + 2 few) c), by
    weights (H, c)."""
    z, x, weights = z.contiguous(), x.contiguous(), weights.contiguous()
    (heads, c), rows = weights.shape, len(z)
    inner = z.shape[1] // (heads + 2 * few)
    results = [z.new_empty((rows, count, inner + 8 * c)) for count in (heads, few, few)]
    _launch(_features, rows, (z, x, weights, *results), inner, c, heads, few, _bits(epsilon))
    return results[0], results[1], results[2]


def differentiate_features(
    x: Tensor, weights: Tensor, epsilon: float, grads: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in z, x and weights, from those in queries, keys and values."""
    x, weights = x.contiguous(), weights.contiguous()
    grads = tuple(g.contiguous() for g in grads)  # type: ignore[assignment]
    (heads, c), (rows, few, depth) = weights.shape, grads[1].shape
    inner = depth - 8 * c
    results = x.new_empty((rows, (heads + 2 * few) * inner)), torch.empty_like(x), x.new_empty((rows, heads, c))
    _launch(_differentiate_features, rows, (x, weights, *grads, *results), inner, c, heads, few, _bits(epsilon))
    return results[0], results[1], results[2].sum(0)


def _bits(number: float) -> int:
    """A float64 as the integer of its bits, for the arguments of a range are integers."""
    return struct.unpack("<q", struct.pack("<d", number))[0]
