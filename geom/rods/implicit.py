"""Rods in implicit time steps, for stiff ones and long steps: implicit Euler, and the implicit midpoint rule."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.errors import ConvergenceWarning
from geom.kernels import bridge
from geom.kernels import rod_implicit as kernels
from geom.rods.dynamics import GRAVITY, Clamps, State, Track, check_run
from geom.rods.launch import arguments, flat, tables
from geom.rods.rod import Rod, Tree
from geom.rods.twin import relax_rolls

__all__ = ["implicit_euler", "implicit_midpoint"]


class Scheme(NamedTuple):
    """blend, where between a step's ends forces are taken; dt, seconds; still, whether each step starts at rest."""

    blend: float
    dt: float
    still: bool = False


def implicit_euler(
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
) -> Track:
    """Steps of implicit Euler: stable for any stiffness and step, and damping what a step does not resolve.

        mass (z - x - dt v) / dt^2 = f(z),   |z_k - z_parent| = L_k,   v = (z - x) / dt

    f: elastic forces, rolls at rest, gravity, all damping, and the tension of the edges, all at z; solved in float64 by
    Newton's method on positions, rolls and tensions at once, in O(n); where it does not converge from x + dt v, along
    a path of shorter steps. Arguments as in `geom.rods.rollout`.

    Returns: Track.
    Raises: ShapeError, as `rollout`. Warns: ConvergenceWarning where a step has no solution that Newton finds; there
        the rod only regains its lengths, and no derivative goes further back.

    >>> from geom.rods import make_rod, start
    >>> line = torch.linspace(0, 1, 11).double()
    >>> x = torch.stack([line, 0 * line, 0 * line], -1)
    >>> rod = make_rod(x, EI=10.0, GJ=10.0)  # explicit steps would have to be 3,000 times shorter
    >>> end = implicit_euler(rod, start(rod, x, clamped=(0, 1)), steps=100, clamped=(0, 1)).end
    >>> round(float(end.position[-1, 2]), 5)  # w L^4 / 8 EI, with L = 0.95 from halfway between the clamped vertices
    -0.00199

    Guarantees: differentiable (implicit function theorem); deterministic; edges 1e-15 f64, 1e-7 f32 of the coordinates
    """
    return _steps(rod, state, steps, clamped, targets, held, Scheme(1.0, dt), gravity, forces)


def implicit_midpoint(
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
) -> Track:
    """Steps of the implicit midpoint rule: second order, no damping of its own, both momenta kept.

        mass (z - x - dt v) 2 / dt^2 = f((x + z) / 2),   |z_k - z_parent| = L_k,   v becomes 2 (z - x) / dt - v

    Tensions act along the edges halfway, so they do no work; a finite EA stretches with a discrete gradient, exactly
    (Gonzalez 1996). Energy of bending stays bounded where steps resolve the modes that swing (within 0.1 % over 1e4
    steps); large swings of modes that they do not may gain energy slowly: give these damping. Computed, with the same
    arguments and errors, as `implicit_euler`.

    Guarantees: differentiable (implicit function theorem); deterministic; edges 1e-15 f64, 1e-7 f32 of the coordinates
    """
    return _steps(rod, state, steps, clamped, targets, held, Scheme(0.5, dt), gravity, forces)


def _steps(
    rod: Rod,
    state: State,
    steps: int | None,
    clamped: Sequence[int] | Tensor,
    targets: Tensor | None,
    held: Sequence[int] | Tensor,
    scheme: Scheme,
    gravity: Sequence[float] | Tensor,
    forces: Tensor | None,
) -> Track:
    fixed, targets, _ = check_run(rod, state, steps, clamped, targets, held, scheme.dt, forces)
    track, failed = advance(rod, state, targets, fixed, scheme, gravity, forces)
    if bool(failed.any()):
        words = f"implicit steps of {scheme.dt} s: Newton's method found no solution in {int(failed.sum())} of them"
        warnings.warn(words, ConvergenceWarning, stacklevel=3)
    return track


