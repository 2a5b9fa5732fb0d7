"""Geodesics by heat: against arcs on spheres, straight lines on planes, unrolled cylinders."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve
from scipy.spatial import ConvexHull, Delaunay
from torch import Tensor

from geom.errors import ShapeError
from geom.io import load_mesh
from geom.lie import so3
from geom.meshes import HeatGeodesics, Mesh, edges, geodesic_distance, subdivide
from geom.meshes.factor import SymmetricFactor

from .shapes import box, bumpy, closed, from_trimesh, random, sphere


def arcs(mesh: Mesh, sources: Tensor) -> Tensor:
    x = mesh.vertices.double() / mesh.vertices.double().norm(dim=-1, keepdim=True)
    across = torch.linalg.cross(*torch.broadcast_tensors(x[sources][:, None], x)).norm(dim=-1)
    return torch.atan2(across, x[sources] @ x.mT)


def grid(cells: int) -> Mesh:
    step = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    index = torch.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
    a, b, c, d = (x.flatten() for x in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    places = torch.cartesian_prod(step, step, torch.zeros(1, dtype=torch.float64))
    return Mesh(places, torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]))


def hull(places: NDArray[np.float64]) -> Mesh:
    """Turned as scipy's hulls come, every other face inside out."""
    return Mesh(torch.tensor(places), torch.tensor(ConvexHull(places).simplices).long())


def fibonacci(count: int) -> Mesh:
    k = np.arange(count) + 0.5
    polar, around = np.arccos(1 - 2 * k / count), np.pi * (1 + 5**0.5) * k
    return hull(np.stack([np.cos(around) * np.sin(polar), np.sin(around) * np.sin(polar), np.cos(polar)], -1))


def scattered(count: int) -> Mesh:
    places = np.random.default_rng(0).normal(size=(count, 3))
    return hull(places / np.linalg.norm(places, axis=1, keepdims=True))


def rings(count: int) -> Mesh:
    """`count` meridians and `count` steps from pole to pole."""
    polar, around = np.linspace(0, np.pi, count + 1)[1:-1, None], np.linspace(0, 2 * np.pi, count, endpoint=False)
    x, y, z = np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar) + 0 * around
    places = np.concatenate([np.stack([x, y, z], -1).reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]])
    index = np.arange((count - 1) * count).reshape(count - 1, count)
    a, b = index, np.roll(index, -1, 1)
    quads = [(a[:-1], a[1:], b[1:]), (a[:-1], b[1:], b[:-1])]
    north, south = np.full(count, len(places) - 2), np.full(count, len(places) - 1)
    faces = [np.stack([x.ravel() for x in face], -1) for face in [*quads, (north, a[0], b[0]), (south, b[-1], a[-1])]]
    return Mesh(torch.tensor(places), torch.tensor(np.concatenate(faces)))


SPHERES = {
    **{f"icosphere {level}": sphere(level) for level in (2, 3, 4, 5)},
    **{f"uv sphere {n}": from_trimesh(trimesh.creation.uv_sphere(count=[n, n])) for n in (16, 32, 64)},
    "uv sphere 16 x 64": from_trimesh(trimesh.creation.uv_sphere(count=[16, 64])),
    **{f"rings {n}": rings(n) for n in (16, 64)},
    **{f"fibonacci {n}": fibonacci(n) for n in (500, 4000)},
    **{f"scattered {n}": scattered(n) for n in (500, 2000)},
}


@pytest.mark.parametrize("name", SPHERES)
def test_spheres_within_a_percent(name: str) -> None:
    """Of the true distance at every vertex, from poles, the equator, and between."""
    ball = SPHERES[name]
    height = ball.vertices[:, 2]
    sources = torch.stack([height.argmax(), *((height - x).abs().argmin() for x in (0.0, 0.7, -0.4))])
    found, want = HeatGeodesics(ball).distance(sources[:, None]), arcs(ball, sources)
    error = (found - want).abs()
    assert (error <= 0.01 * want + 1e-12).all()
    assert error.mean() < 0.006 * want.mean()
    if len(ball.vertices) >= 4000:
        assert (error <= 0.0015 * want + 1e-12).all()


