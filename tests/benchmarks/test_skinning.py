"""The skinning benchmark: its truths against geom's twins, results that are wrong, one run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.report import Report
from benchmarks.skinning import draw, read_hand, score, truths, weigh
from geom.skinning.dual_quaternion import dqs
from geom.skinning.linear import lbs

METHODS = [
    name + more
    for name in ("LBS", "LBS, dense weights", "DQS", "DQS, dense weights")
    for more in ("", ", with gradient")
]


def test_what_is_drawn() -> None:
    given = draw(50, 9)
    assert given.weights.shape == (50, 4) and (given.weights > 0).all()
    assert np.allclose(given.dense.sum(1), 1) and ((given.dense > 0).sum(1) == 4).all()
    assert np.array_equal(np.take_along_axis(given.dense, given.indices, 1), given.weights)
    assert np.allclose(given.bones[:, :, :3] @ given.bones[:, :, :3].transpose(0, 2, 1), np.eye(3), atol=1e-6)


def test_the_hand_is_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOM_DATA", str(data))
    given = read_hand()
    assert len(given.vertices) == len(given.weights) and given.dense.shape[1] == len(given.bones)
    assert np.allclose(given.weights.sum(1), 1)


def test_truths_are_those_of_the_twins() -> None:
    given = draw(50, 9)
    vertices, weights, bones = (torch.from_numpy(x).double() for x in (given.vertices, given.weights, given.bones))
    truth, more = truths(given), {"indices": torch.from_numpy(given.indices), "backend": "torch"}
    for name, deform in (("LBS", lbs), ("DQS", dqs)):
        found = deform(vertices, weights, bones, **more)
        for method in (name, f"{name}, dense weights"):
            assert np.abs(truth(method)[0] - found.numpy()).max() < 1e-6  # bones in float32 are nearly rigid
    w = weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(lbs(vertices, w, bones, **more), w, torch.from_numpy(given.grad).double())
    assert np.abs(truth("LBS, with gradient")[0] - slope.numpy()).max() < 1e-12


def test_wrong_results_are_found() -> None:
    truth = [np.ones((3, 2)), np.zeros((4, 5)) + 2]
    assert score("LBS", truth, truth) == {"error_rel": 0}
    assert score("LBS", [truth[0], truth[1] + 1], truth) == {"error_rel": 0.5}
    assert score("LBS", [np.ones((3, 7)), truth[1]], truth) == {"error_rel": 0}
    with pytest.raises(ValueError, match="zip"):
        score("LBS", truth[:1], truth)


def test_weights_of_the_hand_are_judged(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOM_DATA", str(data))
    found = weigh("geom")
    assert found["energy"] < 0.6831 and found["KKT"] < 1e-6 and found["bounds"] == 0 and found["row_sums"] < 1e-12


def test_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "skinning.json"
    assert main(["skinning", "--quick", "--out", str(out)]) == 0
    assert "LBS, with gradient geom" in capfd.readouterr().out
    report = Report.load(out)
    assert [part.clock for part in report.parts] == ["cpu", "wall"]
    for part in report.parts:
        assert not [note for note in part.notes if "raised" in note]
        assert [s.method for s in part.series if s.library == "geom"] == METHODS
        assert {s.library for s in part.series if s.method == "LBS"} >= {"torch gather", "torch dense", "torch bag"}
        for s in part.series:
            assert len(s.samples) == 3 and all(x.wall_ms > 0 for x in s.samples)
            assert s.scores()["error_rel"] < 2e-6, (s.library, s.method)
