"""Normalisation by running statistics: each feature by its own, or all features by their mean length."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geom.checks import check_shape
from geom.errors import ShapeError

__all__ = ["MomentumLayerNorm", "MomentumNorm"]

_LEAST = 1e-7  # what is divided by at least


class MomentumNorm(nn.Module):
    """(x - mu) / sigma of each feature, mu and sigma averaged over the batches of the training.

    In training mode mu <- m mu + (1 - m) mean(x) and sigma <- m sigma + (1 - m) std(x), over all axes but the last and
    with N in the denominator, before they are used; at first they are 0 and 1. No gradient passes through them. A sigma
    below 1e-7 counts as that. An empty batch changes nothing.

    Args: features, the last axis of x; momentum, m.
    Raises: ShapeError for another last axis, or a momentum outside [0, 1].

    >>> norm = MomentumNorm(2, momentum=0.0)
    >>> norm(torch.tensor([[1.0, 5.0], [3.0, 9.0]])).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]

    Guarantees: differentiable; deterministic; 4e-16 f64, 3e-7 f32
    """

    mu: Tensor
    sigma: Tensor

    def __init__(self, features: int, *, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = _check_momentum(momentum)
        self.register_buffer("mu", torch.zeros(features))
        self.register_buffer("sigma", torch.ones(features))

    def forward(self, x: Float[Tensor, "*b features"]) -> Float[Tensor, "*b features"]:
        check_shape(x, self.mu.shape, "x")
        if self.training and x.numel():
            flat = x.detach().reshape(-1, x.shape[-1])
            self.mu.lerp_(flat.mean(0).to(self.mu), 1 - self.momentum)
            self.sigma.lerp_(flat.std(0, correction=0).to(self.sigma), 1 - self.momentum)
        return (x - self.mu.to(x)) / self.sigma.to(x).clamp(min=_LEAST)


class MomentumLayerNorm(nn.Module):
    """x / norm, with norm the mean length of the vectors x, averaged over the batches of the training.

    In training mode norm <- m norm + (1 - m) mean |x|, before it is used; at first it is 1. Rotations leave it, so that
    it is as good for covariants as for invariants. No gradient passes through it. Below 1e-7 it counts as that. An
    empty batch changes nothing.

    Args: momentum, m.
    Raises: ShapeError for a momentum outside [0, 1].

    >>> MomentumLayerNorm(momentum=0.0)(torch.tensor([[3.0, 4.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929]]

    Guarantees: differentiable; deterministic; 4e-16 f64, 3e-7 f32
    """

    norm: Tensor

    def __init__(self, *, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = _check_momentum(momentum)
        self.register_buffer("norm", torch.ones(1))

    def forward(self, x: Float[Tensor, "*b features"]) -> Float[Tensor, "*b features"]:
        if self.training and x.numel():
            length = torch.linalg.vector_norm(x.detach(), dim=-1).mean()
            self.norm.lerp_(length.to(self.norm), 1 - self.momentum)
        return x / self.norm.to(x).clamp(min=_LEAST)


def _check_momentum(momentum: float) -> float:
    if not 0 <= momentum <= 1:
        raise ShapeError(f"momentum: expected a number in [0, 1], got {momentum!r}")
    return float(momentum)
