"""The three passes of a scan, CUDA's way, run on the CPU: against the kernels that run there."""

import pytest
import torch
from torch import Tensor

from geom.kernels.scan import differentiate, scan


@pytest.mark.parametrize("flags", [(False, False, False), (True, True, True), (False, True, True)])
@pytest.mark.parametrize("gates", [True, False], ids=["gates", "none"])
def test_passes_give_what_vectors_give(flags: tuple[bool, bool, bool], gates: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    batch, width, length, states = 1, 40, 70, 3  # 40 channels: not whole warps, nor whole vectors
    delta = normal(batch, width, length) - 2 if flags[1] else normal(batch, width, length).abs()
    few = [normal(batch, states, length) for _ in range(2)]
    rest = [normal(width), normal(batch, width, length), normal(width).abs()] if gates else [None] * 3
    operands = [normal(batch, width, length), delta, -normal(width, states).abs(), *few, *rest]
    offsets = torch.tensor([0, 5, 5, 38, 70])
    weight, weight_last = normal(batch, width, length), normal(batch, 4, width, states)
    found = []
    for in_passes in (False, True):
        y, last, kept = scan(operands, offsets, flags, keep=True, in_passes=in_passes)
        grads = differentiate(weight, weight_last, kept, operands, offsets, flags, in_passes=in_passes)
        found.append([y, last, *grads])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(
                a, b, atol=(2e-6 if dtype == torch.float32 else 1e-13) * float(a.abs().max()), rtol=0
            )
