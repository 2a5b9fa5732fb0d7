"""Orders of grid cells: their names, and each curve's formula in torch, the oracle of its kernel."""

from collections.abc import Iterable
from itertools import permutations

import torch
from jaxtyping import Int64
from torch import Tensor

from geom.points.morton import deinterleave, interleave

__all__ = ["ORDERS", "cell_at", "code_of", "traverse_official"]

# name: the curve, and the grid's axes as the curve takes them; the traverse has its fastest axis first
ORDERS: dict[str, tuple[str, tuple[int, ...]]] = {
    "morton": ("morton", (0, 1, 2)),
    "hilbert": ("hilbert", (0, 1, 2)),
    "morton-transposed": ("morton", (1, 0, 2)),
    "hilbert-transposed": ("hilbert", (1, 0, 2)),
    **{"".join("xyz"[axis] for axis in axes): ("traverse", axes) for axes in permutations(range(3))},
    **{"".join("xyz"[axis] for axis in axes) + "-official": ("official", axes) for axes in permutations(range(3))},
}


def code_of(cells: Int64[Tensor, "n 3"], curve: str, bits: int) -> Int64[Tensor, " n"]:
    """Place of cells along a curve through the cube of 2^bits cells an axis."""
    if curve == "traverse":
        u, v, w = cells.unbind(-1)
        last = (1 << bits) - 1
        v_back, u_back = -(w & 1) & last, -((v ^ w) & 1) & last  # all bits of an odd line, none of an even one
        return (w << bits | (v ^ v_back)) << bits | (u ^ u_back)
    if curve == "morton":
        return interleave(cells.flip(-1))
    code = interleave(torch.stack(_skilling(cells, reversed(range(bits)), (0, 1, 2)), -1).flip(-1))
    for shift in (32, 16, 8, 4, 2, 1):  # the Gray code's place
        code = code ^ code >> shift
    return code


def cell_at(code: Int64[Tensor, " n"], curve: str, bits: int) -> Int64[Tensor, "n 3"]:
    """The cell at a place along a curve: `code_of` undone."""
    if curve == "traverse":
        last = (1 << bits) - 1
        w = code >> 2 * bits
        v = (code >> bits ^ -(w & 1)) & last
        return torch.stack([(code ^ -((v ^ w) & 1)) & last, v, w], -1)
    if curve == "morton":
        return deinterleave(code).flip(-1)
    return torch.stack(_skilling(deinterleave(code ^ code >> 1).flip(-1), range(bits), (2, 1, 0)), -1)


def _skilling(cells: Tensor, planes: Iterable[int], axes: tuple[int, ...]) -> list[Tensor]:
    """Skilling's exchanges: where x_d has the plane's bit, x_0's lower bits are inverted, elsewhere swapped with x_d's.

    Each undoes itself, so planes and axes the other way round lead back.
    """
    x = list(cells.unbind(-1))
    for plane in planes:
        lower = (1 << plane) - 1
        for d in axes:
            there = -(x[d] >> plane & 1)
            unlike = (x[0] ^ x[d]) & lower & ~there
            x[0] = x[0] ^ unlike ^ (there & lower)
            x[d] = x[d] ^ unlike if d else x[0]
    return x


def traverse_official(
    grid: Int64[Tensor, "n 3"], axes: tuple[int, ...], cloud: Int64[Tensor, " n"] | None
) -> Int64[Tensor, " n"]:
    """The traverse's key as Point Cloud Mamba's released code has it: plus or minus the first axis, and constants.

    Its loop takes the greatest coordinates for the coordinates.
    """
    key = grid[:, axes[0]]
    if not grid.shape[0]:
        return key
    base, *tops = (grid[:, axis].max() for axis in axes)
    for top in tops:
        key = (top + top % 2) * base + (1 - 2 * (top % 2)) * key
        base = base * top
    return key if cloud is None else cloud * base + key
