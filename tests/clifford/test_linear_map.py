"""Equivariant linear maps: against the golden ones and the dense basis, symmetry, derivatives of any order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.clifford.algebra import EGA, PGA, STA, Algebra
from geom.clifford.linear_map import equivariant_linear, linear_planes
from geom.errors import ShapeError
from geom.testing import assert_equivariant, assert_gradients
from tests.clifford.drawn import draw

ALGEBRAS = [PGA, EGA, STA, Algebra(2, 0, 1), Algebra(1, 1, 1)]
names = pytest.mark.parametrize("algebra", ALGEBRAS, ids=lambda a: f"G{a.p}{a.q}{a.r}")


def weights(algebra: Algebra, c_out: int, c_in: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return draw(c_out, c_in, len(algebra.linear_basis()), seed=1, dtype=dtype)


def dense(x: Tensor, weight: Tensor, algebra: Algebra) -> Tensor:
    return torch.einsum("yxa,aij,...xj->...yi", weight, algebra.linear_basis().to(x), x)


def test_map_is_the_golden_one(data: Path) -> None:
    found = 0
    for path in sorted((data / "clifford").glob("*_golden_*.npz")):
        with np.load(path) as arrays:
            if "prim/lin_out" not in arrays.files:
                continue
            x, weight, want = (torch.from_numpy(arrays[f"prim/lin_{key}"]) for key in ("x", "coeffs", "out"))
        torch.testing.assert_close(equivariant_linear(x, weight), want, rtol=1e-6, atol=1e-12)
        found += 1
    if not found:
        pytest.skip("no goldens of linear maps")


@names
def test_map_is_that_of_the_dense_basis(algebra: Algebra, dtype: torch.dtype) -> None:
    x, weight = draw(2, 5, 3, algebra.size, dtype=dtype), weights(algebra, 4, 3, dtype)
    got, want = equivariant_linear(x, weight, algebra), dense(x.double(), weight.double(), algebra)
    assert got.dtype == dtype and got.shape == (2, 5, 4, algebra.size)
    limit = 1e-15 if dtype == torch.float64 else 5e-7
    assert float((got.double() - want).abs().max()) <= limit * float(want.abs().max())
    assert equivariant_linear(x[0, 0], weight, algebra).shape == (4, algebra.size)
    assert equivariant_linear(x[:0], weight, algebra).shape == (0, 5, 4, algebra.size)


@names
def test_map_moves_with_the_pin_group(algebra: Algebra) -> None:
    x, weight, versors = draw(5, 3, algebra.size), weights(algebra, 4, 3), []
    square = torch.tensor(algebra.squares[1 : 1 + algebra.dimension], dtype=torch.float64)
    for count in range(5):
        u = torch.eye(algebra.size, dtype=torch.float64)[0]
        parts = draw(20, algebra.dimension, seed=count)
        for part in parts[(parts.square() @ square).abs() > 0.3][:count]:
            v = torch.zeros_like(u)
            v[1 : 1 + algebra.dimension] = part / (part.square() @ square).abs().sqrt()
            u = algebra.geometric_product(u, v)
        versors.append(u)
    assert_equivariant(
        lambda x: equivariant_linear(x, weight, algebra),
        x,
        elements=versors,
        act_in=algebra.sandwich,
        act_out=algebra.sandwich,
        tolerance=1e-11,
    )


@names
def test_derivatives(algebra: Algebra) -> None:
    x, weight = draw(2, 3, algebra.size), weights(algebra, 2, 3)
    assert_gradients(lambda x, w: equivariant_linear(x, w, algebra), x, weight)


@pytest.mark.usefixtures("unchecked")
def test_derivatives_under_compile() -> None:
    x, weight = draw(2, 3, 16), weights(PGA, 2, 3)
    assert_gradients(equivariant_linear, x, weight, order=0, compile=True)
    w = weight.clone().requires_grad_()
    for slot, pair in enumerate(((x.movedim(-1, 0), w), (draw(16, 2, 2), w), (draw(16, 2, 2), x.movedim(-1, 0)))):
        torch.library.opcheck(torch.ops.geom.clifford_linear.default, (*pair, slot, [3, 0, 1]))


def test_planes_of_a_wider_tensor(dtype: torch.dtype) -> None:
    wide, weight = draw(16, 6, 12, dtype=dtype), weights(PGA, 5, 4, dtype)
    part = wide[:, :, 3:7].requires_grad_()
    got = linear_planes(part, weight)
    limit = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        got.movedim(0, -1), equivariant_linear(part.movedim(0, -1), weight), rtol=limit, atol=limit
    )
    grad = draw(16, 6, 9, seed=2, dtype=dtype)[:, :, 2:7]
    want = dense(part.movedim(0, -1), weight, PGA).movedim(-1, 0)
    for a, b in zip(*(torch.autograd.grad(y, part, grad) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)


@pytest.mark.parametrize(("c_in", "c_out"), [(16, 5), (7, 40), (3, 100), (33, 48)])
def test_sizes_of_channels(dtype: torch.dtype, c_in: int, c_out: int) -> None:
    for n in (0, 1, 29):
        wide = draw(16, n, c_in + 3, dtype=dtype).requires_grad_()
        weight = weights(PGA, c_out, c_in, dtype).requires_grad_()
        grad = draw(16, n, c_out + 2, seed=2, dtype=dtype)[:, :, 1:-1]
        x = wide[:, :, 2:-1]
        exact, w = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
        got, want = linear_planes(x, weight), dense(exact.movedim(0, -1), w, PGA).movedim(-1, 0)
        found = got, *torch.autograd.grad(got, (x, weight), grad)
        wanted = want, *torch.autograd.grad(want, (exact, w), grad.double())
        limit = 1e-6 if dtype == torch.float32 else 1e-14
        limit = 1e-6 if dtype == torch.float32 else 1e-14
        for a, b in zip(found, wanted, strict=True):
            assert a.shape == b.shape
            assert float((a.double() - b).detach().abs().sum()) <= limit * float(b.detach().abs().sum())


def test_only_x_and_weight_are_saved() -> None:
    kept: list[Tensor] = []
    x, weight = draw(16, 5, 4).requires_grad_(), weights(PGA, 3, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        linear_planes(x, weight)
    assert [y.data_ptr() for y in kept] == [x.data_ptr(), weight.data_ptr()]


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    x, weight = draw(5, 3, 16), weights(PGA, 2, 3)
    for wrong in (
        (x[..., :8], weight),
        (x[:, :2], weight),
        (x[0, 0], weight),
        (x, weight[..., :5]),
        (x, weight.float()),
        (x, weight[0]),
    ):
        with pytest.raises(ShapeError, match="expected"):
            equivariant_linear(*wrong)
    with pytest.raises(ShapeError, match="at most one null vector"):
        equivariant_linear(x, weight, Algebra(2, 0, 2))
    with pytest.raises(ShapeError, match=r"x: expected a tensor \(16, N, C_in\)"):
        linear_planes(x, weight)
