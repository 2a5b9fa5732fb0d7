"""From points to a surface: the closest place on it, and on which side of it a point lies.

A tree to build once and ask often, and one-shot functions. Each has a Warp kernel (CPU and CUDA) and a torch twin by
brute force, which is its oracle.
"""

from math import pi
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_points, check_same
from geom.errors import ShapeError
from geom.meshes.geometry import area_vectors, length, unit
from geom.meshes.mesh import Mesh
from geom.points.tree import NeighborTree
from geom.values import Value, value

__all__ = ["ClosestPoints", "SurfaceTree", "closest_points", "signed_distance", "winding_number"]

_CHUNK = 1 << 20  # pairs of a point and a face that the twin holds at once


class ClosestPoints(NamedTuple):
    """`distance` (N,); `points` (N, 3) on the surface; their `faces` (N,) int64 and `barycentric` coordinates (N, 3),
    at least 0, sum 1."""

    distance: Tensor
    points: Tensor
    faces: Tensor
    barycentric: Tensor


@value
class SurfaceTree(Value):
    """A mesh prepared for distance queries: a tree of eights over its triangles. Build once, ask often.

    Fields are the kernels' own arrays (see `geom.kernels.triangles`); make one with `SurfaceTree.build`. Gradients
    flow to the points and to the vertices of the mesh it was built from.

    >>> tree = SurfaceTree.build(Mesh(torch.eye(3), torch.tensor([[0, 1, 2]])))
    >>> tree.closest(torch.tensor([[2., 0, 0], [0, 0, 3]])).distance.tolist()
    [1.0, 2.0]
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int64[Tensor, "f 3"]
    triangles: Float[Tensor, "f 3 3"]
    index: Int64[Tensor, " f"]
    boxes: Float[Tensor, "nodes 6 8"]
    moments: Float[Tensor, "nodes 7 8"]
    starts: Int64[Tensor, " levels"]

    @classmethod
    def build(cls, mesh: Mesh) -> "SurfaceTree":
        """Sort and box the triangles. O(F log F).

        Args: mesh with at least one face, of finite vertices.
        Raises: ShapeError.

        Guarantees: not differentiable; deterministic; exact f64, exact f32
        """
        vertices, faces = _checked(mesh)
        corners = vertices.detach()[faces]
        index = NeighborTree.build(corners.mean(1)).leaf_index.flatten()[: len(faces)].long()  # a compact order
        triangles = corners[index].contiguous()
        return cls(vertices, faces, triangles, index, *_nodes(triangles))

    def closest(self, points: Float[Tensor, "n 3"]) -> ClosestPoints:
        """The closest place on the surface to each point; as `geom.meshes.closest_points`."""
        query = self._asked(points)
        face = _closest(query.detach(), self.triangles, self.index, self.boxes, self.starts)
        return _project(query, self.vertices, self.faces, face)

    def winding_number(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """How often the surface winds around each point; as `geom.meshes.winding_number`."""
        query = self._asked(points).detach()
        return _winding(query, self.triangles, self.index, self.boxes, self.starts, self.moments)

    def signed_distance(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Distance to the surface, below 0 inside; as `geom.meshes.signed_distance`."""
        return _signed(points, self.vertices, self.faces, self.closest(points), self.winding_number(points))

    def _asked(self, points: Tensor) -> Tensor:
        check_same(check_points(points), self.triangles, "points and mesh")
        return points


def closest_points(points: Float[Tensor, "n 3"], mesh: Mesh, *, backend: str = "auto") -> ClosestPoints:
    """The closest place on a surface to each point, exactly; among equally close faces, that of the lowest index.

    Args: points (N, 3), dtype and device of the mesh; mesh with at least one face; backend "auto", "warp" (a tree) or
    "torch" (brute force, the oracle; "auto" under torch.func).
    Returns: ClosestPoints(distance (N,), points (N, 3), faces (N,), barycentric (N, 3)). Gradients flow to points and
    vertices; that of a distance 0 is 0. Faces without area count as their longest side.
    Raises: ShapeError.

    >>> closest_points(torch.tensor([[1., 1, 1]]), Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))).distance
    tensor([1.1547])

    Guarantees: differentiable (points on the surface); deterministic; 1e-15 f64, 5e-7 f32 of the extent
    """
    from geom.kernels import bridge

    vertices, faces = _checked(mesh)
    check_same(check_points(points), vertices, "points and mesh")
    if bridge.choose(backend, points, vertices):
        return SurfaceTree.build(mesh).closest(points)
    return _project(points, vertices, faces, _nearest_face(points.detach(), vertices.detach()[faces]))


