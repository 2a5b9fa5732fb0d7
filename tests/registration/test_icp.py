"""icp on scenes with known poses: accuracy, invariances, determinism, uncertainty, bad input."""

import math

import numpy as np
import pytest
import torch

from geom.errors import ConvergenceWarning, GeomError, ShapeError
from geom.lie import Rigid, quaternion, se3
from geom.meshes import Mesh
from geom.points import Points
from geom.registration import Registration, icp

from . import scenes

METHODS = ["point", "plane", "gicp", "vgicp"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def room_pair(dtype=torch.float32, noise: float = 0.01, seed: int = 0, count: int = 6000):
    generator = seeded(seed)
    pose = scenes.small_pose(generator, 0.1, 0.05)
    source, target = scenes.pair(scenes.room, generator, count, noise, pose)
    return source.to(dtype), target.to(dtype), pose


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_pose_is_found(method, dtype):
    source, target, pose = room_pair(dtype)
    found = icp(source, target, method=method, voxel_size=0.1, max_distance=0.4)
    error = scenes.twist_error(found.value, pose)
    assert error[:3].norm() < (0.03 if method == "point" else 0.005)
    assert error[3:].norm() < (0.01 if method == "point" else 0.002)
    assert found.converged and found.overlap > 0.9 and 0 < found.rmse < 0.2
    assert found.T_target_source.dtype == torch.float64 and found.T_target_source.shape == (4, 4)
    assert found.information.shape == found.covariance.shape == (6, 6)
    torch.testing.assert_close(found.information @ found.covariance, torch.eye(6).double(), rtol=0, atol=1e-6)
    assert found.degenerate_directions.shape == (0, 6)
    assert (found.method, found.voxel_size, found.max_distance) == (method, 0.1, 0.4)


def test_settings_are_chosen_and_recorded():
    source, target, pose = room_pair()
    found = icp(source, target)
    assert 0.02 < found.voxel_size < 0.2 and 4 * found.voxel_size <= found.max_distance <= 16 * found.voxel_size
    assert scenes.twist_error(found.value, pose).norm() < 0.01
    again = icp(source, target, voxel_size=found.voxel_size, max_distance=found.max_distance)
    assert torch.equal(again.T_target_source, found.T_target_source)


@pytest.mark.parametrize("method", METHODS)
def test_aligned_clouds_stay_aligned(method):
    source = room_pair()[0]
    found = icp(source, source.clone(), method=method, voxel_size=0.1)
    still = 1e-3 if method == "vgicp" else 1e-9  # a voxel's mean is not the mean of what falls into it
    assert scenes.twist_error(found.value, Rigid.identity(dtype=torch.float64)).norm() < still
    assert found.converged and torch.isfinite(found.information).all() and torch.isfinite(found.covariance).all()
    noisy, target, pose = room_pair(noise=0.005)
    held = icp(noisy, target, init=pose, method=method, voxel_size=0.1, max_distance=0.3)
    assert scenes.twist_error(held.value, pose).norm() < (0.03 if method == "point" else 0.003)


@pytest.mark.parametrize("method", METHODS)
def test_same_bits_for_any_run_and_thread_count(method):
    source, target, _ = room_pair(count=30000)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 1, 2, 2):
            torch.set_num_threads(threads)
            results.append(icp(source, target, method=method, voxel_size=0.05, max_distance=0.4))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for field in ("T_target_source", "covariance", "information", "rmse", "cost"):
            assert torch.equal(getattr(other, field), getattr(results[0], field)), field


@pytest.mark.parametrize("method", METHODS)
def test_far_from_the_origin(method):
    source, target, _ = room_pair(torch.float64)
    near = icp(source, target, method=method, voxel_size=0.1, max_distance=0.4)
    offset = torch.tensor([1e6, -2e6, 5e5], dtype=torch.float64)
    far = icp(source + offset, target + offset, init=_shifted(Rigid.identity(dtype=torch.float64), offset),
              method=method, voxel_size=0.1, max_distance=0.4)  # fmt: skip
    back = _shifted(far.value, -offset)
    torch.testing.assert_close(back.to_matrix(), near.T_target_source, rtol=0, atol=1e-6)
    torch.testing.assert_close(far.rmse, near.rmse, rtol=1e-6, atol=0)


def _shifted(pose: Rigid, offset: torch.Tensor) -> Rigid:
    """The pose between frames whose origins moved: x + offset goes to y + offset."""
    return Rigid(pose.quat_wxyz, pose.translation + offset - quaternion.rotate(pose.quat_wxyz, offset))


