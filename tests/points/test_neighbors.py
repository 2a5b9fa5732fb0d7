"""Nearest neighbours and radius search: against scipy, against the twin, exactly where arithmetic is exact."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from torch import Tensor
from torch.autograd import forward_ad

from geom.errors import ShapeError
from geom.meshes import Mesh
from geom.points import Neighbors, NeighborTree, Points, knn, radius_search

RELATIVE = {torch.float32: 3e-7, torch.float64: 4e-16}  # what the docstrings guarantee
BACKENDS = ("warp", "torch")
both = pytest.mark.parametrize("backend", BACKENDS)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def clustered(dtype: torch.dtype) -> Tensor:
    centres = random(12, 3) * 100
    return (centres.repeat_interleave(60, 0) + random(720, 3, seed=1) ** 4).to(dtype)


SCENES: dict[str, Callable[[torch.dtype], Tensor]] = {
    "random": lambda dtype: random(1500, 3, dtype=dtype),
    "clustered": clustered,
    "duplicates": lambda dtype: random(40, 3, dtype=dtype).repeat(20, 1),
    "one_place": lambda dtype: torch.ones(100, 3, dtype=dtype),
    "plane": lambda dtype: random(700, 3, dtype=dtype) * torch.tensor([1, 1, 0], dtype=dtype),
    "line": lambda dtype: torch.linspace(-1, 1, 300, dtype=dtype)[:, None] * torch.tensor([3, -1, 2], dtype=dtype),
    "lattice": lambda dtype: torch.cartesian_prod(*[torch.arange(9, dtype=dtype)] * 3),
    "small": lambda dtype: random(600, 3, dtype=dtype) * 1e-6,
    "large": lambda dtype: random(600, 3, dtype=dtype) * 1e6,
    "far_away": lambda dtype: random(600, 3, dtype=dtype) + 1e4,
    "mixed_scales": lambda dtype: torch.cat([random(300, 3, dtype=dtype) * s for s in (1e-6, 1, 1e6)]),
    "two_far_apart": lambda dtype: torch.cat([random(99, 3, dtype=dtype), random(1, 3, dtype=dtype) + 1e6]),
    "two": lambda dtype: random(2, 3, dtype=dtype),
    "one": lambda dtype: random(1, 3, dtype=dtype),
}
each_scene = pytest.mark.parametrize("scene", SCENES)


def queries(points: Tensor) -> Tensor:
    """Some of the points themselves, places between them, and places outside."""
    low, high = points.amin(0), points.amax(0)
    between = low + (high - low) * random(60, 3, dtype=points.dtype, seed=2)
    return torch.cat([points[:: max(1, len(points) // 40)], between, 3 * between - low])


def distances(query: Tensor, points: Tensor, index: Tensor) -> np.ndarray:
    """In float64, from the coordinates; inf for index -1."""
    gap = query.double().numpy()[:, None] - points.double().numpy()[index.numpy()]
    return np.where(index.numpy() < 0, np.inf, np.sqrt((gap**2).sum(-1)))


def assert_nearest(found: Neighbors, query: Tensor, points: Tensor, k: int) -> None:
    """Each row holds k different points, at their distances, no farther than scipy's, nearest first."""
    index, distance = found.index.numpy(), found.distance.double().numpy()
    assert found.index.dtype == torch.int64 and found.distance.dtype == query.dtype
    have = min(k, len(points))
    assert (index[:, :have] >= 0).all() and (index[:, have:] == -1).all() and np.isinf(distance[:, have:]).all()
    assert all(len(set(row)) == have for row in index[:, :have].tolist())
    tolerance = RELATIVE[query.dtype]
    assert np.allclose(distance, distances(query, points, found.index), rtol=tolerance, atol=0)
    want = cKDTree(points.double().numpy()).query(query.double().numpy(), k=list(range(1, have + 1)))[0]
    assert np.allclose(distance[:, :have], want, rtol=2 * tolerance, atol=0)
    assert (np.diff(distance[:, :have]) >= 0).all()


