"""Distances to surfaces: against closed forms, trimesh and the twin; inside, outside and on the surface."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from geom.errors import ShapeError
from geom.meshes import Mesh, SurfaceTree, closest_points, edges, face_normals, signed_distance, winding_number
from geom.testing import assert_equivariant, assert_gradients

from .shapes import around, box, bumpy, closed, flat, random, sphere, tetrahedron, torus

BACKENDS = ("warp", "torch")
both = pytest.mark.parametrize("backend", BACKENDS)
TINY = {torch.float32: 5e-7, torch.float64: 1e-15}  # what the docstrings guarantee, of the extent
SCENES: dict[str, Callable[[torch.dtype], Mesh]] = {
    "bumpy": bumpy,
    "torus": torus,
    "box": lambda dtype: box(dtype=dtype),
    "flat": flat,
    "sphere": lambda dtype: sphere(3, dtype),
    "one_face": lambda dtype: Mesh(torch.eye(3, dtype=dtype), torch.tensor([[0, 1, 2]])),
    "twice": lambda dtype: Mesh(bumpy(dtype).vertices, bumpy(dtype).faces.repeat(3, 1)),
}


def extent(mesh: Mesh) -> float:
    return float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).max())


def distance(query: Tensor, mesh: Mesh) -> np.ndarray:
    """Each point against every triangle, by trimesh, which makes no choice that could be wrong."""
    triangles = mesh.vertices[mesh.faces].double().numpy()
    found = []
    for place in query.double().numpy():
        near = trimesh.triangles.closest_point(triangles, np.broadcast_to(place, (len(triangles), 3)))
        found.append(np.linalg.norm(near - place, axis=1).min())
    return np.array(found)


def flat_distance(query: Tensor) -> np.ndarray:
    """Of `flat`: sides of length 0 are too much for trimesh."""
    q, corners = query.double().numpy(), flat().vertices.numpy()
    inside = (q[:, 0] >= 0) & (q[:, 1] >= 0) & (q[:, 0] + q[:, 1] <= 1)
    best = np.where(inside, np.abs(q[:, 2]), np.inf)
    for a, b in corners[[[0, 1], [1, 2], [2, 0], [0, 3]]]:
        t = np.clip((q - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)[:, None]
        best = np.minimum(best, np.linalg.norm(q - a - t * (b - a), axis=1))
    return best


@pytest.mark.parametrize("scene", SCENES)
@both
def test_closest_points_match_trimesh(scene: str, backend: str, dtype: torch.dtype) -> None:
    mesh = SCENES[scene](dtype)
    query = torch.cat([around(mesh, 150), mesh.vertices[:20], mesh.vertices[mesh.faces[:20]].mean(1)])
    found = closest_points(query, mesh, backend=backend)
    assert found.distance.dtype == dtype and found.faces.dtype == torch.int64
    want = flat_distance(query) if scene == "flat" else distance(query, mesh)
    error = np.abs(found.distance.double().numpy() - want)
    assert error.max() < 2 * TINY[dtype] * extent(mesh)
    place = (found.barycentric[..., None] * mesh.vertices[mesh.faces[found.faces]]).sum(1)
    assert torch.equal(place, found.points)
    assert (found.barycentric >= -TINY[dtype]).all() and (found.barycentric.sum(-1) - 1).abs().max() < TINY[dtype]


def test_warp_is_the_twin(dtype: torch.dtype) -> None:
    for scene in SCENES:
        mesh = SCENES[scene](dtype)
        query = around(mesh, 500)
        a, b = (closest_points(query, mesh, backend=name) for name in BACKENDS)
        assert (a.distance - b.distance).abs().max() < TINY[dtype] * extent(mesh)
        if scene == "twice":
            assert (a.faces < len(bumpy().faces)).all() and (b.faces < len(bumpy().faces)).all()
        a, b = (winding_number(query, mesh, backend=name) for name in BACKENDS)
        assert (a - b).abs().max() < 4e-2


def test_distance_of_a_sphere_of_known_radius() -> None:
    ball = sphere(5)
    query = 2 * random(500, 3) - 1
    found = signed_distance(query, ball)
    assert (found - (query.norm(dim=-1) - 1)).abs().max() < 1e-3


@both
def test_signed_distance_of_a_box(backend: str, dtype: torch.dtype) -> None:
    cube = box((1, 2, 3), dtype)
    query = 4 * random(2000, 3, dtype=dtype) - 2
    gap = query.abs() - torch.tensor([0.5, 1, 1.5], dtype=dtype)
    want = gap.clamp(min=0).norm(dim=-1) + gap.amax(-1).clamp(max=0)
    found = signed_distance(query, cube, backend=backend)
    assert found.dtype == dtype and (found - want).abs().max() < 3 * TINY[dtype]
    assert (found < 0).sum() > 50 and (found > 0).sum() > 50


@both
def test_signed_distance_is_0_on_the_surface(backend: str, dtype: torch.dtype) -> None:
    mesh = torus(dtype)
    assert signed_distance(mesh.vertices, mesh, backend=backend).abs().max() < TINY[dtype]
    middles = mesh.vertices[mesh.faces].mean(1)
    assert signed_distance(middles, mesh, backend=backend).abs().max() < 3 * TINY[dtype]
    near = middles + 1e-3 * face_normals(mesh.vertices, mesh.faces)
    assert (signed_distance(near, mesh, backend=backend) > 0).all()
    assert (signed_distance(2 * middles - near, mesh, backend=backend) < 0).all()


@both
def test_signed_distance_is_0_on_sides_and_corners(backend: str, dtype: torch.dtype) -> None:
    """And right on both sides of them, where several faces are equally near."""
    cube = box((1, 2, 3), dtype)
    start, stop = cube.vertices[edges(cube.faces)].unbind(1)
    sides = torch.cat([start + t * (stop - start) for t in (0.0, 0.25, 0.5, 1.0)])
    assert signed_distance(sides, cube, backend=backend).abs().max() <= TINY[dtype]
    out = signed_distance(1.01 * sides, cube, backend=backend)
    within = signed_distance(0.99 * sides, cube, backend=backend)
    assert (out > 0.004).all() and (within < -0.004).all()


def test_an_open_surface_has_sides_too() -> None:
    """Half a sphere: inside is where it covers more than half of all directions; the distance is that of the mesh."""
    ball = sphere(4)
    half = Mesh(ball.vertices, ball.faces[(ball.vertices[ball.faces][..., 2] > -1e-9).all(1)])
    query = torch.tensor([[0, 0, 0.5], [0.3, 0.2, 0.6], [0, 0, -0.3], [0, 0, 1.2], [0, 0, -2.0]], dtype=torch.float64)
    found = signed_distance(query, half)
    assert (found < 0).tolist() == [True, True, False, False, False]
    assert torch.equal(found.abs(), closest_points(query, half).distance)
    assert (signed_distance(half.vertices[half.faces].mean(1), half).abs() < 1e-15).all()


def test_signs_on_real_meshes(data: Path) -> None:
    for mesh in closed(data):
        query = around(mesh, 400)
        found, exact = winding_number(query, mesh), winding_number(query, mesh, backend="torch")
        assert (exact - exact.round()).abs().max() < 1e-9 and (found - exact).abs().max() < 5e-2
        signed = signed_distance(query, mesh)
        assert torch.equal(signed < 0, exact > 0.5)
        assert np.abs(signed[:10].abs().numpy() - distance(query[:10], mesh)).max() < 1e-12 * extent(mesh)


def test_holes_and_overlaps() -> None:
    ball = sphere(3)
    torn = Mesh(ball.vertices, ball.faces[20:])
    query = 0.6 * (2 * random(300, 3) - 1)
    assert (signed_distance(query[query.norm(dim=-1) < 0.8], torn) < 0).all()
    two = Mesh(
        torch.cat([ball.vertices, ball.vertices + 0.5]), torch.cat([ball.faces, ball.faces + len(ball.vertices)])
    )
    middle = torch.full((1, 3), 0.25, dtype=torch.float64)
    assert float(winding_number(middle, two, backend="torch")) == pytest.approx(2)
    assert float(signed_distance(middle, two)) < 0
    inside_out = Mesh(ball.vertices, ball.faces.flip(1))
    assert float(winding_number(middle, inside_out)) == pytest.approx(-1, abs=1e-2)
    assert float(signed_distance(middle, inside_out)) > 0


def test_a_tree_answers_many_times_and_for_any_number_of_threads(threads: Callable[[int], None]) -> None:
    mesh = sphere(4)
    tree = SurfaceTree.build(mesh)
    query = 3 * random(20000, 3) - 1.5
    one = tree.closest(query), tree.winding_number(query), tree.signed_distance(query)
    threads(2)
    two = tree.closest(query), tree.winding_number(query), tree.signed_distance(query)
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert torch.equal(one[1], two[1]) and torch.equal(one[2], two[2])
    order = torch.randperm(20000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tree.closest(query[order]).distance, one[0].distance[order])
    assert torch.equal(one[2], signed_distance(query, mesh))


def test_empty_query(dtype: torch.dtype) -> None:
    for backend in BACKENDS:
        found = closest_points(torch.zeros(0, 3, dtype=dtype), bumpy(dtype), backend=backend)
        assert found.points.shape == (0, 3) and found.faces.shape == (0,)
        assert signed_distance(torch.zeros(0, 3, dtype=dtype), bumpy(dtype), backend=backend).shape == (0,)


def test_distances_do_not_move() -> None:
    mesh = bumpy()
    assert_equivariant(
        lambda q, v: signed_distance(q, Mesh(v, mesh.faces)),
        around(mesh, 50),
        mesh.vertices,
        act_in="point",
        act_out="invariant",
        tolerance=1e-12,
    )


# --- derivatives -----------------------------------------------------------------------------------------------------


@both
def test_gradients(backend: str) -> None:
    mesh = tetrahedron()
    query = torch.tensor(
        [[0.3, 0.3, 0.9], [0.15, 0.2, 0.1], [-0.4, -0.3, 0.5], [-1, -1, -1.1], [0.6, 0.7, -0.2]]
    ).double()

    def distances(q: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        moved = Mesh(v, mesh.faces)
        found = closest_points(q, moved, backend=backend)
        return found.distance, found.points, signed_distance(q, moved, backend=backend)

    assert_gradients(distances, query, mesh.vertices, forward=backend == "torch", vmap=False)


@both
def test_the_gradient_on_the_surface_is_the_normal(backend: str, dtype: torch.dtype) -> None:
    mesh = tetrahedron(dtype)
    query = torch.tensor([[0.25, 0.25, 0], [0.25, 0.25, 0.5]], dtype=dtype, requires_grad=True)
    found = signed_distance(query, mesh, backend=backend)
    assert found.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(found.sum(), query)
    want = torch.tensor([[0, 0, -1], [3**-0.5] * 3], dtype=dtype)
    assert (gradient - want).abs().max() < 3e-7
    (zero,) = torch.autograd.grad(closest_points(query, mesh, backend=backend).distance.sum(), query)
    assert (zero == 0).all()


def test_gradients_stay_finite_at_corners_sides_and_flat_faces() -> None:
    for mesh in (tetrahedron(), flat()):
        query = torch.cat([mesh.vertices[:3], mesh.vertices[mesh.faces[:, :2]].mean(1)])
        for backend in BACKENDS:
            assert_gradients(
                lambda q, v, m=mesh, b=backend: signed_distance(q, Mesh(v, m.faces), backend=b),
                query,
                mesh.vertices,
                order=0,
                forward=False,
                vmap=False,
            )


def test_functional_transforms_use_the_twin() -> None:
    mesh = bumpy()
    query = around(mesh, 6)
    jacobian = torch.func.jacrev(lambda q: signed_distance(q, mesh))(query)
    found = query.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(signed_distance(found, mesh).sum(), found)
    assert (jacobian.sum(1) - gradient).abs().max() < 1e-12


@pytest.mark.usefixtures("unchecked")
def test_compile() -> None:
    trees = {dtype: SurfaceTree.build(bumpy(dtype)) for dtype in TINY}
    assert_gradients(
        lambda q: (trees[q.dtype].signed_distance(q), trees[q.dtype].closest(q).points),
        around(bumpy(), 9),
        order=0,
        forward=False,
        vmap=False,
        compile=True,
    )


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    mesh, query = bumpy(), torch.zeros(2, 3, dtype=torch.float64)
    empty = Mesh(mesh.vertices, mesh.faces[:0])
    for function in (closest_points, winding_number, signed_distance):
        with pytest.raises(ShapeError, match="at least one face"):
            function(query, empty)
        with pytest.raises(ShapeError, match="one dtype and device"):
            function(query.float(), mesh)
        with pytest.raises(ShapeError, match="points: expected"):
            function(query[0], mesh)
        with pytest.raises(ShapeError, match="finite"):
            function(query * float("nan"), mesh)
        with pytest.raises(ShapeError, match="backend"):
            function(query, mesh, backend="cuda")
    with pytest.raises(ShapeError, match="at least one face"):
        SurfaceTree.build(empty)
    with pytest.raises(ShapeError, match="points and mesh"):
        SurfaceTree.build(mesh).closest(query.float())
