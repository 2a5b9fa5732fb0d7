"""Linear blend skinning: plain sums, libigl's numbers, the kernel's adjoint, derivatives, and normals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.kernels import skinning
from geom.lie import quaternion
from geom.meshes import face_normals
from geom.skinning.linear import lbs, skin_normals
from geom.testing import assert_gradients

BACKENDS = pytest.mark.parametrize("backend", ["warp", "torch"])


def drawn(
    count: int = 6, joints: int = 5, width: int = 3, poses: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vertices, weights, bones (any affine maps), and different indices for each vertex."""
    generator = torch.Generator().manual_seed(count)
    vertices = torch.randn(count, 3, generator=generator, dtype=dtype)
    weights = 0.05 + torch.rand(count, width, generator=generator, dtype=dtype)
    bones = torch.randn(*poses, joints, 3, 4, generator=generator, dtype=dtype)
    indices = torch.rand(count, joints, generator=generator).argsort(-1)[:, :width].contiguous()
    return vertices, weights / weights.sum(-1, keepdim=True), bones, indices


def spread(weights: Tensor, indices: Tensor, joints: int) -> Tensor:
    return weights.new_zeros(len(weights), joints).scatter(1, indices, weights)


@BACKENDS
@pytest.mark.parametrize("width", [1, 2, 4, 5, 12])
def test_it_is_the_weighted_sum(width: int, backend: str, dtype: torch.dtype) -> None:
    vertices, weights, bones, indices = drawn(37, 13, width, (2, 3), dtype)
    each = torch.einsum("...jrc,vc->...vjr", bones[..., :3], vertices) + bones[..., None, :, :, 3]
    want = (spread(weights, indices, 13)[..., None] * each).sum(-2)
    tolerance = 1e-14 if dtype == torch.float64 else 5e-6
    assert (lbs(vertices, weights, bones, indices=indices, backend=backend) - want).abs().max() < tolerance
    dense = lbs(vertices, spread(weights, indices, 13), bones, backend=backend)
    assert dense.dtype == dtype and dense.shape == (2, 3, 37, 3) and (dense - want).abs().max() < tolerance


@BACKENDS
def test_batches_of_vertices_and_bones_broadcast(backend: str) -> None:
    vertices, weights, bones, indices = drawn(poses=(3,))
    own = torch.stack([vertices, 2 * vertices])[:, None]
    found = lbs(own, weights, bones, indices=indices, backend=backend)
    assert found.shape == (2, 3, 6, 3)
    for i in range(2):
        for j in range(3):
            want = lbs(own[i, 0], weights, bones[j], indices=indices, backend="torch")
            assert (found[i, j] - want).abs().max() < 1e-14
    assert lbs(own, weights, bones[0], indices=indices, backend=backend).shape == (2, 1, 6, 3)


@BACKENDS
def test_libigl_moves_the_hand_alike(data: Path, backend: str, dtype: torch.dtype) -> None:
    hand = np.load(data / "skinning" / "igl" / "hand_bbw_libigl263.npz")
    golden = np.load(data / "skinning" / "igl" / "hand_lbs_dqs_golden.npz")
    weights = torch.from_numpy(hand["W_raw"]).double()
    weights = (weights / weights.sum(-1, keepdim=True)).to(dtype)
    rotation = quaternion.to_matrix(torch.from_numpy(golden["q_wxyz"]))
    bones = torch.cat([rotation, torch.from_numpy(golden["t"])[..., None]], -1).to(dtype)
    found = lbs(torch.from_numpy(hand["V"]).to(dtype), weights, bones, backend=backend)
    assert (found - torch.from_numpy(golden["lbs"])).abs().max() < 5e-7


@BACKENDS
def test_a_vertex_alone(backend: str) -> None:
    vertices, weights, bones, indices = drawn(5)
    for v in range(5):
        alone = [x[v : v + 1] for x in (vertices, weights, indices)]
        found = lbs(alone[0], alone[1], bones, indices=alone[2], backend=backend)
        assert (
            found - lbs(vertices, weights, bones, indices=indices, backend="torch")[:, v : v + 1]
        ).abs().max() < 1e-14


