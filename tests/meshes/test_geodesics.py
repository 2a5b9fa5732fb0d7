"""Geodesics by heat: against arcs on spheres, straight lines on planes, unrolled cylinders."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor

from geom.errors import ShapeError
from geom.io import load_mesh
from geom.lie import so3
from geom.meshes import HeatGeodesics, Mesh, geodesic_distance, subdivide
from geom.meshes.factor import SymmetricFactor

from .shapes import bumpy, from_trimesh, random, sphere


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


@pytest.mark.parametrize("level", [3, 4, 5])
def test_spheres_within_a_percent(level: int, dtype: torch.dtype) -> None:
    ball = sphere(level, dtype)
    sources = torch.tensor([0, 7, 100, 500])
    found, want = HeatGeodesics(ball).distance(sources[:, None]), arcs(ball, sources)
    assert found.dtype == dtype and found.shape == (4, len(ball.vertices))
    error = (found.double() - want).abs()
    assert error.max() < 0.006 * torch.pi  # the greatest distance
    far = want > 0.3
    assert (error[far] / want[far]).mean() < 0.005 and error.mean() < 0.003 * torch.pi


def test_an_uneven_sphere() -> None:
    ball = from_trimesh(trimesh.creation.uv_sphere(count=[64, 64]))
    sources = torch.tensor([0, 100, 1000])
    error = (HeatGeodesics(ball).distance(sources[:, None]) - arcs(ball, sources)).abs()
    assert error.max() < 0.012 * torch.pi and error.mean() < 0.004 * torch.pi


def test_the_sphere_of_the_data(data: Path) -> None:
    for path in sorted(data.glob("meshes/sphere*")):
        ball = load_mesh(path)
        sources = torch.tensor([0, 5, 300])
        error = (HeatGeodesics(ball).distance(sources[:, None]) - arcs(ball, sources)).abs()
        assert error.max() < 0.01 * torch.pi


def test_a_plane_with_a_border() -> None:
    plane = grid(40)
    for source, tolerance in (
        (41 * 20 + 20, 0.01),
        (41 * 30 + 15, 0.01),
        (20, 0.03),
        (0, 0.045),
    ):  # from inside, a border, a corner
        found = geodesic_distance(plane, torch.tensor([source]))
        want = (plane.vertices - plane.vertices[source]).norm(dim=-1)
        assert (found - want).abs().max() < tolerance


def test_several_sources_give_the_nearest() -> None:
    ball = sphere(4)
    sources = torch.tensor([0, 50, 900])
    found = geodesic_distance(ball, sources)
    assert (found - arcs(ball, sources).amin(0)).abs().max() < 0.008 * torch.pi
    assert (found[sources] == 0).all() and (found >= 0).all()
    line = torch.arange(41) * 41  # a whole border of a plane
    plane = grid(40)
    assert (geodesic_distance(plane, line) - plane.vertices[:, 1]).abs().max() < 0.03


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
    assert (found - places[:, 0]).abs().max() < 1


def test_faces_without_area_do_no_harm() -> None:
    ball = sphere(2)
    more = Mesh(ball.vertices, torch.cat([ball.faces, torch.tensor([[0, 0, 1], [5, 5, 5]])]))
    assert geodesic_distance(more, torch.tensor([0])).isfinite().all()


def test_refinement_halves_the_error_on_a_sphere() -> None:
    ball = sphere(4)
    sources = torch.tensor([[3], [77], [1200]])
    rough, fine = (
        float((geodesic_distance(ball, sources, refine=r) - arcs(ball, sources[:, 0])).abs().max())
        for r in (False, True)
    )
    assert fine < 0.6 * rough < 0.6 * 0.01 * torch.pi


def test_more_time_is_smoother() -> None:
    ball = subdivide(sphere(2), scheme="midpoint")
    short, long = (geodesic_distance(ball, torch.tensor([0]), time=t) for t in (0.5, 50.0))
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
