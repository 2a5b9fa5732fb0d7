"""`Transform3d`: row vectors, composition from the left, broadcasting, dtypes, errors, derivatives."""

import math

import pytest
import torch
from torch import Tensor

from geom.compat.pytorch3d.transforms import (
    Rotate,
    RotateAxisAngle,
    Scale,
    Transform3d,
    Translate,
    euler_angles_to_matrix,
    se3_exp_map,
)
from geom.errors import ShapeError
from geom.interop import from_pytorch3d
from geom.lie import Rigid

EPS = {torch.float32: 6e-7, torch.float64: 1e-15}


def rows(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def turned(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return euler_angles_to_matrix(rows(n, 3, dtype=dtype), "XYZ")


def test_each_kind_moves_rows(dtype: torch.dtype) -> None:
    x, t, s, R = (
        rows(4, 5, 3, dtype=dtype),
        rows(4, 3, dtype=dtype, seed=1),
        rows(4, 3, dtype=dtype, seed=2),
        turned(4, dtype),
    )
    tolerance = 32 * EPS[dtype]
    assert (Translate(t, dtype=dtype).transform_points(x) - (x + t[:, None])).abs().max() < tolerance
    assert (Scale(s, dtype=dtype).transform_points(x) - x * s[:, None]).abs().max() < tolerance
    assert (Rotate(R, dtype=dtype).transform_points(x) - x @ R).abs().max() < tolerance
    M = rows(4, 4, 4, dtype=dtype) + 4 * torch.eye(4, dtype=dtype)
    y = torch.cat([x, torch.ones_like(x[..., :1])], -1) @ M
    assert (Transform3d(matrix=M).transform_points(x) - y[..., :3] / y[..., 3:]).abs().max() < 64 * tolerance
    for i, axis in enumerate("XYZ"):
        angles = [0.0, 0.0, 0.0]
        angles[i] = math.radians(40)
        want = x @ euler_angles_to_matrix(torch.tensor(angles, dtype=dtype), "XYZ").mT
        for turn in (RotateAxisAngle(40, axis, dtype=dtype), RotateAxisAngle(angles[i], axis.lower(), False, dtype)):
            assert (turn.transform_points(x) - want).abs().max() < tolerance


def test_constructors_take_numbers_and_tensors() -> None:
    t = torch.tensor([1.0, 2.0])
    assert Translate(1, t, 3.0).get_matrix()[:, 3].tolist() == [[1, 1, 3, 1], [1, 2, 3, 1]]
    assert Translate(torch.tensor(1.0), 2, 3).get_matrix()[0, 3].tolist() == [1, 2, 3, 1]
    assert Scale(2).get_matrix()[0].diagonal().tolist() == [2, 2, 2, 1]
    assert Scale(t).get_matrix().diagonal(dim1=1, dim2=2).tolist() == [[1, 1, 1, 1], [2, 2, 2, 1]]
    assert Scale(1, 2, t).get_matrix().diagonal(dim1=1, dim2=2).tolist() == [[1, 2, 1, 1], [1, 2, 2, 1]]
    assert Rotate(torch.eye(3)).get_matrix().shape == (1, 4, 4)
    assert len(RotateAxisAngle(torch.tensor([10.0, 20.0, 30.0]), "Z")) == 3
    assert Translate(t[None].double().expand(4, 2)[:, :1].expand(4, 3)).dtype == torch.float32  # as asked, not as given


def test_composition_runs_from_the_left(dtype: torch.dtype) -> None:
    x, t, R = rows(5, 3, dtype=dtype), rows(1, 3, dtype=dtype, seed=1), turned(1, dtype)
    a, b, c = Translate(t, dtype=dtype), Rotate(R, dtype=dtype), Scale(1, 2, 3, dtype=dtype)
    want = c.transform_points(b.transform_points(a.transform_points(x)))
    chain = Transform3d(dtype).translate(t).rotate(R).scale(1, 2, 3)
    for whole in (a.compose(b, c), a.compose(b).compose(c), a.compose(b.compose(c)), chain):
        assert (whole.transform_points(x) - want).abs().max() < 32 * EPS[dtype]
    spun = Transform3d(dtype).rotate_axis_angle(90, "Y").translate(1, 0, 0)
    assert (
        spun.transform_points(torch.eye(3, dtype=dtype)[:1]) - torch.tensor([[1.0, 0, -1]], dtype=dtype)
    ).abs().max() < 1e-6


@pytest.mark.parametrize("invert_composed", [False, True])
def test_inverse(invert_composed: bool, dtype: torch.dtype) -> None:
    x = rows(4, 5, 3, dtype=dtype)
    whole = Transform3d(dtype).translate(rows(4, 3, dtype=dtype)).rotate(turned(1, dtype)).scale(2, 3, 0.5)
    back = whole.inverse(invert_composed=invert_composed)
    assert (back.transform_points(whole.transform_points(x)) - x).abs().max() < 64 * EPS[dtype]
    assert (whole.compose(back).get_matrix() - torch.eye(4, dtype=dtype)).abs().max() < 64 * EPS[dtype]
    assert (back.inverse().get_matrix() - whole.get_matrix()).abs().max() < 64 * EPS[dtype]


def test_parts_are_inverted_without_rounding() -> None:
    t, R = rows(1, 3, dtype=torch.float32), turned(1, torch.float32)
    assert torch.equal(Translate(t).inverse().get_matrix()[:, 3, :3], -t)
    assert torch.equal(Rotate(R).inverse().get_matrix()[:, :3, :3], R.mT)
    M = rows(1, 4, 4) + 4 * torch.eye(4)
    assert torch.equal(Transform3d(matrix=M).inverse().inverse().get_matrix(), M)
    with pytest.raises(torch.linalg.LinAlgError):
        Scale(0.0).inverse()


def test_batches_of_one_broadcast() -> None:
    one, many = Translate(1, 2, 3), Rotate(turned(4), dtype=torch.float32)
    assert len(one) == 1 and len(many) == 4 and len(one.compose(many)) == len(many.compose(one)) == 4
    for transform, shape, want in (
        (one, (5, 3), (5, 3)),
        (one, (1, 5, 3), (1, 5, 3)),
        (one, (7, 5, 3), (7, 5, 3)),
        (many, (5, 3), (4, 5, 3)),
        (many, (1, 5, 3), (4, 5, 3)),
        (many, (4, 5, 3), (4, 5, 3)),
    ):
        x = rows(*shape, dtype=torch.float32)
        assert transform.transform_points(x).shape == transform.transform_normals(x).shape == want
    with pytest.raises(ShapeError, match="expected equal sizes, or one of them 1, got 7 and 4"):
        many.transform_points(torch.zeros(7, 5, 3))
    with pytest.raises(ShapeError, match="got 4 and 2"):
        many.compose(Scale(torch.ones(2))).get_matrix()
    none = Translate(torch.zeros(0, 3))
    assert len(none) == len(none.compose(one)) == 0 and none.transform_points(torch.zeros(5, 3)).shape == (0, 5, 3)


def test_stack_and_indexing() -> None:
    a, b = Translate(rows(2, 3)), Scale(torch.tensor([2.0, 3.0, 4.0]))
    both = a.stack(b, a)
    assert len(both) == 7 and torch.equal(both.get_matrix(), torch.cat([t.get_matrix() for t in (a, b, a)]))
    for index in (3, -1, [0, 2], slice(1, 5, 2), torch.tensor([6, 0]), torch.arange(7) > 3):
        picked = both.get_matrix()[[index] if isinstance(index, int) else index]
        assert torch.equal(both[index].get_matrix(), picked)
    assert len(both[0]) == 1 and len(a.compose(b[:2])[1]) == 1


def test_normals_stay_normal(dtype: torch.dtype) -> None:
    M = Transform3d(dtype).scale(1, 2, 3).rotate(turned(1, dtype)).translate(1, 2, 3)
    edge, normal = rows(5, 3, dtype=dtype), rows(5, 3, dtype=dtype, seed=1)
    edge = edge - (edge * normal).sum(-1, keepdim=True) / normal.square().sum(-1, keepdim=True) * normal
    moved = M.transform_points(edge) - M.transform_points(torch.zeros_like(edge))
    assert (moved * M.transform_normals(normal)).sum(-1).abs().max() < 32 * EPS[dtype]
    only = Rotate(turned(1, dtype), dtype=dtype)
    assert (only.transform_normals(normal) - only.transform_points(normal)).abs().max() < 16 * EPS[dtype]


def test_the_last_coordinate_is_kept_from_zero() -> None:
    M = torch.eye(4)
    M[2, 3], M[3, 3] = 1, 0  # divides by z, as a camera does
    x = torch.tensor([[1.0, 2, 0], [1, 2, 1e-4], [1, 2, -1e-4], [1, 2, 4]])
    out = Transform3d(matrix=M).transform_points(x, eps=1e-2)
    assert (out[:, 0] - torch.tensor([100.0, 100, -100, 0.25])).abs().max() < 1e-4
    assert torch.isinf(Transform3d(matrix=M).transform_points(x)[0, 0])


def test_dtypes_devices_and_copies() -> None:
    a = Translate(1, 2, 3).rotate_axis_angle(30)
    assert (a.dtype, a.device) == (torch.float32, torch.device("cpu"))
    assert a.to("cpu") is a and a.cpu() is a
    copy = a.to("cpu", copy=True)
    assert copy is not a and torch.equal(copy.get_matrix(), a.get_matrix())
    double = a.to(torch.device("cpu"), dtype=torch.float64)
    assert double.dtype == double.get_matrix().dtype == double.inverse().get_matrix().dtype == torch.float64
    M = torch.eye(4, dtype=torch.float64)
    held, own = Transform3d(matrix=M), Transform3d(matrix=M).clone()
    M[0, 0] = 5
    assert held.get_matrix()[0, 0, 0] == 5 and own.get_matrix()[0, 0, 0] == 1 and held.dtype == torch.float64
    held.get_matrix()[0, 0, 0] = 7  # a copy
    assert held.get_matrix()[0, 0, 0] == 5
    x = rows(5, 3)
    assert a.transform_points(x).dtype == torch.float64 and double.transform_points(x.float()).dtype == torch.float32
    assert a.transform_points(x.half()).dtype == torch.float16


@pytest.mark.gpu
def test_on_cuda() -> None:
    a = Translate(1, 2, 3).rotate_axis_angle(30).cuda()
    assert a.device.type == "cuda" and a.cuda() is a and a.inverse().get_matrix().is_cuda
    assert Rotate(torch.eye(3, device="cuda")).device.type == RotateAxisAngle(3, device="cuda").device.type == "cuda"
    assert Translate(torch.zeros(2, 3, device="cuda")).translate(1, 2, 3).device.type == "cuda"


def test_logarithms() -> None:
    twist = rows(6, 6)
    assert (Transform3d(matrix=se3_exp_map(twist)).get_se3_log() - twist).abs().max() < 1e-13


def test_interop_takes_it(dtype: torch.dtype) -> None:
    transform = Transform3d(dtype).rotate(turned(4, dtype)).translate(rows(4, 3, dtype=dtype))
    x = rows(4, 5, 3, dtype=dtype, seed=3)
    rigid = from_pytorch3d(transform)
    assert isinstance(rigid, Rigid) and (rigid.apply(x) - transform.transform_points(x)).abs().max() < 32 * EPS[dtype]
    with pytest.raises(ShapeError, match="scales"):
        from_pytorch3d(transform.scale(2))


def test_gradients() -> None:
    def moved(t: Tensor, s: Tensor, angle: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        M = Transform3d(torch.float64).scale(s).rotate_axis_angle(angle, "Y").translate(t)
        return M.transform_points(x), M.inverse().transform_normals(x)

    inputs = [rows(2, 3), rows(2, 3, seed=1) + 3, torch.zeros(2, dtype=torch.float64), rows(4, 3, seed=2)]
    assert torch.autograd.gradcheck(moved, [x.requires_grad_() for x in inputs])


@pytest.mark.usefixtures("unchecked")
def test_compiles() -> None:
    def moved(t: Tensor, x: Tensor) -> Tensor:
        return Transform3d().rotate_axis_angle(30.0, "Z").translate(t).inverse().transform_points(x)

    t, x = rows(4, 3, dtype=torch.float32), rows(4, 5, 3, dtype=torch.float32)
    assert (torch.compile(moved, fullgraph=True, backend="aot_eager")(t, x) - moved(t, x)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Transform3d(matrix=torch.eye(3)), r"matrix: expected a tensor \(4, 4\) or \(N, 4, 4\)"),
        (lambda: Transform3d(matrix=torch.zeros(1, 1, 4, 4)), "matrix: expected"),
        (lambda: Transform3d(matrix=[[1.0]]), "matrix: expected .* got a list"),
        (lambda: Translate(1.0), "y: expected a number"),
        (lambda: Translate(torch.zeros(2, 4)), r"x: expected a tensor \(N, 3\)"),
        (lambda: Translate(torch.zeros(2, 3), 1.0), "without y and z"),
        (lambda: Translate(torch.zeros(2), torch.zeros(3), 0), r"sizes that broadcast, got \[2, 3, 1\]"),
        (lambda: Scale("big"), "x: expected a number"),
        (lambda: Scale(torch.zeros(2, 2, 2)), "x: expected a number or a tensor"),
        (lambda: Rotate(torch.eye(4)), r"R: expected a tensor \(3, 3\)"),
        (lambda: Rotate(torch.zeros(2, 2, 3, 3)), "R: expected"),
        (lambda: RotateAxisAngle(3, "W"), "axis: expected 'X', 'Y' or 'Z', got str 'W'"),
        (lambda: RotateAxisAngle(torch.zeros(2, 2)), "angle: expected a number"),
        (lambda: Transform3d().compose(torch.eye(4)), "others: expected Transform3d objects"),
        (lambda: Transform3d().transform_points(torch.zeros(3)), r"points: expected a tensor \(P, 3\)"),
        (lambda: Transform3d().transform_points(torch.zeros(5, 4)), "points: expected"),
        (lambda: Transform3d().transform_normals(torch.zeros(1, 1, 5, 3)), "normals: expected"),
    ],
)
def test_wrong_input_is_a_value_error(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
