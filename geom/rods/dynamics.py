"""Rods in time: `start`, `rollout`, `step`; one kernel launch for all steps, with its adjoint, or the torch twin."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_positive, check_shape, describe, readable
from geom.errors import ShapeError
from geom.kernels import bridge
from geom.rods.contact import Contacts, check_contacts
from geom.rods.energy import elastic_energy
from geom.rods.kinematics import directors_without_twist, edge_tangents
from geom.rods.launch import Clamps, Rollout, Scene, flat, settle, tables
from geom.rods.rod import Rod, undamped
from geom.rods.twin import rollout_twin
from geom.values import Value, replace, value

__all__ = ["GRAVITY", "State", "Track", "rollout", "start", "step"]

GRAVITY = (0.0, 0.0, -9.81)  # m/s^2, z up


@value
class State(Value):
    """A rod in motion: position, metres, and velocity, m/s, of its vertices; the first material director of each edge;
    strain of each bend, with the twist counted over full turns, and the strain one step before (None at the start)."""

    position: Float[Tensor, "*b n 3"]
    velocity: Float[Tensor, "*b n 3"]
    director: Float[Tensor, "*b n 3"]
    strain: Float[Tensor, "*b n 3"]
    strain_before: Float[Tensor, "*b n 3"] | None = None


@value
class Track(Value):
    """Positions (*b, t, n, 3) after each step, metres, and the state after the last."""

    position: Float[Tensor, "*b t n 3"]
    end: State


def clamps(rod: Rod, clamped: Sequence[int] | Tensor, held: Sequence[int] | Tensor) -> Clamps:
    """Raises: ShapeError: vertices out of range or twice; a held edge whose ends are not both clamped."""
    n = len(rod.parent)
    index = _vertices(clamped, n, "clamped", rod)
    slot = torch.full((n,), -1, dtype=torch.int32, device=rod.parent.device)
    slot[index] = torch.arange(len(index), dtype=torch.int32, device=slot.device)
    keep = torch.zeros(n, dtype=torch.int32, device=slot.device)
    edges = _vertices(held, n, "held", rod)
    keep[edges] = 1
    for k in edges.tolist():
        p = int(rod.parent[k])
        if p < 0 or slot[k] < 0 or slot[p] < 0:
            raise ShapeError(f"held: expected edges whose two vertices are clamped, got edge {k}")
    return Clamps(slot, keep, index)


def _vertices(given: Sequence[int] | Tensor, n: int, name: str, rod: Rod) -> Tensor:
    index = torch.as_tensor(given, dtype=torch.int64, device=rod.parent.device).reshape(-1)
    if len(index) and (int(index.min()) < -n or int(index.max()) >= n):
        raise ShapeError(f"{name}: expected vertices from {-n} to {n - 1}, got {index.tolist()}")
    index = index % n
    if len(index.unique()) != len(index):
        raise ShapeError(f"{name}: expected each vertex once, got {index.tolist()}")
    return index


def start(
    rod: Rod,
    position: Float[Tensor, "*b n 3"],
    velocity: Float[Tensor, "*b n 3"] | None = None,
    *,
    clamped: Sequence[int] | Int64[Tensor, "k"] = (),
    held: Sequence[int] | Int64[Tensor, "h"] = (),
    director: Float[Tensor, "*b n 3"] | None = None,
    twist: Float[Tensor, "*b n"] | None = None,
) -> State:
    """The state of a rod seen at `position`: edges at their lengths, directors rolled to where the energy is least.

    Vertices that are not clamped move, as little as their masses allow, until every edge has its length; this carries
    the derivative of `position`. Then of eight starting rolls of the whole rod the one of least energy is followed.

    Args:
        rod: batched as `position`, or not at all.
        position: metres, float32 or float64. velocity: m/s, 0 if None.
        clamped: vertices that stay. held: edges, by their second vertex, whose roll stays that of `director`.
        director: first material directors; without twist if None. twist: about which turn the twist is, radians.
    Raises: ShapeError for shapes, NaN, and clamped vertices too far apart for the rod between them.

    Guarantees: differentiable in position and velocity; deterministic; edges 1e-15 f64, 1e-7 f32 of the coordinates
    """
    check_state(rod, position, "position")
    velocity = torch.zeros_like(position) if velocity is None else velocity
    check_state(rod, velocity, "velocity")
    fixed = clamps(rod, clamped, held)
    target = position[..., None, fixed.vertices, :]
    check_reach(rod, fixed, target)
    zero = torch.zeros_like(position)
    loose = replace(undamped(rod), bend_stiffness=0 * rod.bend_stiffness, twist_stiffness=0 * rod.twist_stiffness)
    bare = directors_without_twist(edge_tangents(position.detach(), rod.parent), rod.parent)
    still = State(position, zero, bare, zero)
    x = _roll(loose, still, target, fixed, 1, 1.0, (0.0, 0.0, 0.0), None, None, "auto").position[..., 0, :, :]
    tangent = edge_tangents(x, rod.parent)
    given = directors_without_twist(tangent, rod.parent) if director is None else director
    strain = torch.zeros_like(x) if twist is None else torch.stack([torch.zeros_like(twist)] * 2 + [twist], -1)
    turns = 1 if len(torch.as_tensor(held).reshape(-1)) else 8
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for turn in range(turns):
        angle = torch.tensor(2 * torch.pi * turn / turns, dtype=x.dtype, device=x.device)
        m = (angle.cos() * given + angle.sin() * torch.linalg.cross(tangent, given)).detach()
        m, s = settle(rod, x.detach(), m, strain.detach(), fixed)
        energy = _energy(rod, s)
        if best is None:
            best = (energy, m, s)
        else:
            less = (energy < best[0] * (1 - 1e-6))[..., None, None]
            best = (torch.minimum(energy, best[0]), torch.where(less, m, best[1]), torch.where(less, s, best[2]))
    assert best is not None
    m = best[1]
    if given.requires_grad:  # the held directors carry their derivative
        m = torch.where((fixed.held > 0)[:, None], given, m)
    return State(x, velocity, m, best[2])


def _energy(rod: Rod, strain: Tensor) -> Tensor:
    return elastic_energy(rod, strain).detach().sum_to_size(strain.shape[:-2])


def rollout(
    rod: Rod,
    state: State,
    *,
    steps: int | None = None,
    clamped: Sequence[int] | Int64[Tensor, "k"] = (),
    targets: Float[Tensor, "*b t k 3"] | None = None,
    held: Sequence[int] | Int64[Tensor, "h"] = (),
    dt: float = 0.01,
    gravity: Sequence[float] | Float[Tensor, "3"] = GRAVITY,
    forces: Float[Tensor, "*b t n 3"] | None = None,
    contacts: Contacts | None = None,
    backend: str = "auto",
) -> Track:
    """Steps of semi-implicit Euler with exact edge lengths and directors at rest (Bergou et al. 2008, Sec. 7; the
    projection is SHAKE, Ryckaert et al. 1977).

        y = x + dt (v + dt f / m),   z = y - M^-1 J(x)^T lambda with |z_k - z_parent| = L_k,   v = (z - x) / dt

    Linear and angular momentum of a free rod are conserved to rounding; drag changes both, internal_damping and the
    friction of a rod on itself the angular one. Where an edge turns so far in one step that this has no solution,
    lengths are regained along the edges of y (angular momentum then changes); where that has none either, along those
    of each iterate, and at last one edge after the other gets its length; there the derivative stops. So every result
    is finite.
    Stable while dt (dt + 2 viscosity) < (l^2 / 2)^2 (mass of a metre / EI) for edges of length l. A rod under
    tension T wants dt < l sqrt(mass of a metre / T) too: its waves may not cross an edge in a step.

    Args:
        rod: its parameters are read now; batched as the state, or not at all.
        state: of `start`, or the `end` of a track.
        steps: their number; that of `targets` or `forces` if None.
        clamped: vertices, negative ones from the end. targets: where they are after each step, metres; where they
            were in `state` if None.
        held: edges between clamped vertices whose material frame moves with them without twist; other ends roll free.
        dt: seconds. gravity: m/s^2. forces: on the vertices in each step, N.
        contacts: what the rod touches, of `make_contacts`; the trees of a rod pass through each other.
        backend: "auto", "warp" or "torch" (the twin: no fallback of the projection, O(n^3) a step).
    Returns: Track.
    Raises: ShapeError: shapes, indices, NaN in the targets, clamped vertices farther apart than the rod between them is
        long (give it a finite EA to let it stretch).

    >>> from geom.rods import make_rod, start
    >>> line = torch.linspace(0, 1, 11).double()
    >>> x = torch.stack([line, 0 * line, 0 * line], -1)
    >>> rod = make_rod(x, EI=1e-3, GJ=1e-3)
    >>> track = rollout(rod, start(rod, x), steps=50)  # it falls: g t^2 / 2, and half a step more
    >>> round(float(track.position[-1, 0, 2]), 6)
    -1.250775

    Lengths and rolls are differentiated through the implicit function theorem; rolls of free edges carry no derivative
    of their own.

    Guarantees: differentiable; deterministic; edges 1e-15 f64, 1e-7 f32 of the coordinates
    """
    fixed, targets, steps = check_run(rod, state, steps, clamped, targets, held, dt, forces)
    if contacts is not None:
        check_contacts(contacts, rod, state.position.shape[:-2])
    return _roll(rod, state, targets, fixed, steps, dt, gravity, forces, contacts, backend)


def step(
    rod: Rod,
    state: State,
    *,
    clamped: Sequence[int] | Int64[Tensor, "k"] = (),
    targets: Float[Tensor, "*b k 3"] | None = None,
    held: Sequence[int] | Int64[Tensor, "h"] = (),
    dt: float = 0.01,
    gravity: Sequence[float] | Float[Tensor, "3"] = GRAVITY,
    forces: Float[Tensor, "*b n 3"] | None = None,
    contacts: Contacts | None = None,
    backend: str = "auto",
) -> State:
    """One step of `rollout`: the next state.

    Guarantees: differentiable, as `rollout`; deterministic; edges 1e-15 f64, 1e-7 f32 of the coordinates
    """
    goal = None if targets is None else targets[..., None, :, :]
    push = None if forces is None else forces[..., None, :, :]
    track = rollout(
        rod,
        state,
        steps=1,
        clamped=clamped,
        targets=goal,
        held=held,
        dt=dt,
        gravity=gravity,
        forces=push,
        contacts=contacts,
        backend=backend,
    )
    return track.end


def check_finite(x: Tensor, name: str) -> None:
    check_shape(x, (3,), name)
    if readable(x) and not bool(x.isfinite().all()):
        raise ShapeError(f"{name}: expected finite numbers, got {int((~x.isfinite()).sum())} that are not")


def check_rows(x: Tensor | None, shape: tuple[int, ...], name: str) -> None:
    if x is not None:
        check_finite(x, name)
        if x.shape != shape:
            raise ShapeError(f"{name}: expected {shape}, got {describe(x)}")


def check_state(rod: Rod, x: Tensor, name: str) -> None:
    check_finite(x, name)
    if x.shape[-2] != len(rod.parent) or x.dtype != rod.mass.dtype:
        raise ShapeError(f"{name}: expected (*b, {len(rod.parent)}, 3) of {rod.mass.dtype}, got {describe(x)}")
    if rod.mass.ndim > 1 and rod.mass.shape[:-1] != x.shape[:-2]:
        raise ShapeError(f"{name}: expected the batch {tuple(rod.mass.shape[:-1])} of the rod, got {describe(x)}")


def check_run(
    rod: Rod,
    state: State,
    steps: int | None,
    clamped: Sequence[int] | Tensor,
    targets: Tensor | None,
    held: Sequence[int] | Tensor,
    dt: float,
    forces: Tensor | None,
) -> tuple[Clamps, Tensor, int]:
    """The clamps, targets and number of steps of a rollout. Raises: ShapeError, as `rollout`."""
    check_positive(dt, "dt")
    batch = state.position.shape[:-2]
    fixed = clamps(rod, clamped, held)
    known = [x.shape[-3] for x in (targets, forces) if x is not None]
    steps = known[0] if steps is None and known else steps
    if steps is None or steps < 1 or any(count != steps for count in known):
        raise ShapeError(f"steps: expected a number of at least 1, that of targets and forces, got {steps} and {known}")
    n, k = len(rod.parent), len(fixed.vertices)
    check_state(rod, state.position, "state")
    if targets is None:
        targets = state.position[..., None, fixed.vertices, :].expand(*batch, steps, k, 3)
    check_rows(targets, (*batch, steps, k, 3), "targets")
    check_rows(forces, (*batch, steps, n, 3), "forces")
    check_reach(rod, fixed, targets)
    return fixed, targets, steps


def check_reach(rod: Rod, fixed: Clamps, targets: Tensor) -> None:
    """Raises: ShapeError where clamped vertices are farther apart than the inextensible rod between them is long."""
    for a, b, path in spans(rod, fixed.vertices):
        length = rod.length[..., path].sum(-1)
        apart = (targets[..., a, :] - targets[..., b, :]).norm(dim=-1).amax(-1)
        if bool((apart > length * (1 + 1e-5)).any()):
            raise ShapeError(
                f"targets: expected clamped vertices no farther apart than the rod between them is long, "
                f"{float(length.min()):.4g} m, got {float(apart.max()):.4g} m; a rod with a finite EA stretches"
            )


def spans(rod: Rod, clamped: Tensor) -> list[tuple[int, int, list[int]]]:
    """Pairs of clamped vertices, by place, that an inextensible rod with a free vertex joins, and the edges between."""
    found = _spans(tuple(rod.parent.tolist()), tuple(clamped.tolist()))
    return [span for span in found if not bool(rod.stretch_stiffness[..., span[2]].isfinite().any())]


def _spans(parents: tuple[int, ...], clamped: tuple[int, ...]) -> list[tuple[int, int, list[int]]]:
    """Pairs of clamped vertices, by place, with the edges between them where some vertex there is free."""
    place = {v: i for i, v in enumerate(clamped)}
    spans = []
    trails = []
    for v in clamped:
        trail = [v]
        while parents[trail[-1]] >= 0:
            trail.append(parents[trail[-1]])
        trails.append(trail)
    for i, first in enumerate(trails):
        for j in range(i):
            other = set(trails[j])
            meet = next((v for v in first if v in other), None)
            if meet is None:
                continue
            up, down = first[: first.index(meet)], trails[j][: trails[j].index(meet)]
            between = (set(up) | set(down) | {meet}) - {clamped[i], clamped[j]}
            if between and not any(v in place for v in between):
                spans.append((i, j, up + down))
    return spans


def _roll(
    rod: Rod,
    state: State,
    targets: Tensor,
    fixed: Clamps,
    steps: int,
    dt: float,
    gravity: Sequence[float] | Tensor,
    forces: Tensor | None,
    contacts: Contacts | None,
    backend: str,
) -> Track:
    if not bridge.choose(backend, state.position, targets, rod.mass):
        g = torch.as_tensor(gravity, dtype=state.position.dtype, device=state.position.device)
        given = (state.position, state.velocity, state.director, state.strain, state.strain_before)
        rest = (steps, dt, g, forces, contacts)
        x, *end = rollout_twin(rod, given, targets, fixed.vertices, fixed.held > 0, *rest)
        return Track(x, State(x[..., -1, :, :], *end))
    batch = state.position.shape[:-2]
    before = state.strain if state.strain_before is None else state.strain_before
    fields = [flat(y, 2) for y in (state.position, state.velocity, state.director, state.strain, before)]
    extra = state.position.new_empty(0) if forces is None else flat(forces, 3)
    given = (*tables(rod, gravity), flat(targets, 3), extra, rod.tree, fixed)
    plan = (steps, int(state.strain_before is not None), dt)
    x, v, m, s, old = Rollout.apply(*fields, *given, plan, *(() if contacts is None else Scene.of(rod, contacts)))

    def back(y: Tensor) -> Tensor:
        return y.reshape(*batch, *y.shape[1:])

    end = State(back(x[:, -1]), back(v), back(m), back(s), back(old))
    return Track(back(x[:, 1:]), end)
