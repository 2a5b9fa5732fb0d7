"""Voxel downsampling: the kernel against the twin and against a dictionary of cells."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.meshes import Mesh
from geom.points import Points, voxel_downsample

EPS = {torch.float32: 1e-7, torch.float64: 2e-16}  # what the docstring guarantees
FIELDS = ("positions", "normals", "colors", "intensities", "offsets")
both = pytest.mark.parametrize("backend", ["warp", "torch"])


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def full(count: int, dtype: torch.dtype, offsets: Tensor | None = None) -> Points:
    normals = torch.nn.functional.normalize(random(count, 3, seed=1) - 0.3, dim=-1).to(dtype)
    colors, intensities = random(count, 3, dtype=torch.float32, seed=2), random(count, dtype=torch.float32, seed=3)
    return Points(random(count, 3, dtype=dtype) * 3, normals, colors, intensities, offsets)


def same(a: Points, b: Points) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return all(x is y is None or (x.dtype == y.dtype and torch.equal(x, y)) for x, y in pairs)


@pytest.mark.parametrize("size", [0.05, 0.31, 1.0, 50.0])
@pytest.mark.parametrize("offsets", [None, [0, 0, 100, 100, 101, 900, 900]])
def test_warp_is_the_twin_bit_for_bit(size: float, offsets: list[int] | None, dtype: torch.dtype) -> None:
    cloud = full(900, dtype, None if offsets is None else torch.tensor(offsets))
    a, b = (voxel_downsample(cloud, size, backend=name) for name in ("warp", "torch"))
    assert same(a, b) and 0 < len(a.positions) <= 900


@both
def test_means_of_every_cell(backend: str, dtype: torch.dtype) -> None:
    cloud, size = full(500, dtype), 0.5
    x = cloud.positions.double().numpy()
    cells = defaultdict(list)
    for i, cell in enumerate(np.floor((x - (x.min(0) - size / 2)) / size).astype(int).tolist()):
        cells[tuple(cell)].append(i)
    thin = voxel_downsample(cloud, size, backend=backend)
    assert len(thin.positions) == len(cells) < 500 and thin.offsets is None

    def interleaved(cell: tuple[int, ...]) -> int:
        return sum((c >> bit & 1) << (3 * bit + axis) for axis, c in enumerate(cell) for bit in range(21))

    for place, cell in enumerate(sorted(cells, key=interleaved)):
        for name in ("positions", "colors", "intensities", "normals"):
            field, got = getattr(cloud, name), getattr(thin, name)
            mean = field.double().numpy()[cells[cell]].mean(0)
            mean = mean / np.linalg.norm(mean) if name == "normals" else mean
            assert got.dtype == field.dtype
            assert np.allclose(got[place].double().numpy(), mean, rtol=3 * EPS[field.dtype], atol=3 * EPS[field.dtype])


def test_normals_are_unit_or_zero(dtype: torch.dtype) -> None:
    normals = torch.tensor([[0, 0, 1], [0, 0, -1], [0, 3, 0], [0, 0, 4.0]], dtype=dtype)
    positions = torch.tensor([[0, 0, 0], [0, 0, 0], [9, 0, 0], [9, 0, 0.0]], dtype=dtype, requires_grad=True)
    thin = voxel_downsample(Points(positions, normals.requires_grad_()), 1.0)
    assert thin.normals is not None
    assert torch.equal(thin.normals.detach()[0], torch.zeros(3, dtype=dtype))
    assert torch.allclose(thin.normals.detach()[1], torch.tensor([0, 0.6, 0.8], dtype=dtype))
    assert all(g.isfinite().all() for g in torch.autograd.grad(thin.normals.sum(), normals))


def test_the_grid_moves_with_the_cloud() -> None:
    x = torch.round(random(400, 3) * 2**20) / 2**20  # sums with a million are exact
    moved, thin = voxel_downsample(x + 1e6, 0.2).positions, voxel_downsample(x, 0.2).positions
    assert moved.shape == thin.shape and (moved - 1e6 - thin).abs().max() <= 2e-10
    turned = voxel_downsample(x[torch.randperm(400)], 0.2).positions
    assert (turned - thin).abs().max() < 1e-15


@both
def test_ragged_equals_one_by_one(backend: str, dtype: torch.dtype) -> None:
    offsets = torch.tensor([0, 0, 5, 5, 200, 400])
    batch = full(400, dtype, offsets)
    thin = voxel_downsample(batch, 0.4, backend=backend)
    assert len(thin) == 5
    for i in range(5):
        assert same(thin[i], voxel_downsample(batch[i], 0.4, backend=backend))
    bare = voxel_downsample(batch.positions, 0.4, offsets=offsets, backend=backend)
    assert torch.equal(bare.positions, thin.positions) and bare.normals is None


@both
def test_nothing_in_nothing_out(backend: str, dtype: torch.dtype) -> None:
    for offsets in (None, torch.tensor([0]), torch.tensor([0, 0, 0])):
        thin = voxel_downsample(full(0, dtype, offsets), 0.1, backend=backend)
        assert thin.positions.shape == (0, 3) and thin.colors is not None and thin.colors.shape == (0, 3)
        assert (thin.offsets is None) if offsets is None else torch.equal(thin.offsets, offsets)
    single = voxel_downsample(torch.full((1, 3), 7.0, dtype=dtype), 1e-30, backend=backend)
    assert torch.equal(single.positions, torch.full((1, 3), 7.0, dtype=dtype))


@both
def test_gradcheck(backend: str) -> None:
    x, normals = random(12, 3).requires_grad_(), (random(12, 3, seed=1) + 0.1).requires_grad_()

    def f(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        thin = voxel_downsample(Points(x, n), 0.4, backend=backend)
        assert thin.normals is not None and 1 < len(thin.positions) < 12
        return thin.positions, thin.normals

    assert torch.autograd.gradcheck(f, (x, normals))


def test_under_torch_func_the_twin_differentiates() -> None:
    x = random(12, 3)
    jacobian = torch.func.jacrev(lambda x: voxel_downsample(x, 0.4).positions)(x)
    want = torch.autograd.functional.jacobian(lambda x: voxel_downsample(x, 0.4).positions, x)
    assert torch.allclose(jacobian, want, atol=1e-15) and want.any()


def test_threads_do_not_change_a_bit(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    cloud, found = full(30_000, dtype), []
    for count in (1, 2):
        threads(count)
        found.append(voxel_downsample(cloud, 0.06))
    assert same(*found) and len(found[0].positions) > 9000


def test_inputs_stay_as_they_are(dtype: torch.dtype) -> None:
    cloud, again = full(50, dtype), full(50, dtype)
    voxel_downsample(cloud, 0.4)
    assert same(cloud, again)


@both
def test_too_small_a_voxel(backend: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 0, 0], [1.0, 0, 0]], dtype=dtype)
    least = 1 / (2**21 - 2)
    assert len(voxel_downsample(x, least * 1.001, backend=backend).positions) == 2
    with pytest.raises(ShapeError, match=r"voxel_size: expected at least 4\.77e-07 for this extent, got 4\.76e-07"):
        voxel_downsample(x, least * 0.999, backend=backend)


X = torch.rand(4, 3)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "zero": ({"voxel_size": 0.0}, "voxel_size: expected a finite number above 0"),
    "nan": ({"voxel_size": math.nan}, "voxel_size: expected a finite number above 0"),
    "points_nan": ({"points": X * math.nan}, "points: expected finite coordinates"),
    "shape": ({"points": X[:, :2]}, "points: expected a float32 or float64 tensor"),
    "dtype": ({"points": X.bfloat16()}, "points: expected a float32 or float64 tensor"),
    "mesh": ({"points": Mesh(X, torch.tensor([[0, 1, 2]]))}, "got a Mesh"),
    "offsets": ({"offsets": torch.tensor([0, 3])}, "offsets: expected to rise from 0 to 4"),
    "backend": ({"backend": "gpu"}, "backend: expected one of"),
    "half_colors": (
        {"points": Points(X, colors=X.half()), "backend": "warp"},
        "backend: expected float32 or float64 .* got a float16",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_shape_error(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        voxel_downsample(**{"points": X, "voxel_size": 0.5, **change})