def test_dtypes(dtype: torch.dtype) -> None:
    ball, source = sphere(2, dtype), torch.tensor([5])
    found = geodesic_distance(ball, source)
    assert found.dtype == dtype
    want = geodesic_distance(Mesh(ball.vertices.double(), ball.faces), source)
    assert (found.double() - want).abs().max() < 3e-7


def test_heat_alone_is_a_few_percent_off() -> None:
    for name in ("icosphere 4", "uv sphere 64", "fibonacci 4000"):
        ball, sources = SPHERES[name], torch.tensor([0, 100, 1000])
        rough, fine = (HeatGeodesics(ball, refine=r).distance(sources[:, None]) for r in (False, True))
        want = arcs(ball, sources)
        assert 5 * (fine - want).abs().mean() < (rough - want).abs().mean() < 0.01 * torch.pi
        assert (rough - want).abs().max() < 0.03 * torch.pi


def test_the_sphere_of_the_data(data: Path) -> None:
    for path in sorted(data.glob("meshes/sphere*")):
        ball = load_mesh(path)
        sources = torch.tensor([0, 5, 300])
        want = arcs(ball, sources)
        assert ((HeatGeodesics(ball).distance(sources[:, None]) - want).abs() <= 0.01 * want + 1e-6).all()


def test_a_plane_is_exact() -> None:
    plane = grid(40)
    for source in (41 * 20 + 20, 41 * 30 + 15, 20, 0):  # from inside, a border, a corner
        want = (plane.vertices - plane.vertices[source]).norm(dim=-1)
        assert (geodesic_distance(plane, torch.tensor([source])) - want).abs().max() < 1e-8
        assert (geodesic_distance(plane, torch.tensor([source]), refine=False) - want).abs().max() < 0.045


def test_needles_do_no_harm() -> None:
    """A plane triangulated as if it were a hundred times as long: most faces are needles."""
    places = random(400, 2).numpy() * [20, 1]
    faces = torch.tensor(Delaunay(places * [0.01, 1]).simplices).long()
    plane = Mesh(torch.tensor(np.c_[places, np.zeros(400)]), faces)
    want = (plane.vertices - plane.vertices[7]).norm(dim=-1)
    assert ((geodesic_distance(plane, torch.tensor([7])) - want).abs() <= 1e-6 * want).all()


def test_around_a_corner() -> None:
    """A square without one quarter: beyond its inner corner the way bends there."""
    plane = grid(40)
    middle = plane.vertices[plane.faces].mean(1)
    bent = Mesh(plane.vertices, plane.faces[~((middle[:, 0] > 0.5) & (middle[:, 1] > 0.5))])
    source, corner = plane.vertices[41 * 40 + 8], torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    inside = bent.faces.unique()
    x = plane.vertices[inside]
    left, up = x[:, 0] - 0.5, x[:, 1] - 0.5
    hidden = (left * (source - corner)[1] - up * (source - corner)[0] < 0) & (up > 0)
    want = torch.where(hidden, (x - corner).norm(dim=-1) + (source - corner).norm(), (x - source).norm(dim=-1))
    found = geodesic_distance(bent, torch.tensor([41 * 40 + 8]))[inside]
    assert hidden.sum() > 50 and (found - want).abs().max() < 0.003


def test_unrolled_shapes() -> None:
    """A cylinder's side, straight when unrolled; a box, from the middle of its top to that of its bottom."""
    around, along = 120, 60
    turn = torch.arange(around, dtype=torch.float64) * (2 * torch.pi / around)
    height = torch.linspace(0, 3, along + 1, dtype=torch.float64)
    x, y = turn.cos()[:, None].expand(around, along + 1), turn.sin()[:, None].expand(around, along + 1)
    places = torch.stack([x, y, height.expand(around, along + 1)], -1).reshape(-1, 3)
    index = torch.arange(len(places)).reshape(around, along + 1)
    following = index.roll(-1, 0)
    a, b, c, d = (k.flatten() for k in (index[:, :-1], following[:, :-1], following[:, 1:], index[:, 1:]))
    tube = Mesh(places, torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]))
    chord = 2 * math.sin(math.pi / around)  # the polygon's sides are what is unrolled
    steps = torch.minimum(torch.arange(around), around - torch.arange(around)).double() * chord
    want = torch.hypot(steps[:, None], height - height[20]).flatten()
    found = geodesic_distance(tube, torch.tensor([20]))
    assert ((found - want).abs() <= 1e-6 * (1 + want)).all()
    cube = subdivide(box((1, 1, 1)), steps=4, scheme="midpoint")
    top, bottom = (
        int((cube.vertices - cube.vertices.new_tensor([0, 0, z])).norm(dim=-1).argmin()) for z in (0.5, -0.5)
    )
    assert float(geodesic_distance(cube, torch.tensor([top]))[bottom]) == pytest.approx(2, abs=0.01)


