"""`Rod`: one elastic rod, a tree of rods, or many of them, as flat arrays over their vertices."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_offsets, check_points, check_positive, describe
from geom.errors import ShapeError
from geom.rods.kinematics import natural_strain
from geom.values import Value, replace, value

__all__ = ["DAMPING", "Rod", "Section", "Tree", "circular_section", "make_rod", "undamped"]

DAMPING = ("drag", "quadratic_drag", "internal_damping", "viscosity")  # fields of one number a rod


class Section(NamedTuple):
    """What a cross section gives a rod: EI and GJ in N m^2, EA in N, mass in kg/m."""

    EI: float
    GJ: float
    EA: float
    linear_density: float


@value
class Rod(Value):
    """Elastic rods over N vertices, joined to trees or not, with every parameter read at call time.

    Edge k runs from vertex parent[k] to vertex k; bend k lies between edge parent[k] and edge k. So each array has one
    entry a vertex, and those of a root's edge, and of the bends at and next to a root, mean nothing. A batch *b holds
    rods of one topology with parameters of their own.

    Fields: parent, the vertex before each (-1 at a root), always a smaller index, trees one after the other;
        length, of edge k at rest, metres; mass, of vertex k, kg; bend_stiffness (EI1, EI2) and twist_stiffness (GJ) of
        bend k, N m^2; stretch_stiffness (EA) of edge k, N, inf where it never stretches;
        curvature, natural, of bend k along the two material directors, 2 tan(angle / 2), and twist, radians;
        drag, 1/s, and quadratic_drag, 1/m: acceleration -(drag + quadratic_drag |v|) v; internal_damping, 1/s: the
        velocities of neighbours approach each other; viscosity, s: strains relax as a Kelvin-Voigt solid's.
    """

    parent: Int64[Tensor, "n"]
    length: Float[Tensor, "*b n"]
    mass: Float[Tensor, "*b n"]
    bend_stiffness: Float[Tensor, "*b n 2"]
    twist_stiffness: Float[Tensor, "*b n"]
    stretch_stiffness: Float[Tensor, "*b n"]
    curvature: Float[Tensor, "*b n 2"]
    twist: Float[Tensor, "*b n"]
    drag: Float[Tensor, "*b"]
    quadratic_drag: Float[Tensor, "*b"]
    internal_damping: Float[Tensor, "*b"]
    viscosity: Float[Tensor, "*b"]

    @property
    def tree(self) -> "Tree":
        """The topology, as the kernels read it."""
        return _tree(tuple(self.parent.tolist()), self.parent.device)

    def table(self) -> Tensor:
        """Parameters by vertex (*b, n, 9), in the order of `geom.kernels.rods.COLUMNS`."""
        columns = [self.length, self.mass, *self.bend_stiffness.unbind(-1), self.twist_stiffness]
        columns += [self.stretch_stiffness, *self.curvature.unbind(-1), self.twist]
        return torch.stack(columns, -1)

    def damping(self) -> Tensor:
        """drag, quadratic_drag, internal_damping, viscosity (*b, 4)."""
        return torch.stack([getattr(self, name) for name in DAMPING], -1)


class Tree(NamedTuple):
    """A topology: offsets (T+1,) of the trees' vertices; for each vertex, counted within its tree, parent, and in
    near[starts[k] : starts[k + 1]] the edges before edge k that share a vertex with it; bends, those k with a bend."""

    offsets: Tensor
    parent: Tensor
    starts: Tensor
    near: Tensor
    bends: Tensor
    largest: int


@lru_cache(64)
def _tree(parents: tuple[int, ...], device: torch.device) -> Tree:
    roots = [k for k, p in enumerate(parents) if p < 0]
    offsets = [*roots, len(parents)]
    local, starts, near, bends = [], [0], [], []
    largest = 1
    for begin, end in pairwise(offsets):
        children: dict[int, list[int]] = {}
        for k in range(begin, end):
            p = parents[k] - begin if k > begin else -1
            local.append(p)
            if p >= 0:
                near += ([p] if p > 0 else []) + children.get(p, [])
                children.setdefault(p, []).append(k - begin)
                if p > 0:
                    bends.append(k)
            starts.append(len(near))
        largest = max(largest, end - begin, starts[end] - starts[begin])

    def ints(x: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(x or [0], dtype=dtype, device=device)

    long = torch.int64
    where = torch.tensor(bends, dtype=long, device=device)
    return Tree(ints(offsets, long), ints(local), ints(starts), ints(near), where, largest)


def undamped(rod: Rod) -> Rod:
    """The rod without drag, internal damping and viscosity."""
    return replace(rod, **{name: torch.zeros_like(getattr(rod, name)) for name in DAMPING})


def circular_section(*, young: float, radius: float, density: float, poisson: float = 0.5) -> Section:
    """EI = E pi r^4 / 4, GJ = G pi r^4 / 2 with G = E / (2 (1 + nu)), EA = E pi r^2, and the mass of a metre.

    Args: young, Pa; radius, m; density, kg/m^3; poisson, Poisson's ratio, -1 to 0.5.
    Raises: ShapeError for what is not positive, or a ratio out of range.

    >>> section = circular_section(young=1e6, radius=5e-3, density=1000.0)
    >>> f"{section.EI:.3e} {section.GJ:.3e} {section.linear_density:.4f}"
    '4.909e-04 3.272e-04 0.0785'

    Guarantees: not differentiable; deterministic; 4e-16 f64
    """
    for name, x in (("young", young), ("radius", radius), ("density", density)):
        check_positive(x, name)
    if not -1 < poisson <= 0.5:
        raise ShapeError(f"poisson: expected a ratio from -1 to 0.5, got {poisson}")
    area = math.pi * radius**2
    EI = young * area * radius**2 / 4
    return Section(EI, EI / (1 + poisson), young * area, density * area)


def make_rod(
    positions: Float[Tensor, "n 3"],
    *,
    EI: float | Tensor,
    GJ: float | Tensor,
    EA: float | Tensor = math.inf,
    linear_density: float | Tensor = 0.02,
    offsets: Int64[Tensor, " rods_plus_1"] | None = None,
    junctions: Sequence[tuple[int, int]] = (),
    straight: bool = True,
    drag: float = 0.0,
    quadratic_drag: float = 0.0,
    internal_damping: float = 0.0,
    viscosity: float = 0.0,
) -> Rod:
    """A rod, a batch of unequal rods, or trees of them, at rest in the positions given.

    Args:
        positions: vertices, metres, float32 or float64; consecutive vertices of a rod are joined by an edge.
        EI: bending stiffness, N m^2, one number, (2,) for the two directors, or (n, 2) by bend.
        GJ: twisting stiffness, N m^2, a number or (n,). EA: stretching stiffness, N, inf for an inextensible rod.
        linear_density: kg/m, a number or (n,) of each edge; a vertex has half the mass of each edge it ends.
        offsets: where each rod's vertices begin, and their number; one rod if None.
        junctions: pairs (vertex, rod): the first edge of that rod starts at that vertex of an earlier rod, and keeps
            the angle to the edge before it. The rod's own vertices do not repeat the junction's.
        straight: naturally straight where edges follow one another on a rod; else, and always where a branch leaves,
            the angles of `positions` are those at rest. The twist at rest is 0.
        drag, quadratic_drag, internal_damping, viscosity: as in `Rod`.
    Raises: ShapeError: fewer than 3 vertices in a tree, an edge without length, a junction that is not on an earlier
        rod or is its first vertex, stiffness or density not positive.

    >>> line = torch.linspace(0, 1, 5).double()
    >>> rod = make_rod(torch.stack([line, 0 * line, 0 * line], -1), EI=1e-3, GJ=1e-3)
    >>> rod.length.tolist(), rod.parent.tolist()
    ([0.0, 0.25, 0.25, 0.25, 0.25], [-1, 0, 1, 2, 3])

    Guarantees: differentiable; deterministic; 1e-15 f64, 1e-6 f32
    """
    check_points(positions, "positions", minimum=3)
    n = positions.shape[0]
    parent = _parents(n, offsets, junctions)
    sizes = torch.diff(_tree(tuple(parent.tolist()), parent.device).offsets)
    if int(sizes.min()) < 3:
        raise ShapeError(f"positions: expected at least 3 vertices in each rod or tree, got {int(sizes.min())}")
    edge = positions - positions[parent.clamp(min=0)]
    length = torch.where(parent >= 0, torch.where(parent[:, None] >= 0, edge, 1.0).norm(dim=-1), 0.0)
    if bool((length[parent >= 0] <= 0).any()):
        k = int(((parent >= 0) & (length <= 0)).nonzero()[0])
        raise ShapeError(f"positions: expected edges of some length, got none from vertex {int(parent[k])} to {k}")

    def number(x: float | Tensor, name: str, *shape: int) -> Tensor:
        full = torch.as_tensor(x, dtype=positions.dtype, device=positions.device)
        if bool((full <= 0).any()) or bool(full.isnan().any()):
            raise ShapeError(f"{name}: expected positive numbers, got {describe(full)} with {float(full.min())}")
        return full.expand(shape)

    density = number(linear_density, "linear_density", n)
    half = 0.5 * density * length
    mass = half.index_add(0, parent.clamp(min=0), half)
    rest = natural_strain(positions, parent)
    if straight:
        turns = torch.zeros(n, dtype=torch.bool, device=positions.device)
        for _, rod in junctions:
            turns[int(offsets[rod])] = True  # type: ignore[index]
        rest = torch.where(turns[:, None], rest, 0.0)

    def scalar(x: float, name: str) -> Tensor:
        if not x >= 0:
            raise ShapeError(f"{name}: expected a number of at least 0, got {x}")
        return torch.as_tensor(x, dtype=positions.dtype, device=positions.device)

    bend = number(EI, "EI", n, 2)
    return Rod(
        parent,
        length,
        mass,
        bend,
        number(GJ, "GJ", n),
        number(EA, "EA", n),
        rest[:, :2],
        rest[:, 2],
        scalar(drag, "drag"),
        scalar(quadratic_drag, "quadratic_drag"),
        scalar(internal_damping, "internal_damping"),
        scalar(viscosity, "viscosity"),
    )


def _parents(n: int, offsets: Tensor | None, junctions: Sequence[tuple[int, int]]) -> Tensor:
    device = None if offsets is None else offsets.device
    parent = torch.arange(-1, n - 1, device=device)
    if offsets is None:
        if junctions:
            raise ShapeError("junctions: expected offsets of the rods they join, got None")
        return parent
    check_offsets(offsets, n, device=offsets.device)
    starts = offsets[:-1].tolist()
    parent[offsets[:-1]] = -1
    for vertex, rod in junctions:
        if not 0 < rod < len(starts) or parent[starts[rod]] >= 0:
            raise ShapeError(f"junctions: expected each of the rods 1 to {len(starts) - 1} at most once, got rod {rod}")
        if not 0 <= vertex < starts[rod] or parent[vertex] < 0:
            raise ShapeError(
                f"junctions: expected a vertex after the first of an earlier rod, got vertex {vertex} for rod {rod}"
            )
        parent[starts[rod]] = vertex
    root = -1
    for k, p in enumerate(parent.tolist()):
        root = k if p < 0 else root
        if 0 <= p < root:
            raise ShapeError(f"junctions: expected the rods of a tree one after the other, got vertex {k} on {p}")
    return parent
