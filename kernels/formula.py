"""A formula for one element, in C++, made into a kernel that runs through a whole batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
import warp as wp
from torch import Tensor

from geom.errors import ShapeError
from geom.kernels.bridge import launch_range
from geom.kernels.native import native_kernel
from geom.kernels.pointwise import Shape

__all__ = ["Formula"]

_WIDE, _BLOCK = 8, 16  # numbers of an element that still load and store as vectors; elements of a block of wider ones


@dataclass(frozen=True)
class Formula:
    """C++ for one element: `body` reads an array of each input's name and fills one of each output's.

    `inputs` and `outputs` give their lengths. Elements stand in memory one after the other, so that the loop over them
    becomes vector instructions. The inputs of one tuple in `still` may, together, also be one element for all others,
    at no cost; any other input that broadcasts so is copied out first.
    """

    module: str
    name: str
    prelude: str
    body: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    still: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def kernels(self) -> dict[torch.dtype, wp.Kernel]:
        names = [*self.inputs, *self.outputs]
        signature = [f"{name}_: int64" for name in names]
        walk = [f"{name}_{step}: int64" for name in self.inputs for step in ("row", "next")] if self._rows else []
        sizes = ["inner: int64"] if self._rows else []
        return native_kernel(
            self.module, self.name, ", ".join([*signature, *walk, *sizes, "count: int64", "grain: int64"]), self._code
        )

    @property
    def _rows(self) -> bool:
        return len(self.inputs) > 1

    @property
    def _code(self) -> str:
        if not self._rows:
            pointers = [f"const REAL* __restrict__ {name}_at = (const REAL*){name}_;" for name in self.inputs]
            walk = f"{' '.join(pointers)} {self._results('0')} {self._loop((), 'begin', 'end')}"
        else:
            pointers = [
                f"const REAL* __restrict__ {name}_at = (const REAL*){name}_ + "
                f"{width} * (row * {name}_row + column * {name}_next);"
                for name, width in self.inputs.items()
            ]
            cases = " else ".join(
                f"if ({' && '.join(f'{name}_next == {int(name not in still)}' for name in self.inputs)}) "
                f"{{ {self._loop(still, '0', 'length')} }}"
                for still in ((), *self.still)
            )
            walk = f"""
            for (long long done = begin; done < end;) {{
                const long long row = done / inner, column = done - row * inner;
                const long long length = inner - column < end - done ? inner - column : end - done;
                {" ".join(pointers)} {self._results("done")}
                {cases}
                done += length;
            }}"""
        return f"""
            #ifndef __CUDA_ARCH__
            #pragma clang fp contract(off)  // the same bits in vector instructions and in what is left over
            #endif
            {self.prelude}
            const long long begin = (long long)i * grain, end = begin + grain < count ? begin + grain : count;
            {walk}"""

    def _results(self, start: str) -> str:
        return " ".join(
            f"REAL* __restrict__ {name}_at = (REAL*){name}_ + {width} * {start};"
            for name, width in self.outputs.items()
        )

    def _loop(self, still: tuple[str, ...], begin: str, end: str) -> str:
        """Through all elements; wide ones in blocks, turned on the way in and out so that each number is a vector."""
        wide = {name for name, width in (*self.inputs.items(), *self.outputs.items()) if width > _WIDE}
        plain = self._elements(still, set(), "j", begin, end)
        if not wide:
            return plain
        blocks = {
            name: width
            for name, width in (*self.inputs.items(), *self.outputs.items())
            if name in wide and name not in still
        }
        make = [f"REAL {name}_block[{width}][{_BLOCK}];" for name, width in blocks.items()]
        turn_in = [_turn(name, width, "in") for name, width in blocks.items() if name in self.inputs]
        turn_out = [_turn(name, width, "out") for name, width in blocks.items() if name in self.outputs]
        block = self._elements(still, wide, "j + l", "0", str(_BLOCK))
        return f"""long long j = {begin};
            for (; j + {_BLOCK} <= {end}; j += {_BLOCK}) {{
                {" ".join(make)} {" ".join(turn_in)}
                {block}
                {" ".join(turn_out)}
            }}
            {plain.replace(f"long long j = {begin}", "", 1)}"""

    def _elements(self, still: tuple[str, ...], blocks: set[str], index: str, begin: str, end: str) -> str:
        """The body for each element; what is in `blocks` is read and written there."""
        read, write = [], []
        for name, width in self.inputs.items():
            place = "" if name in still else f"{width} * ({index}) + "
            blocked = name in blocks and name not in still
            values = [f"{name}_block[{k}][l]" if blocked else f"{name}_at[{place}{k}]" for k in range(width)]
            read.append(f"const REAL {name}[{width}] = {{{', '.join(values)}}};")
        for name, width in self.outputs.items():
            read.append(f"REAL {name}[{width}];")
            for k in range(width):
                place = f"{name}_block[{k}][l]" if name in blocks else f"{name}_at[{width} * ({index}) + {k}]"
                write.append(f"{place} = {name}[{k}];")
        kind, n = ("int", "l") if blocks else ("long long", "j")
        inside = " ".join([*read, self.body, *write])
        return f"for ({kind} {n} = {begin}; {n} < {end}; ++{n}) {{ {inside} }}"

    def run(self, operands: Sequence[Tensor], own: Sequence[Shape], results: Sequence[Shape]) -> Any:
        """The results for operands of one dtype and device, in new tensors: one, or a tuple of them."""
        batch, inner, operands, walk = _align(operands, own, [*self.inputs], self.still)
        first, count = operands[0], prod(batch)
        outs = [first.new_empty((*batch, *shape)) for shape in results]
        if count:
            pointers = [x.data_ptr() for x in (*operands, *outs)]
            sizes = [*walk, inner] if self._rows else []
            launch_range(self.kernels[first.dtype], count, *pointers, *sizes, device=first.device)
        return tuple(outs) if len(outs) > 1 else outs[0]


def _turn(name: str, width: int, way: str) -> str:
    """Between memory, element after element, and the block, number after number: four by four, the rest one by one."""

    def four(k: int) -> str:
        memory = [f"*(Four*)({name}_at + {width} * (j + l + {n}) + {k})" for n in range(4)]
        block = [f"*(Four*)&{name}_block[{k + n}][l]" for n in range(4)]
        source, target = (memory, block) if way == "in" else (block, memory)
        rows = [x.replace("Four*", "const Four*") for x in source]
        return f"""{{
                    const Four a = {rows[0]}, b = {rows[1]}, c = {rows[2]}, d = {rows[3]};
                    const Four p = __builtin_shufflevector(a, b, 0, 4, 1, 5);
                    const Four q = __builtin_shufflevector(a, b, 2, 6, 3, 7);
                    const Four r = __builtin_shufflevector(c, d, 0, 4, 1, 5);
                    const Four s = __builtin_shufflevector(c, d, 2, 6, 3, 7);
                    {target[0]} = __builtin_shufflevector(p, r, 0, 1, 4, 5);
                    {target[1]} = __builtin_shufflevector(p, r, 2, 3, 6, 7);
                    {target[2]} = __builtin_shufflevector(q, s, 0, 1, 4, 5);
                    {target[3]} = __builtin_shufflevector(q, s, 2, 3, 6, 7);
                }}"""

    def single(start: int) -> str:
        pairs = [(f"{name}_block[{k}][l + n]", f"{name}_at[{width} * (j + l + n) + {k}]") for k in range(start, width)]
        return " ".join(f"{a} = {b};" if way == "in" else f"{b} = {a};" for a, b in pairs)

    return f"""
            for (int l = 0; l < {_BLOCK}; l += 4) {{
                #ifdef __CUDA_ARCH__
                for (int n = 0; n < 4; ++n) {{ {single(0)} }}
                #else
                typedef REAL Four __attribute__((ext_vector_type(4), aligned(sizeof(REAL))));
                {" ".join(four(k) for k in range(0, width - 3, 4))}
                for (int n = 0; n < 4; ++n) {{ {single(width // 4 * 4)} }}
                #endif
            }}"""


def _align(
    operands: Sequence[Tensor], own: Sequence[Shape], names: Sequence[str], may: Sequence[tuple[str, ...]]
) -> tuple[Shape, int, list[Tensor], list[int]]:
    """How to walk operands whose batches broadcast, as rows of `inner` elements.

    Returns the batch shape, `inner`, the operands in contiguous memory, and for each in turn the elements it moves on
    from one row to the next, and from one element of a row to the next: 1, or 0 where it stands still.
    """
    shapes = [tuple(x.shape[: x.ndim - len(s)]) for x, s in zip(operands, own, strict=True)]
    batch = max(shapes, key=len)
    if all(shape in (batch, ()) for shape in shapes):  # what comes most often, without torch's help
        still = tuple(name for name, shape in zip(names, shapes, strict=True) if shape != batch)
        if not still or still in may:
            walk = [n for shape in shapes for n in (0, int(shape == batch))]
            return batch, prod(batch), [x.contiguous() for x in operands], walk
    if any(shape != batch for shape in shapes):
        try:
            batch = tuple(torch.broadcast_shapes(*shapes))
        except RuntimeError:
            raise ShapeError(f"expected batches that broadcast, got {' and '.join(map(str, shapes))}") from None
        for split in range(len(batch)):
            rows, columns = prod(batch[:split]), prod(batch[split:])
            cut = [max(0, split - len(batch) + len(shape)) for shape in shapes]
            parts = [(prod(shape[:k]), prod(shape[k:])) for shape, k in zip(shapes, cut, strict=True)]
            still = tuple(name for name, (_, c) in zip(names, parts, strict=True) if c < columns)
            if all(r in (1, rows) and c in (1, columns) for r, c in parts) and (not still or still in may):
                walk = [n for r, c in parts for n in (c if r == rows else 0, int(c == columns))]
                return batch, columns, [x.contiguous() for x in operands], walk
        operands = [x.expand(*batch, *s) for x, s in zip(operands, own, strict=True)]
    return batch, prod(batch), [x.contiguous() for x in operands], [0, 1] * len(shapes)
