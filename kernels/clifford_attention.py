"""Between the planes of networks and the rows of attention: features of queries and keys, values, and their adjoints.

Planes x (16, N, C) hold c multivectors of each head, scalars s (N, S) as many of each: of head h, multivector j is the
channel h * head + j * step from `x_` on, and a scalar likewise. Rows are (N, heads, width), 0 beyond what they hold.
"""

import torch
import warp as wp
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import native_kernel

__all__ = ["Heads", "differentiate_features", "features", "pack", "unpack"]

Kernels = dict[torch.dtype, wp.Kernel]
# A row of all planes after the other, each read or written as a whole: planes may be a power of 2 apart, so that few of
# them share the first cache.
_EACH = """
    const long long begin = (long long)i * grain, end = begin + grain < count ? begin + grain : count;
    for (long long n = begin; n < end; ++n) {
        REAL* x = (REAL*)x_ + n * row;
        REAL* s = (REAL*)s_ + n * s_row;
        REAL* rows = (REAL*)rows_ + n * heads * width;
        BODY
    }
"""
_ALL = "for (int j = 0; j < c; ++j) for (int h = 0; h < heads; ++h)"
_SCALARS = "for (int j = 0; j < scalars; ++j) for (int h = 0; h < heads; ++h)"
_AT = "j * step + h * head"
# e = (e012, e013, e023) w / (w^2 + epsilon) and u = w^2 / (w^2 + epsilon) for w = e123
_POINT = f"""
            const REAL* t = x + 11 * plane + {_AT};
            REAL* f = rows + h * width + 7 * c + j;
            const REAL t0 = t[0], t1 = t[plane], t2 = t[2 * plane], w = t[3 * plane];
            const REAL under = 1 / (w * w + (REAL)epsilon), scale = w * under;
            const REAL e0 = t0 * scale, e1 = t1 * scale, e2 = t2 * scale, u = w * scale;
            const REAL square = e0 * e0 + e1 * e1 + e2 * e2;
            const REAL weight = weights_ ? ((const REAL*)weights_)[h * c + j] : (REAL)1;
            const REAL twice = key ? (REAL)2 : weight;
"""
_INNER = (0, 2, 3, 4, 8, 9, 10)


def _fill(start: str) -> str:
    return f"for (int h = 0; h < heads; ++h) for (long long j = {start}; j < width; ++j) rows[h * width + j] = 0;"


_FEATURES = f"""
        {" ".join(f"{_ALL} rows[h * width + {k} * c + j] = x[{i} * plane + {_AT}];" for k, i in enumerate(_INNER))}
        {_ALL} {{
            {_POINT}
            f[0] = key ? -u * u : square * weight;
            f[c] = key ? -square : u * u * weight;
            f[2 * c] = twice * e0 * u;
            f[3 * c] = twice * e1 * u;
            f[4 * c] = twice * e2 * u;
        }}
        {_SCALARS} rows[h * width + 12 * c + j] = s[j * s_step + h * s_head];
        {_fill("12 * c + scalars")}
"""
_ADJOINT = f"""
        REAL* gx = (REAL*)gx_ + n * row;
        REAL* gs = (REAL*)gs_ + n * s_row;
        {" ".join(f"{_ALL} gx[{i} * plane + {_AT}] = rows[h * width + {k} * c + j];" for k, i in enumerate(_INNER))}
        {" ".join(f"{_ALL} gx[{i} * plane + {_AT}] = 0;" for i in (1, 5, 6, 7, 15))}
        {_ALL} {{
            {_POINT}
            REAL* g = gx + 11 * plane + {_AT};
            const REAL m0 = f[2 * c], m1 = f[3 * c], m2 = f[4 * c], dot = e0 * m0 + e1 * m1 + e2 * m2;
            const REAL of_square = key ? -f[c] : f[0] * weight, of_u = key ? -f[0] : f[c] * weight;
            if (dots_) ((REAL*)dots_)[(n * heads + h) * c + j] = square * f[0] + u * u * f[c] + u * dot;
            const REAL g0 = 2 * e0 * of_square + twice * u * m0;
            const REAL g1 = 2 * e1 * of_square + twice * u * m1;
            const REAL g2 = 2 * e2 * of_square + twice * u * m2;
            const REAL gu = 2 * u * of_u + twice * dot;
            g[0] = g0 * scale;
            g[plane] = g1 * scale;
            g[2 * plane] = g2 * scale;
            g[3 * plane] =
                gu * scale + (g0 * t0 + g1 * t1 + g2 * t2 + gu * w) * ((REAL)epsilon - w * w) * under * under;
        }}
        {_SCALARS} gs[j * s_step + h * s_head] = rows[h * width + 12 * c + j];
"""
_PACK = f"""
        for (int k = 0; k < 16; ++k) {_ALL} rows[h * width + k * c + j] = x[k * plane + {_AT}];
        {_SCALARS} rows[h * width + 16 * c + j] = s[j * s_step + h * s_head];
        {_fill("16 * c + scalars")}
"""
_UNPACK = f"""
        for (int k = 0; k < 16; ++k) {_ALL} x[k * plane + {_AT}] = rows[h * width + k * c + j];
        {_SCALARS} s[j * s_step + h * s_head] = rows[h * width + 16 * c + j];
"""
_HEAD = (
    "x_: int64, plane: int64, row: int64, head: int64, step: int64, s_: int64, s_row: int64, s_head: int64, "
    "s_step: int64, rows_: int64, width: int64, heads: int64, c: int64, scalars: int64"
)


