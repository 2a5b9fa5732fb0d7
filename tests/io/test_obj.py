"""OBJ: every form of face, indices counted back, normals, colours, and files it names but must not open."""

from pathlib import Path

import pytest
import torch

from geom.errors import FileFormatError
from geom.io import load_mesh

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def obj(folder: Path, text: str) -> Path:
    path = folder / "a.obj"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("face", ["f 1 2 3 4", "f -4 -3 -2 -1", "f 1/1 2/1 3/1 4/1", "f 1//1 2//1 3//1 4//1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_forms_of_faces(tmp_path: Path, face: str, end: str) -> None:
    text = (
        f"# a comment\nmtllib ../../nothing.mtl\no thing\n{SQUARE}vt 0 0\nvn 0 0 1\nusemtl x\ns off\n\t{face} # end\n"
    )
    mesh = load_mesh(obj(tmp_path, text.replace("\n", end)))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]] and mesh.vertices[2].tolist() == [1, 1, 0]
    assert (mesh.normals is not None) == ("//" in face)


def test_all_three_indices_mixed_polygons_and_continued_lines(tmp_path: Path) -> None:
    text = SQUARE + "vt 0 0\nvn 0 0 1\nvn 0 0 2\nf 1/1/1 2/1/1 \\\n3/1/2\nf 1/1/1 2 3//2 4/1\nvp 1\nfoo bar\n"
    mesh = load_mesh(obj(tmp_path, text))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
    assert mesh.normals is None  # no normal for the last vertex


def test_normals_that_every_vertex_has_once(tmp_path: Path) -> None:
    normals = "vn 1 0 0\nvn 0 1 0\nvn 0 0 1\nvn 0 0 2\nvn 5 5 5\n"
    mesh = load_mesh(obj(tmp_path, SQUARE + normals + "f 1//4 2//3 3//2 4//1\n"))
    assert mesh.normals is not None and mesh.normals.tolist() == [[0, 0, 2], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert load_mesh(obj(tmp_path, SQUARE + normals + "f 1//4 2//3 3//2 4//1\nf 1//1 2//3 3//2\n")).normals is None
    as_many = load_mesh(obj(tmp_path, SQUARE + normals[:-9] + "f 1 2 3\n"))
    assert as_many.normals is not None and as_many.normals[3].tolist() == [0, 0, 2]


def test_negative_indices_count_from_where_they_stand(tmp_path: Path) -> None:
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 0 0 1\nv 1 0 1\nv 0 1 1\nf -3 -2 -1\n"
    assert load_mesh(obj(tmp_path, text)).faces.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_negative_indices_across_blocks(tmp_path: Path) -> None:
    triangles = 60_000  # about 3 MB, read in three blocks
    text = "".join(f"v {i} 0 0.0\nv 0 {i} 0.0\nv 0 0 {i}.0\nf -3 -2 -1\n" for i in range(triangles))
    mesh = load_mesh(obj(tmp_path, text))
    assert torch.equal(mesh.faces, torch.arange(3 * triangles).reshape(-1, 3))
    assert mesh.vertices[3::3, 0].tolist() == list(range(1, triangles))


def test_colours_and_weights(tmp_path: Path) -> None:
    faces = "f 1 2 3\n"
    bright = load_mesh(obj(tmp_path, "v 0 0 0 1 0 .5\n" * 3 + faces))
    assert bright.colors is not None and bright.colors[0].tolist() == [1, 0, 0.5]
    assert load_mesh(obj(tmp_path, "v 0 0 0 1 0 .5\n" * 2 + "v 0 0 0\n" + faces)).colors is None
    assert load_mesh(obj(tmp_path, "v 0 0 3 1\n" * 3 + faces)).vertices[0].tolist() == [0, 0, 3]


def test_precision_of_untyped_text(tmp_path: Path) -> None:
    fine = "v 500000.125 0 0\nv 500001.123456 0 0\nv 500000 1 0\nf 1 2 3\n"
    assert load_mesh(obj(tmp_path, fine)).vertices.dtype == torch.float64
    assert load_mesh(obj(tmp_path, fine), dtype=torch.float32).vertices.dtype == torch.float32
    assert load_mesh(obj(tmp_path, SQUARE + "f 1 2 3\n")).vertices.dtype == torch.float32


def test_without_faces_it_is_still_a_mesh(tmp_path: Path) -> None:
    assert load_mesh(obj(tmp_path, "# nothing\n")).vertices.shape == (0, 3)
    assert load_mesh(obj(tmp_path, SQUARE)).faces.shape == (0, 3)


BAD = {
    "f 1 2\n": "3 corners",
    "f 1 2 5\n": r"\[0, 4\)",
    "f 0 1 2\n": "counted from 1",
    "f 1 2 -5\n": "counts back",
    "f 1/1 2/1 3/1\n": "texture",
    "f 1//1 2//1 3//1\n": "normal",
    "f 1/1/1/1 2 3\n": "at most 3",
    "f 1 2 /3\n": "names no vertex",
    "f 1 2 3.5\n": "whole",
    "f 1 2 / 3\n": "names no vertex",
    "f 1 2 x\n": "number",
    "v 1 2\nf 1 2 3\n": "3, 4 or 6",
    "v\nf 1 2 3\n": "3 numbers",
    "v 1 2 inf\nf 1 2 3\n": "finite",
    "v 1 2 1e999\nf 1 2 3\n": "finite",
    "vn 1 2\nf 1 2 3\n": "3 numbers",
    "v 1 2 3 -1 0 0\n" * 4: "3 numbers|colors|0, 1",
    "\0": "zero byte",
}


@pytest.mark.parametrize("text", BAD, ids=[repr(text)[:20] for text in BAD])
def test_refused(tmp_path: Path, text: str) -> None:
    base = "" if " -1 0 0" in text else SQUARE
    with pytest.raises(FileFormatError, match=BAD[text]):
        load_mesh(obj(tmp_path, base + text))


def test_what_is_no_obj_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no statement of OBJ"):
        load_mesh(obj(tmp_path, "PNG whatever\nmore of it\n"))
