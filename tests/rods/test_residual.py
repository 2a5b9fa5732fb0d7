"""The residual network: nothing before training, turns with the rod, learns what the physics lacks."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geom.errors import FileFormatError, ShapeError
from geom.rods import Clips, Rod, State, make_rod, start
from geom.rods.identify import predict, track_errors
from geom.rods.residual import Residual, fit_residual, predict_with, rollout_with
from geom.train import Cosine, TrainConfig
from geom.values import replace


def line(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A slack arc of n vertices, 0.1 m apart."""
    angle = torch.linspace(-1.2, 1.2, n - 1, dtype=torch.float64)
    steps = 0.1 * torch.stack([angle.cos(), 0.1 * angle, angle.sin()], -1)
    return torch.cat([torch.zeros(1, 3, dtype=torch.float64), steps.cumsum(0)]).to(dtype)


def cable(dtype: torch.dtype = torch.float64, viscosity: float = 0.0) -> Rod:
    return make_rod(line(8, dtype), EI=1e-3, GJ=1e-3, drag=0.5, internal_damping=3.0, viscosity=viscosity)


def harness() -> Rod:
    x = torch.cat([line(8), line(8)[3:4] + torch.tensor([[0.0, 0.1, 0.0], [0.05, 0.18, 0.0]]).double()])
    rod = make_rod(x, EI=1e-3, GJ=1e-3, offsets=torch.tensor([0, 8, 10]), junctions=[(3, 1)])
    return rod


def states(rod: Rod, *, count: int = 3) -> State:
    """Random ones, with all fields at work."""
    g = torch.Generator().manual_seed(0)
    n = len(rod.parent)
    base = line(8) if n == 8 else torch.cat([line(8), line(8)[3:4] + torch.tensor([[0.0, 0.1, 0], [0.05, 0.18, 0]])])

    def noise(size: float) -> Tensor:
        return size * torch.randn(count, n, 3, generator=g, dtype=torch.float64)

    state = start(rod, base + noise(0.02), noise(1.0))
    return replace(state, strain_before=state.strain + noise(0.01))


def awake(rod: Rod) -> Residual:
    """With weights everywhere."""
    g = torch.Generator().manual_seed(1)
    residual = Residual(rod.parent, generator=g)
    with torch.no_grad():
        for p in residual.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return residual


def wave(rod: Rod, clips: int, frames: int) -> Tensor:
    """Clips of a rod that hangs from a gripper which swings."""
    x0 = line(8).to(rod.mass)
    time = 0.01 * torch.arange(frames).to(x0)
    phase = torch.arange(clips).to(x0)[:, None]
    swing = 0.05 * torch.stack([0 * time * phase, torch.sin(6 * time + phase), torch.cos(5 * time + 2 * phase) - 1], -1)
    rest = x0.expand(clips, frames, 8, 3).clone()
    rest[:, :, :2] += (swing - swing[:, :1])[:, :, None]
    return predict(rod, rest, clamped=(0, 1))