def _build(name: str, more: str, body: str) -> Kernels:
    signature = f"{_HEAD}, {more}count: int64, grain: int64"
    return native_kernel(__name__, name, signature, _EACH.replace("BODY", body))


_features = _build("features", "weights_: int64, key: int64, epsilon: float64, ", _FEATURES)
_adjoint = _build(
    "differentiate_features",
    "weights_: int64, key: int64, epsilon: float64, gx_: int64, gs_: int64, dots_: int64, ",
    _ADJOINT,
)
_pack, _unpack = _build("pack", "", _PACK), _build("unpack", "", _UNPACK)


class Heads:
    """Where the heads of planes x and scalars s, both contiguous, are: their channels from these on, `fastest` if
    neighbouring channels are of neighbouring heads."""

    def __init__(
        self, heads: int, c: int, scalars: int, channel: int = 0, scalar: int = 0, fastest: bool = True
    ) -> None:
        self.heads, self.c, self.scalars = heads, c, scalars
        self.channel, self.scalar, self.fastest = channel, scalar, fastest

    def __call__(self, x: Tensor, s: Tensor, rows: Tensor) -> tuple[int, ...]:
        of_x = (1, self.heads) if self.fastest else (self.c, 1)
        of_s = (1, self.heads) if self.fastest else (self.scalars, 1)
        first, other = (y.data_ptr() + at * y.element_size() for y, at in ((x, self.channel), (s, self.scalar)))
        own = (rows.data_ptr(), rows.shape[-1], self.heads, self.c, self.scalars)
        return first, x.stride(0), x.stride(1), *of_x, other, s.stride(0), *of_s, *own


def features(
    heads: Heads, x: Tensor, s: Tensor, rows: Tensor, weights: Tensor | None, key: bool, epsilon: float
) -> None:
    """Rows of queries, their distances times weights (heads, c), or of keys."""
    more = (0 if weights is None else weights.data_ptr(), int(key), epsilon)
    bridge.launch_range(_features[x.dtype], len(rows), *heads(x, s, rows), *more, device=x.device)  # type: ignore[arg-type]


def differentiate_features(
    heads: Heads,
    x: Tensor,
    s: Tensor,
    rows: Tensor,
    weights: Tensor | None,
    key: bool,
    epsilon: float,
    found: tuple[Tensor, Tensor],
    dots: Tensor | None,
) -> None:
    """The gradients in x and s, into `found`, which are laid out as those, from that in rows; with dots (N, heads, c)
    that in the weights, before its sum."""
    pointers = (
        found[0].data_ptr() + heads.channel * x.element_size(),
        found[1].data_ptr() + heads.scalar * s.element_size(),
    )
    more = (
        0 if weights is None else weights.data_ptr(),
        int(key),
        epsilon,
        *pointers,
        0 if dots is None else dots.data_ptr(),
    )
    bridge.launch_range(_adjoint[x.dtype], len(rows), *heads(x, s, rows), *more, device=x.device)  # type: ignore[arg-type]


def pack(heads: Heads, x: Tensor, s: Tensor, rows: Tensor) -> None:
    """All components of the multivectors, and the scalars, as rows."""
    bridge.launch_range(_pack[x.dtype], len(rows), *heads(x, s, rows), device=x.device)


def unpack(heads: Heads, x: Tensor, s: Tensor, rows: Tensor) -> None:
    """Back, into x and s."""
    bridge.launch_range(_unpack[x.dtype], len(rows), *heads(x, s, rows), device=x.device)
