"""Plans: a goal that a known motion made is reached, limits hold to rounding, gradients are right, wrong input."""

import math
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import quaternion
from geom.rods import Rod, State, make_rod, rollout, start
from geom.rods.planning import Grips, gather_grips, plan

CLAMPED, HELD = (0, 1, -2, -1), (1, 12)
STEPS, REST = 120, 30


@lru_cache
def hanging(dtype: torch.dtype = torch.float64) -> tuple[Rod, State]:
    """A cable at rest between two grips, 0.8 m of its 1.2 m apart."""
    turn = torch.linspace(-1.2, 1.2, 12, dtype=dtype)
    arc = torch.zeros(13, 3, dtype=dtype)
    arc[1:, 0], arc[1:, 2] = (0.1 * turn.cos()).cumsum(0), (0.1 * turn.sin()).cumsum(0)
    rod = make_rod(arc, EI=5e-4, GJ=3e-4, drag=2.0, viscosity=0.03)
    settled = rollout(rod, start(rod, arc, clamped=CLAMPED), steps=300, clamped=CLAMPED, held=HELD)
    return rod, settled.end


def grips_of(rod: Rod, state: State, speed: float = 0.5, turn: float = 1.5) -> Grips:
    clamped = torch.tensor(CLAMPED) % 13
    limits = (speed, turn)
    return gather_grips(rod, state.position, clamped, steps=STEPS, rest=REST, knots=4, limits=limits)


def moved(rod: Rod, state: State, seed: int, size: float = 0.3) -> Tensor:
    """Where the cable comes to rest after some motion of its grips."""
    noise = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    path = grips_of(rod, state).move(size * noise, 0.01)[1].to(state.position)
    end = rollout(rod, state, clamped=CLAMPED, targets=path, held=HELD).end
    return rollout(rod, end, steps=300, clamped=CLAMPED, held=HELD).end.position


def speeds(path: Tensor, dt: float = 0.01) -> tuple[float, float]:
    """Of the grips' middles, m/s, and of their edges' turning, rad/s, as the targets show them."""
    pair = path.unflatten(-2, (2, 2))
    edge = torch.nn.functional.normalize(pair[..., 1, :] - pair[..., 0, :], dim=-1)
    sine = torch.linalg.cross(edge[1:], edge[:-1]).norm(dim=-1)
    turn = torch.atan2(sine, (edge[1:] * edge[:-1]).sum(-1))
    return float(pair.mean(-2).diff(dim=0).norm(dim=-1).max() / dt), float(turn.max() / dt)


