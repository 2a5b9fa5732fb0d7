"""OFF (Geomview): OFF, COFF, NOFF and CNOFF text."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.io.bytes import Source
from geom.io.faces import fan, whole
from geom.io.geometry import Geometry, checked, text_precision
from geom.io.tokens import declared_dtype, format_rows, read_rows, row_offset, unix_lines, without_comments

__all__ = ["read_off", "write_off"]


def read_off(source: Source) -> Geometry:
    """Read an OFF file: one vertex or polygon a line; x y z, then nx ny nz (N), then r g b or r g b a (C).

    Colours are numbers up to 1, or up to 255 where one exceeds 1; colours of faces are ignored. Comments run from # to
    the end of the line.

    Raises: FileFormatError.
    """
    text = unix_lines(source.data)
    declared = declared_dtype(text[text.find(b"\n") + 1 :])
    text = without_comments(source, text)
    head = re.match(rb"\s*(C?)(N?)OFF(?=\s)", text)
    if head is None:
        raise source.fail("expected OFF, COFF, NOFF or CNOFF; other kinds of OFF are not read", 0)
    sizes = re.compile(rb"\s+(\d{1,18})[ \t]+(\d{1,18})(?:[ \t]+[+-]?\d{1,18})?[ \t\r]*(?:\n|$)").match(
        text, head.end()
    )
    if sizes is None:
        raise source.fail("expected the numbers of vertices, faces and edges", head.end())
    start, vertices, polygons = sizes.end(), int(sizes[1]), int(sizes[2])
    if 2 * (vertices + polygons) > len(text) - start + 1:
        raise source.fail(f"{vertices} vertices and {polygons} faces declared, the file ends before", len(text))
    values, counts = read_rows(source, text[start:], start)
    if len(counts) != vertices + polygons:
        raise source.fail(f"expected {vertices} + {polygons} lines of vertices and faces, got {len(counts)}", len(text))
    colored, normal = bool(head[1]), bool(head[2])
    base = 6 if normal else 3
    widths = (base + 3, base + 4) if colored else (base,)
    width = int(counts[0]) if vertices else widths[0]
    odd = np.flatnonzero((counts[:vertices] != width) | ~np.isin(counts[:vertices], widths))
    if odd.size:
        at = row_offset(source, text[start:], int(odd[0]))
        raise source.fail(
            f"vertex {odd[0]}: expected {' or '.join(map(str, widths))} numbers, got {counts[odd[0]]}",
            None if at is None else start + at,
        )
    rows = values[: vertices * width].reshape(vertices, width)
    xyz = rows[:, :3]
    if not np.isfinite(xyz).all():
        raise source.fail("vertices: expected finite numbers, got NaN or inf")
    return checked(
        source,
        text_precision(xyz, declared),
        faces=_faces(source, values[vertices * width :], counts[vertices:]),
        normals=rows[:, 3:6] if normal else None,
        colors=rows[:, base : base + 3] if colored else None,
    )


def _faces(source: Source, values: NDArray[np.float64], counts: NDArray[Any]) -> NDArray[np.int64]:
    """Triangles from lines `n i_1 ... i_n [color]`."""
    start = np.cumsum(counts, dtype=np.int64) - counts
    corners = whole(source, values[start], "number of corners")
    if ((corners < 3) | (corners >= counts)).any():
        bad = int(np.argmax((corners < 3) | (corners >= counts)))
        raise source.fail(f"face {bad}: {corners[bad]} corners declared, {counts[bad] - 1} numbers follow")
    if len(counts) and (counts == counts[0]).all() and (corners == corners[0]).all():
        return fan(source, values.reshape(len(counts), -1)[:, 1 : corners[0] + 1], corners)
    place = np.repeat(start + 1 - (np.cumsum(corners) - corners), corners)
    place += np.arange(len(place))
    return fan(source, values[place], corners)


def write_off(geometry: Geometry) -> bytes:
    """OFF text; a comment names the type of the coordinates and digits suffice to read the same numbers back."""
    faces = np.empty((0, 3), np.int64) if geometry.faces is None else geometry.faces
    colored, normal = geometry.colors is not None, geometry.normals is not None
    columns = [geometry.positions]
    if geometry.normals is not None:
        columns.append(geometry.normals)
    if geometry.colors is not None:
        columns += [geometry.colors, np.ones((len(geometry.colors), 1), np.int64)]
    head = f"{'C' * colored}{'N' * normal}OFF\n# geom {geometry.positions.dtype}\n"
    head += f"{len(geometry.positions)} {len(faces)} 0\n"
    return (head + format_rows(*columns) + format_rows(faces, lead="3 ")).encode()
