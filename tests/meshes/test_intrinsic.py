"""Intrinsic Delaunay triangulations: the same surface, no opposite angles above pi, any input."""

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray
from scipy.spatial import Delaunay

from geom.meshes import Mesh, cotangent_laplacian, face_areas
from geom.meshes.intrinsic import Triangulation, corners, intrinsic_delaunay, operators

from .shapes import bumpy, flat, from_trimesh, random, sphere, torus


def triangulate(mesh: Mesh) -> Triangulation:
    return intrinsic_delaunay(mesh.vertices.double().numpy(), mesh.faces.numpy())


def angles(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """By the law of cosines."""
    square, after, before = lengths**2, np.roll(lengths, -1, 1), np.roll(lengths, -2, 1)
    return np.arccos((after**2 + before**2 - square) / (2 * after * before))


def needles() -> Mesh:
    """A bumpy sphere squeezed to a twentieth: four fifths of its faces are obtuse."""
    ball = sphere(3)
    return Mesh(ball.vertices * torch.tensor([1.0, 0.05, 1.0]).double() + 1e-3 * random(642, 3), ball.faces)


@pytest.mark.parametrize("mesh", [bumpy(), torus(), needles()], ids=["bumpy", "torus", "needles"])
def test_the_surface_stays_and_is_delaunay(mesh: Mesh) -> None:
    found = triangulate(mesh)
    assert found.faces.shape == mesh.faces.shape and not found.border.any()
    twins, every = found.twins.ravel(), np.arange(found.faces.size)
    assert (twins[twins] == every).all() and (twins != every).all()
    assert np.array_equal(found.lengths.ravel()[twins], found.lengths.ravel())
    start, stop = np.roll(found.faces, -1, 1).ravel(), np.roll(found.faces, -2, 1).ravel()
    assert (start[twins] == stop).all()
    angle = angles(found.lengths)
    assert (angle.ravel() + angle.ravel()[twins]).max() < np.pi + 1e-6
    # areas, and the angles around every vertex, are those of the mesh
    given = mesh.vertices[mesh.faces].numpy()
    before = angles(np.linalg.norm(np.roll(given, -1, 1) - np.roll(given, -2, 1), axis=2))
    around = [np.bincount(f.ravel(), a.ravel()) for f, a in ((found.faces, angle), (mesh.faces.numpy(), before))]
    assert np.abs(around[0] - around[1]).max() < 1e-7
    area = operators(found)[2].sum() * found.unit**2
    assert area == pytest.approx(float(face_areas(mesh.vertices, mesh.faces).sum()), rel=1e-9)


def test_functions_are_smoother() -> None:
    """Of all triangulations Delaunay's has the least Dirichlet energy, for any values at the vertices (Rippa 1990)."""
    mesh, values = needles(), random(642, 3).numpy()
    gradient, divergence, _ = operators(triangulate(mesh))
    before = cotangent_laplacian(mesh.vertices, mesh.faces).to_dense().numpy()
    assert (values.T @ divergence @ gradient @ values).trace() < 0.9 * (values.T @ before @ values).trace()


def test_in_the_plane_it_is_the_delaunay_triangulation() -> None:
    places = random(200, 2).numpy()
    stretched = Delaunay(places * [0.03, 1]).simplices
    found = intrinsic_delaunay(np.c_[places, np.zeros(200)], stretched.astype(np.int64))
    # of the same border: those triangles of Delaunay's whose circles hold no other point
    inside = {tuple(sorted(x)) for x in Delaunay(places).simplices.tolist()}
    mine = {tuple(sorted(x)) for x in found.faces.tolist()}
    assert len(mine & inside) > 0.97 * len(inside)
    sides = np.linalg.norm(places[np.roll(found.faces, -1, 1)] - places[np.roll(found.faces, -2, 1)], axis=2)
    assert np.abs(found.lengths * found.unit - sides).max() < 1e-9


def test_operators_are_those_of_linear_elements() -> None:
    ball = sphere(2)
    gradient, divergence, area = operators(triangulate(ball))
    laplacian = cotangent_laplacian(ball.vertices, ball.faces).to_dense().numpy()
    assert np.abs((divergence @ gradient).toarray() - laplacian).max() < 1e-12
    found = triangulate(needles())
    gradient, divergence, area = operators(found)
    matrix = (divergence @ gradient).toarray()
    assert np.abs(matrix - matrix.T).max() < 1e-9 and np.abs(matrix.sum(1)).max() < 1e-9
    assert (matrix - np.diag(np.diag(matrix))).max() < 1e-6  # heat's maximum principle: what flipping is for
    slope = (gradient @ found.border.astype(float)).reshape(-1, 2)
    assert np.abs(slope).max() == 0 and area.min() > 0


def test_corners_turn_around_their_vertices() -> None:
    ball = sphere(1)
    found = corners(triangulate(ball))
    assert np.abs(found.turn - 2 * np.pi).max() < 1e-12 and (np.diff(found.starts) >= 5).all()
    for v in range(len(ball.vertices)):
        mine = slice(found.starts[v], found.starts[v + 1])
        first = dict(zip(found.ends[mine, 0].tolist(), found.shapes[mine, 5], strict=True))
        for end, second in zip(found.ends[mine, 1].tolist(), found.shapes[mine, 6], strict=True):
            assert abs((second - first[end] + 1) % (2 * np.pi) - 1) < 1e-9  # one way, as its two faces count it
    open_ = Mesh(ball.vertices, ball.faces[1:])
    assert (np.isinf(corners(triangulate(open_)).turn) == np.isin(np.arange(42), ball.faces[0].numpy())).all()


def test_any_faces_will_do() -> None:
    ball = sphere(2)
    turned = ball.faces.clone()
    turned[::3] = turned[::3].flip(1)
    assert (triangulate(Mesh(ball.vertices, turned)).twins >= 0).all()
    fin = torch.cat([ball.faces, torch.tensor([[*ball.faces[0, :2].tolist(), 100], [7, 7, 8], [9, 9, 9]])])
    found = triangulate(Mesh(ball.vertices, fin))
    assert len(found.faces) == 321 and (found.twins < 0).sum() == 5  # those of the fin, and the edge it stands on
    for mesh in (flat(), Mesh(torch.ones(3, 3), torch.tensor([[0, 1, 2]])), Mesh(ball.vertices, ball.faces[:0])):
        found = triangulate(mesh)
        assert np.isfinite(found.lengths).all() and (found.lengths > 0).all()
        for x in (*corners(found)[:3], operators(found)[2]):
            assert np.isfinite(x).all()


def test_flat_faces_of_real_size() -> None:
    """Vertices in the middle of edges: faces without area that hold the surface together."""
    quad = from_trimesh(trimesh.creation.box())
    a, b, c = quad.faces[0].tolist()
    middle = (quad.vertices[a] + quad.vertices[b])[None] / 2
    faces = torch.cat([quad.faces[1:], torch.tensor([[a, 8, c], [8, b, c], [a, b, 8]])])
    found = triangulate(Mesh(torch.cat([quad.vertices, middle]), faces))
    assert (found.twins >= 0).all() and angles(found.lengths).max() < np.pi / 2 + 0.01