# --- exactness -------------------------------------------------------------------------------------------------------


@each_scene
@both
@pytest.mark.parametrize("k", [1, 7, 40])
def test_knn_matches_scipy(scene: str, backend: str, k: int, dtype: torch.dtype) -> None:
    points = SCENES[scene](dtype)
    query = queries(points)
    assert_nearest(knn(query, points, k, backend=backend), query, points, k)


@each_scene
@both
def test_radius_search_matches_scipy(scene: str, backend: str, dtype: torch.dtype) -> None:
    points = SCENES[scene](dtype)
    query = queries(points)
    tree = cKDTree(points.double().numpy())
    # not the distance of any point: between those of two
    near = np.unique(tree.query(query.double().numpy(), k=min(9, len(points)))[0])
    widest = int(np.argmax(np.diff(near))) if len(near) > 1 else 0
    radius = float(near[widest : widest + 2].mean()) or 1.0
    found = radius_search(query, points, radius, backend=backend)
    want = tree.query_ball_point(query.double().numpy(), radius, return_sorted=True)
    assert found.offsets.tolist() == [0, *np.cumsum([len(row) for row in want]).tolist()]
    assert found.index.tolist() == [i for row in want for i in row]
    owner = torch.repeat_interleave(torch.arange(len(query)), found.offsets.diff())
    exact = distances(query[owner], points, found.index[:, None])[:, 0]
    assert found.distance.dtype == dtype
    assert np.allclose(found.distance.double().numpy(), exact, rtol=RELATIVE[dtype], atol=0)


@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_warp_is_the_twin_bit_for_bit_on_integers(data: st.DataObject, dtype: torch.dtype) -> None:
    """On a small lattice all arithmetic is exact: ties, duplicates, empty clouds and limits come out the same."""
    sizes = data.draw(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 9)), min_size=1, max_size=4))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    span = data.draw(st.sampled_from([1, 3, 50]))
    (points, offsets), (query, query_offsets) = (
        (
            torch.randint(0, span + 1, (sum(n), 3), generator=draw).to(dtype),
            torch.tensor([0, *np.cumsum(n).tolist()]),
        )
        for n in zip(*sizes, strict=True)
    )
    k, limit = data.draw(st.integers(1, 12)), float(data.draw(st.sampled_from([1, 2, 3, 7])))
    ragged = {"offsets": offsets, "query_offsets": query_offsets}
    for function, argument, options in (
        (knn, k, ragged),
        (knn, k, {**ragged, "max_distance": limit}),
        (radius_search, limit, ragged),
    ):
        a, b = (function(query, points, argument, backend=name, **options) for name in BACKENDS)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@both
def test_ties_go_to_the_lower_index(backend: str, dtype: torch.dtype) -> None:
    lattice = SCENES["lattice"](dtype)[torch.randperm(729, generator=torch.Generator().manual_seed(0))]
    query = torch.cat([lattice[:50], lattice[:50] + 0.5])
    exact = ((query[:, None] - lattice).double() ** 2).sum(-1)
    want = exact.sort(dim=-1, stable=True).indices[:, :30]
    assert torch.equal(knn(query, lattice, 30, backend=backend).index, want)
    inside = [(row <= 4).nonzero()[:, 0] for row in exact]  # at exactly the radius: inside
    assert torch.equal(radius_search(query, lattice, 2.0, backend=backend).index, torch.cat(inside))
    limited = knn(query, lattice, 200, max_distance=2.0, backend=backend)
    assert (limited.index >= 0).sum(-1).tolist() == [len(row) for row in inside]


