import math

import numpy as np
import pytest
import torch

from geom import checks
from geom.errors import ShapeError


def test_points_come_back_as_they_are(dtype: torch.dtype) -> None:
    x = torch.rand(4, 3, dtype=dtype)
    assert checks.check_points(x) is x
    assert checks.check_points(x[:0]).shape == (0, 3)
    assert checks.check_points(x, minimum=4) is x


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.rand(4, 2), "a float32 tensor of shape (4, 2)"),
        (torch.rand(3), "a float32 tensor of shape (3,)"),
        (torch.rand(2, 4, 3), "a float32 tensor of shape (2, 4, 3)"),
        (torch.zeros(4, 3, dtype=torch.int64), "a int64 tensor of shape (4, 3)"),
        (torch.zeros(4, 3, dtype=torch.float16), "a float16 tensor of shape (4, 3)"),
        (np.zeros((4, 3)), "a ndarray"),
        ([[0.0, 0.0, 0.0]], "a list"),
        (None, "a NoneType"),
        (3, "int 3"),
    ],
)
def test_other_things_are_described(x: object, said: str) -> None:
    with pytest.raises(ShapeError) as caught:
        checks.check_points(x, "source")
    assert str(caught.value) == f"source: expected a float32 or float64 tensor (N, 3), got {said}"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_points_are_finite_unless_told(bad: float) -> None:
    x = torch.zeros(5, 3)
    x[1, 2] = x[3] = bad
    with pytest.raises(ShapeError, match=r"finite coordinates, got NaN or inf in 2 of 5 points"):
        checks.check_points(x)
    assert checks.check_points(x, finite=False) is x


def test_too_few_points() -> None:
    with pytest.raises(ShapeError, match="target: expected at least 3 points, got 2"):
        checks.check_points(torch.rand(2, 3), "target", minimum=3)


def test_integers() -> None:
    assert checks.check_integer(2, "steps") == 2 and checks.check_integer(0, "steps", 0) == 0
    for bad in (0, -1, True, 2.0, "2", None, torch.tensor(2)):
        with pytest.raises(ShapeError, match="steps: expected an integer of at least 1, got "):
            checks.check_integer(bad, "steps")


def test_offsets() -> None:
    device = torch.device("cpu")
    assert checks.check_offsets(None, 7, device=device).tolist() == [0, 7]
    for good in ([0, 7], [0, 0, 3, 3, 7]):
        assert checks.check_offsets(torch.tensor(good), 7, device=device).tolist() == good
    assert checks.check_offsets(torch.tensor([0]), 0, device=device).tolist() == [0]
    for bad in ([0, 6], [1, 7], [0, 5, 4, 7], [0, 8, 7]):
        with pytest.raises(ShapeError, match="offsets: expected to rise from 0 to 7"):
            checks.check_offsets(torch.tensor(bad), 7, device=device)
    for bad in (
        torch.tensor([0.0, 7.0]),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(1, 2, dtype=torch.int64),
        [0, 7],
    ):
        with pytest.raises(ShapeError, match=r"offsets: expected an int64 tensor \(B\+1,\)"):
            checks.check_offsets(bad, 7, device=device)  # type: ignore[arg-type]


def test_positive() -> None:
    assert checks.check_positive(2, "voxel") == 2.0 and isinstance(checks.check_positive(2, "voxel"), float)
    assert checks.check_positive(torch.tensor(0.5), "voxel") == 0.5  # type: ignore[arg-type]
    for bad in (0, -1, math.nan, math.inf, "wide", None, [1], torch.ones(2), 1j):
        with pytest.raises(ShapeError, match="voxel: expected a finite number above 0, got"):
            checks.check_positive(bad, "voxel")  # type: ignore[arg-type]


def test_rigid(dtype: torch.dtype) -> None:
    good = torch.eye(4, dtype=dtype).repeat(5, 1, 1)
    good[:, 0, 1], good[:, 1, 3] = 4e-4, 1e6
    assert checks.check_rigid(good, "pose") is good
    wrong = {(0, 0, 1.001): "scales", (0, 1, 2e-3): "scales", (2, 2, -1.0): "mirrors", (1, 1, math.nan): "NaN"}
    for (row, column, number), words in {**wrong, (3, 0, 1e-5): "projective", (3, 3, math.nan): "last row"}.items():
        bad = good.clone()
        bad[3, row, column] = number
        with pytest.raises(ShapeError, match=f"pose: expected a rigid motion, got .*{words}"):
            checks.check_rigid(bad, "pose")
    with pytest.raises(ShapeError, match=r"pose: expected a tensor \(..., 4, 4\)"):
        checks.check_rigid(good[:, :3], "pose")
    assert torch.func.vmap(lambda x: checks.check_rigid(x, "pose"))(good).shape == good.shape


def test_choice() -> None:
    checks.check_choice("torch", ["auto", "torch"], "backend")
    with pytest.raises(ShapeError, match="backend: expected one of 'auto', 'torch', got str 'cuda'"):
        checks.check_choice("cuda", (c for c in ["auto", "torch"]), "backend")


def test_same() -> None:
    checks.check_same(torch.rand(2), torch.rand(3), "source and target")
    with pytest.raises(ShapeError, match=r"expected one dtype and device, got torch.float32 on cpu and torch.float64"):
        checks.check_same(torch.rand(2), torch.rand(2, dtype=torch.float64), "source and target")
    with pytest.raises(ShapeError, match="on meta"):
        checks.check_same(torch.rand(2), torch.rand(2, device="meta"), "source and target")