def test_untrained_it_is_the_physics(dtype: torch.dtype) -> None:
    rod = cable(dtype=dtype, viscosity=0.01)
    track = wave(rod, 2, 30)
    found = predict_with(rod, Residual(rod.parent), track, clamped=(0, 1))
    assert found.dtype == dtype
    torch.testing.assert_close(found, track, rtol=0, atol=1e-13 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("rod", [cable(), harness()], ids=["cable", "harness"])
def test_it_turns_with_the_rod_about_gravity(rod: Rod) -> None:
    residual, state = awake(rod), states(rod)
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    moved = replace(
        state,
        position=state.position @ turn.T + torch.tensor([1.0, -2.0, 3.0]),
        velocity=state.velocity @ turn.T,
        director=state.director @ turn.T,
    )
    given = residual(state).detach()
    assert float(given.abs().max()) > 0.1
    torch.testing.assert_close(residual(moved).detach(), given @ turn.T, rtol=0, atol=1e-11)
    tip = torch.tensor([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]).double()  # gravity is not turned with it
    tipped = replace(
        state, position=state.position @ tip.T, velocity=state.velocity @ tip.T, director=state.director @ tip.T
    )
    assert float((residual(tipped).detach() - given @ tip.T).abs().max()) > 1e-2


def test_messages_reach_the_branch() -> None:
    rod = harness()
    state, residual = states(rod), awake(rod)
    velocity = state.velocity.clone()
    velocity[:, 1] += 1.0
    change = (residual(replace(state, velocity=velocity)) - residual(state)).detach().abs().amax((0, 2))
    assert float(change.min()) > 0


def test_the_acceleration_is_bounded(dtype: torch.dtype) -> None:
    rod = cable()
    residual = awake(rod)
    state = states(rod).to(dtype)
    wild = replace(state, velocity=1e6 * state.velocity)
    found = residual(wild).detach()
    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    assert float(found.norm(dim=-1).max()) <= 10 * 3**0.5 + 1e-5


def test_gradients_in_the_weights() -> None:
    """Exact within one push; later ones read directors and strains, whose own derivatives are left out."""
    rod = cable()
    residual = awake(rod).double()
    state = start(rod, line(8)[None], torch.ones(1, 8, 3).double(), clamped=(0, 1))
    path = line(8)[None, None, :2].expand(1, 3, 2, 3)

    def moved() -> Tensor:
        return rollout_with(rod, residual, state, clamped=(0, 1), path=path, held=(1,), substeps=2)

    away = torch.randn(1, 2, 8, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weight = residual.messages
    (gradient,) = torch.autograd.grad((moved() * away).sum(), weight)
    along = torch.randn(weight.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    values = []
    for sign in (-1, 1):
        with torch.no_grad():
            weight.add_(sign * 1e-4 * along)
            values.append(float((moved() * away).sum()))
            weight.sub_(sign * 1e-4 * along)
    assert float((gradient * along).sum()) == pytest.approx((values[1] - values[0]) / 2e-4, rel=1e-5)


def test_the_derivative_handed_back_is_bounded() -> None:
    rod = cable()
    residual = Residual(rod.parent)
    path = line(8)[None, None, :2].expand(1, 9, 2, 3)
    gradients = []
    for bound in (None, 1e3, 0.1):
        x = line(8)[None].clone().requires_grad_()
        state = start(rod, x.detach(), clamped=(0, 1))
        moved = rollout_with(rod, residual, replace(state, position=x), clamped=(0, 1), path=path, bound=bound)
        gradients.append(torch.autograd.grad(moved.sum(), x)[0])
    assert torch.equal(gradients[0], gradients[1])
    assert float(gradients[2].norm()) <= 0.1 < float(gradients[0].norm())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    rod = cable()
    residual = awake(rod)
    residual.save(tmp_path / "a.safetensors")
    again = Residual.load(tmp_path / "a.safetensors")
    state = states(rod)
    assert torch.equal(again(state), residual(state))
    rod.save(tmp_path / "rod.safetensors")
    with pytest.raises(FileFormatError):
        Residual.load(tmp_path / "rod.safetensors")


def test_it_learns_what_the_physics_lacks(tmp_path: Path) -> None:
    true = cable(dtype=torch.float32)
    known = replace(true, curvature=true.curvature + 0.4 * (torch.arange(8) > 1)[:, None], drag=0.5 * true.drag)
    track = wave(true, 6, 40)
    track[0, 10:13, 4] = torch.nan  # a lost marker
    held_out = torch.arange(6) > 3
    config = TrainConfig(steps=12, batch=4, rate=2e-2, schedule=Cosine(), clip=1.0, validate_every=4)

    def fit(out: Path) -> Residual:
        return fit_residual(known, track, clamped=(0, 1), horizon=12, held_out=held_out, config=config, out=out)

    residual = fit(tmp_path / "a")
    with torch.no_grad():
        before = track_errors(predict(known, track, clamped=(0, 1)), track)[held_out].mean()
        after = track_errors(predict_with(known, residual, track, clamped=(0, 1)), track)[held_out].mean()
    assert float(after) < 0.5 * float(before), (before, after)
    again = fit(tmp_path / "b").state_dict()
    assert all(torch.equal(x, again[k]) for k, x in residual.state_dict().items())


def test_more_clips_held_elsewhere_are_learned_too() -> None:
    true = cable(dtype=torch.float32)
    known = replace(true, curvature=true.curvature + 0.4 * (torch.arange(8) > 1)[:, None])
    still = line(8, torch.float32).expand(2, 20, 8, 3)  # all clamped: nothing to learn from
    track = wave(true, 4, 20)
    out = torch.tensor([False, False, False, True])
    config = TrainConfig(steps=16, batch=6, rate=2e-2, schedule=Cosine(), clip=1.0, validate_every=4)

    def error(more: list[Clips]) -> float:
        held = torch.zeros(2, dtype=torch.bool)
        fitted = fit_residual(known, still, clamped=range(8), horizon=8, held_out=held, more=more, config=config)
        with torch.no_grad():
            return float(track_errors(predict_with(known, fitted, track[3:], clamped=(0, 1)), track[3:]))

    assert error([Clips(track, (0, 1), None, out)]) < 0.7 * error([])


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    rod = cable()
    track = wave(rod, 2, 10)
    with pytest.raises(ShapeError, match="parent"):
        Residual(torch.zeros(3))
    with pytest.raises(ShapeError, match="width"):
        Residual(rod.parent, width=0)
    with pytest.raises(ShapeError, match="track"):
        predict_with(rod, Residual(rod.parent), track[:, :, :5], clamped=(0, 1))
    with pytest.raises(ShapeError, match="topology"):
        predict_with(rod, Residual(harness().parent), track, clamped=(0, 1))
    with pytest.raises(ShapeError, match="horizon"):
        fit_residual(rod, track, clamped=(0, 1), horizon=9)
    with pytest.raises(ShapeError, match="horizon"):
        fit_residual(rod, track, clamped=(0, 1), horizon=3, held_out=torch.ones(2, dtype=torch.bool))
