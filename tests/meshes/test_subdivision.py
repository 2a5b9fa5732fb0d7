"""Subdivision and smoothing: counts, limits, invariants, derivatives."""

import pytest
import torch

from geom.errors import ShapeError
from geom.meshes import Mesh, edges, face_areas, mass_properties, smooth, subdivide, uniform_laplacian
from geom.testing import assert_equivariant, assert_gradients

from .shapes import box, bumpy, random, sphere, tetrahedron, to_trimesh, torus


@pytest.mark.parametrize("scheme", ["loop", "midpoint"])
def test_counts_and_closure(scheme: str, dtype: torch.dtype) -> None:
    for mesh in (bumpy(dtype), torus(dtype), box(dtype=dtype)):
        fine = subdivide(mesh, scheme=scheme)
        assert len(fine.faces) == 4 * len(mesh.faces)
        assert len(fine.vertices) == len(mesh.vertices) + len(edges(mesh.faces))
        assert to_trimesh(fine).is_volume and fine.vertices.dtype == dtype
        again = subdivide(mesh, steps=2, scheme=scheme)
        assert torch.equal(again.vertices, subdivide(fine, scheme=scheme).vertices)
    assert subdivide(bumpy(), steps=0).vertices.shape == (42, 3)


def test_midpoints_leave_the_surface_where_it_is(dtype: torch.dtype) -> None:
    mesh = bumpy(dtype)
    fine = subdivide(mesh, scheme="midpoint")
    assert torch.equal(fine.vertices[42:], mesh.vertices[edges(mesh.faces)].mean(1))
    assert torch.equal(fine.vertices[:42], mesh.vertices)
    areas = face_areas(fine.vertices, fine.faces).reshape(-1, 4)
    assert (areas * 4 - face_areas(mesh.vertices, mesh.faces)[:, None]).abs().max() < 1e-6


def test_loop_matches_trimesh() -> None:
    for mesh in (bumpy(), torus(), tetrahedron()):
        want = to_trimesh(mesh).subdivide_loop(1)
        fine = subdivide(mesh)
        used = fine.vertices[fine.faces.unique()].numpy()
        gap = (torch.tensor(used)[:, None] - torch.tensor(want.vertices.copy())).norm(dim=-1)
        assert gap.amin(0).max() < 1e-14 and gap.amin(1).max() < 1e-14


def test_borders_are_cubic_splines(dtype: torch.dtype) -> None:
    """They depend on themselves alone: (1, 6, 1) / 8 and (1, 1) / 2; a fan's centre does not pull at them."""
    ring = torch.tensor([[2, 0, 0], [1, 2, 0], [-1, 2, 1], [-2, 0, 0], [-1, -2, 0], [1, -2, 1]], dtype=dtype)
    faces = torch.tensor([[k, (k + 1) % 6, 6] for k in range(6)])
    for height in (0.0, 5.0):
        fine = subdivide(Mesh(torch.cat([ring, torch.tensor([[0, 0, height]], dtype=dtype)]), faces))
        assert (fine.vertices[:6] - (ring.roll(1, 0) + 6 * ring + ring.roll(-1, 0)) / 8).abs().max() < 1e-6
        made = (fine.vertices[7:, None] - (ring + ring.roll(-1, 0)) / 2).norm(dim=-1)
        assert made.amin(0).max() < 1e-6


def test_loop_tends_to_a_smooth_surface() -> None:
    """A regular flat patch stays as it is inside; a cube becomes round."""
    fine = subdivide(box((1, 1, 1)), steps=5)
    normals = to_trimesh(fine).face_adjacency_angles
    assert normals.max() < 0.15 and normals.max() < to_trimesh(box((1, 1, 1))).face_adjacency_angles.max() / 10


def test_colours_are_interpolated() -> None:
    mesh = bumpy()
    colored = Mesh(mesh.vertices, mesh.faces, colors=random(42, 3, dtype=torch.float32))
    fine = subdivide(colored)
    assert fine.colors is not None and colored.colors is not None
    assert torch.equal(fine.colors[42:], colored.colors[edges(mesh.faces)].mean(1))
    assert smooth(colored).colors is colored.colors


def test_smoothing_takes_roughness_away_and_keeps_the_volume() -> None:
    ball = sphere(3)
    noise = 0.02 * torch.randn(ball.vertices.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rough = Mesh(ball.vertices + noise, ball.faces)

    def roughness(mesh: Mesh) -> float:
        return float((uniform_laplacian(mesh.faces, 642, dtype=torch.float64) @ mesh.vertices).norm())

    def volume(mesh: Mesh) -> float:
        return float(mass_properties(mesh.vertices, mesh.faces).volume)

    kept, shrunk = smooth(rough, steps=20), smooth(rough, steps=20, keep_volume=False)
    assert roughness(kept) < 0.4 * roughness(rough) and roughness(shrunk) < 0.4 * roughness(rough)
    assert abs(volume(kept) / volume(rough) - 1) < 0.02 and volume(shrunk) < 0.9 * volume(rough)
    assert (smooth(rough, steps=1, strength=0.1).vertices - rough.vertices).abs().max() < 0.02
    assert torch.equal(smooth(rough, steps=0).vertices, rough.vertices)


def test_a_step_is_the_mean_of_the_neighbours(dtype: torch.dtype) -> None:
    mesh = tetrahedron(dtype)
    found = smooth(mesh, steps=1, strength=1.0, keep_volume=False).vertices
    want = (mesh.vertices.sum(0) - mesh.vertices) / 3
    assert (found - want).abs().max() < 1e-6
    lone = Mesh(torch.cat([mesh.vertices, torch.ones(1, 3, dtype=dtype)]), mesh.faces)
    assert torch.equal(smooth(lone).vertices[4], torch.ones(3, dtype=dtype))


def test_derivatives_and_motion() -> None:
    mesh = tetrahedron()
    for function in (
        lambda v: subdivide(Mesh(v, mesh.faces)).vertices,
        lambda v: subdivide(Mesh(v, mesh.faces[:2])).vertices,
        lambda v: smooth(Mesh(v, mesh.faces), steps=2).vertices,
    ):
        assert_gradients(function, mesh.vertices + 0.1 * random(4, 3))
        assert_equivariant(function, mesh.vertices, act_in="point", act_out="point", tolerance=1e-13)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    with pytest.raises(ShapeError, match="scheme: expected one of 'loop', 'midpoint'"):
        subdivide(bumpy(), scheme="butterfly")
    for steps in (-1, 1.5, True):
        with pytest.raises(ShapeError, match="steps: expected an integer"):
            subdivide(bumpy(), steps=steps)  # type: ignore[arg-type]
        with pytest.raises(ShapeError, match="steps: expected an integer"):
            smooth(bumpy(), steps=steps)  # type: ignore[arg-type]
    for strength in (0, 1.5, float("nan")):
        with pytest.raises(ShapeError, match="strength"):
            smooth(bumpy(), strength=strength)
