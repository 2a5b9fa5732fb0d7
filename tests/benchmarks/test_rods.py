"""The rods benchmark: its cantilever and gripped rods, results that are wrong, one run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.report import Report
from benchmarks.rod_peers import geom, hanging
from benchmarks.rods import distance, grip, score_cable, truth
from benchmarks.tables import markdown_tables
from geom.rods import Cable, make_rod, predict, rollout, save_cable, track_errors


def test_distance() -> None:
    line = np.stack([np.arange(5.0), np.zeros(5), np.zeros(5)], 1)
    assert distance(line, line[::2]) == 0
    assert distance(line + np.array([0, 0.003, 0.004]), line[::2]) == pytest.approx(5)
    assert distance(line + np.eye(5)[:, 1:4], line) == pytest.approx(1000)


def test_the_cable_is_the_one_said() -> None:
    rod, state = hanging(12, torch.float64)
    area = np.pi * 5e-3**2
    assert float(rod.mass.sum()) == pytest.approx(250 * area)
    assert float(rod.bend_stiffness[5, 0]) == pytest.approx(1e6 * area * 5e-3**2 / 4)
    assert float(rod.stretch_stiffness[5]) == pytest.approx(1e6 * area)
    assert state.position[-1].tolist() == pytest.approx([1, 0, 0])


def test_errors_fall_with_the_edges() -> None:
    operations = geom("cpu", quick=False)

    def found(name: str) -> np.ndarray:
        return operations[name].read(operations[name].prepare()())

    errors = [distance(found(f"{edges} edges"), truth()) for edges in (12, 48, 192)]
    assert 10 < errors[0] < 100 and errors[1] < errors[0] / 4 and errors[2] < errors[1] / 4
    assert distance(found("192 edges, implicit"), truth()) < errors[1] / 4
    rows = [found(f"12 edges{how}") for how in ("", ", frame by frame", ", torch", ", 32 cables")]
    for other in rows[1:]:
        assert np.abs(other - rows[0]).max() < 1e-4
    assert distance(rows[0] + [0, 0, 0.2], truth()) > 100


@pytest.mark.parametrize("nodes", [13, 50, 200])
def test_gripped_rods_stay_calm(nodes: int) -> None:
    g = grip(nodes, 1000)
    track = rollout(g.rod, g.state, targets=g.targets, **g.how())
    assert torch.equal(track.end.position[g.clamped], g.targets[-1])
    assert float(track.end.velocity.norm(dim=-1).max()) < 3
    moved = (g.targets[-1] - g.targets[0]).norm(dim=-1)
    assert float(moved[:2].max()) == 0 and float((g.targets[:, 2:] - g.targets[0, 2:]).norm(dim=-1).max()) > 1e-3


def test_the_tree_branches_as_said() -> None:
    g = grip(13, 100, batch=(2,), branches=True)
    assert g.rod.parent.tolist() == [*range(-1, 12), 4, 13, 14, 15, 8, 17, 18]
    assert g.rod.length[1:].numpy() == pytest.approx(float(g.rod.length[1]), rel=1e-5)
    track = rollout(g.rod, g.state, targets=g.targets, **g.how())
    assert track.position.shape == (2, 100, 20, 3) and float(track.end.velocity.norm(dim=-1).max()) < 3


def test_only_clips_held_out_are_scored(tmp_path: Path) -> None:
    s = torch.linspace(0, 1, 5)
    x = torch.stack([s, 0 * s, 0 * s], -1)
    rod = make_rod(x, EI=1e-4, GJ=1e-4)
    track = x.expand(7, 20, 5, 3).clone()
    track[5] += 0.1
    other = track.clone()
    other[[1, 2, 3, 4, 6]] += torch.arange(20)[:, None, None]
    save_cable(tmp_path / "cable.json", Cable(rod, (0, 1), substeps=2))
    np.savez(tmp_path / "clips.npz", x=other.numpy())
    held = track[[0, 5]]
    expected = track_errors(predict(rod, held, clamped=(0, 1), substeps=2), held)
    found = score_cable(tmp_path / "cable.json", tmp_path / "clips.npz")()
    assert found == {
        "mean_cm": pytest.approx(100 * float(expected.mean()), rel=1e-5),
        "median_cm": pytest.approx(100 * float(expected.median()), rel=1e-5),
    }


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GEOM_DATA", str(tmp_path))  # where nothing is
    out = tmp_path / "rods.json"
    assert main(["rods", "--quick", "--out", str(out)]) == 0
    assert "rollout, 13 nodes: geom" in capfd.readouterr().out
    report = Report.load(out)
    assert [part.clock for part in report.parts] == ["cpu", "wall"]
    for part in report.parts:
        assert not [note for note in part.notes if "raised" in note]
        timed = [s for s in part.series if s.case == "cantilever"]
        assert [s.method for s in timed if s.library == "geom"] == [
            "12 edges",
            "12 edges, frame by frame",
            "12 edges, torch",
        ]
        assert all(10 < s.scores()["error_mm"] < 100 for s in timed)
    steps = [s.scores() for s in report.parts[0].series if s.case == "rod-steps"]
    assert len(steps) == 12 and all(x["us_per_rod_step"] > 0 and x["edge_error_rel"] < 2e-5 for x in steps)
    (many,) = [s.scores() for s in report.parts[1].series if s.case == "all cores"]
    assert many["wall_ms_per_step"] > 0
    assert [note for note in report.parts[0].notes if note.startswith("motion capture: left out")]
    table = markdown_tables(report)
    assert "|  | us per rod step | aim us | edge error rel |" in table
    assert "|  | wall ms per step | aim ms | threads |" in table
