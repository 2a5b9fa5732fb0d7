"""`geom rods`: clips in, parameters and predictions out, one clear line for what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from geom.cli import main
from geom.cli.rods import _branches, _clamped
from geom.errors import ShapeError
from geom.rods import load_cable


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two short clips of a cord, from our own simulation."""
    assert main(["rods", "simulate", "--seconds", "0.3", "--out", str(tmp_path / "clips.npz")]) == 0
    x = np.load(tmp_path / "clips.npz")["x"]
    np.savez(tmp_path / "clips.npz", x=np.concatenate([x, x]), rate=100.0)
    return tmp_path / "clips.npz"


def test_fit_and_predict(clips: Path, tmp_path: Path, capsys) -> None:
    params, out = tmp_path / "params.json", tmp_path / "pred.npz"
    assert main(["rods", "fit", str(clips), "--out", str(params), "--iterations", "2", "--hold-out", "2"]) == 0
    said = capsys.readouterr().out
    assert "held out" in said and f"wrote {params}" in said
    cable = load_cable(params)
    assert cable.clamped == (0, 1, 19, 20) and cable.rate == 100.0
    assert len(json.loads(params.read_text())["report"]["held_out"]) == 1
    assert main(["rods", "predict", str(clips), "--params", str(params), "--out", str(out)]) == 0
    x, truth = np.load(out)["x"], np.load(clips)["x"]
    assert x.shape == truth.shape and x.dtype == np.float32
    assert np.array_equal(x[:, :2], truth[:, :2].astype(np.float32))
    assert np.allclose(x[:, :, [0, 1, -2, -1]], truth[:, :, [0, 1, -2, -1]], atol=1e-6)
    assert np.abs(x - truth).mean() < 0.01
    assert main(["rods", "predict", str(clips), "--params", str(params), "--clamped=0,-1", "--out", str(out)]) == 0
    assert not np.allclose(np.load(out)["x"], x)


def test_branches_and_gaps(tmp_path: Path, capsys) -> None:
    x = torch.zeros(2, 12, 7, 3)
    x[..., :5, 0] = 0.1 * torch.arange(5)
    x[..., 5:, 0] = 0.2
    x[..., 5:, 2] = torch.tensor([-0.1, -0.2])
    x[1, 4, 3] = torch.nan
    np.savez(tmp_path / "tree.npz", x=x.numpy())
    params, out = str(tmp_path / "params.json"), str(tmp_path / "pred.npz")
    given = ["rods", "fit", str(tmp_path / "tree.npz"), "--branches", "2,2", "--clamped=0,1,-2,-1", "--rate", "50"]
    assert main([*given, "--iterations", "1", "--out", params]) == 0
    cable = load_cable(Path(params))
    assert cable.clamped == (0, 1, 3, 4) and cable.branches == ((2, 2),) and cable.rate == 50.0
    given = ["rods", "predict", str(tmp_path / "tree.npz"), "--params", params, "--branches", "2,2", "--out", out]
    assert main(given) == 0
    assert np.isfinite(np.load(out)["x"]).all()
    capsys.readouterr()
    assert main([*given[:6], "3,2", "--out", out]) == 2
    assert "branches" in capsys.readouterr().err


def test_a_strip_of_pictures(tmp_path: Path) -> None:
    picture = tmp_path / "strip.png"
    assert main(["rods", "simulate", "--seconds", "0.1", "--frames", "2", "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["missing", "no npz", "no x", "shape", "params", "vertices"])
def test_wrong_files(kind: str, clips: Path, tmp_path: Path, capsys) -> None:
    params, out, bad = tmp_path / "params.json", tmp_path / "pred.npz", tmp_path / "bad.npz"
    assert main(["rods", "fit", str(clips), "--out", str(params), "--iterations", "1"]) == 0
    x = np.load(clips)["x"]
    if kind == "no npz":
        bad.write_bytes(b"PK\x03\x04 not one")
    elif kind == "no x":
        np.savez(bad, y=x)
    elif kind == "shape":
        np.savez(bad, x=x[0])
    elif kind == "vertices":
        np.savez(bad, x=x[:, :, :5])
    elif kind == "params":
        np.savez(bad, x=x)
        params.write_text("{}")
    capsys.readouterr()
    assert main(["rods", "predict", str(bad), "--params", str(params), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("geom: ") and said.err.count("\n") == 1
    assert not out.exists()


def test_vertices_and_branches_are_read() -> None:
    assert _clamped("0, 1,-2,-1", 13) == (0, 1, 11, 12)
    assert _branches("4,4;8,3") == ((4, 4), (8, 3)) and _branches("") == ()
    for text in ("0,a", "0,13", "0,-13"):
        with pytest.raises(ShapeError, match="clamped"):
            _clamped(text, 13)
    for text in ("4", "4,4,4", "a,b"):
        with pytest.raises(ShapeError, match="branches"):
            _branches(text)


def test_help_names_the_three(capsys) -> None:
    assert main(["rods", "--help"]) == 0
    said = capsys.readouterr().out
    assert "fit" in said and "predict" in said and "simulate" in said
