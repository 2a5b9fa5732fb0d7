"""`Rigid` as a group, a map of points and a value: against scipy, under autograd, functorch and torch.compile."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import Rigid
from geom.values import Fit

EPS = {torch.float32: 6e-7, torch.float64: 1e-15}  # what the docstring guarantees, in units of the lengths involved


def random_rigid(*batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Rigid:
    draw = torch.Generator().manual_seed(seed)
    quat = torch.randn(*batch, 4, generator=draw, dtype=torch.float64)
    quat = quat / torch.linalg.vector_norm(quat, dim=-1, keepdim=True)
    return Rigid(quat, torch.randn(*batch, 3, generator=draw, dtype=torch.float64)).to(dtype)


def close(a: Rigid, b: Rigid, tolerance: float) -> bool:
    return bool(((a.to_matrix() - b.to_matrix()).abs() <= tolerance * (1 + b.to_matrix().abs())).all())


def as_scipy(x: Rigid) -> Rotation:
    return Rotation.from_quat(x.quat_wxyz.double().numpy()[..., [1, 2, 3, 0]])


# --- the group -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31 - 1), st.sampled_from([torch.float32, torch.float64]))
def test_group_axioms(seed: int, dtype: torch.dtype) -> None:
    a, b, c = (random_rigid(dtype=dtype, seed=seed + i) for i in range(3))
    one, tolerance = Rigid.identity(dtype=dtype), 8 * EPS[dtype]
    assert close(a.compose(b).compose(c), a.compose(b.compose(c)), 4 * tolerance)
    assert close(a.compose(one), a, 0) and close(one.compose(a), a, 0)
    assert close(a.compose(a.inverse()), one, tolerance) and close(a.inverse().compose(a), one, tolerance)
    assert close(a.inverse().inverse(), a, tolerance)


@given(st.integers(0, 2**31 - 1), st.sampled_from([torch.float32, torch.float64]))
def test_apply_is_an_action_by_isometries(seed: int, dtype: torch.dtype) -> None:
    a, b = random_rigid(dtype=dtype, seed=seed), random_rigid(dtype=dtype, seed=seed + 1)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    length = x.norm(dim=-1).max() + a.translation.norm() + b.translation.norm()
    assert (a.compose(b).apply(x) - a.apply(b.apply(x))).abs().max() < 8 * EPS[dtype] * length
    assert (a.inverse().apply(a.apply(x)) - x).abs().max() < 8 * EPS[dtype] * length
    moved = a.apply(x)
    assert ((moved[1:] - moved[:1]).norm(dim=-1) - (x[1:] - x[:1]).norm(dim=-1)).abs().max() < 8 * EPS[dtype] * length


@given(st.integers(0, 2**31 - 1), st.sampled_from([torch.float32, torch.float64]))
def test_retract_is_on_the_right_and_unit(seed: int, dtype: torch.dtype) -> None:
    a = random_rigid(dtype=dtype, seed=seed)
    twist = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    moved = a.retract(twist)
    assert close(moved, a.compose(Rigid.identity(dtype=dtype).retract(twist)), 8 * EPS[dtype])
    assert (moved.quat_wxyz.norm() - 1).abs() < 2 * EPS[dtype]
    assert close(a.retract(torch.zeros_like(twist)), a, 4 * EPS[dtype])


# --- against scipy and by hand -------------------------------------------------------------------------------------


def test_matches_scipy(dtype: torch.dtype) -> None:
    a, b = random_rigid(200, dtype=dtype), random_rigid(200, dtype=dtype, seed=1)
    x = torch.randn(200, 7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    rotation = torch.from_numpy(as_scipy(a).as_matrix())
    want = torch.einsum("bij,bnj->bni", rotation, x.double()) + a.translation.double()[:, None]
    assert (a.apply(x) - want).abs().max() < 8 * EPS[dtype]
    product = torch.from_numpy((as_scipy(a) * as_scipy(b)).as_matrix())
    assert (a.compose(b).to_matrix()[..., :3, :3] - product).abs().max() < 4 * EPS[dtype]


def test_apply_broadcasts_batches_over_points() -> None:
    poses, x = random_rigid(4, 1), torch.rand(5, 9, 3, dtype=torch.float64)
    moved = poses.apply(x)
    assert moved.shape == (4, 5, 9, 3)
    torch.testing.assert_close(moved[3, 2], poses[3, 0].apply(x[2]), rtol=0, atol=1e-15)
    assert poses.apply(torch.zeros(5, 0, 3, dtype=torch.float64)).shape == (4, 5, 0, 3)


def test_matrix_round_trip(dtype: torch.dtype) -> None:
    x = random_rigid(3, 50, dtype=dtype)
    again = Rigid.from_matrix(x.to_matrix())
    assert again.quat_wxyz.dtype == dtype and close(again, x, 4 * EPS[dtype])
    assert (again.quat_wxyz[..., 0] >= 0).all()
    assert x.to_matrix()[0, 0, 3].tolist() == [0, 0, 0, 1]


def test_matmul_is_compose() -> None:
    a, b = random_rigid(seed=1), random_rigid(seed=2)
    assert close(a @ b, a.compose(b), 0)


@pytest.mark.usefixtures("unchecked")
def test_from_matrix_refuses_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"expected a tensor \(\.\.\., 4, 4\), got .*\(3, 3\)"):
        Rigid.from_matrix(torch.eye(3))


def test_shapes_are_checked_in_tests() -> None:
    """The hook works, on functions and on constructors: a test suite that forgot it would pass with wrong shapes."""
    with pytest.raises(TypeError, match="parameter 'points'"):
        Rigid.identity().apply(torch.rand(5, 4))
    with pytest.raises(TypeError, match="translation"):
        Rigid(torch.rand(5, 4), torch.rand(6, 3))


# --- as a value ----------------------------------------------------------------------------------------------------


def test_indexes_the_batch_only() -> None:
    x = random_rigid(5, 6)
    assert x[2].quat_wxyz.shape == (6, 4) and x[2, 3].translation.shape == (3,)
    assert x[..., 1].quat_wxyz.shape == (5, 4) and x[None].translation.shape == (1, 5, 6, 3)
    assert x[torch.tensor([0, 2])].quat_wxyz.shape == (2, 6, 4) and x[1:3, ::2].translation.shape == (2, 3, 3)
    torch.testing.assert_close(x[..., 1].translation, x.translation[:, 1])
    with pytest.raises(IndexError):
        x[0, 0, 0]
    with pytest.raises(ShapeError, match="expected a batch dimension"):
        x[0, 0][0]
    assert [r.translation.shape for r in x[0]] == [(3,)] * 6


def test_is_frozen_and_keeps_its_inputs() -> None:
    x = random_rigid()
    with pytest.raises(dataclasses.FrozenInstanceError):
        x.translation = torch.zeros(3)  # type: ignore[misc]
    before = x.quat_wxyz.clone()
    x.retract(torch.ones(6, dtype=torch.float64))
    assert torch.equal(before, x.quat_wxyz)


# --- derivatives ---------------------------------------------------------------------------------------------------

TWISTS = {
    "random": [0.3, -0.2, 0.5, 0.7, 0.1, -0.4],
    "zero": [0.0] * 6,
    "near pi": [0.3, -0.2, 0.5, 0.0, np.pi - 1e-4, 0.0],
    "pi": [0.3, -0.2, 0.5, 0.0, np.pi, 0.0],
}


@pytest.mark.parametrize("twist", TWISTS.values(), ids=TWISTS.keys())
def test_gradcheck(twist: list[float]) -> None:
    start, x = random_rigid(), torch.rand(4, 3, dtype=torch.float64)
    xi = torch.tensor(twist, dtype=torch.float64, requires_grad=True)

    def moved(xi: Tensor) -> Tensor:
        return start.retract(xi).inverse().compose(start).apply(x)

    torch.autograd.gradcheck(moved, xi)
    torch.autograd.gradgradcheck(moved, xi)


def test_from_matrix_gradcheck_at_singular_rotations() -> None:
    for axis in ([0.0, 0, 0], [np.pi, 0, 0], [0, np.pi, 0], [0, 0, np.pi], [0.3, -2.0, 1.0]):
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = torch.from_numpy(Rotation.from_rotvec(axis).as_matrix())
        # through a map that q and -q share: at pi the quaternion of a neighbour has the other sign
        torch.autograd.gradcheck(lambda m: Rigid.from_matrix(m).to_matrix(), matrix.requires_grad_())


def test_vmap_and_jacrev() -> None:
    poses, x = random_rigid(5), torch.rand(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(Rigid.apply)(poses, x), poses.apply(x), rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.func.vmap(Rigid.inverse)(poses).translation, poses.inverse().translation)

    def local(pose: Rigid, x: Tensor) -> Tensor:
        return torch.func.jacrev(lambda xi: pose.retract(xi).apply(x))(torch.zeros(6, dtype=x.dtype))

    jacobian = torch.func.vmap(local)(poses, x)
    rotation = poses.to_matrix()[:, None, :3, :3].expand(5, 4, 3, 3)  # d(T exp(xi) x)/dv = R, d/domega = -R [x]
    torch.testing.assert_close(jacobian[..., :3], rotation, rtol=0, atol=1e-14)
    columns = [torch.linalg.cross(torch.eye(3, dtype=x.dtype)[k].expand_as(x), x) for k in range(3)]
    want = torch.einsum("bnij,bnjk->bnik", rotation, torch.stack(columns, -1))
    torch.testing.assert_close(jacobian[..., 3:], want, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["apply", "compose", "retract", "to"])
def test_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    a, b, x = random_rigid(5), random_rigid(5, seed=1), torch.rand(5, 4, 3, dtype=torch.float64)
    twist = torch.rand(5, 6, dtype=torch.float64)
    steps = {
        "apply": lambda: a.apply(x),
        "compose": lambda: a.compose(b).quat_wxyz,
        "retract": lambda: a.retract(twist).inverse().to_matrix(),
        "to": lambda: a.to(torch.float32)[1:3].translation,
    }
    compiled = torch.compile(steps[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), steps[name](), rtol=0, atol=1e-14)


@pytest.mark.usefixtures("unchecked")
def test_values_cross_a_compiled_function() -> None:
    torch.compiler.reset()
    a = random_rigid(5)
    moved = torch.compile(lambda pose: pose.compose(pose), fullgraph=True, backend="aot_eager")(a)
    assert isinstance(moved, Rigid) and close(moved, a.compose(a), 1e-15)


def test_fit_of_a_rigid_goes_through_save_and_load(tmp_path) -> None:
    fit = Fit(random_rigid(3), torch.rand(3), torch.rand(3, 6, 6), torch.ones(3, dtype=torch.bool), torch.arange(3))
    fit.save(tmp_path / "fit.safetensors")
    again = Fit.load(tmp_path / "fit.safetensors")
    assert close(again.value, fit.value, 0) and torch.equal(again.iterations, fit.iterations)
    assert again[1].covariance.shape == (6, 6) and again[1].value.quat_wxyz.shape == (4,)


def test_exp_log_and_distance() -> None:
    poses, other = random_rigid(9), random_rigid(9, seed=1)
    assert close(Rigid.exp(poses.log()), poses, 4e-15)
    assert (poses.compose(other).log() - poses.retract(other.log()).log()).abs().max() < 1e-13
    angle, distance = poses.distance(other)
    want = (as_scipy(poses).inv() * as_scipy(other)).magnitude()
    assert np.abs(angle.numpy() - want).max() < 4e-15
    assert (distance - (poses.translation - other.translation).norm(dim=-1)).abs().max() < 1e-15
    same = poses.translation.clone().requires_grad_()
    total = sum(x.sum() for x in Rigid(poses.quat_wxyz, same).distance(poses))
    assert not torch.autograd.grad(total, same)[0].any()


def test_interpolate_and_mean_agree_halfway() -> None:
    a, b = random_rigid(6), random_rigid(6, seed=1)
    pair = Rigid(torch.stack([a.quat_wxyz, b.quat_wxyz], 1), torch.stack([a.translation, b.translation], 1))
    assert close(pair.mean(), a.interpolate(b, 0.5), 4e-14)
    assert close(a.interpolate(b, 1.0), b, 4e-14)
