"""Points as columns of text: XYZ, TXT, ASC and CSV."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.errors import ShapeError
from geom.io.bytes import Source
from geom.io.geometry import Geometry, checked, text_precision
from geom.io.tokens import declared_dtype, format_rows, table, unix_lines, without_comments

__all__ = ["columns_to_geometry", "read_text", "write_text"]

_NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))
_COLORS = (("r", "g", "b"), ("red", "green", "blue"))
_INTENSITY = ("intensity", "i", "reflectance", "scalar_intensity")
_KNOWN = {"x", "y", "z", *_INTENSITY, *(n for names in _NORMALS + _COLORS for n in names)}


def read_text(source: Source) -> Geometry:
    """Read points from lines of numbers between blanks, tabs, commas or semicolons; # and // begin comments.

    A line of column names, first in the file or in a comment above the numbers, says what the columns are: x y z, nx ny
    nz, r g b or red green blue, intensity. Without one, `columns_to_geometry` decides.

    Raises: FileFormatError, also where lines differ in length.
    """
    text = unix_lines(source.data)
    body = without_comments(source, text, slashes=True)
    names, start = _names(source, text, body)
    rows = table(source, body[start:].replace(b",", b" ").replace(b";", b" "), start)
    declared = declared_dtype(text)
    if not rows.size:
        names = names or ["x", "y", "z"]
        rows = np.empty((0, len(names)))
    elif rows.shape[1] < 3:
        raise source.fail(f"expected lines of 3 numbers or more, got {rows.shape[1]}", start)
    elif names and len(names) != rows.shape[1]:
        raise source.fail(
            f"expected {len(names)} numbers in a line as in the line of names, got {rows.shape[1]}", start
        )
    if not np.isfinite(rows).all():
        raise source.fail("expected finite numbers, got NaN or inf")
    if not names:
        return columns_to_geometry(source, rows, text_precision(rows[:, :3], declared))

    def pick(*groups: tuple[str, ...]) -> NDArray[Any] | None:
        group = next((g for g in groups if all(n in names for n in g)), None)
        return None if group is None else rows[:, [names.index(n) for n in group]]

    xyz, intensity = pick(("x", "y", "z")), pick(*((n,) for n in _INTENSITY))
    if xyz is None:
        raise source.fail("the line of column names has no x, y, z", 0)
    return checked(
        source,
        text_precision(xyz, declared),
        normals=pick(*_NORMALS),
        colors=pick(*_COLORS),
        intensities=None if intensity is None else intensity[:, 0],
    )


def _names(source: Source, text: bytes, body: bytes) -> tuple[list[str], int]:
    """Column names, [] where none are given, and where the numbers begin; `body` is the text with blank comments."""
    first = len(body) - len(body.lstrip())
    comments = [_words(line.lstrip(b" \t#/")) for line in text[: min(first, 4096)].splitlines()]
    named = next((words for words in comments if {"x", "y", "z"} <= set(words) <= _KNOWN), [])
    end = body.find(b"\n", first)
    words = _words(body[first : end if end >= 0 else None])
    if {"x", "y", "z"} <= set(words):
        named, first = words, end + 1 if end >= 0 else len(body)
    if len(set(named)) < len(named):
        raise source.fail("a column name stands there twice", 0)
    return named, first


def _words(line: bytes) -> list[str]:
    return [w.strip("\"'") for w in re.split(r"[\s,;]+", line[:4096].decode("latin-1").strip().lower()) if w]


def columns_to_geometry(source: Source, rows: NDArray[Any], xyz: NDArray[Any]) -> Geometry:
    """Say what columns (N, K >= 3) without names are.

    3: x y z. 4: and intensity. 6 or more: columns 4 to 6, and 7 to 9 where there are as many, are colours if all lie in
    [0, 255] and one exceeds 1, normals if all rows have length 1 (within 1e-3), else ignored. Further columns and a
    fifth one are ignored.
    """
    found: dict[str, NDArray[Any]] = {}
    if rows.shape[1] == 4:
        found["intensities"] = rows[:, 3]
    for start in range(3, min(rows.shape[1] - 2, 7), 3):
        triple = rows[:, start : start + 3]
        if not triple.size:
            continue
        if triple.min() >= 0 and 1 < triple.max() <= 255:
            found.setdefault("colors", triple)
        elif (np.abs(np.linalg.norm(triple.astype(np.float64), axis=1) - 1) < 1e-3).all():
            found.setdefault("normals", triple)
    return checked(
        source, xyz, normals=found.get("normals"), colors=found.get("colors"), intensities=found.get("intensities")
    )


def write_text(geometry: Geometry) -> bytes:
    """XYZ text; comments name the columns and the type, digits suffice to read the same numbers back."""
    if geometry.faces is not None:
        raise ShapeError("faces: XYZ holds none")
    names, columns = ["x", "y", "z"], [geometry.positions]
    for group, column in (
        (("nx", "ny", "nz"), geometry.normals),
        (("r", "g", "b"), geometry.colors),
        (("intensity",), None if geometry.intensities is None else geometry.intensities[:, None]),
    ):
        if column is not None:
            names += group
            columns.append(column)
    return f"# geom {geometry.positions.dtype}\n# {' '.join(names)}\n{format_rows(*columns)}".encode()
