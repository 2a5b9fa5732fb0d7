"""Products of multivectors, from the terms of `geom.kernels.blades`: in two layouts, with their adjoints.

`multiply` and `differentiate` are for multivectors whose components stand together, (..., B); `multiply_planes` and
`differentiate_planes` for the layout of networks, (B, N, C), in which each component is a plane and neighbouring
channels are neighbours in memory. On the CPU each number of the formulas is a vector of several multivectors.
"""

from functools import cache

import torch
import warp as wp
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.blades import PGA, PRODUCTS, Signature, terms
from geom.kernels.native import native_kernel

__all__ = ["differentiate", "differentiate_planes", "from_planes", "multiply", "multiply_planes", "to_planes"]

Kernels = dict[torch.dtype, wp.Kernel]


def _module(signature: Signature, kind: str) -> str:
    """Kernels of other algebras are compiled when they are first called, each set as a module of its own."""
    return __name__ if signature == PGA else f"{__name__}_{'_'.join(map(str, signature))}_{kind}"


def _sums(signature: Signature, product: str, slot: int, x: str, y: str) -> list[str]:
    """C++ for each result of a product, the sum of sign x[j] y[k] over its terms."""
    rows = [""] * (1 << sum(signature))
    for i, j, k, sign in terms(signature, product, slot):
        rows[i] += f" {'-' if sign < 0 else '+' if rows[i] else ''} {x}[{j}] * {y}[{k}]"
    return rows


def _assign(result: str, rows: list[str]) -> str:
    return " ".join(f"{result}[{i}] ={row};" for i, row in enumerate(rows))


# What a kernel of ranges begins with. Multiplications and additions are fused within an expression and nowhere else, so
# that sums are the same bits in vectors and in what is left over.
_RANGE = """
    #ifndef __CUDA_ARCH__
    #pragma clang fp contract(on)
    #endif
    const long long begin = (long long)i * grain, end = begin + grain < count ? begin + grain : count;
"""

# --- (..., B) ---------------------------------------------------------------------------------------------------------


def _turn(array: str, start: int, lanes: int) -> str:
    """A square of numbers turned: vectors array[start + n] of an element's components become those of a component."""
    steps = []
    step = 1
    while step < lanes:
        low = [lane - step + lanes if lane & step else lane for lane in range(lanes)]
        high = [lane + lanes if lane & step else lane + step for lane in range(lanes)]
        for n in range(lanes):
            if not n & step:
                a, b = f"{array}[{start + n}]", f"{array}[{start + n + step}]"
                shuffles = (f"__builtin_shufflevector(a, b, {', '.join(map(str, lane))})" for lane in (low, high))
                steps.append(f"{{ const Some a = {a}, b = {b}; {a} = {next(shuffles)}; {b} = {next(shuffles)}; }}")
        step *= 2
    return " ".join(steps)


def _each_element(size: int, inputs: tuple[str, ...], results: dict[str, list[str]]) -> str:
    """C++ that reads arrays of the inputs' names and writes, for each result, the lines that fill it."""
    lanes = min(size, 8)

    def some(vectors: bool) -> str:
        code = []
        for name in inputs:
            code.append(f"Some {name}[{size}];")
            if not vectors:
                code += [f"{name}[{k}] = {name}_at[{size} * j + {k}];" for k in range(size)]
            for start in range(0, size, lanes) if vectors else ():
                places = [f"{name}_at + {size} * (j + {n}) + {start}" for n in range(lanes)]
                code += [f"{name}[{start + n}] = *(const Some*)({place});" for n, place in enumerate(places)]
                code.append(_turn(name, start, lanes))
        for name, rows in results.items():
            code.append(f"Some {name}[{size}]; {_assign(name, rows)}")
            if not vectors:
                code += [f"{name}_at[{size} * j + {k}] = {name}[{k}];" for k in range(size)]
            for start in range(0, size, lanes) if vectors else ():
                places = [f"{name}_at + {size} * (j + {n}) + {start}" for n in range(lanes)]
                code.append(_turn(name, start, lanes))
                code += [f"*(Some*)({place}) = {name}[{start + n}];" for n, place in enumerate(places)]
        return " ".join(code)

    pointers = [f"const REAL* {name}_at = (const REAL*){name}_;" for name in inputs]
    pointers += [f"REAL* {name}_at = (REAL*){name}_;" for name in results]
    return f"""{_RANGE} {" ".join(pointers)}
        long long j = begin;
        #ifndef __CUDA_ARCH__
        {{
            typedef REAL Some __attribute__((ext_vector_type({lanes}), aligned(sizeof(REAL))));
            for (; j + {lanes} <= end; j += {lanes}) {{ {some(True)} }}
        }}
        #endif
        typedef REAL Some;
        for (; j < end; ++j) {{ {some(False)} }}"""


