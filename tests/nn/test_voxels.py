"""Voxels: points gathered into cells against a dictionary, batches against loops, cells of any sign."""

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.nn import Voxels, merge_voxels, scatter, voxelize
from geom.points import Points

both = pytest.mark.parametrize("backend", ["warp", "torch"])
OFFSETS = torch.tensor([0, 0, 100, 100, 101, 900, 900])


def cloud(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return (torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 6 - 3).to(dtype)


def same(a: Voxels, b: Voxels) -> bool:
    ends = a.offsets is b.offsets is None or torch.equal(torch.as_tensor(a.offsets), torch.as_tensor(b.offsets))
    return torch.equal(a.grid, b.grid) and torch.equal(a.features, b.features) and ends


@both
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_cells_and_features_of_a_dictionary(reduce: str, backend: str, dtype: torch.dtype) -> None:
    x, size = cloud(700, dtype), 0.7
    voxels, index = voxelize(x, size, features=x * 2, reduce=reduce, backend=backend)
    members = defaultdict(list)
    for i, cell in enumerate(np.floor(x.numpy() / x.new_tensor(size).numpy()).astype(int).tolist()):
        members[tuple(cell)].append(i)
    low = [min(cell[axis] for cell in members) for axis in range(3)]
    assert min(low) < 0

    def interleaved(cell: tuple[int, ...]) -> int:
        return sum((cell[axis] - low[axis] >> bit & 1) << 3 * bit + 2 - axis for axis in range(3) for bit in range(21))

    assert [tuple(cell) for cell in voxels.grid.tolist()] == sorted(members, key=interleaved)
    for row, cell in enumerate(voxels.grid.tolist()):
        mine = members[tuple(cell)]
        assert (index[mine] == row).all()
        want = getattr(2 * x.double()[mine].numpy(), reduce)(0)
        assert np.allclose(voxels.features[row].double(), want, rtol=0, atol=40 * torch.finfo(dtype).eps)
    assert voxels.offsets is None and voxels.features.dtype == dtype


@pytest.mark.parametrize("offsets", [None, OFFSETS])
@pytest.mark.parametrize("size", [0.05, 0.9, 50.0])
def test_warp_is_the_twin_bit_for_bit(size: float, offsets: Tensor | None, dtype: torch.dtype) -> None:
    x = cloud(900, dtype)
    (a, i), (b, j) = (voxelize(x, size, offsets=offsets, backend=name) for name in ("warp", "torch"))
    assert same(a, b) and torch.equal(i, j)


@both
def test_ragged_equals_one_by_one(backend: str, dtype: torch.dtype) -> None:
    x = cloud(900, dtype)
    batch, index = voxelize(x, 0.6, offsets=OFFSETS, backend=backend)
    assert len(batch) == 6 and batch.offsets is not None
    for i in range(6):
        begin, end = OFFSETS[i : i + 2].tolist()
        alone, within = voxelize(x[begin:end], 0.6, backend=backend)
        assert same(batch[i], alone) and torch.equal(index[begin:end] - batch.offsets[i], within)
    assert same(batch[-1], batch[5]) and same(batch[1][0], batch[1])


def test_points_bring_their_offsets_and_positions_are_features() -> None:
    x = cloud(900)
    voxels, index = voxelize(Points(x, offsets=OFFSETS), 0.6)
    assert same(voxels, voxelize(x, 0.6, features=x, offsets=OFFSETS)[0])
    assert torch.equal(voxels.features, scatter(x, index, len(voxels.grid), reduce="mean"))


def test_a_scan(data: Path) -> None:
    files = sorted((data / "registration" / "lidar").glob("*.npz"))
    if not files:
        pytest.skip("no lidar scans")
    points = torch.from_numpy(np.load(files[0])["src"])
    voxels, index = voxelize(points, 0.2)
    cells = torch.floor(points / 0.2).long()
    assert torch.equal(torch.unique(voxels.grid, dim=0), torch.unique(cells, dim=0))
    assert torch.equal(voxels.grid[index], cells) and (cells < 0).any()


@both
def test_merging_is_by_floor(backend: str, dtype: torch.dtype) -> None:
    grid = torch.cartesian_prod(torch.arange(-5, 6), torch.arange(-4, 3), torch.arange(3))
    fine = Voxels(grid, torch.arange(len(grid), dtype=dtype)[:, None])
    coarse, index = merge_voxels(fine, stride=(2, 3, 1), backend=backend)
    step = torch.tensor([2, 3, 1])
    assert torch.equal(coarse.grid[index], torch.div(grid, step, rounding_mode="floor"))
    assert len(coarse.grid) == 6 * 3 * 3 and coarse.features.sum() == fine.features.sum()
    twice = Voxels(torch.cat([grid, grid]), torch.cat([fine.features] * 2))
    one, both_rows = merge_voxels(twice, reduce="mean", backend=backend)
    assert len(one.grid) == len(grid) and torch.equal(one.features[both_rows], twice.features)


@both
def test_nothing_in_nothing_out(backend: str, dtype: torch.dtype) -> None:
    for offsets in (None, torch.tensor([0]), torch.tensor([0, 0, 0])):
        voxels, index = voxelize(torch.zeros(0, 3, dtype=dtype), 0.1, offsets=offsets, backend=backend)
        assert voxels.grid.shape == (0, 3) and voxels.features.shape == (0, 3) and index.shape == (0,)
        assert (voxels.offsets is None) if offsets is None else torch.equal(voxels.offsets, offsets)
    single, _ = voxelize(torch.full((1, 3), -7.0, dtype=dtype), 2.0, backend=backend)
    assert single.grid.tolist() == [[-4, -4, -4]] and torch.equal(
        single.features, torch.full((1, 3), -7.0, dtype=dtype)
    )


@both
def test_far_from_the_origin(backend: str) -> None:
    x = cloud(300) + torch.tensor([4.5e6, -6e5, 1e9])
    voxels, index = voxelize(x, 0.5, backend=backend)
    assert torch.equal(voxels.grid[index], (x / 0.5).floor().long())


@both
def test_gradcheck(backend: str) -> None:
    x, features = cloud(12), cloud(12, seed=1).requires_grad_()

    def f(features: Tensor) -> Tensor:
        return voxelize(x, 2.0, features=features, backend=backend)[0].features

    assert 1 < len(f(features)) < 12
    assert torch.autograd.gradcheck(f, features) and torch.autograd.gradgradcheck(f, features)


def test_under_torch_func_the_twin_differentiates() -> None:
    x, features = cloud(12), cloud(12, seed=1)
    f: Callable[[Tensor], Tensor] = lambda y: voxelize(x, 2.0, features=y)[0].features  # noqa: E731
    want = torch.autograd.functional.jacobian(f, features)
    assert torch.allclose(torch.func.jacrev(f)(features), want, atol=1e-15) and want.any()


def test_threads_do_not_change_a_bit(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    x, found = cloud(40_000, dtype), []
    for count in (1, 2):
        threads(count)
        found.append(voxelize(x, 0.1))
    assert same(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_saved_value_comes_back(tmp_path: Path) -> None:
    voxels, _ = voxelize(cloud(50), 1.0)
    voxels.save(tmp_path / "voxels.safetensors")
    assert same(Voxels.load(tmp_path / "voxels.safetensors"), voxels)


@both
def test_the_widest_cloud(backend: str) -> None:
    x = torch.tensor([[0.0, 0, 0], [2**21 - 1, 0, 0]], dtype=torch.float64)
    assert len(voxelize(x, 1.0, backend=backend)[0].grid) == 2
    with pytest.raises(ShapeError, match="grid: expected a cloud of at most 2097152 cells along an axis, got 2097153"):
        voxelize(x + x / (2**21 - 1), 1.0, backend=backend)
    grid = torch.tensor([[0, -(2**62), 0], [0, 2**62, 0]])
    with pytest.raises(ShapeError, match="at most 2097152 cells"):
        merge_voxels(Voxels(grid, torch.ones(2, 1)), backend=backend)


X = torch.rand(4, 3)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "zero": ({"size": 0.0}, "size: expected a finite number above 0"),
    "tiny": ({"size": 1e-30}, r"size: expected cells numbered below 2\^62, got"),
    "nan": ({"points": X * math.nan}, "points: expected finite coordinates"),
    "shape": ({"points": X[:, :2]}, "points: expected a float32 or float64 tensor"),
    "rows": (
        {"features": X[:3]},
        r"features: expected a float tensor \(4, C\), got a float32 tensor of shape \(3, 3\)",
    ),
    "kind": ({"features": X.double()}, "features and points: expected one dtype"),
    "offsets": ({"offsets": torch.tensor([0, 3])}, "offsets: expected to rise from 0 to 4"),
    "reduce": ({"reduce": "median"}, "reduce: expected one of"),
    "backend": ({"backend": "gpu"}, "backend: expected one of"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_shape_error(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        voxelize(**{"points": X, "size": 0.5, **change})


@pytest.mark.usefixtures("unchecked")
def test_wrong_voxels() -> None:
    grid = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"grid: expected an int64 tensor \(N, 3\), got a int32 tensor"):
        Voxels(grid.int(), torch.ones(2, 1))
    with pytest.raises(ShapeError, match=r"features: expected a float tensor \(2, C\)"):
        Voxels(grid, torch.ones(2))
    with pytest.raises(ShapeError, match="stride: expected an integer of at least 1, or three of them, got 0"):
        merge_voxels(Voxels(grid, torch.ones(2, 1)), stride=0)
    with pytest.raises(IndexError, match="cloud 1 of 1"):
        Voxels(grid, torch.ones(2, 1))[1]
