"""Motion and stability of rods against closed forms: thresholds, frequencies, conservation, lengths, gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.linalg import eigh
from scipy.optimize import brentq

from geom.rods import (
    Rod,
    State,
    directors_without_twist,
    edge_tangents,
    elastic_energy,
    elastic_forces,
    make_rod,
    rollout,
    start,
    strains,
)
from geom.rods.energy import stresses
from geom.rods.hessian import dense_hessian, elastic_hessian
from geom.rods.implicit import implicit_midpoint
from geom.values import replace


def root(function: Callable[[float], float], low: float, high: float) -> float:
    x = brentq(function, low, high)
    assert isinstance(x, float)
    return x


def straight(n: int, length: float = 1.0, EI: float = 1.0, clamps: tuple[int, ...] = ()) -> tuple[Rod, torch.Tensor]:
    """A rod along x. Bends in `clamps` are twice as stiff, so that the clamp beyond acts at their vertex."""
    line = torch.linspace(0, length, n, dtype=torch.float64)
    x = torch.stack([line, 0 * line, 0 * line], -1)
    stiffness = torch.full((n, 2), EI, dtype=torch.float64)
    stiffness[list(clamps)] *= 2
    return make_rod(x, EI=stiffness, GJ=0.8 * EI, linear_density=1.0), x


def hessian_of_straight(rod: Rod, x: torch.Tensor, moment: float = 0.0, tension: float = 0.0) -> torch.Tensor:
    """Second derivatives of the energy of a straight rod under twisting moment and tension, across it (y and z); rolls
    do not couple to these to first order."""
    n = len(x)
    m = torch.zeros_like(x)
    m[1:, 1] = 1
    strain = torch.zeros_like(x)
    k = rod.tree.bends
    strain[k, 2] = moment * 0.5 * (rod.length[k] + rod.length[rod.parent[k]]) / rod.twist_stiffness[k]
    full = dense_hessian(rod, elastic_hessian(rod, x, m, strain))
    across = torch.tensor([3 * i + c for c in (1, 2) for i in range(n)])
    h = full[across[:, None], across]
    laplace = torch.zeros(n, n, dtype=torch.float64)
    for j in range(1, n):
        w = 1 / float(rod.length[j])
        laplace[j, j] += w
        laplace[j - 1, j - 1] += w
        laplace[j, j - 1] -= w
        laplace[j - 1, j] -= w
    return h + tension * torch.block_diag(laplace, laplace)


def free_part(h: torch.Tensor, fixed: tuple[int, ...]) -> torch.Tensor:
    n = len(h) // 2
    keep = torch.tensor([c * n + i for c in (0, 1) for i in range(n) if i not in fixed])
    return h[keep[:, None], keep]


def least(h: torch.Tensor) -> float:
    return float(torch.linalg.eigvalsh(h)[0])


def test_euler_buckling() -> None:
    n = 101
    rod, x = straight(n)
    pinned = root(lambda p: least(free_part(hessian_of_straight(rod, x, tension=-p), (0, n - 1))), 1, 30)
    assert abs(pinned / math.pi**2 - 1) < 0.01
    rod, x = straight(n, (n - 1) / (n - 3), clamps=(2, n - 1))
    ends = (0, 1, n - 2, n - 1)
    clamped = root(lambda p: least(free_part(hessian_of_straight(rod, x, tension=-p), ends)), 5, 80)
    assert abs(clamped / (4 * math.pi**2) - 1) < 0.01


def test_greenhill_buckling() -> None:
    n = 101
    rod, x = straight(n, (n - 1) / (n - 3), clamps=(2, n - 1))
    ends = (0, 1, n - 2, n - 1)
    clamped = root(lambda q: least(free_part(hessian_of_straight(rod, x, moment=q), ends)), 3, 20)
    assert abs(clamped / 8.9868 - 1) < 0.01
    # pinned in tension: M^2 / 4 EI = T + pi^2 EI / L^2, near the 2 sqrt(EI T) of an endless rod
    rod, x = straight(n)
    tension = 400.0
    long = root(lambda q: least(free_part(hessian_of_straight(rod, x, moment=q, tension=tension), (0, n - 1))), 9, 90)
    assert abs(long / (2 * math.sqrt(tension + math.pi**2)) - 1) < 0.01


def ring(n: int, GJ: float, twist: float) -> float:
    """Least stiffness (second derivative of the energy with rolls at rest) of a twisted closed ring of n edges, of
    radius 1 and EI = 1, apart from its six rigid motions and its spin."""
    a = 2 * math.pi * torch.arange(n + 2, dtype=torch.float64) / n
    x = torch.stack([a.cos(), a.sin(), 0 * a], -1)
    rod = make_rod(x, EI=1.0, GJ=GJ)  # its last edge lies on the first
    tangent = edge_tangents(x, rod.parent)
    roll = torch.arange(n + 2, dtype=torch.float64) * twist / n
    m = directors_without_twist(tangent, rod.parent)
    m = roll.cos()[:, None] * m + roll.sin()[:, None] * torch.linalg.cross(tangent, m)
    h = dense_hessian(rod, elastic_hessian(rod, x, m, strains(tangent, m, rod.parent)))
    size = 4 * (n + 2)
    close = torch.zeros(size, 4 * n, dtype=torch.float64)  # copies of vertices, and of the edge, move with the first
    for i in range(n + 2):
        for c in range(3):
            close[3 * i + c, 3 * (i % n) + c] = 1
        if i:
            close[3 * (n + 2) + i, 3 * n + (i - 1) % n] = 1
    h = close.mT @ h @ close
    length = 2 * math.sin(math.pi / n)
    along = torch.zeros(n, 3 * n, dtype=torch.float64)
    for i in range(n):
        j = (i + 1) % n
        t = tangent[i + 1]
        along[i, 3 * i : 3 * i + 3], along[i, 3 * j : 3 * j + 3] = -t, t
    # the tension that holds the ring: energy's gradient = -along^T tension
    strain = strains(tangent, m, rod.parent)
    force = elastic_forces(rod, x, m, stresses(rod, strain))
    total = torch.zeros(3 * n, dtype=torch.float64)
    total.index_add_(0, torch.arange(3 * (n + 2)) % (3 * n), force.reshape(-1))
    tension = torch.linalg.lstsq(along.mT, total[:, None]).solution[:, 0]
    assert float((along.mT @ tension - total).abs().max()) < 1e-8
    for i in range(n):
        j = (i + 1) % n
        t = tangent[i + 1]
        block = tension[i] / length * (torch.eye(3, dtype=torch.float64) - torch.outer(t, t))
        a, b = slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3)
        h[a, a] += block
        h[b, b] += block
        h[a, b] -= block
        h[b, a] -= block
    hx, hr, cross = h[: 3 * n, : 3 * n], h[3 * n :, 3 * n :], h[: 3 * n, 3 * n :]
    condensed = hx - cross @ torch.linalg.pinv(hr, rtol=1e-9, hermitian=True) @ cross.mT
    free = torch.linalg.svd(along).Vh[n:]  # moves that keep the lengths
    values = torch.linalg.eigvalsh(free @ condensed @ free.mT)
    drop = values.abs().argsort()[:6]  # rigid motions
    keep = torch.ones(len(values), dtype=torch.bool)
    keep[drop] = False
    return float(values[keep].min())


@pytest.mark.parametrize("GJ", [1.0, 0.75])
def test_michell_ring(GJ: float) -> None:
    """A naturally straight ring buckles at a total twist of 2 pi sqrt(3) EI / GJ."""
    exact = 2 * math.pi * math.sqrt(3) / GJ
    assert ring(100, GJ, 0.99 * exact) > 0 > ring(100, GJ, 1.01 * exact)


def frequencies(rod: Rod, x: torch.Tensor, fixed: tuple[int, ...]) -> list[float]:
    n = len(x)
    h = hessian_of_straight(rod, x)[:n, :n]
    keep = torch.tensor([i for i in range(n) if i not in fixed])
    values = eigh(h[keep[:, None], keep].numpy(), rod.mass[keep].diag().numpy(), eigvals_only=True)
    return [math.sqrt(v) for v in values[:3]]


def test_beam_frequencies() -> None:
    n = 50
    rod, x = straight(n, (n - 1) / (n - 2), clamps=(2,))
    for found, beta in zip(frequencies(rod, x, (0, 1)), (1.8751, 4.6941, 7.8548), strict=True):
        assert abs(found / beta**2 - 1) < 0.005
    rod, x = straight(n, (n - 1) / (n - 3), clamps=(2, n - 1))
    found = frequencies(rod, x, (0, 1, n - 2, n - 1))
    for w, beta in zip(found[:2], (4.7300, 7.8532), strict=True):
        assert abs(w / beta**2 - 1) < 0.005


def test_a_beam_let_go_swings_at_its_frequency() -> None:
    n = 50
    rod, x = straight(n, (n - 1) / (n - 2), clamps=(2,))
    h = hessian_of_straight(rod, x)[:n, :n][2:, 2:]
    _, modes = eigh(h.numpy(), rod.mass[2:].diag().numpy())
    bent = x.clone()
    bent[2:, 2] = 1e-3 * torch.from_numpy(modes[:, 0] / modes[-1, 0])
    half = math.pi / 1.8751**2
    track = implicit_midpoint(
        rod, start(rod, bent, clamped=(0, 1)), steps=200, dt=half / 200, clamped=(0, 1), gravity=(0, 0, 0)
    )
    tip = track.position[:, -1, 2]
    crossing = int((tip < 0).nonzero()[0])  # a quarter of the period
    exact = crossing - 1 + float(tip[crossing - 1] / (tip[crossing - 1] - tip[crossing])) + 1
    assert abs(exact / 100 - 1) < 0.005


def whirling(dtype: torch.dtype) -> tuple[Rod, State]:
    """A bent, naturally curved, twisted rod with spin, free in space."""
    n = 16
    t = torch.linspace(0, 2, n, dtype=torch.float64)
    x = torch.stack([t, 0.3 * (2 * t).sin(), 0.2 * (3 * t).cos()], -1)
    rod = make_rod(x, EI=torch.tensor([1e-3, 2e-3]).double(), GJ=1e-3, linear_density=0.05, straight=False)
    rod = replace(rod, curvature=rod.curvature * 0.5 + 0.1, twist=rod.twist + 0.05)
    centre = (rod.mass[:, None] * x).sum(0) / rod.mass.sum()
    spin = torch.tensor([0.3, 1.0, -0.7]).double()
    v = torch.linalg.cross(spin.expand_as(x), x - centre) + torch.tensor([0.2, -0.1, 0.4]).double()
    rod = rod.to(dtype)
    return rod, start(rod, x.to(dtype), v.to(dtype))


def momenta(rod: Rod, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    p = rod.mass[:, None] * v
    return torch.cat([p.sum(-2), torch.linalg.cross(x, p).sum(-2)], -1)


def test_momenta_of_a_free_rod_are_conserved() -> None:
    rod, state = whirling(torch.float64)
    first = momenta(rod, state.position, state.velocity)
    for _ in range(10):  # angular momentum of semi-implicit steps is that of x before, and of v after: the same
        state = rollout(rod, state, steps=100, dt=1e-3, gravity=(0, 0, 0)).end
        assert float((momenta(rod, state.position, state.velocity) - first).abs().max()) < 1e-12


@pytest.mark.parametrize("n", [13, 50])
def test_lengths_at_every_step(n: int, dtype: torch.dtype) -> None:
    line = torch.linspace(0, 1, n, dtype=torch.float64)
    x = torch.stack([0.8 * line, 0.1 * (5 * line).sin(), 0.1 * (3 * line).cos()], -1).to(dtype)
    rod = make_rod(x, EI=1e-5, GJ=1e-5, drag=0.5)
    state = start(rod, x, clamped=(0, -1))
    t = 0.002 * torch.arange(1, 501, dtype=dtype)
    targets = x[[0, -1]] + torch.zeros(500, 2, 3, dtype=dtype)
    targets[:, 1] -= 0.1 * torch.stack([1 - (3 * t).cos(), 0 * t, (2 * t).sin()], -1)
    track = rollout(rod, state, clamped=(0, -1), targets=targets, dt=0.002)
    edges = (track.position[:, 1:] - track.position[:, :-1]).norm(dim=-1)
    assert float((edges - rod.length[1:]).abs().max()) < (1e-6 if dtype == torch.float32 else 1e-12)
    assert torch.equal(track.position[:, [0, -1]], targets)


def test_gradients_over_100_steps_against_differences() -> None:
    """Through lengths, rolls (an anisotropic rod that twists) and clamps."""
    n = 8
    line = torch.linspace(0, 1, n, dtype=torch.float64)
    x = torch.stack([0.7 * line, 0.1 * (4 * line).sin(), 0.2 * (3 * line).cos()], -1)
    t = 0.002 * torch.arange(1, 101, dtype=torch.float64)
    targets = x[[0, 1, -1]] + torch.zeros(100, 3, 3, dtype=torch.float64)
    targets[:, 2] -= 0.1 * torch.stack([1 - (3 * t).cos(), 0 * t, (2 * t).sin()], -1)
    base = make_rod(x, EI=torch.tensor([1e-3, 3e-3]).double(), GJ=1e-3, straight=False, internal_damping=1.0)
    values = {"bend_stiffness": base.bend_stiffness, "twist_stiffness": base.twist_stiffness, "mass": base.mass}
    values |= {"curvature": base.curvature, "drag": torch.tensor(0.3).double(), "targets": targets}
    weight = torch.cos(torch.arange(100 * n * 3).double()).reshape(100, n, 3)

    def loss(given: dict[str, torch.Tensor]) -> torch.Tensor:
        rod = replace(base, **{key: value for key, value in given.items() if key != "targets"})
        first = start(rod, x, clamped=(0, 1, -1), held=(1,))
        track = rollout(rod, first, clamped=(0, 1, -1), held=(1,), targets=given["targets"], dt=0.002)
        return (track.position * weight).sum()

    free = {key: value.clone().requires_grad_() for key, value in values.items()}
    loss(free).backward()
    for key, value in values.items():
        grad = free[key].grad
        assert grad is not None
        way = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        way = way * (value.abs().amax() if key != "targets" else 0.1)
        h, total = 1e-4, 0.0
        for step, share in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
            total += share / h * float(loss({**values, key: value + step * h * way}))
        assert abs(float((grad * way).sum()) - total) < 1e-6 * max(1e-2, abs(total)), key


def test_energy_of_bending_is_that_of_the_state() -> None:
    rod, state = whirling(torch.float64)
    plain = strains(edge_tangents(state.position, rod.parent), state.director, rod.parent)
    assert abs(float(elastic_energy(rod, plain) - elastic_energy(rod, state.strain))) < 1e-13
