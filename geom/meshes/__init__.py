"""Triangle meshes: the value `Mesh`, geometry, Laplacians, samples, distances, geodesics, tetrahedra, remeshing.

What moving vertices have (normals, areas, Laplacians) takes (vertices, faces), batches of vertices where that makes
sense. What a whole surface is asked takes a `Mesh`. Where many questions follow, a solver keeps what they share:
`SurfaceTree` for distances to a surface, `HeatGeodesics` for those along it.
"""

from geom.meshes.distance import ClosestPoints, SurfaceTree, closest_points, signed_distance, winding_number
from geom.meshes.geodesics import HeatGeodesics, geodesic_distance
from geom.meshes.geometry import (
    FaceAdjacency,
    MassProperties,
    edges,
    face_adjacency,
    face_areas,
    face_normals,
    mass_properties,
    vertex_normals,
)
from geom.meshes.isosurface import marching_cubes
from geom.meshes.laplacian import cotangent_laplacian, uniform_laplacian, vertex_areas
from geom.meshes.mesh import Mesh
from geom.meshes.sampling import SurfaceSamples, sample_surface
from geom.meshes.simplification import decimate
from geom.meshes.subdivision import smooth, subdivide
from geom.meshes.tetrahedra import Tetrahedra, tetrahedralize

__all__ = [
    "Mesh",
    "face_normals",
    "vertex_normals",
    "face_areas",
    "vertex_areas",
    "edges",
    "FaceAdjacency",
    "face_adjacency",
    "MassProperties",
    "mass_properties",
    "cotangent_laplacian",
    "uniform_laplacian",
    "SurfaceSamples",
    "sample_surface",
    "ClosestPoints",
    "SurfaceTree",
    "closest_points",
    "winding_number",
    "signed_distance",
    "HeatGeodesics",
    "geodesic_distance",
    "Tetrahedra",
    "tetrahedralize",
    "marching_cubes",
    "subdivide",
    "smooth",
    "decimate",
]
