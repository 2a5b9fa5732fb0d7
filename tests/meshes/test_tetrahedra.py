"""Tetrahedra fill the volume, none is inverted, neighbours meet face to face."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from geom.errors import ShapeError
from geom.io import load_mesh
from geom.meshes import Mesh, Tetrahedra, mass_properties, signed_distance, tetrahedralize, winding_number

from .shapes import around, box, closed, random, sphere, torus


def volumes(body: Tetrahedra) -> torch.Tensor:
    a, b, c, d = body.vertices[body.tets].unbind(1)
    return torch.linalg.det(torch.stack([b - a, c - a, d - a], 1)) / 6


def assert_sound(body: Tetrahedra, dtype: torch.dtype) -> None:
    """Positive volumes, well away from 0; every vertex in use; each face of one or two, and the border closed."""
    found = volumes(body)
    assert body.vertices.dtype == dtype and body.tets.dtype == torch.int64
    assert float(found.min()) > 0.01 * float(found.mean())
    assert torch.equal(body.tets.unique(), torch.arange(len(body.vertices)))
    t = body.tets
    faces = torch.cat([t[:, [1, 2, 3]], t[:, [0, 3, 2]], t[:, [0, 1, 3]], t[:, [0, 2, 1]]])
    low, middle, high = faces.sort(-1).values.unbind(-1)
    keys = (low * len(body.vertices) + middle) * len(body.vertices) + high
    _, which, number = torch.unique(keys, return_inverse=True, return_counts=True)
    assert int(number.max()) <= 2
    skin = faces[number[which] == 1]
    sides = torch.cat([skin[:, [0, 1]], skin[:, [1, 2]], skin[:, [2, 0]]])
    assert torch.equal(sides.unique(dim=0), sides.flip(1).unique(dim=0))
    volume = float(mass_properties(body.vertices.double(), skin).volume)  # no overlaps: the skin's volume is the sum
    assert volume == pytest.approx(float(found.double().sum()), rel=1e-5)


def test_real_meshes(data: Path) -> None:
    for mesh in closed(data):
        body = tetrahedralize(mesh)
        assert_sound(body, torch.float64)
        volume = float(mass_properties(mesh.vertices, mesh.faces).volume)
        assert float(volumes(body).sum()) == pytest.approx(volume, rel=0.01)
        edge = float(volumes(body).max() * 12) ** (1 / 3)
        assert signed_distance(body.vertices, mesh).max() < edge / 2  # no vertex far outside


def test_open_meshes_with_overlaps(data: Path) -> None:
    """Suzanne: an open head, eyes in it. Its volume is where the winding number is above a half."""
    for path in sorted(data.glob("meshes/suzanne*")):
        mesh = load_mesh(path)
        body = tetrahedralize(mesh)
        assert_sound(body, mesh.vertices.dtype)
        low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
        query = low + (high - low) * random(100_000, 3, dtype=mesh.vertices.dtype)
        share = float((winding_number(query, mesh) > 0.5).double().mean())
        assert float(volumes(body).sum()) == pytest.approx(share * float((high - low).prod()), rel=0.015)


@pytest.mark.parametrize("edge", [0.5, 0.31, 0.2, 0.1])
def test_edge_lengths(edge: float, dtype: torch.dtype) -> None:
    for mesh in (sphere(3), torus(), box((1, 1, 1))):
        body = tetrahedralize(Mesh(mesh.vertices.to(dtype), mesh.faces), edge_length=edge)
        assert_sound(body, dtype)
        a, b, c, d = body.vertices[body.tets].unbind(1)
        longest = torch.stack([(x - y).norm(dim=-1) for x, y in pairwise((a, b, c, d, a, c))]).max()
        assert float(longest) < 1.6 * edge


def test_the_error_falls_with_the_square_of_the_edge() -> None:
    mesh = sphere(4)
    volume = float(mass_properties(mesh.vertices, mesh.faces).volume)
    coarse, fine = (abs(float(volumes(tetrahedralize(mesh, edge_length=e)).sum()) / volume - 1) for e in (0.3, 0.1))
    assert fine < coarse / 5 and fine < 3e-3


def test_mass_and_place() -> None:
    """The filled box has the box's inertia; moved and scaled, the same tetrahedra but for rounding."""
    mesh = box((1.05, 2.05, 3.05))
    body = tetrahedralize(mesh, edge_length=0.1)
    weights, middle = volumes(body), body.vertices[body.tets].mean(1)
    assert ((weights[:, None] * middle).sum(0) / weights.sum()).abs().max() < 1e-3
    moved = tetrahedralize(Mesh(1e-3 * mesh.vertices + 5, mesh.faces), edge_length=1e-4)
    assert float(volumes(moved).sum()) == pytest.approx(1e-9 * float(weights.sum()), rel=1e-6)


def test_the_inside_is_filled_and_the_outside_is_not() -> None:
    mesh = torus()
    body = tetrahedralize(mesh)
    query = around(mesh, 400)
    depth = signed_distance(query, mesh)
    a, b, c, d = body.vertices[body.tets].unbind(1)
    frame = torch.linalg.inv(torch.stack([b - a, c - a, d - a], -1))
    for place, value in zip(query[:150], depth[:150], strict=True):
        weights = (frame @ (place - a)[..., None])[..., 0]
        inside = bool(((weights >= 0).all(-1) & (weights.sum(-1) <= 1)).any())
        assert inside == bool(value < 0) or abs(float(value)) < 0.01


def test_deterministic() -> None:
    one, two = tetrahedralize(torus()), tetrahedralize(torus())
    assert torch.equal(one.vertices, two.vertices) and torch.equal(one.tets, two.tets)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    ball = sphere(1)
    with pytest.raises(ShapeError, match="at least one face"):
        tetrahedralize(Mesh(ball.vertices, ball.faces[:0]))
    with pytest.raises(ShapeError, match="edge_length: expected a finite number above 0"):
        tetrahedralize(ball, edge_length=0)
    with pytest.raises(ShapeError, match="lattice points"):
        tetrahedralize(ball, edge_length=1e-4)
    with pytest.raises(ShapeError, match="finds points inside"):
        tetrahedralize(Mesh(ball.vertices, ball.faces.flip(1)), edge_length=0.3)
    with pytest.raises(ShapeError, match="extent"):
        tetrahedralize(Mesh(torch.ones(3, 3), torch.tensor([[0, 1, 2]])))
