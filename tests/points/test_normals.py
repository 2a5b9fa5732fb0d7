"""Covariances and normals: against numpy and the twin, on planes, lines, single places."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points, estimate_covariances, estimate_normals, knn

COVARIANCE = {torch.float32: 1e-6, torch.float64: 1e-15}  # of the largest entry, as guaranteed
ANGLE = {torch.float32: 1e-4, torch.float64: 1e-12}
both = pytest.mark.parametrize("backend", ["warp", "torch"])


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rigid(seed: int = 0) -> Rigid:
    return Rigid.identity(dtype=torch.float64).retract(3 * random(6, seed=seed) - 1.5)


def turned(direction: Tensor) -> Tensor:
    """The direction with its largest component positive."""
    return direction * direction.gather(-1, direction.abs().argmax(-1, keepdim=True)).sign()


def close_in_angle(a: Tensor, b: Tensor, angle: float) -> bool:
    return bool((torch.linalg.vector_norm(a.double() - b.double(), dim=-1) <= angle).all())


@both
def test_covariances_match_numpy(backend: str, dtype: torch.dtype) -> None:
    points = random(200, 3, dtype=dtype) * torch.tensor([3, 1, 0.1], dtype=dtype)
    found = estimate_covariances(points, k=9, backend=backend)
    near = points.double().numpy()[knn(points, points, 9).index.numpy()]
    want = np.stack([np.cov(x.T, bias=True) for x in near])
    size = np.abs(want).max((1, 2), keepdims=True)
    assert found.dtype == dtype and (np.abs(found.double().numpy() - want) <= COVARIANCE[dtype] * size).all()
    assert torch.equal(found, found.mT)
    assert (
        torch.linalg.eigvalsh(found.double()).amin(-1) >= -COVARIANCE[dtype] * torch.from_numpy(size[:, 0, 0])
    ).all()


@both
def test_far_from_the_origin(backend: str) -> None:
    points = torch.round(random(200, 3) * 2**20) / 2**20
    assert torch.allclose(estimate_covariances(points + 1e6, backend=backend), estimate_covariances(points), rtol=1e-9)
    assert close_in_angle(estimate_normals(points + 1e6, backend=backend), estimate_normals(points), 1e-8)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3])
def test_warp_matches_the_twin(noise: float, dtype: torch.dtype) -> None:
    flat = random(500, 3) * torch.tensor([1, 1, noise])
    points = rigid().apply(flat).to(dtype)
    covariances = [estimate_covariances(points, backend=name) for name in ("warp", "torch")]
    assert (covariances[0] - covariances[1]).abs().max() <= COVARIANCE[dtype] * covariances[1].abs().max()
    values = torch.linalg.eigvalsh(covariances[1].double())
    clear = values[:, 1] - values[:, 0] > 0.05 * values[:, 2]  # one flattest direction, not two
    normals = [estimate_normals(points, backend=name)[clear] for name in ("warp", "torch")]
    assert clear.sum() > 250 and close_in_angle(*normals, 10 * ANGLE[dtype])


@both
@pytest.mark.parametrize("seed", range(3))
def test_a_plane_has_its_normal(backend: str, seed: int, dtype: torch.dtype) -> None:
    motion = rigid(seed)
    points = motion.apply(random(300, 3, seed=seed) * torch.tensor([1.0, 1, 0])).to(dtype)
    want = motion.apply(torch.tensor([[0.0, 0, 1], [0, 0, 0]]).double()).diff(dim=0).neg()
    found = estimate_normals(points, backend=backend)
    assert found.dtype == dtype and close_in_angle(found, turned(want), ANGLE[dtype])
    assert (torch.linalg.vector_norm(found, dim=-1) - 1).abs().max() < 4 * torch.finfo(dtype).eps


@both
def test_a_line_has_some_normal_across(backend: str, dtype: torch.dtype) -> None:
    for along in (random(3), torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 1, 0]), torch.tensor([0.0, 1, 1e-3])):
        points = (torch.linspace(-1, 1, 40).double()[:, None] * along).to(dtype)
        found = estimate_normals(points, k=5, backend=backend).double()
        assert (torch.linalg.vector_norm(found, dim=-1) - 1).abs().max() < 1e-6
        assert (found @ along.double()).abs().max() < 1e-3 * along.norm()


@both
def test_a_single_place_has_none(backend: str, dtype: torch.dtype) -> None:
    for count in (1, 2, 30):
        points = torch.full((count, 3), 0.7, dtype=dtype)
        assert torch.equal(estimate_normals(points, backend=backend), torch.zeros(count, 3, dtype=dtype))
        assert torch.equal(estimate_covariances(points, backend=backend), torch.zeros(count, 3, 3, dtype=dtype))
    pair = torch.tensor([[0, 0, 0], [0, 0, 2.0]], dtype=dtype)
    assert (estimate_normals(pair, backend=backend)[:, 2] == 0).all()


@both
def test_equal_spread_gives_one_unit_vector(backend: str, dtype: torch.dtype) -> None:
    cube = torch.cartesian_prod(*[torch.tensor([-1.0, 1], dtype=dtype)] * 3)
    found = estimate_normals(cube, k=8, backend=backend)
    assert (torch.linalg.vector_norm(found, dim=-1) - 1).abs().max() < 1e-6
    assert torch.equal(found, estimate_normals(cube, k=8, backend=backend))


@both
def test_fewer_points_than_k(backend: str, dtype: torch.dtype) -> None:
    points = random(5, 3, dtype=dtype)
    want = torch.from_numpy(np.cov(points.double().numpy().T, bias=True))
    found = estimate_covariances(points, k=20, backend=backend)
    assert torch.allclose(found.double(), want.expand(5, 3, 3), atol=2 * COVARIANCE[dtype])
    assert estimate_normals(points[:0], backend=backend).shape == (0, 3)
    assert estimate_covariances(points[:0], backend=backend).shape == (0, 3, 3)


@both
def test_ragged_equals_one_by_one(backend: str, dtype: torch.dtype) -> None:
    points, offsets = random(90, 3, dtype=dtype), torch.tensor([0, 0, 4, 40, 90])
    batch = Points(points, offsets=offsets)
    for function in (estimate_covariances, estimate_normals):
        found = function(batch, k=6, backend=backend)
        assert torch.equal(found, function(points, k=6, offsets=offsets, backend=backend))
        assert torch.equal(found, torch.cat([function(cloud, k=6, backend=backend) for cloud in batch]))


@both
def test_normals_point_to_the_viewpoint(backend: str, dtype: torch.dtype) -> None:
    sphere = torch.nn.functional.normalize(random(400, 3, dtype=dtype) - 0.5, dim=-1)
    inward = estimate_normals(sphere, k=8, viewpoint=torch.zeros(3, dtype=dtype), backend=backend)
    assert ((inward * sphere).sum(-1) < -0.7).all()
    assert torch.equal(turned(inward), turned(estimate_normals(sphere, k=8, backend=backend)))
    outside = torch.tensor([0.0, 0, 50])  # another dtype will do
    toward = estimate_normals(sphere, k=8, viewpoint=outside, backend=backend)
    assert ((toward * (outside.to(dtype) - sphere)).sum(-1) >= 0).all()


@both
def test_rotations_turn_the_answer(backend: str) -> None:
    points, motion = random(150, 3) * torch.tensor([2, 1, 0.3]), rigid(4)
    rotation = motion.to_matrix()[:3, :3]
    moved, still = (estimate_covariances(x, k=10, backend=backend) for x in (motion.apply(points), points))
    assert torch.allclose(moved, rotation @ still @ rotation.mT, atol=1e-14)
    normals = [turned(estimate_normals(x, k=10, backend=backend)) for x in (motion.apply(points), points)]
    assert close_in_angle(normals[0], turned(normals[1] @ rotation.mT), 1e-10)


def test_threads_do_not_change_a_bit(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    points, found = random(10_000, 3, dtype=dtype), []
    for count in (1, 2):
        threads(count)
        found.append((estimate_covariances(points, k=8), estimate_normals(points, k=8)))
    assert all(map(torch.equal, *found))


X = torch.rand(6, 3)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "k": ({"k": 2}, "k: expected an integer of at least 3, got 2"),
    "k_float": ({"k": 5.0}, "k: expected an integer of at least 3"),
    "nan": ({"points": X * float("nan")}, "points: expected finite coordinates"),
    "shape": ({"points": X.T}, "points: expected a float32 or float64 tensor"),
    "mesh": ({"points": Mesh(X, torch.tensor([[0, 1, 2]]))}, "got a Mesh"),
    "backend": ({"backend": "open3d"}, "backend: expected one of"),
    "viewpoint": ({"viewpoint": torch.zeros(2)}, r"viewpoint: expected a float tensor \(3,\), got .* \(2,\)"),
    "viewpoints": ({"viewpoint": torch.zeros(6, 3)}, r"viewpoint: expected a float tensor \(3,\)"),
    "viewpoint_list": ({"viewpoint": [0.0, 0, 0]}, "viewpoint: expected a float tensor .3,., got a list"),
    "viewpoint_int": ({"viewpoint": torch.zeros(3).int()}, "viewpoint: expected a float32 or float64"),
    "viewpoint_nan": ({"viewpoint": torch.zeros(3) / 0}, "viewpoint: expected finite"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_shape_error(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        estimate_normals(**{"points": X, **change})
    if not case.startswith("viewpoint"):
        with pytest.raises(ShapeError, match=message):
            estimate_covariances(**{"points": X, **change})
