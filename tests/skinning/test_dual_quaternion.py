"""Dual-quaternion skinning: screws in closed form, libigl's numbers, signs, stretches, volume, and derivatives."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import quaternion, se3, so3
from geom.meshes import mass_properties
from geom.skinning.dual_quaternion import _screws, dqs, dqs_rigid
from geom.skinning.linear import lbs
from geom.testing import assert_gradients

BACKENDS = pytest.mark.parametrize("backend", ["warp", "torch"])


def drawn(
    count: int = 6, joints: int = 5, width: int = 3, poses: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vertices, weights, motions (dual quaternions of either sign), and different indices for each vertex."""
    generator = torch.Generator().manual_seed(count)
    given = {"generator": generator, "dtype": dtype}
    vertices = torch.randn(count, 3, **given)
    weights = 0.05 + torch.rand(count, width, **given)
    quat = quaternion.random(*poses, joints, **given)
    motions = se3.to_dual_quaternion(quat, torch.randn(*poses, joints, 3, **given))
    indices = torch.rand(count, joints, generator=generator).argsort(-1)[:, :width].contiguous()
    return vertices, weights / weights.sum(-1, keepdim=True), motions, indices


def to_bones(motions: Tensor) -> Tensor:
    quat, translation = se3.from_dual_quaternion(motions)
    return torch.cat([quaternion.to_matrix(quat), translation[..., None]], -1)


def spread(weights: Tensor, indices: Tensor, joints: int) -> Tensor:
    return weights.new_zeros(len(weights), joints).scatter(1, indices, weights)


def one_by_one(vertex: Tensor, weights: Tensor, motions: Tensor) -> Tensor:
    """Of one vertex, as Kavan et al. 2008 write it: weights (K,) and motions (K, 8)."""
    pivot = motions[int(weights.argmax()), :4]
    total = torch.zeros(8, dtype=vertex.dtype)
    for w, q in zip(weights, motions, strict=True):
        total = total + w * (q if pivot @ q[:4] >= 0 else -q)
    quat, translation = se3.from_dual_quaternion(total)
    return quaternion.to_matrix(quat) @ vertex + translation


@BACKENDS
@pytest.mark.parametrize("width", [1, 2, 4, 12])
def test_it_is_the_mean_screw(width: int, backend: str, dtype: torch.dtype) -> None:
    vertices, weights, motions, indices = drawn(37, 13, width, (2,), dtype)
    tolerance = 1e-13 if dtype == torch.float64 else 3e-5
    found = dqs_rigid(vertices, weights, motions, indices=indices, backend=backend)
    dense = dqs_rigid(vertices, spread(weights, indices, 13), motions, backend=backend)
    bones = dqs(vertices, weights, to_bones(motions), indices=indices, backend=backend)
    for pose in range(2):
        for v in range(37):
            want = one_by_one(vertices[v], weights[v], motions[pose, indices[v]])
            for other in (found, dense, bones):
                assert (other[pose, v] - want).abs().max() < tolerance
    assert found.dtype == dtype


@BACKENDS
def test_libigl_moves_the_hand_alike(data: Path, backend: str, dtype: torch.dtype) -> None:
    hand = np.load(data / "skinning" / "igl" / "hand_bbw_libigl263.npz")
    golden = np.load(data / "skinning" / "igl" / "hand_lbs_dqs_golden.npz")
    weights = torch.from_numpy(hand["W_raw"]).to(dtype)
    quat, translation = (torch.from_numpy(golden[name]).to(dtype) for name in ("q_wxyz", "t"))
    bones = torch.cat([quaternion.to_matrix(quat), translation[..., None]], -1)
    found = dqs(torch.from_numpy(hand["V"]).to(dtype), weights, bones, backend=backend)
    assert (found - torch.from_numpy(golden["dqs"])).abs().max() < 5e-7


@BACKENDS
def test_a_sign_changes_no_bit(backend: str, dtype: torch.dtype) -> None:
    vertices, weights, motions, indices = drawn(200, 8, 4, (), dtype)
    square = torch.eye(4, dtype=dtype)  # rotations by pi to each other: products are exactly 0
    motions = torch.cat([torch.cat([square, motions[:4, 4:]], -1), motions[4:]])
    weights[::2] = 0.25  # and ties of weights
    want = dqs_rigid(vertices, weights, motions, indices=indices, backend=backend)
    for flip in range(1, 256, 5):
        signs = torch.tensor([-1.0 if flip >> j & 1 else 1.0 for j in range(8)], dtype=dtype)[:, None]
        assert torch.equal(dqs_rigid(vertices, weights, signs * motions, indices=indices, backend=backend), want)
    assert want.isfinite().all()


