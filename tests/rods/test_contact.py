"""Contact and friction: resting depths, slopes, momenta, kernel and twin, derivatives, and shapes that coincide."""

import dataclasses

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.rods import Contacts, Rod, make_contacts, make_rod, rollout, start
from geom.rods.contact import contact_forces, meeting_edges
from geom.values import replace

f64 = torch.float64
NUMBERS = [f.name for f in dataclasses.fields(Contacts) if f.name != "self_contact"]
FLOOR = [[0.0, 0, 0, 0, 0, 2]]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def line(n: int, dtype: torch.dtype = f64, z: float = 0.01) -> Tensor:
    s = torch.linspace(0, 1, n, dtype=dtype)
    return torch.stack([s, 0 * s, 0 * s + z], -1)


def coil(n: int = 18) -> tuple[Rod, Tensor]:
    """Two unequal trees; the longer crosses itself twice, close enough to touch."""
    phi = torch.linspace(0, 11, n, dtype=f64)
    x = torch.stack([0.1 * phi.cos(), 0.1 * phi.sin(), 0.02 - 0.012 * (phi / 2).cos()], -1)
    stiffness = 1e-5 * (1 + 0.4 * random(n, 2, seed=5).sin())
    settings = {"GJ": 1e-5, "drag": 0.3, "quadratic_drag": 0.1, "internal_damping": 2.0, "viscosity": 0.01}
    return make_rod(x, EI=stiffness, offsets=torch.tensor([0, n - 4, n]), straight=False, **settings), x


def scene(**given: object) -> Contacts:
    capsules = [[-0.1, -0.1, 0, 0, 0.1, 0.01, 0.02], [0.1, -0.1, 0.0, 0.15, 0.1, 0.01, 0.02]]
    settings = {"radius": 0.008, "stiffness": 15.0, "friction": 0.4, "damping": 0.004, "self_contact": True}
    shapes = {"planes": [[0, 0, 0, 0.1, 0, 1]], "spheres": [[0.1, 0, 0, 0.02]], "capsules": capsules}
    return make_contacts(**{**settings, **shapes, "dtype": f64, **given})


def test_a_rod_rests_as_deep_as_stated(dtype: torch.dtype) -> None:
    x = line(6, dtype)
    rod = make_rod(x, EI=1e-4, GJ=1e-4)
    floor = make_contacts(planes=FLOOR, radius=0.01, stiffness=10.0, dtype=dtype)
    track = rollout(rod, start(rod, x), steps=400, contacts=floor)
    weight = 9.81 * rod.mass
    depth = 0.01 - track.position[-1, :, 2]
    assert (depth.sum() * 10 - (weight + 10 * 0.001 / 2).sum()).abs() < (1e-4 if dtype == torch.float32 else 1e-9)
    assert track.end.velocity.abs().max() < (1e-4 if dtype == torch.float32 else 1e-9)
    soft = make_contacts(planes=FLOOR, radius=0.01, stiffness=10.0, smoothing=0.05, dtype=dtype)
    x = rollout(rod, start(rod, x), steps=400, contacts=soft).position[-1, :, 2]
    assert ((0.01 - x).square().sum() * 10 / 0.1 - weight.sum()).abs() < 1e-4


def test_the_damping_that_stops_a_fall_in_one_step() -> None:
    x = line(4, z=0.0115)
    rod = make_rod(x, EI=1e-4, GJ=1e-4)
    rod = replace(rod, mass=torch.full_like(rod.mass, 0.01))
    hit = make_contacts(planes=FLOOR, radius=0.01, stiffness=100.0, smoothing=1e-6, damping=0.01, dtype=f64)
    begun = replace(start(rod, x), velocity=torch.tensor([0, 0, -0.3], dtype=f64).expand(4, 3).contiguous())
    track = rollout(rod, begun, steps=3, contacts=hit, gravity=(0.0, 0, 0))
    assert (track.position[:, :, 2] - 0.01).abs().max() < 1e-6 and track.end.velocity.abs().max() < 1e-3
    bounce = replace(hit, damping=torch.zeros((), dtype=f64))
    assert rollout(rod, begun, steps=9, contacts=bounce, gravity=(0.0, 0, 0)).end.velocity[0, 2] > 0.1


