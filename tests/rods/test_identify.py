"""Identification: parameters found again from motion that they made, gaps, held-out clips, wrong input."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.rods import Clips, Rod, guess_rod, identify, make_rod, predict, rollout, start, track_errors
from geom.rods.identify import fill_gaps
from geom.values import replace

CLAMPED = (0, 1, -2, -1)


def swung(clips: int = 3, frames: int = 60) -> tuple[Rod, Tensor]:
    """A cable whose right grip is swung, each clip in its own way."""
    turn = torch.linspace(-0.9, 0.9, 9, dtype=torch.float64)
    arc = torch.zeros(10, 3, dtype=torch.float64)
    arc[1:, 0], arc[1:, 2] = (0.1 * turn.cos()).cumsum(0), (0.1 * turn.sin()).cumsum(0)
    rod = make_rod(arc, EI=8e-4, GJ=4e-4, drag=0.4, viscosity=0.02)
    rod = replace(rod, curvature=rod.curvature + 0.05)
    x = arc.expand(clips, 10, 3)
    grips = [0, 1, 8, 9]
    time = torch.arange(1, 3 * frames + 1, dtype=torch.float64)[:, None] / (3 * frames)
    path = x[:, None, grips].repeat(1, 3 * frames, 1, 1)
    for clip in range(clips):
        path[clip, :, 2:, 0] -= (0.2 + 0.1 * clip) * torch.sin(3 * time)
        path[clip, :, 2:, 1] += 0.1 * (clip - 1) * torch.sin((6 + clip) * time)
    moved = rollout(rod, start(rod, x, clamped=grips), clamped=grips, targets=path, held=[1, 9], dt=0.01 / 3)
    return rod, moved.position[:, 2::3]


def test_predict_continues_a_motion() -> None:
    rod, track = swung()
    predicted = predict(rod, track, clamped=CLAMPED)
    assert predicted.shape == track.shape and torch.equal(predicted[:, :2], track[:, :2])
    assert torch.equal(predicted[:, :, [0, 1, -2, -1]].isfinite(), torch.ones(3, 60, 4, 3, dtype=torch.bool))
    torch.testing.assert_close(predicted[:, :, [0, 1, -2, -1]], track[:, :, [0, 1, -2, -1]])
    assert float(track_errors(predicted, track).max()) < 2e-3  # its start knows frames, not the velocity within one


def test_parameters_are_found_again() -> None:
    rod, track = swung()
    guess = replace(
        rod, bend_stiffness=2.2 * rod.bend_stiffness, viscosity=0.5 * rod.viscosity, curvature=0 * rod.curvature
    )
    held_out = torch.tensor([False, True, False])
    before = track_errors(predict(guess, track, clamped=CLAMPED), track)
    found = identify(
        track,
        guess,
        clamped=CLAMPED,
        free=("EI", "viscosity", "curvature"),
        held_out=held_out,
        starts=6,
        iterations=40,
        generator=torch.Generator().manual_seed(0),
        progress=False,
    )
    assert float(found.error.max()) < 0.25 * float(before.min())
    assert abs(float(found.value.bend_stiffness[5, 0] / rod.bend_stiffness[5, 0]) - 1) < 0.25
    assert found.parameters == 2 + 2 * len(rod.tree.bends)
    assert torch.equal(found.held_out, held_out)
    torch.testing.assert_close(found.cost, found.error[~held_out].mean())
    for field in fields(Rod):  # what was not free is as it was
        if field.name not in ("bend_stiffness", "viscosity", "curvature"):
            assert torch.equal(getattr(found.value, field.name), getattr(guess, field.name))


def test_identify_is_deterministic_and_free_says_what_moves() -> None:
    rod, track = swung(clips=2, frames=12)
    guess = replace(rod, drag=2 * rod.drag)

    def run() -> Rod:
        return identify(
            track,
            guess,
            clamped=CLAMPED,
            free=("drag",),
            starts=3,
            iterations=3,
            generator=torch.Generator().manual_seed(1),
            progress=False,
        ).value

    a, b = run(), run()
    assert torch.equal(a.drag, b.drag) and not torch.equal(a.drag, guess.drag)
    assert torch.equal(a.bend_stiffness, guess.bend_stiffness)


def test_of_several_guesses_the_best_goes_on() -> None:
    rod, track = swung(clips=1, frames=12)
    bad = replace(rod, curvature=rod.curvature + 2.0)

    def run(*guess: Rod) -> float:
        more = {"clamped": CLAMPED, "free": ("drag",), "starts": 1, "iterations": 4, "progress": False}
        return float(identify(track, guess, **more).cost)  # type: ignore[arg-type]

    assert run(bad, rod) == run(rod) < 0.5 * run(bad)
    with pytest.raises(ShapeError, match="a rod or several"):
        run()


def test_more_clips_held_elsewhere_count_too() -> None:
    rod, track = swung(clips=2, frames=12)
    loose = rollout(rod, start(rod, track[:, 1], clamped=(0, 1)), clamped=(0, 1), held=[1], steps=36, dt=0.01 / 3)
    hanging = torch.cat([track[:, 1:2], loose.position[:, 2::3]], 1)
    still = track[:, :1].expand(2, 12, 10, 3)  # says nothing of drag
    guess = replace(rod, drag=3 * rod.drag)
    out = torch.tensor([False, True])
    more = {"clamped": CLAMPED, "free": ("drag",), "starts": 1, "iterations": 12, "progress": False}
    alone = identify(still, guess, **more)  # type: ignore[arg-type]
    both = identify(still, guess, more=[Clips(hanging, (0, 1), None, out)], **more)  # type: ignore[arg-type]
    assert both.held_out.tolist() == [False, False, False, True]
    torch.testing.assert_close(both.cost, 0.5 * (both.error[:2].mean() + both.error[2]))
    away = [abs(float(fit.value.drag / rod.drag) - 1) for fit in (alone, both)]
    assert away[1] < 0.5 * away[0]


def test_gaps_are_filled_and_do_not_count() -> None:
    rod, track = swung(clips=2, frames=12)
    holes = track.clone()
    holes[0, 4:7, 8] = torch.nan  # a grip
    holes[1, 5:, 4] = torch.nan  # a free vertex, to the end
    holes[1, 0, 4] = torch.nan
    filled = fill_gaps(holes)
    assert bool(filled.isfinite().all())
    step = (track[0, 7, 8] - track[0, 3, 8]) / 4
    torch.testing.assert_close(
        filled[0, 4:7, 8], track[0, 3, 8] + step * torch.arange(1, 4, dtype=torch.float64)[:, None]
    )
    assert torch.equal(filled[1, 5:, 4], track[1, 4, 4].expand(7, 3))
    predicted = predict(rod, holes, clamped=CLAMPED)
    error = track_errors(predicted, holes)
    assert bool(predicted.isfinite().all()) and bool(error.isfinite().all())
    expected = (predicted - holes)[:, 2:].abs().nanmean((2, 3)).sum(1) / 12
    torch.testing.assert_close(error, expected)


def test_a_marker_never_seen_is_an_error() -> None:
    rod, track = swung(clips=1, frames=12)
    track = track.clone()
    track[0, :, 3] = torch.nan
    with pytest.raises(ShapeError, match="every vertex in some frame"):
        predict(rod, track, clamped=CLAMPED)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"free": ("EI", "colour")}, "colour"),
        ({"free": ()}, "none"),
        ({"held_out": torch.ones(2, dtype=torch.bool)}, "some of "),
        ({"clamped": (0, 40)}, "clamped"),
    ],
)
def test_wrong_input(change: dict[str, object], words: str) -> None:
    rod, track = swung(clips=2, frames=12)
    with pytest.raises(ShapeError, match=words):
        identify(track, rod, **({"clamped": CLAMPED, "iterations": 1, "starts": 1, "progress": False} | change))  # type: ignore[arg-type]


def test_a_grip_on_one_vertex_within_a_rod_does_not_turn() -> None:
    rod, track = swung(clips=2, frames=30)
    predicted = predict(rod, track, clamped=(4, -2, -1))
    torch.testing.assert_close(predicted[:, :, 4], track[:, :, 4])
    edge = predicted[:, :, 4] - predicted[:, :, 3]
    torch.testing.assert_close(edge[:, 1:], edge[:, 1:2].expand(-1, 29, 3))
    loose = predict(rod, track, clamped=(0, -1))  # ends are pivots
    assert float((loose[:, 1:, 1] - loose[:, 1:, 0]).diff(dim=1).abs().max()) > 1e-4


@pytest.mark.usefixtures("unchecked")
def test_wrong_tracks() -> None:
    rod, track = swung(clips=1, frames=12)
    for bad in (track[0], track[:, :2], track[:, :, :7]):
        with pytest.raises(ShapeError, match="track"):
            predict(rod, bad, clamped=CLAMPED)


def test_float32_and_a_guess_from_the_clips() -> None:
    rod, track = swung(clips=2, frames=20)
    guess = guess_rod(track.float(), linear_density=0.03)
    assert guess.mass.dtype == torch.float32
    torch.testing.assert_close(guess.length.double(), rod.length, rtol=1e-4, atol=1e-5)
    assert abs(float(guess.mass.sum()) - 0.03 * 0.9) < 1e-5
    assert predict(guess, track.float(), clamped=CLAMPED).dtype == torch.float32
