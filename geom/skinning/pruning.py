"""Weights of all bones to those of the few strongest, and back."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import FLOATS, check_indices, check_integer, describe, readable
from geom.errors import ShapeError

__all__ = ["PrunedWeights", "check_dense", "densify_weights", "prune_weights"]


class PrunedWeights(NamedTuple):
    """`indices` (V, K) int64 and `weights` (V, K), falling, rows of sum 1."""

    indices: Tensor
    weights: Tensor


def prune_weights(
    weights: Float[Tensor, "v j"], *, influences: int = 4, fallback: Int64[Tensor, " v"] | None = None
) -> PrunedWeights:
    """The strongest weights of each row, divided by their sum in float64; of equal ones the lowest index first.

    Args:
        weights: (V, J), at least 0. influences: K; of fewer joints, all.
        fallback: joint of each vertex whose weights are all 0; joint 0 if None.
    Returns: PrunedWeights; entries of weight 0 name joint 0.
    Raises: ShapeError.

    >>> prune_weights(torch.tensor([[0.1, 0.6, 0.0, 0.3]]), influences=2)
    PrunedWeights(indices=tensor([[1, 3]]), weights=tensor([[0.6667, 0.3333]]))

    Guarantees: differentiable (in the weights that stay); deterministic; 2e-16 f64, 6e-8 f32
    """
    check_dense(weights)
    check_integer(influences, "influences")
    joints = weights.shape[1]
    chosen = weights.detach().argsort(dim=1, descending=True, stable=True)[:, :influences]
    kept = weights.gather(1, chosen).double()
    total = kept.sum(1, keepdim=True)
    none = total == 0
    kept = kept / torch.where(none, 1.0, total)
    chosen = torch.where(kept > 0, chosen, 0)
    if fallback is not None:
        check_indices(fallback[:, None], 1, joints, "fallback", "V")
        if len(fallback) != len(weights):
            raise ShapeError(f"fallback: expected an int64 tensor ({len(weights)},), got {describe(fallback)}")
        first = torch.where(none[:, 0], fallback, chosen[:, 0])
        chosen = torch.cat([first[:, None], chosen[:, 1:]], 1)
    one = (torch.arange(kept.shape[1], device=kept.device) == 0).to(kept.dtype)
    return PrunedWeights(chosen, torch.where(none, one, kept).to(weights.dtype))


def densify_weights(
    indices: Int64[Tensor, "v k"], weights: Float[Tensor, "v k"], joints: int
) -> Float[Tensor, "v joints"]:
    """Weights (V, J) of all joints from those of a few; entries that name one joint twice add up.

    >>> densify_weights(torch.tensor([[1, 0]]), torch.tensor([[0.75, 0.25]]), 3)
    tensor([[0.2500, 0.7500, 0.0000]])

    Raises: ShapeError.
    Guarantees: differentiable; deterministic; 2e-16 f64, 6e-8 f32
    """
    if not isinstance(weights, Tensor) or weights.dtype not in FLOATS or weights.ndim != 2:
        raise ShapeError(f"weights: expected a float32 or float64 tensor (V, K), got {describe(weights)}")
    if not isinstance(indices, Tensor) or indices.shape != weights.shape:
        raise ShapeError(f"indices: expected an int64 tensor {tuple(weights.shape)}, got {describe(indices)}")
    check_indices(indices, weights.shape[1], joints, "indices", "V")
    return weights.new_zeros(len(weights), joints).scatter_add(1, indices, weights)


def check_dense(weights: Tensor, name: str = "weights") -> Tensor:
    """Return `weights` if they are floats (V, J), J at least 1, finite and at least 0. Raises: ShapeError."""
    if not isinstance(weights, Tensor) or weights.dtype not in FLOATS or weights.ndim != 2 or not weights.shape[1]:
        raise ShapeError(f"{name}: expected a float32 or float64 tensor (V, J), got {describe(weights)}")
    if readable(weights) and not bool(((weights >= 0) & weights.isfinite()).all()):
        raise ShapeError(f"{name}: expected finite numbers of at least 0, got others")
    return weights