def test_real_shapes_keep_the_triangle_inequality(data: Path) -> None:
    for mesh in closed(data)[:3]:
        sources = torch.randint(0, len(mesh.vertices), (12, 1), generator=torch.Generator().manual_seed(0))
        found = HeatGeodesics(mesh).distance(sources)
        between = found[:, sources[:, 0]]
        assert (between - between.mT).abs().max() < 0.01 * between.max()  # as far back
        straight = torch.cdist(mesh.vertices[sources[:, 0]], mesh.vertices)
        assert (found >= 0.99 * straight).all()
        pairs = edges(mesh.faces)
        length = (mesh.vertices[pairs[:, 0]] - mesh.vertices[pairs[:, 1]]).norm(dim=-1)
        assert (
            (found[:, pairs[:, 0]] - found[:, pairs[:, 1]]).abs() < 1.2 * length
        ).all()  # flipped edges may be shorter


def test_surfaces_of_one_side_and_edges_of_three_faces() -> None:
    count = 60
    turn = torch.arange(count, dtype=torch.float64)[:, None] * (2 * torch.pi / count)
    across = torch.linspace(-0.2, 0.2, 5, dtype=torch.float64)
    radius = 1 + across * (turn / 2).cos()
    places = torch.stack([radius * turn.cos(), radius * turn.sin(), across * (turn / 2).sin()], -1).reshape(-1, 3)
    index = torch.arange(5 * count).reshape(count, 5)
    following = torch.cat([index[1:], index[:1].flip(1)])
    a, b, c, d = (k.flatten() for k in (index[:, :-1], index[:, 1:], following[:, 1:], following[:, :-1]))
    band = Mesh(places, torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]))
    found = geodesic_distance(band, torch.tensor([2]))
    assert found.isfinite().all() and 2 < float(found[5 * 30 + 2]) < 3.15  # at most along its middle
    ball = sphere(3)
    fin = torch.cat([ball.faces, torch.tensor([[*ball.faces[9, :2].tolist(), 642]])])
    places = torch.cat([ball.vertices, 1.3 * ball.vertices[ball.faces[9, :1]]])
    found = HeatGeodesics(Mesh(places, fin)).distance(torch.tensor([[100], [300]]))
    error = (found[:, :642] - arcs(ball, torch.tensor([100, 300]))).abs()
    assert found.isfinite().all() and error.max() < 0.03 * torch.pi and error.mean() < 0.003 * torch.pi


def test_several_sources_give_the_nearest() -> None:
    ball = sphere(4)
    sources = torch.tensor([0, 50, 900])
    found = geodesic_distance(ball, sources)
    assert (found - arcs(ball, sources).amin(0)).abs().max() < 0.001 * torch.pi
    assert (found[sources] == 0).all() and (found >= 0).all()
    line = torch.arange(41) * 41  # a whole border of a plane
    plane = grid(40)
    assert (geodesic_distance(plane, line) - plane.vertices[:, 1]).abs().max() < 1e-9


def test_one_shot_and_rows_are_the_solver() -> None:
    ball = bumpy()
    solver = HeatGeodesics(ball)
    sets = torch.tensor([[[0, 3], [5, 5]], [[7, 1], [2, 9]]])
    found = solver.distance(sets)
    assert found.shape == (2, 2, 42)
    for i in range(2):
        for j in range(2):
            assert (found[i, j] - solver.distance(sets[i, j])).abs().max() < 1e-13
            assert torch.equal(solver.distance(sets[i, j]), geodesic_distance(ball, sets[i, j]))
    assert torch.equal(solver.distance(torch.tensor([5])), solver.distance(torch.tensor([5, 5])))
    assert solver.distance(torch.zeros(0, 1, dtype=torch.int64)).shape == (0, 42)


