"""NPY, NPZ and KITTI BIN, bombs and pickles included."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geom.errors import FileFormatError
from geom.io import load, load_mesh, load_points
from geom.meshes import Mesh
from geom.points import Points

XYZ = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "u1", ">i2", "<i4", "<u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_type_and_order(tmp_path: Path, kind: str, order: Any) -> None:
    np.save(tmp_path / "a.npy", np.asarray(XYZ, kind, order=order))
    points = load(tmp_path / "a.npy")
    assert isinstance(points, Points) and torch.equal(points.positions.float(), torch.from_numpy(XYZ))
    assert points.positions.dtype == (torch.float64 if kind == "<f8" else torch.float32)


def test_npy_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.c_[XYZ, [1, 2, 3, 4]].astype(np.float32))
    points = load_points(tmp_path / "a.npy")
    assert points.intensities is not None and points.intensities.tolist() == [1, 2, 3, 4]
    np.save(tmp_path / "a.npy", np.zeros((0, 3)))
    assert load_points(tmp_path / "a.npy").positions.shape == (0, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 2)),
        np.zeros(3),
        np.zeros((1, 3), complex),
        np.array([[None] * 3], object),
        np.zeros((1, 3), "S4"),
        np.zeros(3, [("x", "f4")]),
        np.full((1, 3), np.nan),
        np.zeros((1, 3), bool),
    ],
)
def test_npy_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(FileFormatError):
        load(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "shape",
    [
        b"(9, 3), ",
        b"(3, 3), ",
        b"(4,-3), ",
        b"(99999999999,3), ",
        b"((4), 3), ",
        b"(" + b"1" * 5000 + b"x",
        b"(" + b" " * 5000 + b"x",
    ],
)
def test_npy_header_that_lies(tmp_path: Path, shape: bytes) -> None:
    np.save(tmp_path / "a.npy", XYZ)
    data = (tmp_path / "a.npy").read_bytes()
    new = data.replace(b"(4, 3), ", shape)
    (tmp_path / "a.npy").write_bytes(new[: 10 + 118].ljust(128) + data[128:] if len(new) != len(data) else new)
    with pytest.raises(FileFormatError):
        load(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["positions", "vertices", "points", "xyz"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, name: str, save: Any) -> None:
    colors = np.array([[255, 0, 51]] * 4, np.uint8)
    extra = {"normals": XYZ + 1, "colors": colors, "other": np.array([None], object)}
    save(tmp_path / "a.npz", **{name: XYZ}, **extra, intensities=np.arange(4), offsets=np.array([0, 1, 4], np.int32))
    points = load(tmp_path / "a.npz")
    assert isinstance(points, Points) and len(points) == 2 and points.intensities is not None
    assert torch.equal(points.positions, torch.from_numpy(XYZ)) and points.intensities.tolist() == [0, 1, 2, 3]
    assert points.colors is not None and torch.equal(points.colors, torch.from_numpy(colors).float() / 255)
    assert points.normals is not None and torch.equal(points.normals, torch.from_numpy(XYZ + 1))


def test_npz_mesh_with_quadrilaterals(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", vertices=XYZ.astype(float), faces=np.array([[0, 1, 2, 3]], np.uint16))
    mesh = load(tmp_path / "a.npz")
    assert isinstance(mesh, Mesh) and mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.vertices.dtype == torch.float64
    np.savez(tmp_path / "a.npz", vertices=XYZ, faces=np.zeros((0, 3), np.int64))
    assert load_mesh(tmp_path / "a.npz").faces.shape == (0, 3)


@pytest.mark.parametrize(
    "arrays",
    [
        {"src": XYZ},
        {"points": XYZ[:, :2]},
        {"points": XYZ, "faces": np.array([[0, 1, 4]])},
        {"points": XYZ, "faces": np.array([[0, 1, -1]])},
        {"points": XYZ, "faces": np.array([[0, 1]])},
        {"points": XYZ, "faces": np.array([[0, 1, 2.5]])},
        {"points": XYZ, "faces": np.array([[0, 1, 2**63]], np.uint64)},
        {"points": XYZ, "normals": XYZ[:3]},
        {"points": XYZ, "colors": XYZ * 100},
        {"points": XYZ, "intensities": XYZ},
        {"points": XYZ, "offsets": np.array([0, 3])},
        {"points": XYZ, "offsets": np.array([0, 3, 2, 4])},
        {"points": np.array([[None] * 3], object)},
        {"points": np.full((1, 3), np.inf)},
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FileFormatError):
        load(tmp_path / "a.npz")


def test_npz_that_is_no_archive_or_holds_an_array_twice(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(FileFormatError, match="zip"):
        load(tmp_path / "a.npz")
    member = io.BytesIO()
    np.save(member, XYZ)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("xyz.npy", member.getvalue())
        archive.writestr("xyz.npy", member.getvalue())
    with pytest.raises(FileFormatError, match="twice"):
        load(tmp_path / "b.npz")


def test_npz_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("xyz.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (5_000_000, 3)})
        for _ in range(120):
            file.write(b"\0" * 1_000_000)
    assert (tmp_path / "a.npz").stat().st_size < 200_000
    with pytest.raises(FileFormatError, match="bytes of memory"):
        load(tmp_path / "a.npz")


def test_bin(tmp_path: Path) -> None:
    rows = np.c_[XYZ, [0.5, 1, 0, 9]].astype("<f4")
    (tmp_path / "a.bin").write_bytes(rows.tobytes())
    points = load_points(tmp_path / "a.bin")
    assert torch.equal(points.positions, torch.from_numpy(XYZ)) and points.intensities is not None
    assert points.intensities.tolist() == [0.5, 1, 0, 9]
    for bad in (rows.tobytes()[:-1], (rows * np.float32("nan")).tobytes(), b""):
        (tmp_path / "a.bin").write_bytes(bad)
        with pytest.raises(FileFormatError):
            load(tmp_path / "a.bin")
