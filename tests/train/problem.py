"""A small regression that every part of the loop has a hand in: what the tests of this room train."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geom.train import Cosine, TrainConfig, train


class Points:
    """Items (x (3,), y (1,)); `noisy` draws from the global generators of numpy and python on each access."""

    def __init__(self, count: int = 40, *, noisy: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(count, 3, generator=generator)
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.x[index]
        y = x.square().sum(0, keepdim=True)
        noise = 0.1 * (np.random.random() + random.random()) if self.noisy else 0.0  # noqa: NPY002
        return x + noise, y


def network(*, dropout: float = 0.0, norm: bool = False, seed: int = 0) -> torch.nn.Sequential:
    """A perceptron; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = [torch.nn.BatchNorm1d(16)] if norm else []
        first, last = torch.nn.Linear(3, 16), torch.nn.Linear(16, 1)
        return torch.nn.Sequential(first, *middle, torch.nn.Tanh(), torch.nn.Dropout(dropout), last)


def loss(module: torch.nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    x, y = batch
    return (module(x) - y).float().square().mean()


def noisy_loss(
    module: torch.nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draws from its generator, and has something to tell beside the loss."""
    x, y = batch
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    error = (module(x) - y).float()
    return error.square().mean(), {"bias": error.mean()}


EVERYTHING = TrainConfig(
    steps=30,
    batch=6,
    accumulate=2,
    rate=1e-2,
    schedule=Cosine(warmup=4),
    weight_decay=0.01,
    clip=1.0,
    precision="bfloat16",
    average=0.9,
    seed=3,
    checkpoint_every=4,
    validate_every=6,
)


def train_everything(out: Any, config: TrainConfig = EVERYTHING) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    """One training with all that is random and all that has a state."""
    module = network(dropout=0.2, norm=True)
    history = train(module, Points(noisy=True), noisy_loss, config=config, out=out, validation=Points(10), device="cpu")
    return module, history


class Forked(torch.nn.Module):
    """Two branches, of which each pass takes one; never the third."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = torch.nn.ModuleList([network(seed=1), network(seed=2), network(seed=3)])


def forked_loss(module: Forked, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Calls a part of the module, not the module."""
    return loss(module.branches[int(torch.randint(2, (), generator=generator))], batch, generator)
