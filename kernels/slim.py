"""Products of scalars, planes and points in the layout of networks: `geom.clifford.slim_products` has the formulas.

Arrays are z (N, 2 h), x (8, N, 4 h), r (N,) and results z (N, 2 h), x (8, N, 2 h). On the CPU each number of the
formulas is a vector of neighbouring channels.
"""

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import native_kernel

__all__ = ["differentiate", "multiply"]

# Elements are pairs of a row and one of h channels. BODY sees c, the channel, and Some, the vector of it and the next
# ones. Multiplications and additions are fused within an expression and nowhere else, so that results are the same
# bits in vectors and in what is left over.
_ROWS = """
    #ifndef __CUDA_ARCH__
    #pragma clang fp contract(on)
    typedef REAL Wide __attribute__((ext_vector_type(64 / sizeof(REAL)), aligned(sizeof(REAL))));
    typedef REAL Half __attribute__((ext_vector_type(32 / sizeof(REAL)), aligned(sizeof(REAL))));
    #endif
    const long long begin = (long long)i * grain, end = begin + grain < count ? begin + grain : count;
    const long long in = rows * 4 * h, out = rows * 2 * h;
    for (long long done = begin; done < end;) {
        const long long n = done / h, left = done - n * h;
        const int length = (int)(h - left < end - done ? h - left : end - done);
        const REAL r = ((const REAL*)r_)[n];
        const REAL* za = (const REAL*)z_ + n * 2 * h + left;
        const REAL* xa = (const REAL*)x_ + n * 4 * h + left;
        POINTERS
        int c = 0;
        #ifndef __CUDA_ARCH__
        for (; c + 64 / (int)sizeof(REAL) <= length; c += 64 / sizeof(REAL)) { typedef Wide Some; BODY }
        for (; c + 32 / (int)sizeof(REAL) <= length; c += 32 / sizeof(REAL)) { typedef Half Some; BODY }
        #endif
        for (; c < length; ++c) { typedef REAL Some; BODY }
        done += length;
    }
"""
_NAMES = ("d", "nx", "ny", "nz", "qx", "qy", "qz", "w")  # of the components of x


def _load(name: str, base: str, step: str, shift: str) -> str:
    """Some name_d = component 0 of base at a channel, and so on."""
    return " ".join(
        f"const Some {name}{part} = *(const Some*)({base} + {k} * {step} + {shift} + c);"
        for k, part in enumerate(_NAMES)
    )


def _store(rows: dict[str, str], base: str, step: str, shift: str) -> str:
    return " ".join(f"*(Some*)({base} + {_NAMES.index(k)} * {step} + {shift} + c) = {row};" for k, row in rows.items())


def _axes(text: str) -> str:
    """Text for each of the axes x, y, z: @ is the axis, and the next ones are > and <."""
    turns = (("x", "y", "z"), ("y", "z", "x"), ("z", "x", "y"))
    return " ".join(text.replace("@", a).replace(">", b).replace("<", c) for a, b, c in turns)


def _dot(a: str, b: str) -> str:
    return f"({a}x * {b}x + {a}y * {b}y + {a}z * {b}z)"


def _each(text: str, kind: str) -> dict[str, str]:
    """The rows of the components `kind` along the three axes."""
    turns = (("x", "y", "z"), ("y", "z", "x"), ("z", "x", "y"))
    return {kind + a: text.replace("@", a).replace(">", b).replace("<", c) for a, b, c in turns}


_FACTORS = f"""
    {{ const Some s = *(const Some*)(za + c), t = *(const Some*)(za + h + c);
    {_load("a", "xa", "in", "0")} {_load("b", "xa", "in", "h")} MEET }}
    {{ {_load("a", "xa", "in", "2 * h")} {_load("b", "xa", "in", "3 * h")}
    {_axes("const Some e@ = aw * bq@ - bw * aq@, m@ = bn@ + e@;")} JOIN }}"""

_MEET = {
    "d": "s * bd + t * ad",
    **_each("s * bn@ + t * an@", "n"),
    **_each("s * bq@ + t * aq@ + (an> * bn< - an< * bn>)", "q"),
    "w": "s * bw + t * aw",
}
_JOIN = {
    "d": f"r * {_dot('aq', 'm')}",
    **_each("r * aw * m@", "n"),
    **_each("r * e@ + aw * bn@", "q"),
    "w": "(Some)(REAL)0",
}
_FACING = f"({_dot('an', 'bq')} - ad * bw + {_dot('bn', 'aq')} - bd * aw)"

_FORWARD = _FACTORS.replace(
    "MEET", f"*(Some*)(zo + c) = s * t + {_dot('an', 'bn')} + aw * bw; {_store(_MEET, 'xo', 'out', '0')}"
).replace("JOIN", f"*(Some*)(zo + h + c) = r * {_FACING}; {_store(_JOIN, 'xo', 'out', 'h')}")

