"""`geom view`: pictures, pages, and one clear line for bad files."""

from pathlib import Path

import pytest
import torch

from geom.cli import main
from geom.io import save_mesh, save_points
from geom.meshes import Mesh
from geom.points import Points


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    corners = torch.eye(4, 3)
    save_points(Points(torch.rand(50, 3)), tmp_path / "cloud.ply")
    save_mesh(Mesh(corners, torch.tensor([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]])), tmp_path / "mesh.obj")
    return str(tmp_path / "cloud.ply"), str(tmp_path / "mesh.obj")


def test_a_picture_and_a_page(files: tuple[str, str], tmp_path: Path, capsys) -> None:
    picture, page = tmp_path / "a.png", tmp_path / "a.html"
    assert main(["view", *files, "--picture", str(picture), "--html", str(page)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "<html" in page.read_text().lower()
    assert capsys.readouterr().out == f"wrote {page}\nwrote {picture}\n"


def test_no_file_opens_a_window(files: tuple[str, str], monkeypatch) -> None:
    from geom import viz

    shown: list[object] = []
    monkeypatch.setattr(viz, "show", lambda *things, **_: shown.extend(things))
    assert main(["view", *files]) == 0
    assert [type(x) for x in shown] == [Points, Mesh]


@pytest.mark.parametrize("kind", ["missing", "none", "broken", "own input"])
def test_bad_files(kind: str, files: tuple[str, str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "old.png"
    out.write_text("old")
    broken = tmp_path / "broken.ply"
    broken.write_text("ply\nformat ascii 1.0\nelement vertex 9999\n")
    bad = {"missing": [str(tmp_path / "no.ply")], "none": [], "broken": [str(broken)], "own input": [files[0]]}[kind]
    target = files[0] if kind == "own input" else str(out)
    assert main(["view", *bad, "--picture", target]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("geom: ") and said.err.count("\n") == 1
    assert out.read_text() == "old"
