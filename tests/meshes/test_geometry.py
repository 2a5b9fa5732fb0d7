"""Normals, areas, edges, neighbours and mass against trimesh, closed forms and finite differences."""

import math

import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from geom.errors import ShapeError
from geom.lie import so3
from geom.meshes import (
    edges,
    face_adjacency,
    face_areas,
    face_normals,
    mass_properties,
    vertex_normals,
)
from geom.testing import assert_equivariant, assert_gradients

from .shapes import box, bumpy, flat, from_trimesh, random, sphere, tetrahedron, to_trimesh, torus

TINY = {torch.float32: 3e-7, torch.float64: 1e-15}
MAPS = {"face_normals": face_normals, "face_areas": face_areas, "vertex_normals": vertex_normals}


def test_normals_and_areas_match_trimesh(dtype: torch.dtype) -> None:
    mesh = bumpy(dtype)
    reference = to_trimesh(mesh)
    areas, normals = face_areas(mesh.vertices, mesh.faces), face_normals(mesh.vertices, mesh.faces)
    assert areas.dtype == normals.dtype == dtype
    assert (areas.double() - torch.tensor(reference.area_faces)).abs().max() < TINY[dtype]
    assert (normals.double() - torch.tensor(reference.face_normals)).abs().max() < 2 * TINY[dtype]


@pytest.mark.parametrize("weighting", ["area", "angle"])
def test_vertex_normals_of_a_sphere_point_outward(weighting: str, dtype: torch.dtype) -> None:
    ball = sphere(3, dtype)
    normals = vertex_normals(ball.vertices, ball.faces, weighting=weighting)
    assert (normals.norm(dim=-1) - 1).abs().max() < 4 * TINY[dtype]
    assert (normals * ball.vertices).sum(-1).min() > 0.9999


def test_angle_weights_do_not_depend_on_the_cut_of_a_flat_side(dtype: torch.dtype) -> None:
    cube = box((1, 1, 1), dtype)
    found = vertex_normals(cube.vertices, cube.faces, weighting="angle")
    assert (found - cube.vertices.sign() / 3**0.5).abs().max() < 2 * TINY[dtype]
    by_area = vertex_normals(cube.vertices, cube.faces, weighting="area")
    assert (by_area - cube.vertices.sign() / 3**0.5).abs().max() > 0.1


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(scale: float, dtype: torch.dtype) -> None:
    mesh = bumpy(dtype)
    for weighting in ("area", "angle"):
        want = vertex_normals(mesh.vertices, mesh.faces, weighting=weighting)
        found = vertex_normals(scale * mesh.vertices, mesh.faces, weighting=weighting)
        assert (found - want).abs().max() < 8 * TINY[dtype]


def test_batches(dtype: torch.dtype) -> None:
    mesh = bumpy(dtype)
    batch = torch.stack([mesh.vertices, 2 * mesh.vertices, mesh.vertices.flip(-1)])[:, None]
    for function in MAPS.values():
        found = function(batch, mesh.faces)
        assert found.shape[:2] == (3, 1)
        for k in range(3):
            assert torch.equal(found[k, 0], function(batch[k, 0], mesh.faces))
    found = mass_properties(batch, mesh.faces)
    assert found.inertia.shape == (3, 1, 3, 3) and found.center.shape == (3, 1, 3)
    assert torch.allclose(found.volume[:, 0], found.volume[0] * torch.tensor([1, 8, -1], dtype=dtype), rtol=1e-5)


def test_empty() -> None:
    none, place = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(2, 3)
    assert face_areas(place, none).shape == (0,) and face_normals(place, none).shape == (0, 3)
    assert torch.equal(vertex_normals(place, none), place)
    assert edges(none).shape == (0, 2) and face_adjacency(none).faces.shape == (0, 2)
    assert float(mass_properties(place, none).volume) == 0