def test_components_without_a_source_are_infinitely_far() -> None:
    ball, n = sphere(2), 162
    lone = torch.full((1, 3), 9.0, dtype=torch.float64)  # a vertex without a face
    two = Mesh(torch.cat([ball.vertices, 2 * ball.vertices + 5, lone]), torch.cat([ball.faces, ball.faces + n]))
    found = HeatGeodesics(two).distance(torch.tensor([[3, 3, 3], [3, n + 8, 2 * n]]))
    assert found[0, :n].isfinite().all() and (found[0, n:] == float("inf")).all()
    assert found[1].isfinite().all() and float(found[1, 2 * n]) == 0
    alone = geodesic_distance(ball, torch.tensor([3]))
    assert (found[0, :n] - alone).abs().max() < 0.02  # the time is that of the mean edge of both
    assert (found[1, n : 2 * n] / 2 - geodesic_distance(ball, torch.tensor([8]))).abs().max() < 0.05


def test_scale_and_motion() -> None:
    mesh, source = bumpy(), torch.tensor([4])
    want = geodesic_distance(mesh, source)
    for scale in (1e-6, 1e6):
        found = geodesic_distance(Mesh(scale * mesh.vertices, mesh.faces), source)
        assert (found / scale - want).abs().max() < 1e-9
    moved = Mesh(mesh.vertices @ so3.exp(random(3)).mT + 3, mesh.faces)
    assert (geodesic_distance(moved, source) - want).abs().max() < 1e-12


def test_a_long_way_does_not_lose_the_heat() -> None:
    """500 edges: heat falls to 1e-130 and still shows its direction."""
    wide, long = 3, 500
    places = torch.cartesian_prod(torch.arange(long + 1.0), torch.arange(wide + 1.0), torch.zeros(1)).double()
    index = torch.arange(len(places)).reshape(long + 1, wide + 1)
    a, b, c, d = (x.flatten() for x in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    strip = Mesh(places, torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]))
    found = geodesic_distance(strip, torch.arange(wide + 1))
    assert (found - places[:, 0]).abs().max() < 1e-9


def test_faces_without_area_do_no_harm() -> None:
    ball = sphere(2)
    more = Mesh(ball.vertices, torch.cat([ball.faces, torch.tensor([[0, 0, 1], [5, 5, 5]])]))
    assert geodesic_distance(more, torch.tensor([0])).isfinite().all()


def test_more_time_is_smoother() -> None:
    ball = subdivide(sphere(2), scheme="midpoint")
    short, long = (geodesic_distance(ball, torch.tensor([0]), time=t, refine=False) for t in (0.5, 50.0))
    assert (short - long).abs().max() > 1e-3


def test_the_factor_solves() -> None:
    places = random(300, 3).numpy()
    graph = sparse.random_array((300, 300), density=0.02, rng=np.random.default_rng(0))
    matrix = (graph @ graph.T + sparse.eye_array(300)).tocsc()
    right = random(300, 4, seed=1).numpy()
    assert np.abs(SymmetricFactor(matrix, places).solve(right) - spsolve(matrix, right)).max() < 1e-12
    same = np.ones((300, 3))  # places that do not tell rows apart
    assert np.abs(SymmetricFactor(matrix, same).solve(right) - spsolve(matrix, right)).max() < 1e-12


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    ball = bumpy()
    for sources in (torch.tensor([42]), torch.tensor([-1])):
        with pytest.raises(ShapeError, match=r"sources: expected indices in \[0, 42\)"):
            geodesic_distance(ball, sources)
    for sources in (torch.tensor([1.0]), torch.tensor(1), torch.zeros(2, 0, dtype=torch.int64), 3):
        with pytest.raises(ShapeError, match="sources: expected an int64 tensor"):
            geodesic_distance(ball, sources)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="at least 1 points"):
        HeatGeodesics(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)))
    with pytest.raises(ShapeError, match="time: expected a finite number above 0"):
        HeatGeodesics(ball, time=0)