@BACKENDS
def test_nothing_to_move(backend: str) -> None:
    vertices, weights, bones, indices = drawn()
    assert lbs(vertices[:0], weights[:0], bones, indices=indices[:0], backend=backend).shape == (2, 0, 3)
    still = vertices.clone().requires_grad_()
    none = lbs(still, weights, bones[:0], indices=indices, backend=backend)
    assert none.shape == (0, 6, 3)
    assert torch.autograd.grad(none.sum(), still)[0].eq(0).all()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_the_adjoint_is_the_twins(shared: bool, dense: bool, dtype: torch.dtype) -> None:
    vertices, weights, bones, indices = drawn(3001, 7, 4, (2,), dtype)
    vertices = vertices if shared else torch.stack([vertices, vertices.flip(0)])
    if dense:
        weights, indices = spread(weights, indices, 7), None
    grad = torch.randn(2, 3001, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found = {}
    for backend in ("warp", "torch"):
        given = [x.clone().requires_grad_() for x in (vertices, weights, bones)]
        found[backend] = torch.autograd.grad(lbs(*given, indices=indices, backend=backend), given, grad)
    for a, b in zip(found["warp"], found["torch"], strict=True):
        assert (a - b).abs().max() < (1e-14 if dtype == torch.float64 else 2e-5) * b.abs().max().clamp(min=1)
    for i in range(3):  # each alone
        alone = [x.detach().requires_grad_(k == i) for k, x in enumerate((vertices, weights, bones))]
        (one,) = torch.autograd.grad(lbs(*alone, indices=indices), alone[i], grad)
        assert torch.equal(one, found["warp"][i])


def test_bits_hang_on_no_thread_and_no_place(threads: Callable[[int], None]) -> None:
    vertices, weights, bones, indices = drawn(20_011, 9, 4, (2,), torch.float32)
    found = []
    for count in (1, 2, 3):
        threads(count)
        given = [x.clone().requires_grad_() for x in (vertices, weights, bones)]
        out = lbs(*given, indices=indices)
        found.append((out, *torch.autograd.grad(out, given, torch.ones_like(out))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    order = torch.randperm(len(vertices), generator=torch.Generator().manual_seed(0))
    moved = lbs(vertices[order], weights[order], bones, indices=indices[order])
    assert torch.equal(moved, found[0][0][:, order])


def test_sums_of_many_bones_take_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, weights, bones, indices = drawn(5000, 50, 4, (2,))
    grads = []
    for room in (1 << 26, 1 << 16):
        monkeypatch.setattr(skinning, "_ROOM", room)
        given = bones.clone().requires_grad_()
        grads += torch.autograd.grad(lbs(vertices, weights, given, indices=indices).square().sum(), given)
    assert (grads[0] - grads[1]).abs().max() < 1e-12 * grads[0].abs().max()


def test_derivatives() -> None:
    vertices, weights, bones, indices = drawn(4, 3, 2)
    assert_gradients(lambda v, w, b: lbs(v, w, b, indices=indices), vertices, weights, bones)
    assert_gradients(lambda v, w, b: lbs(v, w, b), vertices.repeat(2, 1, 1), spread(weights, indices, 3), bones)
    assert_gradients(lambda n, w, b: skin_normals(n, w, b, indices=indices), vertices, weights, bones)


@pytest.mark.usefixtures("unchecked")
def test_it_compiles() -> None:
    vertices, weights, bones, indices = drawn(4, 3, 2)
    rest = {"order": 0, "forward": False, "vmap": False, "compile": True}
    assert_gradients(lambda v, w, b: lbs(v, w, b, indices=indices), vertices, weights, bones, **rest)
    assert_gradients(lambda n, w, b: skin_normals(n, w, b, indices=indices), vertices, weights, bones, **rest)


def test_normals_stay_normal(dtype: torch.dtype) -> None:
    corners, weights, bones, _ = drawn(3, 1, 1, (8,), dtype)
    faces = torch.tensor([[0, 1, 2]])
    normals = face_normals(corners, faces).expand(3, 3)
    moved = lbs(corners, torch.ones_like(weights), bones)
    found = skin_normals(normals.contiguous(), torch.ones_like(weights), bones)
    assert (torch.linalg.det(bones[..., 0, :, :3]) < 0).any()  # mirrored ones among them
    assert (found - face_normals(moved, faces)).abs().max() < (1e-13 if dtype == torch.float64 else 2e-5)


def test_normals_of_flattened_bones() -> None:
    flat = torch.cat([torch.diag(torch.tensor([1.0, 1, 0])), torch.zeros(3, 1)], -1)[None]
    normals = torch.tensor([[0.0, 0, 2], [1, 0, 0]], requires_grad=True)
    found = skin_normals(normals, torch.ones(2, 1), flat)
    assert found.tolist() == [[0, 0, 1], [0, 0, 0]]
    (grad,) = torch.autograd.grad(found.sum(), normals)
    assert grad.isfinite().all() and grad[1].eq(0).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vertices": torch.zeros(6, 2)}, r"vertices: expected .* \(\.\.\., V, 3\)"),
        ({"vertices": torch.zeros(6, 3, dtype=torch.int64)}, "vertices: expected a float32 or float64"),
        ({"weights": torch.zeros(5, 3)}, r"weights: expected a tensor \(6, K\)"),
        ({"weights": torch.zeros(6, 0)}, "K >= 1"),
        ({"weights": torch.zeros(6, 3, dtype=torch.float32)}, "weights and vertices: expected one dtype"),
        ({"bones": torch.zeros(5, 4, 4)}, r"bones: expected a tensor \(\.\.\., J, 3, 4\)"),
        ({"bones": torch.zeros(5, 3, 4, dtype=torch.float32)}, "bones and vertices: expected one dtype"),
        ({"indices": None}, r"weights: expected \(6, 5\)"),
        ({"indices": torch.zeros(6, 3)}, "indices: expected an int64"),
        ({"indices": torch.zeros(6, 2, dtype=torch.int64)}, r"indices: expected an int64 tensor \(6, 3\)"),
        ({"indices": torch.full((6, 3), 5)}, r"indices: expected bones in \[0, 5\), got 5 to 5"),
        ({"indices": torch.full((6, 3), -1)}, r"got -1 to -1"),
        ({"vertices": torch.zeros(3, 6, 3, dtype=torch.float64)}, "batches that broadcast"),
        ({"backend": "numpy"}, "backend: expected one of"),
    ],
)
def test_wrong_input_is_named(change: dict[str, object], words: str) -> None:
    names = ("vertices", "weights", "bones", "indices")
    given: dict[str, Any] = {**dict(zip(names, drawn(), strict=True)), **change}
    with pytest.raises(ShapeError, match=words):
        lbs(given.pop("vertices"), given.pop("weights"), given.pop("bones"), **given)
