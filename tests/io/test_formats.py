"""The door: suffixes, dtypes, files that are none, writes that fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import geom.io
from geom.errors import FileFormatError, ShapeError
from geom.io import load, load_mesh, load_points, save_mesh, save_points
from geom.meshes import Mesh
from geom.points import Points

TRIANGLE = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.ply").mkdir()
    os.mkfifo(tmp_path / "pipe.ply")  # would never end
    (tmp_path / "empty.ply").write_bytes(b"")
    for name, reason in {
        "none.ply": "no such file",
        "folder.ply": "regular file",
        "pipe.ply": "regular file",
        "empty.ply": "empty",
        "a\0.ply": "not a file name",
    }.items():
        with pytest.raises(FileFormatError, match=reason) as caught:
            load(tmp_path / name if "\0" not in name else str(tmp_path / name))
        assert caught.value.path == str(tmp_path / name)


def test_unknown_suffixes_name_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.fbx").write_bytes(b"x")
    for call in (load, load_points, load_mesh):
        with pytest.raises(FileFormatError, match=r"'\.fbx'.*\.ply.*\.usdz"):
            call(tmp_path / "a.fbx")
    with pytest.raises(FileFormatError, match=r"\.ply, \.pcd, \.xyz"):
        save_points(Points(torch.eye(3)), tmp_path / "a.stl")
    with pytest.raises(FileFormatError, match=r"\.stl"):
        save_mesh(TRIANGLE, tmp_path / "a.xyz")


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
@pytest.mark.parametrize("suffix", ["ply", "npz", "xyz", "obj"])
def test_dtype(tmp_path: Path, stored: torch.dtype, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    x = torch.rand(5, 3, dtype=stored)
    if suffix == "xyz":
        save_points(Points(x, normals=x), path)
    else:
        save_mesh(Mesh(x, torch.tensor([[0, 1, 2]]), normals=x), path)
    for wanted in (torch.float32, torch.float64):
        points = load_points(path, dtype=wanted)
        assert torch.equal(points.positions, x.to(wanted)) and points.normals is not None
        assert points.normals.dtype == wanted
    if suffix != "xyz":
        assert load_mesh(path, dtype=torch.float64).vertices.dtype == torch.float64
    with pytest.raises(ShapeError, match="float16"):
        load_points(path, dtype=torch.float16)


def test_beyond_float32(tmp_path: Path) -> None:
    points = Points(torch.tensor([[1e300, 0, 0]], dtype=torch.float64))
    save_points(points, tmp_path / "a.ply")
    assert load_points(tmp_path / "a.ply").positions[0, 0] == 1e300
    with pytest.raises(FileFormatError, match="float64"):
        load_points(tmp_path / "a.ply", dtype=torch.float32)
    with pytest.raises(ShapeError, match="float32"):
        save_points(points, tmp_path / "a.bin")
    for suffix in ("stl", "glb"):
        with pytest.raises(ShapeError, match="float32"):
            save_mesh(Mesh(points.positions.expand(3, 3), torch.tensor([[0, 1, 2]])), tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["ply", "pcd", "xyz", "npz", "npy", "bin"])
def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    save_points(Points(torch.eye(3)), path)
    old = path.read_bytes()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ShapeError, match="finite"):
            save_points(Points(torch.full((1, 3), bad)), path)
        with pytest.raises(ShapeError, match="finite"):
            save_points(Points(torch.eye(3), intensities=torch.tensor([0, bad, 0])), path)
    with pytest.raises(ShapeError, match="colors"):
        save_points(Points(torch.eye(3), colors=torch.eye(3) * 2), path)
    with pytest.raises(ShapeError, match="Points"):
        save_points(TRIANGLE, path)  # type: ignore[arg-type]
    assert path.read_bytes() == old


@pytest.mark.parametrize("suffix", ["ply", "obj", "stl", "off", "npz", "glb"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    save_mesh(TRIANGLE, path)
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_mesh(Mesh(torch.rand(9, 3), torch.tensor([[6, 7, 8]])), path)
    monkeypatch.undo()
    assert path.read_bytes() == old and os.listdir(tmp_path) == [path.name]
    with pytest.raises(ShapeError, match="Mesh"):
        save_mesh(Points(torch.eye(3)), path)  # type: ignore[arg-type]
    with pytest.raises(OSError):
        save_mesh(TRIANGLE, tmp_path / "no folder" / path.name)


def test_a_defect_of_a_reader_still_is_a_file_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise IndexError("oops")

    monkeypatch.setitem(geom.io.formats._READERS, ".ply", broken)
    (tmp_path / "a.ply").write_bytes(b"ply")
    with pytest.raises(FileFormatError, match="please report"):
        load(tmp_path / "a.ply")


def test_importing_the_room_loads_no_reader_of_others() -> None:
    code = "import sys, geom.io; print([m for m in ('trimesh', 'pxr', 'open3d', 'warp', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
