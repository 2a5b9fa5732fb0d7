"""Chamfer, Hausdorff and earth mover's distances: against scipy, in batches, with gradients, at coincident points."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial import cKDTree
from scipy.spatial.distance import directed_hausdorff
from torch import Tensor

from geom.errors import ShapeError
from geom.points import Points, chamfer, earth_movers, hausdorff
from geom.testing import assert_equivariant, assert_gradients

both = pytest.mark.parametrize("backend", ("warp", "torch"))
CHAMFER = {torch.float32: 1e-6, torch.float64: 1e-15}  # what the docstrings guarantee
HAUSDORFF = {torch.float32: 3e-7, torch.float64: 4e-16}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pair(n: int = 40, m: int = 70, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return random(n, 3, dtype=dtype), random(m, 3, dtype=dtype, seed=1) + 0.1


def edges_of(edges: tuple[list[int], list[int]]) -> tuple[list[int], ...]:
    return tuple(part for side in edges for part in (side[:-1], side[1:]))


# --- Chamfer and Hausdorff -------------------------------------------------------------------------------------------


@both
def test_against_scipy(backend: str, dtype: torch.dtype) -> None:
    x, y = pair(500, 800, dtype)
    a, b = x.double().numpy(), y.double().numpy()
    want = (cKDTree(b).query(a)[0] ** 2).mean() + (cKDTree(a).query(b)[0] ** 2).mean()
    found = chamfer(x, y, backend=backend)
    assert found.dtype == dtype and found.shape == () and abs(float(found) / want - 1) < CHAMFER[dtype]
    want = max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0])
    found = hausdorff(x, y, backend=backend)
    assert found.dtype == dtype and found.shape == () and abs(float(found) / want - 1) < HAUSDORFF[dtype]


@both
@pytest.mark.parametrize("metric", [chamfer, hausdorff])
def test_ragged_batches(metric: Callable[..., Tensor], backend: str, dtype: torch.dtype) -> None:
    x, y = pair(dtype=dtype)
    edges = [0, 5, 6, 40], [0, 1, 30, 70]
    found = metric(Points(x, offsets=torch.tensor(edges[0])), y, y_offsets=torch.tensor(edges[1]), backend=backend)
    alone = [metric(x[a:b], y[c:d]) for a, b, c, d in zip(*edges_of(edges), strict=True)]
    assert found.shape == (3,) and torch.allclose(found, torch.stack(alone), rtol=1e-6)
    none = torch.tensor([0])
    assert metric(x[:0], y[:0], x_offsets=none, y_offsets=none, backend=backend).shape == (0,)


@pytest.mark.parametrize("metric", [chamfer, hausdorff])
def test_properties(metric: Callable[..., Tensor]) -> None:
    x, y = pair()
    assert torch.equal(metric(x, x), torch.zeros((), dtype=torch.float64))
    assert torch.allclose(metric(x, y), metric(y, x), rtol=1e-15) and metric(x, y) > 0.01
    assert_equivariant(metric, x, y, act_in="point", act_out="invariant", tolerance=1e-12)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("metric", [chamfer, hausdorff])
def test_gradients(metric: Callable[..., Tensor]) -> None:
    x, y = pair(6, 5)
    assert_gradients(metric, x, y, compile=True)
    if metric is chamfer:  # smooth where points coincide, if the nearest are unique
        assert_gradients(metric, x, torch.cat([x[:3], y]))


@pytest.mark.parametrize("metric", [chamfer, hausdorff])
def test_no_gradient_between_coincident_points(metric: Callable[..., Tensor], dtype: torch.dtype) -> None:
    x = random(5, 3, dtype=dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    grads = torch.autograd.grad(metric(x, y), (x, y), create_graph=True)
    assert not any(bool(g.any()) for g in grads)
    second = torch.autograd.grad(sum(g.square().sum() for g in grads), (x, y), allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in second)


def test_the_gradient_of_hausdorff_is_the_worst_pair_s() -> None:
    x, y = pair()
    far = torch.cat([x, torch.tensor([[5.0, 0, 0]], dtype=x.dtype)]).requires_grad_()
    (grad,) = torch.autograd.grad(hausdorff(far, y), far)
    assert grad.square().sum(-1).nonzero().tolist() == [[40]] and abs(float(grad[40].norm()) - 1) < 1e-14


# --- earth mover's ---------------------------------------------------------------------------------------------------


def program(x: Tensor, y: Tensor, *, squared: bool) -> float:
    """The linear program itself."""
    gap = np.linalg.norm(x.double().numpy()[:, None] - y.double().numpy(), axis=-1)
    cost = gap**2 if squared else gap
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    marginals = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return linprog(cost.ravel(), A_eq=np.concatenate(rows), b_eq=marginals).fun


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("n", "m"), [(12, 12), (8, 12), (7, 5), (1, 9)])
def test_exact_is_the_linear_program(n: int, m: int, squared: bool, dtype: torch.dtype) -> None:
    x, y = pair(n, m, dtype)
    found = earth_movers(x, y, method="exact", squared=squared)
    assert found.distance.dtype == dtype and float(found.marginal_error) == 0
    assert abs(float(found.distance) / program(x, y, squared=squared) - 1) < {torch.float32: 1e-6}.get(dtype, 1e-9)


@pytest.mark.parametrize("squared", [False, True])
def test_sinkhorn_is_as_near_as_it_says(squared: bool, dtype: torch.dtype) -> None:
    x, y = pair(60, 40, dtype)
    exact = float(earth_movers(x, y, method="exact", squared=squared).distance)
    top = float(torch.cdist(x, y).max()) ** (2 if squared else 1)
    before = float("inf")
    for epsilon, iterations in ((0.1, 50), (0.01, 200), (0.001, 2000)):
        found = earth_movers(x, y, squared=squared, epsilon=epsilon, iterations=iterations)
        above, error = float(found.distance) - exact, float(found.marginal_error)
        assert -1e-6 < above <= top * (epsilon * np.log(40) + 4 * error) and above < before
        assert error < 1e-3
        before = above
    assert before < 0.01 * exact
    few = earth_movers(x, y, squared=squared, epsilon=0.001, iterations=3)  # far from done, and says so
    assert float(few.marginal_error) > 0.05 and float(few.distance) >= exact - 1e-6


@pytest.mark.parametrize("method", ["sinkhorn", "exact"])
def test_earth_movers_in_ragged_batches(method: str, dtype: torch.dtype) -> None:
    x, y = pair(15, 17, dtype)
    edges = [0, 5, 6, 15], [0, 1, 8, 17]
    found = earth_movers(x, y, method=method, x_offsets=torch.tensor(edges[0]), y_offsets=torch.tensor(edges[1]))
    for i in range(3):
        (a, b), (c, d) = edges[0][i : i + 2], edges[1][i : i + 2]
        alone = earth_movers(x[a:b], y[c:d], method=method)
        assert torch.equal(found.distance[i], alone.distance)
        assert torch.equal(found.marginal_error[i], alone.marginal_error)
    none = torch.tensor([0])
    assert earth_movers(x[:0], y[:0], method=method, x_offsets=none, y_offsets=none).distance.shape == (0,)


@pytest.mark.parametrize("method", ["sinkhorn", "exact"])
def test_earth_movers_of_coincident_clouds(method: str, dtype: torch.dtype) -> None:
    x = random(6, 3, dtype=dtype).requires_grad_()
    one = torch.ones(4, 3, dtype=dtype)
    assert float(earth_movers(one, one[:3], method=method).distance) == 0
    found = earth_movers(x, x.detach(), method=method, epsilon=0.001)
    (grad,) = torch.autograd.grad(found.distance, x)
    assert float(found.distance.detach()) < 1e-6 and bool(torch.isfinite(grad).all())


@pytest.mark.usefixtures("unchecked")
def test_gradients_of_earth_movers() -> None:
    """Exact: by finite differences. Sinkhorn: with its plan held, that of the exact one as epsilon falls."""
    x, y = pair(5, 5)
    assert_gradients(lambda a, b: earth_movers(a, b, method="exact").distance, x, y, forward=False, vmap=False)
    x, y = (z.requires_grad_() for z in pair(10, 10))
    want = torch.autograd.grad(earth_movers(x, y, method="exact", squared=True).distance, (x, y))
    found = torch.autograd.grad(earth_movers(x, y, squared=True, epsilon=2e-4, iterations=1000).distance, (x, y))
    for a, b in zip(want, found, strict=True):
        assert (a - b).abs().max() < 1e-5 * a.abs().max()


@pytest.mark.usefixtures("unchecked")
def test_sinkhorn_under_transforms() -> None:
    x, y = pair(6, 5)

    def f(a: Tensor) -> Tensor:
        return earth_movers(a, y, iterations=10).distance

    many = torch.stack([x, 2 * x, x + 1])
    assert torch.allclose(torch.func.vmap(f)(many), torch.stack([f(z) for z in many]), rtol=1e-13)
    z = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(f(z), z)
    assert torch.allclose(torch.func.jacrev(f)(x), want, rtol=1e-13)
    assert torch.allclose(torch.func.jacfwd(f)(x), want, rtol=1e-13) and want.abs().max() > 0.01
    assert torch.allclose(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x), rtol=1e-13)


def test_earth_movers_moves_with_the_points() -> None:
    x, y = pair(10, 12)
    assert_equivariant(
        lambda a, b: earth_movers(a, b).distance, x, y, act_in="point", act_out="invariant", tolerance=1e-10
    )


# --- errors ----------------------------------------------------------------------------------------------------------

X = torch.rand(6, 3)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "x": ({"x": X[0]}, r"x: .* got a float32 tensor of shape \(3,\)"),
    "y_empty": ({"y": X[:0]}, "y: expected at least one point in each cloud, got none"),
    "dtypes": ({"y": X.double()}, "x and y: expected one dtype and device"),
    "one_batch": ({"x_offsets": torch.tensor([0, 6])}, "x and y: expected both with offsets .* got 1 clouds and none"),
    "clouds": (
        {"x_offsets": torch.tensor([0, 6]), "y_offsets": torch.tensor([0, 2, 6])},
        "x and y: expected both with offsets .* got 1 clouds and 2 clouds",
    ),
    "empty_cloud": (
        {"x_offsets": torch.tensor([0, 6, 6]), "y_offsets": torch.tensor([0, 2, 6])},
        "x: expected at least one point in each cloud, got none",
    ),
}
ONLY_EARTH_MOVERS: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "fast"}, "method: expected one of 'sinkhorn', 'exact', got str 'fast'"),
    "epsilon": ({"epsilon": 0.0}, "epsilon: expected a finite number above 0"),
    "iterations": ({"iterations": 0}, "iterations: expected an integer of at least 1, got 0"),
    "large": (
        {"x": torch.rand(100, 3), "y": torch.rand(99, 3), "method": "exact"},
        'expected at most 4096 pairs for "exact", got 9900, the common multiple of 100 and 99',
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", [*WRONG, *ONLY_EARTH_MOVERS])
def test_wrong_input_is_a_shape_error(case: str) -> None:
    change, message = {**WRONG, **ONLY_EARTH_MOVERS}[case]
    with pytest.raises(ShapeError, match=message):
        earth_movers(**{"x": X, "y": X, **change})
    if case in WRONG:
        for metric in (chamfer, hausdorff):
            with pytest.raises(ShapeError, match=message):
                metric(**{"x": X, "y": X, **change})
