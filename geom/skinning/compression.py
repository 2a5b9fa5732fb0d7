"""`WeightCode`: skinning weights of many joints as a few numbers a vertex, by a small network."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geom.errors import ShapeError
from geom.skinning.pruning import check_dense

__all__ = ["FittedWeightCode", "WeightCode", "fit_weight_code"]

_RATE = 1e-2


class WeightCode(nn.Module):
    """An encoder from J weights to a code in (0, 1)^D, as the colours of a picture, and a decoder to weights again.

    Both have two hidden layers; the decoder ends in a softmax, so what it says are weights whatever the code.
    CanonicalFusion (Shin et al. 2024), Sec. 3.2: D = 3, the weights of SMPL-X as an image.

    Args: joints J; dimensions D; width of the hidden layers; generator of the first parameters.
    """

    def __init__(
        self, joints: int, *, dimensions: int = 3, width: int = 64, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.joints = joints
        self.encoder = _network([joints, width, width, dimensions], generator)
        self.decoder = _network([dimensions, width, width, joints], generator)

    def encode(self, weights: Float[Tensor, "*b j"]) -> Float[Tensor, "*b d"]:
        """Codes in (0, 1).

        Guarantees: differentiable; deterministic; 1e-6 f32
        """
        return self.encoder(weights).sigmoid()

    def decode(self, code: Float[Tensor, "*b d"]) -> Float[Tensor, "*b j"]:
        """Weights: positive, rows of sum 1.

        Guarantees: differentiable; deterministic; 1e-6 f32
        """
        return self.decoder(2 * code - 1).softmax(-1)

    def forward(self, weights: Float[Tensor, "*b j"]) -> Float[Tensor, "*b j"]:
        """What is left of weights after a code.

        Guarantees: differentiable; deterministic; 1e-6 f32
        """
        return self.decode(self.encode(weights))


class FittedWeightCode(NamedTuple):
    """`network`; `codes` (V, D) of the weights it was fitted to; `error` (V,), half the sum of |decoded - given|: the
    share of each vertex that goes to wrong joints."""

    network: WeightCode
    codes: Tensor
    error: Tensor


def fit_weight_code(
    weights: Float[Tensor, "v j"],
    *,
    dimensions: int = 3,
    width: int = 64,
    steps: int = 3000,
    batch: int = 512,
    generator: torch.Generator | None = None,
) -> FittedWeightCode:
    """Learn a code for the weights of one character.

    Adam on the cross entropy -sum_j w_j log decoded_j, which is least where decoded = w; the rate falls to 0 along half
    a cosine.

    Args:
        weights: (V, J), at least 0, rows of sum 1. dimensions: of the code. width: of the networks' hidden layers.
        steps: of the optimiser. batch: vertices a step, drawn at random; all, where there are no more.
        generator: of the first parameters and the batches.
    Returns: FittedWeightCode, dtype and device of the weights.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic under a generator on the CPU; about 1 % of weight at wrong joints
    """
    check_dense(weights)
    if not len(weights):
        raise ShapeError("weights: expected at least one vertex, got none")
    given = weights.detach()
    network = WeightCode(given.shape[1], dimensions=dimensions, width=width, generator=generator).to(given)
    optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    place = generator.device if generator is not None else given.device
    for _ in range(steps):
        some = given
        if batch < len(given):
            some = given[torch.randint(len(given), (batch,), generator=generator, device=place).to(given.device)]
        logits = network.decoder(2 * network.encode(some) - 1)
        loss = torch.nn.functional.cross_entropy(logits, some)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        codes = network.encode(given)
        error = (network.decode(codes) - given).abs().sum(1) / 2
    return FittedWeightCode(network.eval(), codes, error)


def _network(widths: list[int], generator: torch.Generator | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layer = nn.Linear(before, after)
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.SiLU()]
    return nn.Sequential(*layers[:-1])