@pytest.mark.parametrize("name", MAPS)
def test_gradients(name: str) -> None:
    mesh = tetrahedron()
    assert_gradients(lambda v: MAPS[name](v, mesh.faces), mesh.vertices + 0.1 * random(4, 3))
    if name == "vertex_normals":
        assert_gradients(lambda v: vertex_normals(v, mesh.faces, weighting="angle"), mesh.vertices + 0.1 * random(4, 3))


@pytest.mark.parametrize("name", MAPS)
def test_faces_without_area_have_finite_values_and_gradients(name: str) -> None:
    mesh = flat()
    assert_gradients(lambda v: MAPS[name](v, mesh.faces), mesh.vertices, order=0, forward=False, vmap=False)
    assert face_areas(mesh.vertices, mesh.faces).tolist() == [0.5, 0, 0, 0]
    assert (face_normals(mesh.vertices, mesh.faces)[1:] == 0).all()
    angles = vertex_normals(mesh.vertices, mesh.faces, weighting="angle")
    assert angles.isfinite().all() and angles[0].tolist() == [0, 0, 1]


@pytest.mark.usefixtures("unchecked")
def test_compile() -> None:
    mesh = bumpy()
    for function in (*MAPS.values(), lambda v, f: mass_properties(v, f).inertia):
        assert_gradients(lambda v, g=function: g(v, mesh.faces), mesh.vertices, order=0, compile=True, vmap=False)


# --- connectivity ----------------------------------------------------------------------------------------------------


def test_edges_and_neighbours_match_trimesh() -> None:
    for mesh in (bumpy(), torus(), box()):
        reference = to_trimesh(mesh)
        want = {tuple(sorted(e)) for e in reference.edges_unique.tolist()}
        found = edges(mesh.faces)
        assert [tuple(e) for e in found.tolist()] == sorted(want)
        pairs = face_adjacency(mesh.faces)
        assert len(pairs.faces) == len(found)
        assert {tuple(p) for p in pairs.faces.tolist()} == {tuple(sorted(p)) for p in reference.face_adjacency.tolist()}
        for face, edge in zip(pairs.faces, pairs.edges, strict=True):
            assert all(set(edge.tolist()) <= set(mesh.faces[f].tolist()) for f in face)
        assert torch.equal(pairs.edges, found)  # each once, in order


def test_an_edge_of_three_faces_gives_three_pairs() -> None:
    pairs = face_adjacency(torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]]))
    assert pairs.faces.tolist() == [[0, 1], [1, 2], [0, 2]]
    assert pairs.edges.tolist() == [[0, 1]] * 3


# --- mass ------------------------------------------------------------------------------------------------------------


def test_mass_of_a_box(dtype: torch.dtype) -> None:
    a, b, c = sides = (1.0, 2.0, 3.0)
    mesh = box(sides, dtype)
    found = mass_properties(mesh.vertices + 5, mesh.faces, density=10)
    assert float(found.volume) == pytest.approx(6, rel=1e-5) and float(found.mass) == pytest.approx(60, rel=1e-5)
    want = torch.diag(torch.tensor([b * b + c * c, a * a + c * c, a * a + b * b], dtype=dtype)) * 60 / 12
    assert (found.inertia - want).abs().max() < 1e-4 and (found.center - 5).abs().max() < 1e-5


def test_mass_of_a_tetrahedron() -> None:
    """I of the unit corner about its centre: 1/80 on the diagonal, 1/480 off it (Tonon 2004)."""
    mesh = tetrahedron()
    found = mass_properties(mesh.vertices, mesh.faces)
    want = torch.full((3, 3), 1 / 480, dtype=torch.float64).fill_diagonal_(1 / 80)
    assert float(found.volume) == pytest.approx(1 / 6, rel=1e-15) and (found.center - 0.25).abs().max() < 1e-16
    assert (found.inertia - want).abs().max() < 1e-16


def test_mass_of_a_fine_sphere() -> None:
    ball = sphere(5)
    found = mass_properties(ball.vertices, ball.faces)
    assert float(found.volume) == pytest.approx(4 / 3 * math.pi, rel=2e-3)
    assert (found.inertia - 8 / 15 * math.pi * torch.eye(3)).abs().max() < 6e-3


