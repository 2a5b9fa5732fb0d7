"""Samples lie on the surface, are spread evenly and move with the vertices."""

import pytest
import torch
from scipy import stats

from geom.errors import ShapeError
from geom.meshes import Mesh, face_areas, sample_surface
from geom.testing import assert_gradients

from .shapes import bumpy, flat, tetrahedron


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_lie_in_their_faces(dtype: torch.dtype) -> None:
    mesh = bumpy(dtype)
    found = sample_surface(mesh, 1000, generator=seeded())
    assert found.points.dtype == found.normals.dtype == dtype and found.faces.dtype == torch.int64
    assert (found.barycentric >= 0).all() and (found.barycentric.sum(-1) - 1).abs().max() < 3e-7
    corners = mesh.vertices[mesh.faces[found.faces]]
    eps = 8 * torch.finfo(dtype).eps
    assert ((found.points - corners[:, 0]) * found.normals).sum(-1).abs().max() < eps
    assert (found.normals.norm(dim=-1) - 1).abs().max() < eps


def test_faces_are_drawn_by_their_areas() -> None:
    mesh = bumpy()
    found = sample_surface(mesh, 100_000, generator=seeded())
    share = face_areas(mesh.vertices, mesh.faces)
    counts = torch.bincount(found.faces, minlength=len(mesh.faces))
    assert stats.chisquare(counts.numpy(), (share / share.sum() * 100_000).numpy()).pvalue > 1e-3


def test_places_in_a_face_are_even() -> None:
    mesh = Mesh(torch.eye(3, dtype=torch.float64), torch.tensor([[0, 1, 2]]))
    found = sample_surface(mesh, 50_000, generator=seeded()).barycentric
    for axis in range(3):  # each coordinate's distribution is 1 - (1 - x)^2
        assert stats.kstest(found[:, axis].numpy(), lambda x: 1 - (1 - x) ** 2).pvalue > 1e-3


def test_faces_without_area_are_never_drawn() -> None:
    assert (sample_surface(flat(), 2000, generator=seeded()).faces == 0).all()
    last = Mesh(flat().vertices, flat().faces.flip(0))
    assert (sample_surface(last, 2000, generator=seeded()).faces == 3).all()


def test_a_seed_gives_the_same_places_in_both_dtypes() -> None:
    a, b, c = (sample_surface(bumpy(), 500, generator=seeded(k)) for k in (1, 1, 2))
    assert torch.equal(a.points, b.points) and not torch.equal(a.points, c.points)
    small = sample_surface(bumpy(torch.float32), 500, generator=seeded(1))
    assert (small.points.double() - a.points).abs().max() < 1e-5
    state = torch.get_rng_state()
    sample_surface(bumpy(), 5, generator=seeded())
    assert torch.equal(state, torch.get_rng_state())


def test_none() -> None:
    assert sample_surface(bumpy(), 0).points.shape == (0, 3)
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert sample_surface(empty, 0).normals.shape == (0, 3)


def test_gradients() -> None:
    mesh = tetrahedron()

    def points(vertices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = sample_surface(Mesh(vertices, mesh.faces), 7, generator=seeded())
        return found.points, found.normals

    # a place is chosen by numbers: no vmap; and moving a vertex may choose another face, but not by 1e-6 here
    assert_gradients(points, mesh.vertices, vmap=False, forward=False)
    x = mesh.vertices.clone().requires_grad_()
    found = sample_surface(Mesh(x, mesh.faces), 50, generator=seeded())
    (gradient,) = torch.autograd.grad(found.points.sum(), x)
    want = torch.zeros_like(x).index_add(
        0, mesh.faces[found.faces].flatten(), found.barycentric.reshape(-1, 1).expand(-1, 3)
    )
    assert (gradient - want).abs().max() < 1e-12


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    with pytest.raises(ShapeError, match="count: expected an integer of at least 0, got -1"):
        sample_surface(bumpy(), -1)
    with pytest.raises(ShapeError, match="positive area"):
        sample_surface(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), 1)
    with pytest.raises(ShapeError, match="finite"):
        sample_surface(Mesh(torch.full((3, 3), float("nan")), torch.tensor([[0, 1, 2]])), 1)
