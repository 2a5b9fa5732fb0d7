"""`Algebra`: its tables against golden ones and a matrix representation, the axioms, duality, invariance, errors."""

from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geom.clifford.algebra import CGA, EGA, PGA, STA, Algebra
from geom.clifford.products import multiply_by_torch
from geom.errors import ShapeError
from geom.testing import assert_equivariant, assert_gradients
from tests.clifford.drawn import draw

ALGEBRAS = [EGA, PGA, STA, CGA, Algebra(2), Algebra(0, 2), Algebra(1, 1, 1), Algebra(2, 0, 2), Algebra(0, 0, 2)]
# the products below call the torch twin, not to compile kernels for every algebra; those are tested in test_products
names = pytest.mark.parametrize("algebra", ALGEBRAS, ids=lambda a: f"G{a.p}{a.q}{a.r}")


def times(algebra: Algebra, x: Tensor, y: Tensor, product: str = "geometric") -> Tensor:
    return multiply_by_torch(algebra.signature, product, x, y)


def vector(algebra: Algebra, parts: Tensor) -> Tensor:
    x = parts.new_zeros(*parts.shape[:-1], algebra.size)
    x[..., 1 : 1 + algebra.dimension] = parts
    return x


def versor(algebra: Algebra, factors: int, seed: int) -> Tensor:
    """A product of random unit vectors of square +1 or -1."""
    u = torch.eye(algebra.size, dtype=torch.float64)[0]
    parts = draw(16, algebra.dimension, seed=seed)
    squares = torch.tensor(algebra.squares[1 : 1 + algebra.dimension], dtype=torch.float64)
    parts = parts[(parts.square() @ squares).abs() > 0.3][:factors]
    for part in parts:
        u = times(algebra, u, vector(algebra, part / (part.square() @ squares).abs().sqrt()))
    return u


def goldens(data: Path, group: str) -> Iterator[dict[str, Tensor]]:
    found = False
    for path in sorted((data / "clifford").glob("*_golden_*.npz")):
        with np.load(path) as arrays:
            chosen = {
                k.split("/", 1)[1]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(f"{group}/")
            }
        if chosen:
            found = True
            yield chosen
    if not found:
        pytest.skip(f"no goldens of {group}")


def assert_close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)


# --- golden tables and values -----------------------------------------------------------------------------------------


def test_tables_are_the_golden_ones(data: Path) -> None:
    for golden in goldens(data, "const"):
        for product, key in (("geometric", "gp"), ("outer", "outer"), ("join", "join")):
            want = golden[f"{key}_table_ijk"]
            assert torch.equal(PGA.table(product), want)
            assert {(i, j, k): s for i, j, k, s in PGA.terms(product)} == {
                (i, j, k): int(want[i, j, k]) for i, j, k in want.nonzero().tolist()
            }
        basis = PGA.linear_basis()
        assert torch.equal(basis.sign().to(torch.int8), golden["linear_basis_unnormalized"])
        torch.testing.assert_close(basis.float(), golden["linear_basis_normalized"], rtol=1e-6, atol=0)


def test_operations_are_the_golden_ones(data: Path) -> None:
    for g in goldens(data, "prim"):
        x, y, reference = g["x"], g["y"], g["ref"]
        assert_close(PGA.geometric_product(x, y), g["geometric_product"])
        assert_close(PGA.outer_product(x, y), g["outer_product"])
        assert_close(PGA.join(x, y, reference), g["equivariant_join"])
        assert_close(PGA.norm(PGA.join(x, y))[..., None], g["join_norm"])
        assert_close(PGA.dual(x), g["dual_x"])
        assert_close(PGA.inner_product(x, y)[..., None], g["inner_product"])
        assert_close(PGA.norm(x)[..., None], g["norm_x"])
        assert_close(PGA.invariants(x), g["pin_invariants_x"])
        assert_close(PGA.reverse(x), g["reverse_x"])
        assert_close(PGA.involute(x), g["grade_involute_x"])
        assert_close(torch.stack([PGA.grade(x, k) for k in range(5)], 1), g["grade_project_x"])


def test_sandwich_is_the_golden_one(data: Path) -> None:
    for g in goldens(data, "sandwich"):
        assert_close(PGA.sandwich(g["u"][:, None], g["x"]), g["out_ux"])
        odd = g["u"] - PGA.involute(g["u"])
        assert torch.equal(odd.abs().amax(1) > 0, g["u_is_odd"])


# --- tables of any algebra --------------------------------------------------------------------------------------------


