"""Marching cubes: closed, outward, exact on planes, differentiable."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geom.errors import ShapeError
from geom.meshes import face_normals, marching_cubes, mass_properties
from geom.testing import assert_gradients

from .shapes import random, to_trimesh


def ball(cells: int, dtype: torch.dtype, radius: float = 0.8) -> Tensor:
    x = torch.linspace(-1, 1, cells + 1, dtype=dtype)
    return (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).sqrt() - radius


def test_a_sphere(dtype: torch.dtype) -> None:
    origin = torch.full((3,), -1.0, dtype=dtype)
    mesh = marching_cubes(ball(40, dtype), spacing=0.05, origin=origin)
    assert mesh.vertices.dtype == dtype and to_trimesh(mesh).is_volume
    assert (mesh.vertices.norm(dim=-1) - 0.8).abs().max() < 1e-3
    assert float(mass_properties(mesh.vertices, mesh.faces).volume) == pytest.approx(4 / 3 * math.pi * 0.512, rel=3e-3)
    assert to_trimesh(mesh).euler_number == 2


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_any_field_gives_a_closed_surface(seed: int, size: int) -> None:
    """Each edge has two faces that run it in opposite directions; the volume is that of the samples below."""
    field = torch.ones(size + 2, size + 2, size + 2, dtype=torch.float64)
    field[1:-1, 1:-1, 1:-1] = 2 * random(size, size, size, seed=seed) - 1
    mesh = marching_cubes(field)
    sides = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).tolist()
    assert len({tuple(s) for s in sides}) == len(sides)
    assert {tuple(s) for s in sides} == {(b, a) for a, b in sides}
    assert len(mesh.faces) == 0 or float(mass_properties(mesh.vertices, mesh.faces).volume) > 0


def test_every_case_of_a_cube() -> None:
    """All 256, in the middle of a grid: closed, and the sign of the field on both sides of each face is right."""
    for case in range(1, 256):
        field = torch.ones(4, 4, 4, dtype=torch.float64)
        below = torch.tensor([case >> c & 1 for c in range(8)]).reshape(2, 2, 2).permute(2, 1, 0)
        field[1:3, 1:3, 1:3] -= 2 * below
        mesh = marching_cubes(field)
        assert to_trimesh(mesh).is_volume, case
        assert len(mesh.vertices) == int((field.sign().diff(dim=0) != 0).sum()) + int(
            (field.sign().diff(dim=1) != 0).sum()
        ) + int((field.sign().diff(dim=2) != 0).sum())


def test_a_plane_is_exact(dtype: torch.dtype) -> None:
    x, y, z = (t.to(dtype) for t in torch.meshgrid(*[torch.arange(6.0)] * 3, indexing="ij"))
    normal = torch.tensor([1.0, 2.0, -2.0], dtype=dtype) / 3
    mesh = marching_cubes(normal[0] * x + normal[1] * y + normal[2] * z, 0.7)
    assert (mesh.vertices @ normal - 0.7).abs().max() < 8 * torch.finfo(dtype).eps
    large = (
        torch.linalg.cross(
            mesh.vertices[mesh.faces[:, 1]] - mesh.vertices[mesh.faces[:, 0]],
            mesh.vertices[mesh.faces[:, 2]] - mesh.vertices[mesh.faces[:, 0]],
        ).norm(dim=-1)
        > 1e-3
    )
    assert (face_normals(mesh.vertices, mesh.faces)[large] @ normal).min() > 0.999


def test_level_spacing_and_origin() -> None:
    field = ball(12, torch.float64)
    base = marching_cubes(field)
    assert torch.equal(marching_cubes(field + 3, 3.0).faces, base.faces)
    moved = marching_cubes(field, spacing=0.5, origin=torch.tensor([1.0, 2, 3]))
    assert (moved.vertices - 0.5 * base.vertices - torch.tensor([1.0, 2, 3])).abs().max() < 1e-14
    assert not torch.equal(marching_cubes(field, 0.1).vertices, base.vertices)
    assert len(marching_cubes(field, -5.0).vertices) == 0 and marching_cubes(field, 9.0).faces.shape == (0, 3)
    flat = marching_cubes(torch.zeros(3, 3, 3))
    assert len(flat.faces) == 0


def test_samples_on_the_level_stay_closed() -> None:
    field = torch.ones(5, 5, 5)
    field[1:4, 1:4, 1:4] = 0
    field[2, 2, 2] = -1
    mesh = marching_cubes(field)
    assert mesh.vertices.isfinite().all() and to_trimesh(mesh).is_watertight


def test_gradients() -> None:
    field = torch.ones(4, 4, 4, dtype=torch.float64)
    field[1:3, 1:3, 1:3] = -random(2, 2, 2) - 0.5
    origin = random(3)
    assert_gradients(lambda f, o: marching_cubes(f, origin=o).vertices, field, origin, forward=False, vmap=False)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    with pytest.raises(ShapeError, match="field: expected a float32 or float64 tensor"):
        marching_cubes(torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="at least 2"):
        marching_cubes(torch.zeros(3, 1, 3))
    with pytest.raises(ShapeError, match="finite"):
        marching_cubes(torch.full((3, 3, 3), float("nan")))
    with pytest.raises(ShapeError, match="spacing"):
        marching_cubes(torch.zeros(3, 3, 3), spacing=-1)
    with pytest.raises(ShapeError, match="origin"):
        marching_cubes(torch.zeros(3, 3, 3), origin=torch.zeros(2))