@cache
def _products(signature: Signature, product: str, again: bool) -> dict[int | str, Kernels]:
    """The kernels of a product: its slot 0, and "adjoint", both derivatives of that, of operands (x, y, grad).

    With `again` those of derivatives of derivatives, which few need: slots 1 and 2.
    """
    size, module = 1 << sum(signature), _module(signature, f"{product}_again" if again else product)

    def build(name: str, inputs: tuple[str, ...], results: dict[str, list[str]]) -> Kernels:
        pointers = ", ".join(f"{name}_: int64" for name in (*inputs, *results))
        code = _each_element(size, inputs, results)
        return native_kernel(module, f"{product}_{name}", f"{pointers}, count: int64, grain: int64", code)

    def slot(n: int) -> Kernels:
        return build(str(n), ("x", "y"), {"out": _sums(signature, product, n, "x", "y")})

    if again:
        return {1: slot(1), 2: slot(2)}
    rows = {"gx": _sums(signature, product, 1, "g", "y"), "gy": _sums(signature, product, 2, "g", "x")}
    return {0: slot(0), "adjoint": build("adjoint", ("x", "y", "g"), rows)}


def multiply(signature: Signature, product: str, slot: int, x: Tensor, y: Tensor) -> Tensor:
    """A slot of a product of multivectors of one shape (..., B)."""
    x, y, out = x.contiguous(), y.contiguous(), x.new_empty(x.shape)
    if out.numel():
        kernel = _products(signature, product, slot > 0)[slot][x.dtype]
        pointers = (x.data_ptr(), y.data_ptr(), out.data_ptr())
        bridge.launch_range(kernel, x.numel() // x.shape[-1], *pointers, device=x.device)
    return out


def differentiate(signature: Signature, product: str, x: Tensor, y: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients in x and y of slot 0, from the one in its result."""
    tensors = (x.contiguous(), y.contiguous(), grad.contiguous(), x.new_empty(x.shape), x.new_empty(x.shape))
    if x.numel():
        kernel = _products(signature, product, False)["adjoint"][x.dtype]
        bridge.launch_range(kernel, x.numel() // x.shape[-1], *(z.data_ptr() for z in tensors), device=x.device)
    return tensors[3:]


# --- from one to the other --------------------------------------------------------------------------------------------


@cache
def _turns(size: int) -> tuple[Kernels, Kernels]:
    """From elements a (count, B) to planes b (B, count), and back."""
    lanes, module = min(size, 8), __name__ if size == 1 << sum(PGA) else f"{__name__}_turn_{size}"

    def build(name: str, back: bool) -> Kernels:
        squares = []
        for start in range(0, size, lanes):
            elements = [f"*(Some*)(a + {size} * (j + {n}) + {start})" for n in range(lanes)]
            planes = [f"*(Some*)(b + {start + n} * count + j)" for n in range(lanes)]
            source, target = (planes, elements) if back else (elements, planes)
            code = [f"Some v[{lanes}];", *(f"v[{n}] = {place};" for n, place in enumerate(source))]
            code += [_turn("v", 0, lanes), *(f"{place} = v[{n}];" for n, place in enumerate(target))]
            squares.append(f"{{ {' '.join(code)} }}")
        pairs = [(f"b[{k} * count + j]", f"a[{size} * j + {k}]") for k in range(size)]
        rest = " ".join(f"{y} = {x};" if back else f"{x} = {y};" for x, y in pairs)
        code = f"""{_RANGE}
            REAL* a = (REAL*)a_;
            REAL* b = (REAL*)b_;
            long long j = begin;
            #ifndef __CUDA_ARCH__
            typedef REAL Some __attribute__((ext_vector_type({lanes}), aligned(sizeof(REAL))));
            for (; j + {lanes} <= end; j += {lanes}) {{ {" ".join(squares)} }}
            #endif
            for (; j < end; ++j) {{ {rest} }}"""
        return native_kernel(module, name, "a_: int64, b_: int64, count: int64, grain: int64", code)

    return build("to_planes", False), build("from_planes", True)


def to_planes(x: Tensor) -> Tensor:
    """Multivectors (N, C, B) as (B, N, C)."""
    x, out = x.contiguous(), x.new_empty((x.shape[2], *x.shape[:2]))
    if out.numel():
        kernel = _turns(x.shape[2])[0][x.dtype]
        bridge.launch_range(kernel, x.shape[0] * x.shape[1], x.data_ptr(), out.data_ptr(), device=x.device)
    return out


def from_planes(x: Tensor) -> Tensor:
    """Multivectors (B, N, C) as (N, C, B)."""
    x, out = x.contiguous(), x.new_empty((*x.shape[1:], x.shape[0]))
    if out.numel():
        kernel = _turns(x.shape[0])[1][x.dtype]
        bridge.launch_range(kernel, x.shape[1] * x.shape[2], out.data_ptr(), x.data_ptr(), device=x.device)
    return out


# --- (B, N, C) --------------------------------------------------------------------------------------------------------

# Elements are pairs of a row and one of `width` channels of a factor, in a range of them the channels of one row after
# those of another. Factors and grad may be parts of wider tensors: `plane` and `row` are their strides.
_ROWS = f"""{_RANGE}
    #ifndef __CUDA_ARCH__
    typedef REAL Wide __attribute__((ext_vector_type(64 / sizeof(REAL)), aligned(sizeof(REAL))));
    typedef REAL Half __attribute__((ext_vector_type(32 / sizeof(REAL)), aligned(sizeof(REAL))));
    #endif
    for (long long done = begin; done < end;) {{
        const long long n = done / width, left = done - n * width;
        const int length = (int)(width - left < end - done ? width - left : end - done);
        const REAL scale = ((const REAL*)reference_)[n];
        BODY
        done += length;
    }}
"""
_CHANNELS = """
        int c = 0;
        #ifndef __CUDA_ARCH__
        for (; c + 64 / (int)sizeof(REAL) <= length; c += 64 / sizeof(REAL)) { WIDE }
        for (; c + 32 / (int)sizeof(REAL) <= length; c += 32 / sizeof(REAL)) { HALF }
        #endif
        for (; c < length; ++c) { ONE }
"""


@cache
def _planes(signature: Signature, products: tuple[str, ...]) -> tuple[Kernels, Kernels]:
    size, count, kind = 1 << sum(signature), len(products), "_".join(products)

    def each(code: str) -> str:
        """The code for each component."""
        return " ".join(code.replace("$", str(i)) for i in range(size))

    def block(pointers: str, code: str) -> str:
        """The code for each channel of a row, `Some` of them at a time."""
        loops = _CHANNELS
        for place, some in (("WIDE", "Wide"), ("HALF", "Half"), ("ONE", "REAL")):
            loops = loops.replace(place, code.replace("Some", some))
        return f"{{ {pointers} {loops} }}"

    forward, backward = [], []
    for place, product in enumerate(products):
        scaled = " * scale" if product == "join" else ""
        pointers = f"""
            const REAL* a = (const REAL*)factors_ + n * row + left + {2 * place} * width;
            const REAL* b = a + width;"""
        load = f"Some x[{size}], y[{size}];" + each(
            "x[$] = *(const Some*)(a + $ * plane + c); y[$] = *(const Some*)(b + $ * plane + c);"
        )
        own = f"""{pointers}
            const long long step = rows * width * {count};
            REAL* o = (REAL*)out_ + (n * {count} + {place}) * width + left;"""
        sums = _sums(signature, product, 0, "x", "y")
        store = " ".join(f"*(Some*)(o + {i} * step + c) = ({line}){scaled};" for i, line in enumerate(sums))
        forward.append(block(own, f"{load} {store}"))
        own = f"""{pointers}
            const long long step = rows * width * {2 * count};
            const REAL* h = (const REAL*)grad_ + n * grad_row + left + {place} * width;
            REAL* ga = (REAL*)out_ + (n * {count} + {place}) * 2 * width + left;
            REAL* gb = ga + width;
            REAL* dots = (REAL*)dots_ + n * width + left;"""
        along = " + ".join(f"x[{i}] * u[{i}]" for i in range(size))
        code = f"""{load}
            Some g[{size}], u[{size}], v[{size}];
            {each("g[$] = *(const Some*)(h + $ * grad_plane + c);")}
            {_assign("u", _sums(signature, product, 1, "g", "y"))}
            {f"*(Some*)(dots + c) = {along};" if scaled else ""}
            {_assign("v", _sums(signature, product, 2, "g", "x"))}
            {each(f"*(Some*)(ga + $ * step + c) = u[$]{scaled}; *(Some*)(gb + $ * step + c) = v[$]{scaled};")}"""
        backward.append(block(own, code))
    head = "factors_: int64, plane: int64, row: int64, reference_: int64"
    tail = "rows: int64, width: int64, count: int64, grain: int64"
    middle = "grad_: int64, grad_plane: int64, grad_row: int64, out_: int64, dots_: int64"
    name, module = f"planes_{kind}", _module(signature, f"planes_{kind}")
    return (
        native_kernel(module, name, f"{head}, out_: int64, {tail}", _ROWS.replace("BODY", " ".join(forward))),
        native_kernel(
            module, f"{name}_adjoint", f"{head}, {middle}, {tail}", _ROWS.replace("BODY", " ".join(backward))
        ),
    )


def multiply_planes(signature: Signature, products: tuple[str, ...], factors: Tensor, reference: Tensor) -> Tensor:
    """Products (B, N, P h) of factors (B, N, 2 P h), whose channels are those of x and y of each of P products.

    "join" is multiplied by reference (N,), contiguous.
    """
    _, rows, channels = factors.shape
    width = channels // (2 * len(products))
    out = factors.new_empty((factors.shape[0], rows, channels // 2))
    if out.numel():
        factors, kernel = _strided(factors), _planes(signature, products)[0][factors.dtype]
        args = (factors.data_ptr(), *factors.stride()[:2], reference.data_ptr(), out.data_ptr())
        bridge.launch_range(kernel, rows * width, *args, rows, width, device=factors.device)
    return out


def differentiate_planes(
    signature: Signature, products: tuple[str, ...], factors: Tensor, reference: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients in factors and in reference of `multiply_planes`, from the one in its result."""
    _, rows, channels = factors.shape
    width = channels // (2 * len(products))
    out = torch.empty_like(factors, memory_format=torch.contiguous_format)
    dots = factors.new_zeros((rows, width))
    if out.numel():
        factors, grad, kernel = _strided(factors), _strided(grad), _planes(signature, products)[1][factors.dtype]
        args = (factors.data_ptr(), *factors.stride()[:2], reference.data_ptr(), grad.data_ptr(), *grad.stride()[:2])
        results = (out.data_ptr(), dots.data_ptr())
        bridge.launch_range(kernel, rows * width, *args, *results, rows, width, device=factors.device)
    return out, dots.sum(1)


def _strided(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


_turns(1 << sum(PGA))
for _product in PRODUCTS:  # one module, compiled at once
    for _again in (False, True):
        _products(PGA, _product, _again)
for _pair in (("geometric",), ("geometric", "join")):
    _planes(PGA, _pair)
