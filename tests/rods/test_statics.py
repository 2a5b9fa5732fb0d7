"""Equilibria of rods against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import brentq

from geom.errors import ShapeError
from geom.rods import Rod, directors_without_twist, edge_tangents, make_rod, rollout, start
from geom.rods.statics import equilibrium, potential_energy
from geom.values import replace

# tip (x, y) / L of a heavy cantilever by w L^3 / EI
ELASTICA = {
    1: (0.99124640, 0.12347140),
    5: (0.84665718, 0.49590504),
    10: (0.65635376, 0.70019971),
    50: (0.24501476, 0.90791712),
}
CLAMP = (0, 1)


def root(function: Callable[[float], float], low: float, high: float) -> float:
    x = brentq(function, low, high)
    assert isinstance(x, float)
    return x


def cantilever(n: int, EI: float, grade: float = 0.0) -> tuple[Rod, torch.Tensor]:
    """A rod along x, clamped at x = 0: its first bend, which has half a bend's length beyond the clamp, is twice as
    stiff, so that the clamp acts at vertex 1. Edges get longer along the rod by `grade`."""
    t = torch.linspace(0, 1, n - 1, dtype=torch.float64)
    s = (1 - grade) * t + grade * t * t
    line = torch.cat([-s[1:2], s])
    x = torch.stack([line, 0 * line, 0 * line], -1)
    stiffness = torch.full((n, 2), EI, dtype=torch.float64)
    stiffness[2] *= 2
    return make_rod(x, EI=stiffness, GJ=EI, linear_density=1.0), x


def tip_error(alpha: int, n: int, grade: float) -> float:
    rod, x = cantilever(n, 1 / alpha, grade)
    fit = equilibrium(rod, x, clamped=CLAMP, gravity=(0.0, 0.0, -1.0))
    assert bool(fit.converged)
    edges = (fit.value.position[1:] - fit.value.position[:-1]).norm(dim=-1)
    assert float((edges - rod.length[1:]).abs().max()) < 1e-12
    expected = torch.tensor([ELASTICA[alpha][0], 0, -ELASTICA[alpha][1]], dtype=torch.float64)
    return float((fit.value.position[-1] - expected).norm())


@pytest.mark.parametrize(("alpha", "grade"), [(1, 0.0), (5, 0.0), (10, 0.0), (50, 0.3)])
def test_tips_of_the_heavy_elastica(alpha: int, grade: float) -> None:
    fine, coarse = tip_error(alpha, 100, grade), tip_error(alpha, 50, grade)
    assert fine < 1e-4
    assert 3.0 < coarse / fine < 5.5  # second order


def test_the_strongest_bend_with_equal_edges() -> None:
    assert tip_error(50, 100, 0.0) < 1.5e-4


def test_small_deflections() -> None:
    rod, x = cantilever(100, 1.0)
    load = torch.zeros_like(x)
    load[-1, 2] = -1e-3
    end = equilibrium(rod, x, clamped=CLAMP, gravity=(0, 0, 0), forces=load).value.position[-1]
    assert abs(float(end[2]) / (-1e-3 / 3) - 1) < 1e-3  # P L^3 / 3 EI
    end = equilibrium(rod, x, clamped=CLAMP, gravity=(0, 0, -1e-3)).value.position[-1]
    assert abs(float(end[2]) / (-1e-3 / 8) - 1) < 1e-3  # w L^4 / 8 EI


def test_an_end_moment_makes_a_circular_arc() -> None:
    n, moment, EI = 40, 1.0, 1.0
    rod, x = cantilever(n, EI)
    length = float(rod.length[2])

    def slope(turn: float, stiffness: float) -> float:  # derivative of (2 tan(turn / 2))^2 stiffness / 2
        return 2 * stiffness * math.tan(turn / 2) / math.cos(turn / 2) ** 2

    bends = [root(lambda a, k=k: slope(a, k) - moment, 0, 1) for k in (2 * EI / length, EI / length)]
    angles = torch.tensor(bends, dtype=torch.float64)[torch.tensor([0] + [1] * (n - 3))].cumsum(
        0
    )  # of the edges after the first
    last = float(angles[-1])
    force = torch.zeros_like(x)
    force[-1] = moment / length * torch.tensor([-math.sin(last), 0, math.cos(last)])
    force[-2] = -force[-1]
    fit = equilibrium(rod, x, clamped=CLAMP, gravity=(0, 0, 0), forces=force)
    edge = fit.value.position[2:] - fit.value.position[1:-1]
    found = torch.atan2(edge[:, 2], edge[:, 0])
    away = torch.remainder(found - angles + math.pi, 2 * math.pi) - math.pi
    assert float(away.abs().max()) < 1e-8
    assert abs(float(angles[-1]) - moment / EI * (1 - length / 2)) < 1e-3  # curvature M / EI


def test_catenary() -> None:
    """EI near 0: y = a cosh(x / a), of arc length 2 a sinh(d / 2 a)."""
    n, span = 101, 0.6
    a = root(lambda a: 2 * a * math.sinh(span / 2 / a) - 1, 0.05, 1)
    line = torch.linspace(0, 1, n, dtype=torch.float64)
    x = torch.stack([span * line, 0 * line, -0.4 * (math.pi * line).sin()], -1)
    rod = make_rod(torch.stack([line, 0 * line, 0 * line], -1), EI=1e-8, GJ=1e-8)
    fit = equilibrium(rod, x, clamped=(0, -1))
    p = fit.value.position
    height = a * torch.cosh((p[:, 0] - span / 2) / a) - a * math.cosh(span / 2 / a)
    assert bool(fit.converged)
    assert float((p[:, 2] - height).abs().max()) < 2e-4


def test_hockling_profile() -> None:
    """A long twisted rod in tension, localised: (u - u0) / (1 - u0) = tanh^2(k s), u the cosine of its tilt."""
    u0, EI, tension, n, long = 0.3, 1.0, 1.0, 401, 20.0
    moment = math.sqrt(2 * EI * tension * (1 + u0))
    k = math.sqrt(tension * (1 - u0) / (2 * EI))
    fine = torch.linspace(-long / 2, long / 2, 20 * (n - 1) + 1, dtype=torch.float64)
    mid = 0.5 * (fine[1:] + fine[:-1])
    u = u0 + (1 - u0) * torch.tanh(k * mid).square()
    turn = (moment / EI / (1 + u) * (fine[1] - fine[0])).cumsum(0)
    turn = turn - 0.5 * moment / EI / (1 + u) * (fine[1] - fine[0])
    side = (1 - u * u).clamp(min=0).sqrt()
    tangent = torch.stack([u, side * turn.cos(), side * turn.sin()], -1)
    x = torch.cat([torch.zeros(1, 3).double(), (tangent * (fine[1] - fine[0])).cumsum(0)])[::20]
    rod = make_rod(x, EI=EI, GJ=2.0)
    rod = replace(rod, length=torch.full((n,), long / (n - 1)).double())
    t = edge_tangents(x, rod.parent)
    roll = torch.arange(n, dtype=torch.float64) * moment / 2.0 * long / (n - 1)
    bare = directors_without_twist(t, rod.parent)
    m = roll.cos()[:, None] * bare + roll.sin()[:, None] * torch.linalg.cross(t, bare)
    fit = equilibrium(rod, x, clamped=(0, 1, -2, -1), held=(1, n - 1), director=m, gravity=(0, 0, 0))
    assert bool(fit.converged)
    after = edge_tangents(fit.value.position, rod.parent)[1:, 0]
    s = (torch.arange(n - 1, dtype=torch.float64) + 0.5) * long / (n - 1) - long / 2
    exact = u0 + (1 - u0) * torch.tanh(k * s).square()
    assert float((after - exact).abs().max()) < 5e-3
    found = 2.0 * fit.value.strain[2:, 2] / rod.length[2:]
    assert float((found / moment - 1).abs().max()) < 5e-3  # the same moment all along


def test_a_straight_rod_under_too_much_load_buckles() -> None:
    n = 31
    line = torch.linspace(0, 1, n, dtype=torch.float64)
    x = torch.stack([0 * line, 0 * line, line], -1)
    for weight, buckles in ((7.0, False), (9.0, True)):  # w L^3 / EI critical: 7.8373 for L from the clamp
        rod = make_rod(x, EI=1.0, GJ=1.0, linear_density=weight / (1 - 0.5 / (n - 1)) ** 3)
        fit = equilibrium(rod, x, clamped=CLAMP, gravity=(0, 0, -1))
        assert bool(fit.converged)
        assert (float(fit.value.position[-1, :2].norm()) > 0.3) == buckles


def test_equilibrium_is_where_damped_motion_ends() -> None:
    n = 13
    line = torch.linspace(0, 1, n, dtype=torch.float64)
    x = torch.stack([line, 0 * line, 0.1 * line.sin()], -1)
    rod = make_rod(x, EI=2e-3, GJ=1e-3, drag=4.0, internal_damping=20.0)
    rest = equilibrium(rod, x, clamped=(0, 1), held=(1,)).value
    state = start(rod, x, clamped=(0, 1), held=(1,))
    end = rollout(rod, state, steps=6000, dt=2e-3, clamped=(0, 1), held=(1,)).end
    assert float((end.position - rest.position).norm(dim=-1).max()) < 1e-9
    damped = replace(rod, drag=rod.drag * 7)
    other = equilibrium(damped, x, clamped=(0, 1), held=(1,)).value
    assert torch.equal(other.position, rest.position)


def loaded() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    n = 9
    line = torch.linspace(0, 1, n, dtype=torch.float64)
    x = torch.stack([line, 0.1 * (3 * line).sin(), 0.05 * (5 * line).cos()], -1)
    clamp = x[[0, 1, -1]] + torch.tensor([0.0, 0.0, 0.1]).double()
    clamp[2] -= torch.tensor([0.15, 0.02, 0.03]).double()
    return {
        "x": x,
        "EI": torch.tensor([4e-3, 9e-3]).double().expand(n, 2).clone(),
        "GJ": torch.full((n,), 5e-3).double(),
        "mass": torch.full((n,), 2.5e-3).double(),
        "length": (x - x.roll(1, 0)).norm(dim=-1),
        "targets": clamp,
        "forces": 0.01 * torch.randn(n, 3, generator=generator, dtype=torch.float64),
        "gravity": torch.tensor([0.3, -0.2, -9.81]).double(),
    }


def test_derivatives_of_equilibria() -> None:
    """Through the implicit function theorem, against differences of solutions."""
    given = loaded()
    weight = torch.cos(torch.arange(27).double()).reshape(9, 3)
    base = make_rod(given["x"], EI=1.0, GJ=1.0)

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        length = torch.where(torch.arange(9) > 0, values["length"], 0.0)
        rod = replace(
            base, bend_stiffness=values["EI"], twist_stiffness=values["GJ"], mass=values["mass"], length=length
        )
        rest = {key: values[key] for key in ("targets", "forces", "gravity")}
        fit = equilibrium(rod, given["x"], clamped=(0, 1, -1), held=(1,), **rest)
        assert bool(fit.converged)
        return (fit.value.position * weight).sum() + 3 * fit.cost

    free = {key: value.clone().requires_grad_() for key, value in given.items() if key != "x"}
    loss(free).backward()
    for key, value in free.items():
        assert value.grad is not None
        way = torch.randn(value.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        way = way * value.detach().abs().amax() * (value.detach() != 0)
        h, total = 1e-4 if key != "length" else 1e-5, 0.0
        for step, share in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
            total += share / h * float(loss({**given, key: value.detach() + step * h * way}))
        assert abs(float((value.grad * way).sum()) - total) < 1e-6 * max(1e-2, abs(total)), key


def test_cost_is_the_potential_energy_and_forces_its_slope() -> None:
    given = loaded()
    rod = make_rod(given["x"], EI=given["EI"], GJ=given["GJ"])
    fit = equilibrium(rod, given["x"], clamped=(0, 1, -1), held=(1,))
    torch.testing.assert_close(fit.cost, potential_energy(rod, fit.value))
    move = 1e-4 * torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nearby = start(
        rod, fit.value.position + move * (torch.arange(9) % 8 > 1)[:, None], clamped=(0, 1, -1), held=(1,),
        director=fit.value.director,
    )  # fmt: skip
    assert float(potential_energy(rod, nearby)) > float(fit.cost)


def test_batches_of_trees_and_float32(dtype: torch.dtype) -> None:
    line = torch.linspace(0, 1, 8, dtype=dtype)
    main = torch.stack([line, 0 * line, 0 * line], -1)
    x = torch.cat([main, main[4] + 0.1 * torch.tensor([[1, 1, 0], [2, 2, 0], [3, 3, 0.0]], dtype=dtype)])
    rod = make_rod(x, EI=5e-3, GJ=5e-3, offsets=torch.tensor([0, 8, 11]), junctions=[(4, 1)])
    both = torch.stack([x, x + 0.3])
    fit = equilibrium(rod, both, clamped=(0, 1), held=(1,))
    p = fit.value.position
    assert p.dtype == dtype and fit.converged.tolist() == [True, True]
    torch.testing.assert_close(p[1] - 0.3, p[0], atol=1e-6 if dtype == torch.float32 else 1e-10, rtol=0)
    edges = (p - p[:, rod.parent.clamp(min=0)]).norm(dim=-1)
    assert float((edges - rod.length).abs().max()) < (3e-7 if dtype == torch.float32 else 1e-12)


@pytest.mark.usefixtures("unchecked")
def test_bad_input() -> None:
    line = torch.linspace(0, 1, 8, dtype=torch.float64)
    x = torch.stack([line, 0 * line, 0 * line], -1)
    rod = make_rod(x, EI=1e-3, GJ=1e-3)
    with pytest.raises(ShapeError, match="expected a vertex of each loaded rod"):
        equilibrium(rod, x)
    with pytest.raises(ShapeError, match="no farther apart"):
        equilibrium(rod, x, clamped=(0, -1), targets=torch.tensor([[0, 0, 0], [2, 0, 0]]).double())
    with pytest.raises(ShapeError, match="targets"):
        equilibrium(rod, x, clamped=(0, -1), targets=x[:3])
    with pytest.raises(ShapeError, match="finite"):
        equilibrium(rod, x * math.nan, clamped=(0,))
    with pytest.raises(ShapeError, match="forces: expected finite"):
        equilibrium(rod, x, clamped=(0, 1), forces=x * math.nan)
    with pytest.raises(ShapeError, match="vertices from"):
        equilibrium(rod, x, clamped=(8,))
