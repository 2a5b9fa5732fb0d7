"""PCD: three encodings, fields in any order, padding, packed colours, organised clouds."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from geom.errors import FileFormatError
from geom.io import load_points

KINDS = ["ascii", "binary", "binary_compressed"]


def literal(data: bytes) -> bytes:
    """LZF with literal runs only."""
    return b"".join(bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32))


def pcd(folder: Path, fields: list[tuple[str, str, np.ndarray]], kind: str, *, height: int = 1, **lines: str) -> Path:
    """A PCD file; a column (N, K) has COUNT K."""
    columns = [c.reshape(len(c), -1) for _, _, c in fields]
    head = {
        "VERSION": "0.7",
        "FIELDS": " ".join(n for n, _, _ in fields),
        "SIZE": " ".join(str(c.dtype.itemsize) for c in columns),
        "TYPE": " ".join(t for _, t, _ in fields),
        "COUNT": " ".join(str(c.shape[1]) for c in columns),
        "WIDTH": str(len(columns[0]) // height),
        "HEIGHT": str(height),
        "VIEWPOINT": "0 0 0 1 0 0 0",
        "POINTS": str(len(columns[0])),
        "DATA": kind,
    } | lines
    text = "# .PCD\r\n" + "".join(f"{k} {v}\n" for k, v in head.items() if v)
    if kind == "ascii":
        rows = zip(*(c.tolist() for c in columns), strict=True)
        body = "".join(" ".join(str(x) for c in row for x in c) + "\n" for row in rows).encode()
    elif kind == "binary":
        body = b"".join(c[i].tobytes() for i in range(len(columns[0])) for c in columns)
    else:
        plain = b"".join(c.tobytes() for c in columns)
        packed = literal(plain)
        body = struct.pack("<II", len(packed), len(plain)) + packed
    path = folder / "a.pcd"
    path.write_bytes(text.encode() + body)
    return path


def grid(count: int = 6, dtype: type = np.float32) -> np.ndarray:
    return np.arange(3 * count, dtype=dtype).reshape(count, 3) / 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_fields_in_any_order_with_padding(tmp_path: Path, kind: str, real: type) -> None:
    xyz = grid(dtype=real)
    fields = [
        ("_", "U", np.zeros((6, 3), np.uint8)),
        ("z", "F", xyz[:, 2].copy()),
        ("intensity", "U", np.arange(6, dtype=np.uint8)),
        ("normal_x", "F", np.array([0, 1, 0, 0, 0, np.nan], np.float32)),
        ("normal_y", "F", np.zeros(6, np.float32)),
        ("normal_z", "F", np.ones(6, np.float32)),
        ("label", "I", -np.ones((6, 2), np.int16)),
        ("x", "F", xyz[:, 0].copy()),
        ("y", "F", xyz[:, 1].copy()),
    ]
    points = load_points(pcd(tmp_path, fields, kind))
    assert torch.equal(points.positions, torch.from_numpy(xyz))
    assert points.intensities is not None and points.intensities.tolist() == [0, 1, 2, 3, 4, 5]
    assert points.normals is not None and points.normals.dtype == points.positions.dtype
    assert points.normals[1].tolist() == [1, 0, 1] and points.normals[5].tolist() == [0, 0, 0]


def xyz_fields(xyz: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    return [(n, "F", xyz[:, k].copy()) for k, n in enumerate("xyz")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", ["U", "F"])
def test_packed_colours(tmp_path: Path, kind: str, packed: str) -> None:
    bits = np.array([0xFF8000, 0x000001, 0x0A0B0C], np.uint32)
    column = bits if packed == "U" else bits.view(np.float32)
    points = load_points(pcd(tmp_path, [*xyz_fields(grid(3)), ("rgb", packed, column)], kind))
    assert points.colors is not None
    assert (points.colors * 255).round().tolist() == [[255, 128, 0], [0, 0, 1], [10, 11, 12]]


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_returns_of_an_organised_cloud_are_dropped(tmp_path: Path, kind: str) -> None:
    xyz = grid()
    xyz[[1, 4]] = np.nan
    fields = [*xyz_fields(xyz), ("intensity", "F", np.arange(6, dtype=np.float32))]
    points = load_points(pcd(tmp_path, fields, kind, height=2))
    assert points.positions.shape == (4, 3) and points.intensities is not None
    assert points.intensities.tolist() == [0, 2, 3, 5]
    with pytest.raises(FileFormatError, match="NaN"):
        load_points(pcd(tmp_path, fields, kind, height=1))
    xyz[1, 0] = np.inf
    xyz[1, 1:] = 0
    with pytest.raises(FileFormatError, match="inf"):
        load_points(pcd(tmp_path, xyz_fields(xyz), kind, height=2))


def test_compressed_references_also_overlapping(tmp_path: Path) -> None:
    pattern = np.float32(1.5).tobytes()
    # 4 bytes; 264 from 4 back, which overlap themselves, in the long form; 8 from 12 back, in the short one
    packed = bytes([3]) + pattern + bytes([7 << 5, 255, 3]) + bytes([6 << 5, 11])
    head = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 23\nHEIGHT 1\nPOINTS 23\nDATA binary_compressed\n"
    path = tmp_path / "a.pcd"
    path.write_bytes(head.encode() + struct.pack("<II", len(packed), 276) + packed)
    assert torch.equal(load_points(path).positions, torch.full((23, 3), 1.5))


def test_compressed_without_the_padding_fields_of_its_header(tmp_path: Path) -> None:
    fields = xyz_fields(grid(3))
    lines = {"FIELDS": "x _ y z", "SIZE": "4 1 4 4", "TYPE": "F U F F", "COUNT": "1 4 1 1"}
    assert torch.equal(load_points(pcd(tmp_path, fields, KINDS[2], **lines)).positions, torch.from_numpy(grid(3)))


def test_points_or_width_may_be_missing(tmp_path: Path) -> None:
    assert len(load_points(pcd(tmp_path, xyz_fields(grid()), "ascii", POINTS="")).positions) == 6
    assert len(load_points(pcd(tmp_path, xyz_fields(grid()), "ascii", WIDTH="", HEIGHT="", COUNT="")).positions) == 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "lines",
    [
        {"POINTS": "7"},
        {"POINTS": "7", "WIDTH": "7"},
        {"POINTS": "5", "WIDTH": "5"},
        {"POINTS": "99999999999999999", "WIDTH": "99999999999999999"},
        {"POINTS": "6.0"},
        {"HEIGHT": "0"},
        {"SIZE": "4 4"},
        {"SIZE": "4 4 3"},
        {"TYPE": "F F X"},
        {"COUNT": "1 1 0"},
        {"COUNT": "1 1 999999999999"},
        {"FIELDS": "x y y"},
        {"FIELDS": "x y w"},
        {"FIELDS": ""},
        {"DATA": "zip"},
        {"WIDTH": "", "POINTS": ""},
        {"NONSENSE": "1"},
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, kind: str, lines: dict[str, str]) -> None:
    path = pcd(tmp_path, xyz_fields(grid()), kind, **{k: v for k, v in lines.items() if k != "NONSENSE"})
    if "NONSENSE" in lines:
        path.write_bytes(b"NONSENSE 1\n" + path.read_bytes())
    with pytest.raises(FileFormatError):
        load_points(path)


@pytest.mark.parametrize("stream", [b"\x05ab", b"\xe0", b"\x40\x00", b"\x00a\x20\x09", b"\x01ab" * 50, b""])
def test_broken_compression_is_refused(tmp_path: Path, stream: bytes) -> None:
    head = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 1\nHEIGHT 1\nPOINTS 1\nDATA binary_compressed\n"
    (tmp_path / "a.pcd").write_bytes(head.encode() + struct.pack("<II", len(stream), 12) + stream)
    with pytest.raises(FileFormatError, match="LZF"):
        load_points(tmp_path / "a.pcd")
