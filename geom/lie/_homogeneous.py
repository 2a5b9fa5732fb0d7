"""Homogeneous matrices for column vectors."""

import torch
from torch import Tensor

__all__ = ["homogeneous"]


def homogeneous(linear: Tensor, translation: Tensor) -> Tensor:
    """[[linear, translation], [0, 1]]: (..., n, n) and (..., n) to (..., n+1, n+1)."""
    top = torch.cat([linear, translation[..., None]], -1)
    zero = torch.zeros_like(top[..., :1, :])
    return torch.cat([top, torch.cat([zero[..., :-1], torch.ones_like(zero[..., :1])], -1)], -2)
