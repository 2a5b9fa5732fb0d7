"""Finer meshes, and smoother ones."""

from math import cos, pi

import torch
from torch import Tensor

from geom.checks import check_choice, check_integer, check_points, describe
from geom.errors import ShapeError
from geom.meshes.geometry import edges, half_edges, unique_pairs
from geom.meshes.mesh import Mesh

__all__ = ["smooth", "subdivide"]

_PASS = 0.1  # Taubin's pass-band frequency: of the largest eigenvalue 2, what is smoother than this stays


def subdivide(mesh: Mesh, *, steps: int = 1, scheme: str = "loop") -> Mesh:
    """Cut each face into four at the middles of its edges, step by step.

    Old vertices keep their numbers; those on edge e, in the order of `edges`, are V + e. Face f becomes 4 f to 4 f + 3:
    the three at its corners, then the one in the middle.

    Args:
        mesh: its edges may have borders; an edge of more than two faces is treated as a border.
        steps: how often, at least 0.
        scheme: "loop", which tends to a smooth surface (Loop 1987, Eq. (2) and (3); borders become cubic B-splines); or
            "midpoint", which leaves the surface where it is.

    Returns: Mesh; colours are interpolated, normals are left out.
    Raises: ShapeError.

    >>> subdivide(Mesh(torch.eye(3), torch.tensor([[0, 1, 2]])), scheme="midpoint").vertices[3].tolist()
    [0.5, 0.5, 0.0]

    Guarantees: differentiable (in vertices and colours); deterministic on the CPU; 4e-16 f64, 3e-7 f32 of the extent
    """
    check_choice(scheme, ("loop", "midpoint"), "scheme")
    check_points(mesh.vertices, "mesh.vertices")
    for _ in range(check_integer(steps, "steps", 0)):
        mesh = _refine(mesh, scheme == "loop")
    return mesh


def smooth(mesh: Mesh, *, steps: int = 10, strength: float = 0.5, keep_volume: bool = True) -> Mesh:
    """Move vertices toward the mean of their neighbours: x + strength (mean - x), step by step.

    With `keep_volume` each step is followed by one away from it, of strength 1 / (0.1 - 1 / strength), so that only
    what is rough is taken away; without, the body shrinks. Borders move along.

    Args: mesh; steps, at least 0; strength in (0, 1].
    Returns: Mesh with the same faces and colours, without normals.
    Raises: ShapeError.
    Taubin 1995, Sec. 4.

    Guarantees: differentiable (in the vertices); deterministic on the CPU; 4e-15 f64, 2e-6 f32 of the extent, 10 steps
    """
    x = check_points(mesh.vertices, "mesh.vertices")
    if not 0 < float(strength) <= 1:
        raise ShapeError(f"strength: expected a number in (0, 1], got {describe(strength)}")
    pairs = edges(mesh.faces)
    start, stop = torch.cat([pairs, pairs.flip(1)]).unbind(-1)
    number = torch.bincount(start, minlength=len(x))[:, None]
    factors = [strength, 1 / (_PASS - 1 / strength)] if keep_volume else [strength]
    for factor in factors * check_integer(steps, "steps", 0):
        mean = torch.zeros_like(x).index_add(0, start, x[stop]) / number.clamp(min=1)
        x = torch.where(number > 0, x + factor * (mean - x), x)
    return Mesh(x, mesh.faces, colors=mesh.colors)


def _refine(mesh: Mesh, loop: bool) -> Mesh:
    vertices, faces, count = mesh.vertices, mesh.faces, len(mesh.vertices)
    pairs, which, number = unique_pairs(half_edges(faces).sort(-1).values)
    ab, bc, ca = (which + count).reshape(3, -1).unbind(0)
    a, b, c = faces.unbind(-1)
    cut = [torch.stack(corners, -1) for corners in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    halves = vertices[pairs].mean(1)
    if loop:
        inner = number == 2
        opposite = torch.zeros_like(halves).index_add(0, which, vertices[faces[:, [2, 0, 1]].mT.flatten()])
        made = torch.where(inner[:, None], 0.75 * halves + 0.125 * opposite, halves)
        vertices = _even(vertices, pairs, inner)
        halves = made
    colors = None if mesh.colors is None else torch.cat([mesh.colors, mesh.colors[pairs].mean(1)])
    return Mesh(torch.cat([vertices, halves]), torch.stack(cut, 1).reshape(-1, 3), colors=colors)


def _even(x: Tensor, pairs: Tensor, inner: Tensor) -> Tensor:
    """Where the old vertices go: on a border by its two neighbours there, else by all."""

    def around(chosen: Tensor) -> tuple[Tensor, Tensor]:
        start, stop = torch.cat([chosen, chosen.flip(1)]).unbind(-1)
        number = torch.bincount(start, minlength=len(x))
        return torch.zeros_like(x).index_add(0, start, x[stop]), number

    total, number = around(pairs)
    ends, border = around(pairs[~inner])
    most = int(number.max()) if len(number) else 0
    table = [0.0, *((5 / 8 - (3 / 8 + cos(2 * pi / n) / 4) ** 2) / n for n in range(1, most + 1))]
    beta = torch.tensor(table, dtype=x.dtype, device=x.device)[number][:, None]
    smooth = (1 - number[:, None] * beta) * x + beta * total
    edge = torch.where(border[:, None] == 2, 0.75 * x + 0.125 * ends, x)  # where several borders meet it stays
    return torch.where(border[:, None] > 0, edge, smooth)
