"""Codes of grid cells in geom, in numpy-hilbert-curve, and in torch as the point transformers compute them.

The torch forms are written from the definitions (Skilling 2004 for Hilbert): Hilbert unpacks each coordinate into its
bits, Morton looks bytes up in tables of 256, the traverse is arithmetic.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import Library, Operation

__all__ = [
    "BITS",
    "ORDERS",
    "Given",
    "geom",
    "hilbert_decode",
    "hilbert_encode",
    "morton_decode",
    "morton_encode",
    "numpy_hilbert",
    "torch_bits",
    "traverse_decode",
    "traverse_encode",
]

BITS = 16  # an axis
ORDERS = ("morton", "hilbert", "morton-transposed", "hilbert-transposed")


class Given(NamedTuple):
    """`cells` (N, 3) int64 of `BITS` bits; their codes (N,) by Morton, Hilbert and traverse; `points` (M, 3) float32,
    metres, and the edge of the cells they are put in order by. Operations are read as integer tensors."""

    cells: Tensor
    morton: Tensor
    hilbert: Tensor
    traverse: Tensor
    points: Tensor
    edge: float


def geom(given: Given, device: str) -> Library:
    from geom.points import decode, encode, serialize

    cells, morton, hilbert, traverse, points = (x.to(device) for x in given[:5])
    return {
        "traverse": Operation(lambda: encode(cells, order="xyz", bits=BITS)),
        "Morton": Operation(lambda: encode(cells, order="morton", bits=BITS)),
        "Hilbert": Operation(lambda: encode(cells, order="hilbert", bits=BITS)),
        "traverse, decode": Operation(lambda: decode(traverse, order="xyz", bits=BITS)),
        "Morton, decode": Operation(lambda: decode(morton, order="morton", bits=BITS)),
        "Hilbert, decode": Operation(lambda: decode(hilbert, order="hilbert", bits=BITS)),
        "four orders": Operation(
            lambda: serialize(points, order=ORDERS, grid_size=given.edge),
            lambda found: torch.stack([found.order, found.inverse]),
        ),
    }


def numpy_hilbert(given: Given, device: str) -> Library:
    import hilbert

    cells, code = given.cells.numpy(), given.hilbert.numpy().view(np.uint64)
    read = lambda found: torch.from_numpy(found.astype(np.int64))  # noqa: E731
    return {
        "Hilbert": Operation(lambda: hilbert.encode(cells, 3, BITS), read),
        "Hilbert, decode": Operation(lambda: hilbert.decode(code, 3, BITS), read),
    }


def torch_bits(given: Given, device: str) -> Library:
    cells, morton, hilbert, traverse, points = (x.to(device) for x in given[:5])

    def four_orders() -> tuple[Tensor, Tensor]:
        grid = ((points - points.amin(0)) / given.edge).long()
        bits = int(grid.max()).bit_length()
        swapped = grid[:, [1, 0, 2]]
        codes = [form(x, bits) for x in (grid, swapped) for form in (morton_encode, hilbert_encode)]
        order = torch.stack([code.argsort(stable=True) for code in codes])
        along = torch.arange(len(points), device=device).expand_as(order)
        return order, torch.empty_like(order).scatter_(1, order, along)

    return {
        "traverse": Operation(lambda: traverse_encode(cells, BITS)),
        "Morton": Operation(lambda: morton_encode(cells, BITS)),
        "Hilbert": Operation(lambda: hilbert_encode(cells, BITS)),
        "traverse, decode": Operation(lambda: traverse_decode(traverse, BITS)),
        "Morton, decode": Operation(lambda: morton_decode(morton, BITS)),
        "Hilbert, decode": Operation(lambda: hilbert_decode(hilbert, BITS)),
        "four orders": Operation(four_orders, torch.stack),
    }


def hilbert_encode(cells: Tensor, bits: int) -> Tensor:
    """Places (N,) of cells (N, 3): from the highest bit plane down, exchanges of lower bits; then the Gray code's."""
    x = _unpack(cells, bits)
    for plane in range(bits):
        for axis in range(3):
            _exchange(x, plane, axis)
    gray = x.transpose(1, 2).flatten(1).to(torch.uint8)
    return _pack(gray.cumsum(1, dtype=torch.uint8) & 1)


