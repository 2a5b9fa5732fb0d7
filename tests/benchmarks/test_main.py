"""`python -m benchmarks`: names, exit codes, and one quick run of each benchmark on the pair that geom ships."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.pairs import choose_pairs, first_and_largest, pose_errors, read_pairs
from benchmarks.report import Report


def test_alone_it_lists_the_names(capsys) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said for name in BENCHMARKS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "got nope"),
        *(([name, "--inputs", "nope"], "; got nope") for name in BENCHMARKS),
        (["table", "neighbors", "no_such_file.json"], "no_such_file.json"),
    ],
)
def test_a_wrong_name_is_one_line_and_exit_code_2(arguments: list[str], words: str, capsys) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks: ") and words in line


def test_without_data_there_are_the_shipped_pairs(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEOM_DATA", str(tmp_path))
    pairs = read_pairs()
    assert [pair.name for pair in pairs] == ["scan_street", "scan_object"]
    assert [pair.name for pair in first_and_largest(pairs)] == ["scan_object", "scan_street"]


def test_data_comes_first_by_folder(monkeypatch, tmp_path: Path) -> None:
    for kind, count in (("rgbd", 5), ("lidar", 90_000)):
        folder = tmp_path / "registration" / kind
        folder.mkdir(parents=True)
        cloud = np.zeros((count, 3), dtype=np.float32)
        np.savez(folder / f"a_{kind}.npz", src=cloud, tgt=cloud, T_tgt_src=np.eye(4))
    monkeypatch.setenv("GEOM_DATA", str(tmp_path))
    pairs = read_pairs()
    assert [pair.name for pair in pairs] == ["a_lidar", "a_rgbd", "scan_street", "scan_object"]
    assert [pair.setting.voxel for pair in pairs] == [0.25, 0.05, 0.25, 0.005]
    assert [pair.name for pair in first_and_largest(pairs)] == ["scan_street", "a_lidar"]


def test_starts_are_as_far_from_the_label_as_said() -> None:
    (pair,) = choose_pairs(read_pairs(), ("scan_object",))
    center = np.append(pair.source.mean(0, dtype=np.float64), 1)
    starts = [pair.start(seed) for seed in range(5)]
    for start in starts:
        assert np.allclose(start[:3, :3] @ start[:3, :3].T, np.eye(3), atol=1e-12)
        assert pose_errors(start, pair.pose)["rotation_deg"] == pytest.approx(pair.setting.angle)
        assert np.linalg.norm((start - pair.pose) @ center) == pytest.approx(pair.setting.shift)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(starts, 2))
    assert np.array_equal(starts[3], pair.start(3))


def test_pose_errors_are_precise_near_zero() -> None:
    pose = np.eye(4)
    pose[0, 1], pose[1, 0], pose[2, 3] = -1e-9, 1e-9, 2.0
    assert pose_errors(pose, np.eye(4)) == pytest.approx({"rotation_deg": np.degrees(1e-9), "translation_m": 2.0})


def run_quick(name: str, tmp_path: Path, capfd) -> Report:
    out = tmp_path / f"{name}.json"
    assert main([name, "--quick", "--inputs", "scan_street", "--out", str(out)]) == 0
    said = capfd.readouterr().out
    assert "scan_street" in said and str(out) in said
    report = Report.load(out)
    assert [(part.clock, part.torch_threads == part.threads) for part in report.parts] == [
        ("cpu", True),
        ("wall", True),
    ]
    assert report.parts[0].threads == 1
    for part in report.parts:
        assert {s.case for s in part.series} == {"scan_street"}
        assert not [note for note in part.notes if "raised" in note or "not on one thread" in note]
        for s in part.series:
            assert len(s.samples) == 3 and all(x.cpu_ms > 0 and x.wall_ms > 0 for x in s.samples)
    return report


def test_registration_local_runs_and_finds_the_pose(tmp_path: Path, capfd) -> None:
    report = run_quick("registration-local", tmp_path, capfd)
    for part in report.parts:
        assert {s.method for s in part.series if s.library == "geom"} == {"point", "plane", "gicp", "vgicp"}
        for s in part.series:
            scores = s.scores()
            good = s.method in ("gicp", "vgicp")  # point to point ends at 0.6 deg here in every library
            assert scores["rotation_deg"] < (0.1 if good else 1.0), (s.library, s.method, scores)
            assert scores["translation_m"] < (0.03 if good else 0.1), (s.library, s.method, scores)


def test_neighbors_runs_and_agrees_with_scipy(tmp_path: Path, capfd) -> None:
    report = run_quick("neighbors", tmp_path, capfd)
    for s in report.parts[0].series:
        scores = s.scores()
        assert scores.get("distance_m", 0) < 1e-4 and scores.get("angle_deg", 0) < 0.1, (s.library, s.method, scores)
        if s.method == "voxels":
            assert 1000 < scores["voxel_points"] < 16768
    assert {"geom", "scipy"} <= {s.library for s in report.parts[0].series}
