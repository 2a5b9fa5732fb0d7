"""The layout of networks: products of planes against their twin, whole or parts of wider tensors, and turning."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from geom.clifford.algebra import PGA, Algebra
from geom.clifford.planes import from_planes, to_planes
from geom.clifford.products import multiply_planes, multiply_planes_by_torch
from geom.errors import ShapeError
from geom.testing import assert_gradients
from tests.clifford.drawn import draw

SMALL = Algebra(1, 1, 1)
both = pytest.mark.parametrize("products", [("geometric",), ("geometric", "join")], ids="_".join)
EPS = {torch.float32: 1e-6, torch.float64: 2e-15}


def assert_near(got: Tensor, want: Tensor) -> None:
    """Of float64 `want`."""
    assert got.shape == want.shape
    got, want, limit = got.detach().double(), want.detach(), EPS[got.dtype]
    assert float((got - want).abs().max()) <= limit * float(want.abs().max())


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_planes_and_back(size: int, dtype: torch.dtype) -> None:
    for n, c in ((1, 1), (3, 5), (16, 2), (0, 3)):
        x = draw(n, c, size, dtype=dtype)
        planes = to_planes(x)
        assert planes.is_contiguous() and torch.equal(planes, x.permute(2, 0, 1))
        assert from_planes(planes).is_contiguous() and torch.equal(from_planes(planes), x)
    x = draw(2, 3, 4, size, dtype=dtype).transpose(0, 1)
    assert torch.equal(to_planes(x), x.movedim(-1, 0)) and torch.equal(from_planes(to_planes(x)), x)
    assert to_planes(x[0, 0]).shape == (size, 4) and from_planes(to_planes(x[:0])).shape == (0, 2, 4, size)
    wide = draw(size, 4, 6, dtype=dtype)[:, :, 1:4]
    assert torch.equal(from_planes(wide), wide.permute(1, 2, 0))


@pytest.mark.usefixtures("unchecked")
def test_derivatives_of_turning() -> None:
    assert_gradients(to_planes, draw(2, 3, 4), compile=True)
    assert_gradients(from_planes, draw(4, 2, 3), compile=True)


@both
@pytest.mark.parametrize("width", [1, 4, 8, 16, 29])
def test_planes_are_their_twin(products: tuple[str, ...], width: int, dtype: torch.dtype) -> None:
    channels = 2 * len(products) * width
    factors, reference = draw(16, 5, channels, dtype=dtype), draw(5, seed=1, dtype=dtype)
    grad = draw(16, 5, channels // 2, seed=2, dtype=dtype)
    low = [factors.requires_grad_(), reference.requires_grad_()]
    high = [z.detach().double().requires_grad_() for z in low]
    got = multiply_planes(*low, products=products)
    want = multiply_planes_by_torch(*high, products, PGA.signature)
    assert got.dtype == dtype and got.is_contiguous()
    assert_near(got, want)
    one = torch.autograd.grad(got, low, grad, materialize_grads=True)
    for a, b in zip(one, torch.autograd.grad(want, high, grad.double(), materialize_grads=True), strict=True):
        assert_near(a, b)


@both
def test_planes_hold_the_products(products: tuple[str, ...]) -> None:
    factors, reference = draw(16, 5, 4 * len(products)), draw(5, seed=1)
    parts = factors.movedim(0, -1).chunk(2 * len(products), 1)
    got = multiply_planes(factors, reference, products=products).movedim(0, -1)
    torch.testing.assert_close(got[:, :2], PGA.geometric_product(parts[0], parts[1]))
    if "join" in products:
        mark = torch.zeros(5, 1, 16, dtype=torch.float64)
        mark[..., PGA.volume] = reference[:, None]
        torch.testing.assert_close(got[:, 2:], PGA.join(parts[2], parts[3], mark))


def test_planes_of_a_wider_tensor(dtype: torch.dtype) -> None:
    wide, reference, grad = draw(16, 6, 40, dtype=dtype), draw(6, 2, dtype=dtype)[:, 1], draw(16, 6, 24, dtype=dtype)
    part = wide[:, 1:, 5:29].requires_grad_()
    got = multiply_planes(part, reference[1:])
    assert torch.equal(got, multiply_planes(part.contiguous(), reference[1:].contiguous()))
    (one,) = torch.autograd.grad(got, part, grad[:, 1:, 3:15])
    dense = part.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    (other,) = torch.autograd.grad(multiply_planes(dense, reference[1:]), dense, grad[:, 1:, 3:15].contiguous())
    assert torch.equal(one, other)
    assert multiply_planes(wide[:, :0], reference[:0]).shape == (16, 0, 20)


@both
def test_derivatives_of_planes(products: tuple[str, ...]) -> None:
    factors, reference = draw(16, 2, 2 * len(products)), draw(2, seed=1)
    assert_gradients(lambda f, r: multiply_planes(f, r, products=products), factors, reference)
    x, r = factors.clone().requires_grad_(), reference.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: multiply_planes(x, x.sum((0, 2)), products=products), x)
    assert torch.autograd.gradcheck(lambda r: multiply_planes(factors, r, products=products), r)


def test_planes_of_other_algebras() -> None:
    factors, reference = draw(8, 5, 12), draw(5, seed=1)
    for products in (("geometric",), ("join", "geometric")):
        got = multiply_planes(factors, reference, products=products, signature=SMALL.signature)
        want = multiply_planes_by_torch(factors, reference, products, SMALL.signature)
        torch.testing.assert_close(got, want)


def test_the_same_bits_with_any_number_of_threads(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    factors, reference = draw(16, 4001, 4 * 9, dtype=dtype), draw(4001, dtype=dtype)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(multiply_planes(factors, reference))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.usefixtures("unchecked")
def test_planes_under_compile() -> None:
    assert_gradients(multiply_planes, draw(16, 3, 8), draw(3), order=0, compile=True)


def test_only_the_operands_are_saved() -> None:
    kept: list[Tensor] = []
    factors, reference = draw(16, 5, 8).requires_grad_(), draw(5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        multiply_planes(factors, reference)
    assert [x.data_ptr() for x in kept] == [factors.data_ptr(), reference.data_ptr()]


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    for factors, reference in (
        (draw(8, 3, 4), draw(3)),
        (draw(16, 3, 6), draw(3)),
        (draw(16, 3, 4), draw(4)),
        (draw(16, 3, 4), draw(3).float()),
    ):
        with pytest.raises(ShapeError, match="expected"):
            multiply_planes(factors, reference)
    with pytest.raises(ShapeError, match="products: expected"):
        multiply_planes(draw(16, 3, 4), draw(3), products=("wedge",))
    for turn, wrong in ((to_planes, draw(3, 4, 15)), (from_planes, draw(15, 3, 4)), (to_planes, draw(16))):
        with pytest.raises(ShapeError, match="a power of 2"):
            turn(wrong)
