"""GL+, SL and SPD: round trips up to condition 1e6, against scipy and mpmath, derivatives where values meet."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, vmap

import geom.lie.linear as linear
from geom.errors import ShapeError
from geom.lie import so3

CONDITIONS = [1.0, 10.0, 1e3, 1e6]
PRODUCT = {torch.float32: 6e-7, torch.float64: 2e-14}  # what `polar` and `cartan` guarantee
CHART = {torch.float32: 6e-6, torch.float64: 4e-14}
DECOMPOSITIONS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "polar": linear.polar,
    "iwasawa": linear.iwasawa,
    "cartan": linear.cartan,
}
SYMMETRIC = {
    "exp": linear.spd_exp,
    "log": linear.spd_log,
    "sqrt": linear.spd_sqrt,
    "inverse sqrt": linear.spd_inverse_sqrt,
}
seeds, sizes, groups = st.integers(0, 2**31 - 1), st.sampled_from([2, 3]), st.sampled_from(["gl", "sl"])
dtypes = st.sampled_from([torch.float32, torch.float64])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def elements(count: int, n: int, condition: float = 10.0, seed: int = 0) -> Tensor:
    """Random directions, singular values from 1 to 1/condition, det > 0."""
    u, _, vh = torch.linalg.svd(normal(count, n, n, seed=seed))
    s = condition ** -torch.rand(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    s[:, 0], s[:, -1] = 1, 1 / condition
    vh = torch.cat([vh[:, :1] * torch.linalg.det(u @ vh)[:, None, None], vh[:, 1:]], 1)
    return 3 * (u * s[:, None]) @ vh


def turn(n: int, angle: float) -> Tensor:
    """About the last axis."""
    c, s = math.cos(angle), math.sin(angle)
    rotation = torch.eye(n, dtype=torch.float64)
    rotation[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return rotation


def singular_points(n: int) -> dict[str, Tensor]:
    """Where singular vectors have no derivative, and one where they have."""
    one = torch.eye(n, dtype=torch.float64)
    two = torch.tensor([2.0] * (n - 1) + [0.5], dtype=torch.float64)
    return {
        "random": elements(1, n, seed=3)[0],
        "identity": one,
        "similarity": 2.5 * turn(n, 0.7),
        "nearly": one + 1e-9 * normal(n, n),
        "two equal": torch.diag(two) @ turn(n, 0.7),
    }


POINTS = [pytest.param(n, name, id=f"{n}-{name}") for n in (2, 3) for name in singular_points(2)]


def total(parts: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A number that hangs on all of them."""
    every = parts if isinstance(parts, tuple) else (parts,)
    return torch.stack([x.sin().sum() for x in every]).sum()


def norm(x: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x.double(), 2)


# --- the algebra -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["gl", "sl"])
@pytest.mark.parametrize("n", [2, 3])
def test_basis_is_orthonormal(n: int, group: str, dtype: torch.dtype) -> None:
    b = linear.basis(n, group=group, dtype=dtype)
    assert b.shape == (n * n - (group == "sl"), n, n) and b.dtype == dtype
    gram = torch.einsum("aij,bij->ab", b, b)
    assert (gram - torch.eye(len(b), dtype=dtype)).abs().max() < 4 * torch.finfo(dtype).eps
    if group == "sl":
        assert b.diagonal(dim1=-2, dim2=-1).sum(-1).abs().max() < 2 * torch.finfo(dtype).eps


def test_basis_is_in_the_order_documented() -> None:
    half = math.sqrt(0.5)
    plane = [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, half], [half, 0]], [[0, -half], [half, 0]]]
    torch.testing.assert_close(linear.basis(2), torch.tensor(plane))
    special = [[[half, 0], [0, -half]], *plane[2:]]
    torch.testing.assert_close(linear.basis(2, group="sl"), torch.tensor(special))
    for group in ("gl", "sl"):
        b = linear.basis(3, group=group, dtype=torch.float64)
        torch.testing.assert_close(b[-3:], so3.hat(torch.eye(3, dtype=torch.float64)) * half)
        torch.testing.assert_close(b[-6:-3], b[-3:].abs())
        assert all(torch.equal(x, torch.diag(x.diagonal())) for x in b[:-6])


