"""What the corners of triangles say: normals, areas, edges, neighbours, and the body they enclose.

Functions of moving vertices take (vertices, faces), vertices with any leading batch dimensions over one set of faces.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import FLOATS, check_choice, check_indices, check_positive, describe, readable
from geom.errors import ShapeError

__all__ = [
    "FaceAdjacency",
    "MassProperties",
    "edges",
    "face_adjacency",
    "face_areas",
    "face_normals",
    "mass_properties",
    "vertex_normals",
]


class FaceAdjacency(NamedTuple):
    """`faces` (P, 2) int64, pairs of faces that share an edge, the lower index first; `edges` (P, 2) int64, that edge's
    vertices, the lower index first."""

    faces: Tensor
    edges: Tensor


class MassProperties(NamedTuple):
    """`volume` (...,), `mass` (...,), `center` (..., 3), and `inertia` (..., 3, 3) about the centre."""

    volume: Tensor
    mass: Tensor
    center: Tensor
    inertia: Tensor


def face_normals(vertices: Float[Tensor, "*b v 3"], faces: Int64[Tensor, "f 3"]) -> Float[Tensor, "*b f 3"]:
    """Unit normals of the faces, (b - a) x (c - a) normalised: outside, where corners run counter-clockwise.

    Args: vertices (..., V, 3) float32 or float64, metres; faces (F, 3) int64.
    Returns: (..., F, 3); 0, with gradient 0, for a face without area.
    Raises: ShapeError.

    >>> face_normals(torch.eye(3), torch.tensor([[0, 1, 2]]))
    tensor([[0.5774, 0.5774, 0.5774]])

    Guarantees: differentiable (faces without area); deterministic; 4e-16 f64, 2e-7 f32 on well-shaped faces
    """
    check_surface(vertices, faces)
    return unit(area_vectors(vertices, faces))


def face_areas(vertices: Float[Tensor, "*b v 3"], faces: Int64[Tensor, "f 3"]) -> Float[Tensor, "*b f"]:
    """Areas of the faces, |(b - a) x (c - a)| / 2.

    Args: vertices (..., V, 3) float32 or float64, metres; faces (F, 3) int64.
    Returns: (..., F), square metres; the gradient of an area 0 is 0.
    Raises: ShapeError.

    >>> face_areas(torch.eye(3, dtype=torch.float64), torch.tensor([[0, 1, 2]])).item() * 2 / 3**0.5
    1.0

    Guarantees: differentiable (faces without area); deterministic; 8e-16 f64, 3e-7 f32 on well-shaped faces
    """
    check_surface(vertices, faces)
    return length(area_vectors(vertices, faces)) / 2


def vertex_normals(
    vertices: Float[Tensor, "*b v 3"], faces: Int64[Tensor, "f 3"], *, weighting: str = "area"
) -> Float[Tensor, "*b v 3"]:
    """Unit normals of the vertices: the weighted sum of the normals of the faces around each, normalised.

    Args:
        vertices: (..., V, 3) float32 or float64, metres.
        faces: (F, 3) int64.
        weighting: "area", as pytorch3d; or "angle", by the face's angle at the vertex, which does not depend on how
            flat parts are cut into triangles (Thürmer & Wüthrich 1998).

    Returns: (..., V, 3); 0 where a vertex has no face, or the normals cancel.
    Raises: ShapeError.

    Guarantees: differentiable (faces without area); deterministic on the CPU; 4e-16 f64, 3e-7 f32 on smooth meshes
    """
    check_surface(vertices, faces)
    check_choice(weighting, ("area", "angle"), "weighting")
    vectors = area_vectors(vertices, faces)[..., None, :].expand(*vertices.shape[:-2], len(faces), 3, 3)
    if weighting == "angle":
        vectors = corner_angles(vertices, faces)[..., None] * unit(vectors)
    return unit(gather_corners(vectors, faces, vertices.shape[-2]))


def edges(faces: Int64[Tensor, "f 3"]) -> Int64[Tensor, "e 2"]:
    """Every edge of the faces once: vertices (i, j), i < j, in lexicographic order.

    Args: faces (F, 3) int64.
    Returns: (E, 2) int64. How many depends on the faces: not under torch.compile(fullgraph=True).
    Raises: ShapeError.

    >>> edges(torch.tensor([[0, 1, 2], [2, 1, 3]])).tolist()
    [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]

    Guarantees: not differentiable; deterministic
    """
    check_faces(faces)
    return unique_pairs(half_edges(faces).sort(-1).values)[0]


def face_adjacency(faces: Int64[Tensor, "f 3"]) -> FaceAdjacency:
    """Pairs of faces that share an edge: one at an inner edge, none at a border, every pair where more than two meet.

    Args: faces (F, 3) int64.
    Returns: FaceAdjacency(faces (P, 2), edges (P, 2)), by edge in lexicographic order.
    Raises: ShapeError.

    >>> face_adjacency(torch.tensor([[0, 1, 2], [2, 1, 3]]))
    FaceAdjacency(faces=tensor([[0, 1]]), edges=tensor([[1, 2]]))

    Guarantees: not differentiable; deterministic
    """
    check_faces(faces)
    sides = half_edges(faces).sort(-1).values
    owner = torch.arange(len(faces), device=faces.device).repeat(3)
    edge, which, _ = unique_pairs(sides)
    order = torch.argsort(which * max(1, len(faces)) + owner, stable=True)  # by edge, then by face
    which, owner = which[order], owner[order]
    pairs, borders = [], []
    for step in range(1, int(torch.bincount(which).max()) if len(which) else 1):  # 1 on a manifold
        same = which[step:] == which[:-step]
        pairs.append(torch.stack([owner[:-step], owner[step:]], -1)[same])
        borders.append(which[step:][same])
    if not pairs:
        return FaceAdjacency(faces.new_empty(0, 2), faces.new_empty(0, 2))
    found, border = torch.cat(pairs), torch.cat(borders)
    order = torch.argsort(border, stable=True)
    return FaceAdjacency(found[order], edge[border[order]])


def mass_properties(
    vertices: Float[Tensor, "*b v 3"], faces: Int64[Tensor, "f 3"], *, density: float = 1.0
) -> MassProperties:
    """Volume, mass, centre of mass and inertia of the body that closed faces enclose, exactly.

    The divergence theorem: signed sums over the tetrahedra that each face spans with one point. Faces turned inside
    out give a negative volume and mass; a body without volume gets the mean of its vertices as centre.

    Args:
        vertices: (..., V, 3) float32 or float64, metres.
        faces: (F, 3) int64, closed and counter-clockwise seen from outside.
        density: kg/m^3, above 0.

    Returns: MassProperties(volume, mass, center, inertia about the centre, kg m^2, axes of the vertices).
    Raises: ShapeError.

    >>> corner = torch.tensor([[0., 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    >>> mass_properties(corner, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])).center
    tensor([0.2500, 0.2500, 0.2500])

    Guarantees: differentiable (bodies without volume); deterministic; 4e-15 f64, 2e-6 f32 of extent^3 and extent^5
    """
    check_surface(vertices, faces)
    density = check_positive(density, "density")
    origin = vertices.mean(-2) if vertices.shape[-2] else vertices.sum(-2)
    corners = vertices[..., faces, :] - origin[..., None, None, :]
    a, b, c = corners.unbind(-2)
    volumes = (a * torch.linalg.cross(b, c)).sum(-1) / 6
    volume = volumes.sum(-1)
    flat = volume == 0
    first = (volumes[..., None] * corners.sum(-2) / 4).sum(-2)
    arm = torch.where(flat[..., None], 0.0, first / torch.where(flat, 1.0, volume)[..., None])
    # Integral of x x^T over a tetrahedron with one corner at 0: V / 20 (sum of v v^T + (sum of v)(sum of v)^T).
    weighted = volumes[..., None, None] * corners
    total = corners.sum(-2)
    second = torch.einsum("...fci,...fcj->...ij", weighted, corners)
    second = (second + torch.einsum("...fi,...fj->...ij", volumes[..., None] * total, total)) / 20
    second = density * (second - volume[..., None, None] * arm[..., :, None] * arm[..., None, :])
    trace = second.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    inertia = trace * torch.eye(3, dtype=vertices.dtype, device=vertices.device) - second
    return MassProperties(volume, density * volume, origin + arm, inertia)


def check_faces(faces: Tensor) -> None:
    """Raise ShapeError unless `faces` is an int64 tensor (F, 3) of indices from 0."""
    if not isinstance(faces, Tensor) or faces.dtype != torch.int64 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ShapeError(f"faces: expected an int64 tensor (F, 3), got {describe(faces)}")
    if readable(faces):
        check_indices(faces, 3, torch.iinfo(torch.int64).max, "faces", "F")


def check_surface(vertices: Tensor, faces: Tensor) -> None:
    """Raise ShapeError unless `vertices` is (..., V, 3) float32 or float64 and `faces` (F, 3) int64 names some."""
    if not isinstance(vertices, Tensor) or vertices.dtype not in FLOATS or vertices.shape[-1:] != (3,):
        raise ShapeError(f"vertices: expected a float32 or float64 tensor (..., V, 3), got {describe(vertices)}")
    if vertices.ndim < 2:
        raise ShapeError(f"vertices: expected a tensor (..., V, 3), got {describe(vertices)}")
    check_faces(faces)
    if readable(faces):
        check_indices(faces, 3, vertices.shape[-2], "faces", "F")


def half_edges(faces: Tensor) -> Tensor:
    """(3 F, 2): the sides (a, b) of all faces, then (b, c), then (c, a), as they run."""
    return torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def unique_pairs(pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (P, 2) of numbers from 0, each once, in lexicographic order; where each given one is; how often it came."""
    width = int(pairs.max()) + 1 if len(pairs) else 1
    keys, which, number = torch.unique(pairs[:, 0] * width + pairs[:, 1], return_inverse=True, return_counts=True)
    return torch.stack([keys // width, keys % width], -1), which, number


def area_vectors(vertices: Tensor, faces: Tensor) -> Tensor:
    """(..., F, 3): along the normal, twice the area long."""
    a, b, c = vertices[..., faces, :].unbind(-2)
    return torch.linalg.cross(b - a, c - a)


def corner_angles(vertices: Tensor, faces: Tensor) -> Tensor:
    """(..., F, 3): the angle at each corner, radians; 0 where a side has no length."""
    corners = vertices[..., faces, :]
    after, before = corners.roll(-1, -2) - corners, corners.roll(1, -2) - corners
    sine = length(torch.linalg.cross(after, before))
    cosine = (after * before).sum(-1)
    none = (sine == 0) & (cosine == 0)
    return torch.where(none, 0.0, torch.atan2(sine, torch.where(none, 1.0, cosine)))


def gather_corners(values: Tensor, faces: Tensor, count: int) -> Tensor:
    """Sums of (..., F, 3, 3) at the corners over the vertices, (..., V, 3)."""
    flat = values.flatten(-3, -2)
    return flat.new_zeros((*flat.shape[:-2], count, flat.shape[-1])).index_add(-2, faces.flatten(), flat)


def length(x: Tensor) -> Tensor:
    """Norm over the last dimension; gradient 0 at 0."""
    scale = x.detach().abs().amax(-1)  # squares of small triangles' areas leave float32's range
    zero = scale == 0
    scale = torch.where(zero, 1.0, scale)
    square = (x / scale[..., None]).square().sum(-1)
    return torch.where(zero, 0.0, scale * torch.where(zero, 1.0, square).sqrt())


def unit(x: Tensor) -> Tensor:
    """x / |x|; 0, with gradient 0, at 0."""
    size = length(x)[..., None]
    zero = size == 0
    return torch.where(zero, 0.0, x / torch.where(zero, 1.0, size))
