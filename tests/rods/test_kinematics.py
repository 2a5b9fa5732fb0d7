"""Frames, curvatures and twists of discrete rods."""

import math

import torch

from geom.rods import directors_without_twist, edge_tangents, make_rod, natural_strain, strains, transport
from geom.rods.twin import relax_rolls

CHAIN = torch.tensor([-1, 0, 1, 2, 3, 4, 5])


def random_chain(dtype: torch.dtype, seed: int = 0, n: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.2).cumsum(0).to(dtype)


def rotation(axis: torch.Tensor) -> torch.Tensor:
    x, y, z = axis.tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=axis.dtype))


def turned(director: torch.Tensor, tangent: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    return angle.cos()[:, None] * director + angle.sin()[:, None] * torch.linalg.cross(tangent, director)


def test_transport_is_the_least_rotation(dtype: torch.dtype) -> None:
    a, b = torch.nn.functional.normalize(random_chain(dtype)[1:3], dim=-1)
    v = torch.linalg.cross(a, b)
    w = torch.linalg.cross(a, v)  # in the plane of a and b
    tol = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(transport(v, a, b), v, atol=tol, rtol=0)
    torch.testing.assert_close(transport(w, a, b), torch.linalg.cross(b, v), atol=tol, rtol=0)


def test_curvature_of_a_right_angle_and_a_full_fold(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=dtype)
    parent = torch.tensor([-1, 0, 1])
    assert abs(float(natural_strain(x, parent)[2, :2].norm()) - 2) < 1e-6  # 2 tan(45 degrees)
    fold = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=dtype, requires_grad=True)
    strain = natural_strain(fold, parent)
    strain.sum().backward()
    assert strain.isfinite().all() and fold.grad is not None and fold.grad.isfinite().all()


def test_directors_without_twist_have_none(dtype: torch.dtype) -> None:
    x = random_chain(dtype)
    twist = natural_strain(x, CHAIN)[:, 2]
    assert float(twist.abs().max()) < (2e-6 if dtype == torch.float32 else 1e-14)


def test_a_spun_edge_twists_its_bends_by_its_angle() -> None:
    x = random_chain(torch.float64)
    tangent = edge_tangents(x, CHAIN)
    angle = torch.tensor([0, 0.3, -1.1, 0.5, 2.0, 2.2, -0.4]).double()
    director = turned(directors_without_twist(tangent, CHAIN), tangent, angle)
    twist = strains(tangent, director, CHAIN)[:, 2]
    torch.testing.assert_close(twist[2:], angle[2:] - angle[1:-1], atol=1e-14, rtol=0)


def test_holonomy_of_a_closed_curve_is_the_solid_angle_of_its_tangents() -> None:
    n, tilt = 2000, 0.6
    t = torch.linspace(0, 2 * math.pi, n + 1, dtype=torch.float64)
    # a helix of one turn: its tangents go once round a cone, the solid angle of its cap is 2 pi (1 - cos tilt)
    x = torch.stack([math.sin(tilt) * t.sin(), -math.sin(tilt) * t.cos(), math.cos(tilt) * t], -1)
    x = torch.cat([x, x[-1:] + x[1:2] - x[:1]])  # the last edge as the first
    parent = torch.arange(-1, n + 1)
    tangent = edge_tangents(x, parent)
    director = directors_without_twist(tangent, parent)
    angle = torch.atan2((torch.linalg.cross(director[1], director[-1]) * tangent[1]).sum(), director[1] @ director[-1])
    away = (float(angle) - 2 * math.pi * (1 - math.cos(tilt))) / (2 * math.pi)
    assert abs(away - round(away)) < 1e-6


def test_twist_stays_continuous_past_half_a_turn() -> None:
    line = torch.linspace(0, 1, 6, dtype=torch.float64)
    x = torch.stack([line, 0 * line, 0 * line], -1)
    rod = make_rod(x, EI=1e-3, GJ=1e-3)
    tangent = edge_tangents(x, rod.parent)
    director, strain = directors_without_twist(tangent, rod.parent), torch.zeros_like(x)
    held = torch.tensor([0, 1, 0, 0, 0, 1]).bool()
    for _ in range(30):  # nine turns of the last edge, 0.3 at a time
        spin = torch.zeros(6, dtype=torch.float64)
        spin[-1] = 0.3 * 2 * math.pi
        director = turned(director, tangent, spin)
        strain = strain + torch.stack([spin * 0, spin * 0, spin], -1)
        director, strain = relax_rolls(rod, x, director, strain, held=held)
    torch.testing.assert_close(strain[2:, 2], torch.full((4,), 2 * math.pi * 9 / 4, dtype=torch.float64))


def test_rigid_motions_change_no_strain(dtype: torch.dtype) -> None:
    x = random_chain(dtype)
    tangent = edge_tangents(x, CHAIN)
    director = turned(directors_without_twist(tangent, CHAIN), tangent, torch.arange(7, dtype=dtype))
    r = rotation(torch.tensor([0.3, -1.2, 0.7], dtype=dtype))
    moved = strains(edge_tangents(x @ r.mT + 2, CHAIN), director @ r.mT, CHAIN)
    tol = 2e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(moved, strains(tangent, director, CHAIN), atol=tol, rtol=0)


def test_reversed_vertices_have_the_same_curvature_and_twist() -> None:
    x = random_chain(torch.float64)
    tangent = edge_tangents(x, CHAIN)
    director = turned(directors_without_twist(tangent, CHAIN), tangent, torch.arange(7).double())
    forth = strains(tangent, director, CHAIN)[2:]
    mirrored = torch.cat([torch.zeros_like(director[:1]), director[1:].flip(0)])
    back = strains(edge_tangents(x.flip(0), CHAIN), mirrored, CHAIN)[2:].flip(0)
    torch.testing.assert_close(back[:, 2], forth[:, 2], atol=1e-13, rtol=0)
    torch.testing.assert_close(back[:, :2].abs(), forth[:, :2].abs(), atol=1e-13, rtol=0)