def winding_number(points: Float[Tensor, "n 3"], mesh: Mesh, *, backend: str = "auto") -> Float[Tensor, " n"]:
    """How often a surface winds around each point: the sum of its faces' solid angles over 4 pi.

    1 inside a closed surface and 0 outside; between them where it has holes, more where parts overlap (Jacobson et al.
    2013, Eq. (6)). The tree counts groups of faces three times their size away as dipoles (Barill et al. 2018).

    Args: points (N, 3), dtype and device of the mesh; mesh with at least one face, counter-clockwise seen from outside;
    backend "auto", "warp" (a tree) or "torch" (brute force and exact; "auto" under torch.func).
    Returns: (N,). On the surface itself it may be any number between those of the two sides.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; 5e-2 (tree), 1e-12 f64, 1e-4 f32 (brute force)
    """
    from geom.kernels import bridge

    vertices, faces = _checked(mesh)
    check_same(check_points(points), vertices, "points and mesh")
    if bridge.choose(backend, points, vertices):
        return SurfaceTree.build(mesh).winding_number(points)
    return _solid_angles(points.detach(), vertices.detach()[faces])


def signed_distance(points: Float[Tensor, "n 3"], mesh: Mesh, *, backend: str = "auto") -> Float[Tensor, " n"]:
    """Distance to a surface, below 0 inside: where it winds around the point more than half a time.

    Holes and overlapping parts do no harm to the sign; inside out, a surface has no inside.

    Args: as `closest_points`; faces counter-clockwise seen from outside.
    Returns: (N,), in the unit of the mesh. Gradients flow to points and vertices; at distance 0, the normal.
    Raises: ShapeError.

    >>> tetrahedron = Mesh(torch.cat([torch.zeros(1, 3), torch.eye(3)]),
    ...     torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))
    >>> signed_distance(torch.tensor([[-1., 0.25, 0.25], [0.125, 0.25, 0.25]]), tetrahedron).tolist()
    [1.0, -0.125]

    Guarantees: differentiable (points on the surface); deterministic; 1e-15 f64, 5e-7 f32 of the extent
    """
    from geom.kernels import bridge

    vertices, faces = _checked(mesh)
    check_same(check_points(points), vertices, "points and mesh")
    if bridge.choose(backend, points, vertices):
        return SurfaceTree.build(mesh).signed_distance(points)
    corners = vertices.detach()[faces]
    close = _project(points, vertices, faces, _nearest_face(points.detach(), corners))
    return _signed(points, vertices, faces, close, _solid_angles(points.detach(), corners))


def _checked(mesh: Mesh) -> tuple[Tensor, Tensor]:
    if not len(mesh.faces):
        raise ShapeError("mesh: expected at least one face, got none")
    return check_points(mesh.vertices, "mesh.vertices"), mesh.faces


def _signed(points: Tensor, vertices: Tensor, faces: Tensor, close: ClosestPoints, winding: Tensor) -> Tensor:
    sign = torch.where(winding > 0.5, -1.0, 1.0).to(points.dtype)
    corners = faces[close.faces]
    place = (close.barycentric.detach()[..., None] * vertices[corners]).sum(-2)
    height = ((points - place) * unit(area_vectors(vertices.detach(), corners))).sum(-1)  # its gradient is the normal
    rounding = 8 * torch.finfo(points.dtype).eps * points.detach().abs().amax(-1)
    return torch.where(close.distance.detach() <= rounding, height, sign * close.distance)


def _project(points: Tensor, vertices: Tensor, faces: Tensor, face: Tensor) -> ClosestPoints:
    """The closest point of the given face (N,) to each point, through its barycentric coordinates, for derivatives."""
    corners = vertices[faces[face]]
    barycentric = _barycentric(points, corners)
    place = (barycentric[..., None] * corners).sum(-2)
    return ClosestPoints(length(points - place), place, face, barycentric)


def _barycentric(points: Tensor, corners: Tensor) -> Tensor:
    """Barycentric coordinates (..., 3) of the point closest to p (..., 3) in a triangle (..., 3, 3)."""
    a, b, c = corners.unbind(-2)
    u, v, d = b - a, c - a, points - a
    normal = torch.linalg.cross(u, v)
    square = normal.square().sum(-1)
    safe = torch.where(square > 0, square, 1.0)
    s = (torch.linalg.cross(*torch.broadcast_tensors(d, v)) * normal).sum(-1) / safe
    r = (torch.linalg.cross(*torch.broadcast_tensors(u, d)) * normal).sum(-1) / safe
    inside = (square > 0) & (s >= 0) & (r >= 0) & (s + r <= 1)
    best = torch.stack([1 - s - r, s, r], -1)
    least = torch.where(inside, -1.0, float("inf")).to(points.dtype)  # what stands over the face is nearest to it
    for first in range(3):
        second = (first + 1) % 3
        start, side = corners[..., first, :], corners[..., second, :] - corners[..., first, :]
        extent = side.square().sum(-1)
        t = ((points - start) * side).sum(-1) / torch.where(extent > 0, extent, 1.0)
        t = t.clamp(0, 1)
        parts = [torch.zeros_like(t)] * 3
        parts[first], parts[second] = 1 - t, t
        gap = (points - start - t[..., None] * side).square().sum(-1)
        nearer = gap < least
        best = torch.where(nearer[..., None], torch.stack(parts, -1), best)
        least = torch.where(nearer, gap, least)
    return best


