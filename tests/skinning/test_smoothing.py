"""Delta mush: rest and rigid motions come back, creases go, and each pose is on its own."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import so3
from geom.meshes import Mesh
from geom.skinning.linear import lbs
from geom.skinning.smoothing import DeltaMush
from geom.testing import assert_gradients

f64 = torch.float64


def tube(along: int = 40, around: int = 16, dtype: torch.dtype = f64) -> tuple[Tensor, Tensor]:
    """An open tube about z of length 2, with bumps: vertices and faces."""
    turn = (torch.arange(around, dtype=dtype) * (2 * math.pi / around)).repeat(along + 1)
    z = torch.linspace(-1, 1, along + 1, dtype=dtype).repeat_interleave(around)
    radius = 0.2 + 0.02 * (9 * z).sin() * (3 * turn).cos()
    a = torch.arange(along * around).reshape(along, around)
    b = a.roll(-1, 1)
    faces = torch.cat([torch.stack([a, b, b + around], -1), torch.stack([a, b + around, a + around], -1)])
    return torch.stack([radius * turn.cos(), radius * turn.sin(), z], -1), faces.reshape(-1, 3)


def octahedron(dtype: torch.dtype = f64) -> Mesh:
    eye = torch.eye(3, dtype=dtype)
    faces = [[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]]
    return Mesh(torch.stack([eye[0], eye[1], eye[2], -eye[0], -eye[1], -eye[2]]), torch.tensor(faces))


def test_rest_and_rigid_motions_come_back(dtype: torch.dtype) -> None:
    vertices, faces = tube(dtype=dtype)
    mush = DeltaMush.build(vertices, faces)
    tolerance = 1e-14 if dtype == torch.float64 else 4e-6
    assert (mush.smooth - vertices).abs().max() > 0.01  # it does take something away
    assert (mush.apply(vertices) - vertices).abs().max() < tolerance
    turn = so3.exp(torch.tensor([[0.3, -2.0, 1.0], [0, math.pi, 0]], dtype=dtype))
    moved = vertices @ turn.mT + torch.tensor([1.0, 0, 0.5], dtype=dtype)
    found = mush.apply(moved)
    assert found.dtype == dtype and (found - moved).abs().max() < tolerance
    assert torch.equal(found[1], mush.apply(moved[1]))


def test_a_crease_is_smoothed_and_bumps_are_kept() -> None:
    vertices, faces = tube()
    hard = (vertices[:, 2] > 0).to(f64)  # each half to one bone: a crease where they meet
    turn = so3.exp(torch.tensor([[0.0, 0, 0], [0, 0.8, 0]], dtype=f64))
    bones = torch.cat([turn, torch.zeros(2, 3, 1, dtype=f64)], -1)
    creased = lbs(vertices, torch.stack([1 - hard, hard], -1), bones)
    found = DeltaMush.build(vertices, faces).apply(creased)

    def kink(x: Tensor) -> float:
        rings = x.reshape(41, 16, 3)
        return float((rings[:-2] - 2 * rings[1:-1] + rings[2:]).norm(dim=-1).max())

    assert kink(found) < 0.5 * kink(creased)
    away = vertices[:, 2].abs() > 0.6
    moved_less = (found - creased)[away].norm(dim=-1).max()
    assert moved_less < 2e-3  # of bumps of 0.02, far from the crease
    assert (DeltaMush.build(vertices, faces).smooth - vertices)[away].norm(dim=-1).max() > 0.01


def test_no_steps_change_nothing() -> None:
    vertices, faces = tube()
    mush = DeltaMush.build(vertices, faces, steps=0)
    assert torch.equal(mush.apply(1.5 * vertices), 1.5 * vertices)
    weak = DeltaMush.build(vertices, faces, steps=3, strength=0.1).detail.abs().max()
    assert weak < DeltaMush.build(vertices, faces, steps=3, strength=1.0).detail.abs().max()


def test_a_lonely_vertex_stays_where_it_is_put() -> None:
    mesh = octahedron()
    vertices = torch.cat([mesh.vertices, torch.tensor([[5.0, 5, 5]], dtype=f64)])
    mush = DeltaMush.build(vertices, mesh.faces)
    moved = vertices.clone()
    moved[-1] = 7
    assert torch.equal(mush.apply(moved)[-1], moved[-1])


def test_everything_in_one_point_stays_finite(dtype: torch.dtype) -> None:
    mesh = octahedron(dtype)
    mush = DeltaMush.build(mesh.vertices, mesh.faces)
    for flat in (torch.zeros(6, 3, dtype=dtype), mesh.vertices * torch.tensor([1.0, 0, 0], dtype=dtype)):
        x = flat.clone().requires_grad_()
        out = mush.apply(x)
        (grad,) = torch.autograd.grad(out.square().sum(), x)
        assert out.isfinite().all() and grad.isfinite().all()


def test_derivatives() -> None:
    mesh = octahedron()
    bent = mesh.vertices + 0.2 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=f64)

    def corrected(rest: Tensor, moved: Tensor) -> Tensor:
        return DeltaMush.build(rest, mesh.faces, steps=2).apply(moved)

    mush = DeltaMush.build(mesh.vertices, mesh.faces, steps=2)
    assert_gradients(mush.apply, bent)
    assert_gradients(corrected, mesh.vertices * 1.1, bent, order=1, forward=False, vmap=False)


@pytest.mark.usefixtures("unchecked")
def test_it_compiles() -> None:
    ball = octahedron()
    mush = DeltaMush.build(ball.vertices, ball.faces, steps=2)
    rest = {"order": 0, "forward": False, "vmap": False, "compile": True}
    assert_gradients(mush.apply, ball.vertices * 1.2, **rest)


def test_it_is_a_value(tmp_path: Path) -> None:
    mesh = octahedron()
    mush = DeltaMush.build(mesh.vertices, mesh.faces, steps=4, strength=0.25)
    mush.save(tmp_path / "mush.safetensors")
    again = DeltaMush.load(tmp_path / "mush.safetensors")
    assert torch.equal(again.apply(2 * mesh.vertices), mush.apply(2 * mesh.vertices))
    assert again.steps == 4 and mush.to(torch.float32).apply(mesh.vertices.float()).dtype == torch.float32


@pytest.mark.usefixtures("unchecked")
def test_wrong_input_is_named() -> None:
    mesh = octahedron()
    with pytest.raises(ShapeError, match="steps: expected an integer of at least 0, got -1"):
        DeltaMush.build(mesh.vertices, mesh.faces, steps=-1)
    with pytest.raises(ShapeError, match=r"strength: expected a number in \(0, 1\]"):
        DeltaMush.build(mesh.vertices, mesh.faces, strength=1.5)
    with pytest.raises(ShapeError, match="faces: expected indices in"):
        DeltaMush.build(mesh.vertices[:3], mesh.faces)
    with pytest.raises(ShapeError, match=r"vertices: expected a tensor \(\.\.\., 6, 3\)"):
        DeltaMush.build(mesh.vertices, mesh.faces).apply(mesh.vertices[:5])
