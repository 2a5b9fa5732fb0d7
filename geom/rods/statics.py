"""Static equilibrium of rods, by a Newton method whose answer knows neither masses in motion nor damping."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.errors import ShapeError
from geom.rods import dynamics
from geom.rods.dynamics import GRAVITY, Clamps, State, check_reach, clamps, start
from geom.rods.energy import elastic_energy
from geom.rods.implicit import Scheme, advance
from geom.rods.kinematics import edge_tangents, strains, transport
from geom.rods.rod import Rod, undamped
from geom.values import Fit, replace

__all__ = ["equilibrium", "potential_energy"]


def equilibrium(
    rod: Rod,
    position: Float[Tensor, "*b n 3"],
    *,
    clamped: Sequence[int] | Int64[Tensor, "k"] = (),
    targets: Float[Tensor, "*b k 3"] | None = None,
    held: Sequence[int] | Int64[Tensor, "h"] = (),
    director: Float[Tensor, "*b n 3"] | None = None,
    twist: Float[Tensor, "*b n"] | None = None,
    gravity: Sequence[float] | Float[Tensor, "3"] = GRAVITY,
    forces: Float[Tensor, "*b n 3"] | None = None,
) -> Fit[State]:
    """The shape in which a rod rests: elastic energy, gravity and forces at a minimum, edges at their lengths.

        min over z, rolls of  E(z) - sum mass g . z - sum f . z   with |z_k - z_parent| = L_k

    Proximal Newton: implicit Euler steps of growing length, each from rest, whose fixed points are the equilibria
    exactly; energy falls from step to step, so from a shape that rests but would buckle it moves on (positions are
    disturbed by 1e-6 of the rod first). Of several stable shapes it finds one near the guess. In float64 throughout.

    Args:
        position: a guess, metres. clamped: vertices that stay. targets: where they go, metres; where they are if None.
        held: edges, by their second vertex, whose material frame stays that of `director` as the clamps move it.
        director, twist: as in `geom.rods.start`. gravity: m/s^2. forces: on the vertices, N.
    Returns: Fit: state at rest; cost, the potential energy, joules; converged: the last step moved no vertex by more
        than 1e-9 of the rod's length (rounding, 2e-16 n^3, where n > 165); iterations: steps taken.
    Raises: ShapeError: shapes, indices, NaN, clamped vertices too far apart, a loaded tree without a clamped vertex.

    A clamp of two vertices acts halfway between them, to second order: a cantilever of vertices 0 and 1 is as long as
    the rod from there. Derivatives are those of the equilibrium (implicit function theorem), in the rod, targets (or
    the clamped vertices of `position`), held directors, gravity and forces.

    >>> from geom.rods import make_rod
    >>> line = torch.linspace(0, 1, 51, dtype=torch.float64)
    >>> x = torch.stack([line, 0 * line, 0 * line], -1)
    >>> rod = make_rod(x, EI=1.0, GJ=1.0)
    >>> fit = equilibrium(rod, x, clamped=(0, 1))  # w L^4 / 8 EI with L = 0.99
    >>> round(float(fit.value.position[-1, 2] / (0.02 * -9.81 * 0.99**4 / 8)), 3), bool(fit.converged)
    (0.999, True)

    Guarantees: differentiable; deterministic; positions 1e-12 f64, 1e-7 f32 of the rod's length
    """
    fixed = clamps(rod, clamped, held)
    k = len(fixed.vertices)
    dynamics.check_state(rod, position, "position")
    goal = position[..., fixed.vertices, :] if targets is None else targets
    dynamics.check_rows(goal, (*position.shape[:-2], k, 3), "targets")
    dynamics.check_rows(forces, tuple(position.shape), "forces")
    _check_anchored(rod, fixed, gravity, forces)
    check_reach(rod, fixed, goal[..., None, :, :])
    dtype = position.dtype
    double = torch.float64
    rod, position, goal = rod.to(double), position.to(double), goal.to(double)
    forces = None if forces is None else forces.to(double)
    pull = torch.as_tensor(gravity, dtype=double, device=position.device)
    with torch.no_grad():
        begin = start(
            rod,
            _disturbed(rod, position, fixed),
            clamped=clamped,
            held=held,
            director=None if director is None else director.to(double),
            twist=None if twist is None else twist.to(double),
        )
        state, slowest, moved, rounds = _relax(rod, begin, goal, fixed, pull, forces)
    # once more from the equilibrium: this step carries the derivative
    carried = begin.director if director is None else director.to(double)
    t0 = edge_tangents(position, rod.parent)
    aimed = begin.position.detach().index_copy(-2, fixed.vertices, goal)
    carried = transport(carried, t0, edge_tangents(aimed, rod.parent))
    state = replace(state, director=torch.where((fixed.held > 0)[:, None], carried, state.director))
    push = None if forces is None else forces[..., None, :, :]
    scheme = Scheme(1.0, slowest, still=True)
    still = undamped(rod)
    track, failed = advance(still, state, goal[..., None, :, :], fixed, scheme, pull, push)
    length = rod.length.sum(-1)
    converged = (moved <= _blur(rod) * length) & ~failed[..., 0].bool()
    cost = potential_energy(rod, track.end, gravity=pull, forces=forces)
    end = replace(track.end, strain_before=None).to(dtype)
    return Fit(end, cost.to(dtype), None, converged, torch.full_like(converged, rounds, dtype=torch.int64))


def potential_energy(
    rod: Rod,
    state: State,
    *,
    gravity: Sequence[float] | Float[Tensor, "3"] = GRAVITY,
    forces: Float[Tensor, "*b n 3"] | None = None,
) -> Float[Tensor, "*b"]:
    """Energy of bending, twist and stretching, and of position under gravity and constant forces, joules.

    Positions and directors are read, the strains of the state only for the turns of its twist. In derivatives the
    directors go along with positions, so that of positions is minus the force.

    >>> from geom.rods import make_rod, start
    >>> x = torch.tensor([[0.0, 0, 1], [1, 0, 1], [2, 0, 1]]).double()
    >>> rod = make_rod(x, EI=1.0, GJ=1.0, linear_density=0.5)
    >>> round(float(potential_energy(rod, start(rod, x))), 6)  # 1 kg, 1 m up
    9.81

    Guarantees: differentiable; deterministic; 1e-14 f64, 1e-6 f32
    """
    x = state.position
    tangent = edge_tangents(x, rod.parent)
    director = transport(state.director, tangent.detach(), tangent)
    strain = strains(tangent, director, rod.parent)
    turns = (2 * math.pi) * ((state.strain - strain)[..., 2] / (2 * math.pi)).round().detach()
    strain = torch.cat([strain[..., :2], (strain[..., 2] + turns)[..., None]], -1)
    g = torch.as_tensor(gravity, dtype=x.dtype, device=x.device)
    load = rod.mass[..., None] * g + (0.0 if forces is None else forces)
    k = (rod.parent >= 0).nonzero()[:, 0]
    stretch = (x[..., k, :] - x[..., rod.parent[k], :]).norm(dim=-1) - rod.length[..., k]
    EA = rod.stretch_stiffness[..., k]
    spring = torch.where(EA.isfinite(), EA, 0.0) / rod.length[..., k]
    return elastic_energy(rod, strain) + 0.5 * (spring * stretch.square()).sum(-1) - (load * x).sum((-2, -1))


def _blur(rod: Rod) -> float:
    """What rounding moves a vertex by in a step, over the rod's length: that of the stiffest forces on the softest."""
    return max(1e-9, torch.finfo(torch.float64).eps * rod.tree.largest**3)