def _nearest_face(points: Tensor, corners: Tensor) -> Tensor:
    """The twin: every point against every face."""
    found = [torch.empty(0, dtype=torch.int64, device=points.device)]
    for chunk in points.split(max(1, _CHUNK // len(corners))) if len(points) else ():
        barycentric = _barycentric(chunk[:, None], corners)
        gap = chunk[:, None] - (barycentric[..., None] * corners).sum(-2)
        found.append(gap.square().sum(-1).argmin(-1))
    return torch.cat(found)


def _solid_angles(points: Tensor, corners: Tensor) -> Tensor:
    """The twin: van Oosterom & Strackee 1983, Eq. (8), over every face."""
    found = [points.new_empty(0)]
    for chunk in points.split(max(1, _CHUNK // len(corners))) if len(points) else ():
        a, b, c = (corners - chunk[:, None, None]).unbind(-2)
        x, y, z = length(a), length(b), length(c)
        top = (a * torch.linalg.cross(b, c)).sum(-1)
        bottom = x * y * z + (a * b).sum(-1) * z + (b * c).sum(-1) * x + (c * a).sum(-1) * y
        found.append(torch.where(top == 0, 0.0, torch.atan2(top, bottom)).sum(-1) / (2 * pi))
    return torch.cat(found)


def _nodes(triangles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (nodes, 6, 8), moments (nodes, 7, 8) and the levels' first nodes; see `geom.kernels.triangles`."""
    low, high = triangles.amin(1), triangles.amax(1)
    a, b, c = triangles.unbind(1)
    vector = torch.linalg.cross(b - a, c - a) / 2
    area = length(vector)
    middle = triangles.mean(1) * area[:, None]
    all_boxes, all_moments, starts = [], [], [0]
    while True:
        safe = torch.where(area > 0, area, 1.0)[:, None]
        centre = torch.where(area[:, None] > 0, middle / safe, (low + high) / 2)
        reach = torch.maximum(high - centre, centre - low).square().sum(-1, keepdim=True)
        missing = -len(low) % 8
        pad = [
            torch.nn.functional.pad(x, (0, 0, 0, missing), value=fill)
            for x, fill in (
                (low, float("inf")),
                (high, float("-inf")),
                (vector, 0.0),
                (centre, 0.0),
                (reach, 0.0),
                (area[:, None], 0.0),
                (middle, 0.0),
            )
        ]
        low, high, vector, centre, reach, area, middle = (x.reshape(-1, 8, x.shape[1]) for x in pad)
        all_boxes.append(torch.cat([low, high], -1).mT)
        all_moments.append(torch.cat([vector, centre, reach], -1).mT)
        low, high = low.amin(1), high.amax(1)
        vector, area, middle = vector.sum(1), area.sum(1)[:, 0], middle.sum(1)
        if len(low) == 1:
            break
        starts.append(starts[-1] + len(low))
    levels = torch.tensor(starts, device=triangles.device)
    return torch.cat(all_boxes).contiguous(), torch.cat(all_moments).contiguous(), levels


@torch.library.custom_op(
    "geom::closest_triangle",
    mutates_args=(),
    schema="(Tensor query, Tensor triangles, Tensor index, Tensor boxes, Tensor starts) -> Tensor",
)
def _closest(query: Tensor, triangles: Tensor, index: Tensor, boxes: Tensor, starts: Tensor) -> Tensor:
    from geom.kernels import bridge
    from geom.kernels.triangles import CHUNK, closest_triangle

    face = torch.empty(len(query), dtype=torch.int64, device=query.device)
    args = (query.contiguous(), triangles, index, boxes, starts, len(starts), len(query), face)
    chunks = -(-len(query) // CHUNK)
    bridge.launch(closest_triangle[query.dtype], chunks, *args, device=query.device, grain=2048 // CHUNK)
    return face


@_closest.register_fake
def _(query: Tensor, triangles: Tensor, index: Tensor, boxes: Tensor, starts: Tensor) -> Tensor:
    return query.new_empty(query.shape[0], dtype=torch.int64)


@torch.library.custom_op(
    "geom::winding_number",
    mutates_args=(),
    schema="(Tensor query, Tensor triangles, Tensor index, Tensor boxes, Tensor starts, Tensor moments) -> Tensor",
)
def _winding(query: Tensor, triangles: Tensor, index: Tensor, boxes: Tensor, starts: Tensor, moments: Tensor) -> Tensor:
    from geom.kernels import bridge
    from geom.kernels.triangles import winding_number as kernel

    winding = query.new_empty(len(query))
    args = (query.contiguous(), triangles, index, boxes, starts, len(starts), moments, winding)
    bridge.launch(kernel[query.dtype], len(query), *args, device=query.device, grain=2048)
    return winding


@_winding.register_fake
def _(query: Tensor, triangles: Tensor, index: Tensor, boxes: Tensor, starts: Tensor, moments: Tensor) -> Tensor:
    return query.new_empty(query.shape[0])
