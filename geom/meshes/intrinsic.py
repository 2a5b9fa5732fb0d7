"""The Delaunay triangulation of a surface from within: the same surface and vertices, better triangles."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["APART", "Corners", "Triangulation", "corners", "intrinsic_delaunay", "operators"]

Array = NDArray[Any]
_SLACK = 1e-12  # of the mean length: by so much at least two sides of a triangle are longer than the third
_ROUND = 1e-9  # the sine of two opposite angles' sum below which an edge stays, for rounding
_MOST = 1000  # rounds of flips, against cycles that rounding could make
APART = 1e3  # radians between angles of one fan and another at a vertex: more than any fan has


class Triangulation(NamedTuple):
    """`faces` (F, 3) and the `lengths` (F, 3) of their sides, each opposite its corner, in units of `unit`, metres;
    `twins` (F, 3), for each side the other that is glued to it, 3 face + corner, or -1; `border` (V,), which vertices
    stand at an edge of one face."""

    faces: Array
    lengths: Array
    twins: Array
    border: Array
    unit: float


class Corners(NamedTuple):
    """By vertex: `starts` (V + 1,), the first of its corners; `ends` (3 F, 2), the other vertices of each corner's face
    in its order; `shapes` (3 F, 8), as `geom.kernels.geodesics` reads them; `turn` (V,), the angle around."""

    starts: Array
    ends: Array
    shapes: Array
    turn: Array


def intrinsic_delaunay(vertices: Array, faces: Array) -> Triangulation:
    """Flip edges along the surface until opposite angles nowhere exceed pi in sum; lengths are all that it takes.

    Edges bend over the old ones then, and two vertices may share several. The surface stays as it is, but where faces
    are flat: all lengths grow by what those lack to be triangles. Faces are turned over where neighbours run against
    each other. Edges of three and more faces, and those where a surface of one side closes, stay as they are. Faces
    that name a vertex twice are left out.
    Fisher, Springborn, Schröder & Bobenko 2007; flat faces as Sharp & Crane 2020, Sec. 4.5.
    """
    faces = _orient(faces[(faces != np.roll(faces, 1, 1)).all(1)], len(vertices))
    lengths = np.linalg.norm(vertices[np.roll(faces, -1, 1)] - vertices[np.roll(faces, -2, 1)], axis=2)
    unit = float(lengths.mean()) if len(faces) else 1.0
    lengths = lengths / (unit or 1.0)
    if len(faces):
        lengths += max(0.0, _SLACK - float((lengths.sum(1, keepdims=True) - 2 * lengths).min()))
    twins, border = _glue(faces, len(vertices))
    return Triangulation(*_flip(faces, lengths, twins), border, unit)


def _pairs(faces: Array, count: int) -> tuple[Array, Array, Array, Array]:
    """Where each side starts and stops (3 F,); the two sides (P, 2) of edges of two faces; which sides are alone."""
    start, stop = np.roll(faces, -1, 1).ravel(), np.roll(faces, -2, 1).ravel()
    keys = np.minimum(start, stop) * count + np.maximum(start, stop)
    _, which, number = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(which, kind="stable")
    return start, stop, order[number[which[order]] == 2].reshape(-1, 2), number[which] == 1


def _orient(faces: Array, count: int) -> Array:
    """The faces, some turned over such that neighbours run alike, as far as the surface has two sides."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    total = len(faces)
    start, _, pairs, _ = _pairs(faces, count)
    f, g = pairs.T // 3
    odd = total * (start[pairs[:, 0]] == start[pairs[:, 1]])
    rows, columns = np.concatenate([f, f + total]), np.concatenate([g + odd, g + total - odd])
    graph = sparse.coo_array((np.ones(len(rows)), (rows, columns)), (2 * total, 2 * total))  # each face and its back
    part = connected_components(graph, directed=False)[1]
    return np.where((part[:total] > part[total:])[:, None], faces[:, [0, 2, 1]], faces)


