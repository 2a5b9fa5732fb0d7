"""Kernels of the products against their torch twins: all slots, derivatives, threads, torch's rules."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from geom.clifford.algebra import EGA, PGA, Algebra
from geom.clifford.products import multiply, multiply_by_torch, table
from geom.errors import ShapeError
from geom.kernels.blades import PRODUCTS, terms
from geom.testing import assert_gradients
from tests.clifford.drawn import draw

SMALL = Algebra(1, 1, 1)  # with every kind of vector
ALGEBRAS = [PGA, EGA, SMALL, Algebra(2)]
names = pytest.mark.parametrize("algebra", ALGEBRAS, ids=lambda a: f"G{a.p}{a.q}{a.r}")
EPS = {torch.float32: 1e-6, torch.float64: 2e-15}


def assert_near(got: Tensor, want: Tensor) -> None:
    """Of float64 `want`."""
    assert got.shape == want.shape
    got, want, limit = got.detach().double(), want.detach(), EPS[got.dtype]
    assert float((got - want).abs().max()) <= limit * float(want.abs().max())


@names
@pytest.mark.parametrize("slot", [0, 1, 2])
@pytest.mark.parametrize("product", PRODUCTS)
def test_kernels_are_their_twins(algebra: Algebra, product: str, slot: int, dtype: torch.dtype) -> None:
    for count in (1, 7, 16, 37):  # blocks of 16 and what is left over
        x, y = draw(count, algebra.size, dtype=dtype), draw(count, algebra.size, seed=1, dtype=dtype)
        got = multiply(algebra.signature, product, x, y, slot)
        assert got.dtype == dtype
        assert_near(got, multiply_by_torch(algebra.signature, product, x.double(), y.double(), slot))


@names
def test_the_slots_are_the_derivatives_of_one_form(algebra: Algebra) -> None:
    a, b, c = (draw(algebra.size, seed=seed) for seed in range(3))
    for product in PRODUCTS:
        form = a @ multiply(algebra.signature, product, b, c)
        torch.testing.assert_close(b @ multiply(algebra.signature, product, a, c, 1), form)
        torch.testing.assert_close(c @ multiply(algebra.signature, product, a, b, 2), form)
        dense = table(algebra.signature, product)
        assert torch.equal(table(algebra.signature, product, 1), dense.permute(1, 0, 2))
        assert torch.equal(table(algebra.signature, product, 2), dense.permute(2, 0, 1))


def test_each_pair_of_indices_has_one_term() -> None:
    for product in PRODUCTS:
        every = terms(PGA.signature, product)
        for pair in ((0, 1), (0, 2), (1, 2)):
            assert len({tuple(term[n] for n in pair) for term in every}) == len(every)


def test_memory_of_any_layout(dtype: torch.dtype) -> None:
    x, y = draw(16, 5, 3, dtype=dtype).movedim(0, -1), draw(3, 32, dtype=dtype, seed=1)[:, ::2]
    got = multiply(PGA.signature, "geometric", x, y)
    assert got.shape == (5, 3, 16) and got.is_contiguous()
    assert torch.equal(got, multiply(PGA.signature, "geometric", x.contiguous(), y.expand(5, 3, 16).contiguous()))
    assert multiply(PGA.signature, "join", x[:0], y).shape == (0, 3, 16)


def test_the_same_bits_with_any_number_of_threads(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    x, y = draw(70001, 16, dtype=dtype), draw(70001, 16, seed=1, dtype=dtype)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(multiply(PGA.signature, "geometric", x, y))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    alone = multiply(PGA.signature, "geometric", x[33:34], y[33:34])
    assert torch.equal(alone[0], found[0][33])  # and wherever an element stands


@names
@pytest.mark.parametrize("product", PRODUCTS)
def test_derivatives(algebra: Algebra, product: str) -> None:
    x, y = draw(2, algebra.size), draw(2, algebra.size, seed=1)
    assert_gradients(lambda x, y: multiply(algebra.signature, product, x, y), x, y)
    half = [z.clone().requires_grad_(n == 0) for n, z in enumerate((x, y))]  # one of two wants a gradient
    for a, b in (half, half[::-1]):
        assert torch.autograd.gradcheck(lambda a, b: multiply(algebra.signature, product, a, b), (a, b))


def test_derivatives_of_derivatives_run_the_kernels(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    x, y = draw(3, 16, dtype=dtype).requires_grad_(), draw(3, 16, seed=1, dtype=dtype).requires_grad_()
    weight, again = draw(3, 16, seed=2, dtype=dtype), draw(3, 16, seed=3, dtype=dtype)

    def second(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad((function(x, y) * weight).sum(), x, create_graph=True)
        return torch.autograd.grad((first * again).sum(), y)

    want = second(lambda x, y: multiply_by_torch(PGA.signature, "geometric", x, y))
    monkeypatch.setattr("geom.clifford.products.multiply_by_torch", None)
    torch.testing.assert_close(second(lambda x, y: multiply(PGA.signature, "geometric", x, y)), want)


@pytest.mark.usefixtures("unchecked")
def test_under_compile_the_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(2, 3, 16), draw(3, 16, seed=1)
    assert_gradients(lambda x, y: multiply(PGA.signature, "geometric", x, y), x, y, order=0, compile=True)
    monkeypatch.setattr("geom.clifford.products.multiply_by_torch", None)
    torch.compiler.reset()
    compiled = torch.compile(PGA.geometric_product, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, y), PGA.geometric_product(x, y))


def test_the_operator_keeps_torchs_rules() -> None:
    x, y = draw(3, 16).requires_grad_(), draw(3, 16, seed=1).requires_grad_()
    for slot in (0, 1, 2):
        torch.library.opcheck(torch.ops.geom.clifford_product.default, (x, y, slot, [3, 0, 1], "geometric"))


def test_other_dtypes_run_the_twin() -> None:
    x, y = draw(3, 16), draw(3, 16, seed=1)
    got = multiply(PGA.signature, "geometric", x.bfloat16(), y.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), multiply(PGA.signature, "geometric", x, y), atol=0.1, rtol=0)


def test_large_algebras_run_the_twin() -> None:
    large = Algebra(4, 2)
    x, y = draw(2, 64).requires_grad_(), draw(2, 64, seed=1).requires_grad_()
    got = torch.autograd.grad(large.geometric_product(x, y).square().sum(), (x, y))
    want = torch.autograd.grad(multiply_by_torch(large.signature, "geometric", x, y).square().sum(), (x, y))
    torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    x = draw(3, 16)
    for wrong in ((x, x[:, :8]), (x, x.float()), (x, draw(4, 16)), (x, draw(3, 17))):
        with pytest.raises(ShapeError, match="expected"):
            multiply(PGA.signature, "geometric", *wrong)


def test_only_the_operands_are_saved() -> None:
    kept: list[Tensor] = []
    x, y = draw(3, 16).requires_grad_(), draw(3, 16, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        PGA.geometric_product(x, y)
    assert [z.data_ptr() for z in kept] == [x.data_ptr(), y.data_ptr()]