@BACKENDS
def test_ties_of_weights_go_to_the_lowest_bone(backend: str) -> None:
    quat = quaternion.exp(torch.tensor([[0.0, 0, 0], [0, 0, 2.2], [0, 0, 4.4]], dtype=torch.float64))
    motions = se3.to_dual_quaternion(quat, torch.zeros(3, 3, dtype=torch.float64))
    x, weights = torch.tensor([[1.0, 0, 0]], dtype=torch.float64), torch.full((1, 3), 1 / 3, dtype=torch.float64)
    want = one_by_one(x[0], weights[0], motions)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        found = dqs_rigid(x, weights, motions, indices=torch.tensor([order]), backend=backend)
        assert (found[0] - want).abs().max() < 1e-15
    assert (dqs_rigid(x, weights, motions, backend=backend)[0] - want).abs().max() < 1e-15
    turned = one_by_one(x[0], weights[0], motions[[1, 2, 0]])
    assert (turned - want).abs().max() > 0.1  # so that another choice would show


@BACKENDS
def test_one_bone_is_any_affine_map(backend: str, dtype: torch.dtype) -> None:
    vertices, _, _, _ = drawn(50, dtype=dtype)
    bones = torch.randn(20, 1, 3, 4, generator=torch.Generator().manual_seed(2), dtype=dtype)
    one = torch.ones(50, 1, dtype=dtype)
    assert (torch.linalg.det(bones[..., :3]) < 0).any()
    want = lbs(vertices, one, bones, backend="torch")
    tolerance = 2e-14 if dtype == torch.float64 else 1e-5
    assert (dqs(vertices, one, bones, backend=backend) - want).abs().max() < tolerance
    rigid = to_bones(drawn(50, dtype=dtype)[2])[:, :1]
    error = (dqs(vertices, one, rigid, backend=backend) - lbs(vertices, one, rigid, backend="torch")).abs().max()
    assert error < (2e-15 if dtype == torch.float64 else 2e-6)


@BACKENDS
def test_a_vertex_alone(backend: str) -> None:
    vertices, weights, motions, indices = drawn(5)
    together = dqs_rigid(vertices, weights, motions, indices=indices, backend="torch")
    for v in range(5):
        alone = [x[v : v + 1] for x in (vertices, weights, indices)]
        found = dqs_rigid(alone[0], alone[1], motions, indices=alone[2], backend=backend)
        assert (found - together[:, v : v + 1]).abs().max() < 1e-14


def test_the_parts_of_a_bone_are_the_twins(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    bones = torch.randn(300, 3, 4, generator=generator, dtype=dtype)
    bones[:100, :, :3] = so3.exp(2 * torch.randn(100, 3, generator=generator, dtype=dtype))  # equal singular values
    tolerance = 1e-12 if dtype == torch.float64 else 1e-3
    steady = so3.project(bones[..., :3]).sub(bones[..., :3]).norm(dim=(-2, -1)) < 2  # not close to an open rotation
    grad = torch.randn(300, 16, generator=generator, dtype=dtype)
    found = []
    for parts in (_screws, _screws.__wrapped__):  # type: ignore[attr-defined]
        given = bones.clone().requires_grad_()
        out = parts(given)
        found.append((out.detach(), *torch.autograd.grad(out, given, grad)))
    for a, b in zip(*found, strict=True):
        assert (a - b)[steady].abs().max() < tolerance
    assert steady.sum() > 150
    for flat in (
        0 * bones[:2],
        bones[:2] * torch.tensor([1.0, 0, 0, 1], dtype=dtype),
        -torch.eye(3, 4, dtype=dtype)[None],
    ):
        given = flat.clone().requires_grad_()
        out = _screws(given)
        (slope,) = torch.autograd.grad(out.sum(), given)
        assert out.isfinite().all() and slope.isfinite().all()


@BACKENDS
def test_stretches_blend_linearly_where_nothing_turns(backend: str) -> None:
    vertices, weights, _, indices = drawn()
    factors = 0.2 + torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.randn(2, 5, 3, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bones = torch.cat([torch.diag_embed(factors), shift], -1)
    found = dqs(vertices, weights, bones, indices=indices, backend=backend)
    assert (found - lbs(vertices, weights, bones, indices=indices)).abs().max() < 1e-14


def test_it_moves_with_the_world() -> None:
    vertices, weights, motions, indices = drawn(40, 5, 4)
    bones = to_bones(motions) @ torch.diag_embed(torch.tensor([1.2, 0.8, 1.0, 1.0], dtype=torch.float64))
    turn = so3.exp(torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64))
    moved = turn @ bones
    found = dqs(vertices, weights, moved, indices=indices)
    want = dqs(vertices, weights, bones, indices=indices) @ turn.mT
    assert (found - want).abs().max() < 1e-13


@BACKENDS
def test_blends_always_hold_a_rotation(backend: str, dtype: torch.dtype) -> None:
    axes = torch.eye(3, dtype=dtype)
    turns = torch.cat([math.pi * axes, -math.pi * axes, torch.zeros(1, 3, dtype=dtype)])
    motions = se3.to_dual_quaternion(quaternion.exp(turns), torch.ones(7, 3, dtype=dtype))
    motions = torch.cat([motions, -motions]).requires_grad_()
    pairs = torch.cartesian_prod(torch.arange(14), torch.arange(14))
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype).expand(len(pairs), 3).contiguous().requires_grad_()
    weights = torch.full((len(pairs), 2), 0.5, dtype=dtype, requires_grad=True)
    out = dqs_rigid(x, weights, motions, indices=pairs, backend=backend)
    grads = torch.autograd.grad(out.square().sum(), (x, weights, motions))
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)
    assert max(float(g.abs().max()) for g in grads) < 1e4
    assert out.detach().norm(dim=-1).max() < 10


