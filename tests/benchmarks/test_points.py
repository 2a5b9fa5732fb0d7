"""The points benchmark: its truths against distances of all pairs, results that are wrong, one run."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.point_peers import CAP, K, geom
from benchmarks.points import draw, score, truths
from benchmarks.report import Report

METHODS = ["knn", "knn, whole", "ball query", "chamfer"]


def test_truths_are_those_of_all_pairs() -> None:
    given = draw(None, quick=True)
    truth = truths(given)
    distance = np.linalg.norm(given.query[:, None].astype(np.float64) - given.points, axis=-1)
    assert np.allclose(truth("knn")[2], np.sort(distance, 1)[:, :K], rtol=1e-12)
    assert np.array_equal(truth("ball query"), np.minimum((distance <= given.radius).sum(1), CAP))
    both = (distance.min(1) ** 2).mean() + (distance.min(0) ** 2).mean()
    assert truth("chamfer") == pytest.approx(both, rel=1e-12)


def test_scans_get_a_radius_of_their_own() -> None:
    scan = draw(None, quick=True).whole
    given = draw(100 * scan, quick=True)
    assert np.array_equal(given.whole, 100 * scan)
    found = truths(given)("ball query")
    assert 4 <= np.median(found) <= 5


def test_wrong_results_are_found() -> None:
    given = draw(None, quick=True)
    library, truth = geom(given, 1, "cpu"), truths(given)
    right = {method: library[method].read(library[method].call()) for method in METHODS}
    assert all(x < 1e-6 for method in METHODS for x in score(method, right[method], truth(method)).values())
    distance, index = right["knn"]
    assert score("knn", (distance + 1, index), truth("knn"))["distance_abs"] == pytest.approx(1, abs=1e-6)
    index = index.copy()
    index[7, -1] = np.linalg.norm(given.points - given.query[7], axis=1).argmax()
    assert score("knn", (distance, index), truth("knn"))["wrong"] == 1
    fewer = np.maximum(right["ball query"] - 1, 0)
    assert score("ball query", fewer, truth("ball query"))["wrong"] == (right["ball query"] > 0).sum()
    assert score("chamfer", 1.5 * right["chamfer"], truth("chamfer"))["error_rel"] == pytest.approx(0.5, rel=1e-5)


def test_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "points.json"
    assert main(["points", "--quick", "--inputs", "uniform", "threads", "--out", str(out)]) == 0
    assert "knn, whole geom" in capfd.readouterr().out
    report = Report.load(out)
    assert [part.clock for part in report.parts] == ["cpu", "wall"]
    for part in report.parts:
        assert not [note for note in part.notes if "raised" in note]
        timed = [s for s in part.series if s.case == "uniform"]
        assert [s.method for s in timed if s.library == "geom"] == METHODS
        for s in timed:
            assert len(s.samples) == 3 and all(x.wall_ms > 0 for x in s.samples)
            if s.library == "geom":
                assert all(x < 1e-6 for x in s.scores().values()), (s.method, s.scores())
        for s in part.series[len(timed) :]:
            assert s.case == "threads" and part.threads > 1 and s.scores()["times_as_fast"] > 0
