"""`Affine`: group axioms, the action on points, the chart, means, as a value, derivatives."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import geom.lie.affine as affine
import geom.lie.linear as linear
from geom.errors import ShapeError
from geom.lie.affine import Affine

EPS = {torch.float32: 2e-7, torch.float64: 4e-16}
seeds, sizes = st.integers(0, 2**31 - 1), st.sampled_from([2, 3])
dtypes = st.sampled_from([torch.float32, torch.float64])


def random_affine(
    *batch: int, n: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0, spread: float = 0.4
) -> Affine:
    v = torch.randn(*batch, n + n * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Affine.exp(spread * v).to(dtype)


def points(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(6, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def size(x: Affine) -> Tensor:
    return torch.linalg.matrix_norm(x.to_matrix(), 2)


def close(a: Affine, b: Affine, tolerance: float) -> bool:
    return bool(((a.to_matrix() - b.to_matrix()).abs().amax((-2, -1)) <= tolerance * size(b)).all())


# --- the group -----------------------------------------------------------------------------------------------------


@given(seeds, sizes, dtypes)
def test_group_axioms(seed: int, n: int, dtype: torch.dtype) -> None:
    a, b, c = (random_affine(n=n, dtype=dtype, seed=seed + i) for i in range(3))
    one = Affine.identity(n=n, dtype=dtype)
    tolerance = 8 * EPS[dtype] * (size(a) * size(b) * size(c)).item()
    assert close(a.compose(b).compose(c), a.compose(b.compose(c)), tolerance)
    assert close(a.compose(one), a, 0) and close(one.compose(a), a, 0)
    tolerance = 8 * EPS[dtype] * torch.linalg.cond(a.to_matrix()).item()
    assert close(a.compose(a.inverse()), one, tolerance) and close(a.inverse().compose(a), one, tolerance)
    assert close(a.inverse().inverse(), a, tolerance)
    assert close(a @ b, a.compose(b), 0)


@given(seeds, sizes, dtypes)
def test_apply_is_an_action(seed: int, n: int, dtype: torch.dtype) -> None:
    a, b = random_affine(n=n, dtype=dtype, seed=seed), random_affine(n=n, dtype=dtype, seed=seed + 1)
    x = points(n, dtype, seed)
    length = size(a) * size(b) * (1 + x.norm(dim=-1).max())
    assert (a.compose(b).apply(x) - a.apply(b.apply(x))).abs().max() < 8 * EPS[dtype] * length
    wide = torch.cat([x, torch.ones_like(x[:, :1])], -1) @ a.to_matrix().mT
    assert (a.apply(x) - wide[:, :n]).abs().max() < 8 * EPS[dtype] * length


@given(seeds, sizes, dtypes)
def test_chart_round_trip(seed: int, n: int, dtype: torch.dtype) -> None:
    a = random_affine(n=n, dtype=dtype, seed=seed)
    assert a.tangent_dim == n + n * n == a.log().shape[-1]
    assert close(Affine.exp(a.log()), a, 40 * EPS[dtype])
    zero = torch.zeros(n + n * n, dtype=dtype)
    assert close(Affine.exp(zero), Affine.identity(n=n, dtype=dtype), 0) and close(a.retract(zero), a, 0)
    step = 0.3 * points(n, dtype, seed).flatten()[: n + n * n].repeat(2)[: n + n * n]
    assert close(a.retract(step), a.compose(Affine.identity(n=n, dtype=dtype).retract(step)), 16 * EPS[dtype])


def test_matrix_round_trip(dtype: torch.dtype) -> None:
    for n in (2, 3):
        x = random_affine(3, 5, n=n, dtype=dtype)
        again = Affine.from_matrix(x.to_matrix())
        assert torch.equal(again.matrix, x.matrix) and torch.equal(again.translation, x.translation)
        assert x.to_matrix()[0, 0, n].tolist() == [0.0] * n + [1.0]


def test_apply_broadcasts_batches_over_points() -> None:
    a, x = random_affine(4, 1), torch.rand(5, 9, 3, dtype=torch.float64)
    moved = a.apply(x)
    assert moved.shape == (4, 5, 9, 3)
    torch.testing.assert_close(moved[3, 2], a[3, 0].apply(x[2]), rtol=0, atol=1e-15)
    assert a.apply(torch.zeros(5, 0, 3, dtype=torch.float64)).shape == (4, 5, 0, 3)


# --- between and amid ----------------------------------------------------------------------------------------------


@given(seeds, sizes, dtypes)
def test_interpolate_joins_its_ends(seed: int, n: int, dtype: torch.dtype) -> None:
    a, b, g = (random_affine(n=n, dtype=dtype, seed=seed + i, spread=0.3) for i in range(3))
    tolerance = 40 * EPS[dtype] * torch.linalg.cond(a.to_matrix()).item()
    assert close(a.interpolate(b, 0.0), a, 4 * EPS[dtype]) and close(a.interpolate(b, 1.0), b, tolerance)
    path = a[None].interpolate(b[None], torch.linspace(0, 1, 5, dtype=dtype))
    assert path.matrix.shape == (5, n, n) and (torch.linalg.det(path.matrix) > 0).all()
    moved = g.compose(a).interpolate(g.compose(b), 0.25)
    assert close(moved, g.compose(path[1]), tolerance * 10 * torch.linalg.cond(g.to_matrix()).item())


def test_interpolate_scales_by_powers() -> None:
    one = Affine.identity(n=2, dtype=torch.float64)
    twice = Affine(2 * one.matrix, torch.ones(2, dtype=torch.float64))
    half = one.interpolate(twice, 0.5)
    torch.testing.assert_close(half.matrix, math.sqrt(2) * one.matrix)
    torch.testing.assert_close(half.translation, torch.full((2,), 0.5, dtype=torch.float64))


@settings(max_examples=6)
@given(seeds, sizes)
def test_mean_is_where_the_logarithms_balance(seed: int, n: int) -> None:
    v = torch.randn(7, n + n * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v[:, n:] *= 0.25 / v[:, n:].norm(dim=-1, keepdim=True)
    a = random_affine(n=n, seed=seed, spread=0.5).compose(Affine.exp(v))
    weights = torch.rand(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    mean = a.mean(weights)
    logs = mean.inverse().compose(a).log()
    assert (logs[:, n:].norm(dim=-1) < 0.5).all()
    assert (weights @ logs / weights.sum()).abs().max() < 1e-12 * torch.linalg.cond(mean.to_matrix())
    assert close(a.mean(), a.mean(torch.ones_like(weights)), 0)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    assert close(a[order].mean(3 * weights[order]), mean, 1e-12)
    g = random_affine(n=n, seed=seed + 1)
    assert close(g.compose(a).mean(weights), g.compose(mean), 1e-11)


def test_mean_of_batches(dtype: torch.dtype) -> None:
    a = random_affine(4, 5, dtype=dtype, spread=0.1)
    mean = a.mean(torch.tensor([0.0, 0, 1, 0, 0], dtype=dtype).expand(4, 5))
    assert mean.matrix.shape == (4, 3, 3) and close(mean, a[:, 2], 16 * EPS[dtype])
    assert close(a[:, :1].mean(), a[:, 0], 16 * EPS[dtype])


# --- as a value ----------------------------------------------------------------------------------------------------


def test_is_a_value(tmp_path: Path) -> None:
    a = random_affine(5, 6, n=2)
    assert a[2].matrix.shape == (6, 2, 2) and a[..., 1].translation.shape == (5, 2)
    assert a.to(torch.float32).matrix.dtype == torch.float32
    a.save(tmp_path / "affine.safetensors")
    assert close(Affine.load(tmp_path / "affine.safetensors"), a, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.translation = torch.zeros(2)  # type: ignore[misc]
    one = Affine.identity(2, 3, n=2, dtype=torch.float32)
    assert one.matrix.shape == (2, 3, 2, 2) and one.translation.shape == (2, 3, 2)
    assert Affine.identity().to_matrix().tolist() == torch.eye(4).tolist()


def test_empty_batches(dtype: torch.dtype) -> None:
    a = random_affine(0, dtype=dtype)
    assert a.compose(a).inverse().log().shape == (0, 12) and a.retract(a.log()).matrix.shape == (0, 3, 3)
    assert random_affine(0, 4, dtype=dtype).mean().matrix.shape == (0, 3, 3)


# --- derivatives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_gradcheck(n: int, scale: float) -> None:
    start, x = random_affine(n=n), points(n)
    v = scale * torch.randn(n + n * n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def moved(v: Tensor) -> tuple[Tensor, Tensor]:
        a = start.retract(v)
        return a.inverse().apply(x), start.inverse().compose(a).log()

    v.requires_grad_()
    torch.autograd.gradcheck(moved, v, check_forward_ad=True)
    torch.autograd.gradgradcheck(moved, v)


@pytest.mark.parametrize("n", [2, 3])
def test_gradcheck_of_interpolate_and_mean(n: int) -> None:
    a, b = random_affine(n=n, spread=0.2), random_affine(n=n, seed=1, spread=0.2)
    for other in (b, a):  # a path that stays where it is, too
        torch.autograd.gradcheck(
            lambda m, t, other=other: a.interpolate(Affine(m, other.translation), t).to_matrix(),
            (other.matrix.clone().requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)),
        )
    several, weights = random_affine(3, n=n, spread=0.1), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def mean(m: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return Affine(m, t).mean(w).to_matrix()

    inputs = [x.clone().requires_grad_() for x in (several.matrix, several.translation, weights)]
    torch.autograd.gradcheck(mean, inputs, fast_mode=True)
    same = several[:1].matrix.repeat(3, 1, 1).requires_grad_()
    (slope,) = torch.autograd.grad(mean(same, several.translation, weights)[:n, :n].sum(), same, create_graph=True)
    torch.testing.assert_close(slope, weights[:, None, None].expand_as(slope), rtol=0, atol=1e-13)  # of equal ones
    (second,) = torch.autograd.grad(slope.square().sum(), same)
    assert second.isfinite().all()


def test_vmap_and_jacrev() -> None:
    a, x = random_affine(5), torch.rand(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(Affine.apply)(a, x), a.apply(x), rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.func.vmap(Affine.log)(a), a.log(), rtol=0, atol=1e-14)
    many = random_affine(5, 3, spread=0.1)
    torch.testing.assert_close(torch.func.vmap(Affine.mean)(many).matrix, many.mean().matrix, rtol=0, atol=1e-14)

    def local(a: Affine, x: Tensor) -> Tensor:
        return torch.func.jacrev(lambda v: a.retract(v).apply(x))(torch.zeros(12, dtype=x.dtype))

    jacobian = torch.func.vmap(local)(a, x)  # d(A (I + dX) x + A dv)
    torch.testing.assert_close(jacobian[..., :3], a.matrix[:, None].expand(5, 4, 3, 3), rtol=0, atol=1e-14)
    want = torch.einsum("bij,djk,bnk->bnid", a.matrix, linear.basis(3, dtype=torch.float64), x)
    torch.testing.assert_close(jacobian[..., 3:], want, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["apply", "compose", "retract", "log", "interpolate", "mean"])
def test_compiles_as_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(affine, "_MEAN_ITERATIONS", 2)  # the rest are the same, and slow to trace
    a, b, x = random_affine(5, spread=0.1), random_affine(5, seed=1, spread=0.1), torch.rand(5, 4, 3).double()
    steps = {
        "apply": lambda: a.apply(x),
        "compose": lambda: a.compose(b).inverse().matrix,
        "retract": lambda: a.retract(b.log()).to_matrix(),
        "log": lambda: Affine.from_matrix(a.to_matrix()).log(),
        "interpolate": lambda: a.interpolate(b, 0.3).matrix,
        "mean": lambda: a.mean().matrix,
    }
    compiled = torch.compile(steps[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), steps[name](), rtol=0, atol=1e-13)


# --- wrong input ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_refuses_wrong_input() -> None:
    eye, zero = torch.eye(3), torch.zeros(3)
    with pytest.raises(
        ShapeError, match=r"matrix: expected a tensor \(\.\.\., 2, 2\) or \(\.\.\., 3, 3\), got .*\(4, 4\)"
    ):
        Affine(torch.eye(4), torch.zeros(4))
    with pytest.raises(ShapeError, match=r"translation: expected a tensor \(\.\.\., 3\), got .*\(2,\)"):
        Affine(eye, torch.zeros(2))
    with pytest.raises(ShapeError, match=r"matrix: expected a tensor \(\.\.\., 3, 3\) or \(\.\.\., 4, 4\)"):
        Affine.from_matrix(torch.eye(2))
    with pytest.raises(ShapeError, match="expected determinants above 0, got a reflection"):
        Affine.from_matrix(torch.diag(torch.tensor([1.0, -1, 1, 1])))
    with pytest.raises(ShapeError, match="expected determinants above 0"):
        Affine(-eye, zero).log()
    with pytest.raises(ShapeError, match=r"tangent: expected a tensor \(\.\.\., 6\) or \(\.\.\., 12\)"):
        Affine.exp(torch.zeros(9))
    with pytest.raises(ShapeError, match=r"points: expected torch.float32 of shape \(\.\.\., K, 3\)"):
        Affine(eye, zero).apply(torch.zeros(4, 2))
    with pytest.raises(ShapeError, match="points: expected"):
        Affine(eye, zero).apply(torch.zeros(4, 3).double())
    for batch in ((), (2, 0)):
        with pytest.raises(ShapeError, match=r"mean: expected a batch \(\.\.\., K\) with K >= 1"):
            Affine.identity(*batch).mean()
    with pytest.raises(ShapeError, match=r"weights: expected a tensor \(2,\), got"):
        Affine.identity(2).mean(torch.ones(3))
    for weights in ([1.0, -0.5], [0.0, 0.0]):
        with pytest.raises(ShapeError, match="weights: expected numbers of at least 0 and not all 0"):
            Affine.identity(2).mean(torch.tensor(weights))


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(TypeError, match="translation"):
        Affine(torch.rand(5, 3, 3), torch.rand(6, 3))
