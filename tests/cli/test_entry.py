"""`geom`: help, version, exit codes, and how long it takes to say them."""

import os
import subprocess
import sys

import pytest

import geom
from geom.cli import entry, main


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


def test_help_names_every_command(capsys) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(command.__name__ in said for command in entry._COMMANDS)


@pytest.mark.parametrize("command", entry._COMMANDS, ids=lambda c: c.__name__)
def test_each_command_explains_itself(command, capsys) -> None:
    assert main([command.__name__, "--help"]) == 0
    said = capsys.readouterr().out
    assert command.__doc__.splitlines()[0].split(":")[0] in " ".join(said.split())
    assert "_" not in said.replace("T_target_source", "").replace("GEOM_DATA", ""), "options are in kebab-case"


def test_lengths_have_units(capsys) -> None:
    assert main(["register", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    for option in ("--voxel-size", "--max-distance"):
        assert "metres" in said.split(f"{option} FLOAT")[1].split("--")[0]


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"geom {geom.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["dance"], ["register"], ["register", "a.ply", "b.ply", "--method", "magic"]])
def test_wrong_arguments(argv: list[str], capsys) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from geom.cli import main; main(['register', '--help']); main(['--version']);"
        "heavy = {'torch', 'warp', 'open3d', 'numpy', 'scipy'} & set(sys.modules); sys.exit(f'{heavy}' if heavy else 0)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_runs_as_a_module_and_fails_in_one_line() -> None:
    done = python("-m", "geom", "register", "no.ply", "such.ply")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("geom: no.ply: ") and done.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        command = [sys.executable, "-m", "geom", "doctor"]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "geom: interrupted\n"),
        (PermissionError(13, "Permission denied", "a.ply"), 2, "geom: a.ply: Permission denied\n"),
        (OSError("no space"), 2, "geom: no space\n"),
        (geom.errors.ShapeError("two\nlines"), 2, "geom: two lines\n"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_how_failures_are_told(error: BaseException, code: int, line: str, monkeypatch, capsys) -> None:
    def fail() -> int:
        raise error

    fail.__name__ = "doctor"
    monkeypatch.setattr(entry, "_COMMANDS", (fail, entry.register))
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == line


def test_a_bug_is_not_dressed_up(monkeypatch) -> None:
    def fail() -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "_COMMANDS", (fail, entry.register))
    with pytest.raises(ZeroDivisionError):
        main(["fail"])
