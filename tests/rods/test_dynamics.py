"""Rods in time: kernel and twin agree, in values and derivatives; lengths, momenta, closed forms, bad input."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.rods import Rod, State, Track, implicit_euler, implicit_midpoint, make_rod, rollout, start, step
from geom.values import replace

FIELDS = [f.name for f in dataclasses.fields(Rod) if f.name not in ("parent", "stretch_stiffness")]
f64 = torch.float64


def random(*shape: int, seed: int = 0, dtype: torch.dtype = f64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64).to(dtype)


def curve(n: int, dtype: torch.dtype = f64) -> Tensor:
    s = torch.linspace(0, 1, n, dtype=dtype)
    return torch.stack([s, 0.1 * torch.sin(4 * s), 0.05 * torch.cos(7 * s)], -1)


def rod_of(x: Tensor, **given: object) -> Rod:
    """Naturally curved, anisotropic, with every kind of damping."""
    n = len(x)
    stiffness = 2e-4 * (1 + 0.5 * torch.stack([random(n, seed=5).sin(), random(n, seed=6).sin()], -1)).to(x.dtype)
    settings = {"EI": stiffness, "GJ": 3e-4, "drag": 0.4, "quadratic_drag": 0.3, "internal_damping": 3.0}
    rod = make_rod(x, **{**settings, "viscosity": 0.02, "straight": False, **given})
    return replace(rod, twist=0.05 * random(n, seed=7).to(x.dtype))


def branched(n: int = 16) -> tuple[Tensor, dict[str, object]]:
    """A rod of nine vertices with branches of four and three."""
    main = curve(9)
    first = main[3] + torch.stack([torch.linspace(0.02, 0.05, 4), torch.linspace(0.1, 0.4, 4), torch.zeros(4)], -1)
    second = main[6] + torch.stack([torch.zeros(3), torch.linspace(0.1, 0.3, 3), torch.linspace(0.05, 0.2, 3)], -1)
    x = torch.cat([main, first.double(), second.double()])
    return x, {"offsets": torch.tensor([0, 9, 13, n]), "junctions": [(3, 1), (6, 2)]}


def gradients(
    rod: Rod,
    state: State,
    backend: str,
    clamped: Sequence[int],
    held: Sequence[int] = (),
    steps: int = 6,
    **more: Tensor,
) -> tuple[Track, dict[str, Tensor]]:
    leaves = {name: getattr(rod, name).clone().requires_grad_() for name in FIELDS}
    soft = bool(rod.stretch_stiffness.isfinite().any())
    if soft:
        leaves["stretch_stiffness"] = rod.stretch_stiffness.clone().requires_grad_()
    rod = replace(rod, **leaves)
    keep = list(clamped)
    path = state.position[..., None, keep, :] + 0.002 * torch.arange(1, steps + 1)[:, None, None] * random(
        len(keep), 3, seed=3
    )
    leaves["targets"] = path.detach().clone().requires_grad_()
    leaves["position"] = state.position.detach().clone().requires_grad_()
    leaves["velocity"] = (0.3 * random(*state.position.shape, seed=4)).requires_grad_()
    leaves.update({name: x.clone().requires_grad_() for name, x in more.items()})
    forces, gravity = leaves.get("forces"), leaves.get("gravity", (0.0, 0.0, -9.81))
    begun = replace(state, position=leaves["position"], velocity=leaves["velocity"])
    if len(held):
        leaves["director"] = state.director.detach().clone().requires_grad_()
        begun = replace(begun, director=leaves["director"])
    track = rollout(
        rod, begun, clamped=clamped, targets=leaves["targets"], held=held, dt=0.004, forces=forces, gravity=gravity,
        backend=backend,
    )  # fmt: skip
    loss = (track.position * random(*track.position.shape, seed=8)).sum() + track.end.velocity.square().sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return track, {k: torch.zeros(()) if g is None else g for k, g in zip(leaves, found, strict=True)}


def assert_twins(rod: Rod, state: State, clamped: Sequence[int] = (), held: Sequence[int] = (), **more: Tensor) -> None:
    track, own = gradients(rod, state, "warp", clamped, held, **more)
    twin, theirs = gradients(rod, state, "torch", clamped, held, **more)
    assert (track.position - twin.position).abs().max() < 1e-12
    assert (track.end.velocity - twin.end.velocity).abs().max() < 1e-10  # positions over a step of 4 ms
    assert (track.end.strain - twin.end.strain).abs().max() < 1e-9
    for name, g in own.items():
        if name == "director":  # a derivative in the roll alone; the twin's has parts that do not stay perpendicular
            roll = torch.linalg.cross(tangents(state, rod), state.director)
            g, theirs[name] = (g * roll).sum(-1), (theirs[name] * roll).sum(-1)
        scale = max(float(theirs[name].abs().max()), 1e-6)
        assert (g - theirs[name]).abs().max() < 1e-10 * scale, name
        assert g.isfinite().all()


def tangents(state: State, rod: Rod) -> Tensor:
    edge = state.position - state.position[..., rod.parent.clamp(min=0), :]
    return torch.nn.functional.normalize(edge, dim=-1)


def test_kernel_is_twin() -> None:
    x = curve(8)
    rod = rod_of(x)
    forces = 0.05 * random(2, 6, 8, 3, seed=9)
    xb = x + 0.01 * random(2, 8, 3)
    clamped = [0, 1, -2, -1]
    assert_twins(
        rod, start(rod, xb, clamped=clamped), clamped, forces=forces, gravity=torch.tensor([1.0, 2, -9]).double()
    )


def test_kernel_is_twin_with_held_frames() -> None:
    x = curve(8)
    rod = rod_of(x)
    state = start(rod, x, clamped=[0, 1, 6, 7], held=[1, 7])
    assert_twins(rod, state, [0, 1, -2, -1], [1, -1])
    assert_twins(
        rod, rollout(rod, state, steps=3, clamped=[0, 1, 6, 7], held=[1, 7], dt=0.004).end, [0, 1, 6, 7], [1, 7]
    )


def test_kernel_is_twin_on_branches_that_stretch() -> None:
    x, tree = branched()
    rod = rod_of(x, EA=400.0, **tree)
    assert_twins(rod, start(rod, x, clamped=[2, 3]), [2, 3, 15])


def test_kernel_is_twin_on_unequal_rods_with_parameters_of_their_own() -> None:
    x = torch.cat([curve(3), curve(7) + 1, curve(4) - 1])
    one = rod_of(x, offsets=torch.tensor([0, 3, 10, 14]))
    batch = replace(
        one,
        **{name: getattr(one, name) * (1 + 0.1 * random(2, 2, *getattr(one, name).shape).sin()) for name in FIELDS},
        stretch_stiffness=one.stretch_stiffness.expand(2, 2, -1),
    )
    state = start(batch, x + 0.005 * random(2, 2, 14, 3), clamped=[1, 9])
    assert_twins(batch, state, [1, 9])
    alone = replace(
        batch, **{f.name: getattr(batch, f.name)[1, 0] for f in dataclasses.fields(Rod) if f.name != "parent"}
    )
    track = rollout(batch, state, steps=5, clamped=[1, 9])
    assert torch.equal(track.position[1, 0], rollout(alone, state[1, 0], steps=5, clamped=[1, 9]).position)


def test_gradients_are_finite_differences_over_100_steps() -> None:
    x = curve(7)
    rod, clamped = rod_of(x), [0, 1, 6]
    state = start(rod, x, clamped=clamped)
    path = state.position[clamped] + 0.001 * torch.arange(100)[:, None, None] * random(3, 3, seed=1).sin()
    weight = random(100, 7, 3, seed=2) / 100
    kinds = {"bend_stiffness": rod, "twist_stiffness": rod, "mass": rod, "viscosity": rod, "internal_damping": rod}

    def loss(shift: dict[str, Tensor]) -> Tensor:
        moved = replace(rod, **{k: getattr(rod, k) * (1 + shift[k]) for k in kinds})
        begun = start(moved, x, shift["velocity"], clamped=clamped)
        track = rollout(moved, begun, clamped=clamped, targets=path + shift["targets"], dt=0.004)
        return (track.position * weight).sum()

    shape = {**{k: getattr(rod, k).shape for k in kinds}, "velocity": (7, 3), "targets": (100, 3, 3)}
    zero = {k: torch.zeros(v, dtype=f64, requires_grad=True) for k, v in shape.items()}
    found = dict(zip(zero, torch.autograd.grad(loss(zero), list(zero.values())), strict=True))
    for k, v in shape.items():
        way, h = random(*v, seed=11), 1e-4 if k in kinds else 1e-5
        with torch.no_grad():
            probe = [loss({**zero, k: zero[k] + f * h * way}) for f in (-2, -1, 1, 2)]
        slope = (probe[0] - 8 * probe[1] + 8 * probe[2] - probe[3]) / (12 * h)
        assert abs(float((found[k] * way).sum() - slope)) < 1e-6 * max(1e-3, abs(float(slope))), k


@pytest.mark.parametrize("given", [True, False])
def test_held_directors_carry_the_derivative_of_the_shape(given: bool) -> None:
    x, way, weight = curve(7), random(7, 3, seed=3), random(7, 3, seed=4)
    rod, clamped, held = rod_of(x), [0, 1, 5, 6], [1, 6]

    def loss(x: Tensor) -> Tensor:
        edges = x[rod.parent.clamp(min=0)] - x
        director = torch.linalg.cross(edges, torch.tensor([[0.3, 0.5, 0.8]]).to(x)) if given else None
        director = None if director is None else torch.nn.functional.normalize(director, dim=-1)
        state = start(rod, x, clamped=clamped, held=held, director=director)
        return (rollout(rod, state, steps=20, clamped=clamped, held=held, dt=0.004).position[-1] * weight).sum()

    own, h = x.clone().requires_grad_(), 1e-5
    (grad,) = torch.autograd.grad(loss(own), own)
    with torch.no_grad():
        probe = [loss(x + k * h * way) for k in (-2, -1, 1, 2)]
    slope = (probe[0] - 8 * probe[1] + 8 * probe[2] - probe[3]) / (12 * h)
    assert abs(float((grad * way).sum() - slope)) < 1e-6 * abs(float(slope))


def test_same_bits_for_any_threads_and_batch(dtype: torch.dtype) -> None:
    x = curve(9).to(dtype)
    rod = rod_of(x)
    state = start(rod, x + 0.01 * random(40, 9, 3, dtype=dtype), clamped=[0])

    def run(of: State) -> list[Tensor]:
        stiffness = rod.bend_stiffness.clone().requires_grad_()
        track = rollout(replace(rod, bend_stiffness=stiffness), of, steps=30, clamped=[0], dt=0.004)
        (g,) = torch.autograd.grad(track.position.square().sum(), stiffness)
        return [track.position.detach(), track.end.velocity.detach(), g]

    once = run(state)
    assert torch.equal(once[0][7], run(state[7])[0])
    torch.set_num_threads(2)
    try:
        assert all(map(torch.equal, once, run(state)))
    finally:
        torch.set_num_threads(1)


def test_edges_keep_their_lengths_and_momenta_stay(dtype: torch.dtype) -> None:
    x, tree = branched()
    x = x.to(dtype)
    rod = rod_of(x, drag=0.0, quadratic_drag=0.0, internal_damping=0.0, **tree)
    spin = torch.linalg.cross(torch.tensor([0.3, -0.2, 1.0], dtype=dtype).expand(16, 3), x) + 0.2 * random(
        16, 3, dtype=dtype
    )
    state = start(rod, x, spin)
    track = rollout(rod, state, steps=300, dt=0.003, gravity=(0.0, 0, 0))
    edge = (track.position - track.position[:, rod.parent.clamp(min=0)])[:, 1:].norm(dim=-1)
    assert (edge - rod.length[1:]).abs().max() < (1e-6 if dtype == torch.float32 else 1e-12)
    m = rod.mass[:, None]
    first = rollout(rod, state, steps=1, dt=0.003, gravity=(0.0, 0, 0)).end  # `velocity` is free of lengths till here
    bound = 1e-12 if dtype == f64 else 1e-5
    p = [(m * s.velocity).sum(0) for s in (first, track.end)]
    q = [(m * torch.linalg.cross(s.position, s.velocity)).sum(0) for s in (first, track.end)]
    assert (p[1] - p[0]).abs().max() < bound and (q[1] - q[0]).abs().max() < bound
    assert (track.end.position - first.position).norm(dim=-1).max() > 0.1


def test_fall_is_the_closed_form_with_and_without_drag() -> None:
    x = curve(5)
    rod = make_rod(x, EI=1e-4, GJ=1e-4, straight=False)
    down = rollout(rod, start(rod, x), steps=40).position[..., 2] - x[:, 2]
    t = torch.arange(1, 41).double()
    assert (down + 9.81 * 1e-4 * (t * (t + 1) / 2)[:, None]).abs().max() < 1e-12
    slow = replace(rod, drag=torch.tensor(2.0).double())
    velocity = rollout(slow, start(slow, x), steps=40).end.velocity[:, 2]
    assert (velocity + 9.81 / 2 * (1 - 0.98**40)).abs().max() < 1e-11


def test_everything_clamped_goes_where_it_is_told() -> None:
    x = curve(4)
    rod = rod_of(x)
    path = (x + 0.01 * torch.arange(1, 4)[:, None, None]).requires_grad_()
    track = rollout(rod, start(rod, x, clamped=range(4)), clamped=range(4), targets=path)
    assert torch.equal(track.position, path)
    track.position.sum().backward()
    assert path.grad is not None and torch.equal(path.grad, torch.ones_like(path))


def test_a_taut_rod_stays_finite(dtype: torch.dtype) -> None:
    s = torch.linspace(0, 1, 6, dtype=dtype)
    x = torch.stack([s, 0 * s, 0 * s], -1)
    rod = make_rod(x, EI=1e-4, GJ=1e-4)
    for g in (0.0, -9.81):  # its lengths are redundant, then without a solution
        position, path = x.clone().requires_grad_(), x[[0, 5]].expand(3, 2, 3).clone().requires_grad_()
        state = replace(start(rod, x, clamped=[0, 5]), position=position)
        track = rollout(rod, state, clamped=[0, 5], targets=path, gravity=(0.0, 0.0, g))
        assert (track.position - x).abs().max() < 0.01
        assert all(y.isfinite().all() for y in torch.autograd.grad(track.position.square().sum(), [position, path]))


def test_three_vertices_and_half_turn_folds_stay_finite(dtype: torch.dtype) -> None:
    fold = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.0, 0, 0], [0.1, 0, 0.01]], dtype=dtype)
    for x in (fold[:3], fold, fold[1:]):
        rod = make_rod(x, EI=1e-6, GJ=1e-6)
        stiffness = rod.bend_stiffness.clone().requires_grad_()
        track = rollout(replace(rod, bend_stiffness=stiffness), start(rod, x, clamped=[0]), steps=20, clamped=[0])
        assert track.position.isfinite().all()
        (g,) = torch.autograd.grad(track.position.square().sum(), stiffness)
        assert g.isfinite().all()


@pytest.mark.parametrize("EI", [1e-8, 1e-3, 1.0, 1e3])
def test_any_stiffness_stays_finite(EI: float, dtype: torch.dtype) -> None:
    x = curve(13).to(dtype)
    rod = make_rod(x, EI=EI, GJ=EI, internal_damping=5.0)
    leaves = [y.clone().requires_grad_() for y in (rod.bend_stiffness, rod.mass, rod.length)]
    rod = replace(rod, bend_stiffness=leaves[0], mass=leaves[1], length=leaves[2])
    state = start(rod, x, clamped=[0, 1])
    path = state.position[[0, 1]].detach() + 0.02 * torch.arange(40, dtype=dtype)[:, None, None]
    track = rollout(rod, state, clamped=[0, 1], targets=path)
    assert track.position.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(track.position.square().sum(), leaves))
    edge = track.position.diff(dim=-2).norm(dim=-1)
    assert (edge - rod.length[1:]).abs().max() < (1e-12 if dtype == f64 else 5e-6) * max(
        1.0, float(track.position.detach().abs().max())
    )


def test_a_rollout_keeps_only_its_frames() -> None:
    x = curve(13)
    rod = rod_of(x)
    stiffness = rod.bend_stiffness.clone().requires_grad_()
    saved = 0

    def count(y: Tensor) -> Tensor:
        nonlocal saved
        saved += y.numel() * y.element_size()
        return y

    with torch.autograd.graph.saved_tensors_hooks(count, lambda y: y):
        rollout(replace(rod, bend_stiffness=stiffness), start(rod, x), steps=500)
    assert saved < 1.2 * 3 * 501 * 13 * 3 * 8  # positions, directors, strains


def test_step_is_rollout() -> None:
    x = curve(6)
    rod = rod_of(x)
    state = start(rod, x, clamped=[0])
    track = rollout(rod, state, steps=3, clamped=[0], dt=0.004)
    for _ in range(3):
        state = step(rod, state, clamped=[0], dt=0.004)
    assert torch.equal(state.position, track.end.position)
    assert torch.equal(state.strain, track.end.strain)
    assert not torch.equal(state.position, rollout(rod, start(rod, x, clamped=[0]), steps=3, clamped=[0]).end.position)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    x = curve(6)
    rod = rod_of(x)
    state = start(rod, x)
    far = state.position[None, [0, 5]].clone()
    far[..., 1, 0] += 1
    hole = far * torch.nan
    for wrong, said in (
        ({"clamped": [6], "steps": 1}, "vertices from -6 to 5"),
        ({"clamped": [0, -6], "steps": 1}, "each vertex once"),
        ({"clamped": [0], "held": [1], "steps": 1}, "whose two vertices are clamped"),
        ({"clamped": [0, 5], "targets": far}, "no farther apart"),
        ({"clamped": [0, 5], "targets": hole}, "expected finite numbers"),
        ({"clamped": [0], "targets": far}, "targets: expected"),
        ({"steps": 0}, "steps: expected"),
        ({"steps": 2, "clamped": [0, 5], "targets": far}, "steps: expected"),
        ({"steps": 1, "dt": 0.0}, "dt: expected"),
        ({"steps": 1, "forces": x[:, None]}, "steps: expected"),
        ({"steps": 1, "backend": "cuda"}, "backend"),
    ):
        with pytest.raises(ShapeError, match=said):
            rollout(rod, state, **wrong)
    soft = replace(rod, stretch_stiffness=torch.full_like(rod.mass, 100.0))
    assert rollout(soft, state, clamped=[0, 5], targets=far).position.isfinite().all()
    for vertices, said in (
        (x[:0], "at least 3"),
        (x[:2], "at least 3"),
        (x[[0, 1, 1, 2]], "edges of some length"),
        (x * torch.nan, "finite"),
    ):
        with pytest.raises(ShapeError, match=said):
            make_rod(vertices, EI=1e-4, GJ=1e-4)
    with pytest.raises(ShapeError, match="position: expected"):
        start(rod, x[:5])
    with pytest.raises(ShapeError, match="finite"):
        start(rod, x * torch.nan)


@pytest.mark.parametrize("run", [rollout, implicit_euler, implicit_midpoint])
def test_forces_that_are_no_numbers_are_refused(run) -> None:
    line = torch.linspace(0, 1, 5).double()
    x = torch.stack([line, 0 * line, 0 * line], -1)
    rod = make_rod(x, EI=1e-3, GJ=1e-3)
    forces = torch.zeros(2, 5, 3, dtype=torch.float64)
    forces[1, 2, 0] = torch.nan
    with pytest.raises(ShapeError, match="forces"):
        run(rod, start(rod, x), forces=forces)
