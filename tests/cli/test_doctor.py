"""`geom doctor` and `geom warmup`."""

import sys
from pathlib import Path

import pytest
import torch

from geom.cli import doctor, main


def test_says_what_there_is(capsys) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in said
    labels = [line.split()[0] for line in said.splitlines()]
    assert {"python", "geom-toolkit", "torch", "warp-lang", "open3d", "CPU", "kernels", "drawing"} <= set(labels)
    assert "BROKEN" not in labels


def test_something_essential_broken(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch fails
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN       devices: " in said and "names" in said, "the other checks still run"


def test_drawing_that_fails_is_told_with_its_cure_and_is_not_essential(monkeypatch, capsys) -> None:
    from geom import viz

    monkeypatch.setattr(viz, "probe", lambda: viz.Probe(False, reason="apt-get install -y libgl1"))
    assert main(["doctor"]) == 0
    assert "apt-get install -y libgl1" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["module", "package"])
def test_finds_a_foreign_geom(form: str, tmp_path: Path, monkeypatch, capsys) -> None:
    other = tmp_path / ("geom.py" if form == "module" else "geom/__init__.py")
    other.parent.mkdir(exist_ok=True)
    other.write_text("")
    assert doctor.foreign_geoms([str(tmp_path)]) == [str(other)]
    assert doctor.foreign_geoms([str(Path(doctor.__file__).parents[2])]) == [], "the library is not foreign to itself"
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "NAME CLASH" in said and str(other) in said


def test_no_clash_here() -> None:
    assert doctor.foreign_geoms() == []


def test_warmup_compiles_every_module(capsys) -> None:
    from geom.kernels import bridge

    assert main(["warmup"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in bridge.MODULES)
    assert main(["doctor"]) == 0
    assert "all compiled" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_warmup_without_the_device(capsys) -> None:
    assert main(["warmup", "--device", "cuda"]) == 2
    assert "CUDA" in capsys.readouterr().err