@given(seeds, sizes, groups, dtypes)
def test_vee_undoes_hat(seed: int, n: int, group: str, dtype: torch.dtype) -> None:
    v = normal(4, n * n - (group == "sl"), seed=seed).to(dtype)
    x = linear.hat(v, group=group)
    eps = torch.finfo(dtype).eps
    assert x.dtype == dtype and (linear.vee(x, group=group) - v).abs().max() < 4 * eps * v.abs().max()
    assert (linear.hat(linear.vee(x, group=group), group=group) - x).abs().max() < 4 * eps * v.abs().max()


def test_vee_of_sl_projects_the_trace_away() -> None:
    x = normal(5, 3, 3)
    trace = x.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    kept = linear.hat(linear.vee(x, group="sl"), group="sl")
    torch.testing.assert_close(kept, x - trace / 3 * torch.eye(3, dtype=torch.float64))


# --- decompositions --------------------------------------------------------------------------------------------------


def is_rotation(x: Tensor, tolerance: float) -> bool:
    x = x.double()
    one = torch.eye(x.shape[-1], dtype=torch.float64)
    return bool((norm(x.mT @ x - one) <= tolerance).all() and (torch.linalg.det(x) > 0).all())


@pytest.mark.parametrize("n", [2, 3])
def test_polar_gives_the_matrix_back(n: int, dtype: torch.dtype) -> None:
    for condition in CONDITIONS:
        g = elements(500, n, condition).to(dtype)
        p, r = linear.polar(g)
        assert p.dtype == r.dtype == dtype and torch.equal(p, p.mT)
        assert (norm(p.double() @ r.double() - g.double()) <= PRODUCT[dtype] * norm(g)).all()
        assert is_rotation(r, 1e-14 if dtype == torch.float64 else 6e-7)
        assert (torch.linalg.eigvalsh(p.double())[:, 0] > 0).all()


@pytest.mark.parametrize("n", [2, 3])
def test_polar_matches_scipy(n: int) -> None:
    for g in elements(20, n, 100.0):
        rotation, positive = scipy.linalg.polar(g.numpy(), side="left")
        p, r = linear.polar(g)
        assert (r - torch.from_numpy(rotation)).abs().max() < 1e-13
        assert (p - torch.from_numpy(positive)).abs().max() < 1e-13


@pytest.mark.parametrize("n", [2, 3])
def test_iwasawa_gives_the_matrix_back(n: int, dtype: torch.dtype) -> None:
    tolerance = 4e-15 if dtype == torch.float64 else 2e-6
    for condition in CONDITIONS:
        g = elements(500, n, condition).to(dtype)
        k, a, u = linear.iwasawa(g)
        assert (norm(k.double() * a.double()[:, None] @ u.double() - g.double()) <= tolerance * norm(g)).all()
        assert is_rotation(k, tolerance) and (a > 0).all()
        assert torch.equal(u, u.triu()) and (u.diagonal(dim1=-2, dim2=-1) == 1).all()


@pytest.mark.parametrize("n", [2, 3])
def test_cartan_gives_the_matrix_back(n: int, dtype: torch.dtype) -> None:
    for condition in CONDITIONS:
        g = elements(500, n, condition).to(dtype)
        left, a, right = linear.cartan(g)
        again = left.double() * a.double()[:, None] @ right.double()
        assert (norm(again - g.double()) <= PRODUCT[dtype] * norm(g)).all()
        assert is_rotation(left, 6e-7) and is_rotation(right, 6e-7)
        assert (a[:, :-1] >= a[:, 1:]).all() and (a > 0).all()


# --- the chart -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
def test_exp_of_log_gives_the_matrix_back(n: int, dtype: torch.dtype) -> None:
    for condition in CONDITIONS:
        g = elements(500, n, condition).to(dtype)
        again = linear.exp(linear.log(g))
        assert again.dtype == dtype and (norm(again.double() - g.double()) <= CHART[dtype] * norm(g)).all()