def representation(algebra: Algebra) -> Tensor:
    """A faithful one of the blades, by matrices (B, m, m): Jordan and Wigner's anticommuting matrices of square 1, i
    times one for a square of -1, and one plus i times another for a square of 0."""
    pauli = [np.array(m, dtype=complex) for m in ([[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]])]
    pairs = (algebra.dimension + algebra.r + 1) // 2
    unit = [
        reduce(np.kron, [pauli[2]] * n + [pauli[which]] + [np.eye(2)] * (pairs - n - 1))
        for n in range(pairs)
        for which in (0, 1)
    ]
    rest = iter(unit)
    basis = [next(rest) + 1j * next(rest) for _ in range(algebra.r)]
    basis += [next(rest) for _ in range(algebra.p)] + [1j * next(rest) for _ in range(algebra.q)]
    return torch.from_numpy(
        np.stack([reduce(np.matmul, [basis[v] for v in b], np.eye(2**pairs)) for b in algebra.blades])
    )


@names
def test_products_are_those_of_matrices(algebra: Algebra) -> None:
    matrices = representation(algebra)
    assert int(torch.linalg.matrix_rank(matrices.flatten(1))) == algebra.size  # faithful: blades stay independent
    x, y = draw(7, algebra.size), draw(7, algebra.size, seed=1)
    matrix_x, matrix_y, matrix_xy = (
        torch.einsum("ni,imk->nmk", z.to(torch.complex128), matrices) for z in (x, y, times(algebra, x, y))
    )
    torch.testing.assert_close(matrix_xy, matrix_x @ matrix_y, rtol=1e-12, atol=1e-12)
    for k in range(algebra.dimension + 1):  # x ^ y: of grades k and l the part of grade k + l
        for other in range(algebra.dimension + 1 - k):
            whole = times(algebra, algebra.grade(x, k), algebra.grade(y, other))
            outer = times(algebra, algebra.grade(x, k), algebra.grade(y, other), "outer")
            torch.testing.assert_close(outer, algebra.grade(whole, k + other), rtol=1e-12, atol=1e-12)


@names
def test_axioms(algebra: Algebra) -> None:
    x, y, z = (draw(5, algebra.size, seed=seed) for seed in range(3))
    torch.testing.assert_close(
        times(algebra, times(algebra, x, y), z), times(algebra, x, times(algebra, y, z)), rtol=1e-11, atol=1e-11
    )
    one = torch.eye(algebra.size, dtype=torch.float64)[0]
    assert torch.equal(times(algebra, one, x), x) and torch.equal(times(algebra, x, one), x)
    v = vector(algebra, draw(5, algebra.dimension))
    torch.testing.assert_close(times(algebra, v, v), algebra.inner_product(v, v)[:, None] * one)
    for f in (algebra.reverse, lambda x: algebra.involute(algebra.reverse(x))):  # they turn products round
        torch.testing.assert_close(f(times(algebra, x, y)), times(algebra, f(y), f(x)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        algebra.involute(times(algebra, x, y)), times(algebra, algebra.involute(x), algebra.involute(y))
    )
    scalar = times(algebra, algebra.reverse(x), y)[..., 0]
    torch.testing.assert_close(algebra.inner_product(x, y), scalar, rtol=1e-12, atol=1e-12)
    assert torch.equal(sum((algebra.grade(x, k) for k in range(algebra.dimension + 1)), torch.zeros_like(x)), x)


signatures = st.tuples(*[st.integers(0, 3)] * 3).filter(lambda s: 1 <= sum(s) <= 5)


@given(signatures, st.integers(0, 1000))
def test_clifford_relations(signature: tuple[int, int, int], seed: int) -> None:
    algebra = Algebra(*signature)
    x, y, z = draw(3, algebra.size, seed=seed)
    left, right = times(algebra, times(algebra, x, y), z), times(algebra, x, times(algebra, y, z))
    torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)
    v, w = vector(algebra, draw(2, algebra.dimension, seed=seed))
    both = times(algebra, v, w) + times(algebra, w, v)  # 2 <v, w>
    assert both[1:].abs().max() <= 1e-14
    torch.testing.assert_close(both[0], 2 * algebra.inner_product(v, w))
    assert times(algebra, v, v, "outer").abs().max() <= 1e-14
    torch.testing.assert_close(algebra.norm(times(algebra, v, w)), algebra.norm(v) * algebra.norm(w))


