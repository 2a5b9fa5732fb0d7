"""Smooth skinning decomposition: exact recovery, locks, bounds, the kernels against their twins, degenerate tracks."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.io.gltf_rig import load_rig, save_rig
from geom.lie import so3
from geom.skinning.bone_transforms import fit_bones
from geom.skinning.bone_weights import dense_weights, fit_weights, homogeneous
from geom.skinning.decomposition import Decomposition, decompose_skinning, refine_skinning, solve_skinning
from geom.skinning.pose import deform
from geom.skinning.rest_pose import settle_points, turn_rests
from geom.values import replace

f64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def worm(frames: int = 16, vertices: int = 160, bones: int = 4, influences: int = 2, seed: int = 0) -> Decomposition:
    """A tube along x whose bones, a unit apart, turn about where they meet; weights blend from one to the next."""
    s = torch.linspace(0, bones, vertices, dtype=f64)
    turn = 2.4 * torch.arange(vertices, dtype=f64)
    rest = torch.stack([s, 0.2 * turn.cos(), 0.2 * turn.sin()], -1)
    far = (s[:, None] - torch.arange(bones, dtype=f64) - 0.5).abs()
    top, indices = (1.25 - far).clamp(min=0).pow(3).topk(influences, 1)
    weights = top / top.sum(1, keepdim=True)
    transforms = [torch.eye(3, 4, dtype=f64).expand(frames, 3, 4)]
    time = torch.linspace(0, 3, frames, dtype=f64)[:, None]
    for j in range(1, bones):
        R = so3.exp(0.6 * (time * (1 + 0.5 * random(1, 3, seed=seed + j)) + random(1, 3, seed=seed + 10 * j)).sin())
        pivot = torch.tensor([float(j), 0, 0], dtype=f64)
        before = transforms[-1]
        t = (before[..., :3] @ (pivot - R @ pivot)[..., None])[..., 0] + before[..., 3]
        transforms.append(torch.cat([before[..., :3] @ R, t[..., None]], -1))
    return Decomposition(rest, weights, indices, torch.stack(transforms, 1))


def rmse(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().square().sum(-1).mean().sqrt())


def check_valid(found: Decomposition, influences: int) -> None:
    eps = 1e-14 if found.rest.dtype == f64 else 2e-6
    assert all(bool(x.isfinite().all()) for x in (found.rest, found.weights, found.transforms))
    assert found.weights.shape[1] == found.indices.shape[1] == influences and bool((found.weights >= 0).all())
    assert (found.weights.sum(1) - 1).abs().max() < eps
    R = found.transforms[..., :3]
    assert (R @ R.mT - torch.eye(3).to(R)).abs().max() < 10 * eps and bool((torch.linalg.det(R) > 0).all())
    used = torch.where(found.weights > 0, found.indices, -1 - torch.arange(influences))
    assert all(len(set(row)) == influences for row in used.tolist())  # no bone twice in a row


@pytest.mark.parametrize("given", [True, False], ids=["rest", "no rest"])
def test_what_skinning_made_is_found(dtype: torch.dtype, given: bool) -> None:
    made = worm().to(dtype)
    track = made.track()
    fit = decompose_skinning(track, bones=4, rest=made.rest if given else None)
    diagonal = float((made.rest.amax(0) - made.rest.amin(0)).norm())
    assert rmse(fit.value.track(), track) < (5e-6 if given else 1.5e-4) * diagonal
    assert fit.value.transforms.shape == (16, 4, 3, 4) and fit.value.rest.dtype == dtype
    check_valid(fit.value, 4)
    if given:
        assert bool(fit.converged)
        assert (fit.value.rest - made.rest).abs().max() < 1e-6
    expected = 0.5 * rmse(fit.value.track(), track) ** 2 * track.shape[0] * track.shape[1]
    if dtype == f64:
        assert math.isclose(float(fit.cost), expected, rel_tol=1e-6)


def bent(made: Decomposition, frame: int) -> Decomposition:
    """The same motion from another frame's shape as the rest: of vertices that several bones carry, not exactly."""
    R, t = made.transforms[frame, :, :, :3].mT, made.transforms[frame, :, :, 3:]
    turn = made.transforms[..., :3] @ R
    moved = torch.cat([turn, made.transforms[..., 3:] - turn @ t], -1)
    return replace(made, rest=made.track()[frame], transforms=moved)