@given(seeds, sizes, groups)
def test_log_of_exp_gives_the_coordinates_back(seed: int, n: int, group: str) -> None:
    v = normal(6, n * n - (group == "sl"), seed=seed)
    v = v / v.norm(dim=-1, keepdim=True) * torch.tensor([1e-8, 1e-3, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)[:, None]
    g = linear.exp(v, group=group)
    spread = torch.linalg.cond(g)[:, None]
    assert ((linear.log(g, group=group) - v).abs() < 1e-14 * spread).all()
    if group == "sl":
        assert ((torch.linalg.det(g) - 1).abs() < 2e-14 * spread[:, 0]).all()


@given(seeds, sizes)
def test_chart_is_the_polar_decomposition(seed: int, n: int) -> None:
    v = normal(n * n, seed=seed)
    p, r = linear.polar(linear.exp(v))
    skew = n * (n - 1) // 2
    x, w = (linear.hat(torch.cat([a, b])) for a, b in ((v[:-skew], 0 * v[-skew:]), (0 * v[:-skew], v[-skew:])))
    tolerance = 1e-13 * torch.linalg.cond(p)
    assert (p - torch.linalg.matrix_exp(x)).abs().max() < tolerance * norm(p)
    assert (r - torch.linalg.matrix_exp(w)).abs().max() < tolerance


def test_log_of_sl_forgets_the_volume() -> None:
    g = elements(20, 3)
    torch.testing.assert_close(linear.log(2.5 * g, group="sl"), linear.log(g, group="sl"), rtol=0, atol=1e-13)
    volume = linear.log(g)[:, :3].sum(-1)
    torch.testing.assert_close(volume, torch.linalg.det(g).log(), rtol=0, atol=1e-13)


def test_log_reaches_what_the_matrix_logarithm_does_not(dtype: torch.dtype) -> None:
    g = torch.tensor([[-2.0, 0.0], [0.0, -0.5]], dtype=dtype)
    want = torch.tensor([math.log(2), -math.log(2), 0.0, math.sqrt(2) * math.pi], dtype=dtype)
    torch.testing.assert_close(linear.log(g), want)
    assert linear.log(-torch.eye(2, dtype=dtype))[3] > 0  # pi, not -pi


def test_log_at_angle_pi(dtype: torch.dtype) -> None:
    axes = torch.cat([torch.eye(3, dtype=torch.float64), normal(20, 3)])
    axes = axes / axes.norm(dim=-1, keepdim=True)
    half_turns = 2 * axes[:, :, None] * axes[:, None, :] - torch.eye(3, dtype=torch.float64)
    g = (linear.spd_exp(normal(23, 3, 3)) @ half_turns).to(dtype)
    v = linear.log(g)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    assert (v[:, 6:].norm(dim=-1) - math.sqrt(2) * math.pi).abs().max() < tolerance
    assert ((linear.exp(v) - g).abs().amax((1, 2)) < tolerance * norm(g)).all()


def test_float32_is_decomposed_in_float64() -> None:
    g = elements(200, 3, 1e5).float()
    assert (linear.log(g)[:, :6].double() - linear.log(g.double())[:, :6]).abs().max() < 1e-5


# --- symmetric matrices ----------------------------------------------------------------------------------------------


def precise(function: Callable[[Any], Any], matrix: Tensor) -> Tensor:
    """A function of a symmetric matrix in 60 digits."""
    with mpmath.workdps(60):
        values, vectors = mpmath.eigsy(mpmath.matrix(matrix.tolist()))
        result = vectors * mpmath.diag([function(v) for v in values]) * vectors.T
        return torch.tensor([[float(x) for x in row] for row in result.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_functions_match_mpmath(name: str, n: int, dtype: torch.dtype) -> None:
    exact = {
        "exp": mpmath.exp,
        "log": mpmath.log,
        "sqrt": mpmath.sqrt,
        "inverse sqrt": lambda v: 1 / mpmath.sqrt(v),
    }[name]
    eps = torch.finfo(dtype).eps
    for k, condition in enumerate([1.0, 10.0, 1e4]):
        g = elements(1, n, condition, seed=k)[0] / 3
        s = g @ g.mT if name == "exp" else linear.polar(g)[0]
        s = ((s + s.mT) / 2).to(dtype)
        want = precise(exact, s.double())
        assert torch.equal(SYMMETRIC[name](s), SYMMETRIC[name](s).mT)
        assert (SYMMETRIC[name](s).double() - want).abs().max() < 16 * eps * (1 + norm(want)) * condition


@given(seeds, sizes)
def test_symmetric_functions_undo_each_other(seed: int, n: int) -> None:
    x = normal(5, n, n, seed=seed)
    p = linear.spd_exp(x)
    spread = torch.linalg.cond(p)
    assert (norm(linear.spd_log(p) - (x + x.mT) / 2) < 1e-14 * spread).all()
    root = linear.spd_sqrt(p)
    assert (norm(root @ root - p) < 1e-14 * norm(p)).all()
    one = torch.eye(n, dtype=torch.float64)
    assert (norm(linear.spd_inverse_sqrt(p) @ root - one) < 1e-14 * spread).all()
    assert torch.equal(linear.spd_exp(torch.zeros(n, n, dtype=torch.float64)), one)


# --- derivatives -----------------------------------------------------------------------------------------------------


def check_derivatives(function: Callable[[Tensor], Any], x: Tensor) -> None:
    x = x.clone().requires_grad_()
    torch.autograd.gradcheck(function, x, check_forward_ad=True)
    torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize(("n", "name"), POINTS)
def test_gradcheck_of_groups(n: int, name: str) -> None:
    g = singular_points(n)[name]
    for function in (linear.polar, linear.iwasawa, linear.log):
        check_derivatives(function, g)


@pytest.mark.parametrize(("n", "name"), POINTS)
def test_gradcheck_of_symmetric_functions(n: int, name: str) -> None:
    p, _ = linear.polar(singular_points(n)[name])
    for function in SYMMETRIC.values():
        check_derivatives(function, p)
    check_derivatives(linear.spd_exp, p * 4 / norm(p))  # eigenvalues further apart


@pytest.mark.parametrize("n", [2, 3])
def test_gradcheck_of_exp_and_cartan(n: int) -> None:
    for group in ("gl", "sl"):
        for v in (torch.zeros(n * n - (group == "sl"), dtype=torch.float64), normal(n * n - (group == "sl"))):
            check_derivatives(lambda v, group=group: linear.exp(v, group=group), v)
    check_derivatives(linear.cartan, elements(1, n)[0])
    for group in ("gl", "sl"):
        zero = torch.zeros(n * n - (group == "sl"), dtype=torch.float64)
        slope = jacrev(lambda v, group=group: linear.exp(v, group=group))(zero)
        want = linear.basis(n, group=group, dtype=torch.float64).movedim(0, -1)
        torch.testing.assert_close(slope, want, rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [2, 3])
def test_cartan_is_finite_where_singular_values_are_equal(n: int, dtype: torch.dtype) -> None:
    for name, g in singular_points(n).items():
        g = g.to(dtype).requires_grad_()
        (slope,) = torch.autograd.grad(total(linear.cartan(g)), g, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), g)
        assert slope.isfinite().all() and second.isfinite().all(), name
        (volume,) = torch.autograd.grad(linear.cartan(g)[1].log().sum(), g)  # log det: smooth at equal values
        assert norm(volume - torch.linalg.inv(g).mT) < 100 * torch.finfo(dtype).eps * norm(volume), name


@pytest.mark.parametrize("n", [2, 3])
def test_hessians_agree_in_all_modes(n: int) -> None:
    g = singular_points(n)["similarity"]
    for decompose in (linear.log, *DECOMPOSITIONS.values()):

        def number(x: Tensor, decompose: Callable[[Tensor], Any] = decompose) -> Tensor:
            return total(decompose(x))

        want = hessian(number)(g)
        assert want.isfinite().all()
        for other in (jacrev(jacrev(number)), jacfwd(jacfwd(number)), jacrev(jacfwd(number))):
            torch.testing.assert_close(other(g), want, rtol=0, atol=1e-14)


CALLS = {
    **DECOMPOSITIONS,
    **SYMMETRIC,
    "log": linear.log,
    "vee": linear.vee,
    "exp": lambda x: linear.exp(x.flatten(-2)),
    "hat": lambda x: linear.hat(x.flatten(-2)),
}


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", CALLS)
def test_vmap_and_jacrev(name: str, n: int) -> None:
    function, x = CALLS[name], linear.polar(elements(4, n))[0]
    torch.testing.assert_close(vmap(function)(x), function(x), rtol=0, atol=1e-14)
    jacobians = vmap(jacrev(function))(x)
    torch.testing.assert_close(jacobians, vmap(jacfwd(function))(x), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", CALLS)
def test_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    function, x = CALLS[name], linear.polar(elements(4, 3))[0].requires_grad_()

    def slope(f: Callable[[Tensor], Any]) -> tuple[Tensor, Tensor]:
        number = total(f(x))
        return number, torch.autograd.grad(number, x)[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(slope(compiled), slope(function), rtol=1e-13, atol=1e-13)


def test_empty_batches(dtype: torch.dtype) -> None:
    for n in (2, 3):
        x = torch.zeros(2, 0, n, n, dtype=dtype)
        for function in CALLS.values():
            parts = function(x)
            for part in parts if isinstance(parts, tuple) else (parts,):
                assert part.shape[:2] == (2, 0) and part.dtype == dtype


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [*DECOMPOSITIONS.values(), linear.log])
def test_refuses_what_is_not_in_the_group(function: Callable[[Tensor], Any]) -> None:
    reflection = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ShapeError, match="expected determinants above 0, got -1"):
        function(torch.stack([torch.eye(3), reflection]))
    for bad in (torch.zeros(2, 2), torch.full((2, 2), float("nan"))):
        with pytest.raises(ShapeError, match="determinants above 0"):
            function(bad)
    for bad in (torch.eye(4), torch.eye(3)[:2], torch.eye(3, dtype=torch.float16), torch.eye(2, dtype=torch.int64)):
        with pytest.raises(ShapeError, match=r"expected a float32 or float64 tensor \(\.\.\., 2, 2\) or"):
            function(bad)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["log", "sqrt", "inverse sqrt"])
def test_refuses_what_is_not_positive(name: str) -> None:
    with pytest.raises(ShapeError, match="expected eigenvalues above 0, got -2"):
        SYMMETRIC[name](torch.diag(torch.tensor([1.0, -2.0])))
    with pytest.raises(ShapeError, match=r"\(\.\.\., 2, 2\) or"):
        SYMMETRIC[name](torch.eye(5))


@pytest.mark.usefixtures("unchecked")
def test_refuses_other_groups_and_sizes() -> None:
    with pytest.raises(ShapeError, match="n: expected one of 2, 3"):
        linear.basis(4)
    for call in (linear.basis, lambda *_, group: linear.log(torch.eye(2), group=group)):
        with pytest.raises(ShapeError, match="group: expected one of 'gl', 'sl', got str 'so'"):
            call(2, group="so")
    for function in (linear.hat, linear.exp):
        with pytest.raises(ShapeError, match=r"expected a float32 or float64 tensor \(\.\.\., 4\) or \(\.\.\., 9\)"):
            function(torch.zeros(8))
        with pytest.raises(ShapeError, match=r"\(\.\.\., 3\) or \(\.\.\., 8\), got a float32 tensor of shape \(2, 9\)"):
            function(torch.zeros(2, 9), group="sl")
        with pytest.raises(ShapeError, match="group: expected one of"):
            function(torch.zeros(4), group="GL")