@names
def test_duals_and_joins(algebra: Algebra) -> None:
    n, blades = algebra.dimension, torch.eye(algebra.size, dtype=torch.float64)
    assert torch.equal(times(algebra, blades, algebra.dual(blades), "outer"), blades[-1].expand_as(blades))
    x, y = draw(5, algebra.size), draw(5, algebra.size, seed=1)
    assert torch.equal(algebra.undual(algebra.dual(x)), x) and torch.equal(algebra.dual(algebra.undual(x)), x)
    sign = torch.tensor([(-1.0) ** (k * (n - k)) for k in algebra.grades], dtype=torch.float64)
    assert torch.equal(algebra.dual(algebra.dual(x)), sign * x)
    want = algebra.dual(times(algebra, algebra.dual(x), algebra.dual(y), "outer"))
    torch.testing.assert_close(times(algebra, x, y, "join"), want)


def test_blades_and_their_squares() -> None:
    assert PGA.blades[1:5] == ((0,), (1,), (2,), (3,)) and PGA.blades[10:12] == ((2, 3), (0, 1, 2))
    assert [i for i, square in enumerate(PGA.squares) if square] == [0, 2, 3, 4, 8, 9, 10, 14]
    assert PGA.blades[PGA.volume] == (1, 2, 3) and STA.volume == 15 and CGA.size == 32
    assert STA.squares[1:5] == (1, -1, -1, -1) and PGA.grade_slice(2) == slice(5, 11)
    assert [len(PGA.terms(product)) for product in ("geometric", "outer", "join")] == [192, 81, 81]
    assert hash(Algebra(3, 0, 1)) == hash(PGA) and Algebra(3, 0, 1) == PGA != EGA


@names
def test_grades_in_and_out(algebra: Algebra) -> None:
    for k in range(algebra.dimension + 1):
        x = draw(3, algebra.grades.count(k), seed=k)
        embedded = algebra.embed(x, k)
        assert torch.equal(algebra.extract(embedded, k), x) and torch.equal(algebra.grade(embedded, k), embedded)
    v = draw(3, algebra.dimension)
    assert torch.equal(algebra.embed(v), vector(algebra, v)) and torch.equal(algebra.extract(vector(algebra, v)), v)


# --- symmetry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algebra", [EGA, PGA, STA, Algebra(1, 1, 1)], ids=lambda a: f"G{a.p}{a.q}{a.r}")
def test_everything_moves_with_the_pin_group(algebra: Algebra) -> None:
    versors = [versor(algebra, count, seed=count) for count in range(5)]
    x, y, reference = (draw(4, algebra.size, seed=seed) for seed in range(3))

    def check(function: object, *inputs: Tensor, out: object = algebra.sandwich) -> None:
        assert_equivariant(function, *inputs, elements=versors, act_in=algebra.sandwich, act_out=out, tolerance=1e-11)

    check(algebra.geometric_product, x, y)
    check(algebra.outer_product, x, y)
    check(algebra.join, x, y, reference)
    check(algebra.reverse, x)
    check(algebra.involute, x)
    check(lambda x: algebra.grade(x, 2), x)
    check(algebra.inner_product, x, y, out="invariant")
    check(algebra.norm, x, out="invariant")
    check(algebra.invariants, x, out="invariant")
    for basis in algebra.linear_basis():
        check(lambda x, basis=basis: x @ basis.T, x)
    with pytest.raises(AssertionError, match="not equivariant"):
        check(algebra.join, x, y)
    with pytest.raises(AssertionError, match="not equivariant"):
        check(algebra.dual, x)


@pytest.mark.parametrize("algebra", [EGA, PGA, Algebra(2, 0, 1)], ids=lambda a: f"G{a.p}{a.q}{a.r}")
def test_linear_basis_is_all_there_is(algebra: Algebra) -> None:
    """The maps M that commute with some random versors, which generate a dense subgroup, have this dimension."""
    basis = algebra.linear_basis()
    assert len(basis) == (1 + algebra.r) * algebra.dimension + 1
    torch.testing.assert_close(basis.flatten(1).norm(dim=1), torch.ones(len(basis), dtype=torch.float64))
    one, rows = torch.eye(algebra.size, dtype=torch.float64), []
    for seed in range(4):
        action = algebra.sandwich(versor(algebra, 1 + seed % 2, seed), one).T
        rows.append(torch.kron(one, action.T.contiguous()) - torch.kron(action.contiguous(), one))
    rank = int((torch.linalg.svdvals(torch.cat(rows)) > 1e-8).sum())
    assert algebra.size**2 - rank == len(basis)