def test_coulomb_friction_holds_and_lets_go() -> None:
    x = line(5)
    rod = make_rod(x, EI=1e-4, GJ=1e-4)

    def slide(gravity: tuple[float, float, float], **given: float) -> Tensor:
        floor = make_contacts(planes=FLOOR, radius=0.01, stiffness=10.0, friction=0.5, dtype=f64, **given)
        return rollout(rod, start(rod, x), steps=300, contacts=floor, gravity=gravity).end.velocity

    assert slide((0.0, 4.0, -9.81)).abs().max() < 1e-3  # the slip speed: tan of the slope is 0.41
    assert slide((0.0, 4.0, -9.81), slip=0.02)[:, 1].mean() > 5e-3
    free = slide((0.0, 8.0, -9.81))[:, 1]
    assert (free - 3.0 * (8 - 0.5 * 9.81)).abs().max() < 0.1  # 3 seconds, less the start


def test_contact_within_a_rod_conserves_momentum() -> None:
    rod, x = coil()
    own = scene(planes=(), spheres=(), capsules=())
    state = start(rod, x, 0.2 * random(18, 3))
    none = 0 * rod.drag
    rod = replace(rod, drag=none, quadratic_drag=none, internal_damping=none)
    track = rollout(rod, state, steps=60, dt=0.004, gravity=(0.0, 0, 0), contacts=own)
    other = rollout(rod, state, steps=60, dt=0.004, gravity=(0.0, 0, 0))
    assert (track.position - other.position).abs().max() > 1e-3
    m = rod.mass[:, None]
    ends = [rollout(rod, state, steps=k, dt=0.004, gravity=(0.0, 0, 0), contacts=own).end for k in (1, 60)]
    push = [(m * s.velocity).sum(0) for s in ends]
    assert (push[1] - push[0]).abs().max() < 1e-13
    flat = scene(planes=(), spheres=(), capsules=(), friction=0.0)  # friction has a torque: the rods are not points
    ends = [rollout(rod, state, steps=k, dt=0.004, gravity=(0.0, 0, 0), contacts=flat).end for k in (1, 60)]
    spin = [(m * torch.linalg.cross(s.position, s.velocity)).sum(0) for s in ends]
    assert (spin[1] - spin[0]).abs().max() < 1e-13


@pytest.mark.parametrize("batched", [False, True])
def test_kernel_is_twin(batched: bool) -> None:
    rod, x = coil()
    xb = x + 0.002 * random(2, 18, 3)
    state = start(rod, xb, 0.1 * random(2, 18, 3, seed=1), clamped=[0, 1, 14])
    contacts = scene()
    if batched:
        grown = {k: getattr(contacts, k) * (1 + 0.1 * random(2, *getattr(contacts, k).shape).sin()) for k in NUMBERS}
        contacts = replace(contacts, **grown)
    path = state.position[:, None, [0, 1, 14]] - 0.002 * torch.arange(12, dtype=f64)[:, None, None] * 0.3
    weight = random(2, 12, 18, 3, seed=2)
    results = []
    for backend in ("warp", "torch"):
        leaves = {k: getattr(contacts, k).clone().requires_grad_() for k in NUMBERS}
        mass, bend = (y.clone().requires_grad_() for y in (rod.mass, rod.bend_stiffness))
        position, velocity = (y.clone().requires_grad_() for y in (state.position, state.velocity))
        track = rollout(
            replace(rod, mass=mass, bend_stiffness=bend),
            replace(state, position=position, velocity=velocity),
            targets=path,
            clamped=[0, 1, 14],
            dt=0.005,
            contacts=replace(contacts, **leaves),
            backend=backend,
        )
        wanted = {**leaves, "mass": mass, "bend": bend, "position": position, "velocity": velocity}
        found = torch.autograd.grad((track.position * weight).sum(), list(wanted.values()))
        results.append((track.position, dict(zip(wanted, found, strict=True))))
    assert (results[0][0] - results[1][0]).abs().max() < 1e-12
    for name, g in results[0][1].items():
        twin = results[1][1][name]
        assert (g - twin).abs().max() < 1e-10 * twin.abs().max(), name
        assert twin.abs().max() > 0
    plain = rollout(rod, state, targets=path, clamped=[0, 1, 14], dt=0.005).position
    lone = rollout(
        rod, state, targets=path, clamped=[0, 1, 14], dt=0.005, contacts=replace(contacts, self_contact=False)
    )
    assert (lone.position - plain).abs().max() > 1e-3
    assert (lone.position - results[0][0]).abs().max() > 1e-3


