"""USD meshes through pxr."""

from pathlib import Path

import pytest
import torch

import geom.io.usd as usd
from geom.errors import FileFormatError, MissingDependencyError
from geom.io import load_mesh

TEXT = """#usda 1.0
def Xform "root" {
    double3 xformOp:translate = (1, 2, 3)
    uniform token[] xformOpOrder = ["xformOp:translate"]
    def Mesh "a" {
        point3f[] points = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
        normal3f[] normals = [(0, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0, 1)] (interpolation = "vertex")
        int[] faceVertexCounts = [4]
        int[] faceVertexIndices = [0, 1, 2, 3]
        color3f[] primvars:displayColor = [(1, 0.5, 0)]
        double3 xformOp:scale = (2, 2, 2)
        uniform token[] xformOpOrder = ["xformOp:scale"]
    }
    def Mesh "b" {
        point3f[] points = [(0, 0, 0), (1, 0, 0), (1, 1, 0)]
        normal3f[] normals = [(0, 0, 1), (0, 0, 1), (0, 0, 1)] (interpolation = "vertex")
        int[] faceVertexCounts = [3]
        int[] faceVertexIndices = [0, 1, INDEX]
        uniform token orientation = "leftHanded"
    }
}
"""


def stage(folder: Path, index: str = "2") -> Path:
    path = folder / "a.usda"
    path.write_text(TEXT.replace("INDEX", index))
    return path


def test_transforms_polygons_orientation_and_colours(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    mesh = load_mesh(stage(tmp_path))
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    move = torch.tensor([1.0, 2, 3])
    assert torch.equal(mesh.vertices, torch.cat([2 * square + move, square[:3] + move]))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [6, 5, 4]]
    assert mesh.colors is not None and mesh.colors[[0, 4]].tolist() == [[1, 0.5, 0], [1, 1, 1]]
    assert mesh.normals is not None and torch.equal(mesh.normals, torch.tensor([[0.0, 0, 1]] * 7))


def test_binary_and_package(tmp_path: Path) -> None:
    pxr = pytest.importorskip("pxr.Usd", reason="usd-core is not installed")
    from pxr import UsdUtils

    pxr.Stage.Open(str(stage(tmp_path))).Export(str(tmp_path / "b.usdc"))
    UsdUtils.CreateNewUsdzPackage(str(tmp_path / "b.usdc"), str(tmp_path / "c.usdz"))
    text = load_mesh(stage(tmp_path))
    for name in ("b.usdc", "c.usdz"):
        mesh = load_mesh(tmp_path / name)
        assert torch.equal(mesh.vertices, text.vertices) and torch.equal(mesh.faces, text.faces)


def test_broken_stages_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    with pytest.raises(FileFormatError, match=r"\[0, 3\)"):
        load_mesh(stage(tmp_path, "3"))
    with pytest.raises(FileFormatError, match="add up"):
        load_mesh(stage(tmp_path, "2, 2"))
    (tmp_path / "a.usda").write_text("#usda 1.0\ndef Mesh {{{")
    with pytest.raises(FileFormatError, match="pxr cannot open"):
        load_mesh(tmp_path / "a.usda")


@pytest.mark.parametrize("suffix", ["usd", "usda", "usdc", "usdz"])
def test_the_first_bytes_are_checked_before_pxr_sees_them(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"no such thing")
    with pytest.raises(FileFormatError, match="first bytes"):
        load_mesh(tmp_path / f"a.{suffix}")


def test_without_pxr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usd.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="usd-core"):
        load_mesh(stage(tmp_path))


def test_a_crash_and_a_stall_end_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    monkeypatch.setattr(usd, "_START", "import os; os.abort()")
    with pytest.raises(FileFormatError, match="exit status"):
        load_mesh(stage(tmp_path))
    monkeypatch.setattr(usd, "_START", "import time; time.sleep(60)")
    monkeypatch.setattr(usd, "_SECONDS", 0.5)
    with pytest.raises(FileFormatError, match="did not open"):
        load_mesh(stage(tmp_path))
