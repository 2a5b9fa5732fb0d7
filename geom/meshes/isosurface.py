"""Surfaces of a function on a grid: marching cubes, its table of cases derived from the cube itself."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import FLOATS, check_positive, describe
from geom.errors import ShapeError
from geom.meshes.mesh import Mesh

__all__ = ["marching_cubes"]

# Corner c of a cube stands at bits (x, y, z) of c; an edge is (its lower corner, its axis).
_EDGES = [(corner, axis) for axis in range(3) for corner in range(8) if not corner >> axis & 1]
_WIDEST = 5  # triangles in a cube, at most


def marching_cubes(
    field: Float[Tensor, "x y z"], level: float = 0.0, *, spacing: float = 1.0, origin: Tensor | None = None
) -> Mesh:
    """The surface where a function on a grid passes `level`, closed but for the grid's border, facing higher values.

    Each grid edge whose ends lie on both sides, one below the level, bears a vertex by linear interpolation. On a face
    of a cube with two such corners across from each other these are kept apart, in both cubes alike, so that no crack
    opens. Vertices are not merged where the function equals the level: faces may then have no area.

    Args:
        field: (X, Y, Z) float32 or float64, finite; sample (i, j, k) stands at origin + spacing (i, j, k). For a
            distance that is negative inside, faces look outward.
        level: the value of the surface.
        spacing: of the grid, metres.
        origin: (3,), metres; 0 if not given.

    Returns: Mesh, dtype and device of the field; gradients flow from its vertices to the field and the origin. How many
    there are depends on the data: not under torch.func.vmap, nor torch.compile(fullgraph=True).
    Raises: ShapeError.
    Lorensen & Cline 1987.

    >>> x = torch.linspace(-1, 1, 5)
    >>> ball = marching_cubes(x[:, None, None]**2 + x[:, None]**2 + x**2, 0.5, spacing=0.5)
    >>> len(ball.vertices), len(ball.faces)
    (30, 56)

    Guarantees: differentiable (in the field and the origin); deterministic; 4e-16 f64, 2e-7 f32 of the extent
    """
    if not isinstance(field, Tensor) or field.ndim != 3 or field.dtype not in FLOATS or min(field.shape) < 2:
        raise ShapeError(f"field: expected a float32 or float64 tensor (X, Y, Z) of at least 2, got {describe(field)}")
    if not bool(torch.isfinite(field).all()):
        raise ShapeError("field: expected finite numbers, got NaN or inf")
    step = check_positive(spacing, "spacing")
    if origin is not None and (not isinstance(origin, Tensor) or origin.shape != (3,)):
        raise ShapeError(f"origin: expected a float tensor (3,), got {describe(origin)}")
    device, shape = field.device, field.shape
    inside = field.detach() < level
    strides = (shape[1] * shape[2], shape[2], 1)

    numbers = torch.arange(field.numel(), device=device).reshape(shape)
    found = []
    for axis in range(3):
        low, high = inside.narrow(axis, 0, shape[axis] - 1), inside.narrow(axis, 1, shape[axis] - 1)
        found.append(numbers.narrow(axis, 0, shape[axis] - 1)[low != high] * 3 + axis)
    keys = torch.cat(found).sort().values  # a grid edge is named by its lower sample and its axis
    start, axis = keys // 3, keys % 3
    a, b = field.flatten()[start], field.flatten()[start + torch.tensor(strides, device=device)[axis]]
    place = torch.stack([start // strides[0], start // strides[1] % shape[1], start % shape[2]], -1).to(field)
    along = torch.nn.functional.one_hot(axis, 3).to(field) * ((level - a) / (b - a))[:, None]
    vertices = step * (place + along) + (0 if origin is None else origin.to(field))

    cells = [inside[tuple(slice(c >> d & 1, shape[d] - 1 + (c >> d & 1)) for d in range(3))] for c in range(8)]
    case = torch.zeros_like(cells[0], dtype=torch.uint8)
    for c, below in enumerate(cells):
        case |= below.to(torch.uint8) << c
    active = (case != 0) & (case != 255)
    table = torch.tensor(_table(), device=device)  # (256, 5, 3), -1 where there is no triangle
    corners = table[case[active].long()]
    shifts = [3 * sum((c >> d & 1) * strides[d] for d in range(3)) + axis for c, axis in _EDGES]
    names = (
        numbers[:-1, :-1, :-1][active][:, None, None] * 3 + torch.tensor(shifts, device=device)[corners.clamp(min=0)]
    )
    faces = torch.searchsorted(keys, names[corners[..., 0] >= 0])
    return Mesh(vertices, faces)


@cache
def _table() -> list[list[list[int]]]:
    """For each set of corners below the level, the triangles as numbers in `_EDGES`: 256 times 5 times 3."""
    rows = []
    for case in range(256):
        triangles = [t for loop in _loops(case) for t in _triangulate(loop)]
        rows.append([*triangles, *[[-1, -1, -1]] * (_WIDEST - len(triangles))])
    return rows


def _faces() -> list[list[int]]:
    """The corners of each side of the cube, counter-clockwise seen from outside."""
    sides = []
    for axis in range(3):
        u, v = 1 << (axis + 1) % 3, 1 << (axis + 2) % 3
        cycle = [0, u, u | v, v]
        sides += [[c | 1 << axis for c in cycle], cycle[::-1]]
    return sides


def _loops(case: int) -> list[list[int]]:
    """The closed lines in which the surface cuts the cube's sides, each as the cube's edges in order."""
    follows = {}
    for side in _faces():
        entering = None
        for k in [*range(4), *range(4)]:  # twice around: every run of corners below the level is seen whole
            first, second = side[k], side[(k + 1) % 4]
            edge = _EDGES.index((min(first, second), (first ^ second).bit_length() - 1))
            below = case >> first & 1, case >> second & 1
            if below == (0, 1):
                entering = edge
            elif below == (1, 0) and entering is not None:
                follows[entering] = edge
    loops = []
    while follows:
        loop = [next(iter(follows))]
        while follows[loop[-1]] != loop[0]:
            loop.append(follows[loop[-1]])
        loops.append(loop)
        follows = {k: v for k, v in follows.items() if k not in loop}
    return loops


def _triangulate(loop: list[int]) -> list[list[int]]:
    """A fan, from the first corner of which no new side lies in a side of the cube, where the next cube may have it."""
    on = [{k for k, side in enumerate(_faces()) if {c, c | 1 << axis} <= set(side)} for c, axis in _EDGES]
    fans = [loop[k:] + loop[:k] for k in range(len(loop))]
    best = min(fans, key=lambda fan: sum(bool(on[fan[0]] & on[other]) for other in fan[2:-1]))
    return [[best[0], best[k], best[k + 1]] for k in range(1, len(best) - 1)]