@BACKENDS
def test_no_weights_no_motion(backend: str, dtype: torch.dtype) -> None:
    vertices, weights, motions, indices = drawn(dtype=dtype)
    weights = (0 * weights).requires_grad_()
    found = dqs_rigid(vertices, weights, motions, indices=indices, backend=backend)
    assert torch.equal(found, vertices.expand(2, 6, 3))
    assert torch.autograd.grad(found.sum(), weights)[0].isfinite().all()


def bar(along: int, around: int) -> tuple[Tensor, Tensor]:
    """A closed prism of a regular polygon about z, from 0 to 1: vertices and faces."""
    turn = torch.arange(around, dtype=torch.float64) * (2 * math.pi / around)
    ring = 0.1 * torch.stack([turn.cos(), turn.sin()], -1)
    height = torch.linspace(0, 1, along + 1, dtype=torch.float64)
    sides = torch.cat([ring.repeat(along + 1, 1), height.repeat_interleave(around)[:, None]], -1)
    vertices = torch.cat([sides, torch.tensor([[0.0, 0, 0], [0, 0, 1]], dtype=torch.float64)])
    a = torch.arange(along * around).reshape(along, around)
    b, c, d = a.roll(-1, 1), a.roll(-1, 1) + around, a + around
    walls = torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]).reshape(-1, 3)
    low, high = a[0], d[-1]
    ends = [
        torch.stack([torch.full_like(low, len(sides)), low.roll(-1), low], -1),
        torch.stack([torch.full_like(low, len(sides) + 1), high, high.roll(-1)], -1),
    ]
    return vertices, torch.cat([walls, *ends])


