"""STL: both encodings, and which one a file is."""

import struct
from pathlib import Path

import pytest
import torch

from geom.errors import FileFormatError
from geom.io import load_mesh

FACET = "  FACET NORMAL 0 0 1\n outer loop\n  vertex 0 0 0\n  vertex 1 0 0\n  vertex 0 1e0 .5\n endloop\n endfacet\n"


def stl(folder: Path, data: str | bytes) -> Path:
    path = folder / "a.STL"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def binary(count: int, name: bytes = b"") -> bytes:
    facet = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0.5, 3)
    return name.ljust(80) + struct.pack("<I", count) + facet * count


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ascii(tmp_path: Path, end: str) -> None:
    text = f"solid vertex name\n{FACET}{FACET}endsolid name\nsolid two\n{FACET}endsolid\n"
    mesh = load_mesh(stl(tmp_path, text.replace("\n", end)))
    assert mesh.vertices.dtype == torch.float32 and mesh.faces.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert mesh.vertices[3:6].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0.5]]


def test_ascii_across_blocks(tmp_path: Path) -> None:
    mesh = load_mesh(stl(tmp_path, f"solid\n{FACET * 15_000}endsolid\n"))  # about 2 MB
    assert mesh.faces.shape == (15_000, 3) and float(mesh.vertices.sum()) == 15_000 * 2.5


@pytest.mark.parametrize("name", [b"", b"solid but binary"])
def test_binary_is_known_by_its_size(tmp_path: Path, name: bytes) -> None:
    mesh = load_mesh(stl(tmp_path, binary(2, name)))
    assert mesh.faces.tolist() == [[0, 1, 2], [3, 4, 5]] and mesh.vertices[2].tolist() == [0, 1, 0.5]
    assert load_mesh(stl(tmp_path, binary(0, name))).faces.shape == (0, 3)


@pytest.mark.parametrize(
    "data",
    [
        binary(2)[:-1],
        binary(2) + b"\0",
        b"\0" * 83,
        f"solid\n{FACET}",
        f"solid\n{FACET[:-10]}endsolid\n",
        f"solid\n{FACET}endsolid\n".replace("vertex 1 0 0", "vertex 1 0"),
        f"solid\n{FACET}endsolid\n".replace("vertex 1 0 0", "vertex 1 0 x"),
        f"solid\n{FACET}endsolid\n".replace("vertex 1 0 0", "vertex 1 0 nan"),
        f"solid\n{FACET}endsolid\n".replace("  vertex 1 0 0\n", ""),
        f"solid\n{FACET}endsolid\n".replace("outer loop", "other loop"),
        f"solid\n{FACET}vertex 0 0 0\nendsolid\n",
    ],
)
def test_refused(tmp_path: Path, data: str | bytes) -> None:
    with pytest.raises(FileFormatError):
        load_mesh(stl(tmp_path, data))


def test_binary_nan_is_refused(tmp_path: Path) -> None:
    data = bytearray(binary(1))
    data[96:100] = struct.pack("<f", float("nan"))
    with pytest.raises(FileFormatError, match="NaN"):
        load_mesh(stl(tmp_path, bytes(data)))