def test_sandwich_composes_and_keeps_grades() -> None:
    u, w, x = versor(PGA, 3, 0), versor(PGA, 2, 1), draw(4, 16)
    both = PGA.sandwich(PGA.geometric_product(u, w), x)
    torch.testing.assert_close(both, PGA.sandwich(u, PGA.sandwich(w, x)), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(PGA.sandwich(-5 * u, x), PGA.sandwich(u, x), rtol=1e-11, atol=1e-11)
    for k in range(5):
        torch.testing.assert_close(
            PGA.sandwich(u, PGA.grade(x, k)), PGA.grade(PGA.sandwich(u, x), k), rtol=1e-11, atol=1e-11
        )
    v = vector(PGA, torch.tensor([0.0, 1, 0, 0], dtype=torch.float64))  # reflection in x = 0
    assert PGA.sandwich(v, vector(PGA, torch.ones(4).double()))[1:5].tolist() == [1, -1, 1, 1]
    null = PGA.sandwich(torch.eye(16, dtype=torch.float64)[1], x)
    assert null.isfinite().all()


def test_norm_of_vectors_of_any_square() -> None:
    time_like, light_like = torch.zeros(2, 16, dtype=torch.float64)
    time_like[1:3] = torch.tensor([5.0, 3])
    light_like[1:3] = 1
    assert STA.norm(torch.stack([time_like, light_like])).tolist() == [4, 0]
    x = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(PGA.norm(x) + PGA.invariants(x).sum(), x)
    assert torch.equal(grad, torch.eye(16, dtype=torch.float64)[0])


# --- shapes, derivatives, errors --------------------------------------------------------------------------------------


def test_dtypes_batches_and_empty_ones(dtype: torch.dtype) -> None:
    x, y = draw(2, 1, 3, 16, dtype=dtype), draw(4, 3, 16, dtype=dtype, seed=1)
    for f in (PGA.geometric_product, PGA.outer_product, PGA.join, PGA.sandwich, PGA.inner_product):
        got = f(x, y)
        assert got.dtype == dtype and got.shape[:3] == (2, 4, 3)
        for i in range(2):
            torch.testing.assert_close(got[i], f(x[i].expand(4, 3, 16).contiguous(), y))
        assert f(x[:0], y).shape == (0, *got.shape[1:])
    for g in (PGA.dual, PGA.reverse, PGA.involute, PGA.norm, PGA.invariants):
        assert g(x).dtype == dtype and g(x[:0]).shape == (0, *g(x).shape[1:])
    assert PGA.join(x, y, x.mean(1, keepdim=True)).shape == (2, 4, 3, 16)


@pytest.mark.usefixtures("unchecked")
def test_gradients() -> None:
    x, y, reference = draw(1, 16), draw(1, 16, seed=1), draw(1, 16, seed=2)
    assert_gradients(PGA.join, x, y, reference, compile=True)
    assert_gradients(PGA.inner_product, x, y)
    for f in (PGA.dual, PGA.undual, PGA.reverse, PGA.involute, PGA.norm, PGA.invariants):
        assert_gradients(f, x, compile=f in (PGA.dual, PGA.invariants))
    assert_gradients(PGA.invariants, torch.zeros(16), order=0)
    u = versor(PGA, 3, 0)
    assert_gradients(PGA.sandwich, u, x, compile=True)


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    x = draw(3, 16)
    for wrong in ((-1, 0, 0), (0, 0, 0), (5, 4, 0), (1.0, 0, 0), (True, 0, 0)):
        with pytest.raises(ShapeError, match="expected"):
            Algebra(*wrong)
    for call in (
        lambda: PGA.geometric_product(x[:, :8], x),
        lambda: PGA.geometric_product(x, x.float()),
        lambda: PGA.outer_product(x, draw(2, 16)),
        lambda: PGA.join(x, x, x[:, :3]),
        lambda: PGA.join(x, x, x.float()),
        lambda: EGA.dual(x),
        lambda: EGA.invariants(x),
        lambda: EGA.inner_product(x, x),
        lambda: EGA.inner_product(x[:, :8], draw(2, 8)),
        lambda: PGA.sandwich(x, x.float()),
        lambda: PGA.sandwich(x, draw(2, 16)),
        lambda: PGA.join(x, x, draw(2, 16)),
        lambda: PGA.grade(x, 5),
        lambda: PGA.grade_slice(-1),
        lambda: PGA.embed(x[:, :3]),
        lambda: PGA.embed(x, 5),
        lambda: EGA.extract(x),
        lambda: PGA.table("inner"),
        lambda: PGA.terms("wedge"),
    ):
        with pytest.raises(ShapeError, match="expected"):
            call()