def test_forces_are_differentiable() -> None:
    rod, x = coil(12)
    contacts = scene(damping=0.01)
    weight = 1 / rod.mass

    def force(position: Tensor, velocity: Tensor, drift: Tensor, *numbers: Tensor) -> Tensor:
        given = replace(contacts, **dict(zip(NUMBERS, numbers, strict=True)))
        return contact_forces(given, rod.parent, position, velocity, drift, weight, 0.01)

    inputs = [x, 0.3 * random(12, 3), 0.3 * random(12, 3, seed=1), *(getattr(contacts, k) for k in NUMBERS)]
    inputs = [y.clone().requires_grad_() for y in inputs]
    assert force(*inputs).abs().max() > 0.01
    assert torch.autograd.gradcheck(force, inputs, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_shapes_that_coincide_stay_finite(dtype: torch.dtype) -> None:
    up = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0], [1, 1, 0], [1, 0, 0], [1, -1, 0]], dtype=dtype)
    back = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=dtype)
    shapes = {
        "spheres": [[1, 0, 0, 0.3], [0, 0, 0, 0.1]],
        "capsules": [[0, 0, 0, 2, 0, 0, 0.1], [1, 1, 0, 1, 1, 0, 0.1]],
    }
    for x in (up, back):  # vertices at centres and on axes, edges that cross, meet end to end, and lie on each other
        rod = make_rod(x, EI=1e-4, GJ=1e-4)
        contacts = make_contacts(radius=0.1, stiffness=5.0, self_contact=True, friction=0.3, dtype=dtype, **shapes)
        leaves = [getattr(contacts, k).clone().requires_grad_() for k in NUMBERS]
        state = start(rod, x)
        position = state.position.clone().requires_grad_()
        for backend in ("warp", "torch"):
            track = rollout(rod, replace(state, position=position), steps=3, dt=0.005, backend=backend,
                            contacts=replace(contacts, **dict(zip(NUMBERS, leaves, strict=True))))  # fmt: skip
            assert track.position.isfinite().all()
            grads = torch.autograd.grad(track.position.sum(), [position, *leaves], allow_unused=True)
            assert all(g is None or g.isfinite().all() for g in grads)


def test_edges_that_may_meet() -> None:
    parents = (-1, 0, 1, 2, 3, 2, -1, 6, 7, 8, 9)  # a branch at vertex 2; a second tree of four edges
    pairs, starts = meeting_edges(parents, torch.device("cpu"))
    assert pairs.tolist() == [[1, 4], [7, 10]] and starts.tolist() == [0, 1, 2]
    pairs, _ = meeting_edges((-1, 0, 1, 2, 3, 4), torch.device("cpu"))
    assert pairs.tolist() == [[1, 4], [1, 5], [2, 5]]


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    good = {"radius": 0.01, "stiffness": 1.0}
    for wrong, said in (
        ({"radius": 0.0}, "radius: expected"),
        ({"stiffness": float("nan")}, "stiffness: expected"),
        ({"slip": 0.0}, "slip: expected"),
        ({"smoothing": -1.0}, "smoothing: expected"),
        ({"friction": -0.1}, "friction: expected"),
        ({"damping": float("inf")}, "damping: expected"),
        ({"planes": [[0, 0, 0, 0, 0, 0]]}, "normals of some length"),
        ({"planes": [[0, 0, 0, 1]]}, "rows of 6"),
        ({"spheres": [[0, 0, float("nan"), 1]]}, "rows of 4"),
        ({"capsules": [[0, 0, 0, 1, 0, 0, -1]]}, "positive radii"),
    ):
        with pytest.raises(ShapeError, match=said):
            make_contacts(**{**good, **wrong})
    x = line(5)
    rod = make_rod(x, EI=1e-4, GJ=1e-4)
    with pytest.raises(ShapeError, match="contacts: expected torch"):
        rollout(rod, start(rod, x), steps=1, contacts=make_contacts(**good))
    thick = make_contacts(radius=0.3, stiffness=1.0, self_contact=True, dtype=f64)
    with pytest.raises(ShapeError, match="radius below the shortest edge"):
        rollout(rod, start(rod, x), steps=1, contacts=thick)
