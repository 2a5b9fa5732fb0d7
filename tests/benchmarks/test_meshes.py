"""The meshes benchmark: its truths on shapes that are known, results that are wrong, one run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.given import read_surfaces
from benchmarks.mesh_peers import geom
from benchmarks.meshes import arcs, cotangents, draw, make_sphere, score, truths
from benchmarks.report import Report
from geom.io import save_mesh
from geom.meshes import Mesh

METHODS = [
    "geodesics, factors",
    "geodesics, one",
    "geodesics, each",
    "heat alone, each",
    "cotangent Laplacian",
    "closest points",
    "signed distance",
    "samples",
]


def test_arcs() -> None:
    corners = np.concatenate([np.eye(3), -np.eye(3)])
    quarters = [[0, 1, 1, 2, 1, 1], [1, 1, 2, 1, 1, 0]]
    assert np.allclose(arcs(corners, np.array([0, 5])), np.array(quarters) * np.pi / 2)


def test_cotangents_of_a_right_triangle() -> None:
    vertices = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0]])
    expected = [[1, -0.5, -0.5], [-0.5, 0.5, 0], [-0.5, 0, 0.5]]
    assert np.allclose(cotangents(vertices, np.array([[0, 1, 2]])).toarray(), expected)


def test_wrong_results_are_found() -> None:
    given = draw(*make_sphere(2), quick=True)
    library, truth = geom(given, 1, "cpu"), truths(given, sphere=True)
    right = {method: library[method].read(library[method].call()) for method in METHODS[1:]}
    scores = {method: score(method, right[method], truth(method)) for method in right}
    assert scores["geodesics, each"]["largest_rel"] < 0.02 and scores["cotangent Laplacian"]["error_abs"] < 1e-12
    assert scores["closest points"]["error_abs"] < 1e-6 and scores["signed distance"]["error_abs"] < 1e-6
    assert scores["signed distance"]["wrong"] == 0 and scores["samples"]["mean_sigmas"] < 4
    far = right["geodesics, each"] + 0.1 * np.pi
    assert score("geodesics, each", far, truth("geodesics, each"))["mean_rel"] == pytest.approx(0.1, abs=0.02)
    assert score("cotangent Laplacian", 2 * right["cotangent Laplacian"], truth("cotangent Laplacian"))["error_abs"] > 1
    assert score("closest points", right["closest points"] + 1, truth("closest points"))["error_abs"] > 0.9
    outside = np.abs(right["signed distance"])
    assert score("signed distance", outside, truth("signed distance"))["wrong"] > 100
    lopsided = right["samples"] + [0.1, 0, 0]
    assert score("samples", lopsided, truth("samples"))["mean_sigmas"] > 10


def test_where_the_truth_is_not_known_there_is_no_score() -> None:
    assert score("geodesics, one", np.zeros((1, 3)), None) == {}


def test_closed_surfaces_by_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "meshes"
    folder.mkdir()
    for name, steps, cut in (("b", 3, 0), ("a", 4, 0), ("open", 4, 1), ("little", 1, 0)):
        vertices, faces = (torch.from_numpy(x) for x in make_sphere(steps))
        save_mesh(Mesh(vertices, faces[cut:]), folder / f"{name}.ply")
    (folder / "cloud.xyz").write_text("0 0 0\n")
    monkeypatch.setenv("GEOM_DATA", str(tmp_path))
    assert list(read_surfaces()) == ["b", "a"]


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GEOM_DATA", str(tmp_path))  # where nothing is
    out = tmp_path / "meshes.json"
    assert main(["meshes", "--quick", "--out", str(out)]) == 0
    assert "signed distance geom" in capfd.readouterr().out
    report = Report.load(out)
    assert [part.clock for part in report.parts] == ["cpu", "wall"]
    for part in report.parts:
        assert not [note for note in part.notes if "raised" in note]
        timed = [s for s in part.series if s.case == "icosphere"]
        assert [s.method for s in timed if s.library == "geom"] == METHODS
        for s in timed:
            bounds = {"wrong": 1, "error_abs": 1e-4, "largest_rel": 0.1, "mean_rel": 0.05, "mean_sigmas": 5}
            assert all(x < bounds[name] for name, x in s.scores().items()), (s.library, s.method, s.scores())
    (body,) = [s for s in report.parts[0].series if s.case == "tetrahedra"]
    assert body.scores()["inverted"] == 0 and body.scores()["volume_rel"] < 0.01