def hilbert_decode(code: Tensor, bits: int) -> Tensor:
    """`hilbert_encode` undone: each exchange undoes itself."""
    word = _unpack(code, 3 * bits)
    word[:, 1:] = word[:, 1:] ^ word[:, :-1]
    x = word.unflatten(1, (bits, 3)).transpose(1, 2).contiguous()
    for plane in reversed(range(bits)):
        for axis in (2, 1, 0):
            _exchange(x, plane, axis)
    return _pack(x.to(torch.uint8))


def _exchange(x: Tensor, plane: int, axis: int) -> None:
    """Where the axis has the plane's bit, the lower bits of the first axis are inverted, elsewhere swapped with its."""
    there = x[:, axis, plane, None]
    first, other = x[:, 0, plane + 1 :], x[:, axis, plane + 1 :]
    unlike = (first ^ other) & ~there
    first ^= unlike | there
    if axis:
        other ^= unlike


def _unpack(numbers: Tensor, bits: int) -> Tensor:
    """Bits (..., bits), bool, the highest first."""
    return (numbers[..., None] >> torch.arange(bits - 1, -1, -1, device=numbers.device) & 1).bool()


def _pack(bits: Tensor) -> Tensor:
    """Numbers (...) of bits (..., bits) uint8, through bytes."""
    padded = torch.nn.functional.pad(bits, (-bits.shape[-1] % 8, 0)).unflatten(-1, (-1, 8))
    weights = 1 << torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    octets = (padded * weights).sum(-1, dtype=torch.uint8).long()
    return (octets << torch.arange(8 * octets.shape[-1] - 8, -1, -8, device=bits.device)).sum(-1)


def morton_encode(cells: Tensor, bits: int) -> Tensor:
    """Codes (N,) of cells (N, 3) of at most 16 bits: bit i of x, y, z at 3 i + 2, 3 i + 1, 3 i."""
    spread = _gathered(torch.arange(256, device=cells.device), [3 * i for i in range(8)], range(8))
    x, y, z = (spread[cells & 255] | spread[cells >> 8] << 24).unbind(1)
    return x << 2 | y << 1 | z


def morton_decode(code: Tensor, bits: int) -> Tensor:
    """`morton_encode` undone, nine bits at a time."""
    nine = torch.arange(512, device=code.device)
    tables = [_gathered(nine, range(3), range(2 - axis, 9, 3)) for axis in range(3)]
    cells = torch.zeros(*code.shape, 3, dtype=code.dtype, device=code.device)
    for low in range(0, 3 * bits, 9):
        part = code >> low & 511
        cells |= torch.stack([table[part] for table in tables], -1) << low // 3
    return cells


def _gathered(x: Tensor, there: Sequence[int], here: Sequence[int]) -> Tensor:
    """The bits `here` of x, moved `there`."""
    return sum((x >> a & 1) << b for a, b in zip(here, there, strict=True))  # type: ignore[return-value]


def traverse_encode(cells: Tensor, bits: int) -> Tensor:
    """Places (N,) of cells (N, 3) in a cube, x fastest: y runs back in odd layers, x in odd lines."""
    size = 1 << bits
    x, y, z = cells.unbind(1)
    line = z * size + torch.where(z % 2 == 1, size - 1 - y, y)
    return line * size + torch.where(line % 2 == 1, size - 1 - x, x)


def traverse_decode(code: Tensor, bits: int) -> Tensor:
    """`traverse_encode` undone."""
    size = 1 << bits
    line, x = code // size, code % size
    z, y = line // size, line % size
    return torch.stack([torch.where(line % 2 == 1, size - 1 - x, x), torch.where(z % 2 == 1, size - 1 - y, y), z], 1)
