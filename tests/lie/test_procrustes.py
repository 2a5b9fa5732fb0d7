"""Nearest rotations and weighted alignment: against scipy and closed forms, and where the answer is open."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from geom.errors import ShapeError
from geom.lie import quaternion
from geom.lie._polar import OPEN, nearest_rotation
from geom.lie.procrustes import kabsch, umeyama

EPS = {torch.float32: 2e-6, torch.float64: 4e-15}  # what the docstrings guarantee, divided by the gap
seeds = st.integers(0, 2**31 - 1)
one = torch.eye(3, dtype=torch.float64)

# matrices M = U diag(s) V^T; the last two are reflections
FIRM = {
    "generic": (3.0, 2.0, 1.0),
    "scaled rotation": (2.0, 2.0, 2.0),
    "first two equal": (2.0, 2.0, 1.0),
    "last two equal": (2.0, 1.0, 1.0),
    "rank 2": (2.0, 1.0, 0.0),
    "rank 2, equal": (1.0, 1.0, 0.0),
    "mirrored": (3.0, 2.0, -1.0),
    "mirrored, equal": (2.0, 2.0, -1.0),
}
OPENED = {
    "zero": (0.0, 0.0, 0.0),
    "rank 1": (2.0, 0.0, 0.0),
    "mirrored, open": (2.0, 1.0, -1.0),
    "minus a rotation": (1.0, 1.0, -1.0),
}


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rotations(*batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    q = randn(*batch, 4, seed=seed)
    return quaternion.to_matrix(q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)).to(dtype)


def matrices(values: tuple[float, ...], count: int = 4, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """U diag(s) V^T and U V^T."""
    u, v = rotations(count, seed=seed), rotations(count, seed=seed + 1)
    return u * torch.tensor(values, dtype=torch.float64) @ v, u @ v


# --- the nearest rotation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 700], ids=["lapack", "jacobi"])
@pytest.mark.parametrize("values", FIRM.values(), ids=FIRM)
def test_nearest_rotation_is_the_polar_factor(values: tuple[float, ...], count: int, dtype: torch.dtype) -> None:
    m, want = matrices(values, count)
    rotation, gap = nearest_rotation(m.to(dtype))
    assert (rotation.double() - want).abs().max() < EPS[dtype]
    assert (gap - (values[1] + values[2]) / values[0]).abs().max() < EPS[dtype]
    assert (rotation.mT @ rotation - one.to(dtype)).abs().max() < (1e-15 if dtype == torch.float64 else 5e-7)


@pytest.mark.parametrize("count", [4, 700], ids=["lapack", "jacobi"])
@pytest.mark.parametrize("values", OPENED.values(), ids=OPENED)
def test_open_rotations_are_proper_maximisers(values: tuple[float, ...], count: int, dtype: torch.dtype) -> None:
    m = matrices(values, count)[0].to(dtype)
    rotation, gap = nearest_rotation(m)
    assert (gap < OPEN[dtype]).all()
    assert (rotation.mT @ rotation - one.to(dtype)).abs().max() < (1e-15 if dtype == torch.float64 else 5e-7)
    assert (torch.linalg.det(rotation) - 1).abs().max() < (1e-15 if dtype == torch.float64 else 5e-7)
    assert ((rotation * m).sum((-2, -1)) - sum(values)).abs().max() < 4 * EPS[dtype]


@pytest.mark.parametrize("count", [4, 700], ids=["lapack", "jacobi"])
def test_an_open_rotation_is_the_one_nearest_to_the_identity(count: int, dtype: torch.dtype) -> None:
    a, b = (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in randn(2, count, 3))
    rotation, _ = nearest_rotation((3 * a[:, :, None] * b[:, None, :]).to(dtype))
    cross = torch.linalg.cross(b, a)  # the shortest arc from b to a
    angle = torch.atan2(torch.linalg.vector_norm(cross, dim=-1), (a * b).sum(-1))
    want = quaternion.to_matrix(quaternion.exp(cross * (angle / angle.sin())[:, None]))
    assert (rotation.double() - want).abs().max() < 1e3 * EPS[
        dtype
    ]  # near opposite vectors the arc's plane is ill held
    assert torch.equal(nearest_rotation(torch.zeros(count, 3, 3, dtype=dtype))[0][0], one.to(dtype))


@given(seeds, st.floats(-12, 0), st.floats(-12, 0))
def test_jacobi_and_lapack_agree(seed: int, second: float, third: float) -> None:
    values = (1.0, 10**second, 10 ** (second + third))
    m = matrices(values, 601, seed=seed)[0]
    many, gap = nearest_rotation(m)
    few, few_gap = (torch.cat(x) for x in zip(*(nearest_rotation(x) for x in m.split(200)), strict=True))
    assert ((many - few).abs().amax((-2, -1)) * gap).max() < 2e-14
    assert (gap - few_gap).abs().max() < 1e-14


@pytest.mark.parametrize("scale", [1e-30, 1e-300, 1e30, 1e150])
def test_nearest_rotation_does_not_see_the_scale(scale: float) -> None:
    m = randn(3, 3, 3)
    assert (nearest_rotation(scale * m)[0] - nearest_rotation(m)[0]).abs().max() < 1e-14


@pytest.mark.parametrize("values", FIRM.values(), ids=FIRM)
def test_nearest_rotation_has_exact_derivatives(values: tuple[float, ...]) -> None:
    m = matrices(values, 2)[0].requires_grad_()

    def rotation(x: Tensor) -> Tensor:
        return nearest_rotation(x)[0]

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad((rotation(x) * randn(3, 3)).sum(), x, create_graph=True)[0]

    assert gradcheck(rotation, m, check_forward_ad=True) and gradgradcheck(rotation, m)
    assert gradgradcheck(gradient, m)  # third order


@pytest.mark.parametrize("values", OPENED.values(), ids=OPENED)
def test_open_rotations_have_finite_derivatives(values: tuple[float, ...], dtype: torch.dtype) -> None:
    m = matrices(values)[0].to(dtype).requires_grad_()
    rotation, gap = nearest_rotation(m)
    (first,) = torch.autograd.grad((rotation * randn(3, 3, dtype=dtype)).sum(), m, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), m)
    assert first.isfinite().all() and second.isfinite().all() and not gap.requires_grad
    assert (first.abs().amax() > 0) == (sum(values) > 0)


def test_the_gradient_leaves_an_open_rotation_alone() -> None:
    m = torch.diag(torch.tensor([2.0, 0, 0], dtype=torch.float64)).requires_grad_()
    rotation, _ = nearest_rotation(m)  # the identity; open about x
    about_x, about_z = (torch.autograd.grad(rotation[i], m, retain_graph=True)[0] for i in ((2, 1), (1, 0)))
    assert about_x.abs().max() == 0
    assert torch.allclose(about_z, torch.tensor([[0, -0.5, 0], [0.5, 0, 0], [0, 0, 0]], dtype=torch.float64))


# --- alignment -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 100])
@pytest.mark.parametrize("batch", [20, 2000])
def test_a_known_motion_is_found(batch: int, count: int, dtype: torch.dtype) -> None:
    rotation, shift, x = rotations(batch), randn(batch, 1, 3, seed=1), randn(batch, count, 3, seed=2)
    y, weights = x @ rotation.mT + shift, randn(batch, count, seed=3).square() + 0.1
    x, weights = x.to(dtype), weights.to(dtype)
    for fit, scale in ((kabsch(x, y.to(dtype), weights=weights), 1), (umeyama(x, 3 * y.to(dtype), weights=weights), 3)):
        gap, tolerance = fit.gap.double(), EPS[dtype]
        assert ((fit.rotation.double() - rotation).abs().amax((-2, -1)) * gap).max() < tolerance
        assert ((fit.translation.double() / scale - shift[:, 0]).abs().amax(-1) * gap).max() < 4 * tolerance
        assert ((fit.scale.double() / scale - 1).abs() * gap).max() < 2 * tolerance
        assert (fit.rmse * gap.to(dtype)).max() < 10 * scale * tolerance
        assert torch.equal(fit.ambiguous, fit.gap < OPEN[dtype]) and fit.rotation.dtype == dtype
        assert not fit.ambiguous[gap > 1e-3].any()


@given(seeds)
def test_kabsch_is_scipys(seed: int) -> None:
    x, y = randn(2, 6, 3, seed=seed)
    weights = randn(6, seed=seed + 1).square()
    share = (weights / weights.sum())[:, None]
    x_mean, y_mean = (share * x).sum(0), (share * y).sum(0)
    want, _ = Rotation.align_vectors((y - y_mean).numpy(), (x - x_mean).numpy(), weights=weights.numpy())
    fit = kabsch(x, y, weights=weights)
    assert (fit.rotation - torch.from_numpy(want.as_matrix())).abs().max() * fit.gap < 1e-13
    assert (fit.translation - (y_mean - fit.rotation @ x_mean)).abs().max() < 1e-13
    error = x @ fit.rotation.T + fit.translation - y
    assert abs(float(fit.rmse) - float((share * error.square()).sum().sqrt())) < 1e-13


@given(seeds)
def test_no_similarity_near_umeyamas_fits_better(seed: int) -> None:
    x, y = randn(2, 5, 3, seed=seed)
    weights = randn(5, seed=seed + 1).square()
    fit = umeyama(x, y, weights=weights)

    def cost(rotation: Tensor, translation: Tensor, scale: Tensor) -> Tensor:
        error = scale * x @ rotation.T + translation - y
        return (weights[:, None] * error.square()).sum()

    best = cost(fit.rotation, fit.translation, fit.scale)
    for i in range(10):
        turn, shift, stretch = (1e-3 * randn(9, seed=i)).split([3, 3, 3])
        rotation = fit.rotation @ quaternion.to_matrix(quaternion.exp(turn))
        assert cost(rotation, fit.translation + shift, fit.scale + stretch[0]) >= best


def test_weights_of_any_scale_and_of_zero(dtype: torch.dtype) -> None:
    x, y, weights = randn(7, 3, dtype=dtype), randn(7, 3, dtype=dtype, seed=1), torch.ones(7, dtype=dtype)
    weights[5:] = 0
    some, few = umeyama(x, y, weights=1e-20 * weights), umeyama(x[:5], y[:5])
    for a, b in zip(some[:5], few[:5], strict=True):
        assert (a - b).abs().max() < 10 * EPS[dtype]
    assert (kabsch(x, y).rotation - kabsch(x, y, weights=weights).rotation).abs().max() > 0.1


def test_batches_broadcast() -> None:
    x, y, weights = randn(5, 3), randn(4, 1, 5, 3), randn(2, 5, seed=1).square()
    fit = umeyama(x, y, weights=weights)
    assert fit.rotation.shape == (4, 2, 3, 3) and fit.translation.shape == (4, 2, 3) and fit.rmse.shape == (4, 2)
    assert (fit.rotation[3, 1] - umeyama(x, y[3, 0], weights=weights[1]).rotation).abs().max() < 1e-14
    assert kabsch(x, randn(0, 5, 3)).rotation.shape == (0, 3, 3)


def _mirror(x: Tensor) -> Tensor:
    return x * torch.tensor([1, 1, -1.0], dtype=x.dtype)


_octahedron = torch.cat([torch.eye(3), -torch.eye(3)]).double()
_line = torch.tensor([[0.0, 0, 0], [1, 2, 3], [-2, -4, -6], [3, 6, 9]], dtype=torch.float64)
AMBIGUOUS = {
    "one point": (randn(1, 3), randn(1, 3, seed=1), None),
    "two points": (randn(2, 3), randn(2, 3, seed=1), None),
    "collinear": (_line, randn(4, 3), None),
    "collinear both": (_line, _line @ rotations().T + 7, None),
    "coincident": (torch.full((5, 3), 0.1, dtype=torch.float64), randn(5, 3), None),
    "coincident target": (randn(5, 3), torch.full((5, 3), 0.1, dtype=torch.float64), None),
    "coincident both": (
        torch.full((5, 3), 0.1, dtype=torch.float64),
        torch.full((5, 3), 0.7, dtype=torch.float64),
        None,
    ),
    "no weight": (randn(5, 3), randn(5, 3, seed=1), torch.zeros(5, dtype=torch.float64)),
    "weight on one": (randn(5, 3), randn(5, 3, seed=1), torch.tensor([0, 0, 1.0, 0, 0], dtype=torch.float64)),
    "mirror image of a sphere-like set": (_octahedron, _mirror(_octahedron), None),
}
UNIQUE = {
    "generic": (randn(5, 3), randn(5, 3, seed=1), None),
    "onto itself": (randn(5, 3), randn(5, 3), None),
    "sphere-like": (_octahedron, _octahedron @ rotations().T, None),
    "coplanar": (randn(5, 3) * torch.tensor([1, 1, 0.0]), randn(5, 3, seed=1) * torch.tensor([1, 0.0, 1]), None),
    "triangle": (randn(3, 3), randn(3, 3, seed=1), None),
    "mirror image": (randn(6, 3), _mirror(randn(6, 3)), None),
    "weighted": (randn(5, 3), randn(5, 3, seed=1), torch.tensor([1, 2, 0.5, 3, 1.0], dtype=torch.float64)),
}


@pytest.mark.parametrize("align", [kabsch, umeyama])
@pytest.mark.parametrize("case", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_points_are_reported_and_harmless(
    case: tuple[Tensor, Tensor, Tensor | None], align: Callable, dtype: torch.dtype
) -> None:
    x, y, weights = (None if t is None else t.to(dtype).clone().requires_grad_() for t in case)
    assert x is not None and y is not None
    inputs = [t for t in (x, y, weights) if t is not None]
    fit = align(x, y, weights=weights)
    assert bool(fit.ambiguous)
    assert (fit.rotation.mT @ fit.rotation - one.to(dtype)).abs().max() < (1e-15 if dtype == torch.float64 else 5e-7)
    assert torch.linalg.det(fit.rotation) > 0
    total = sum((t * randn(*t.shape, dtype=dtype, seed=5)).sum() for t in fit[:4])
    assert isinstance(total, Tensor)
    first = torch.autograd.grad(total, inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    assert all(t.isfinite().all() for t in (*fit, *first, *second))


def test_which_rotation_an_ambiguous_fit_gives(dtype: torch.dtype) -> None:
    same = torch.full((5, 3), 0.1, dtype=dtype)
    for x, y, weights in ((same, randn(5, 3, dtype=dtype), None), (randn(5, 3, dtype=dtype), same, same[:, 0] * 0)):
        fit = umeyama(x, y, weights=weights)
        assert torch.equal(fit.rotation, torch.eye(3, dtype=dtype)) and float(fit.scale) in (0, 1)
    x, y = torch.tensor([[[0.0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 2, 0]]], dtype=dtype)
    fit = umeyama(x, y)  # two points: the shortest arc
    want = torch.tensor([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]], dtype=dtype)
    assert (fit.rotation - want).abs().max() < EPS[dtype] and abs(float(fit.scale) - 2) < 2 * EPS[dtype]


@pytest.mark.parametrize("case", UNIQUE.values(), ids=UNIQUE)
def test_unique_points_have_exact_derivatives(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    x, y, weights = case
    weights = torch.ones(len(x), dtype=torch.float64) if weights is None else weights
    inputs = tuple(t.clone().requires_grad_() for t in (x, y, weights))
    assert not kabsch(x, y, weights=weights).ambiguous

    def fit(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        rotation, translation, scale, rmse, *_ = umeyama(x, y, weights=weights)
        return (rotation, translation, scale) if float(rmse.detach()) < 1e-6 else (rotation, translation, scale, rmse)

    assert gradcheck(fit, inputs, check_forward_ad=True) and gradgradcheck(fit, inputs)


def test_transforms() -> None:
    x, y, weights = randn(6, 5, 3), randn(6, 5, 3, seed=1), randn(6, 5, seed=2).square()

    def fit(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        fitted = umeyama(x, y, weights=weights)
        return torch.cat([fitted.scale * fitted.rotation, fitted.translation[None]])

    want = torch.stack([fit(*arguments) for arguments in zip(x, y, weights, strict=True)])
    assert (torch.func.vmap(fit)(x, y, weights) - want).abs().max() < 1e-13
    forward, reverse = (
        torch.func.vmap(d(fit, argnums=(0, 1, 2)))(x, y, weights) for d in (torch.func.jacfwd, torch.func.jacrev)
    )
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(forward, reverse, strict=True))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*autograd.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_compile() -> None:
    def fit(x: Tensor, y: Tensor) -> Tensor:
        fitted = umeyama(x, y)
        return torch.cat([fitted.scale[..., None, None] * fitted.rotation, fitted.translation[..., None]], -1)

    x, y = randn(4, 5, 3).requires_grad_(), randn(4, 5, 3, seed=1)
    compiled = torch.compile(fit, fullgraph=True, backend="aot_eager")
    assert (compiled(x, y) - fit(x, y)).abs().max() < 1e-14
    gradients = [torch.autograd.grad(f(x, y).square().sum(), x)[0] for f in (compiled, fit)]
    assert torch.sub(*gradients).abs().max() < 1e-13


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("source", "target", "weights", "match"),
    [
        (randn(5, 2), randn(5, 3), None, "source: expected"),
        (randn(5, 3), randn(3), None, "target: expected"),
        (randn(0, 3), randn(0, 3), None, "N at least 1"),
        (randn(5, 3), randn(4, 3), None, "one point for each of the 5"),
        (randn(5, 3), randn(5, 3).float(), None, "one dtype"),
        (randn(5, 3), randn(5, 3), torch.ones(4, dtype=torch.float64), "weights: expected"),
        (randn(5, 3), randn(5, 3), torch.ones(5), "one dtype"),
        (randn(5, 3), randn(5, 3), torch.tensor([1, 1, 1, 1, -math.pi], dtype=torch.float64), "got -3.14"),
        ([[0.0, 0, 0]], randn(1, 3), None, "got a list"),
    ],
)
def test_wrong_input(source: Tensor, target: Tensor, weights: Tensor | None, match: str) -> None:
    for align in (kabsch, umeyama):
        with pytest.raises(ShapeError, match=match):
            align(source, target, weights=weights)