def advance(
    rod: Rod,
    state: State,
    targets: Tensor,
    fixed: Clamps,
    scheme: Scheme,
    gravity: Sequence[float] | Tensor,
    forces: Tensor | None,
) -> tuple[Track, Tensor]:
    """The steps, computed in float64, and 1 (*b, steps) where one has failed. Nothing is checked."""
    dtype, batch = state.position.dtype, state.position.shape[:-2]
    rod, state = rod.to(torch.float64), state.to(torch.float64)

    before = state.strain_before
    if scheme.blend == 1:  # the strain that forces were last taken at is that of the start
        before = state.strain
        if bool((rod.viscosity > 0).any()) and state.position.requires_grad:
            held = fixed.held > 0
            relaxed = relax_rolls(rod, state.position, state.director, state.strain, held=held)[1]
            before = before + relaxed - relaxed.detach()  # rolls, so strains, are functions of positions
    history = int(before is not None)
    fields = (state.position, state.velocity, state.director, state.strain, state.strain if before is None else before)
    table, rates = tables(rod, gravity)
    extra = state.position.new_empty(0) if forces is None else flat(forces.double(), 3)
    args = [flat(y, 2) for y in fields]
    x, v, m, s, old, failed = _Steps.apply(
        *args, table, rates, flat(targets.double(), 3), extra, rod.tree, fixed, scheme, history
    )

    def back(y: Tensor) -> Tensor:
        return y.reshape(*batch, *y.shape[1:]).to(dtype)

    end = State(back(x[:, -1]), back(v), back(m), back(s), back(old))
    trees = len(rod.tree.offsets) - 1
    return Track(back(x[:, 1:]), end), failed.reshape(-1, trees, x.shape[1] - 1).amax(1).reshape(*batch, -1)


class _Steps(torch.autograd.Function):
    """The kernel and its adjoint; inputs flat: position, velocity, director, strain, before (B, n, 3), table, rates,
    goal (B, T, K, 3), extra (B, T, n, 3) or empty."""

    @staticmethod
    def forward(
        ctx: Any,
        position: Tensor,
        velocity: Tensor,
        director: Tensor,
        strain: Tensor,
        before: Tensor,
        table: Tensor,
        rates: Tensor,
        goal: Tensor,
        extra: Tensor,
        tree: Tree,
        fixed: Clamps,
        scheme: Scheme,
        history: int,
    ) -> tuple[Tensor, ...]:
        batch, n = position.shape[:2]
        steps, items = goal.shape[1], batch * (len(tree.offsets) - 1)
        x, m, s = (position.new_empty(batch, steps + 1, n, 3) for _ in range(3))
        x[:, 0], m[:, 0], s[:, 0] = position, director, strain
        mids, strained = (position.new_empty(batch, steps, n, 3) for _ in range(2))
        tension = position.new_empty(batch, steps, n)
        failed = torch.zeros(items, steps, dtype=torch.int32, device=x.device)
        v, old = velocity.clone(), before.clone()
        plan = (tree, fixed, scheme, history, int(extra.numel() > 0))
        rest = (goal, extra, x, m, s, mids, strained, tension, failed)
        _launch(kernels.rollout, table, rates, plan, (v, old, *rest))
        ctx.save_for_backward(table, rates, velocity, before, *rest)
        ctx.plan = plan
        last = s[:, -1].clone()
        ctx.mark_non_differentiable(last, failed)
        return x, v, m[:, -1].clone(), last, old, failed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gx, gv, gm, _, gold, _ = grads
        table, rates, *saved = ctx.saved_tensors
        goal, extra, x = saved[2:5]
        tree = ctx.plan[0]
        batch, n, trees = x.shape[0], x.shape[2], len(tree.offsets) - 1
        ax, av, am, abefore = (x.new_zeros(batch, n, 3) for _ in range(4))
        agoal, aextra = torch.zeros_like(goal), torch.zeros_like(extra)
        atable, arates = x.new_zeros(batch, n, 9), x.new_zeros(batch, trees, 7)
        given = [y.contiguous() for y in (gx, gv, gm, gold)]
        out = (ax, av, am, abefore, agoal, aextra, atable, arates)
        _launch(kernels.rollout_adjoint, table, rates, ctx.plan, (*saved, *given, *out))
        arates = arates.sum(1)
        if table.shape[0] == 1:
            atable, arates = atable.sum(0, keepdim=True), arates.sum(0, keepdim=True)
        return ax, av, am, None, abefore, atable, arates, agoal, aextra, None, None, None, None


def _launch(
    kernel: dict[torch.dtype, Any], table: Tensor, rates: Tensor, plan: tuple[Any, ...], arrays: tuple[Tensor, ...]
) -> None:
    tree, fixed, scheme, history, pushed = plan
    goal = arrays[2]
    batch, steps = goal.shape[:2]
    items = batch * (len(tree.offsets) - 1)
    bridge.launch(
        kernel[torch.float64],
        items,
        *arguments(tree, fixed, table, rates, batch, scheme.dt, items, kernels.space(tree.largest)),
        *(steps, scheme.blend, 1 / scheme.dt, history, int(scheme.still), pushed),
        *arrays,
        device=table.device,
        grain=max(1, 8 // steps),
    )
