"""OFF and its coloured and normal kin."""

from pathlib import Path

import pytest

from geom.errors import FileFormatError
from geom.io import load_mesh

SQUARE = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"


def off(folder: Path, text: str) -> Path:
    path = folder / "a.off"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("head", ["OFF\n4 2 0\n", "OFF 4 2 5\n", "# c\n\nOFF # c\n# c\n4 2\n", "OFF\r\n4 2 0\r\n"])
def test_headers_and_polygons(tmp_path: Path, head: str) -> None:
    mesh = load_mesh(off(tmp_path, f"{head}{SQUARE}\n# faces\n4 0 1 2 3 255 0 0\n3 0 1 2 # end\n"))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]] and mesh.vertices[2].tolist() == [1, 1, 0]


def test_colours_and_normals(tmp_path: Path) -> None:
    mesh = load_mesh(off(tmp_path, "COFF 3 1 0\n0 0 0 255 0 0 255\n1 0 0 0 51 0 255\n0 1 0 0 0 0 0\n3 0 1 2\n"))
    assert mesh.colors is not None and mesh.colors[0].tolist() == [1, 0, 0]
    mesh = load_mesh(off(tmp_path, "CNOFF 1 0 0\n1 2 3 0 0 1 0.5 0.25 0\n"))
    assert mesh.normals is not None and mesh.normals.tolist() == [[0, 0, 1]]
    assert mesh.colors is not None and mesh.colors.tolist() == [[0.5, 0.25, 0]]
    mesh = load_mesh(off(tmp_path, "NOFF 1 0 0\n1 2 3 0 1 0\n"))
    assert mesh.normals is not None and mesh.normals.tolist() == [[0, 1, 0]] and mesh.colors is None


def test_empty(tmp_path: Path) -> None:
    assert load_mesh(off(tmp_path, "OFF\n0 0 0")).vertices.shape == (0, 3)


@pytest.mark.parametrize(
    "text",
    [
        "4OFF 0 0 0\n",
        "OFF BINARY\n",
        "OFF\n",
        "OFF\n-1 0 0\n",
        f"OFF 5 0 0\n{SQUARE}",
        f"OFF 3 0 0\n{SQUARE}",
        f"OFF 4 1 0\n{SQUARE}3 0 1\n",
        f"OFF 4 1 0\n{SQUARE}2 0 1\n",
        f"OFF 4 1 0\n{SQUARE}3 0 1 4\n",
        f"OFF 4 1 0\n{SQUARE}3 0 1 -1\n",
        f"OFF 4 1 0\n{SQUARE}nan 0 1 2\n",
        f"OFF 4 1 0\n{SQUARE}3.5 0 1 2 3\n",
        f"OFF 4 0 0\n{SQUARE[:-6]}0 1\n",
        f"OFF 4 0 0\n{SQUARE[:-6]}0 1 nan\n",
        f"OFF 4 0 0\n{SQUARE[:-6]}0 1 a\n",
        "COFF 1 0 0\n0 0 0\n",
        "COFF 1 0 0\n0 0 0 1 2 999 3\n",
    ],
)
def test_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(FileFormatError):
        load_mesh(off(tmp_path, text))