@both
def test_max_distance(backend: str, dtype: torch.dtype) -> None:
    points, query = SCENES["random"](dtype), random(80, 3, dtype=dtype, seed=5)
    every, near = knn(query, points, 20, backend=backend), knn(query, points, 20, max_distance=0.1, backend=backend)
    kept = every.distance <= 0.1
    assert kept.any() and not kept.all()
    assert torch.equal(near.index, every.index.where(kept, torch.tensor(-1)))
    assert torch.equal(near.distance, every.distance.where(kept, torch.tensor(float("inf"), dtype=dtype)))
    for limit in (1e200, 1e-200):  # squares that overflow and vanish
        found = knn(points[:5], points, 2, max_distance=limit, backend=backend)
        assert torch.equal(found.index[:, 0], torch.arange(5))
        assert ((found.index[:, 1] >= 0) == (limit > 1)).all()
    assert radius_search(points[:5], points, 1e200, backend=backend).offsets[-1] == 5 * len(points)


# --- batches, trees --------------------------------------------------------------------------------------------------


@both
def test_ragged_equals_one_by_one(backend: str, dtype: torch.dtype) -> None:
    points, query = random(400, 3, dtype=dtype), random(70, 3, dtype=dtype, seed=1)
    offsets, asked = torch.tensor([0, 0, 5, 5, 200, 400]), torch.tensor([0, 3, 3, 10, 40, 70])
    batch = Points(points, offsets=offsets)
    found = knn(query, batch, 8, query_offsets=asked, backend=backend)
    ball = radius_search(Points(query, offsets=asked), batch, 0.2, backend=backend)
    for cloud in range(5):
        (start, stop), (begin, end) = (o[cloud : cloud + 2].tolist() for o in (offsets, asked))
        alone = knn(query[begin:end], points[start:stop], 8, backend=backend)
        shifted = torch.where(alone.index < 0, -1, alone.index + start)
        assert torch.equal(found.index[begin:end], shifted)
        assert torch.equal(found.distance[begin:end], alone.distance)
        near = radius_search(query[begin:end], points[start:stop], 0.2, backend=backend)
        rows = slice(int(ball.offsets[begin]), int(ball.offsets[end]))
        assert torch.equal(ball.index[rows], near.index + start)
        assert torch.equal(ball.distance[rows], near.distance)
        assert torch.equal(ball.offsets[begin : end + 1].diff(), near.offsets.diff())


@both
def test_nothing_to_ask_and_nothing_to_find(backend: str, dtype: torch.dtype) -> None:
    some, none = random(5, 3, dtype=dtype), random(0, 3, dtype=dtype)
    assert knn(none, some, 3, backend=backend).index.shape == (0, 3)
    assert radius_search(none, some, 1.0, backend=backend).offsets.tolist() == [0]
    for query in (some, some.clone().requires_grad_()):
        index, distance = knn(query, none, 2, backend=backend)
        assert (index == -1).all() and distance.isposinf().all() and distance.shape == (5, 2)
        assert radius_search(query, none, 1.0, backend=backend).offsets.tolist() == [0] * 6
    no_cloud = torch.zeros(1, dtype=torch.int64)
    assert knn(none, none, 2, offsets=no_cloud, query_offsets=no_cloud, backend=backend).index.shape == (0, 2)


def test_a_tree_answers_again_and_again(dtype: torch.dtype) -> None:
    points = clustered(dtype)
    copy = points.clone()
    tree = NeighborTree.build(points)
    for seed in range(3):
        query = random(50, 3, dtype=dtype, seed=seed) * 100
        for k in (1, 5):
            assert all(map(torch.equal, tree.knn(query, k), knn(query, points, k)))
        found, want = tree.radius_search(query, 40.0), radius_search(query, points, 40.0)
        assert all(map(torch.equal, found, want)) and len(found.index) > 0
    assert torch.equal(points, copy)
    with pytest.raises(ShapeError, match="without one"):
        tree[0]


