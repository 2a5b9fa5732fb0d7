"""Every example runs with --quick, keeps its promise about its number, and leaves a picture of something."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

Image = pytest.importorskip("PIL.Image", reason="pictures are read with pillow")
pytest.importorskip("matplotlib", reason="examples plot with matplotlib")


def assert_picture(path: Path) -> None:
    """At least 200 pixels wide, and not blank: some part of it, and not all, is its background."""
    with Image.open(path) as file:
        image = np.asarray(file.convert("RGB"))
    assert image.shape[1] >= 200
    colors, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colors) > 100
    assert 0.02 < 1 - counts.max() / counts.sum() < 0.98


def test_there_are_examples() -> None:
    assert EXAMPLES


def run(path: Path, folder: Path) -> Path:
    """The picture that an example leaves in the folder, and nothing beside it."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert np.isfinite(example.main(quick=True, out=folder))
    assert [file.name for file in folder.iterdir()] == [f"{path.stem}.png"]
    picture = folder / f"{path.stem}.png"
    assert_picture(picture)
    return picture


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = run(path, tmp_path / "new")
    assert f"wrote {picture}" in capsys.readouterr().out


@pytest.mark.parametrize("path", [p for p in EXAMPLES if "GEOM_DATA" in p.read_text()], ids=lambda path: path.stem)
def test_an_example_of_real_data_runs_without(
    path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOM_DATA", str(data))
    picture = run(path, tmp_path / "with").read_bytes()
    monkeypatch.setenv("GEOM_DATA", str(tmp_path / "none"))
    assert run(path, tmp_path / "without").read_bytes() != picture


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_of_the_house(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert 40 <= len(lines) <= 120
    assert f"`python examples/{path.name}`" in lines[0]
    assert any(line.startswith("    assert ") for line in lines)


def test_from_the_command_line(tmp_path: Path) -> None:
    path, picture = ROOT / "examples" / "register_scans.py", tmp_path / "street.png"
    command = [sys.executable, str(path), "--quick", "--out", str(picture)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "error" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["street.png"]
    assert_picture(picture)


def test_a_blank_picture_is_noticed(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), (255, 255, 255)).save(tmp_path / "blank.png")
    with pytest.raises(AssertionError):
        assert_picture(tmp_path / "blank.png")
