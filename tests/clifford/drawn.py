"""What tests of geometric algebra draw: numbers, and motions of space."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from geom.clifford.algebra import PGA
from geom.clifford.embedding import embed_plane

__all__ = ["draw", "motions", "mover", "seeded"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same numbers in every dtype."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def motions(shift: float = 0.0, reflections: bool = True) -> list[Tensor]:
    """Products of up to 4 mirrors, with a translation of the length of the shift."""
    found = []
    for count in range(0, 5, 1 if reflections else 2):
        versor = torch.eye(16, dtype=torch.float64)[0]
        for k in range(count):
            normal = normalize(draw(3, seed=10 * count + k), dim=-1)
            versor = PGA.geometric_product(embed_plane(normal, draw(3, seed=k)), versor)
        away = normalize(draw(3, seed=count), dim=-1) * shift
        found.append(PGA.geometric_product(mover(away), versor))
    return found


def mover(translation: Tensor) -> Tensor:
    """The versor of a translation."""
    versor = torch.zeros(16, dtype=translation.dtype)
    versor[0], versor[5:8] = 1, -translation / 2
    return versor
