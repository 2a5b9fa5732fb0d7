"""`Points`: fields, batches, moving, saving, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from geom.errors import FileFormatError, ShapeError
from geom.meshes import Mesh
from geom.points import Points
from geom.points.cloud import as_points, bounds


def full(count: int = 6, dtype: torch.dtype = torch.float32) -> Points:
    draw = torch.Generator().manual_seed(0)
    return Points(
        torch.rand(count, 3, generator=draw).to(dtype),
        normals=torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=-1).to(dtype),
        colors=torch.rand(count, 3, generator=draw),
        intensities=torch.rand(count, generator=draw),
        offsets=torch.tensor([0, 2, 2, count]),
    )


def test_one_cloud() -> None:
    cloud = Points(torch.rand(4, 3))
    assert len(cloud) == 1 and cloud[0] is cloud and cloud[-1] is cloud
    assert cloud.normals is cloud.colors is cloud.intensities is cloud.offsets is None
    assert bounds(cloud).tolist() == [0, 4]


def test_a_batch(dtype: torch.dtype) -> None:
    batch = full(dtype=dtype)
    assert len(batch) == 3 and [len(c.positions) for c in batch] == [2, 0, 4]
    for i, rows in enumerate((slice(0, 2), slice(2, 2), slice(2, 6))):
        for cloud in (batch[i], batch[i - 3]):
            assert cloud.offsets is None and len(cloud) == 1
            for name in ("positions", "normals", "colors", "intensities"):
                assert torch.equal(getattr(cloud, name), getattr(batch, name)[rows])
    assert Points(torch.rand(2, 3), offsets=torch.tensor([0, 2]))[0].normals is None
    assert len(Points(torch.zeros(0, 3), offsets=torch.tensor([0]))) == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("index", [3, -4])
def test_no_such_cloud(index: int) -> None:
    with pytest.raises(IndexError, match=f"cloud {index} of 3"):
        full()[index]


def test_to() -> None:
    moved = full().to(torch.float64)
    assert moved.positions.dtype == torch.float64 and moved.offsets is not None
    assert moved.offsets.dtype == torch.int64 and moved[2].positions.shape == (4, 3)


def test_save_and_load(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "cloud.safetensors"
    for cloud in (full(dtype=dtype), Points(torch.rand(3, 3, dtype=dtype))):
        cloud.save(path)
        again = Points.load(path)
        for name in ("positions", "normals", "colors", "intensities", "offsets"):
            a, b = getattr(cloud, name), getattr(again, name)
            assert (a is b is None) or (a.dtype == b.dtype and torch.equal(a, b))
    Mesh(torch.rand(3, 3), torch.tensor([[0, 1, 2]])).save(path)
    with pytest.raises(FileFormatError, match=r"expected a saved geom\.points\.Points, got a saved geom\.meshes\.Mesh"):
        Points.load(path)


X = torch.rand(4, 3)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "positions": ({"positions": X[0]}, r"positions: expected .* \(N, 3\), got a float32 tensor of shape \(3,\)"),
    "dtype": ({"positions": X.int()}, "positions: expected a float32 or float64"),
    "normals": ({"normals": X[:3]}, r"normals: expected a float tensor \(4, 3\), got .* \(3, 3\)"),
    "colors": ({"colors": (X * 255).byte()}, "colors: expected a float tensor .4, 3., got a uint8"),
    "intensities": ({"intensities": X}, r"intensities: expected a float tensor \(4,\)"),
    "list": ({"intensities": [1.0] * 4}, "intensities: expected a float tensor .4,., got a list"),
    "offsets_end": ({"offsets": torch.tensor([0, 3])}, "offsets: expected to rise from 0 to 4"),
    "offsets_none": ({"offsets": torch.zeros(0, dtype=torch.int64)}, r"offsets: expected an int64 tensor \(B\+1,\)"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        Points(**{"positions": X, **change})


@pytest.mark.usefixtures("unchecked")
def test_as_points() -> None:
    cloud = Points(X, offsets=torch.tensor([0, 1, 4]))
    assert as_points(cloud) is cloud and len(as_points(X, offsets=torch.tensor([0, 1, 4]))) == 2
    with pytest.raises(ShapeError, match="scan: expected at least 2 points, got 1"):
        as_points(cloud, "scan", minimum=2)
    with pytest.raises(ShapeError, match="scan: expected finite coordinates, got NaN or inf in 4 of 4 points"):
        as_points(Points(X / 0), "scan")
    with pytest.raises(ShapeError, match=r"scan: .* got both"):
        as_points(cloud, "scan", offsets=cloud.offsets)
    with pytest.raises(ShapeError, match="scan: expected Points or a tensor"):
        as_points([[0.0, 0.0, 0.0]], "scan")  # type: ignore[arg-type]
