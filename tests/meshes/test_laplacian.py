"""Laplacians against closed forms: planes, harmonic functions, spheres; areas against the whole."""

import math

import pytest
import torch
from scipy.spatial import Delaunay

from geom.errors import ShapeError
from geom.meshes import (
    cotangent_laplacian,
    edges,
    face_areas,
    subdivide,
    uniform_laplacian,
    vertex_areas,
)
from geom.meshes.laplacian import cotangents, graph_laplacian
from geom.testing import assert_gradients

from .shapes import box, bumpy, flat, random, sphere, tetrahedron, torus

TINY = {torch.float32: 1e-6, torch.float64: 2e-15}


def test_cotangent_laplacian_of_two_triangles(dtype: torch.dtype) -> None:
    """Angles 90, 60, 30 degrees twice: the diagonal's two opposite angles are right ones."""
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 3**0.5, 0], [0, 3**0.5, 0]], dtype=dtype)
    found = cotangent_laplacian(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]])).to_dense()
    a, b = 3**0.5 / 2, 3**-0.5 / 2
    want = torch.tensor([[a + b, -a, 0, -b], [-a, a + b, -b, 0], [0, -b, a + b, -a], [-b, 0, -a, a + b]], dtype=dtype)
    assert found.dtype == dtype and (found - want).abs().max() < TINY[dtype]


def test_cotangent_laplacian_is_symmetric_positive_and_free_of_scale(dtype: torch.dtype) -> None:
    for mesh in (bumpy(dtype), torus(dtype), box(dtype=dtype)):
        matrix = cotangent_laplacian(mesh.vertices, mesh.faces)
        assert matrix.is_coalesced() and matrix.is_sparse
        dense = matrix.to_dense()
        assert torch.equal(dense, dense.mT) and dense.sum(1).abs().max() < 20 * TINY[dtype]
        values = torch.linalg.eigvalsh(dense.double())
        assert values[0] > -1e-5 and values[1] > 1e-3  # connected: only constants are harmonic
        assert (cotangent_laplacian(100 * mesh.vertices, mesh.faces).to_dense() - dense).abs().max() < 4 * TINY[dtype]


def test_linear_functions_are_harmonic_on_a_plane() -> None:
    places = torch.cat([random(40, 2), torch.zeros(40, 1, dtype=torch.float64)], -1)
    mesh = Delaunay(places[:, :2].numpy())
    inner = torch.ones(40, dtype=torch.bool)
    inner[torch.tensor(mesh.convex_hull.ravel()).long()] = False
    product = cotangent_laplacian(places, torch.tensor(mesh.simplices).long()) @ (places @ random(3, 1, seed=1))
    assert product[inner].abs().max() < 1e-13 and product[~inner].abs().max() > 1e-3


def test_coordinates_are_eigenfunctions_on_a_sphere() -> None:
    """-Laplacian x = 2 x / r^2: as a Rayleigh quotient, and point by point."""
    ball = sphere(4)
    found = cotangent_laplacian(ball.vertices, ball.faces) @ ball.vertices
    for kind in ("barycentric", "voronoi"):
        area = vertex_areas(ball.vertices, ball.faces, kind=kind)
        rayleigh = (found * ball.vertices).sum(0) / (area[:, None] * ball.vertices.square()).sum(0)
        assert (rayleigh - 2).abs().max() < 5e-3
    voronoi = vertex_areas(ball.vertices, ball.faces, kind="voronoi")
    assert (found / voronoi[:, None] - 2 * ball.vertices).abs().max() < 1e-2


