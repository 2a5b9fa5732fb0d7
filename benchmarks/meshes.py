"""Geodesics, Laplacian, distances, samples and tetrahedra: geom, libigl, potpourri3d, open3d and trimesh."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.given import choose, read_surfaces
from benchmarks.harness import Case, Contender
from benchmarks.mesh_peers import Array, Given, geom, libigl, open3d, potpourri3d, trimesh
from benchmarks.part import Request, installed
from benchmarks.report import BEST_PEER
from benchmarks.rows import contenders, untimed

__all__ = ["NOTES", "REFERENCE", "arcs", "cases", "cotangents", "draw", "inputs", "make_sphere", "score", "truths"]

REFERENCE = BEST_PEER
NOTES = [
    "geodesics: what is factored once (factors), then the distances from one vertex (one) and from each of 16 (each), "
    "in float64; libigl and potpourri3d by heat, geom by heat and then by waves (heat alone: without); errors: largest "
    "and mean, of the greatest distance, on the sphere from arcs of great circles, elsewhere from libigl's exact "
    "geodesics",
    "cotangent Laplacian: a sparse matrix, float64; error: largest of an entry, from the cotangents in numpy",
    "closest points and signed distance: 5,000 points in and around the surface, the search structure built inside "
    "the clock; geom and open3d in float32, libigl and trimesh in float64; sides by winding number in geom, by "
    "pseudonormals in libigl (by winding number, its distances err by 1e-3), by a ray in open3d; errors: largest of a "
    "distance, and wrong sides, of 500 of the points, from all faces in float64",
    "samples: 100,000 points uniform over the surface; error: of their mean, in standard deviations of it",
]
_SPHERE, _TETRAHEDRA = "icosphere", "tetrahedra"
_GEODESICS = ("geodesics", "heat alone")
_CHECKED = 500  # points whose distance is checked
_LIBRARIES = [
    ("geom", ("geom", geom)),
    ("igl", ("libigl", libigl)),
    ("potpourri3d", ("potpourri3d", potpourri3d)),
    ("open3d", ("open3d", open3d)),
    ("rtree", ("trimesh", trimesh)),  # trimesh is geom's own; without rtree it finds no distances
]


def inputs(names: tuple[str, ...]) -> list[str]:
    """The cases of these names. Raises: GeomError for a name that is not there."""
    return choose([*read_surfaces(), _SPHERE, _TETRAHEDRA], names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    surfaces = read_surfaces()
    chosen = inputs(request.inputs) or [*list(surfaces)[-1:], _SPHERE, _TETRAHEDRA]
    if request.clock == "wall" and request.device == "cpu":  # the tetrahedra are the same on all threads
        chosen = [name for name in chosen if name != _TETRAHEDRA]
    found, missing = installed(_LIBRARIES)

    def make() -> Iterator[Case]:
        for name in chosen:
            if name == _TETRAHEDRA:
                yield _tetrahedra(surfaces or {_SPHERE: make_sphere(3)}, request.device)
                continue
            surface = make_sphere(3 if request.quick else 5) if name == _SPHERE else surfaces[name]
            given = draw(*surface, request.quick)
            libraries = [(library, start(given, threads, request.device)) for library, start in found]
            rows = contenders(libraries, score, truths(given, name == _SPHERE))
            yield Case(name, rows, f"{len(given.vertices):,} vertices, {len(given.faces):,} faces")

    return len(chosen), make(), missing


def make_sphere(steps: int) -> tuple[Array, NDArray[np.int64]]:
    """Vertices on the unit sphere, of an icosahedron cut in four `steps` times, and faces."""
    import trimesh

    mesh = trimesh.creation.icosphere(steps)
    return np.array(mesh.vertices), np.array(mesh.faces, dtype=np.int64)


def draw(vertices: Array, faces: NDArray[np.int64], quick: bool) -> Given:
    """Points uniform in a box a fifth larger than the surface; sources among its vertices."""
    random = np.random.default_rng(0)
    low, high = vertices.min(0), vertices.max(0)
    count, samples = (1_000, 10_000) if quick else (5_000, 100_000)
    points = random.uniform(low - 0.1 * (high - low), high + 0.1 * (high - low), (count, 3)).astype(np.float32)
    sources = random.choice(len(vertices), 2 if quick else 16, replace=False)
    return Given(vertices, faces, points, sources, samples)


def truths(given: Given, sphere: bool) -> Callable[[str], Any]:
    """What each method should find, computed once; None where that is not known."""

    @cache
    def truth(method: str) -> Any:
        if method == "geodesics, factors":
            return None
        if method.startswith(_GEODESICS):
            sources = given.sources[:1] if method == "geodesics, one" else given.sources
            return arcs(given.vertices, sources) if sphere else _exact_geodesics(given, sources)
        if method == "cotangent Laplacian":
            return cotangents(given.vertices, given.faces)
        if method == "samples":
            return _mean_and_deviation(given)
        return _signed_distance(given)

    return truth


def arcs(vertices: Array, sources: NDArray[np.int64]) -> Array:
    """Distances (S, V) on the unit sphere."""
    across = np.linalg.norm(np.cross(vertices[sources][:, None], vertices), axis=-1)
    return np.arctan2(across, vertices[sources] @ vertices.T)


def _exact_geodesics(given: Given, sources: NDArray[np.int64]) -> Array | None:
    try:
        import igl
    except ImportError:
        return None
    every = np.arange(len(given.vertices))
    return np.stack([igl.exact_geodesic(given.vertices, given.faces, VS=s, VT=every) for s in sources[:, None]])


def cotangents(vertices: Array, faces: NDArray[np.int64]) -> Any:
    """The cotangent Laplacian as a scipy matrix: -(cot a + cot b) / 2 of the angles across, rows that sum to 0."""
    from scipy.sparse import coo_array

    matrix = coo_array((len(vertices), len(vertices))).tocsr()
    for corner in range(3):
        i, j, k = (faces[:, (corner + step) % 3] for step in range(3))
        u, v = vertices[j] - vertices[i], vertices[k] - vertices[i]
        half = (u * v).sum(1) / np.linalg.norm(np.cross(u, v), axis=1) / 2
        rows, columns = np.concatenate([j, k, j, k]), np.concatenate([j, k, k, j])
        matrix = matrix + coo_array((np.concatenate([half, half, -half, -half]), (rows, columns)), matrix.shape)
    return matrix


def _mean_and_deviation(given: Given) -> tuple[Array, Array]:
    """Of a point uniform on the surface."""
    a, b, c = given.vertices[given.faces].swapaxes(0, 1)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    weight = (area / area.sum())[:, None]
    mean = (weight * (a + b + c) / 3).sum(0)
    square = (weight * (a * a + b * b + c * c + (a + b + c) ** 2) / 12).sum(0)
    return mean, np.sqrt(square - mean**2)


def _signed_distance(given: Given) -> Array:
    from geom.meshes import Mesh, signed_distance

    points = torch.from_numpy(given.points[:_CHECKED]).double()
    mesh = Mesh(torch.from_numpy(given.vertices), torch.from_numpy(given.faces))
    return signed_distance(points, mesh, backend="torch").numpy()


def score(method: str, found: Any, truth: Any) -> dict[str, float]:
    if truth is None:
        return {}
    if method.startswith(_GEODESICS):
        error = np.abs(found - truth) / truth.max()
        return {"largest_rel": float(error.max()), "mean_rel": float(error.mean())}
    if method == "cotangent Laplacian":
        return {"error_abs": float(abs(found.tocsr() - truth).max())}
    if method == "samples":
        mean, deviation = truth
        return {"mean_sigmas": float(np.abs((found.mean(0) - mean) / deviation * len(found) ** 0.5).max())}
    found = np.asarray(found, dtype=np.float64)[:_CHECKED]
    scores = {"error_abs": float(np.abs(np.abs(found) - np.abs(truth)).max())}
    return {**scores, "wrong": float(((found < 0) != (truth < 0)).sum())} if method == "signed distance" else scores


def _tetrahedra(surfaces: dict[str, tuple[Array, NDArray[np.int64]]], device: str) -> Case:
    from geom.meshes import Mesh, mass_properties, tetrahedralize

    def fill(name: str) -> Contender:
        vertices, faces = (torch.from_numpy(x).to(device) for x in surfaces[name])

        def work() -> dict[str, float]:
            body = tetrahedralize(Mesh(vertices, faces))
            a, b, c, d = body.vertices[body.tets].unbind(1)
            volume = (torch.linalg.cross(b - a, c - a) * (d - a)).sum(-1) / 6
            enclosed = mass_properties(vertices, faces).volume
            error = float(volume.sum() / enclosed - 1)
            return {"tetrahedra": float(len(volume)), "volume_rel": abs(error), "inverted": float((volume <= 0).sum())}

        return untimed("geom", f"{name},", work)

    return Case(_TETRAHEDRA, [fill(name) for name in surfaces], timed=False)