@BACKENDS
def test_a_twisted_bar_keeps_its_volume(backend: str, dtype: torch.dtype) -> None:
    angle = math.radians(170)
    vertices, faces = bar(400, 96)
    weights = torch.stack([1 - vertices[:, 2], vertices[:, 2]], -1)
    turn = so3.exp(torch.tensor([[0.0, 0, 0], [0, 0, angle]], dtype=torch.float64))
    bones = torch.cat([turn, torch.zeros(2, 3, 1, dtype=torch.float64)], -1)
    given = [x.to(dtype) for x in (vertices, weights, bones)]
    whole = mass_properties(vertices, faces).volume
    kept, lost = (mass_properties(f(*given, backend=backend).double(), faces).volume / whole for f in (dqs, lbs))
    assert kept >= 0.995
    assert lost == pytest.approx(1 - (1 - math.cos(angle)) / 3, abs=2e-4)  # the integral of the sections' areas


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_the_adjoint_is_the_twins(shared: bool, dense: bool, dtype: torch.dtype) -> None:
    vertices, weights, motions, indices = drawn(3001, 7, 4, (2,), dtype)
    vertices = vertices if shared else torch.stack([vertices, vertices.flip(0)])
    stretch = torch.randn(2, 7, 3, 3, generator=torch.Generator().manual_seed(3), dtype=dtype) / 5
    bones = torch.cat([to_bones(motions)[..., :3] @ (torch.eye(3, dtype=dtype) + stretch), motions[..., 5:, None]], -1)
    if dense:
        weights, indices = spread(weights, indices, 7), None
    grad = torch.randn(2, 3001, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found = {}
    for backend in ("warp", "torch"):
        given = [x.clone().requires_grad_() for x in (vertices, weights, bones)]
        found[backend] = torch.autograd.grad(dqs(*given, indices=indices, backend=backend), given, grad)
    for a, b in zip(found["warp"], found["torch"], strict=True):
        assert (a - b).abs().max() < (1e-12 if dtype == torch.float64 else 1e-4) * b.abs().max().clamp(min=1)
    for i in range(3):  # each alone
        alone = [x.detach().requires_grad_(k == i) for k, x in enumerate((vertices, weights, bones))]
        (one,) = torch.autograd.grad(dqs(*alone, indices=indices), alone[i], grad)
        assert torch.equal(one, found["warp"][i])


def test_bits_hang_on_no_thread_and_no_place(threads: Callable[[int], None]) -> None:
    vertices, weights, motions, indices = drawn(20_011, 9, 4, (2,), torch.float32)
    found = []
    for count in (1, 2, 3):
        threads(count)
        given = [x.clone().requires_grad_() for x in (vertices, weights, motions)]
        out = dqs_rigid(*given, indices=indices)
        found.append((out, *torch.autograd.grad(out, given, torch.ones_like(out))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    order = torch.randperm(len(vertices), generator=torch.Generator().manual_seed(0))
    moved = dqs_rigid(vertices[order], weights[order], motions, indices=indices[order])
    assert torch.equal(moved, found[0][0][:, order])


def test_derivatives() -> None:
    vertices, weights, motions, indices = drawn(2, 3, 2, ())
    bones = to_bones(motions)
    assert_gradients(lambda v, w, m: dqs_rigid(v, w, m, indices=indices), vertices, weights, motions)
    stretched = torch.cat([bones[..., :2], 1.3 * bones[..., 2:3] + 0.1 * bones[..., :1], bones[..., 3:]], -1)
    assert_gradients(lambda v, w, b: dqs(v, w, b, indices=indices), vertices, weights, stretched)
    assert_gradients(lambda v, w, b: dqs(v, w, b), vertices.repeat(2, 1, 1), spread(weights, indices, 3), bones)


def test_derivatives_where_rounding_decides_the_side() -> None:
    generator = torch.Generator().manual_seed(5)
    quat = quaternion.random(40, generator=generator, dtype=torch.float64)
    half = quaternion.exp(torch.pi * torch.nn.functional.normalize(quat[:, 1:], dim=-1))
    motions = torch.stack([quat, quaternion.multiply(quat, half)], 1)
    assert (motions[:, 0] * motions[:, 1]).sum(-1).abs().max() < 1e-15
    motions = se3.to_dual_quaternion(motions, torch.randn(40, 2, 3, generator=generator, dtype=torch.float64))
    weights = torch.tensor([[0.6, 0.4], [0.3, 0.7]], dtype=torch.float64, requires_grad=True)
    vertices = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: dqs_rigid(vertices, w, motions), weights)
    more = torch.cat([motions, motions], 1)[:, [0, 1, 3, 2]]  # four of them take another way in the kernel
    indices = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    quarters = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: dqs_rigid(vertices, w, more, indices=indices), quarters)


def test_derivatives_at_rest() -> None:
    rest = torch.eye(3, 4, dtype=torch.float64).repeat(3, 1, 1)
    vertices, weights, _, _ = drawn(2, 3, 3, ())
    assert_gradients(dqs, vertices, weights, rest)


@pytest.mark.usefixtures("unchecked")
def test_it_compiles() -> None:
    vertices, weights, motions, indices = drawn(4, 3, 2)
    rest = {"order": 0, "forward": False, "vmap": False, "compile": True}
    assert_gradients(lambda v, w, m: dqs_rigid(v, w, m, indices=indices), vertices, weights, motions, **rest)
    assert_gradients(lambda v, w, b: dqs(v, w, b, indices=indices), vertices, weights, to_bones(motions), **rest)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input_is_named() -> None:
    vertices, weights, motions, indices = drawn()
    with pytest.raises(ShapeError, match=r"motions: expected a tensor \(\.\.\., J, 8\)"):
        dqs_rigid(vertices, weights, motions[..., :7], indices=indices)
    with pytest.raises(ShapeError, match=r"bones: expected a tensor \(\.\.\., J, 3, 4\)"):
        dqs(vertices, weights, motions, indices=indices)
    with pytest.raises(ShapeError, match=r"indices: expected bones in \[0, 5\)"):
        dqs_rigid(vertices, weights, motions, indices=indices + 5)
