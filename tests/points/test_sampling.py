"""Farthest points: the brute force's indices, ties included, on random and on degenerate clouds, in every batch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geom.errors import ShapeError
from geom.points import Points, farthest_point_sample

BACKENDS = ("warp", "torch")
both = pytest.mark.parametrize("backend", BACKENDS)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_hand(points: Tensor, count: int, start: int = 0) -> list[int]:
    """The definition, in numpy."""
    x = points.numpy()
    nearest, found = np.full(len(x), np.inf, x.dtype), []
    for _ in range(count):
        found.append(start)
        square = (x - x[start]) ** 2
        nearest = np.minimum(nearest, (square[:, 0] + square[:, 1]) + square[:, 2])
        start = int(nearest.argmax())
    return found


def shell(dtype: torch.dtype) -> Tensor:
    x = random(3000, 3) - 0.5
    return (x / x.square().sum(-1, keepdim=True).sqrt()).to(dtype)


SCENES: dict[str, Any] = {
    "random": lambda dtype: random(5000, 3, dtype=dtype),
    "shell": shell,
    "small": lambda dtype: random(300, 3, dtype=dtype),
    "more_than_a_group": lambda dtype: random(9000, 3, dtype=dtype) ** 3,
    "lattice": lambda dtype: torch.cartesian_prod(*[torch.arange(14, dtype=dtype)] * 3)[torch.randperm(14**3)],
    "duplicates": lambda dtype: random(50, 3, dtype=dtype).repeat(60, 1),
    "one_place": lambda dtype: torch.ones(2500, 3, dtype=dtype),
    "line": lambda dtype: torch.linspace(-1, 1, 2100, dtype=dtype)[:, None] * torch.tensor([3, -1, 2], dtype=dtype),
    "far_away": lambda dtype: random(2500, 3, dtype=dtype) + 1e4,
    "mixed_scales": lambda dtype: torch.cat([random(900, 3, dtype=dtype) * s for s in (1e-6, 1, 1e6)]),
    "one": lambda dtype: random(1, 3, dtype=dtype),
}


@both
@pytest.mark.parametrize("scene", SCENES)
def test_the_brute_force_s_indices(scene: str, backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    points = SCENES[scene](dtype)
    count = min(len(points), 150)
    found = farthest_point_sample(points, count, backend=backend)
    assert found.dtype == torch.int64 and found.tolist() == by_hand(points, count)


def test_all_points_are_a_permutation(dtype: torch.dtype) -> None:
    points = random(2500, 3, dtype=dtype)
    assert sorted(farthest_point_sample(points, 2500).tolist()) == list(range(2500))


@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_ragged_batches_with_ties(data: st.DataObject, dtype: torch.dtype) -> None:
    """On a small lattice most distances are equal; each cloud comes out as alone, from both forms."""
    sizes = data.draw(st.lists(st.one_of(st.integers(0, 90), st.integers(2000, 2300)), min_size=1, max_size=4))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    span = data.draw(st.sampled_from([1, 4, 60]))
    counts = [data.draw(st.integers(0, min(n, 40))) for n in sizes]
    points = torch.randint(0, span + 1, (sum(sizes), 3), generator=draw).to(dtype)
    edges = [0, *np.cumsum(sizes).tolist()]
    want = [a + i for a, b, m in zip(edges[:-1], edges[1:], counts, strict=True) for i in by_hand(points[a:b], m)]
    for backend in BACKENDS:
        found = farthest_point_sample(
            Points(points, offsets=torch.tensor(edges)), torch.tensor(counts), backend=backend
        )
        assert found.tolist() == want


@both
def test_one_count_for_all_clouds(backend: str) -> None:
    points, offsets = random(50, 3), torch.tensor([0, 20, 50])
    found = farthest_point_sample(points, 7, offsets=offsets, backend=backend)
    want = by_hand(points[:20], 7) + [20 + i for i in by_hand(points[20:], 7)]
    assert found.tolist() == want
    assert farthest_point_sample(points, 0, backend=backend).shape == (0,)
    assert farthest_point_sample(points[:0], 3, offsets=torch.tensor([0]), backend=backend).shape == (0,)


@both
def test_random_starts(backend: str) -> None:
    points, offsets = random(60, 3), torch.tensor([0, 20, 60])
    starts = set()
    for seed in range(40):
        options = {"offsets": offsets, "random_start": True, "backend": backend}
        first = farthest_point_sample(points, 5, generator=torch.Generator().manual_seed(seed), **options)
        again = farthest_point_sample(points, 5, generator=torch.Generator().manual_seed(seed), **options)
        assert torch.equal(first, again)
        a, b = int(first[0]), int(first[5])
        assert first.tolist() == by_hand(points[:20], 5, a) + [20 + i for i in by_hand(points[20:], 5, b - 20)]
        starts |= {a, b}
    assert len(starts) > 25
    torch.manual_seed(3)
    first = farthest_point_sample(points, 2, random_start=True)
    torch.manual_seed(3)
    assert torch.equal(first, farthest_point_sample(points, 2, random_start=True))


def test_same_bits_for_any_threads_and_layout(threads: Any) -> None:
    points, offsets = random(6000, 3), torch.tensor([0, 100, 3000, 3000, 6000])
    counts = torch.tensor([50, 200, 0, 300])
    threads(1)
    one = farthest_point_sample(points, counts, offsets=offsets)
    threads(3)
    assert torch.equal(farthest_point_sample(points, counts, offsets=offsets), one)
    assert torch.equal(farthest_point_sample(points.T.contiguous().T, counts, offsets=offsets), one)


def test_gradients_flow_through_the_points_chosen() -> None:
    points = random(30, 3).requires_grad_()
    chosen = farthest_point_sample(points, 6)
    (grad,) = torch.autograd.grad(points[chosen].sum(), points)
    assert torch.equal(grad.sum(-1).nonzero()[:, 0], chosen.sort().values)


def test_vmap_takes_the_twin() -> None:
    many = random(4, 30, 3)
    found = torch.func.vmap(lambda x: farthest_point_sample(x, 6))(many)
    assert found.tolist() == [by_hand(x, 6) for x in many]


@pytest.mark.usefixtures("unchecked")
def test_compile_and_opcheck() -> None:
    def f(x: Tensor) -> Tensor:
        return farthest_point_sample(2 * x, 9)

    points = random(3000, 3)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(points), f(points))
    from geom.points.sampling import _farthest

    rows = torch.tensor([0, 4, 9])
    args = (points, torch.tensor([0, 1200, 3000]), torch.tensor([0, 1200]), rows, 9)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(_farthest, args, test_utils=tests)


X = torch.rand(6, 3)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "points": ({"points": X[:, :2]}, r"points: .* got a float32 tensor of shape \(6, 2\)"),
    "nan": ({"points": X / 0}, "points: expected finite"),
    "float": ({"count": 2.0}, "count: expected an integer or an int64 tensor .1,., got 2.0"),
    "bool": ({"count": True}, "count: expected an integer"),
    "too_many": ({"count": 7}, r"count: expected 0 to \[6\] samples of each cloud, got \[7\]"),
    "negative": ({"count": -1}, r"count: expected 0 to \[6\] samples"),
    "too_many_of_one": ({"count": 4, "offsets": torch.tensor([0, 3, 6])}, r"count: expected 0 to \[3, 3\]"),
    "counts_shape": ({"count": torch.tensor([1, 2])}, r"count: expected .* \(1,\), got \(2,\)"),
    "counts_dtype": ({"count": torch.tensor([1.0])}, "count: expected an integer or an int64"),
    "backend": ({"backend": "cuda"}, "backend: expected one of"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_shape_error(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        farthest_point_sample(**{"points": X, "count": 2, **change})
