"""Rotation matrices: against scipy and 50 digits, at the angles where formulas change, and under every transform."""

import math
from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import quaternion, so3
from geom.testing import assert_equivariant, assert_gradients

ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 1e-2, 0.5, 0.99, 1.01, 2.0, math.pi - 1e-3, math.pi - 1e-7]
EPS = {torch.float32: 3e-7, torch.float64: 4e-16}  # what the docstrings guarantee
seeds = st.integers(0, 2**31 - 1)
CONVENTIONS = ["".join(p) for p in permutations("XYZ")] + [a + b + a for a, b in permutations("XYZ", 2)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def axes(count: int = 250) -> Tensor:
    eye = torch.eye(3, dtype=torch.float64)
    return torch.cat([eye, -eye, torch.nn.functional.normalize(draw(count, 3), dim=-1)])


def random_matrix(*batch: int, seed: int = 0) -> Tensor:
    return quaternion.to_matrix(torch.nn.functional.normalize(draw(*batch, 4, seed=seed), dim=-1))


def relative_error(got: Tensor, rotvec: Tensor) -> Tensor:
    """Against the nearer of v and v - 2 pi v/|v|, in 64 bits of mantissa."""
    v, y = rotvec.double().numpy().astype(np.longdouble), got.double().numpy().astype(np.longdouble)
    size = np.sqrt((v * v).sum(-1, keepdims=True))
    other = v - 2 * np.longdouble("3.14159265358979323846") * v / np.where(size > 0, size, 1)
    error = np.minimum(((y - v) ** 2).sum(-1), ((y - other) ** 2).sum(-1))
    return torch.from_numpy((np.sqrt(error) / np.where(size > 0, size, 1)[..., 0]).astype(float))


# --- exp and log ---


@pytest.mark.parametrize("angle", [*ANGLES, math.pi])
@pytest.mark.parametrize("path", ["quaternion", "negative quaternion", "matrix", "matrix of quaternion"])
def test_log_undoes_exp(path: str, angle: float, dtype: torch.dtype) -> None:
    rotvec = (angle * axes()).to(dtype)
    again = {
        "quaternion": lambda: quaternion.log(quaternion.exp(rotvec)),
        "negative quaternion": lambda: quaternion.log(-quaternion.exp(rotvec)),
        "matrix": lambda: so3.log(so3.exp(rotvec)),
        "matrix of quaternion": lambda: so3.log(quaternion.to_matrix(quaternion.exp(rotvec))),
    }[path]()
    assert relative_error(again, rotvec).max() <= EPS[dtype]


@pytest.mark.parametrize("angle", [*ANGLES, math.pi, 6.0, 50.0, 1e5])
def test_exp_is_accurate(angle: float, dtype: torch.dtype) -> None:
    for v in (angle * axes(4)).to(dtype):
        with mpmath.workdps(50):
            w = mpmath.matrix([[mpmath.mpf(x) for x in row] for row in so3.hat(v.double()).tolist()])
            theta = mpmath.sqrt(sum(mpmath.mpf(x) ** 2 for x in v.tolist())) or mpmath.mpf(1)
            a, b = mpmath.sin(theta) / theta, 2 * (mpmath.sin(theta / 2) / theta) ** 2
            want = mpmath.eye(3) + a * w + b * w * w
            want = torch.tensor([[float(want[i, j]) for j in range(3)] for i in range(3)], dtype=torch.float64)
        assert (so3.exp(v).double() - want).abs().max() < EPS[dtype]


def test_against_scipy() -> None:
    v = 2 * draw(100, 3)
    assert (so3.exp(v) - torch.from_numpy(Rotation.from_rotvec(v).as_matrix())).abs().max() < 1e-15
    matrix = random_matrix(100)
    assert (so3.log(matrix) - torch.from_numpy(Rotation.from_matrix(matrix).as_rotvec())).abs().max() < 4e-15


@pytest.mark.parametrize("angle", [a for a in ANGLES if a < math.pi - 1e-6])
def test_gradient_of_the_round_trip_is_the_identity(angle: float, dtype: torch.dtype) -> None:
    v = (angle * axes(20)).to(dtype).requires_grad_()
    out = so3.log(so3.exp(v))
    jacobian = torch.stack([torch.autograd.grad(out[:, k].sum(), v, retain_graph=True)[0] for k in range(3)], -2)
    assert (jacobian - torch.eye(3, dtype=dtype)).abs().max() < {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]


# --- hat and vee ---


def test_hat_is_the_cross_product_and_vee_undoes_it() -> None:
    v, x = draw(5, 3), draw(5, 3, seed=1)
    assert torch.equal(so3.vee(so3.hat(v)), v)
    assert (so3.hat(v) @ x[..., None] - torch.linalg.cross(v, x)[..., None]).abs().max() < 1e-15
    assert torch.equal(so3.vee(so3.hat(v) + torch.eye(3, dtype=v.dtype)), v)  # the skew part alone


# --- six numbers ---


def test_6d_there_and_back(dtype: torch.dtype) -> None:
    matrix = random_matrix(50).to(dtype)
    assert (so3.from_6d(so3.to_6d(matrix)) - matrix).abs().max() < 4 * EPS[dtype]
    assert torch.equal(so3.to_6d(matrix)[:, :3], matrix[:, :, 0])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("angle", [1e-7, 1e-5, 1e-2, 1.0])
def test_6d_is_orthogonal_however_close_the_columns(angle: float, scale: float, dtype: torch.dtype) -> None:
    first, other = draw(50, 3), draw(50, 3, seed=1)
    second = first + angle * other
    matrix = so3.from_6d((scale * torch.cat([first, second], -1)).to(dtype))
    assert (matrix @ matrix.mT - torch.eye(3, dtype=dtype)).abs().max() < 4 * EPS[dtype]
    assert torch.linalg.det(matrix).min() > 0.99


def test_6d_without_a_plane() -> None:
    columns = torch.tensor([[0.0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 2, 3], [1, 2, 3, 2, 4, 6], [0, 0, 5, 0, 0, -1]])
    columns = columns.double().requires_grad_()
    matrix = so3.from_6d(columns)
    assert (matrix @ matrix.mT - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-15
    (gradient,) = torch.autograd.grad(matrix.square().cos().sum(), columns, create_graph=True)
    assert gradient.isfinite().all() and torch.equal(gradient[0], torch.zeros(6, dtype=torch.float64))
    assert torch.autograd.grad(gradient.square().sum(), columns)[0].isfinite().all()
    assert torch.equal(matrix[0, :, 0].detach(), torch.tensor([1.0, 0, 0], dtype=torch.float64))


# --- Euler angles ---


@pytest.mark.parametrize("convention", [c for name in CONVENTIONS for c in (name, name.lower())])
def test_euler_against_scipy(convention: str) -> None:
    angles = draw(50, 3)
    want = torch.from_numpy(Rotation.from_euler(convention, angles).as_matrix())
    assert (so3.from_euler(angles, convention) - want).abs().max() < 1e-15
    matrix = random_matrix(200)
    got, theirs = so3.to_euler(matrix, convention), Rotation.from_matrix(matrix).as_euler(convention)
    assert (got - torch.from_numpy(theirs)).abs().max() < 1e-13
    assert (so3.from_euler(got, convention) - matrix).abs().max() < 2e-15


@pytest.mark.parametrize("convention", [c for name in CONVENTIONS for c in (name, name.lower())])
def test_euler_at_a_lock(convention: str, dtype: torch.dtype) -> None:
    symmetric = convention[0] == convention[2]
    for middle in (0.0, math.pi) if symmetric else (-math.pi / 2, math.pi / 2):
        angles = torch.tensor([[0.7, middle, 0.4], [0.0, middle, 0.0], [-3.0, middle, 2.0]], dtype=dtype)
        matrix = so3.from_euler(angles, convention).requires_grad_()
        found = so3.to_euler(matrix, convention)
        assert (found[:, 2] == 0).all() and (found[:, 1] - middle).abs().max() < 1e-3
        assert (so3.from_euler(found, convention) - matrix).abs().max() < 8 * EPS[dtype]
        (gradient,) = torch.autograd.grad(found.square().sum(), matrix)
        assert gradient.isfinite().all()


def test_euler_angles_stay_in_their_ranges() -> None:
    for convention, low, high in (("XYZ", -math.pi / 2, math.pi / 2), ("ZXZ", 0.0, math.pi)):
        found = so3.to_euler(random_matrix(2000), convention)
        assert found[:, 1].min() >= low and found[:, 1].max() <= high
        assert found.abs().max() <= math.pi


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("convention", ["XY", "XXY", "XYy", "abc", "", "XYZW", 3, None, "ZYY"])
def test_wrong_conventions(convention: Any) -> None:
    with pytest.raises(ShapeError, match="convention: expected"):
        so3.from_euler(draw(3), convention)
    with pytest.raises(ShapeError, match="convention: expected"):
        so3.to_euler(random_matrix(1), convention)


# --- projection and mean ---


def test_project_gives_the_nearest_rotation(dtype: torch.dtype) -> None:
    matrix = draw(400, 3, 3).to(dtype)
    nearest = so3.project(matrix)
    assert (nearest @ nearest.mT - torch.eye(3, dtype=dtype)).abs().max() < 2 * EPS[dtype] + 1e-15
    u, _, vh = np.linalg.svd(matrix.double().numpy())
    want = u @ (np.array([1.0, 1, 1])[:, None] * vh)
    mirrored = np.linalg.det(want) < 0
    want[mirrored] = (u[mirrored] * [1.0, 1, -1]) @ vh[mirrored]
    gap = torch.from_numpy(np.linalg.svd(matrix.double().numpy(), compute_uv=False))
    apart = (gap[:, 1] - gap[:, 2]) / gap[:, 0] > 1e-2
    assert (nearest.double() - torch.from_numpy(want))[apart].abs().max() < 300 * EPS[dtype]
    assert (so3.project(nearest) - nearest).abs().max() < 4 * EPS[dtype]


@given(seeds, st.floats(0.01, 1.2), st.integers(1, 9))
def test_mean_is_stationary(seed: int, spread: float, count: int) -> None:
    middle = random_matrix(seed=seed)
    tangent = spread * torch.nn.functional.normalize(draw(count, 3, seed=seed), dim=-1)
    weights = draw(count, seed=seed + 1).abs() + 0.1
    found = so3.mean(middle @ so3.exp(tangent), weights)
    pull = (weights[:, None] * so3.log(found.mT @ middle @ so3.exp(tangent))).sum(0) / weights.sum()
    assert pull.abs().max() < 4e-15


def test_mean_of_one_and_of_two() -> None:
    a, b = random_matrix(2)
    assert (so3.mean(a[None]) - a).abs().max() < 2e-15
    half = a @ so3.exp(so3.log(a.mT @ b) / 2)
    assert (so3.mean(torch.stack([a, b])) - half).abs().max() < 4e-15
    third = a @ so3.exp(so3.log(a.mT @ b) / 3)
    assert (so3.mean(torch.stack([a, b]), torch.tensor([4.0, 2.0]).double()) - third).abs().max() < 4e-15


def test_mean_moves_with_its_rotations() -> None:
    spread = so3.exp(0.6 * draw(6, 3))
    turns = list(random_matrix(5))
    for act in (lambda g, x: g @ x, lambda g, x: x @ g):
        assert_equivariant(so3.mean, spread, act_in=act, act_out=act, elements=turns, tolerance=4e-15)


def test_mean_of_far_apart_rotations_is_a_rotation(dtype: torch.dtype) -> None:
    far = quaternion.to_matrix(torch.eye(4, dtype=dtype)).requires_grad_()  # 1 and the three half turns
    found = so3.mean(far)
    assert (found @ found.mT - torch.eye(3, dtype=dtype)).abs().max() < 1e-5
    assert torch.autograd.grad(found.sum(), far)[0].isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_mean_of_nothing() -> None:
    with pytest.raises(ShapeError, match=r"matrix: expected rotations \(\.\.\., N, 3, 3\) with N of at least 1"):
        so3.mean(torch.zeros(0, 3, 3))
    with pytest.raises(ShapeError, match="matrix: expected rotations"):
        so3.mean(torch.eye(3))
    for weights in ([0.0, 0.0], [1.0, -0.5]):
        with pytest.raises(ShapeError, match="weights: expected"):
            so3.mean(torch.eye(3).expand(2, 3, 3), torch.tensor(weights))


# --- Jacobians ---


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.99, 1.01, 2.5, math.pi, 5.0])
def test_jacobians(angle: float) -> None:
    v = angle * axes(1)[-1]
    eye = torch.eye(3, dtype=torch.float64)

    def moved(left: bool) -> Tensor:
        change = torch.func.jacfwd(so3.exp)(v)  # d exp(v) = hat(J dv) exp(v) = exp(v) hat(J dv)
        step = change.movedim(-1, 0)
        return so3.vee(step @ so3.exp(v).mT if left else so3.exp(v).mT @ step).mT

    assert (so3.left_jacobian(v) - moved(True)).abs().max() < 1e-14
    assert (so3.right_jacobian(v) - moved(False)).abs().max() < 1e-14
    assert (so3.left_jacobian(v) @ so3.left_jacobian_inverse(v) - eye).abs().max() < 4e-15
    assert (so3.right_jacobian(v) @ so3.right_jacobian_inverse(v) - eye).abs().max() < 4e-15


