"""`geom skin`: vertices named as in the golden files, frozen characters, pictures, one line for what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch

from geom.cli import main
from geom.io import load_mesh
from geom.io.gltf_rig import load_rig, save_rig
from geom.io.rig import make_rig
from geom.skinning.pose import deform
from geom.values import replace


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    """An arm of two joints that bends within a second, and a second animation that does nothing."""
    line = torch.linspace(0, 2, 9)
    x = torch.stack([torch.cat([line, line]), torch.cat([0 * line, 0 * line + 0.2]), torch.zeros(18)], -1)
    i = torch.arange(8)
    faces = torch.cat([torch.stack([i, i + 1, i + 9], 1), torch.stack([i + 1, i + 10, i + 9], 1)])
    share = (x[:, 0] / 2).clamp(0, 1)
    motion = torch.eye(3, 4).repeat(3, 2, 1, 1)
    motion[:, 1, :, 3] = torch.tensor([1.0, 0, 0])
    motion[1:, 1, :2, :2] = torch.tensor([[0.0, -1], [1, 0]])
    made = make_rig(
        x, faces, parent=torch.tensor([-1, 0]), joints=torch.tensor([[0.0, 0, 0], [1, 0, 0]]),
        weights=torch.stack([1 - share, share], 1), motion=motion, rate=2.0,
    )  # fmt: skip
    still = made.record(made.pose(time=torch.zeros(1)), times=torch.zeros(1), name="still")
    save_rig(still, tmp_path / "arm.glb")
    return tmp_path / "arm.glb"


def test_vertices_under_their_names(rig: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "posed.npz"
    assert main(["skin", str(rig), "--time", "0.37", "1", "0.37", "--out", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    found = np.load(out)
    assert found.files == ["anim0_t0.37_node2_prim0", "anim0_t1.0_node2_prim0"]
    loaded = load_rig(rig)
    for name, time in zip(found.files, (0.37, 1.0), strict=True):
        expected = deform(loaded, loaded.pose(animation=0, time=time))[0]
        assert found[name].dtype == np.float32 and np.allclose(found[name], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([], ["anim0_t0.0_node2_prim0"]),
        (["--animation", "still"], ["anim1_t0.0_node2_prim0"]),
        (["--animation", "rest", "--time", "2.5"], ["animNone_t2.5_node2_prim0"]),
        (["--animation", "None"], ["animNone_t0.0_node2_prim0"]),
        (["--fps", "4"], [f"anim0_t{k / 4!r}_node2_prim0" for k in range(5)]),
        (["--fps", "100"], [f"anim0_t{k / 100!r}_node2_prim0" for k in range(101)]),
    ],
)
def test_which_moments(rig: Path, tmp_path: Path, given: list[str], names: list[str]) -> None:
    assert main(["skin", str(rig), *given, "--out", str(tmp_path / "posed.npz")]) == 0
    assert np.load(tmp_path / "posed.npz").files == names


def test_a_rig_without_animations_is_at_rest(rig: Path, tmp_path: Path) -> None:
    save_rig(replace(load_rig(rig), animations=()), tmp_path / "plain.gltf")
    for given in ([], ["--animation", "0"], ["--fps", "24"]):
        assert main(["skin", str(tmp_path / "plain.gltf"), *given, "--out", str(tmp_path / "posed.npz")]) == 0
        assert np.load(tmp_path / "posed.npz").files == ["animNone_t0.0_node2_prim0"]


def test_methods_differ_and_files_are_the_same_twice(rig: Path, tmp_path: Path) -> None:
    found = {}
    for method in ("lbs", "dqs", "hybrid", "lbs"):
        assert main(["skin", str(rig), "--time", "1", "--method", method, "--out", str(tmp_path / "a.npz")]) == 0
        data = (tmp_path / "a.npz").read_bytes()
        assert found.setdefault(method, data) == data
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("suffix", ["glb", "gltf"])
def test_a_frozen_character(rig: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"posed.{suffix}"
    assert main(["skin", str(rig), "--time", "0.5", "0", "--out", str(out)]) == 0
    loaded = load_rig(rig)
    expected = deform(loaded, loaded.pose(animation=0, time=0.5))[0]
    assert torch.allclose(load_mesh(out).vertices, expected, atol=1e-6)


def test_a_strip_of_pictures(rig: Path, tmp_path: Path) -> None:
    picture = tmp_path / "strip.png"
    assert main(["skin", str(rig), "--fps", "2", "--picture", str(picture)]) == 0
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20], "big") == 3 * 280


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--out", "posed.npz", "--animation", "2"], "animation"),
        (["--out", "posed.npz", "--animation", "dance"], "animation"),
        (["--out", "posed.npz", "--time", "nan"], "time"),
        (["--out", "posed.npz", "--fps", "0"], "fps"),
        (["--out", "posed.npz", "--fps", "1e9"], "fps"),
        (["--out", "posed.npz", "--fps", "24", "--time", "1"], "both"),
        (["--out", "posed.obj"], "suffix"),
        (["--out", "arm.glb"], "input"),
        ([], "--out"),
    ],
)
def test_wrong_arguments(rig: Path, tmp_path: Path, given: list[str], said: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["skin", "arm.glb", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("geom: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "posed.npz").exists()


@pytest.mark.parametrize("kind", ["missing", "broken", "other"])
def test_wrong_files(rig: Path, tmp_path: Path, kind: str, capsys) -> None:
    bad = tmp_path / ("bad.obj" if kind == "other" else "bad.glb")
    if kind != "missing":
        bad.write_bytes(rig.read_bytes()[:-40])
    assert main(["skin", str(bad), "--out", str(tmp_path / "posed.npz")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("geom: ") and error.count("\n") == 1 and bad.name in error
