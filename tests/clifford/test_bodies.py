"""Planets: how they are drawn and move, and the symmetries, derivatives and files of the network that says where to."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from geom.clifford.bodies import Bodies, BodyNetwork, draw_planets, move_bodies
from geom.errors import FileFormatError, ShapeError
from geom.lie import quaternion
from geom.testing import assert_equivariant, assert_gradients
from geom.train import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def planets(count: int, number: int = 3, seed: int = 0, **options: object) -> tuple[Bodies, Bodies]:
    return draw_planets(count, number, generator=torch.Generator().manual_seed(seed), **options)  # type: ignore[arg-type]


def network(dtype: torch.dtype = torch.float64) -> BodyNetwork:
    net = BodyNetwork(channels=4, scalars=8, blocks=1, heads=2, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        net.gain.fill_(1.0)
    return net


# --- planets ----------------------------------------------------------------------------------------------------------


def test_a_circle_is_kept_and_the_centre_of_mass_goes_straight_on(dtype: torch.dtype) -> None:
    mass = torch.tensor([4.0, 1e-12], dtype=dtype)
    position, velocity = torch.zeros(2, 2, 3, dtype=dtype).unbind()
    position[1, 0], velocity[1, 1], velocity[:, 2] = 0.5, 8**0.5, 3.0
    end = move_bodies(Bodies(mass, position, velocity), duration=0.1, steps=250)
    angle = torch.tensor(0.1 * 32**0.5)
    expected = torch.tensor([0.5 * angle.cos(), 0.5 * angle.sin(), 0.3], dtype=dtype)
    torch.testing.assert_close(end.position[1], expected, atol=6e-4, rtol=0)
    start, later = planets(20)
    for field in ("position", "velocity"):
        before, after = ((x.mass[..., None] * getattr(x, field)).sum(1) for x in (start, later))
        drift = 0.1 * (start.mass[..., None] * start.velocity).sum(1) if field == "position" else 0
        torch.testing.assert_close(after, before + drift, rtol=1e-9, atol=1e-9)


def test_steps_are_those_of_the_equation() -> None:
    start, _ = planets(1)
    m, x, v = start.mass[0], start.position[0], start.velocity[0].clone()
    for i in range(4):
        for j in range(4):
            if i != j:
                v[i] += 0.01 * m[j] * (x[j] - x[i]) / (x[j] - x[i]).norm() ** 3
    end = move_bodies(start, duration=0.01, steps=1)
    torch.testing.assert_close(end.velocity[0], v)
    torch.testing.assert_close(end.position[0], x + 0.01 * v)


def test_planets_are_drawn_as_said() -> None:
    start, end = planets(1000)
    star = start.mass.argmax(1, keepdim=True)
    assert star.unique().numel() == 4
    mass, heavy = start.mass.sort(1).values.split([3, 1], 1)
    assert heavy.min() >= 1 and heavy.max() < 10 and mass.min() >= 0.01 and mass.max() < 0.1
    torch.testing.assert_close(heavy.log10().mean().item(), 0.5, atol=0.05, rtol=0)
    torch.testing.assert_close(mass.log10().mean().item(), -1.5, atol=0.03, rtol=0)
    centre, drift = (y.take_along_dim(star[..., None], 1) for y in (start.position, start.velocity))
    assert not drift.any()
    others = torch.arange(4) != star
    outward, speed = (start.position - centre)[others], start.velocity[others]
    radius = outward.norm(dim=-1)
    assert radius.min() >= 0.1 and radius.max() < 1
    torch.testing.assert_close(radius.square().mean().item(), 0.505, atol=0.02, rtol=0)
    noise = speed.norm(dim=-1) - (heavy.expand(-1, 3).flatten() / radius).sqrt()
    torch.testing.assert_close(noise.std().item(), 0.01, atol=5e-4, rtol=0)
    axis = torch.linalg.cross(outward, speed).reshape(1000, 3, 3)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    alike = (axis[:, 0] * axis[:, 1]).sum(-1)
    assert alike.abs().min() > 0.97 and 0.45 < (alike > 0).double().mean() < 0.55
    torch.testing.assert_close(axis[:, 0].T @ axis[:, 0] / 1000, torch.eye(3).double() / 3, atol=0.04, rtol=0)
    torch.testing.assert_close(centre.std().item(), 20.0, atol=1.0, rtol=0)
    way = end.position - start.position
    assert way.norm(dim=-1).max() <= 2
    torch.testing.assert_close(way.square().mean().item(), 0.0161, atol=0, rtol=0.1)
    straight = (way - 0.1 * start.velocity).square().mean().item()
    torch.testing.assert_close(straight, 0.006, atol=0, rtol=0.15)


def test_a_shift_changes_nothing_else_and_a_seed_says_all() -> None:
    (start, end), (far, later) = planets(50, 5), planets(50, 5, shift=(200.0, 0.0, 0.0))
    shift = torch.tensor([200.0, 0, 0]).double()
    torch.testing.assert_close(far.position, start.position + shift, rtol=0, atol=1e-12)
    torch.testing.assert_close(later.position, end.position + shift, rtol=0, atol=1e-12)
    assert far.velocity.equal(start.velocity) and far.mass.shape == (50, 6)
    assert not planets(50, 5, seed=1)[0].mass.equal(start.mass)
    assert planets(0)[0].position.shape == (0, 4, 3)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_system_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"position: expected a float tensor \(4, 3\)"):
        Bodies(torch.ones(4), torch.ones(5, 3), torch.ones(4, 3))
    with pytest.raises(ShapeError, match="steps"):
        move_bodies(planets(1)[0], steps=0)
    with pytest.raises(ShapeError, match="count"):
        draw_planets(-1)


# --- the network ------------------------------------------------------------------------------------------------------


def act(motion: tuple[Tensor, Tensor], bodies: Bodies) -> Bodies:
    q, t = motion
    return Bodies(bodies.mass, quaternion.rotate(q, bodies.position) + t, quaternion.rotate(q, bodies.velocity))


def test_it_moves_as_the_bodies_do(dtype: torch.dtype) -> None:
    start = planets(6)[0].to(dtype)
    start = Bodies(start.mass, start.position - start.position.mean(1, keepdim=True), start.velocity)
    generator = torch.Generator().manual_seed(1)
    for shift, tolerance in ((1.0, 1e-13), (200.0, 1e-12)):
        motions = [(quaternion.random(generator=generator), shift * torch.randn(3, generator=generator))]
        assert_equivariant(
            lambda x: network(dtype)(x),
            start,
            elements=[(q.to(dtype) / q.to(dtype).norm(), t.to(dtype)) for q, t in motions],
            act_in=act,
            act_out=lambda motion, x: quaternion.rotate(motion[0], x) + motion[1],
            tolerance=tolerance if dtype == torch.float64 else 1e-6,
        )


def test_order_and_a_steady_motion_of_all_do_not_matter() -> None:
    start, net = planets(6)[0], network()
    found = net(start)
    order = torch.tensor([2, 0, 3, 1])
    swapped = Bodies(start.mass[:, order], start.position[:, order], start.velocity[:, order])
    torch.testing.assert_close(net(swapped), found[:, order], rtol=1e-12, atol=1e-12)
    wind = torch.tensor([1.0, -2.0, 3.0]).double()
    torch.testing.assert_close(
        net(Bodies(start.mass, start.position, start.velocity + wind)), found + 0.1 * wind, rtol=1e-12, atol=1e-11
    )
    assert (found - start.position - 0.1 * start.velocity).abs().max() > 0.1
    torch.testing.assert_close(net(start[0]), found[0], rtol=1e-12, atol=1e-12)


def test_derivatives_and_bodies_in_one_place() -> None:
    start, _ = planets(1)
    nets = {dtype: network(dtype).requires_grad_(False) for dtype in (torch.float32, torch.float64)}

    def run(mass: Tensor, position: Tensor, velocity: Tensor) -> Tensor:
        return nets[mass.dtype](Bodies(mass, position, velocity))

    mass, place, velocity = start.mass[0, :2], start.position[0, :2] - start.position[0, 0], start.velocity[0, :2]
    assert_gradients(run, mass, place, velocity, order=1, vmap=False)
    assert_gradients(run, mass, torch.zeros_like(place), torch.zeros_like(place), order=1, vmap=False)


def test_the_weights_that_are_shipped_know_where_to() -> None:
    net = BodyNetwork.load(ROOT / "assets" / "clifford" / "nbody.safetensors")
    for number, bound in ((3, 2e-5), (5, 1e-4)):
        start, end = (x.to(torch.float32) for x in planets(200, number, seed=77))
        with torch.no_grad():
            errors = (net(start) - end.position).square().mean((1, 2)).sort().values
        assert errors[:-10].mean() < bound  # in the others planets have met


def test_files(tmp_path: Path) -> None:
    net, path = network(torch.float32), tmp_path / "x.safetensors"
    net.save(path)
    start = planets(3)[0].to(torch.float32)
    assert BodyNetwork.load(path)(start).equal(net(start))
    save_checkpoint(path, {"something": "else"})
    with pytest.raises(FileFormatError, match="expected a saved network"):
        BodyNetwork.load(path)
