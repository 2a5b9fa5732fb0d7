"""Cables of the tour: clips read, predictions scored, and a simulation that keeps every length."""

from pathlib import Path

import numpy as np
import pytest
import torch

from geom.demo import cables
from geom.errors import FileFormatError
from geom.rods import predict, track_errors


def clips(count: int = 6, frames: int = 110) -> np.ndarray:
    """Motion of the shipped cable dlo1 between grips that stay, in every clip another millimetre higher."""
    cable = cables._shipped("dlo1")
    x = torch.zeros(len(cable.rod.parent), 3)
    turn = torch.linspace(-0.6, 0.6, len(x))
    x[1:] = (cable.rod.length[:, None] * torch.stack([turn.cos(), 0 * turn, turn.sin()], -1))[1:].cumsum(0)
    still = x.expand(1, frames, *x.shape)
    moved = predict(cable.rod, still, clamped=cable.clamped, held=cable.held, dt=1 / cable.rate)[0].numpy()
    return np.stack([moved + np.array([0, 0, 1e-3 * k], np.float32) for k in range(count)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    (data / "rods").mkdir()
    x = clips()
    np.savez(data / "rods" / "cap_dlo1_train.npz", x=x)
    for name in ("cap_dlo2_train", "cap_dlo77_train", "cap_bdlo1_mid_clamp_train", "cap_dlo1_eval"):
        np.savez(data / "rods" / f"{name}.npz", x=x)
    return data


def test_one_cable_of_each_kind_and_those_with_parameters_alone(folder: Path) -> None:
    assert [name for name, _ in cables.chapter(folder).jobs] == ["dlo1", "two grips"]
    assert [name for name, _ in cables.chapter(None).jobs] == ["two grips"]


def test_real_cables_come_first(data: Path) -> None:
    names = [name for name, _ in cables.chapter(data).jobs]
    assert names[-1] == "two grips" and len(names) == 3
    assert names[0].startswith("dlo") and names[1].startswith("bdlo")


def test_a_prediction_is_scored_against_the_clips(folder: Path, tmp_path: Path) -> None:
    (_, job), _ = cables.chapter(folder).jobs
    result = job(tmp_path)
    cable = cables._shipped("dlo1")
    track = cables.read_clips(folder / "rods" / "cap_dlo1_train.npz", 13)
    assert track.shape == (2, 110, 13, 3)
    np.testing.assert_allclose(track[1] - track[0], np.broadcast_to([0, 0, 5e-3], track[0].shape), atol=1e-6)
    moved = predict(cable.rod, track, clamped=cable.clamped, held=cable.held, dt=1 / cable.rate)
    expected = 100 * float(track_errors(moved, track).mean())
    assert result.numbers["physics_error_cm"] == pytest.approx(expected, rel=1e-5)
    assert expected < 1e-3  # these clips are the physics itself, so the network only disturbs
    assert 1e-3 < result.numbers["error_cm"] < 5
    assert result.numbers["clips"] == 2 and result.captions == ("1 s", "1 s")
    assert result.picture == "dlo1.png" and (tmp_path / "dlo1.png").is_file()


def test_real_errors_are_within_bounds(data: Path, tmp_path: Path) -> None:
    for name, job in cables.chapter(data).jobs[:-1]:
        numbers = job(tmp_path).numbers
        assert numbers["error_cm"] < 1.0 and numbers["error_cm"] < numbers["physics_error_cm"], name


def test_the_simulated_cable_keeps_its_lengths(tmp_path: Path) -> None:
    result = cables._simulated(tmp_path)
    assert result.numbers["stretched"] < 1e-12
    assert -1 < result.numbers["lowest_m"] < -0.1
    assert len(result.captions) == 6 and result.captions[-1] == "3.0 s"


def test_grips_move_as_they_say() -> None:
    grips = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.9, 0, 0], [1.0, 0, 0]], dtype=torch.float64)
    path = cables._half_circle(grips, 8)
    assert torch.equal(path[:, :2], grips[:2].expand(8, 2, 3))
    assert (path[:, 3] - path[:, 2]).norm(dim=-1).sub(0.1).abs().max() < 1e-14
    end = torch.tensor([[-0.35, 0, 0], [-0.45, 0, 0]], dtype=torch.float64)
    # half the distance of the grips' middles, on the other side, turned round
    torch.testing.assert_close(path[-1, 2:], end, atol=1e-14, rtol=0)


def test_a_lost_marker_takes_its_edges_along() -> None:
    rod = cables._shipped("bdlo1").rod
    x = torch.rand(len(rod.parent), 3, generator=torch.Generator().manual_seed(0))
    ((whole, _),) = cables._seen(rod, x, (0.0, 0.0, 0.0))
    assert len(whole.segments) == len(x) - 1
    x[4] = torch.nan  # where a branch leaves: three edges
    ((part, _),) = cables._seen(rod, x, (0.0, 0.0, 0.0))
    assert len(part.segments) == len(x) - 4 and bool(part.positions.isfinite().all())
    drawn = part.positions[part.segments]
    kept = [k for k in range(1, len(x)) if 4 not in (k, int(rod.parent[k]))]
    assert torch.equal(drawn, torch.stack([x[rod.parent[kept]], x[kept]], 1))
    assert cables._seen(rod, torch.full_like(x, torch.nan), (0.0, 0.0, 0.0)) == []


def test_a_file_that_has_no_clips(tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    for x in (
        np.zeros((6, 9, 12, 3), np.float32),
        np.zeros((6, 2, 13, 3), np.float32),
        np.zeros((0, 9, 13, 3), np.float32),
        np.zeros((9, 13, 3), np.float32),
        np.zeros((6, 9, 13, 3), np.int64),
        np.array([None]),
    ):
        np.savez(bad, x=x)
        with pytest.raises(FileFormatError, match=r"bad\.npz"):
            cables.read_clips(bad, 13)
    np.savez(bad, y=np.zeros(3))
    with pytest.raises(FileFormatError, match="x"):
        cables.read_clips(bad, 13)
    whole = bad.read_bytes()
    for data in (b"", b"hello", b"\x93NUMPY", b"PK\x03\x04", whole[: len(whole) // 2]):
        bad.write_bytes(data)
        with pytest.raises(FileFormatError):
            cables.read_clips(bad, 13)


def test_a_motion_beyond_all_bounds_is_no_number(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cables, "predict_with", lambda rod, residual, track, **_: track + torch.inf)
    with pytest.raises(FileFormatError, match="not finite"):
        cables._predicted("dlo1", folder / "rods" / "cap_dlo1_train.npz", tmp_path)
