"""Scatter reductions: kernels against the twin and plain loops, gradients of both orders, ties and empty rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.nn import scatter, scatter_softmax
from geom.testing import assert_gradients

REDUCTIONS = ("sum", "mean", "max", "min")
EPS = {torch.float32: 2e-7, torch.float64: 4e-16}  # what the docstring guarantees
both = pytest.mark.parametrize("backend", ["warp", "torch"])
each = pytest.mark.parametrize("reduce", REDUCTIONS)


def rows(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def indices(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))


@both
@each
@pytest.mark.parametrize("shape", [(), (1,), (3,), (17,), (4, 5)])
def test_a_loop_gives_the_same(reduce: str, backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values, index, size = rows(400, *shape, dtype=dtype), indices(400, 60), 70
    got = scatter(values, index, size, reduce=reduce, backend=backend)
    assert got.dtype == dtype and got.shape == (size, *shape)
    plain: Any = {"sum": lambda x: x.sum(0), "mean": lambda x: x.mean(0), "max": lambda x: x.amax(0)}
    plain["min"] = lambda x: x.amin(0)
    wide = values.double()
    for i in range(size):
        mine = wide[index == i]
        want = plain[reduce](mine) if len(mine) else torch.zeros(shape, dtype=torch.float64)
        scale = wide[index == i].abs().sum(0) if len(mine) else torch.zeros(shape)
        assert ((got[i].double() - want).abs() <= EPS[dtype] * scale).all()


@each
def test_warp_is_the_twin_bit_for_bit(reduce: str, dtype: torch.dtype) -> None:
    values, index = rows(3000, 20, dtype=dtype).round(decimals=1), indices(3000, 500)
    a, b = (scatter(values, index, 510, reduce=reduce, backend=name) for name in ("warp", "torch"))
    assert torch.equal(a, b)


@both
@each
def test_gradients(reduce: str, backend: str) -> None:
    index = torch.tensor([3, 0, 3, 3, 1, 0])

    def f(x: Tensor) -> Tensor:
        return scatter(x, index, 5, reduce=reduce, backend=backend).square()

    assert_gradients(f, rows(6, 2), forward=backend == "torch", vmap=backend == "torch")


@both
def test_gradients_of_softmax(backend: str) -> None:
    index = torch.tensor([3, 0, 3, 3, 1, 0])
    transforms = backend == "torch"
    f: Callable[[Tensor], Tensor] = lambda x: scatter_softmax(x, index, 5, backend=backend)  # noqa: E731
    assert_gradients(f, rows(6, 2), forward=transforms, vmap=transforms)


def test_auto_is_the_twin_under_transforms() -> None:
    index = torch.tensor([1, 0, 1])
    jacobian = torch.func.jacrev(lambda x: scatter(x, index, 2, reduce="max"))(torch.tensor([3.0, 7, 4]))
    assert jacobian.tolist() == [[0, 1, 0], [0, 0, 1]]


@both
@pytest.mark.parametrize("reduce", ["max", "min"])
def test_the_first_of_equals_gets_the_gradient(reduce: str, backend: str) -> None:
    x = torch.tensor([[2.0], [5.0], [2.0], [2.0]], requires_grad=True)
    index = torch.tensor([1, 0, 1, 1])
    scatter(x, index, 2, reduce=reduce, backend=backend).sum().backward()
    assert x.grad is not None and x.grad[:, 0].tolist() == [1, 1, 0, 0]


@both
@each
def test_infinities_are_values(reduce: str, backend: str) -> None:
    x = torch.tensor([float("inf"), -float("inf")])
    got = scatter(x, torch.tensor([0, 2]), 3, reduce=reduce, backend=backend)
    assert got.tolist() == [float("inf"), 0, -float("inf")]


@both
@each
def test_nothing_in_zeros_out(reduce: str, backend: str, dtype: torch.dtype) -> None:
    x = torch.zeros(0, 4, dtype=dtype, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    got = scatter(x, none, 3, reduce=reduce, backend=backend)
    assert torch.equal(got, torch.zeros(3, 4, dtype=dtype))
    got.sum().backward()
    assert scatter(x, none, 0, reduce=reduce, backend=backend).shape == (0, 4)
    assert scatter_softmax(x, none, 3, backend=backend).shape == (0, 4)


@both
def test_softmax_sums_to_one_and_stays_finite(backend: str, dtype: torch.dtype) -> None:
    index = indices(300, 40)
    x = (rows(300, 3) * 1e4).to(dtype).requires_grad_()
    y = scatter_softmax(x, index, 40, backend=backend)
    total = scatter(y, index, 40, backend=backend)[index.unique()]
    assert (total - 1).abs().max() <= 3 * EPS[dtype]
    y.square().sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    small = rows(300, 3, dtype=dtype)
    for i in range(40):
        want = torch.softmax(small[index == i].double(), 0)
        got = scatter_softmax(small, index, 40, backend=backend)[index == i].double()
        assert ((got - want).abs() <= {torch.float32: 3e-7, torch.float64: 4e-16}[dtype]).all()


@each
def test_threads_do_not_change_a_bit(reduce: str, threads: Callable[[int], None], dtype: torch.dtype) -> None:
    values, index, found = rows(60_000, 5, dtype=dtype), indices(60_000, 30_000), []
    for count in (1, 2):
        threads(count)
        x = values.clone().requires_grad_()
        y = scatter(x, index, 30_000, reduce=reduce)
        soft = scatter_softmax(x, index, 30_000)
        gradients = (torch.autograd.grad(z.square().sum(), x)[0] for z in (y, soft))
        found.append((y.detach(), soft.detach(), *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.usefixtures("unchecked")
@each
def test_compiles(reduce: str) -> None:
    index = indices(50, 9)

    def f(x: Tensor) -> Tensor:
        return scatter(x, index, 9, reduce=reduce)

    torch.compiler.reset()
    x = rows(50, 3).requires_grad_()
    a, b = torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x)
    assert torch.equal(a, b)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (a, b)))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "values": ({"values": torch.ones(2, dtype=torch.int64)}, "values: expected a float tensor"),
    "index_kind": ({"index": torch.tensor([0.0, 1.0])}, r"index: expected an int64 tensor \(2,\), got a float32"),
    "index_length": ({"index": torch.tensor([0])}, r"index: expected an int64 tensor \(2,\)"),
    "index_low": ({"index": torch.tensor([0, -1])}, r"index: expected rows in \[0, 3\), got -1 to 0"),
    "index_high": ({"index": torch.tensor([0, 3])}, r"index: expected rows in \[0, 3\), got 0 to 3"),
    "size": ({"size": -1}, "size: expected an integer of at least 0"),
    "reduce": ({"reduce": "median"}, "reduce: expected one of 'sum', 'mean', 'max', 'min'"),
    "backend": ({"backend": "gpu"}, "backend: expected one of"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_shape_error(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        scatter(**{"values": torch.ones(2), "index": torch.tensor([0, 1]), "size": 3, **change})