# --- every function under every transform ---

V, R = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64), random_matrix()
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "exp": (so3.exp, (V,)),
    "log": (so3.log, (R,)),
    "hat": (so3.hat, (V,)),
    "vee": (so3.vee, (R,)),
    "from_6d": (so3.from_6d, (draw(6),)),
    "to_6d": (so3.to_6d, (R,)),
    "from_euler": (lambda x: so3.from_euler(x, "XYZ"), (V,)),
    "to_euler": (lambda x: so3.to_euler(x, "zxz"), (R,)),
    "project": (so3.project, (draw(3, 3),)),
    "mean": (so3.mean, (so3.exp(0.5 * draw(3, 3)), draw(3).abs())),
    "left_jacobian": (so3.left_jacobian, (V,)),
    "left_jacobian_inverse": (so3.left_jacobian_inverse, (V,)),
    "right_jacobian": (so3.right_jacobian, (V,)),
    "right_jacobian_inverse": (so3.right_jacobian_inverse, (V,)),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", so3.__all__)
def test_every_transform(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    assert_gradients(function, *inputs, compile=True, tolerance=1e-13)


@pytest.mark.parametrize("name", ["exp", "left_jacobian", "left_jacobian_inverse", "right_jacobian_inverse"])
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1.0, math.pi])
def test_derivatives_at_singular_points(name: str, angle: float) -> None:
    assert_gradients(getattr(so3, name), angle * axes(1)[-1])