def test_a_bent_rest_straightens() -> None:
    made = worm()
    track, guess = made.track(), bent(made, 5)
    assert rmse(guess.track(), track) > 5e-3
    fit = refine_skinning(track, guess, free_rest=True, iterations=60)
    assert rmse(fit.value.track(), track) < 1.2e-4
    assert torch.linalg.norm(fit.value.rest[0] - fit.value.rest[-1]) > 3.9  # 4 long where it is straight


def test_turned_rests_leave_what_is_held_and_locked() -> None:
    made = worm()
    guess, rows = bent(made, 5), made.track().permute(0, 2, 1).reshape(-1, 160)
    stacked = guess.transforms.permute(0, 2, 1, 3).reshape(48, 16)
    given = (stacked.T @ stacked, rows.T @ stacked, guess.rest, guess.weights, guess.indices, guess.transforms)
    held, locked = torch.arange(160) % 3 == 0, torch.tensor([True, False, True, False])
    _, weights, transforms = turn_rests(*given, damping=1e-3, held=held, locked=locked)
    assert (weights - guess.weights)[held].abs().max() < 1e-15 < (weights - guess.weights)[~held].abs().max()
    moved = (transforms - guess.transforms).abs().amax((0, 2, 3))
    assert moved[locked].max() < 1e-15 and moved[~locked].min() > 1e-3
    weights = settle_points(*given[:5], held=held)[1]
    assert torch.equal(weights[held], guess.weights[held]) and not torch.equal(weights, guess.weights)


def test_settled_points_cost_no_more() -> None:
    made = worm()
    guess, track = bent(made, 5), made.track()
    stacked = guess.transforms.permute(0, 2, 1, 3).reshape(48, 16)
    moment = track.permute(0, 2, 1).reshape(-1, 160).T @ stacked
    rest, weights = settle_points(stacked.T @ stacked, moment, guess.rest, guess.weights, guess.indices)
    after = (replace(guess, rest=rest, weights=weights).track() - track).square().sum((0, 2))
    before = (guess.track() - track).square().sum((0, 2))
    assert bool((after <= before + 1e-12).all()) and after.sum() < 0.7 * before.sum()


def test_two_rigid_parts_come_back_as_they_are() -> None:
    made = worm(bones=2, influences=1, vertices=60)
    fit = decompose_skinning(made.track(), bones=2, rest=made.rest, influences=1)
    swap = torch.tensor([1, 0]) if fit.value.indices[0, 0] != made.indices[0, 0] else torch.tensor([0, 1])
    assert torch.equal(swap[fit.value.indices[:, 0]], made.indices[:, 0])
    assert (fit.value.transforms[:, swap] - made.transforms).abs().max() < 1e-6


def test_the_same_bits_again() -> None:
    track = worm(vertices=80).track() + 0.01 * random(16, 80, 3)
    a, b = (decompose_skinning(track, bones=3, iterations=40).value for _ in range(2))
    assert torch.equal(a.weights, b.weights) and torch.equal(a.transforms, b.transforms) and torch.equal(a.rest, b.rest)


def test_more_influences_more_bones_and_a_free_rest_fit_better() -> None:
    track = worm(vertices=80).track() + 0.02 * random(16, 80, 3)

    def error(**given: int | Tensor | None) -> float:
        return float(
            decompose_skinning(track, **{"bones": 3, "influences": 4, "rest": track[0], "iterations": 30, **given}).cost
        )

    assert error(influences=4) < error(influences=1)
    assert error(bones=6) < error(bones=2)
    assert error(rest=None) < error()
    for influences in (1, 3, 8):
        check_valid(decompose_skinning(track, bones=5, influences=influences, iterations=20).value, influences)


def test_tolerance_takes_bones_away_while_it_is_met() -> None:
    made = worm()
    track, diagonal = made.track(), 4.0
    fit = decompose_skinning(track, bones=9, rest=made.rest, tolerance=1e-3 * diagonal)
    assert bool(fit.converged) and rmse(fit.value.track(), track) <= 1e-3 * diagonal
    assert fit.value.transforms.shape[1] <= 4
    loose = decompose_skinning(track, bones=9, rest=made.rest, tolerance=0.05 * diagonal)
    assert loose.value.transforms.shape[1] < fit.value.transforms.shape[1]
    never = decompose_skinning(track, bones=1, tolerance=1e-3)
    assert not bool(never.converged)


