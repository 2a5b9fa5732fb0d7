"""Robust kernels: the published formulas, and the weight as the derivative of the cost."""

import math
from typing import Any

import pytest
import torch

from geom.errors import ShapeError
from geom.optim import Robust
from geom.optim.robust import KERNELS

each_kernel = pytest.mark.parametrize("kind", KERNELS)
SQUARES = [0.0, 1e-12, 0.3, 0.999, 1.001, 4.0, 9.0, 1e6]


@each_kernel
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_weight_is_the_slope_of_the_cost(kind: str, scale: float, dtype: torch.dtype) -> None:
    square = torch.tensor(SQUARES, dtype=dtype, requires_grad=True)
    kernel = Robust(kind, scale)
    (slope,) = torch.autograd.grad(kernel.cost(square).sum(), square)
    weight = kernel.weight(square.detach())
    assert weight.dtype == dtype and torch.allclose(weight, slope, rtol=8 * torch.finfo(dtype).eps)
    assert weight[0] == 1 and (weight > 0).all() and (weight <= 1).all() and (weight.diff() <= 0).all()


@pytest.mark.parametrize(
    ("kind", "rho"),
    [
        ("huber", lambda r: r**2 if r <= 1 else 2 * r - 1),
        ("cauchy", lambda r: math.log(1 + r**2)),
        ("gm", lambda r: r**2 / (1 + r**2)),
    ],
)
def test_costs(kind: str, rho: Any, dtype: torch.dtype) -> None:
    for scale in (1.0, 2.5):
        for r in (0.0, 0.2, 1.0, 3.0, 40.0):
            got = Robust(kind, scale).cost(torch.tensor(r**2, dtype=dtype))
            assert float(got) == pytest.approx(scale**2 * rho(r / scale), rel=1e-6, abs=0)


@each_kernel
def test_gradcheck(kind: str) -> None:
    square = torch.tensor([0.0, 0.2, 0.9, 1.3, 50.0], dtype=torch.float64, requires_grad=True)
    kernel = Robust(kind, 1.0)
    assert torch.autograd.gradcheck(kernel.cost, square)
    assert torch.autograd.gradcheck(kernel.weight, square)
    residual = torch.tensor([0.0, 0.3, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: kernel.cost(r.square()), residual)


@each_kernel
def test_torch_func_and_compile(kind: str) -> None:
    square, kernel = torch.tensor(SQUARES, dtype=torch.float64), Robust(kind, 0.7)
    assert torch.equal(torch.func.vmap(kernel.cost)(square), kernel.cost(square))
    assert torch.allclose(torch.func.jacrev(kernel.cost)(square).diagonal(), kernel.weight(square))


@pytest.mark.usefixtures("unchecked")
@each_kernel
def test_compile(kind: str) -> None:
    square, kernel = torch.tensor(SQUARES, dtype=torch.float64), Robust(kind, 0.7)
    compiled = torch.compile(lambda s: kernel.cost(s) * kernel.weight(s), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(square), kernel.cost(square) * kernel.weight(square))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tukey",), "robust: expected one of 'huber', 'cauchy', 'gm', got str 'tukey'"),
        (("huber", 0.0), "scale: expected a finite number above 0"),
        (("huber", -1.0), "scale: expected a finite number above 0"),
        (("huber", math.nan), "scale: expected a finite number above 0"),
    ],
)
def test_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Robust(*arguments)
