"""Geodesics, Laplacians, distances and samples in geom and its peers, each on its own types."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import Library, Operation

__all__ = ["Given", "geom", "libigl", "open3d", "potpourri3d", "trimesh"]

Array = NDArray[np.float64]


class Given(NamedTuple):
    """A closed surface, vertices (V, 3) float64 and faces (F, 3) int64; float32 `points` (N, 3) around it; vertices
    `sources` (S,), each a source of its own; how many `samples` are drawn.

    Operations are read as distances (S, V), a sparse matrix with positive diagonal, distances (N,) or samples (n, 3).
    """

    vertices: Array
    faces: NDArray[np.int64]
    points: NDArray[np.float32]
    sources: NDArray[np.int64]
    samples: int


def geom(given: Given, threads: int, device: str) -> Library:
    import torch
    from scipy.sparse import coo_array

    from geom import meshes as m

    vertices, faces, points, sources = (torch.from_numpy(x).to(device) for x in given[:4])
    exact, mesh = m.Mesh(vertices, faces), m.Mesh(vertices.float(), faces)
    solver, plain = m.HeatGeodesics(exact), m.HeatGeodesics(exact, refine=False)
    generator = torch.Generator(device).manual_seed(0)

    def matrix(found: Any) -> Any:
        return coo_array((found.values().cpu().numpy(), found.indices().cpu().numpy()), tuple(found.shape))

    return {
        "geodesics, factors": Operation(lambda: m.HeatGeodesics(exact), lambda found: None),
        "geodesics, one": Operation(lambda: solver.distance(sources[:1, None]), lambda found: found.cpu().numpy()),
        "geodesics, each": Operation(lambda: solver.distance(sources[:, None]), lambda found: found.cpu().numpy()),
        "heat alone, each": Operation(lambda: plain.distance(sources[:, None]), lambda found: found.cpu().numpy()),
        "cotangent Laplacian": Operation(lambda: m.cotangent_laplacian(vertices, faces), matrix),
        "closest points": Operation(lambda: m.closest_points(points, mesh), lambda found: found.distance.cpu().numpy()),
        "signed distance": Operation(lambda: m.signed_distance(points, mesh), lambda found: found.cpu().numpy()),
        "samples": Operation(
            lambda: m.sample_surface(mesh, given.samples, generator=generator),
            lambda found: found.points.cpu().numpy(),
        ),
    }


def libigl(given: Given, threads: int, device: str) -> Library:
    import igl

    vertices, faces, points = given.vertices, given.faces, given.points.astype(np.float64)
    kind = igl.SignedDistanceType.SIGNED_DISTANCE_TYPE_PSEUDONORMAL

    def factors() -> Any:
        data = igl.HeatGeodesicsData()
        igl.heat_geodesics_precompute(vertices, faces, data)
        return data

    data = factors()

    def solve(sources: Any) -> Any:
        return np.stack([igl.heat_geodesics_solve(data, sources[k : k + 1]) for k in range(len(sources))])

    return {
        "geodesics, factors": Operation(factors, lambda found: None),
        "geodesics, one": Operation(lambda: solve(given.sources[:1])),
        "geodesics, each": Operation(lambda: solve(given.sources)),
        "heat alone, each": Operation(lambda: solve(given.sources)),
        "cotangent Laplacian": Operation(lambda: igl.cotmatrix(vertices, faces), lambda found: -found),
        "closest points": Operation(
            lambda: igl.point_mesh_squared_distance(points, vertices, faces), lambda found: np.sqrt(found[0])
        ),
        "signed distance": Operation(
            lambda: igl.signed_distance(points, vertices, faces, kind), lambda found: found[0]
        ),
        "samples": Operation(lambda: igl.random_points_on_mesh(given.samples, vertices, faces), lambda found: found[2]),
    }


def potpourri3d(given: Given, threads: int, device: str) -> Library:
    import potpourri3d as p

    vertices, faces = given.vertices, given.faces
    solver = p.MeshHeatMethodDistanceSolver(vertices, faces)

    def solve(sources: Any) -> Any:
        return np.stack([solver.compute_distance(source) for source in sources])

    return {
        "geodesics, factors": Operation(lambda: p.MeshHeatMethodDistanceSolver(vertices, faces), lambda found: None),
        "geodesics, one": Operation(lambda: solve(given.sources[:1])),
        "geodesics, each": Operation(lambda: solve(given.sources)),
        "heat alone, each": Operation(lambda: solve(given.sources)),
        "cotangent Laplacian": Operation(lambda: p.cotan_laplacian(vertices, faces), lambda found: found),
    }


def open3d(given: Given, threads: int, device: str) -> Library:
    import open3d as o3d

    core: Any = o3d.core  # its stubs do not know its overloads
    tensor: Any = o3d.t
    points = core.Tensor(given.points)
    mesh = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(given.vertices), o3d.utility.Vector3iVector(given.faces.astype(np.int32))
    )
    flat = tensor.geometry.TriangleMesh.from_legacy(mesh)

    def scene() -> Any:
        found = tensor.geometry.RaycastingScene(nthreads=threads)
        found.add_triangles(flat)
        return found

    return {
        "closest points": Operation(
            lambda: scene().compute_closest_points(points, nthreads=threads)["points"].numpy(),
            lambda found: np.linalg.norm(given.points.astype(np.float64) - found, axis=1),
        ),
        "signed distance": Operation(
            lambda: scene().compute_signed_distance(points, nthreads=threads), lambda found: found.numpy()
        ),
        "samples": Operation(
            lambda: mesh.sample_points_uniformly(given.samples), lambda found: np.asarray(found.points)
        ),
    }


def trimesh(given: Given, threads: int, device: str) -> Library:
    import trimesh as t

    points = given.points.astype(np.float64)
    fresh = lambda: t.Trimesh(given.vertices, given.faces, process=False)  # noqa: E731, a mesh keeps its tree
    return {
        "closest points": Operation(lambda: t.proximity.closest_point(fresh(), points), lambda found: found[1]),
        "signed distance": Operation(lambda: t.proximity.signed_distance(fresh(), points), lambda found: -found),
        "samples": Operation(lambda: t.sample.sample_surface(fresh(), given.samples)[0]),
    }
