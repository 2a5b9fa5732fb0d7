"""Columns of text: delimiters, comments, names, and what columns without names are."""

from pathlib import Path

import pytest
import torch

from geom.errors import FileFormatError
from geom.io import load_mesh, load_points
from geom.points import Points


def read(folder: Path, text: str, suffix: str = ".xyz") -> Points:
    path = folder / f"a{suffix}"
    path.write_bytes(text.encode())
    return load_points(path)


@pytest.mark.parametrize("suffix", [".xyz", ".TXT", ".csv", ".asc"])
@pytest.mark.parametrize("gap", [" ", "\t", ",", "; "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_comments_and_line_ends(tmp_path: Path, suffix: str, gap: str, end: str) -> None:
    text = "# made by hand\n// also\n\n1 2 3.5\n  -4 5e0 +6 # last\n".replace(" 5", gap + "5").replace(
        "1 2 3", f"1{gap}2{gap}3"
    )
    points = read(tmp_path, text.replace("\n", end).replace("-4 ", f"-4{gap}").replace(f"{gap}{gap}", gap), suffix)
    assert points.positions.tolist() == [[1, 2, 3.5], [-4, 5, 6]] and points.positions.dtype == torch.float32


def test_columns_without_names(tmp_path: Path) -> None:
    four = read(tmp_path, "1 2 3 0.5\n1 2 4 7\n")
    assert four.intensities is not None and four.intensities.tolist() == [0.5, 7] and four.colors is None
    bright = read(tmp_path, "1 2 3 255 0 51\n4 5 6 0 1 0\n")
    assert (
        bright.colors is not None and bright.colors[0].tolist() == [1, 0, pytest.approx(0.2)] and bright.normals is None
    )
    unit = read(tmp_path, "1 2 3 0 0 1\n4 5 6 0.6 -0.8 0\n")
    assert (
        unit.normals is not None
        and unit.colors is None
        and unit.normals[1].tolist() == [pytest.approx(0.6), pytest.approx(-0.8), 0]
    )
    other = read(tmp_path, "1 2 3 9 -9 9\n4 5 6 0 0 1\n")
    assert other.colors is None and other.normals is None
    nine = read(tmp_path, "1 2 3 255 0 51 0 0 1\n4 5 6 0 1 0 1 0 0\n")
    assert nine.colors is not None and nine.normals is not None and nine.normals[1].tolist() == [1, 0, 0]
    assert read(tmp_path, "1 2 3 4 5\n").intensities is None


@pytest.mark.parametrize("head", ["# ", "", "//"])
def test_names_say_what_columns_are(tmp_path: Path, head: str) -> None:
    points = read(tmp_path, f"# note\n{head}Red Green Blue nx ny nz Z Y X intensity\n0 0 1 5 0 0 3 2 1 9\n")
    assert (
        points.positions.tolist() == [[1, 2, 3]] and points.colors is not None and points.colors.tolist() == [[0, 0, 1]]
    )
    assert points.normals is not None and points.normals.tolist() == [[5, 0, 0]]
    assert points.intensities is not None and points.intensities.tolist() == [9]


def test_a_csv_header_may_name_other_columns(tmp_path: Path) -> None:
    points = read(tmp_path, '"time","x","y","z"\n0.1,1,2,3\n', ".csv")
    assert points.positions.tolist() == [[1, 2, 3]] and points.intensities is None


def test_precision(tmp_path: Path) -> None:
    assert read(tmp_path, "0.1 0.2 0.3\n1 1 1\n").positions.dtype == torch.float32
    fine = read(tmp_path, "4000000.1 0 0\n4000001.2 1 1\n").positions
    assert fine.dtype == torch.float64 and fine[0, 0] == 4000000.1
    assert read(tmp_path, "# geom float32\n4000000.1 0 0\n4000001.2 1 1\n").positions.dtype == torch.float32
    assert read(tmp_path, "# geom float64\n0 0 0\n1 1 1\n").positions.dtype == torch.float64
    assert read(tmp_path, "1e300 0 0\n0 0 0\n").positions.dtype == torch.float64


def test_no_numbers_are_no_points(tmp_path: Path) -> None:
    assert read(tmp_path, "# only a comment\n").positions.shape == (0, 3)


@pytest.mark.parametrize(
    "text",
    [
        "1 2\n",
        "1 2 3\n1 2\n",
        "1 2 3\n1 2 3 4\n",
        "1 2 nan\n",
        "1 2 inf\n",
        "1 2 3 nan\n",
        "1 2 3 1e39\n",
        "1 2 x\n",
        "1 2 0x10\n",
        "1 2 1_0\n",
        "1 2 3\n\0\n",
        "x y z\n1 2\n",
        "x y x z\n1 2 3 4\n",
        "# x y z intensity\n1 2 3\n",
        "# x y z r g b\n1 2 3 1 0 -1\n",
        "# x y z r g b\n1 2 3 1 0 256\n",
        "a b c\n1 2 3\n",
        "\xff\xfe1 2 3\n",
    ],
)
def test_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(FileFormatError):
        read(tmp_path, text)


def test_the_error_names_the_line(tmp_path: Path) -> None:
    text = "# c\n1 2 3\n\n4 5 6\n7 8\n"
    with pytest.raises(FileFormatError, match="in every line") as caught:
        read(tmp_path, text)
    assert caught.value.offset == text.index("7")


def test_a_word_of_a_million_digits_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="number"):
        read(tmp_path, "1 2 " + "1" * 1_000_000 + "-")
    with pytest.raises(FileFormatError, match="4 MiB"):
        read(tmp_path, "1 " * 3_000_000)


def test_blank_lines_and_comments_cost_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "# x z y\n" + "#\n\n" * 500_000 + "1 2 3\n").positions.tolist() == [[1, 3, 2]]


def test_is_no_mesh(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("1 2 3\n")
    with pytest.raises(FileFormatError, match="load_points reads it"):
        load_mesh(tmp_path / "a.xyz")