def test_an_equilateral_tiling() -> None:
    """Every angle 60 degrees: -cot 60 along inner edges, half of it along borders, 2 sqrt 3 at inner vertices."""
    i, j = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    places = torch.stack([i + j / 2, j * 3**0.5 / 2, 0 * i], -1).reshape(-1, 3).double()
    index = torch.arange(36).reshape(6, 6)
    a, b, c, d = (x.flatten() for x in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    faces = torch.cat([torch.stack([a, b, d], -1), torch.stack([b, c, d], -1)])
    dense = cotangent_laplacian(places, faces).to_dense()
    pairs, cot = edges(faces), 3**-0.5
    number = torch.tensor([(((faces == p) | (faces == q)).sum(1) == 2).sum() for p, q in pairs.tolist()])
    assert (dense[pairs[:, 0], pairs[:, 1]] + cot / 2 * number).abs().max() < 1e-6
    inner = index[1:-1, 1:-1].flatten()
    assert (dense.diagonal()[inner] - 2 * 3**0.5).abs().max() < 1e-6
    assert (vertex_areas(places, faces)[inner] - 3**0.5 / 2).abs().max() < 1e-6
    assert (vertex_areas(places, faces, kind="voronoi")[inner] - 3**0.5 / 2).abs().max() < 1e-6
    assert (dense @ places)[inner].abs().max() < 1e-6 and dense.sum(1).abs().max() < 1e-12


def test_dirichlet_energy_of_a_linear_function() -> None:
    """u^T L u is the integral of |grad u|^2: the area, for a unit slope."""
    places = torch.cat([random(60, 2), torch.zeros(60, 1, dtype=torch.float64)], -1)
    faces = torch.tensor(Delaunay(places[:, :2].numpy()).simplices).long()
    slope = torch.tensor([0.6, -0.8, 0.0], dtype=torch.float64)
    u = places @ slope
    area = face_areas(places, faces).sum()
    assert float(u @ (cotangent_laplacian(places, faces) @ u)) == pytest.approx(float(area), rel=1e-12)


def test_coalesced_by_counting_as_by_sorting() -> None:
    faces = torch.cat([torus().faces, torch.tensor([[0, 0, 5], [3, 3, 3], [0, 1, 200]])])  # also what is no triangle
    start, stop = faces[:, [1, 2, 0]].flatten(), faces[:, [2, 0, 1]].flatten()
    weight = random(len(start), seed=2)
    for sides, count in ((slice(None), 300), (slice(0), 300), (slice(0), 0)):
        found, want = (graph_laplacian(start[sides], stop[sides], weight[sides], count, b) for b in ("warp", "torch"))
        assert torch.equal(found.indices(), want.indices())
        assert torch.equal(found.indices(), found.indices().unique(dim=1))  # sorted, none twice
        assert (found.values() - want.values()).abs().sum() < 1e-12
        dense = torch.zeros(count, count, dtype=torch.float64)
        for i, j in ((start[sides], stop[sides]), (stop[sides], start[sides])):
            dense = dense.index_put((i, j), -weight[sides], accumulate=True)
            dense = dense.index_put((i, i), weight[sides], accumulate=True)
        assert (found.to_dense() - dense).abs().sum() < 1e-9


def test_uniform_laplacian() -> None:
    mesh = bumpy()
    found = uniform_laplacian(mesh.faces, 44, dtype=torch.float64).to_dense()
    want = torch.zeros(44, 44, dtype=torch.float64)
    for i, j in edges(mesh.faces).tolist():
        want[i, j] = want[j, i] = -1
        want[i, i] += 1
        want[j, j] += 1
    assert torch.equal(found, want)


@pytest.mark.parametrize("kind", ["barycentric", "voronoi"])
def test_vertex_areas_add_up(kind: str, dtype: torch.dtype) -> None:
    for mesh in (bumpy(dtype), torus(dtype), box(dtype=dtype), flat(dtype)):
        total = face_areas(mesh.vertices, mesh.faces).sum()
        assert float(vertex_areas(mesh.vertices, mesh.faces, kind=kind).sum() / total) == pytest.approx(1, abs=1e-6)
    batch = torch.stack([bumpy(dtype).vertices, 2 * bumpy(dtype).vertices])
    found = vertex_areas(batch, bumpy(dtype).faces, kind=kind)
    assert torch.allclose(found[1], 4 * found[0], rtol=1e-5)


def test_voronoi_areas_are_those_of_the_nearest_points(dtype: torch.dtype) -> None:
    """By counting points of a fine mesh of the face; for an obtuse one by Meyer's rule."""
    sharp = torch.tensor([[0, 0, 0], [1, 0, 0], [0.4, 0.9, 0]], dtype=dtype)
    face = torch.tensor([[0, 1, 2]])
    barycentric = torch.rand(200000, 3, generator=torch.Generator().manual_seed(0)).log().to(dtype)
    points = barycentric / barycentric.sum(-1, keepdim=True) @ sharp
    share = torch.bincount(torch.cdist(points, sharp).argmin(-1), minlength=3) / 200000
    assert (vertex_areas(sharp, face, kind="voronoi") / face_areas(sharp, face) - share).abs().max() < 5e-3
    obtuse = torch.tensor([[0, 0, 0], [1, 0, 0], [0.5, 0.1, 0]], dtype=dtype)
    found = vertex_areas(obtuse, face, kind="voronoi") / face_areas(obtuse, face)
    assert (found - torch.tensor([0.25, 0.25, 0.5], dtype=dtype)).abs().max() < 1e-6


def test_cotangents_are_bounded(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).eps ** -0.5
    assert cotangents(flat(dtype).vertices, flat(dtype).faces).abs().max() <= most * 1.001
    needle = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1e-30, 0]], dtype=dtype)
    found = cotangents(needle, torch.tensor([[0, 1, 2]]))
    assert found.isfinite().all() and float(found.max()) == pytest.approx(most, rel=1e-3)