def test_memory_that_is_not_contiguous(dtype: torch.dtype) -> None:
    points, query = random(3, 300, dtype=dtype).mT, random(60, 6, dtype=dtype, seed=1)[::2, ::2]
    offsets = torch.tensor([0, 7, 100, 7, 300, 7])[::2]
    asked = torch.tensor([0, 7, 10, 7, 30, 7])[::2]
    assert not any(x.is_contiguous() for x in (points, query, offsets, asked))
    a = knn(query, points, 4, offsets=offsets, query_offsets=asked)
    b = knn(query.clone(), points.clone(), 4, offsets=offsets.clone(), query_offsets=asked.clone())
    assert all(map(torch.equal, a, b)) and (a.index[:10] < 100).all() and (a.index[10:] >= 100).all()


def test_threads_do_not_change_a_bit(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    points = random(12_000, 3, dtype=dtype)
    found = []
    for count in (1, 2):
        threads(count)
        found.append((*knn(points, points, 6), *radius_search(points, points, 0.03)))
    assert all(map(torch.equal, *found))


# --- derivatives -----------------------------------------------------------------------------------------------------


def pairs() -> tuple[Tensor, Tensor]:
    return random(4, 3).requires_grad_(), random(9, 3, seed=1).requires_grad_()


@both
def test_gradcheck(backend: str) -> None:
    assert torch.autograd.gradcheck(lambda q, p: knn(q, p, 3, backend=backend).distance, pairs())
    limited = knn(*pairs(), 5, max_distance=0.4, backend=backend)
    seen = limited.index >= 0
    assert seen.any() and not seen.all()
    assert torch.autograd.gradcheck(
        lambda q, p: knn(q, p, 5, max_distance=0.4, backend=backend).distance[seen], pairs()
    )
    assert torch.autograd.gradcheck(lambda q, p: radius_search(q, p, 0.4, backend=backend).distance, pairs())


@both
def test_gradients_at_coincident_and_missing_points_are_zero(backend: str, dtype: torch.dtype) -> None:
    points = torch.zeros(2, 3, dtype=dtype).requires_grad_()
    query = torch.zeros(1, 3, dtype=dtype).requires_grad_()
    for distance in (
        knn(query, points, 4, backend=backend).distance.nan_to_num(posinf=1.0),
        radius_search(query, points, 1.0, backend=backend).distance,
    ):
        for grad in torch.autograd.grad(distance.sum(), (query, points)):
            assert torch.equal(grad, torch.zeros_like(grad))


@both
def test_forward_mode_is_not_silently_zero(backend: str) -> None:
    query, points = (x.detach() for x in pairs())
    forward = [lambda q: knn(q, points, 3, backend=backend).distance]
    forward.append(lambda q: radius_search(q, points, 0.4, backend=backend).distance)
    for f in forward:
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(query, torch.ones_like(query)))).tangent
        want = (f(query + 1e-6) - f(query - 1e-6)) / 2e-6
        assert torch.allclose(tangent, want, atol=1e-8) and want.abs().max() > 0.1


def test_torch_func_takes_the_twin() -> None:
    query, points = (x.detach() for x in pairs())

    def f(q: Tensor) -> Tensor:
        return knn(q, points, 3).distance

    jacobian = torch.func.jacrev(f)(query)
    assert torch.allclose(torch.func.jacfwd(f)(query), jacobian, atol=1e-14)
    (want,) = torch.autograd.functional.jacobian(lambda q: knn(q, points, 3, backend="warp").distance, (query,))
    assert torch.allclose(jacobian, want, atol=1e-14) and want.abs().max() > 0.1
    many = torch.stack([query, query + 0.3, query * 2])
    index, distance = torch.func.vmap(lambda q: tuple(knn(q, points, 3)))(many)
    for i, q in enumerate(many):
        assert torch.equal(index[i], knn(q, points, 3).index)
        assert torch.allclose(distance[i], knn(q, points, 3).distance, rtol=1e-15)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("k", [1, 3])