def test_moving_the_source_moves_the_pose():
    source, target, pose = room_pair(torch.float64)
    init = pose.retract(torch.tensor([0.05, 0, 0, 0, 0, 0.02], dtype=torch.float64))
    found = icp(source, target, init=init, voxel_size=0.1, max_distance=0.4)
    turn = Rigid(*se3.exp(torch.tensor([3.0, -2, 1, 0.0, 0.0, math.pi / 2], dtype=torch.float64)))
    moved = icp(turn.apply(source), target, init=init.compose(turn.inverse()), voxel_size=0.1, max_distance=0.4)
    assert scenes.twist_error(moved.value.compose(turn), found.value).norm() < 2e-3  # other voxels, same surface


def test_pairs_lists_and_batches():
    pairs = [room_pair(seed=seed, count=3000) for seed in range(3)]
    sources, targets, _ = zip(*pairs, strict=True)
    one_by_one = [icp(s, t, voxel_size=0.1) for s, t in zip(sources, targets, strict=True)]
    listed = icp(list(sources), list(targets), voxel_size=0.1, init=[None, torch.eye(4), None])
    offsets = torch.tensor([0, 3000, 6000, 9000])
    ragged = icp(
        Points(torch.cat(sources), offsets=offsets), Points(torch.cat(targets), offsets=offsets), voxel_size=0.1
    )
    assert isinstance(listed, list) and isinstance(ragged, list) and isinstance(one_by_one[0], Registration)
    for a, b, c in zip(one_by_one, listed, ragged, strict=True):
        assert torch.equal(a.T_target_source, b.T_target_source)
        assert torch.equal(a.T_target_source, c.T_target_source)
    single = icp([sources[0]], [targets[0]], voxel_size=0.1)
    assert isinstance(single, list) and len(single) == 1


@pytest.mark.parametrize("robust", ["huber", "cauchy", "gm"])
def test_robust_kernels_resist_what_moved(robust):
    """A cupboard that moved between the scans drags the plain fit; each kernel gives another, better answer."""
    source, target, pose = room_pair(noise=0.005)
    x, y, z = target.unbind(-1)
    gone = (x > 4.8) & (y > 3.3) & (x < 7) & (y < 5.8) & (z > 0.1)
    target = target + gone[:, None] * torch.tensor([0.15, 0.15, 0.0])
    settings = {"method": "plane", "voxel_size": 0.1, "max_distance": 0.5}
    plain = scenes.twist_error(icp(source, target, **settings).value, pose).norm()
    kept = scenes.twist_error(icp(source, target, robust=robust, **settings).value, pose).norm()
    assert kept < 0.5 * plain


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_corridor_slides_along_itself(method, noise):
    generator = seeded(4)
    pose = Rigid(*se3.exp(torch.tensor([0.02, 0.03, -0.02, 0.01, 0.01, 0.6], dtype=torch.float64)))
    source, target = scenes.pair(scenes.corridor, generator, 8000, noise, pose)
    found = icp(source.float(), target.float(), init=pose, method=method, voxel_size=0.1, max_distance=0.4)
    assert found.degenerate_directions.shape == (1, 6)
    along = quaternion.rotate(quaternion.conjugate(pose.quat_wxyz), torch.tensor([1.0, 0, 0], dtype=torch.float64))
    assert abs(found.degenerate_directions[0, :3] @ along) > 0.99
    sigma = (along @ found.covariance[:3, :3] @ along).sqrt()
    start = pose.retract(torch.cat([0.3 * along, torch.zeros(3, dtype=torch.float64)]))
    kept = icp(source.float(), target.float(), init=start, method=method, voxel_size=0.1, max_distance=0.4)
    assert kept.converged and abs(scenes.twist_error(kept.value, start)[:3] @ along) < 0.01  # it does not wander
    assert sigma > 1 and torch.isfinite(found.covariance).all() and torch.isfinite(found.information).all()