def test_mass_of_a_cylinder() -> None:
    """m (3 r^2 + h^2) / 12 across, m r^2 / 2 along, for the prism over a regular polygon: its own r^2 is that times
    (2 + cos(2 pi / n)) / 3."""
    r, h, n = 0.7, 2.0, 64
    mesh = from_trimesh(trimesh.creation.cylinder(r, h, sections=n))
    found = mass_properties(mesh.vertices + mesh.vertices.new_tensor([3, -4, 5]), mesh.faces, density=2.5)
    area, square = n / 2 * r * r * math.sin(2 * math.pi / n), r * r * (2 + math.cos(2 * math.pi / n)) / 3
    mass = 2.5 * area * h
    assert float(found.volume) == pytest.approx(area * h, rel=1e-12) == pytest.approx(math.pi * r * r * h, rel=2e-3)
    assert float(found.mass) == pytest.approx(mass, rel=1e-12)
    want = torch.tensor([*[mass * (3 * square + h * h) / 12] * 2, mass * square / 2]).double()
    assert (found.inertia - want.diag()).abs().max() < 1e-7
    assert (found.center - mesh.vertices.new_tensor([3, -4, 5])).abs().max() < 1e-12


def test_mass_matches_trimesh(dtype: torch.dtype) -> None:
    mesh = torus(dtype)
    reference = to_trimesh(mesh)
    found = mass_properties(mesh.vertices, mesh.faces)
    assert abs(float(found.volume) - reference.volume) < 4 * TINY[dtype]
    assert (found.inertia.double() - torch.tensor(reference.moment_inertia)).abs().max() < 8 * TINY[dtype]


@given(st.integers(0, 1000))
def test_mass_moves_with_the_body(seed: int) -> None:
    mesh = bumpy()
    R = so3.exp(6 * random(3, seed=seed) - 3)
    t = 10 * random(3, seed=seed + 1)
    before = mass_properties(mesh.vertices, mesh.faces)
    after = mass_properties(mesh.vertices @ R.mT + t, mesh.faces)
    assert (after.inertia - R @ before.inertia @ R.mT).abs().max() < 1e-13
    assert (after.center - R @ before.center - t).abs().max() < 1e-13
    assert abs(after.volume - before.volume) < 1e-13


def test_normals_and_areas_move_with_the_surface() -> None:
    mesh = bumpy()
    for function, action in ((face_normals, "vector"), (vertex_normals, "vector"), (face_areas, "invariant")):
        assert_equivariant(
            lambda v, f=function: f(v, mesh.faces), mesh.vertices, act_in="point", act_out=action, tolerance=1e-12
        )


def test_mass_gradients() -> None:
    mesh = tetrahedron()
    assert_gradients(lambda v: tuple(mass_properties(v, mesh.faces)), mesh.vertices + 0.1 * random(4, 3))
    # a body without volume
    assert_gradients(lambda v: tuple(mass_properties(v, mesh.faces)), torch.ones(4, 3).double(), order=0, vmap=False)


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    good = tetrahedron()
    with pytest.raises(ShapeError, match="faces: expected an int64 tensor"):
        face_normals(good.vertices, good.faces.int())
    with pytest.raises(ShapeError, match="expected indices"):
        face_areas(good.vertices[:3], good.faces)
    with pytest.raises(ShapeError, match="vertices: expected a float32 or float64 tensor"):
        vertex_normals(good.vertices[:, :2], good.faces)
    with pytest.raises(ShapeError, match=r"tensor \(..., V, 3\)"):
        face_areas(good.vertices[0], good.faces)
    with pytest.raises(ShapeError, match="weighting: expected one of 'area', 'angle', got str 'mass'"):
        vertex_normals(good.vertices, good.faces, weighting="mass")
    with pytest.raises(ShapeError, match="expected indices"):
        edges(-good.faces)
    with pytest.raises(ShapeError, match="density"):
        mass_properties(good.vertices, good.faces, density=0)
    with pytest.raises(ShapeError, match="faces"):
        face_adjacency(good.faces[:, :2])
