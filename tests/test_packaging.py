"""The wheel and the sdist hold the library as real files, and nothing else of that name."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md Makefile constraints.txt .ci geom kernels assets tests"
)
MODULES = {p.relative_to(ROOT).as_posix() for p in (ROOT / "geom").rglob("*.py")}
KERNELS = {f"geom/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py")}
ASSETS = {f"geom/assets/{p.name}" for p in (ROOT / "assets").iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist/ of a build: the sdist from a copy of the tree, the wheel from that sdist, as pip would."""
    copy = tmp_path_factory.mktemp("packaging") / "tree"
    copy.mkdir()
    for name in SOURCES.split():
        source = ROOT / name
        if source.is_dir():  # links stay links, as in a clone
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    for folder in ("kernels", "tests"):  # what a used tree is littered with
        (copy / folder / "__pycache__").mkdir()
        (copy / folder / "__pycache__" / "litter.cpython-311.pyc").touch()
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=copy)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return copy / "dist"


def test_wheel_holds_the_library_only(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    assert wheel.name == "geom_toolkit-0.1.0-py3-none-any.whl"
    assert MODULES | KERNELS | ASSETS | {"geom/py.typed"} <= set(infos)
    assert {PurePosixPath(name).parts[0] for name in infos} == {"geom", "geom_toolkit-0.1.0.dist-info"}
    assert not [name for name, info in infos.items() if (info.external_attr >> 16) & 0o170000 == 0o120000], "links"
    assert not [name for name in infos if "__pycache__" in name or name.endswith(".pyc")]
    assert any(name.endswith("/LICENSE") for name in infos)


def test_wheel_matches_the_tree(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in MODULES | KERNELS | ASSETS:
            assert archive.read(name) == (ROOT / name).read_bytes(), name


def test_sdist_holds_what_a_clone_does(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {str(PurePosixPath(*PurePosixPath(m.name).parts[1:])): m for m in archive.getmembers()}
    kernels = {name.removeprefix("geom/") for name in KERNELS}
    assert MODULES | KERNELS | kernels | ASSETS | {"tests/conftest.py", "Makefile", "constraints.txt"} <= set(members)
    assert not [name for name, m in members.items() if m.issym() or m.islnk()], "links"
    assert not [name for name in members if "__pycache__" in name or name.endswith(".pyc")]


def test_an_installed_copy_imports_away_from_the_repository(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        "import geom, geom.lie, geom.kernels, importlib.resources as r; "
        "print(geom.__file__, *geom.kernels.__path__, r.files('geom.assets'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout.replace(str(tmp_path), "")