def test_compile_changes_nothing(k: int) -> None:
    def f(q: Tensor, p: Tensor) -> Tensor:
        found = knn(q * 2, p, k)
        return (found.distance * (1 + found.index)).sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    query, points = pairs()
    assert torch.equal(compiled(query.detach(), points.detach()), f(query.detach(), points.detach()))
    assert torch.equal(compiled(query, points), f(query, points))
    grads = [torch.autograd.grad(g(query, points), (query, points)) for g in (compiled, f)]
    assert all(map(torch.equal, *grads))


@pytest.mark.usefixtures("unchecked")
def test_opcheck() -> None:
    from geom.points.tree import _build, _knn

    points, offsets = random(30, 3), torch.tensor([0, 12, 30])
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(_build, (points, offsets), test_utils=tests)
    torch.library.opcheck(_knn, (points, offsets, *_build(points, offsets), 3, float("inf")), test_utils=tests)


# --- errors ----------------------------------------------------------------------------------------------------------

X = torch.rand(6, 3)
MESH = Mesh(X, torch.tensor([[0, 1, 2]]))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "integers": ({"query": X.long()}, "query: expected a float32 or float64 tensor .N, 3., got a int64 tensor"),
    "half": ({"points": X.half()}, "points: expected a float32 or float64 tensor"),
    "shape": ({"query": X[None]}, r"query: .* got a float32 tensor of shape \(1, 6, 3\)"),
    "two_columns": ({"points": X[:, :2]}, r"points: .* shape \(6, 2\)"),
    "nan": ({"points": X.clone().fill_diagonal_(float("nan"))}, "points: expected finite .* 3 of 6"),
    "inf": ({"query": X / 0}, "query: expected finite coordinates"),
    "mesh": ({"points": MESH}, "points: expected Points or a tensor .N, 3., got a Mesh"),
    "numpy": ({"query": X.numpy()}, "query: expected Points or a tensor .N, 3., got a ndarray"),
    "dtypes": ({"query": X.double()}, "query and points: expected one dtype and device"),
    "backend": ({"backend": "cuda"}, "backend: expected one of"),
    "clouds": ({"offsets": torch.tensor([0, 2, 6])}, "query: expected 2 clouds as in points, got 1"),
    "offsets_end": ({"offsets": torch.tensor([0, 7])}, "offsets: expected to rise from 0 to 6"),
    "offsets_fall": ({"query_offsets": torch.tensor([0, 4, 2, 6])}, "offsets: expected to rise"),
    "offsets_dtype": ({"offsets": torch.tensor([0, 6]).int()}, "offsets: expected an int64 tensor"),
    "offsets_twice": ({"points": Points(X), "offsets": torch.tensor([0, 6])}, "points: expected Points, which bring"),
}
ONLY_KNN: dict[str, tuple[dict[str, Any], str]] = {
    "k": ({"k": 0}, "k: expected an integer of at least 1, got 0"),
    "k_float": ({"k": 2.0}, "k: expected an integer"),
    "max_distance": ({"max_distance": 0.0}, "max_distance: expected a finite number above 0"),
    "max_distance_nan": ({"max_distance": float("nan")}, "max_distance: expected a finite number above 0"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", [*WRONG, *ONLY_KNN])
def test_wrong_input_is_a_shape_error(case: str) -> None:
    change, message = {**WRONG, **ONLY_KNN}[case]
    with pytest.raises(ShapeError, match=message):
        knn(**{"query": X, "points": X, "k": 2, **change})
    if case in WRONG:
        with pytest.raises(ShapeError, match=message):
            radius_search(**{"query": X, "points": X, "radius": 0.5, **change})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("radius", [0.0, -1.0, float("inf"), "far"])
def test_a_wrong_radius_is_a_shape_error(radius: Any) -> None:
    with pytest.raises(ShapeError, match="radius: expected a finite number above 0"):
        radius_search(X, X, radius)