def _check_anchored(rod: Rod, fixed: Clamps, gravity: Sequence[float] | Tensor, forces: Tensor | None) -> None:
    loaded = bool(torch.as_tensor(gravity).any()) or (forces is not None and bool(forces.any()))
    offsets = rod.tree.offsets.tolist()
    for begin, end in pairwise(offsets):
        if loaded and bool((fixed.slot[begin:end] < 0).all()):
            raise ShapeError(f"clamped: expected a vertex of each loaded rod, got none from {begin} to {end - 1}")


def _disturbed(rod: Rod, position: Tensor, fixed: Clamps) -> Tensor:
    """Free vertices moved by some 1e-6 of the rod, each another way, so that no symmetry keeps it from buckling."""
    n = len(rod.parent)
    phase = torch.arange(n, dtype=position.dtype, device=position.device)
    sway = torch.stack([(1.1 * phase).sin(), (0.7 * phase + 1).sin(), (0.9 * phase + 2).sin()], -1)
    sway = torch.where((fixed.slot < 0)[:, None], sway, 0.0)
    return position + 1e-6 * rod.length.amax(-1)[..., None, None] * sway


def _relax(
    rod: Rod, state: State, goal: Tensor, fixed: Clamps, gravity: Tensor, forces: Tensor | None
) -> tuple[State, float, Tensor, int]:
    """Steps from rest until none moves a vertex: the state, the longest step in seconds, the last move, their number.

    The longest is so long that a rod's slowest swing adds 1e-10 to its stiffness in what is solved.
    """
    still = undamped(rod)
    length, mass = rod.length.sum(-1), rod.mass.sum(-1)
    stiff = rod.bend_stiffness[..., rod.tree.bends, :].amin((-2, -1)) / length.pow(3)
    load = mass * gravity.norm() + (0.0 if forces is None else forces.norm(dim=-1).sum(-1))
    swing = float((torch.maximum(stiff, load / length) / mass).sqrt().min())  # 1/s
    goal, push = goal[..., None, :, :], None if forces is None else forces[..., None, :, :]
    dt, longest = 0.3 / swing, 1e5 / swing
    moved = torch.full_like(length, math.inf)
    best, blur = math.inf, _blur(rod)
    rounds = 0
    while rounds < 200:
        rounds += 1
        track, failed = advance(still, state, goal, fixed, Scheme(1.0, dt, still=True), gravity, push)
        if bool(failed.any()) and dt > 1e-4 / swing:
            dt *= 0.1
            continue
        end = replace(track.end, strain_before=None)
        moved = (end.position - state.position).norm(dim=-1).amax(-1)
        state = end
        most = float((moved / length).max())
        if dt >= longest and (most < 1e-13 or (most < blur and most > 0.5 * best)):
            return state, longest, moved, rounds
        best = min(best, most) if dt >= longest else math.inf
        # longer steps once this one has little left to move
        if most < 0.1:
            dt = min(dt * (3 if most > 1e-3 else 30), longest)
    return state, longest, moved, rounds