def _glue(faces: Array, count: int) -> tuple[Array, Array]:
    """The twins of the sides, and which vertices are on a border."""
    start, stop, pairs, alone = _pairs(faces, count)
    pairs = pairs[start[pairs[:, 0]] == stop[pairs[:, 1]]]
    twins = np.full(3 * len(faces), -1)
    twins[pairs] = pairs[:, ::-1]
    border = np.zeros(count, dtype=bool)
    border[start[alone]] = border[stop[alone]] = True
    return twins.reshape(-1, 3), border


def _angles(lengths: Array) -> tuple[Array, Array]:
    """Four areas (..., 1), and those times the cotangents of the corners (..., 3). Heron as Kahan 1986 adds it."""
    c, b, a = np.moveaxis(np.sort(lengths, -1), -1, 0)
    square = (a + (b + c)) * (c - (a - b)) * (c + (a - b)) * (a + (b - c))
    sides = lengths**2
    return np.sqrt(np.maximum(square, 0))[..., None], sides.sum(-1, keepdims=True) - 2 * sides


def _flip(faces: Array, lengths: Array, twins: Array) -> tuple[Array, Array, Array]:
    faces, lengths, flat = faces.copy(), lengths.copy(), twins.ravel().copy()
    sides = np.arange(len(flat))
    for _ in range(_MOST):
        sides = np.unique(np.maximum(sides, flat[sides])[flat[sides] >= 0])  # each edge by one of its sides
        f, g = sides // 3, flat[sides] // 3
        area, cot = (np.stack(x) for x in zip(_angles(lengths[f]), _angles(lengths[g]), strict=True))
        each = np.arange(len(sides))
        cot = np.stack([cot[0, each, sides % 3], cot[1, each, flat[sides] % 3]])
        area = area[..., 0]
        sine = (cot[0] * area[1] + cot[1] * area[0]) / (np.hypot(cot[0], area[0]) * np.hypot(cot[1], area[1]))
        bad = np.flatnonzero((sine < -_ROUND) & (f != g))
        if not len(bad):
            break
        # of those around a face the worst goes first; the others wait
        bad = bad[np.argsort(sine[bad], kind="stable")]
        rank, f, g = np.arange(len(bad)), f[bad], g[bad]
        first = np.full(len(faces), len(bad))
        np.minimum.at(first, f, rank)
        np.minimum.at(first, g, rank)
        turn = (first[f] == rank) & (first[g] == rank)
        wait, f, g, i = sides[bad[~turn]], f[turn], g[turn], sides[bad[turn]] % 3
        j = flat[3 * f + i] % 3
        # f = (c, a, b) and g = (d, b, a) become (c, a, d) and (d, b, c)
        i1, i2, j1, j2 = (i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3
        c, a, b, d = faces[f, i], faces[f, i1], faces[f, i2], faces[g, j]
        ab, bc, ca, da, bd = lengths[f, i], lengths[f, i1], lengths[f, i2], lengths[g, j1], lengths[g, j2]
        along = (ca**2 - bc**2 - da**2 + bd**2) / (2 * ab)
        across = (area[0] + area[1])[bad[turn]] / (2 * ab)
        cd = np.hypot(along, across)
        faces[f], faces[g] = np.stack([c, a, d], 1), np.stack([d, b, c], 1)
        lengths[f], lengths[g] = np.stack([da, cd, ca], 1), np.stack([bc, cd, bd], 1)
        old = np.stack([3 * f + i1, 3 * f + i2, 3 * g + j1, 3 * g + j2])
        new = np.stack([3 * g, 3 * f + 2, 3 * f, 3 * g + 2])  # where bc, ca, ad, db are now
        moved = np.arange(len(flat))
        moved[old] = new
        other = np.where(flat[old] >= 0, moved[flat[old]], -1)
        flat[new] = other
        flat[other[other >= 0]] = new[other >= 0]
        flat[3 * f + 1], flat[3 * g + 1] = 3 * g + 1, 3 * f + 1
        sides = np.concatenate([moved[wait], new.ravel()])
    return faces, lengths, flat.reshape(-1, 3)


def operators(surface: Triangulation) -> tuple[Any, Any, Array]:
    """The gradient of a function on the vertices in each face's own plane (2 F, V), the integrated divergence (V, 2 F),
    and the faces' areas (F,). Divergence times gradient is the cotangent Laplacian."""
    from scipy import sparse

    faces, lengths = surface.faces, surface.lengths
    count, size = len(faces), len(surface.border)
    area, cot = _angles(lengths)
    base = lengths[:, 2]
    x, y = cot[:, 0] / (2 * base), area[:, 0] / (2 * base)  # corners (0, 0), (base, 0), (x, y)
    sides = np.stack([np.stack([x - base, y], 1), np.stack([-x, -y], 1), np.stack([base, 0 * base], 1)], 1)
    double = area[:, :, None] / 2
    none = double == 0
    hats = np.where(none, 0, np.stack([-sides[..., 1], sides[..., 0]], -1) / np.where(none, 1, double))
    rows = np.broadcast_to(2 * np.arange(count)[:, None, None] + np.arange(2), hats.shape)
    columns = np.broadcast_to(faces[:, :, None], hats.shape)
    gradient = sparse.coo_array((hats.ravel(), (rows.ravel(), columns.ravel())), (2 * count, size)).tocsr()
    area = area[:, 0] / 4
    return gradient, (gradient.T @ sparse.diags_array(np.repeat(area, 2))).tocsr(), area


def corners(surface: Triangulation) -> Corners:
    """The corners around each vertex with the angles at which their sides leave it, counted over the faces' own.

    Where those close to less than a full turn they are stretched to one, as if the surface were smooth; where to more,
    or at a border, they stay. Fans of faces that meet in a vertex alone are counted far apart.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    faces, lengths, size = surface.faces, surface.lengths, len(surface.border)
    area, cot = _angles(lengths)
    angle, vertex, total = np.arctan2(area, cot).ravel(), faces.ravel(), faces.size
    following = np.full(total, -1)  # the corner behind the next side around the vertex
    glued = np.roll(surface.twins, -1, 1).ravel()
    known = np.flatnonzero(glued >= 0)
    following[known] = 3 * (glued[known] // 3) + (glued[known] + 1) % 3
    links = sparse.coo_array((np.ones(len(known)), (known, following[known])), (total, total))
    fans, fan = connected_components(links, directed=False)
    first = np.full(fans, total)
    np.minimum.at(first, fan, np.arange(total))
    opening = np.setdiff1d(np.arange(total), following)
    first[fan[opening]] = opening
    closed = np.ones(fans, dtype=bool)
    closed[fan[opening]] = False
    turn = np.bincount(fan, angle, fans)
    start, at = np.zeros(total), first
    while len(at):
        ahead = following[at]
        going = (ahead >= 0) & (ahead != first[fan[at]])
        at, ahead = at[going], ahead[going]
        start[ahead] = start[at] + angle[at]
        at = ahead
    owner = vertex[first]
    several = np.bincount(owner, minlength=size)[owner] > 1
    order = np.argsort(owner, kind="stable")
    place = np.arange(fans) - np.searchsorted(owner[order], owner[order])  # which of the vertex's fans
    start += 2 * APART * place[np.argsort(order, kind="stable")][fan]
    whole = closed & ~several
    scale = np.where(whole, np.maximum(2 * np.pi / np.maximum(turn, 1e-300), 1), 1)[fan]
    around = np.full(size, np.inf)
    around[owner[whole]] = np.maximum(turn[whole], 2 * np.pi)
    start, stop = (start * scale).reshape(-1, 3), ((start + angle) * scale).reshape(-1, 3)
    after, before = np.roll(lengths, -1, 1), np.roll(lengths, -2, 1)
    x = (lengths**2 + before**2 - after**2) / (2 * lengths)
    shapes = [lengths, x, area / (2 * lengths), np.roll(start, -1, 1), np.roll(stop, -2, 1), start, stop]
    shapes = np.stack([*shapes, scale.reshape(-1, 3)], -1).reshape(-1, 8)
    order = np.argsort(vertex, kind="stable")
    ends = np.stack([np.roll(faces, -1, 1), np.roll(faces, -2, 1)], -1).reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum(np.bincount(vertex, minlength=size))])
    return Corners(starts, ends[order], shapes[order], around)