def test_smoothness_smooths_weights() -> None:
    made = worm()
    track = made.track() + 0.03 * random(16, 160, 3)

    def roughness(smoothness: float) -> float:
        found = decompose_skinning(track, bones=4, rest=made.rest, smoothness=smoothness, iterations=30).value
        dense = dense_weights(found.weights, found.indices, found.transforms.shape[1])
        return float((dense[1:] - dense[:-1]).square().sum())  # along the tube

    assert roughness(0.03) < 0.5 * roughness(0.0)


def test_locks_hold_bit_for_bit(dtype: torch.dtype) -> None:
    made = worm().to(dtype)
    track = made.track()
    off = replace(made, transforms=so3.exp(0.05 * random(16, 4, 3).to(dtype)) @ made.transforms)
    off = replace(off, weights=torch.nn.functional.normalize(off.weights + 0.1, p=1.0, dim=1))
    held, locked = torch.arange(160) % 3 == 0, torch.tensor([True, False, True, False])
    fit = refine_skinning(track, off, lock_weights=held, lock_bones=locked)
    assert torch.equal(fit.value.weights[held], off.weights[held])
    assert torch.equal(fit.value.indices[held], off.indices[held])
    assert torch.equal(fit.value.transforms[:, locked], off.transforms[:, locked])
    assert torch.equal(fit.value.rest, off.rest)
    assert (fit.value.transforms - off.transforms)[:, ~locked].abs().max() > 1e-2
    assert rmse(fit.value.track(), track) < rmse(off.track(), track)
    check_valid(fit.value, 2)
    free = refine_skinning(track, off, free_rest=True)
    assert rmse(free.value.track(), track) < 0.1 * rmse(fit.value.track(), track)
    assert not torch.equal(free.value.rest, off.rest)


def problem() -> tuple[Tensor, ...]:
    """Grams of the worm's transforms and weights, with noise: what both halves take."""
    made = worm(bones=6, vertices=90, influences=3)
    x = made.track() + 0.05 * random(16, 90, 3)
    M = so3.exp(0.1 * random(16, 6, 3)) @ made.transforms
    stacked = M.permute(0, 2, 1, 3).reshape(48, 24)
    flat = x.permute(0, 2, 1).reshape(48, 90)
    dense = dense_weights(made.weights, made.indices, 6)
    basis = (dense[:, :, None] * homogeneous(made.rest)[:, None]).flatten(1)
    target = (flat @ basis).reshape(16, 3, 6, 4).permute(0, 2, 1, 3)
    return made.rest, stacked.T @ stacked, flat.T @ stacked, basis.T @ basis, target, M


@pytest.mark.parametrize("influences", [1, 3, 6])
def test_weights_of_the_kernel_are_the_twins(influences: int) -> None:
    rest, gram, moment, *_ = problem()
    start = torch.zeros(90, influences, dtype=f64)
    start[:, 0] = 1
    ids = torch.randint(0, 6, (90, 1), generator=torch.Generator().manual_seed(1)).expand(90, influences).contiguous()
    warp, torch_ = (
        dense_weights(*fit_weights(gram, moment, rest, start, ids, backend=backend), 6) for backend in ("warp", "torch")
    )
    assert (warp - torch_).abs().max() < 1e-8 and bool(((warp > 0).sum(1) <= influences).all())

    def cost(w: Tensor) -> Tensor:
        b = (w[:, :, None] * homogeneous(rest)[:, None]).flatten(1)
        return 0.5 * ((b @ gram) * b).sum(1) - (b * moment).sum(1)

    assert bool((cost(warp) <= cost(dense_weights(start, ids, 6)) + 1e-9).all())
    if influences == 6:  # convex: no feasible direction goes down
        h = homogeneous(rest)
        b = (warp[:, :, None] * h[:, None]).flatten(1)
        slope = torch.einsum("vja,va->vj", (b @ gram - moment).reshape(90, 6, 4), h)
        level = (slope * warp).sum(1, keepdim=True)
        assert (slope - level).min() > -1e-6 and ((slope - level).abs() * warp).max() < 1e-6


def test_bones_of_the_kernel_are_the_twins() -> None:
    *_, covariance, target, start = problem()
    locked = torch.tensor([False, True, False, False, False, False])

    def cost(M: Tensor) -> Tensor:
        flat = M.permute(0, 2, 1, 3).reshape(16, 3, 24)
        return (0.5 * (flat @ covariance) * flat).sum((1, 2)) - (M * target).sum((1, 2, 3))

    for sweeps in (1, 4):
        warp, torch_ = (
            fit_bones(covariance, target, start, locked=locked, sweeps=sweeps, backend=backend)
            for backend in ("warp", "torch")
        )
        assert (warp - torch_).abs().max() < 1e-9
        assert bool((cost(warp) <= cost(start)).all()) and torch.equal(warp[:, 1], start[:, 1])
        start = warp


