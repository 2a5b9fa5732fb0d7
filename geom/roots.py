"""Square roots whose derivatives stay finite at 0."""

import torch
from torch import Tensor

__all__ = ["safe_norm", "safe_sqrt"]


def safe_sqrt(square: Tensor) -> Tensor:
    """Square root of numbers of at least 0, with derivative 0 at 0 (double where)."""
    zero = square == 0
    return torch.where(zero, torch.zeros_like(square), torch.where(zero, torch.ones_like(square), square).sqrt())


def safe_norm(vector: Tensor) -> Tensor:
    """Length (...) of vectors (..., n), with derivative 0 at 0."""
    return safe_sqrt(vector.square().sum(-1))
