"""`plan`: how grippers move so that a rod takes a wanted shape, found through the adjoint of `rollout`."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from geom.checks import check_positive, describe
from geom.errors import ShapeError
from geom.lie import Rigid, quaternion
from geom.rods import dynamics
from geom.rods.contact import Contacts
from geom.rods.dynamics import State, clamps, rollout, spans
from geom.rods.rod import Rod
from geom.values import Fit, value

__all__ = ["Grips", "Plan", "gather_grips", "plan"]

_SLACK = 5e-3  # of the rod's length, that two grips keep from pulling it straight where they can
_REACH = 5e-6  # of it, by how much they may miss it at the most


@value
class Plan(Fit[Rigid]):
    """A `Fit` of the grips' poses (*b, t, g) after each step: their middles, and turns since the start.

    Fields: targets, the paths of the clamped vertices as `rollout` takes them; error, the farthest a marked vertex is
    from the goal in the last step, metres; speed, m/s, and turn, rad/s, the fastest of any grip; converged, whether
    error is below the tolerance; cost, the mean squared distance while the grips rest, m^2.
    """

    targets: Float[Tensor, "*b t k 3"]
    error: Float[Tensor, "*b"]
    speed: Float[Tensor, "*b"]
    turn: Float[Tensor, "*b"]


class Grips(NamedTuple):
    """Rigid grips on a rod at the start: member (K,), the grip of each clamped vertex; middle (*b, g, 3), of each
    grip; arm (*b, K, 3), from there to each vertex; axis (*b, g, 3), the unit direction of each grip's rod (0 of one
    vertex); hats (t, knots), by how much the velocity at each knot counts in each step; limits, m/s and rad/s."""

    member: Tensor
    middle: Tensor
    arm: Tensor
    axis: Tensor
    hats: Tensor
    limits: tuple[float, float]

    def velocities(self, knots: Float[Tensor, "*b k g 6"]) -> tuple[Tensor, Tensor]:
        """Of each step (*b, t, g, 3): of the middle, m/s, and of the turn in the grip's own frame, rad/s, about axes
        across the rod. At each knot limit u / sqrt(1 + u^2), linear between: no step can break a limit."""
        v, w = knots.unflatten(-1, (2, 3)).unbind(-2)
        along = self.axis[..., None, :, :]
        w = torch.where((along != 0).any(-1, keepdim=True), w - (w * along).sum(-1, keepdim=True) * along, 0.0)
        both = (a * u / (1 + u.square().sum(-1, keepdim=True)).sqrt() for a, u in zip(self.limits, (v, w), strict=True))
        moved, turned = (torch.einsum("tk,...kgi->...tgi", self.hats, x) for x in both)
        return moved, turned

    def move(self, knots: Float[Tensor, "*b k g 6"], dt: float) -> tuple[Rigid, Float[Tensor, "*b t K 3"]]:
        """Poses of the grips and places of the clamped vertices after each step."""
        v, w = self.velocities(knots)
        middle = self.middle[..., None, :, :] + dt * v.cumsum(-3)
        turn = quaternion.exp(dt * w)
        reach, steps = 1, turn.shape[-3]
        while reach < steps:  # products of all turns so far, of 2, 4, 8 ... at a time
            later = quaternion.multiply(turn[..., :-reach, :, :], turn[..., reach:, :, :])
            turn = torch.cat([turn[..., :reach, :, :], later], -3)
            reach *= 2
        turn = turn / turn.norm(dim=-1, keepdim=True)
        arm = quaternion.rotate(turn[..., self.member, :], self.arm[..., None, :, :])
        return Rigid(turn, middle), middle[..., self.member, :] + arm


def gather_grips(
    rod: Rod,
    position: Float[Tensor, "*b n 3"],
    clamped: Int64[Tensor, "K"],
    *,
    steps: int,
    rest: int,
    knots: int,
    limits: tuple[float, float],
) -> Grips:
    """One grip of the clamped vertices that edges join, in float64; still at both ends of the first steps - rest.

    Guarantees: deterministic; 1e-16 f64
    """
    vertices, parent = clamped.tolist(), rod.parent.tolist()
    leader = {v: v for v in vertices}
    for v in sorted(vertices):
        if parent[v] in leader:
            leader[v] = leader[parent[v]]
    names = sorted(set(leader.values()))
    member = torch.tensor([names.index(leader[v]) for v in vertices], device=position.device)
    x = position.detach().to(torch.float64)[..., clamped, :]
    share = torch.nn.functional.one_hot(member, len(names)).to(x)
    middle = torch.einsum("kg,...ki->...gi", share / share.sum(0), x)
    moving = steps - rest
    time = (torch.arange(steps, dtype=x.dtype, device=x.device) + 0.5) * (knots + 1) / moving
    hats = (1 - (time[:, None] - torch.arange(1, knots + 1, device=x.device)).abs()).clamp(min=0)
    axis = _axes(x, clamped, member, len(names))
    return Grips(member, middle, x - middle[..., member, :], axis, hats, limits)


def _axes(x: Tensor, clamped: Tensor, member: Tensor, count: int) -> Tensor:
    """From the first to the last vertex of each grip, (*b, g, 3) of length 1, or 0 of a single vertex."""
    ends = []
    for g in range(count):
        mine = (member == g).nonzero()[:, 0]
        mine = mine[clamped[mine].argsort()]
        ends.append(x[..., mine[-1], :] - x[..., mine[0], :])
    return torch.nn.functional.normalize(torch.stack(ends, -2), dim=-1, eps=1e-12)


def plan(
    rod: Rod,
    state: State,
    goal: Float[Tensor, "*b m 3"],
    *,
    clamped: Sequence[int],
    steps: int,
    held: Sequence[int] | None = None,
    marked: Sequence[int] | None = None,
    rest: int | None = None,
    dt: float = 0.01,
    max_speed: float = 0.5,
    max_turn: float = 1.5,
    tolerance: float = 0.05,
    knots: int = 6,
    iterations: int = 60,
    contacts: Contacts | None = None,
    progress: bool = True,
) -> Plan:
    """The motion of grippers after which a rod lies as the goal says: shooting, with the gradient of the whole rollout.

        min over knots of  mean over marked vertices and the last `rest` steps of |x - goal|^2

    A grip is what edges join of the clamped vertices; it moves as a rigid body whose velocity is linear between knots
    and zero at both ends. The first guess leads each grip straight to its place in the goal; L-BFGS goes on from
    there. Grips never part by more than the rod between them is long.

    Args:
        rod, state, dt, contacts: as of `rollout`; the batch is that of `state`.
        goal: where the marked vertices shall be, metres, in the state's dtype.
        clamped: vertices in the grips, negative ones from the end. held: edges that do not roll in their grips; all
            between clamped vertices if None. marked: vertices that count; all, in order, if None.
        steps: their number. rest: the last so many, in which grips stand still and distances count; a fifth if None.
        max_speed: of a grip's middle, m/s. max_turn: rad/s. No step breaks them.
        tolerance: metres, below which every vertex must be for success (5 cm as DEFORM has it).
        knots: of the velocity. iterations: of the descent; progress: a bar on a terminal.
    Returns: Plan.
    Raises: ShapeError.

    A grip of two vertices turns about axes across its edge only, so that its pose and the roll that `rollout` carries
    along agree; one of a single vertex does not turn at all.

    Guarantees: not differentiable; deterministic; limits 1e-15 f64, in f32 to the rounding of the targets
    """
    fixed = clamps(rod, clamped, ())
    if not len(fixed.vertices):
        raise ShapeError("clamped: expected vertices in some grip, got none")
    n, batch, x = len(rod.parent), state.position.shape[:-2], state.position
    where = dynamics._vertices(range(n) if marked is None else marked, n, "marked", rod)
    if goal.shape != (*batch, len(where), 3) or goal.dtype != x.dtype or not bool(goal.isfinite().all()):
        raise ShapeError(
            f"goal: expected finite numbers {(*batch, len(where), 3)} of {x.dtype}, one row for each marked vertex, "
            f"got {describe(goal)}"
        )
    for name, number in (("dt", dt), ("max_speed", max_speed), ("max_turn", max_turn), ("tolerance", tolerance)):
        check_positive(number, name)
    for name, number in (("steps", steps), ("knots", knots), ("iterations", iterations)):
        if number < 1:
            raise ShapeError(f"{name}: expected a number of at least 1, got {number}")
    rest = max(1, steps // 5) if rest is None else rest
    if not 1 <= rest < steps:
        raise ShapeError(f"rest: expected 1 to {steps - 1} steps, fewer than all, got {rest}")
    near = set(fixed.vertices.tolist())
    held = [k for k in near if int(rod.parent[k]) in near] if held is None else held
    grips = gather_grips(rod, x, fixed.vertices, steps=steps, rest=rest, knots=knots, limits=(max_speed, max_turn))
    limits = [(a, b, rod.length[..., path].sum(-1).double()) for a, b, path in spans(rod, fixed.vertices)]
    still = x.detach()[..., None, fixed.vertices, :]

    def follow(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances to the goal (*b, rest, m), by how much grips part too far, and their path."""
        path = grips.move(u, dt)[1]
        over = _over(path, limits)
        targets = torch.where((over < _SLACK + _REACH)[..., None, None, None], path.to(x.dtype), still)
        track = rollout(rod, state, clamped=fixed.vertices, targets=targets, held=held, dt=dt, contacts=contacts)
        away = track.position[..., steps - rest :, where, :] - goal[..., None, :, :]
        return away.square().sum(-1), over, targets

    def objective(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_()
        away, over, _ = follow(u)
        cost = away.mean((-2, -1)).double() + 100 * over.clamp(min=0).square()
        (gradient,) = torch.autograd.grad(cost.sum(), u)
        return torch.where(over < _SLACK + _REACH, cost.detach(), math.inf), gradient

    u = _guess(grips, x, goal, where, fixed.vertices, dt)
    for slower in (*[0.7] * 20, 0.0):  # a guess out of the rod's reach: slower, until it is within
        far = _over(grips.move(u, dt)[1], limits) >= _SLACK
        u = torch.where(far[..., None, None, None], slower * u, u)
    u = _descend(objective, u, iterations, progress)
    with torch.no_grad():
        away, _, targets = follow(u)
        error = away[..., -1, :].amax(-1).sqrt()
        fastest = (y.norm(dim=-1).amax((-2, -1)).to(x.dtype) for y in grips.velocities(u))
        count = torch.full(batch, iterations, device=x.device)
        poses, cost = grips.move(u, dt)[0].to(x.dtype), away.mean((-2, -1))
        return Plan(poses, cost, None, error < tolerance, count, targets, error, *fastest)


def _descend(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]], u: Tensor, iterations: int, progress: bool
) -> Tensor:
    """L-BFGS (Nocedal 1980) with backtracking, each item of the batch for itself; the cost of none ever rises.

    objective gives costs (*b,), inf where not allowed, and gradients (*b, k, g, 6).
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-3, -2, -1), keepdim=True)

    cost, gradient = objective(u)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # steps, changes of the gradient, 1 / their product, or 0: not used
    scale = torch.ones_like(dot(u, u))
    width = 0.1 / dot(gradient, gradient).sqrt().clamp(min=1e-12)  # of the steepest descent
    for _ in (bar := tqdm(range(iterations), desc="plan", disable=None if progress else True)):
        way, weights = gradient, []
        for s, y, r in reversed(pairs):
            weights.append(r * dot(s, way))
            way = way - weights[-1] * y
        way = width * way
        for (s, y, r), weight in zip(pairs, reversed(weights), strict=True):
            way = way + s * (weight - r * dot(y, way))
        trial = u - scale * way
        new, slope = objective(trial)
        slope = torch.where(slope.isfinite(), slope, 0.0)
        good = (new < cost)[..., None, None, None]
        s, y = trial - u, slope - gradient
        bend = dot(s, y)
        used = good & (bend > 0)
        pairs = [*pairs, (s, y, torch.where(used, 1 / torch.where(used, bend, 1.0), 0.0))][-12:]
        width = torch.where(used, bend / dot(y, y).clamp(min=1e-300), width)
        scale = torch.where(good, (4 * scale).clamp(max=1.0), 0.25 * scale)
        lost = scale < 1e-4  # nothing better along there: steepest descent once more
        pairs = [(s, y, torch.where(lost, 0.0, r)) for s, y, r in pairs]
        width = torch.where(lost, 0.01 / dot(gradient, gradient).sqrt().clamp(min=1e-12), width)
        scale = torch.where(lost, 1.0, scale)
        u, gradient = torch.where(good, trial, u), torch.where(good, slope, gradient)
        cost = torch.where(good[..., 0, 0, 0], new, cost)
        bar.set_postfix_str(f"{100 * float(cost.max()) ** 0.5:.2f} cm")
    return u


def _over(path: Tensor, limits: list[tuple[int, int, Tensor]]) -> Tensor:
    """By how much of the rod's length clamped vertices part more than they shall, at the most; -1 where none can."""
    over = [
        (path[..., a, :] - path[..., b, :]).square().sum(-1).amax(-1).clamp(min=1e-24).sqrt() / length - 1 + _SLACK
        for a, b, length in limits
    ]
    return torch.stack(over).amax(0) if over else torch.full_like(path[..., 0, 0, 0], -1)


