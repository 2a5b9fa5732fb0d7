"""`geom register`: a good run, every way to start, and one clear line for everything bad."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from geom.cli import main
from geom.io import save_mesh, save_points
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points

TURN = 0.1  # radians about z
POSE = [
    [math.cos(TURN), -math.sin(TURN), 0.0, 0.02],
    [math.sin(TURN), math.cos(TURN), 0.0, -0.03],
    [0.0, 0.0, 1.0, 0.01],
    [0.0, 0.0, 0.0, 1.0],
]


@pytest.fixture
def clouds(tmp_path: Path) -> tuple[Path, Path]:
    """A hilly square metre of 2500 points as PLY, and the same under POSE as PCD."""
    xy = torch.rand(2500, 2, generator=torch.Generator().manual_seed(0))
    z = 0.1 * torch.sin(7 * xy[:, :1]) + 0.08 * torch.cos(9 * xy[:, 1:])
    source = torch.cat([xy, z], -1)
    paths = tmp_path / "source.ply", tmp_path / "target.pcd"
    save_points(Points(source), paths[0])
    save_points(Points(Rigid.from_matrix(torch.tensor(POSE)).apply(source)), paths[1])
    return paths


def run(*arguments: object) -> int:
    return main(["register", *map(str, arguments)])


def test_writes_the_pose_and_what_it_is_worth(clouds: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    out = tmp_path / "pose.json"
    assert run(*clouds, "--out", out) == 0
    found = json.loads(out.read_text())
    assert list(found) == [
        *["T_target_source", "information", "covariance", "rmse", "overlap", "converged", "iterations"],
        *["degenerate_directions", "voxel_size", "max_distance", "method", "seconds"],
    ]
    np.testing.assert_allclose(found["T_target_source"], POSE, atol=2e-3)
    assert np.shape(found["information"]) == np.shape(found["covariance"]) == (6, 6)
    product = np.array(found["information"]) @ np.array(found["covariance"])
    np.testing.assert_allclose(product, np.eye(6), atol=1e-5)
    assert found["converged"] is True and found["method"] == "gicp" and found["overlap"] > 0.9
    said = capsys.readouterr().out
    assert "T_target_source" in said and "converged after" in said and "std. deviation" in said and "m over" in said
    assert f"rotation       {math.degrees(TURN):.1f}" in said and f"wrote {out}" in said


def test_options_reach_the_solver(clouds: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "pose.json"
    options = ["--method", "plane", "--voxel-size", "0.05", "--max-distance", "0.4", "--robust", "huber"]
    assert run(*clouds, *options, "--out", out) == 0
    plain = json.loads(out.read_text())
    assert (plain["method"], plain["voxel_size"], plain["max_distance"]) == ("plane", 0.05, 0.4)
    assert run(*clouds, *options[:-2], "--out", out) == 0
    assert json.loads(out.read_text())["T_target_source"] != plain["T_target_source"]


def test_iterations_run_out(clouds: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    out = tmp_path / "pose.json"
    assert run(*clouds, "--max-iterations", "1", "--out", out) == 0
    found = json.loads(out.read_text())
    assert found["converged"] is False and found["iterations"] == 1
    assert "NOT CONVERGED after 1" in capsys.readouterr().out


@pytest.mark.parametrize("wrap", [lambda T: T, lambda T: {"T_target_source": T, "rmse": 0.1}], ids=["rows", "object"])
def test_starts_from_init(clouds: tuple[Path, Path], tmp_path: Path, wrap) -> None:
    init, out, far = tmp_path / "init.json", tmp_path / "pose.json", tmp_path / "far.npz"
    shift = torch.tensor([30.0, 0.0, 0.0])
    moved = Rigid.from_matrix(torch.tensor(POSE)).apply(_positions(clouds[0])) + shift
    save_points(Points(moved), far)
    guess = [row[:] for row in POSE]
    guess[0][3] += 30.01
    init.write_text(json.dumps(wrap(guess)))
    assert run(clouds[0], far, "--init", init, "--out", out) == 0
    T = json.loads(out.read_text())["T_target_source"]
    assert abs(T[0][3] - 30.02) < 2e-3
    again = tmp_path / "again.json"
    assert run(clouds[0], far, "--init", out, "--out", again) == 0  # an earlier --out is an init
    np.testing.assert_allclose(json.loads(again.read_text())["T_target_source"], T, atol=1e-3)


def test_draws_before_and_after(clouds: tuple[Path, Path], tmp_path: Path) -> None:
    picture = tmp_path / "pair.png"
    assert run(*clouds, "--picture", picture) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def _positions(path: Path) -> torch.Tensor:
    from geom.io import load_points

    return load_points(path).positions


# --- bad input: exit code 2, one line on stderr, old files untouched ---


def bad_clouds(folder: Path, good: Path) -> dict[str, tuple[Path, str]]:
    """A file for each kind of badness, and a word that the message must hold."""
    square = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    files = {name: folder / f"{name}.ply" for name in ("empty", "none", "nan", "two", "mesh", "cut", "far")}
    files["empty"].write_bytes(b"")
    save_points(Points(square[:0]), files["none"])
    header = "ply\nformat ascii 1.0\nelement vertex 3\n" + "".join(f"property float {c}\n" for c in "xyz")
    files["nan"].write_text(header + "end_header\n0 0 0\nnan 0 1\n1 1 1\n")
    save_points(Points(square[:2]), files["two"])
    save_mesh(Mesh(square, torch.tensor([[0, 1, 2], [0, 2, 3]])), files["mesh"])
    files["cut"].write_bytes(good.read_bytes()[:-100])
    save_points(Points(_positions(good) + 1000), files["far"])
    words = {"empty": "", "none": "0", "nan": "NaN", "two": "2", "mesh": "mesh", "cut": "", "far": "overlap"}
    return {
        "missing": (folder / "missing.ply", "missing.ply"),
        "suffix": (folder / "cloud.docx", "suffix"),
        "folder": (folder, ""),
        **{name: (files[name], words[name]) for name in files},
    }


BAD = ["missing", "suffix", "folder", "empty", "none", "nan", "two", "mesh", "cut", "far"]


def told(capsys, *words: str) -> None:
    """One line on stderr, no traceback, nothing on stdout."""
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("geom: ") and said.err.count("\n") == 1, said
    assert all(word in said.err for word in words), said.err


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("place", ["source", "target"])
def test_a_bad_cloud(kind: str, place: str, clouds: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    bad, word = bad_clouds(tmp_path, clouds[0])[kind]
    out = tmp_path / "pose.json"
    out.write_text("old")
    pair = (bad, clouds[1]) if place == "source" else (clouds[0], bad)
    assert run(*pair, "--out", out) == 2
    told(capsys, word)
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".geom-*")), "a temporary file was left behind"


BAD_POSES = {
    "text": "hello",
    "bytes": b"\xff\xfe\x00",
    "nesting": "[" * 100_000,
    "number": "1",
    "empty object": "{}",
    "three rows": json.dumps(POSE[:3]),
    "short row": json.dumps([row[:3] for row in POSE]),
    "strings": json.dumps([["1"] * 4] * 4),
    "booleans": json.dumps([[True, False, False, False]] * 4),
    "nan": json.dumps([[math.nan] * 4, *POSE[1:]]),
    "huge": json.dumps([[*POSE[0][:3], 10**400], *POSE[1:]]),
    "last row": json.dumps([*POSE[:3], [0, 0, 0, 2]]),
    "no rotation": json.dumps([[1.01, 0, 0, 0], *np.eye(4)[1:].tolist()]),
    "mirror": json.dumps(np.diag([-1.0, 1, 1, 1]).tolist()),
}


@pytest.mark.parametrize("kind", BAD_POSES)
def test_a_bad_init(kind: str, clouds: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    init, out, text = tmp_path / "init.json", tmp_path / "pose.json", BAD_POSES[kind]
    init.write_bytes(text if isinstance(text, bytes) else text.encode())
    out.write_text("old")
    assert run(*clouds, "--init", init, "--out", out) == 2
    told(capsys, "init.json")
    assert out.read_text() == "old"


@pytest.mark.parametrize("kind", ["no folder", "folder", "file as folder", "input", "twice"])
@pytest.mark.parametrize("option", ["--out", "--picture"])
def test_a_bad_output(kind: str, option: str, clouds: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    before = {path: path.read_bytes() for path in clouds}
    bad = {
        "no folder": tmp_path / "none" / "x",
        "folder": tmp_path,
        "file as folder": clouds[0] / "x",
        "input": clouds[1],
        "twice": tmp_path / "x",
    }[kind]
    other = {"--out": "--picture", "--picture": "--out"}[option]
    both = [other, bad if kind == "twice" else tmp_path / "good"]
    assert run(*clouds, option, bad, *both) == 2
    told(capsys, str(bad))
    assert {path: path.read_bytes() for path in clouds} == before
    assert not (tmp_path / "good").exists()


@pytest.mark.parametrize(
    "options",
    [["--voxel-size", "-1"], ["--voxel-size", "nan"], ["--max-distance", "0"], ["--max-iterations", "0"]],
    ids=" ".join,
)
def test_a_bad_number(options: list[str], clouds: tuple[Path, Path], capsys) -> None:
    assert run(*clouds, *options) == 2
    told(capsys, options[0].strip("-").replace("-", "_"))
