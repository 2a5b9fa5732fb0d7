"""Exponential moving average of a module's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Average"]


class Average:
    """a <- d a + (1 - d) p after each step, d = min(decay, (1 + step) / (10 + step)).

    The smaller decay of the first steps keeps the initial weights, which mean nothing, from lingering.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(module.named_parameters())
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step 1, 2, ..."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, p in self._parameters.items():
            self.tensors[name].lerp_(p.detach(), weight)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what was saved."""
        for name, x in tensors.items():
            self.tensors[name].copy_(x)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module computes with the averages inside, with its own parameters again outside; no copy is made."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """The averages into the module, its own parameters here; a second time puts them back."""
        for name, p in self._parameters.items():
            p.data, self.tensors[name] = self.tensors[name], p.data