def _guess(grips: Grips, position: Tensor, goal: Tensor, where: Tensor, clamped: Tensor, dt: float) -> Tensor:
    """Knots (*b, k, g, 6) of a motion straight to the goal; a grip that is not marked goes as far as the rest does."""
    count = grips.middle.shape[-2]
    slot = {v: i for i, v in enumerate(where.tolist())}
    aim = goal.detach().double()
    shift = (aim - position.detach()[..., where, :]).mean(-2, keepdim=True).expand_as(grips.middle).clone()
    turn = torch.zeros_like(shift)
    for g in range(count):
        mine = (grips.member == g).nonzero()[:, 0]
        places = [slot[v] for v in clamped[mine].tolist() if v in slot]
        if len(places) < len(mine):
            continue
        there = aim[..., places, :]
        shift[..., g, :] = there.mean(-2) - grips.middle[..., g, :]
        if len(places) > 1:
            a = grips.axis[..., g, :]
            b = _axes(there, clamped[mine], torch.zeros_like(mine), 1)[..., 0, :]
            across = torch.linalg.cross(a, b)
            sine = across.norm(dim=-1, keepdim=True)
            turn[..., g, :] = across / sine.clamp(min=1e-12) * torch.atan2(sine, (a * b).sum(-1, keepdim=True))
    seconds = dt * grips.hats.sum()
    parts = []
    for limit, x in zip(grips.limits, (shift, turn), strict=True):
        rate = x / seconds / limit
        size = rate.norm(dim=-1, keepdim=True)
        rate = rate * (0.9 / size.clamp(min=0.9))
        parts.append(rate / (1 - rate.square().sum(-1, keepdim=True)).sqrt())
    return torch.cat(parts, -1)[..., None, :, :].repeat_interleave(grips.hats.shape[1], -3).contiguous()
