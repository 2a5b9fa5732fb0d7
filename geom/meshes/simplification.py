"""Fewer faces for the same shape."""

import torch

from geom.checks import check_integer, check_points
from geom.errors import MissingDependencyError
from geom.meshes.distance import closest_points
from geom.meshes.mesh import Mesh

__all__ = ["decimate"]


def decimate(mesh: Mesh, count: int) -> Mesh:
    """Collapse edges until at most about `count` faces are left, those first that least change the shape.

    Garland & Heckbert 1997, by the package fast-simplification (MIT), in float64. Where collapsing
    would fold the surface it stops earlier.

    Args: mesh; count >= 1 faces to keep.
    Returns: Mesh; colours are those of the closest places on the mesh before, normals are left out. A mesh of no more
    than `count` faces comes back as it is, without normals.
    Raises: ShapeError; MissingDependencyError without fast-simplification (`pip install 'geom-toolkit[mesh]'`).

    Guarantees: not differentiable; deterministic
    """
    check_integer(count, "count")
    try:
        from fast_simplification import simplify
    except ImportError:
        raise MissingDependencyError("fast-simplification", extra="mesh", purpose="decimation") from None
    vertices = check_points(mesh.vertices, "mesh.vertices").detach()
    if len(mesh.faces) <= count:
        return Mesh(vertices, mesh.faces, colors=mesh.colors)
    low = vertices.amin(0)
    scale = (vertices - low).amax()  # its thresholds are made for bodies of size about 1
    scale = torch.where(scale > 0, scale, 1.0)
    arrays = ((vertices - low) / scale).double().cpu().numpy(), mesh.faces.cpu().int().numpy()
    points, faces, *_ = simplify(*arrays, target_count=count)
    made = low + scale * torch.from_numpy(points).to(vertices)
    kept = torch.from_numpy(faces).to(mesh.faces)
    if mesh.colors is None:
        return Mesh(made, kept)
    close = closest_points(made, Mesh(vertices, mesh.faces))
    mix = (close.barycentric[..., None].to(mesh.colors) * mesh.colors[mesh.faces[close.faces]]).sum(1)
    return Mesh(made, kept, colors=mix)
