"""Ball query, and what large clouds and many queries take: other orders and more threads, the same answers."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from torch import Tensor

from geom.errors import ShapeError
from geom.points import NeighborTree, ball_query, knn
from geom.testing import assert_gradients

BACKENDS = ("warp", "torch")
both = pytest.mark.parametrize("backend", BACKENDS)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@both
@pytest.mark.parametrize("k", [1, 8, 64])
def test_the_first_of_scipy_s(k: int, backend: str, dtype: torch.dtype) -> None:
    points, query = random(900, 3, dtype=dtype), random(80, 3, dtype=dtype, seed=1)
    found = ball_query(query, points, 0.2, k, backend=backend)
    lists = cKDTree(points.double().numpy()).query_ball_point(query.double().numpy(), 0.2, return_sorted=True)
    assert found.index.tolist() == [[*row[:k], *[-1] * (k - len(row))] for row in lists]
    assert min(map(len, lists)) < 64 < 900 and max(map(len, lists)) > 8
    there = found.index >= 0
    exact = (query.double()[:, None] - points.double()[found.index]).square().sum(-1).sqrt()
    assert found.distance.dtype == dtype and bool(torch.isinf(found.distance[~there]).all())
    assert torch.allclose(found.distance[there].double(), exact[there], rtol={torch.float32: 3e-7}.get(dtype, 4e-16))


@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_warp_is_the_twin_on_integers(data: st.DataObject, dtype: torch.dtype) -> None:
    """Ties, duplicates, points on the sphere itself, which stay out, and empty clouds."""
    sizes = data.draw(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 9)), min_size=1, max_size=4))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    (points, offsets), (query, query_offsets) = (
        (torch.randint(0, 5, (sum(n), 3), generator=draw).to(dtype), torch.tensor([0, *np.cumsum(n).tolist()]))
        for n in zip(*sizes, strict=True)
    )
    k, radius = data.draw(st.integers(1, 12)), float(data.draw(st.sampled_from([1, 2, 3])))
    ragged = {"offsets": offsets, "query_offsets": query_offsets}
    a, b = (ball_query(query, points, radius, k, backend=backend, **ragged) for backend in BACKENDS)
    assert torch.equal(a.index, b.index) and torch.equal(a.distance, b.distance)
    assert bool((a.distance[a.index >= 0] < radius).all())
    tree = NeighborTree.build(points, offsets=offsets)
    assert torch.equal(tree.ball_query(query, radius, k, offsets=query_offsets).index, a.index)


@pytest.mark.usefixtures("unchecked")
def test_gradients() -> None:
    query, points = random(4, 3), random(9, 3, seed=1)

    def f(q: Tensor, p: Tensor) -> Tensor:
        found = ball_query(q, p, 0.6, 3)
        return torch.where(found.index < 0, torch.zeros_like(found.distance), found.distance)

    assert_gradients(f, query, points, compile=True)
    at = points[:2].clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(at, points)[..., :1].sum(), at, allow_unused=True)
    assert bool(torch.isfinite(grad).all())


@pytest.mark.usefixtures("unchecked")
def test_opcheck() -> None:
    from geom.points.tree import _ball_query, _build

    points, offsets = random(30, 3), torch.tensor([0, 12, 30])
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(_ball_query, (points, offsets, *_build(points, offsets), 3, 0.1), test_utils=tests)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0.0}, "radius: expected a finite number above 0"),
        ({"k": 0}, "k: expected an integer of at least 1"),
        ({"points": torch.rand(6, 2)}, r"points: .* got a float32 tensor of shape \(6, 2\)"),
        ({"query": torch.rand(6, 3).double()}, "query and points: expected one dtype and device"),
        ({"backend": "cuda"}, "backend: expected one of"),
    ],
)
def test_wrong_input_is_a_shape_error(change: dict[str, Any], message: str) -> None:
    x = torch.rand(6, 3)
    with pytest.raises(ShapeError, match=message):
        ball_query(**{"query": x, "points": x, "radius": 0.5, "k": 2, **change})


# --- many queries, large clouds --------------------------------------------------------------------------------------


def test_many_queries_in_ragged_batches(dtype: torch.dtype) -> None:
    """Asked in Morton order, answered in theirs; on a lattice ties show any difference."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randint(0, 9, (3000, 3), generator=draw).to(dtype)
    query = torch.randint(0, 90, (9000, 3), generator=draw).to(dtype) / 8
    offsets, starts = torch.tensor([0, 700, 700, 3000]), torch.tensor([0, 5000, 5100, 9000])
    a, b = (knn(query, points, 5, offsets=offsets, query_offsets=starts, backend=backend) for backend in BACKENDS)
    assert torch.equal(a.index, b.index) and torch.equal(a.distance, b.distance)


def test_large_clouds_are_the_same_for_any_threads(threads: Any) -> None:
    points, offsets = random(100_000, 3, dtype=torch.float32), torch.tensor([0, 20_000, 100_000])
    for batch in (None, offsets):
        made = []
        for count in (1, 2, 5):
            threads(count)
            tree = NeighborTree.build(points, offsets=batch)
            leaves = int(tree.bases[0, -1])
            query = points[::20].contiguous()
            starts = None if batch is None else torch.tensor([0, 1000, 5000])
            made.append((tree.leaf_index[:leaves], *tree.knn(query, 4, offsets=starts)))
        for other in made[1:]:
            assert all(map(torch.equal, made[0], other))
