"""Implicit steps of rods: stability, conservation, order, and derivatives."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch

from geom.errors import ConvergenceWarning, ShapeError
from geom.rods import Rod, State, Track, edge_tangents, elastic_forces, make_rod, rollout, start, transport
from geom.rods.energy import stresses
from geom.rods.implicit import implicit_euler, implicit_midpoint
from geom.rods.statics import equilibrium, potential_energy
from geom.rods.twin import relax_rolls
from geom.values import replace

Steps = Callable[..., Track]
BOTH = pytest.mark.parametrize("steps_of", [implicit_euler, implicit_midpoint])


def hanging(n: int, EI: float, dtype: torch.dtype = torch.float64, drag: float = 0.0) -> tuple[Rod, torch.Tensor]:
    line = torch.linspace(0, 1, n, dtype=dtype)
    x = torch.stack([line, 0 * line, -0.3 * (math.pi * line).sin()], -1)
    return make_rod(x, EI=EI, GJ=EI, drag=drag), x


def grippers(x: torch.Tensor, steps: int, dt: float) -> torch.Tensor:
    """Two grippers that hold two vertices each, approach, lift, and of which one turns."""
    t = dt * torch.arange(1, steps + 1, dtype=x.dtype)
    goal = x[[0, 1, -2, -1]] + torch.zeros(steps, 4, 3, dtype=x.dtype)
    goal[:, 2:, 0] -= (0.2 * (1 - (2 * t).cos()))[:, None]
    goal[:, :, 2] += (0.2 * (1 - (2.5 * t).cos()))[:, None]
    a = 0.75 * (1 - (2 * t).cos())
    d = x[-1] - x[-2]
    goal[:, 3, :2] = goal[:, 2, :2] + d[0] * torch.stack([a.cos(), a.sin()], -1)
    return goal


@BOTH
@pytest.mark.parametrize("n", [13, 50])
def test_stable_over_five_decades_of_stiffness(steps_of: Steps, n: int) -> None:
    for EI in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        rod, x = hanging(n, EI, drag=0.2)
        state = start(rod, x, clamped=(0, 1, -2, -1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            track = steps_of(rod, state, clamped=(0, 1, -2, -1), targets=grippers(x, 150, 0.01), held=(1, n - 1))
        edges = (track.position[:, 1:] - track.position[:, :-1]).norm(dim=-1)
        assert float((edges - rod.length[1:]).abs().max()) < 1e-12
        assert float(track.end.velocity.norm(dim=-1).max()) < 6


@BOTH
def test_float32_lengths_and_clamps(steps_of: Steps, dtype: torch.dtype) -> None:
    rod, x = hanging(13, 1e-2, dtype)
    goal = grippers(x, 100, 0.01)
    track = steps_of(rod, start(rod, x, clamped=(0, 1, -2, -1)), clamped=(0, 1, -2, -1), targets=goal)
    edges = (track.position[:, 1:] - track.position[:, :-1]).norm(dim=-1)
    assert track.position.dtype == dtype
    assert torch.equal(track.position[:, [0, 1, -2, -1]], goal)
    assert float((edges - rod.length[1:]).abs().max()) < (1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("steps_of", "blend"), [(implicit_euler, 1.0), (implicit_midpoint, 0.5)])
def test_a_step_solves_its_equation(steps_of: Steps, blend: float) -> None:
    """With forces of the torch functions: what inertia leaves of them acts along the edges."""
    rod, x = branched(0.0, False)
    drags = {"drag": 0 * rod.drag, "quadratic_drag": 0 * rod.drag, "internal_damping": 0 * rod.drag}
    rod = replace(rod, **drags)
    first = start(rod, x, 0.1 * x.flip(0), clamped=(0,))
    dt = 0.01
    end = steps_of(rod, first, steps=1, clamped=(0,), dt=dt).end
    z, x = end.position, first.position
    y = x + blend * (z - x)
    m = transport(end.director, edge_tangents(z, rod.parent), edge_tangents(y, rod.parent))
    free = torch.zeros(9, dtype=torch.bool)
    m, s = relax_rolls(rod, y, m, end.strain, held=free)
    force = elastic_forces(rod, y, m, stresses(rod, s)) + rod.mass[:, None] * torch.tensor(
        [0, 0, -9.81], dtype=torch.float64
    )
    left = (rod.mass[:, None] * (z - x - dt * first.velocity) / (blend * dt**2) - force)[1:].reshape(-1)
    pulls = torch.zeros(9, 3, 8, dtype=torch.float64)
    for k in range(1, 9):
        p = int(rod.parent[k])
        pulls[k, :, k - 1], pulls[p, :, k - 1] = y[k] - y[p], y[p] - y[k]
    a = pulls[1:].reshape(24, 8)
    mu = torch.linalg.lstsq(a, left[:, None], driver="gelsd").solution[:, 0]
    assert float((left - a @ mu).abs().max() / force.abs().max()) < 1e-9


def energy(rod: Rod, state: State) -> float:
    kinetic = 0.5 * (rod.mass[:, None] * state.velocity.square()).sum()
    return float(kinetic + potential_energy(rod, state))


@pytest.mark.parametrize(("EI", "dt"), [(1e-4, 5e-3), (1e-2, 1e-2), (1.0, 1e-3)])
def test_midpoint_energy_stays_bounded_over_10000_steps(EI: float, dt: float) -> None:
    rod, x = hanging(9, EI)
    state = start(rod, x, clamped=(0,))
    first = energy(rod, state)
    scale = max(9.81 * float(rod.mass.sum()) * 0.5, abs(first))  # what it exchanges: weight by depth, or bending
    for _ in range(20):
        state = implicit_midpoint(rod, state, steps=500, dt=dt, clamped=(0,)).end
        assert abs(energy(rod, state) - first) < 0.02 * scale


def whirling() -> tuple[Rod, State]:
    t = torch.linspace(0, 1, 10, dtype=torch.float64)
    x = torch.stack([t, 0.3 * (2 * t).sin(), 0.2 * (3 * t).cos()], -1)
    rod = make_rod(x, EI=torch.tensor([1e-3, 2e-3]).double(), GJ=1e-3, linear_density=0.05)
    rod = replace(rod, curvature=rod.curvature + 0.1, twist=rod.twist + 0.05)
    spin = torch.tensor([0.3, 1.0, -0.7]).double().expand_as(x)
    return rod, start(rod, x, torch.linalg.cross(spin, x))


@pytest.mark.parametrize("EA", [math.inf, 50.0])
def test_momenta_of_a_free_rod_are_conserved(EA: float) -> None:
    rod, state = whirling()
    rod = replace(rod, stretch_stiffness=torch.full_like(rod.length, EA))

    def momenta(state: State) -> torch.Tensor:
        p = rod.mass[:, None] * state.velocity
        return torch.cat([p.sum(0), torch.linalg.cross(state.position, p).sum(0)])

    first = momenta(state)
    end = implicit_midpoint(rod, state, steps=300, gravity=(0, 0, 0)).end
    assert float((momenta(end) - first).abs().max()) < 1e-12
    end = implicit_euler(rod, state, steps=300, gravity=(0, 0, 0)).end
    assert float((momenta(end) - first)[:3].abs().max()) < 1e-12


def test_stretching_keeps_its_energy() -> None:
    """Two masses on a spring: the discrete gradient is exact, whatever the step."""
    x = torch.tensor([[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]], dtype=torch.float64)
    rod = make_rod(x, EI=1e-12, GJ=1e-12, EA=1.0)
    v = torch.tensor([[-1, 0.3, 0], [0, 0, 0], [1, -0.3, 0]], dtype=torch.float64)
    state = State(x, v, start(rod, x).director, 0 * x)
    first, dt = energy(rod, state), 0.004
    for _ in range(10):
        state = implicit_midpoint(rod, state, steps=20, dt=dt, gravity=(0, 0, 0)).end
        assert abs(energy(rod, state) / first - 1) < 1e-8


@pytest.mark.parametrize(("steps_of", "order"), [(implicit_euler, 1), (implicit_midpoint, 2)])
def test_order(steps_of: Steps, order: int) -> None:
    rod, x = hanging(6, 5e-3)
    state = start(rod, x, clamped=(0,))
    exact = implicit_midpoint(rod, state, steps=3200, dt=0.2 / 3200, clamped=(0,)).end.position
    explicit = rollout(rod, state, steps=20000, dt=0.2 / 20000, clamped=(0,)).end.position
    assert float((explicit - exact).abs().max()) < 2e-4
    errors = [
        float((steps_of(rod, state, steps=k, dt=0.2 / k, clamped=(0,)).end.position - exact).abs().max())
        for k in (50, 100)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.3


def test_long_steps_lead_to_equilibrium() -> None:
    rod, x = hanging(13, 1e-2)
    end = implicit_euler(rod, start(rod, x, clamped=(0, 1)), steps=400, dt=0.1, clamped=(0, 1)).end
    rest = equilibrium(rod, x, clamped=(0, 1)).value
    assert float((end.position - rest.position).norm(dim=-1).max()) < 1e-8


def branched(viscosity: float, stretches: bool) -> tuple[Rod, torch.Tensor]:
    k = torch.arange(6).double()
    main = torch.stack([0.1 * k, 0.03 * k.sin(), 0.02 * k.cos()], -1)
    j = torch.arange(1, 4).double()
    x = torch.cat([main, main[3] + torch.stack([0.02 * j, 0.08 * j, 0.01 * j**2], -1)])
    rod = make_rod(
        x,
        EI=torch.tensor([2e-3, 5e-3]).double(),
        GJ=3e-3,
        offsets=torch.tensor([0, 6, 9]),
        junctions=[(3, 1)],
        straight=False,
        drag=0.5,
        quadratic_drag=0.7,
        internal_damping=2.0,
        viscosity=viscosity,
    )
    EA = torch.tensor([1, 50, math.inf, 80, math.inf, 60, 60, math.inf, 40]) if stretches else torch.tensor(math.inf)
    return replace(rod, curvature=rod.curvature + 0.1, stretch_stiffness=EA.double().expand(9).clone()), x


PARAMETERS = ["length", "mass", "bend_stiffness", "twist_stiffness", "curvature", "twist"]
PARAMETERS += ["drag", "quadratic_drag", "internal_damping", "viscosity"]


@BOTH
@pytest.mark.parametrize(("viscosity", "stretches"), [(0.0, False), (0.02, True)])
def test_derivatives_against_differences(steps_of: Steps, viscosity: float, stretches: bool) -> None:
    """In every parameter, start, clamp, force and gravity, on a branched rod with all its damping."""
    steps = 6
    base, x = branched(viscosity, stretches)
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    fixed = {"clamped": (0, 1, -1), "held": (1,)}
    first = start(base, x, clamped=(0, 1, -1), held=(1,))
    values = {key: getattr(base, key).clone() for key in PARAMETERS}
    values |= {"velocity": 0.3 * noise(9, 3), "forces": 0.01 * noise(steps, 9, 3)}
    values |= {"gravity": torch.tensor([0.3, 0.2, -9.81]).double()}
    drift = 0.02 * noise(3) * torch.arange(1, steps + 1)[:, None, None]
    values |= {"targets": first.position[[0, 1, -1]] + drift}
    weight, last = noise(steps, 9, 3), noise(9, 3)

    def loss(given: dict[str, torch.Tensor]) -> torch.Tensor:
        rod = replace(base, **{key: given[key] for key in PARAMETERS})
        state = replace(first, velocity=given["velocity"])
        rest = {key: given[key] for key in ("targets", "forces", "gravity")}
        track = steps_of(rod, state, **fixed, **rest)
        return (track.position * weight).sum() + 0.1 * (track.end.velocity * last).sum()

    free = {key: value.clone().requires_grad_() for key, value in values.items()}
    loss(free).backward()
    for key, value in values.items():
        grad = free[key].grad
        assert grad is not None
        if key == "viscosity" and viscosity == 0:
            continue
        way = noise(*value.shape)
        way = way * (value if key == "length" else value.abs().amax() if key != "targets" else 0.1)
        h, total = 1e-4, 0.0
        for step, share in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
            total += share / h * float(loss({**values, key: value + step * h * way}))
        assert abs(float((grad * way).sum()) - total) < 1e-6 * max(1e-2, abs(total)), key


@BOTH
@pytest.mark.parametrize("viscosity", [0.0, 0.2])
def test_derivative_in_the_shape_it_starts_from(steps_of: Steps, viscosity: float) -> None:
    """That shape is at rest in its rolls, so the strain that viscosity takes as the one before moves with it."""
    rod, x = branched(viscosity, True)
    weight, way = (torch.randn(9, 3, generator=torch.Generator().manual_seed(k)).double() for k in (3, 4))

    def loss(x: torch.Tensor) -> torch.Tensor:
        state = start(rod, x, clamped=(0, 1, -1))
        return (steps_of(rod, state, steps=2, clamped=(0, 1, -1)).position[-1] * weight).sum()

    own = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(own), own)
    h = 1e-5
    total = sum(
        share / h * float(loss(x + k * h * way)) for k, share in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
    )
    assert abs(float((grad * way).sum()) - total) < 1e-7 * abs(total)


@BOTH
def test_a_rollout_is_two_halves_and_a_batch_its_entries(steps_of: Steps) -> None:
    rod, x = branched(0.02, True)
    state = start(rod, x, clamped=(0,))
    whole = steps_of(rod, state, steps=8, clamped=(0,))
    half = steps_of(rod, state, steps=4, clamped=(0,))
    rest = steps_of(rod, half.end, steps=4, clamped=(0,))
    torch.testing.assert_close(rest.position, whole.position[4:], atol=1e-12, rtol=0)
    two = torch.stack([x, x + 0.1])
    both = steps_of(rod, start(rod, two, clamped=(0,)), steps=8, clamped=(0,))
    torch.testing.assert_close(both.position[0], whole.position, atol=1e-12, rtol=0)
    torch.testing.assert_close(both.position[1] - 0.1, whole.position, atol=1e-9, rtol=0)


def test_failed_steps_are_named_and_finite() -> None:
    """Clamps that jump by what no step of this rod can follow."""
    rod, x = hanging(13, 1.0)
    goal = x[[0, 1, -2, -1]][None].clone()
    goal[0, 2:] = goal[0, 2:].flip(0) + 1e-3  # the last gripper turned round at once
    state = start(rod, x, clamped=(0, 1, -2, -1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        track = implicit_midpoint(rod, state, clamped=(0, 1, -2, -1), targets=goal, held=(1, 12))
    assert track.position.isfinite().all()
    assert all(issubclass(w.category, ConvergenceWarning) for w in caught)


@pytest.mark.usefixtures("unchecked")
@BOTH
def test_bad_input(steps_of: Steps) -> None:
    rod, x = hanging(8, 1e-3)
    state = start(rod, x)
    with pytest.raises(ShapeError, match="steps"):
        steps_of(rod, state)
    with pytest.raises(ShapeError, match="targets"):
        steps_of(rod, state, clamped=(0,), targets=x[None, :2])
    with pytest.raises(ShapeError, match="forces"):
        steps_of(rod, state, forces=x[None, :2])
    with pytest.raises(ShapeError, match="finite"):
        steps_of(rod, state, clamped=(0,), targets=x[None, :1] * math.nan)
    with pytest.raises(ShapeError, match="no farther apart"):
        steps_of(rod, state, clamped=(0, 7), targets=3 * x[None, [0, 7]])
    with pytest.raises(ShapeError, match="dt"):
        steps_of(rod, state, steps=3, dt=0.0)
