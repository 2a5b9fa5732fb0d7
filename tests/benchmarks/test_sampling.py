"""The sampling benchmark: brute force on a line, results that are wrong, one run."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.report import Report
from benchmarks.sampling import LIBRARIES, brute_force, prepare, score, truths

METHODS = ["farthest, 1,024 to 512", "knn, 1,024"]


def test_farthest_points_of_a_line() -> None:
    points = np.zeros((5, 3), dtype=np.float32)
    points[:, 0] = [0, 1, 5, 3, 3]
    assert brute_force(points, 4, points[0])[:, 0].tolist() == [0, 5, 3, 1]
    assert brute_force(points, 2, points[1])[:, 0].tolist() == [1, 5]


def test_clouds() -> None:
    given = prepare(None, quick=False)
    points = given.draw(1024)
    assert points.shape == (1024, 3) and np.abs(np.linalg.norm(points, axis=1) - 1).max() < 1e-6
    assert [size[:2] for size in given.farthest[::2]] == [(1024, 512), (24576, 6144)] and given.neighbors[-1] == 200_000
    scan = np.random.default_rng(0).random((5000, 3), dtype=np.float32)
    given = prepare(scan, quick=False)
    assert [size[0] for size in given.farthest] == [1024, 2048] and not given.neighbors
    assert set(map(bytes, given.draw(1024))) < set(map(bytes, scan))


def test_wrong_results_are_found() -> None:
    given = prepare(None, quick=True)
    library, truth = LIBRARIES[0][1][1](given, 1, "cpu"), truths(given)
    assert list(library) == METHODS
    method = METHODS[0]
    sample = library[method].read(library[method].call())
    assert score(method, sample, truth(method)) == {"wrong": 0}
    twice = np.concatenate([sample[:-1], sample[:1]])
    assert score(method, twice, truth(method)) == {"wrong": 1}
    assert score(method, np.roll(sample[1:], 3, 0), truth(method))["wrong"] > 0
    method = METHODS[1]
    distance, index = library[method].read(library[method].call())
    assert score(method, (distance, index), truth(method))["wrong"] == 0
    index = index.copy()
    index[7, -1] = np.linalg.norm(given.draw(1024) - given.draw(1024)[7], axis=1).argmax()
    assert score(method, (distance, index), truth(method))["wrong"] == 1


def test_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sampling.json"
    assert main(["sampling", "--quick", "--inputs", "sphere", "--out", str(out)]) == 0
    assert "farthest, 1,024 to 512 geom" in capfd.readouterr().out
    report = Report.load(out)
    assert [part.clock for part in report.parts] == ["cpu", "wall"]
    for part in report.parts:
        assert not [note for note in part.notes if "raised" in note]
        assert [s.method for s in part.series if s.library == "geom"] == METHODS
        for s in part.series:
            assert len(s.samples) == 3 and s.scores()["wrong"] == 0, (s.library, s.method)
