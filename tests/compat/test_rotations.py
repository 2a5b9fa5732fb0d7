"""Conventions of the conversions and exponential maps, where goldens do not reach: shapes, errors, singular points."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from geom.compat.pytorch3d import transforms as t
from geom.errors import ShapeError
from geom.lie import Rigid, quaternion

EPS = {torch.float32: 6e-7, torch.float64: 1e-15}


def turns(*batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Unit quaternions of either sign."""
    return quaternion.random(*batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- values ----------------------------------------------------------------------------------------------------------


def test_quaternions_need_not_be_unit(dtype: torch.dtype) -> None:
    q = turns(20, dtype=dtype)
    assert (t.quaternion_to_matrix(3 * q) - t.quaternion_to_matrix(q)).abs().max() < 4 * EPS[dtype]
    assert torch.equal(t.quaternion_to_matrix(torch.zeros(4, dtype=dtype)), torch.eye(3, dtype=dtype))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert (t.quaternion_apply(3 * q, x) - 9 * quaternion.rotate(q, x)).abs().max() < 64 * EPS[dtype]
    assert t.quaternion_apply(q[:, None], x).shape == (20, 20, 3)


def test_axis_angles_of_quaternions_reach_to_a_full_turn(dtype: torch.dtype) -> None:
    axis = turns(30, dtype=dtype)[:, 1:]
    axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
    for angle in (0.0, 1e-9, 1e-3, 1.0, math.pi - 1e-6, math.pi, math.pi + 1e-6, 4.0, 2 * math.pi - 1e-3):
        want = angle * axis
        got = t.quaternion_to_axis_angle(t.axis_angle_to_quaternion(want))
        assert (got - want).abs().max() <= 4 * EPS[dtype] * angle, angle
    minus = torch.tensor([-1.0, 0, 0, 0], dtype=dtype, requires_grad=True)
    zero = t.quaternion_to_axis_angle(minus)
    assert torch.equal(zero, torch.zeros(3, dtype=dtype))
    assert torch.isfinite(torch.autograd.grad(zero.sum(), minus)[0]).all()


def test_small_angles_and_those_near_pi_are_exact(dtype: torch.dtype) -> None:
    axis = torch.nn.functional.normalize(turns(50)[:, 1:], dim=-1)
    for angle in (1e-12, 1e-6, 1e-3, 1.0, 3.0, math.pi - 1e-3):
        v = (angle * axis).to(dtype)
        for fast in (False, True):
            again = t.matrix_to_axis_angle(t.axis_angle_to_matrix(v, fast=fast), fast=fast)
            assert (again - v).abs().max() < 8 * EPS[dtype] * (angle if angle < 3 else 1000 * angle)
        assert torch.equal(t.so3_exp_map(v, eps=0.1), t.so3_exponential_map(v))
        assert (t.so3_rotation_angle(t.so3_exp_map(v)) - angle).abs().max() < 16 * EPS[dtype]


def test_6d_is_rows(dtype: torch.dtype) -> None:
    R = quaternion.to_matrix(turns(3, 5, dtype=dtype))
    d6 = t.matrix_to_rotation_6d(R)
    assert torch.equal(d6, torch.cat([R[..., 0, :], R[..., 1, :]], -1))
    assert (t.rotation_6d_to_matrix(2.5 * d6) - R).abs().max() < 8 * EPS[dtype]


@pytest.mark.parametrize("convention", ["XYZ", "ZYX", "YXZ", "ZXZ", "YZY"])
def test_euler_angles_are_those_of_scipy(convention: str) -> None:
    q = turns(40)
    want = Rotation.from_quat(q.numpy(), scalar_first=True).as_euler(convention)
    assert (t.matrix_to_euler_angles(quaternion.to_matrix(q), convention) - torch.from_numpy(want)).abs().max() < 1e-13
    back = t.euler_angles_to_matrix(torch.from_numpy(want), convention)
    assert (back - quaternion.to_matrix(q)).abs().max() < 1e-14


def test_angles_between_rotations(dtype: torch.dtype) -> None:
    a, b = turns(30, dtype=dtype), turns(30, dtype=dtype, seed=1)
    A, B = quaternion.to_matrix(a), quaternion.to_matrix(b)
    angle = t.so3_relative_angle(A, B)
    assert (angle - quaternion.geodesic_distance(a, b)).abs().max() < 4 * EPS[dtype] * 1000
    assert (t.so3_relative_angle(A, B, cos_angle=True) - angle.cos()).abs().max() < 16 * EPS[dtype]
    assert t.so3_relative_angle(A, A).abs().max() < 4 * EPS[dtype]
    assert t.so3_rotation_angle(torch.eye(3, dtype=dtype), cos_bound=0.5).item() == 0


def test_signs(dtype: torch.dtype) -> None:
    q = turns(30, dtype=dtype)
    for s in (
        t.standardize_quaternion(q),
        t.quaternion_multiply(q, q.flip(0)),
        t.matrix_to_quaternion(t.quaternion_to_matrix(q)),
    ):
        assert (s[:, 0] >= 0).all()
    assert torch.equal(t.standardize_quaternion(-q).abs(), q.abs())
    raw = t.quaternion_raw_multiply(q, 2 * q.flip(0))
    assert torch.equal(raw, quaternion.multiply(q, 2 * q.flip(0))) and (raw[:, 0] < 0).any()
    one = t.quaternion_multiply(q, t.quaternion_invert(q))
    assert (one - torch.tensor([1.0, 0, 0, 0], dtype=dtype)).abs().max() < 4 * EPS[dtype]


def test_se3_is_for_row_vectors(dtype: torch.dtype) -> None:
    twist = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    M = t.se3_exp_map(twist)
    want = Rigid.identity(20, dtype=dtype).retract(twist).to_matrix()
    assert (M - want.mT).abs().max() < 16 * EPS[dtype] and torch.equal(
        M[:, :, 3], torch.eye(4, dtype=dtype)[3].expand(20, 4)
    )
    assert (t.se3_log_map(M) - twist).abs().max() < 64 * EPS[dtype]
    assert (t.se3_log_map(t.se3_exp_map(1e-9 * twist)) - 1e-9 * twist).abs().max() < 1e-9 * 64 * EPS[dtype]


def test_hat(dtype: torch.dtype) -> None:
    v, x = (torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    assert ((t.hat(v) @ x[..., None])[..., 0] - torch.linalg.cross(v, x)).abs().max() < 16 * EPS[dtype]
    assert torch.equal(t.hat_inv(t.hat(v)), v)


def test_random_rotations_are_uniform_and_seeded() -> None:
    torch.manual_seed(3)
    q = t.random_quaternions(4000, dtype=torch.float64)
    torch.manual_seed(3)
    assert torch.equal(t.random_rotations(4000, torch.float64), quaternion.to_matrix(q))
    assert (q[:, 0] >= 0).all() and (q.square().sum(-1) - 1).abs().max() < 1e-15
    second = torch.einsum("ni,nj->ij", q, q) / len(q)  # E q q^T = I/4, whatever the signs of q
    assert (second - torch.eye(4, dtype=torch.float64) / 4)[1:, 1:].abs().max() < 0.02
    R = t.random_rotation(dtype=torch.float64, device="cpu")
    assert R.shape == (3, 3) and (R @ R.T - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-14


# --- shapes, errors, derivatives -------------------------------------------------------------------------------------

MAPS = {
    t.quaternion_to_matrix: 4,
    t.quaternion_to_axis_angle: 4,
    t.standardize_quaternion: 4,
    t.quaternion_invert: 4,
    t.axis_angle_to_quaternion: 3,
    t.axis_angle_to_matrix: 3,
    t.so3_exp_map: 3,
    t.hat: 3,
    t.rotation_6d_to_matrix: 6,
    t.se3_exp_map: 6,
    t.matrix_to_quaternion: (3, 3),
    t.matrix_to_axis_angle: (3, 3),
    t.matrix_to_rotation_6d: (3, 3),
    t.so3_log_map: (3, 3),
    t.so3_rotation_angle: (3, 3),
    t.hat_inv: (3, 3),
    t.se3_log_map: (4, 4),
}
NAMES = [f.__name__ for f in MAPS]


def example(own: int | tuple[int, ...], *batch: int) -> Tensor:
    """A valid argument with these last dimensions, away from branches."""
    if own == (4, 4):
        return t.se3_exp_map(example(6, *batch))
    if own == (3, 3):
        return quaternion.to_matrix(turns(*batch, seed=2))
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(*batch, own, generator=draw, dtype=torch.float64)  # type: ignore[call-overload]
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


@pytest.mark.parametrize("f", MAPS, ids=NAMES)
def test_any_batch_and_vmap(f) -> None:
    x = t.hat(example(3, 2, 3)) if f is t.hat_inv else example(MAPS[f], 2, 3)
    y = f(x)
    assert y.dtype == x.dtype and y.shape[:2] == (2, 3)
    assert (torch.func.vmap(torch.func.vmap(f))(x) - y).abs().max() < 1e-14
    assert torch.equal(f(x[:0]), y[:0])
    assert f(x.float()).dtype == torch.float32


@pytest.mark.parametrize("f", MAPS, ids=NAMES)
def test_other_shapes_are_value_errors(f) -> None:
    own = MAPS[f] if isinstance(MAPS[f], tuple) else (MAPS[f],)
    for wrong in (torch.zeros(5, *own[:-1], own[-1] + 1), torch.tensor(0.0), [0.0] * own[-1]):
        with pytest.raises(ValueError, match=r"expected a tensor \(\.\.\., [3446, ]+\), got"):
            f(wrong)


def test_other_wrong_input_is_a_value_error() -> None:
    R = torch.eye(3)
    for convention in ("xyz", "XY", "XXY", "ABC", "XYZX", 3):
        with pytest.raises(ShapeError, match="convention"):
            t.euler_angles_to_matrix(torch.zeros(3), convention)  # type: ignore[arg-type]
        with pytest.raises(ShapeError, match="convention"):
            t.matrix_to_euler_angles(R, convention)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"traces in \[-1, 3\] to 0.0001"):
        t.so3_rotation_angle(1.1 * R)
    assert t.so3_rotation_angle(1.1 * R, eps=1.0).isfinite()
    with pytest.raises(ShapeError, match="expected skew matrices"):
        t.hat_inv(R)
    with pytest.raises(ShapeError, match="is it for column vectors"):
        t.se3_log_map(t.se3_exp_map(torch.ones(6)).mT)
    with pytest.raises(ShapeError, match=r"point: expected a tensor \(..., 3\)"):
        t.quaternion_apply(torch.ones(4), torch.ones(4))
    for a, b in ((torch.ones(3), torch.ones(4)), (torch.ones(4), torch.ones(3))):
        with pytest.raises(ShapeError, match=r"expected a tensor \(..., 4\)"):
            t.quaternion_multiply(a, b)
    with pytest.raises(ShapeError, match="R2"):
        t.so3_relative_angle(R, torch.eye(4))


def test_gradients(dtype: torch.dtype) -> None:
    q = turns(4)
    q = torch.cat([torch.where(q[:, :1] < 0, -q, q), -torch.where(q[:, :1] < 0, -q, q)]).requires_grad_()  # both signs
    for f in (t.quaternion_to_axis_angle, t.quaternion_to_matrix):
        assert torch.autograd.gradcheck(f, (q,)) and torch.autograd.gradgradcheck(f, (q,))
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(t.quaternion_apply, (q, x))
    zero = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(t.se3_exp_map, (zero,)) and torch.autograd.gradgradcheck(t.se3_exp_map, (zero,))
    assert torch.autograd.gradcheck(lambda v: t.se3_log_map(t.se3_exp_map(v)), (zero,))
    one = torch.eye(3, dtype=dtype, requires_grad=True)
    for f in (t.so3_rotation_angle, t.so3_log_map, t.matrix_to_axis_angle, t.matrix_to_quaternion):
        assert torch.isfinite(torch.autograd.grad(f(one).sum(), one)[0]).all()


@pytest.mark.usefixtures("unchecked")
def test_compiles() -> None:
    def chain(v: Tensor, x: Tensor) -> Tensor:
        R = t.rotation_6d_to_matrix(t.matrix_to_rotation_6d(t.axis_angle_to_matrix(v)))
        q = t.quaternion_multiply(t.matrix_to_quaternion(R), t.axis_angle_to_quaternion(t.so3_log_map(R)))
        angles = t.matrix_to_euler_angles(t.quaternion_to_matrix(q), "ZYX")
        return t.quaternion_apply(q, x) + t.quaternion_to_axis_angle(q) + angles + t.so3_rotation_angle(R)[:, None]

    v, x = (torch.randn(5, 3, generator=torch.Generator().manual_seed(i)) for i in range(2))
    made = torch.compile(chain, fullgraph=True, backend="aot_eager")(v, x)
    assert (made - chain(v, x)).abs().max() < 1e-5
