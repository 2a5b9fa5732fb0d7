"""PLY by hand-made files: every encoding, awkward headers, lists, colours, and what must be refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from geom.errors import FileFormatError
from geom.io import load, load_mesh, load_points
from geom.meshes import Mesh
from geom.points import Points

HEAD = "ply\nformat ascii 1.0\n"
XYZ = "property float x\nproperty float y\nproperty float z\n"


def ply(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.ply"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_ascii_polygons_become_fans(tmp_path: Path) -> None:
    body = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n.5 .5 1\n3 0 1 4\n4 0 1 2 3\n5 0 1 2 3 4\n"
    head = f"{HEAD}comment end_header\nobj_info x\nelement vertex 5\n{XYZ}element face 3\n"
    mesh = load_mesh(ply(tmp_path, f"{head}property list uchar int vertex_index\nend_header\n{body}"))
    assert mesh.faces.tolist() == [[0, 1, 4], [0, 1, 2], [0, 2, 3], [0, 1, 2], [0, 2, 3], [0, 3, 4]]
    assert mesh.vertices.dtype == torch.float32 and mesh.vertices[4].tolist() == [0.5, 0.5, 1]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mixed", [False, True])
def test_binary_both_ends_any_order_and_unknown_elements(tmp_path: Path, order: str, mixed: bool) -> None:
    kind = "little" if order == "<" else "big"
    polygons = [[0, 1, 2], [0, 1, 2, 3] if mixed else [1, 2, 3]]
    head = (
        f"ply\nformat binary_{kind}_endian 1.0\nelement face 2\nproperty uchar flag\n"
        "property list ushort uint vertex_indices\nelement junk 2\nproperty list char double a\nproperty short b\n"
        "element vertex 4\nproperty uchar red\nproperty double x\nproperty uchar green\nproperty double z\n"
        "property double y\nproperty uchar blue\nproperty float scalar_Intensity\nelement nothing 7\nend_header\n"
    ).replace("\n", "\r\n")
    body = b"".join(struct.pack(f"{order}BH{len(p)}I", 9, len(p), *p) for p in polygons)
    body += struct.pack(f"{order}bdhbddh", 1, 0.5, 7, 2, 0.5, 0.5, 7)
    body += b"".join(struct.pack(f"{order}BdBddBf", 255, i, 51, 10 + i, 5 + i, 0, i / 2) for i in range(4))
    path = ply(tmp_path, head.encode() + body)
    mesh = load(path)
    assert isinstance(mesh, Mesh) and mesh.vertices.dtype == torch.float64 and mesh.colors is not None
    assert mesh.vertices.tolist() == [[i, 5 + i, 10 + i] for i in range(4)]
    assert torch.equal(mesh.colors, torch.tensor([[255, 51, 0]] * 4, dtype=torch.float32) / 255)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3]] if mixed else [[0, 1, 2], [1, 2, 3]]
    points = load_points(path, dtype=torch.float32)
    assert points.positions.dtype == torch.float32 and points.intensities is not None
    assert points.intensities.tolist() == [0, 0.5, 1, 1.5]


def test_vertex_element_with_lists_of_different_length(tmp_path: Path) -> None:
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty list uchar uchar ring\n{XYZ}end_header\n"
    body = b"".join(struct.pack(f"<B{n}B3f", n, *[7] * n, n, 2 * n, 3 * n) for n in (0, 2, 1))
    points = load(ply(tmp_path, head.encode() + body))
    assert isinstance(points, Points) and points.positions.tolist() == [[0, 0, 0], [2, 4, 6], [1, 2, 3]]


@pytest.mark.parametrize(("kind", "top"), [("uchar", 255), ("ushort", 65535), ("float", 1.0), ("int", 255)])
def test_colours_of_any_type(tmp_path: Path, kind: str, top: float) -> None:
    names = "".join(f"property {kind} {n}\n" for n in ("red", "green", "blue"))
    points = load_points(ply(tmp_path, f"{HEAD}element vertex 1\n{XYZ}{names}end_header\n1 2 3 {top} 0 {top}\n"))
    assert points.colors is not None and points.colors.dtype == torch.float32 and points.colors.tolist() == [[1, 0, 1]]


def test_whole_number_coordinates_are_float32_where_that_is_exact(tmp_path: Path) -> None:
    head = HEAD + "element vertex 1\n" + XYZ.replace("float", "int") + "end_header\n"
    assert load_points(ply(tmp_path, head + "1 2 16777216\n")).positions.dtype == torch.float32
    exact = load_points(ply(tmp_path, head + "1 2 16777217\n")).positions
    assert exact.dtype == torch.float64 and exact[0, 2] == 16777217


def test_old_mac_line_ends(tmp_path: Path) -> None:
    text = f"{HEAD}element vertex 2\n{XYZ}end_header\n1 2 3\n4 5 6\n".replace("\n", "\r")
    assert load_points(ply(tmp_path, text)).positions.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_long_header_line_is_no_problem(tmp_path: Path) -> None:
    text = f"{HEAD}comment {'x' * 5000}\nelement vertex 1\n{XYZ}end_header\n1 2 3\n"
    assert load_points(ply(tmp_path, text)).positions.tolist() == [[1, 2, 3]]


def test_no_faces_declared_is_a_cloud_and_zero_faces_are_a_mesh(tmp_path: Path) -> None:
    cloud = ply(tmp_path, f"{HEAD}element vertex 0\n{XYZ}end_header")
    assert isinstance(load(cloud), Points)
    with pytest.raises(FileFormatError, match="load_points"):
        load_mesh(cloud)
    faces = "element face 0\nproperty list uchar int vertex_indices\n"
    mesh = load(ply(tmp_path, f"{HEAD}element vertex 1\n{XYZ}{faces}end_header\n1 2 3\n"))
    assert isinstance(mesh, Mesh) and mesh.faces.shape == (0, 3)


FACE = "element face 1\nproperty list uchar int vertex_indices\n"
BAD = {
    "element vertex 2\n" + XYZ + "end_header\n1 2 3\n": "ends before",
    "element vertex 2\n" + XYZ + "end_header\n1 2 3 4\n5\n": "ends before",
    "element vertex 1\n" + XYZ + "end_header\n1 2 3\n4 5 6\n": "more than the header",
    "element vertex 1\n" + XYZ + "end_header\n1 2 nan\n": "NaN",
    "element vertex 1\n" + XYZ + "end_header\n1 2 1e39\n": "overflow",
    "element vertex 1\n" + XYZ + "end_header\n1 2 1.5.2\n": "expected a number",
    "element vertex 1\n" + XYZ + "end_header\n1 2 3-4\n": "expected a number",
    "element vertex 1\n"
    + XYZ
    + "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n1 2 3 4 5 256\n": "255",
    "element vertex 3\n" + XYZ + FACE + "end_header\n1 2 3\n1 2 3\n1 2 3\n2 0 1\n": "at least 3",
    "element vertex 3\n" + XYZ + FACE + "end_header\n1 2 3\n1 2 3\n1 2 3\n3 0 1 2.5\n": "whole",
    "element vertex 3\n" + XYZ + FACE + "end_header\n1 2 3\n1 2 3\n1 2 3\n3 0 1 3\n": r"\[0, 3\)",
    "element vertex 3\n" + XYZ + FACE + "end_header\n1 2 3\n1 2 3\n1 2 3\n9 0 1 2\n": "past the end",
    "element vertex 1\n" + XYZ + XYZ + "end_header\n1 2 3 1 2 3\n": "twice",
    "element vertex 1\n" + XYZ + "element vertex 1\n" + XYZ + "end_header\n1 2 3 1 2 3\n": "twice",
    "element tristrips 1\nproperty list int int vertex_indices\nend_header\n3 0 1 2\n": "strips",
    "element face 1\nproperty list float int vertex_indices\nend_header\n3 0 1 2\n": "whole type",
    "element vertex 1_0\n" + XYZ + "end_header\n": "PLY header",
    "element vertex 1\nproperty half x\nend_header\n1\n": "PLY header",
    "element face 0\nproperty list uchar int vertex_indices\nend_header\n": "no element vertex",
}


@pytest.mark.parametrize("text", BAD, ids=[v + str(i) for i, v in enumerate(BAD.values())])
def test_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(FileFormatError, match=BAD[text]):
        load(ply(tmp_path, HEAD + text))


def test_the_error_names_the_byte(tmp_path: Path) -> None:
    text = f"{HEAD}element vertex 1\n{XYZ}end_header\n1 foo 3\n"
    with pytest.raises(FileFormatError) as caught:
        load(ply(tmp_path, text))
    assert (
        caught.value.offset == text.index("foo")
        and caught.value.path.endswith("a.ply")
        and "foo" in caught.value.reason
    )


def test_binary_with_more_than_declared_is_refused_but_padding_is_not(tmp_path: Path) -> None:
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 1\n{XYZ}end_header\n".encode()
    row = np.ones(3, np.float32).tobytes()
    assert len(load_points(ply(tmp_path, head + row + b"\0\0\n")).positions) == 1
    with pytest.raises(FileFormatError, match="more than the header declares"):
        load(ply(tmp_path, head + row + row))
