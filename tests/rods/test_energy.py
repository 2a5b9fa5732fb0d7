"""Elastic energy against its closed-form first and second derivatives, and its symmetries."""

import math

import torch

from geom.rods import (
    Rod,
    directors_without_twist,
    edge_tangents,
    elastic_energy,
    elastic_forces,
    make_rod,
    rollout,
    start,
    strains,
    transport,
)
from geom.rods.energy import bend_moduli, stresses
from geom.rods.hessian import dense_hessian, elastic_hessian
from geom.rods.twin import relax_rolls
from geom.values import replace


def random_tree(seed: int) -> tuple[Rod, torch.Tensor, torch.Tensor]:
    """A branched rod with natural curvature and twist, its positions, and rolled directors."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    main = noise(6, 3).cumsum(0)
    x = torch.cat([main, main[3] + noise(3, 3).cumsum(0)])
    offsets = torch.tensor([0, 6, 9])
    rod = make_rod(x, EI=torch.tensor([0.5, 0.9]).double(), GJ=0.7, offsets=offsets, junctions=[(3, 1)])
    rod = replace(rod, curvature=0.3 * noise(9, 2), twist=0.2 * noise(9))
    tangent = edge_tangents(x, rod.parent)
    return rod, x, spun(directors_without_twist(tangent, rod.parent), tangent, noise(9))


def spun(director: torch.Tensor, tangent: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    return angle.cos()[:, None] * director + angle.sin()[:, None] * torch.linalg.cross(tangent, director)


def energy_near(rod: Rod, x: torch.Tensor, director: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
    """Energy after positions and rolls move by (4 n,), directors carried along."""
    n = len(x)
    tangent = edge_tangents(x + move[: 3 * n].reshape(n, 3), rod.parent)
    m = spun(transport(director, edge_tangents(x, rod.parent), tangent), tangent, move[3 * n :])
    return elastic_energy(rod, strains(tangent, m, rod.parent))


def test_forces_and_hessian_are_the_derivatives_of_the_energy() -> None:
    for seed in range(5):
        rod, x, m = random_tree(seed)
        n = len(x)
        zero = torch.zeros(4 * n, dtype=torch.float64, requires_grad=True)
        energy = energy_near(rod, x, m, zero)
        (gradient,) = torch.autograd.grad(energy, zero)
        strain = strains(edge_tangents(x, rod.parent), m, rod.parent)
        force = elastic_forces(rod, x, m, stresses(rod, strain))
        expected = -gradient[: 3 * n].reshape(n, 3)
        assert float((force - expected).abs().max() / expected.abs().max()) < 1e-12

        def function(move: torch.Tensor, rod: Rod = rod, x: torch.Tensor = x, m: torch.Tensor = m) -> torch.Tensor:
            return energy_near(rod, x, m, move)

        exact = torch.func.hessian(function)(zero.detach())
        dense = dense_hessian(rod, elastic_hessian(rod, x, m, strain))
        assert float((dense - exact).abs().max() / exact.abs().max()) < 1e-12


def test_viscous_hessian_is_that_of_stiffer_bends() -> None:
    rod, x, m = random_tree(9)
    strain = strains(edge_tangents(x, rod.parent), m, rod.parent)
    viscous = torch.tensor(0.7).double()
    block = elastic_hessian(rod, x, m, strain, before=strain, viscous=viscous)
    extra = block - elastic_hessian(rod, x, m, strain)  # 0.7 sum of modulus (grad strain) (grad strain)^T
    assert int((torch.linalg.eigvalsh(extra) > 1e-12).sum()) == 3 * len(rod.tree.bends)
    assert float(torch.linalg.eigvalsh(extra).min()) > -1e-12


def test_energy_of_anisotropic_bending() -> None:
    """A rod that bends more easily one way turns its easy direction into the bend."""
    x = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 0.5, 0], [2.6, 1.3, 0]]).double()
    rod = make_rod(x, EI=torch.tensor([1.0, 5.0]).double(), GJ=0.3)
    tangent = edge_tangents(x, rod.parent)
    bare = directors_without_twist(tangent, rod.parent)
    held = torch.zeros(4, dtype=torch.bool)
    best = math.inf
    for turn in range(8):
        m = spun(bare, tangent, torch.full((4,), 2 * math.pi * turn / 8 + 0.1).double())
        _, s = relax_rolls(rod, x, m, torch.zeros_like(x), held=held)
        best = min(best, float(elastic_energy(rod, s)))
    angles = (tangent[1:-1] * tangent[2:]).sum(-1).acos()
    easy = 0.5 * (1.0 * (2 * (angles / 2).tan()).square() * bend_moduli(rod)[:, 0]).sum()
    assert abs(best - float(easy)) < 1e-12


def test_isotropic_twist_is_uniform_in_its_density_as_bends_get_gentle() -> None:
    """To second order: directors averaged over a bend (Bergou 2010) see a little of its twist in its curvature."""
    errors = []
    for n in (21, 41):
        t = torch.linspace(0, 3, n, dtype=torch.float64).square() / 3  # unequal edges
        x = torch.stack([t.cos(), t.sin(), 0.3 * t], -1)
        rod = make_rod(x, EI=0.4, GJ=0.9)
        tangent = edge_tangents(x, rod.parent)
        spin = torch.zeros(n, dtype=torch.float64)
        spin[-1] = 1.3
        m = spun(directors_without_twist(tangent, rod.parent), tangent, spin)
        held = torch.zeros(n, dtype=torch.bool)
        held[1] = held[-1] = True
        _, s = relax_rolls(rod, x, m, torch.zeros_like(x), held=held)
        between = 0.5 * (rod.length[1:-1] + rod.length[2:])
        assert abs(float(s[2:, 2].sum()) - 1.3) < 1e-12
        errors.append(float((s[2:, 2] / between * between.sum() / 1.3 - 1).abs().max()))
    assert errors[1] < 0.01 and errors[1] < 0.3 * errors[0]


def test_twist_residual() -> None:
    """dE/droll of free edges, over the stiffness, at the start and after 100 steps: at most 1e-10."""
    for seed in range(5):
        rod, x, _ = random_tree(seed)
        state = start(rod, x, clamped=(0, 1))
        for _ in range(2):
            zero = torch.zeros(36, dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(energy_near(rod, state.position, state.director, zero), zero)
            plain = strains(edge_tangents(state.position, rod.parent), state.director, rod.parent)
            if float((state.strain - plain).abs().max()) < 1:  # else autograd sees another turn of the twist
                assert float(gradient[27:].abs().max() / bend_moduli(rod).max()) < 1e-10
            state = rollout(rod, state, steps=100, dt=1e-3, clamped=(0, 1)).end