@pytest.mark.parametrize("turn", [[0.0, 0, 0], [math.pi, 0, 0], [0, 0, math.pi], [0.6 * math.pi, 0, 0.8 * math.pi]])
def test_log_is_finite_where_it_breaks(turn: list[float], dtype: torch.dtype) -> None:
    matrix = so3.exp(torch.tensor(turn, dtype=dtype)).requires_grad_()
    out = so3.log(matrix)
    (first,) = torch.autograd.grad(out.square().sum() + out.sum(), matrix, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), matrix)
    assert out.isfinite().all() and first.isfinite().all() and second.isfinite().all()


@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_batches_of_any_shape(shape: tuple[int, ...]) -> None:
    v = draw(*shape, 3)
    assert so3.log(so3.exp(v)).shape == (*shape, 3)
    assert so3.from_6d(so3.to_6d(so3.exp(v))).shape == (*shape, 3, 3)
    assert so3.to_euler(so3.from_euler(v, "XYZ"), "XYZ").shape == (*shape, 3)
    assert so3.left_jacobian(v).shape == so3.project(so3.exp(v)).shape == (*shape, 3, 3)


def test_dtypes_stay() -> None:
    for dtype, name in product((torch.float32, torch.float64), so3.__all__):
        function, inputs = FUNCTIONS[name]
        assert function(*(x.to(dtype) for x in inputs)).dtype == dtype


def test_halves() -> None:
    matrix = random_matrix(3).half()
    assert so3.project(matrix).dtype == torch.float16
    assert (so3.project(matrix) - matrix).abs().max() < 2e-3
    assert so3.log(matrix).dtype == torch.float16