_MEET_LEFT = {
    "d": "gd * t",
    **_each("g * bn@ + gn@ * t + (bn> * gq< - bn< * gq>)", "n"),
    **_each("gq@ * t", "q"),
    "w": "g * bw + gw * t",
}
_MEET_RIGHT = {
    "d": "gd * s",
    **_each("g * an@ + gn@ * s + (gq> * an< - gq< * an>)", "n"),
    **_each("gq@ * s", "q"),
    "w": "g * aw + gw * s",
}
_JOIN_LEFT = {
    "d": "-rg * bw",
    **_each("rg * bq@", "n"),
    **_each("rg * bn@ + r * gd * m@ - bw * u@", "q"),
    "w": f"r * {_dot('gn', 'm')} - rg * bd + {_dot('gq', 'bn')} + {_dot('u', 'bq')}",
}
_JOIN_RIGHT = {
    "d": "-rg * aw",
    **_each("rg * aq@ + v@ + aw * gq@", "n"),
    **_each("rg * an@ + aw * u@", "q"),
    "w": f"-rg * ad - {_dot('u', 'aq')}",
}


def _along(x: str, w: str) -> str:
    return f"gd * {x}d + {_dot('gn', x + 'n')} + {_dot('gq', x + 'q')} + gw * {w}"


_BACKWARD = _FACTORS.replace(
    "MEET",
    f"""const Some g = *(const Some*)(go + c); {_load("g", "gx", "out", "0")}
    *(Some*)(zo + c) = g * t + {_along("b", "bw")}; *(Some*)(zo + h + c) = g * s + {_along("a", "aw")};
    {_store(_MEET_LEFT, "xo", "in", "0")} {_store(_MEET_RIGHT, "xo", "in", "h")}""",
).replace(
    "JOIN",
    f"""const Some g = *(const Some*)(go + h + c), rg = r * g; {_load("g", "gx", "out", "h")}
    {_axes("const Some v@ = r * (aw * gn@ + gd * aq@), u@ = v@ + r * gq@;")}
    *(Some*)(ro + c) = g * {_FACING} + aw * {_dot("gn", "m")} + gd * {_dot("aq", "m")} + {_dot("gq", "e")};
    {_store(_JOIN_LEFT, "xo", "in", "2 * h")} {_store(_JOIN_RIGHT, "xo", "in", "3 * h")}""",
)

_HEAD = "z_: int64, x_: int64, r_: int64"
_TAIL = "rows: int64, h: int64, count: int64, grain: int64"
_RESULTS = "REAL* zo = (REAL*)zo_ + n * 2 * h + left; REAL* xo = (REAL*)xo_ + n * {} * h + left;"
_GRADS = """const REAL* go = (const REAL*)gz_ + n * 2 * h + left; const REAL* gx = (const REAL*)gx_ + n * 2 * h + left;
        REAL* ro = (REAL*)ro_ + n * h + left;"""

_multiply = native_kernel(
    __name__,
    "multiply",
    f"{_HEAD}, zo_: int64, xo_: int64, {_TAIL}",
    _ROWS.replace("POINTERS", _RESULTS.format(2)).replace("BODY", _FORWARD),
)
_differentiate = native_kernel(
    __name__,
    "differentiate",
    f"{_HEAD}, gz_: int64, gx_: int64, zo_: int64, xo_: int64, ro_: int64, {_TAIL}",
    _ROWS.replace("POINTERS", _RESULTS.format(4) + _GRADS).replace("BODY", _BACKWARD),
)


def multiply(z: Tensor, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Both products of each channel."""
    z, x, r = z.contiguous(), x.contiguous(), r.contiguous()
    rows, width = z.shape[0], z.shape[1] // 2
    results = z.new_empty((rows, 2 * width)), x.new_empty((8, rows, 2 * width))
    if z.numel():
        pointers = (t.data_ptr() for t in (z, x, r, *results))
        bridge.launch_range(_multiply[z.dtype], rows * width, *pointers, rows, width, device=z.device)
    return results


def differentiate(z: Tensor, x: Tensor, r: Tensor, grad_z: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in z, x and r, from those in the results."""
    z, x, r, grad_z, grad_x = (t.contiguous() for t in (z, x, r, grad_z, grad_x))
    rows, width = z.shape[0], z.shape[1] // 2
    results = torch.empty_like(z), torch.empty_like(x), z.new_empty((rows, width))
    if z.numel():
        pointers = (t.data_ptr() for t in (z, x, r, grad_z, grad_x, *results))
        bridge.launch_range(_differentiate[z.dtype], rows * width, *pointers, rows, width, device=z.device)
    return results[0], results[1], results[2].sum(1)