def test_a_rig_moves_as_the_track_and_survives_gltf(tmp_path: Path) -> None:
    made = worm(vertices=80)
    track = made.track()
    faces = torch.stack([torch.arange(78), torch.arange(78) + 1, torch.arange(78) + 2], -1)
    fit = solve_skinning(track, bones=4, rest=made.rest, faces=faces, rate=20.0)
    times = torch.arange(16, dtype=f64) / 20
    posed = deform(fit.value, fit.value.pose(animation=0, time=times))[0]
    assert rmse(posed, track) < 2e-5
    assert torch.equal(fit.value.primitives[0].faces, faces)
    save_rig(fit.value, tmp_path / "worm.glb")
    again = load_rig(tmp_path / "worm.glb", dtype=f64)
    assert rmse(deform(again, again.pose(animation=0, time=times))[0], track) < 2e-5


STATIC = random(12, 3).expand(5, 12, 3).contiguous()
DEGENERATE = {
    "static": STATIC,
    "one frame": random(1, 20, 3),
    "one vertex": random(6, 1, 3),
    "fewer vertices than bones": random(6, 4, 3),
    "flat": random(8, 30, 3) * torch.tensor([1.0, 1, 0]),
    "on a line": torch.arange(30, dtype=f64)[:, None] * torch.eye(3, dtype=f64)[0] + random(5, 1, 3),
    "coincident": random(6, 1, 3).expand(6, 20, 3).contiguous(),
    "coincident and still": torch.zeros(4, 20, 3, dtype=f64),
    "noise": random(7, 40, 3),
    "mirrored": torch.stack([random(30, 3), random(30, 3) * torch.tensor([-1.0, 1, 1])]),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("given", [True, False], ids=["rest", "no rest"])
def test_degenerate_tracks_stay_finite(name: str, given: bool) -> None:
    track = DEGENERATE[name].double()
    fit = decompose_skinning(track, bones=6, rest=track[0] if given else None, iterations=12)
    check_valid(fit.value, 4)
    assert fit.value.transforms.shape[1] <= 6 and bool(fit.cost.isfinite())
    still = float((track - track[0]).square().sum()) / 2
    assert fit.cost <= still * (1 + 1e-9) + 1e-12
    rig = fit.value.rig()
    assert all(bool(x.isfinite().all()) for x in (rig.translation, rig.quat_wxyz, rig.scale))


def test_a_still_track_needs_one_bone() -> None:
    assert decompose_skinning(STATIC, bones=6).value.transforms.shape[1] == 1


@pytest.mark.usefixtures("unchecked")
def test_wrong_input_is_named() -> None:
    track = random(4, 9, 3)
    guess = decompose_skinning(track, bones=2, iterations=2).value
    bad = track.clone()
    bad[1, 2, 0] = torch.nan
    for call, word in (
        (lambda: decompose_skinning(bad, bones=2), "track"),
        (lambda: decompose_skinning(track[0], bones=2), "track"),
        (lambda: decompose_skinning(track[:0], bones=2), "track"),
        (lambda: decompose_skinning(track, bones=0), "bones"),
        (lambda: decompose_skinning(track, bones=2, influences=17), "influences"),
        (lambda: decompose_skinning(track, bones=2, rest=track[0, :5]), "rest"),
        (lambda: decompose_skinning(track, bones=2, tolerance=0.0), "tolerance"),
        (lambda: decompose_skinning(track, bones=2, smoothness=-1.0), "smoothness"),
        (lambda: solve_skinning(track, bones=2, faces=torch.tensor([[0, 1, 9]])), "faces"),
        (lambda: solve_skinning(track, bones=2, rate=0.0), "rate"),
        (lambda: refine_skinning(track[:2], guess), "guess"),
        (lambda: refine_skinning(track, guess, lock_weights=torch.ones(3, dtype=torch.bool)), "lock_weights"),
        (lambda: refine_skinning(track, guess, lock_bones=torch.ones(2)), "lock_bones"),
    ):
        with pytest.raises(ShapeError, match=word):
            call()
