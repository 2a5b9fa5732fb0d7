"""Interpolation by inverse squared distance: the formula, exact at points, gradients also there."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from geom.errors import ShapeError
from geom.points import Points, interpolate
from geom.testing import assert_equivariant, assert_gradients

BACKENDS = ("warp", "torch")
both = pytest.mark.parametrize("backend", BACKENDS)
RELATIVE = {torch.float32: 1e-6, torch.float64: 2e-15}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@both
@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_formula(k: int, backend: str, dtype: torch.dtype) -> None:
    query, points, features = (random(n, c, dtype=dtype, seed=n) for n, c in ((40, 3), (60, 3), (60, 5)))
    distance, index = cKDTree(points.double().numpy()).query(query.double().numpy(), k=list(range(1, k + 1)))
    weight = 1 / distance**2
    near = features.double().numpy()[index]
    want = (weight[..., None] * near).sum(1) / weight.sum(1, keepdims=True)
    found = interpolate(query, points, features, k=k, backend=backend)
    assert found.dtype == dtype and found.shape == (40, 5)
    assert np.abs(found.double().numpy() - want).max() < RELATIVE[dtype] * np.abs(near).max()


@both
def test_exact_at_points(backend: str, dtype: torch.dtype) -> None:
    points, features = random(50, 3, dtype=dtype), random(50, 4, dtype=dtype, seed=1)
    assert torch.equal(interpolate(points, points, features, backend=backend), features)
    near = points * (1 + torch.finfo(dtype).eps)  # a rounding away: finite, and as good as there
    assert torch.allclose(interpolate(near, points, features, backend=backend), features, rtol=1e-6)
    twice = torch.cat([points, points])  # the mean of those in one place
    other = torch.cat([features, features + 1])
    assert torch.allclose(interpolate(points, twice, other, k=4, backend=backend), features + 0.5, rtol=1e-6)


@both
def test_ragged_batches_and_few_points(backend: str) -> None:
    points, features = random(12, 3), random(12, seed=1)
    query, starts, offsets = random(9, 3, seed=2), torch.tensor([0, 4, 4, 9]), torch.tensor([0, 2, 5, 12])
    found = interpolate(Points(query, offsets=starts), Points(points, offsets=offsets), features, k=4, backend=backend)
    alone = [
        interpolate(query[:4], points[:2], features[:2], k=2, backend=backend),
        interpolate(query[4:], points[5:], features[5:], k=4, backend=backend),
    ]
    assert torch.allclose(found, torch.cat(alone), rtol=1e-14)
    assert interpolate(query[:0], points, features, backend=backend).shape == (0,)


def test_moves_with_the_points() -> None:
    query, points, features = random(20, 3), random(30, 3, seed=1), random(30, 2, seed=2)
    assert_equivariant(
        interpolate, query, points, features, act_in=("point", "point", "invariant"), act_out="invariant",
        tolerance=1e-12,
    )  # fmt: skip


@pytest.mark.usefixtures("unchecked")
def test_gradients_also_at_points() -> None:
    points, features = random(8, 3), random(8, 2, seed=1)
    assert_gradients(interpolate, random(5, 3, seed=2), points, features, compile=True)
    at_points = points[:3].clone()
    assert_gradients(lambda q, f: interpolate(q, points.to(q), f), at_points, features)


def test_double_backward_is_finite_where_points_coincide(dtype: torch.dtype) -> None:
    points = torch.cat([random(4, 3, dtype=dtype)] * 2).requires_grad_()
    query, features = points.detach()[:4].clone().requires_grad_(), random(8, 2, dtype=dtype).requires_grad_()
    value = interpolate(query, points, features).square().sum()
    first = torch.autograd.grad(value, (query, points, features), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (query, points, features), allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in (*first, *second))
    assert not first[0].any() and first[2].any()


X = torch.rand(6, 3)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "query": ({"query": X[0]}, r"query: .* got a float32 tensor of shape \(3,\)"),
    "few_features": ({"features": X[:5]}, r"features: expected a tensor \(6, ...\), got .* \(5, 3\)"),
    "number": ({"features": 1.0}, r"features: expected a tensor \(6, ...\), got float 1.0"),
    "dtype": ({"features": X.double()}, "features and points: expected one dtype and device"),
    "empty": ({"points": X[:0], "features": X[:0]}, "points: expected at least 1 points, got 0"),
    "k": ({"k": 0}, "k: expected an integer of at least 1"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_shape_error(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        interpolate(**{"query": X, "points": X, "features": X, **change})