def test_gradients() -> None:
    mesh = tetrahedron()
    corners = mesh.vertices + 0.1 * random(4, 3)
    values = random(4, 2, seed=1)
    for function in (
        lambda v: cotangent_laplacian(v, mesh.faces).to_dense(),
        lambda v: cotangent_laplacian(v, mesh.faces).values(),
        lambda v: cotangent_laplacian(v, mesh.faces) @ values.to(v.dtype),
        lambda v: torch.sparse.mm(cotangent_laplacian(v, mesh.faces), v),
    ):
        assert_gradients(function, corners, forward=False, vmap=False)
    assert_gradients(lambda v: vertex_areas(v, mesh.faces), corners)
    assert_gradients(lambda v: vertex_areas(v, mesh.faces, kind="voronoi"), corners)
    assert_gradients(lambda v: cotangents(v, mesh.faces), corners)
    for function in (cotangents, lambda v, f: vertex_areas(v, f, kind="voronoi"), lambda v, f: vertex_areas(v, f)):
        assert_gradients(lambda v, g=function: g(v, flat().faces), flat().vertices, order=0, vmap=False)


@pytest.mark.usefixtures("unchecked")
def test_compile() -> None:
    mesh = bumpy()
    assert_gradients(
        lambda v: vertex_areas(v, mesh.faces, kind="voronoi"), mesh.vertices, order=0, compile=True, vmap=False
    )


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    mesh = tetrahedron()
    with pytest.raises(ShapeError, match=r"vertices: expected a tensor \(V, 3\)"):
        cotangent_laplacian(mesh.vertices[None], mesh.faces)
    with pytest.raises(ShapeError, match="count: expected an integer above"):
        uniform_laplacian(mesh.faces, 3)
    with pytest.raises(ShapeError, match="kind: expected one of"):
        vertex_areas(mesh.vertices, mesh.faces, kind="mixed")
    with pytest.raises(ShapeError, match="faces"):
        uniform_laplacian(mesh.faces.float(), 3)


def test_finer_meshes_converge() -> None:
    """Mean curvature of a sphere, |L x| / A = 2, from faces cut by Loop's scheme and pushed back to the sphere."""
    errors = []
    ball = sphere(1)
    for _ in range(3):
        ball = subdivide(ball)
        x = ball.vertices / ball.vertices.norm(dim=-1, keepdim=True)
        curvature = (cotangent_laplacian(x, ball.faces) @ x).norm(dim=-1)
        errors.append(float((curvature / vertex_areas(x, ball.faces, kind="voronoi") - 2).square().mean().sqrt()))
    assert errors[2] < errors[1] < errors[0] < 0.2 and math.log2(errors[0] / errors[2]) > 1.5
