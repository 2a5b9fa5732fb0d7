"""Pruned weights: which stay, what they sum to, and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geom.errors import ShapeError
from geom.skinning.pruning import densify_weights, prune_weights
from geom.testing import assert_gradients

f64 = torch.float64


def weights(count: int, joints: int, seed: int, dtype: torch.dtype = f64) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    w = torch.rand(count, joints, generator=draw, dtype=f64) ** 4
    w = torch.where(torch.rand(count, joints, generator=draw) < 0.3, 0.0, w)
    w[:, 0] += 1e-3
    return (w / w.sum(1, keepdim=True)).to(dtype)


@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 10), st.integers(0, 10**6))
def test_the_strongest_stay(count: int, joints: int, influences: int, seed: int) -> None:
    w = weights(count, joints, seed)
    indices, kept = prune_weights(w, influences=influences)
    k = min(influences, joints)
    assert indices.shape == kept.shape == (count, k)
    assert (kept.sum(1) - 1).abs().max() < 4e-16 if count else True
    assert bool((kept[:, 1:] <= kept[:, :-1]).all()) and bool((kept >= 0).all())
    best = w.sort(dim=1, descending=True).values[:, :k]
    assert torch.allclose(kept, best / best.sum(1, keepdim=True), atol=1e-15)
    dense = densify_weights(indices, kept, joints)
    if influences >= joints:
        assert torch.allclose(dense, w, atol=1e-15)
    again = prune_weights(dense, influences=influences)
    assert torch.allclose(again.weights, kept, atol=1e-15)


def test_equal_weights_and_rows_of_zeros(dtype: torch.dtype) -> None:
    w = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=dtype)
    indices, kept = prune_weights(w, influences=2)
    assert indices.tolist() == [[0, 1], [0, 0], [3, 0]] and kept.tolist() == [[0.5, 0.5], [1, 0], [1, 0]]
    indices, kept = prune_weights(w, influences=2, fallback=torch.tensor([2, 2, 2]))
    assert indices.tolist() == [[0, 1], [2, 0], [3, 0]] and kept.tolist() == [[0.5, 0.5], [1, 0], [1, 0]]
    assert kept.dtype == dtype


def test_gradients() -> None:
    w = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=f64) + 0.1
    assert_gradients(lambda x: prune_weights(x, influences=3).weights, w)
    indices, kept = prune_weights(w, influences=3)
    assert_gradients(lambda x: densify_weights(indices, x, 6), kept)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    w = weights(4, 3, 0)
    indices, kept = prune_weights(w)
    for call in (
        lambda: prune_weights(-w),
        lambda: prune_weights(w * torch.nan),
        lambda: prune_weights(w[:, :0]),
        lambda: prune_weights(w, influences=0),
        lambda: prune_weights(w, influences=2.0),
        lambda: prune_weights(w, fallback=torch.tensor([3, 0, 0, 0])),
        lambda: prune_weights(w, fallback=torch.tensor([1])),
        lambda: densify_weights(indices, kept, 1),
        lambda: densify_weights(indices[:1], kept, 3),
        lambda: densify_weights(indices, kept.long(), 3),
    ):
        with pytest.raises(ShapeError):
            call()