def test_a_goal_that_a_motion_made_is_reached(dtype: torch.dtype) -> None:
    rod, state = hanging(dtype)
    goal = moved(rod, state, 0)
    assert float((goal - state.position).norm(dim=-1).max()) > 0.1
    found = plan(
        rod, state, goal, clamped=CLAMPED, steps=STEPS, rest=REST, tolerance=5e-3, iterations=25, progress=False
    )
    assert bool(found.converged) and float(found.error) < 5e-3
    assert found.targets.shape == (STEPS, 4, 3) and found.targets.dtype == dtype
    again = rollout(rod, state, clamped=CLAMPED, targets=found.targets, held=HELD).position
    off = (again[-REST:] - goal).norm(dim=-1)
    torch.testing.assert_close(found.error, off[-1].max(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.cost, off.square().mean(), rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(again[:, [0, 1, -2, -1]], found.targets)


def test_no_step_breaks_a_limit() -> None:
    rod, state = hanging()
    goal = moved(rod, state, 2)
    given = {"clamped": CLAMPED, "steps": STEPS, "rest": REST, "iterations": 15, "progress": False}
    found = plan(rod, state, goal, max_speed=0.06, max_turn=0.1, **given)  # too slow for this goal
    fastest, sharpest = speeds(torch.cat([state.position[None, [0, 1, -2, -1]], found.targets]))
    assert 0.05 < fastest <= 0.06 * (1 + 1e-12) and 0.05 < sharpest <= 0.1 * (1 + 1e-11)
    assert float(found.speed) == pytest.approx(fastest, rel=1e-10) and float(found.speed) <= 0.06
    assert float(found.turn) == pytest.approx(sharpest, rel=1e-10) and float(found.turn) <= 0.1
    assert float(found.error) > 0.02
    quick = plan(rod, state, goal, **given)
    assert float(quick.cost) < 0.1 * float(found.cost)


def test_any_knots_keep_the_limits_and_the_grips_rigid() -> None:
    rod, state = hanging()
    grips = grips_of(rod, state)
    u = 1e6 * torch.randn(5, 4, 2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pose, path = grips.move(u, 0.01)
    for item in path:
        fastest, sharpest = speeds(torch.cat([state.position[None, [0, 1, -2, -1]], item]))
        assert 0.3 < fastest <= 0.5 * (1 + 1e-12) and 0.5 < sharpest <= 1.5 * (1 + 1e-11)
        pair = item.unflatten(-2, (2, 2))
        length = torch.full((STEPS, 2), 0.1, dtype=torch.float64)
        torch.testing.assert_close((pair[:, :, 1] - pair[:, :, 0]).norm(dim=-1), length)
    assert float(path[:, -REST - 1 :].diff(dim=1).abs().max()) < 1e-13  # they stand still in the end
    place = pose.translation[:, :, [0, 0, 1, 1]] + quaternion.rotate(pose.quat_wxyz[:, :, [0, 0, 1, 1]], grips.arm)
    torch.testing.assert_close(place, path)


def test_poses_roll_with_the_held_edges() -> None:
    """A director turned by a grip's pose is that which the rollout carries along."""
    rod, state = hanging()
    u = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.3
    pose, path = grips_of(rod, state).move(u, 0.01)
    end = rollout(rod, state, clamped=CLAMPED, targets=path, held=HELD).end
    turned = quaternion.rotate(pose.quat_wxyz[-1], state.director[[1, 12]])
    torch.testing.assert_close(turned, end.director[[1, 12]], atol=1e-9, rtol=0)


def test_the_gradient_is_that_of_differences() -> None:
    rod, state = hanging()
    grips, goal = grips_of(rod, state), moved(rod, state, 0)

    def cost(u: Tensor) -> Tensor:
        track = rollout(rod, state, clamped=CLAMPED, targets=grips.move(u, 0.01)[1], held=HELD)
        return (track.position[-REST:] - goal).square().sum(-1).mean()

    generator = torch.Generator().manual_seed(4)
    u, way = (torch.randn(4, 2, 6, generator=generator, dtype=torch.float64) * 0.2 for _ in range(2))
    u.requires_grad_()
    (gradient,) = torch.autograd.grad(cost(u), u)
    with torch.no_grad():
        difference = (cost(u + 1e-5 * way) - cost(u - 1e-5 * way)) / 2e-5
    torch.testing.assert_close((gradient * way).sum(), difference, rtol=1e-5, atol=1e-10)


def test_a_batch_of_goals_for_marked_vertices() -> None:
    """Only vertices 5 to 7 count: the grips follow them, by themselves, and each goal as if it were alone."""
    rod, state = hanging()
    marked = [5, 6, 7]
    goals = torch.stack([moved(rod, state, seed)[marked] for seed in (0, 2)])
    both = State(*(x.expand(2, 13, 3) for x in (state.position, state.velocity, state.director, state.strain)))
    given = {"clamped": CLAMPED, "marked": marked, "steps": STEPS, "rest": REST, "iterations": 20, "progress": False}
    found = plan(rod, both, goals, **given)
    assert found.error.shape == (2,) and float(found.error.max()) < 5e-3 and bool(found.converged.all())
    assert found.value.quat_wxyz.shape == (2, STEPS, 2, 4)
    alone = plan(
        rod, State(*(x[1] for x in (both.position, both.velocity, both.director, both.strain))), goals[1], **given
    )
    torch.testing.assert_close(alone.targets, found.targets[1], atol=1e-4, rtol=0)


def test_a_goal_out_of_reach_is_no_success() -> None:
    rod, state = hanging()
    goal = state.position.clone()
    goal[:, 0] *= 3  # grips farther apart than the cable is long
    found = plan(rod, state, goal, clamped=CLAMPED, steps=STEPS, rest=REST, iterations=10, progress=False)
    assert not bool(found.converged) and 0.05 < float(found.error) < math.inf
    assert bool(found.targets.isfinite().all())
    assert float((found.targets[:, 1] - found.targets[:, 2]).norm(dim=-1).max()) <= 1.0 * (1 + 1e-5)


def test_one_free_grip_swings_a_rope() -> None:
    """A single clamped vertex is a grip that does not turn."""
    rod, state = hanging()
    rope = rollout(rod, state, steps=400, clamped=(0,)).end
    goal = rope.position + torch.tensor([0.1, 0.05, 0.1], dtype=torch.float64)
    found = plan(rod, rope, goal, clamped=(0,), steps=200, iterations=15, progress=False)
    assert bool(found.converged) and float(found.turn) == 0.0


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    rod, state = hanging()
    goal = state.position
    good = {"clamped": CLAMPED, "steps": 10, "progress": False}
    with pytest.raises(ShapeError, match=r"goal: expected finite numbers \(13, 3\)"):
        plan(rod, state, goal[:5], **good)
    with pytest.raises(ShapeError, match="goal: expected finite"):
        plan(rod, state, goal * math.nan, **good)
    with pytest.raises(ShapeError, match=r"goal: .*float64"):
        plan(rod, state, goal.float(), **good)
    with pytest.raises(ShapeError, match=r"goal: expected finite numbers \(2, 3\)"):
        plan(rod, state, goal, marked=[3, 4], **good)
    with pytest.raises(ShapeError, match="marked: expected vertices from -13 to 12"):
        plan(rod, state, goal[:1], marked=[20], **good)
    with pytest.raises(ShapeError, match="clamped: expected vertices in some grip, got none"):
        plan(rod, state, goal, clamped=(), steps=10)
    with pytest.raises(ShapeError, match="max_speed: expected a finite number above 0"):
        plan(rod, state, goal, max_speed=0.0, **good)
    with pytest.raises(ShapeError, match="rest: expected 1 to 9 steps"):
        plan(rod, state, goal, rest=10, **good)
    with pytest.raises(ShapeError, match="iterations: expected a number of at least 1"):
        plan(rod, state, goal, iterations=0, **good)
