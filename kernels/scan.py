"""Selective scans: h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t, y_t = sum_n C_tn h_tn, with their gradients.

On the CPU the kernels of `scan_vectors` run, on CUDA those of `scan_chunks`. Both keep the states before each tile of
16 tokens for the gradients, 1/16 of all, and no other tensor of the size of all states is ever made. The gradients of B
and C are sums over channels, which threads share: on the CPU their parts are there for few tiles at a time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geom.kernels import bridge, scan_chunks
from geom.kernels.scan_chunks import TILE, WARP
from geom.kernels.scan_vectors import BACKWARD, FORWARD, LARGEST

__all__ = ["LARGEST", "TILE", "count_tiles", "differentiate", "scan", "side_by_side"]

_SLOTS = 8  # sums over channels that run side by side, whatever the number of threads
_SPAN = 64  # tiles whose sums are there at once, if not more of them take half the memory of u
_LEAST = 200_000  # channels times states times tokens below which a second thread costs more than it saves

Flags = tuple[bool, bool, bool]


def _plan(offsets: Tensor | None, length: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """offsets (clouds + 1,), the number of each cloud's first tile (clouds + 1,), and room for all tiles."""
    tiles = count_tiles(length, 1 if offsets is None else len(offsets) - 1)
    if offsets is None:
        return torch.tensor([0, length], device=device), torch.tensor([0, tiles], device=device), tiles
    firsts = torch.zeros_like(offsets)
    torch.cumsum((offsets.diff() + (TILE - 1)) // TILE, 0, out=firsts[1:])
    return offsets.contiguous(), firsts, tiles


def count_tiles(length: int, clouds: int) -> int:
    """At least as many tiles as the clouds have, and for one cloud as many."""
    return (length + (TILE - 1) * clouds) // TILE


def _address(x: Tensor | int | None) -> int:
    return 0 if x is None else x if isinstance(x, int) else x.data_ptr()


def side_by_side(u: Tensor) -> bool:
    """Whether channels are neighbours in the memory of (B, D, L), not tokens."""
    return u.stride(1) == 1 and u.stride(2) >= u.shape[1] > 1


class _Layout:
    """Operands as the kernels read them, and what all kernels are told of them."""

    def __init__(self, operands: Sequence[Any], offsets: Tensor | None, flags: Flags) -> None:
        u, delta, A, B, C, D, z, bias = operands
        self.batches, self.width, self.length = u.shape
        self.states, self.blocks = A.shape[1], -(-self.width // TILE)
        self.apart = side_by_side(u)
        u, delta, z = (self.arrange(x) for x in (u, delta, z))
        A, D, bias = (None if x is None else x.contiguous() for x in (A, D, bias))
        self.dtype, self.device = u.dtype, u.device
        B, C = (x if x.stride(1) == 1 else x.transpose(1, 2).contiguous().transpose(1, 2) for x in (B, C))
        self.operands = u, delta, A, B, C, D, z, bias
        self.offsets, self.firsts, self.tiles = _plan(offsets, self.length, self.device)
        self.clouds = len(self.offsets) - 1
        self.arguments = [
            *map(_address, self.operands),
            self.width * self.length,
            *(step for x in (B, C) for step in (x.stride(0), x.stride(2), x.stride(1))),
            *(self.batches, self.width, self.length, self.states, self.clouds, self.tiles),
            *map(int, flags),
            *((1, self.width) if self.apart else (self.length, 1)),
            *map(_address, (self.offsets, self.firsts)),
        ]

    def arrange(self, x: Any) -> Any:
        """Memory as that of u: channels side by side, or tokens."""
        if x is None:
            return None
        return x.transpose(1, 2).contiguous().transpose(1, 2) if self.apart else x.contiguous()

    def launch(self, kernel: Any, slots: int, length: int, *others: Tensor | int | None) -> None:
        """One item for each batch and slot, of about `length` tokens."""
        work = self.width * length * max(1, self.states) // max(1, slots)
        arguments = (*self.arguments, slots, *map(_address, others))
        grain = 1 + _LEAST // max(1, work)
        bridge.launch(kernel[self.dtype], self.batches * slots, *arguments, device=self.device, grain=grain)

    def sum(self, parts: Sequence[Tensor], wholes: Sequence[Tensor], first: int, count: int) -> None:
        """The gradients of B and C (B, L, N) for `count` tiles from `first` on, of sums (B, parts, count, N, TILE)."""
        many = parts[0].shape[1]
        arguments = (*self.arguments, *map(_address, (*parts, *wholes)), many, first, count)
        items, grain = self.batches * count * self.states, 1 + _LEAST // max(1, many * TILE)
        bridge.launch(scan_chunks.SUMS[self.dtype], items, *arguments, device=self.device, grain=grain)

    def launch_tiles(self, kernel: Any, *others: Tensor | None) -> None:
        """One item for each batch, tile and channel, in whole warps; on the CPU on one thread."""
        items = self.batches * self.tiles * self.warps * WARP
        arguments = (*self.arguments, *map(_address, others))
        bridge.launch(kernel[self.dtype], items, *arguments, device=self.device, grain=items + 1)

    def join(self, ends: Tensor, decays: Tensor, first: Tensor | None, last: Tensor | None, backward: bool) -> None:
        items = self.batches * self.blocks * self.states * TILE
        arguments = (*self.arguments, *map(_address, (ends, decays, first, last)), int(backward))
        bridge.launch(scan_chunks.JOINS[self.dtype], items, *arguments, device=self.device)

    @property
    def warps(self) -> int:
        return -(-self.width // WARP)

    def new_states(self) -> Tensor:
        return self.operands[0].new_empty((self.batches, self.blocks, self.tiles, self.states, TILE))

    def new_sums(self, parts: int, tiles: int) -> list[Tensor]:
        """For B and for C."""
        return [self.operands[0].new_empty((self.batches, parts, tiles, self.states, TILE)) for _ in range(2)]


@bridge.small_operations()
def scan(
    operands: Sequence[Tensor | None],
    offsets: Tensor | None,
    flags: Flags,
    *,
    keep: bool,
    in_passes: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, D, L), the last state of each cloud, and with `keep` the states before each tile, for `differentiate`.

    `operands`: u, delta (B, D, L), A (D, N), B, C (B, N, L), D (D,), z (B, D, L), bias (D,); the last three or None.
    `flags`: signed, decays 2 a - 1; soft, softplus of delta + bias; reverse. `in_passes`: as on CUDA.
    """
    own = _Layout(operands, offsets, flags)
    u = own.operands[0]
    out = torch.empty_like(u)
    last = u.new_empty((own.batches, own.clouds, own.blocks, own.states, TILE))
    if in_passes or (in_passes is None and u.device.type == "cuda"):
        kept, decays = own.new_states(), own.new_states()
        own.launch_tiles(scan_chunks.ENDS, kept, decays)
        own.join(kept, decays, None, last, False)
        own.launch_tiles(scan_chunks.VALUES, kept, out)
    else:
        kept = own.new_states() if keep else None
        own.launch(FORWARD, own.blocks, own.length, out, kept, last)
    return out, _of_vectors(last, own.width), kept if keep and kept is not None else u.new_empty(0)


@bridge.small_operations()
def differentiate(
    grad: Tensor,
    grad_last: Tensor | None,
    kept: Tensor,
    operands: Sequence[Tensor | None],
    offsets: Tensor | None,
    flags: Flags,
    *,
    in_passes: bool | None = None,
) -> list[Tensor | None]:
    """The gradients of all operands, None for one that is None."""
    own = _Layout(operands, offsets, flags)
    u, delta, A, _, _, D, z, bias = own.operands
    grad, last = own.arrange(grad), None if grad_last is None else _to_vectors(grad_last, own.blocks)
    gu, gdelta, gz = torch.empty_like(u), torch.empty_like(delta), None if z is None else torch.empty_like(z)
    of_states = [u.new_empty((own.batches, own.length, own.states)) for _ in range(2)]
    if in_passes or (in_passes is None and u.device.type == "cuda"):
        sums = [x.zero_() for x in own.new_sums(own.warps, own.tiles)]
        ends, decays = own.new_states(), own.new_states()
        own.launch_tiles(scan_chunks.ADJOINT_ENDS, grad, ends, decays)
        own.join(ends, decays, last, None, True)
        rates = own.new_states().zero_()
        own.launch_tiles(scan_chunks.ADJOINT_VALUES, kept, ends, grad, gu, gdelta, rates, *sums, gz)
        own.sum(sums, of_states, 0, own.tiles)
        gA = _of_vectors(rates.sum(2)[:, None], own.width).sum((0, 1))
        gated = grad if z is None else grad * torch.nn.functional.silu(z)
        gD, gbias = None if D is None else (gated * u).sum((0, 2)), None if bias is None else gdelta.sum((0, 2))
    else:
        slots, tiles = max(1, min(own.blocks, _SLOTS // max(1, own.batches))), int(own.firsts[-1])
        carried = u.new_zeros((own.batches, own.blocks, 3 * own.states + 4, TILE))
        each: list[Any] = [None if x is None else x.new_empty((own.batches, *x.shape)) for x in (A, D, bias)]
        half = own.width * own.length // (4 * slots * max(1, own.states) * TILE)
        spans = max(1, -(-tiles // max(_SPAN, half)))
        sums = own.new_sums(slots, -(-tiles // spans))
        for k in range(spans - 1, -1, -1):
            begin, end = tiles * k // spans, tiles * (k + 1) // spans
            others = kept, grad, last, gu, gdelta, each[0], *sums, each[1], gz, each[2], carried, begin, end
            own.launch(BACKWARD, slots, (end - begin) * TILE, *others)
            own.sum(sums, of_states, begin, end - begin)
        gA, gD, gbias = (None if x is None else x.sum(0) for x in each)
    gB, gC = (x.transpose(1, 2) for x in of_states)
    return [gu, gdelta, gA, gB, gC, gD, gz, gbias]


def _of_vectors(x: Tensor, width: int) -> Tensor:
    """(B, clouds, D, N) of vectors (B, clouds, blocks, N, TILE)."""
    return x.transpose(-1, -2).flatten(2, 3)[:, :, :width].contiguous()


def _to_vectors(x: Tensor, blocks: int) -> Tensor:
    """The inverse of `_of_vectors`."""
    filled = torch.nn.functional.pad(x, (0, 0, 0, blocks * TILE - x.shape[2]))
    return filled.unflatten(2, (blocks, TILE)).transpose(-1, -2).contiguous()