@pytest.mark.parametrize("method", METHODS)
def test_plane_slides_and_spins(method):
    generator = seeded(5)
    source, target = scenes.pair(scenes.plane, generator, 4000, 0.005, Rigid.identity(dtype=torch.float64))
    found = icp(source, target, method=method, voxel_size=0.2, max_distance=0.8)
    free = found.degenerate_directions
    assert free.shape == (3, 6)
    torch.testing.assert_close(free @ free.T, torch.eye(3).double(), rtol=0, atol=1e-9)
    # the plane is z = 1: it holds z and the turns about x and y through its own centre, (0, 0, 1)
    held = torch.tensor([[0, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0], [-1, 0, 0, 0, 1, 0]], dtype=torch.float64)
    conjugate = torch.tensor([[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.float64)
    assert (free @ conjugate.T).abs().max() < 0.05, held


@pytest.mark.parametrize("method", ["plane", "gicp"])
def test_covariance_is_calibrated(method):
    """Normalised estimation error squared over 200 trials: its mean times 200 is chi-squared of 1,200 degrees."""
    generator, total = seeded(6), 0.0
    for _ in range(200):
        pose = scenes.small_pose(generator)
        source, target = scenes.pair(scenes.room, generator, 4000, 0.01, pose)
        found = icp(source.float(), target.float(), method=method, voxel_size=0.1, max_distance=0.4)
        error = scenes.twist_error(found.value, pose)
        total += float(error @ found.information @ error)
    assert 1105.9 < total < 1297.9, total / 1200  # 2.5 % and 97.5 % points


def test_registration_is_a_value(tmp_path):
    source, target, _ = room_pair()
    found = icp(source, target, voxel_size=0.1)
    found.save(tmp_path / "pose.safetensors")
    again = Registration.load(tmp_path / "pose.safetensors")
    assert torch.equal(again.T_target_source, found.T_target_source) and again.method == found.method
    assert torch.equal(again.information, found.information)


def test_stopping_early_is_said():
    source, target, pose = room_pair()
    with pytest.warns(ConvergenceWarning):
        found = icp(source, target, max_iterations=1, voxel_size=0.1, max_distance=0.4)
    assert not found.converged and found.iterations == 1
    assert scenes.twist_error(found.value, pose).norm() > 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:0], "at least 3 points, got 0"),
        (lambda s: s[:2], "at least 3 points, got 2"),
        (lambda s: torch.cat([s, torch.full((1, 3), float("nan"))]), "NaN or inf in 1 of"),
        (lambda s: torch.cat([s, torch.full((1, 3), float("inf"))]), "NaN or inf in 1 of"),
        (lambda s: s[:, :2], r"\(N, 3\), got a float32 tensor"),
        (lambda s: s.half(), "float16"),
        (lambda s: s.double(), "one dtype"),
        (lambda s: s.numpy(), "ndarray"),
        (lambda s: Mesh(s, torch.tensor([[0, 1, 2]])), "Mesh"),
        (lambda s: None, "NoneType"),
    ],
)
def test_bad_clouds_are_refused(change, message):
    source, target, _ = room_pair(count=500)
    with pytest.raises(ShapeError, match=message):
        icp(change(source), target)
    with pytest.raises(ShapeError, match=message):
        icp(target, change(source))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options",
    [
        {"method": "magic"},
        {"robust": "tukey"},
        {"voxel_size": 0.0},
        {"voxel_size": float("nan")},
        {"voxel_size": 1e4},
        {"voxel_size": 1e-9},
        {"max_distance": -1.0},
        {"max_iterations": 0},
        {"init": torch.eye(3)},
        {"init": torch.full((4, 4), float("nan"))},
        {"init": 2 * torch.eye(4)},
        {"init": torch.diag(torch.tensor([1.0, 1, -1, 1]))},
        {"init": "here"},
        {"init": Rigid.identity(2)},
        {"init": [None, None]},
    ],
)
def test_bad_settings_are_refused(options):
    source, target, _ = room_pair(count=500)
    with pytest.raises(ShapeError):
        icp(source, target, **options)


def test_no_overlap_is_an_error():
    source, target, _ = room_pair(count=500)
    with pytest.raises(GeomError, match="no overlap"):
        icp(source, target + 100)


def test_init_as_rigid_matrix_or_array():
    source, target, pose = room_pair()
    given = [pose, pose.to_matrix(), pose.to_matrix().float(), pose.to_matrix().numpy(), pose.to(torch.float32)]
    results = [icp(source, target, init=x, voxel_size=0.1).value for x in given]
    for other in results[1:]:
        assert scenes.twist_error(other, results[0]).norm() < 1e-4
    assert isinstance(given[3], np.ndarray)


def test_degenerate_input_gives_finite_output():
    """Collinear points, one place many times, three points: never a NaN."""
    line = torch.linspace(0, 1, 50)[:, None] * torch.tensor([1.0, 2, 3])
    for cloud in (line, torch.zeros(20, 3), torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])):
        for method in METHODS:
            try:
                found = icp(cloud, cloud + 0.001, method=method, voxel_size=0.01, max_distance=0.1)
            except ShapeError as error:
                assert "voxel_size" in str(error)
                continue
            for field in ("T_target_source", "covariance", "information", "rmse", "overlap", "cost"):
                assert torch.isfinite(getattr(found, field)).all(), (method, field)
