"""STL: binary and ascii triangle soup."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.errors import ShapeError
from geom.io.bytes import Source
from geom.io.geometry import Geometry, checked, text_precision
from geom.io.tokens import blocks, first_words, read_rows, unix_lines

__all__ = ["read_stl", "write_stl"]

_FACET = np.dtype([("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("attribute", "<u2")])
_WORDS = (b"facet", b"outer", b"vertex", b"endloop", b"endfacet", b"solid", b"endsolid")
_ORDER = np.array([0, 1, 2, 2, 2, 3, 4])  # one facet, as indices of _WORDS


def read_stl(source: Source) -> Geometry:
    """Read an STL file: three vertices per face, never merged; the facet normals are left out.

    A binary file is known by its size, 84 + 50 n bytes for the n in its header, as some begin with "solid" too.

    Raises: FileFormatError.
    """
    data = source.data
    count = source.integer(80, 4, "little", "number of facets") if len(data) >= 84 else -1
    if len(data) == 84 + 50 * count:
        facets = source.array(_FACET, (count,), 84, "facets")
        return _soup(source, facets["vertices"].reshape(-1, 3))
    if data.lstrip()[:5].lower() != b"solid":
        if count < 0:
            raise source.fail("neither ascii ('solid') nor binary (84 bytes or more)", 0)
        raise source.fail(f"{count} facets declared: expected {84 + 50 * count} bytes, got {len(data)}", 80)
    return _soup(source, _read_ascii(source))


def _soup(source: Source, vertices: NDArray[Any]) -> Geometry:
    return checked(source, vertices, faces=np.arange(len(vertices)).reshape(-1, 3))


def _read_ascii(source: Source) -> NDArray[Any]:
    """Vertices (3 F, 3) of `facet normal ... outer loop, vertex x y z (3 times), endloop, endfacet`, one line each."""
    text = unix_lines(source.data)
    parts: list[NDArray[np.float64]] = []
    open_lines = np.empty(0, np.intp)  # of a facet that the last block has cut
    ended = False
    for start, stop in blocks(source, text):
        buffer = np.frombuffer(text[start:stop] + b"\n" * 9, np.uint8)
        first, words = first_words(buffer)
        if not first.size:
            continue
        letters = buffer[first[:, None] + np.arange(9)] | 32  # lower case; white space stays below a letter
        kind = np.full(len(first), -1)
        for k, word in enumerate(_WORDS):
            same = (letters[:, : len(word)] == np.frombuffer(word, np.uint8)).all(1)
            kind[same & (buffer[first + len(word)] <= 32)] = k
        if (kind < 0).any():
            raise source.fail("expected a statement of ascii STL", start + int(first[np.argmax(kind < 0)]))
        ended = bool(kind[-1] == 6)
        lines = np.concatenate([open_lines, kind[kind < 5]])
        whole = len(lines) - len(lines) % 7
        if (lines[:whole].reshape(-1, 7) != _ORDER).any() or (lines[whole:] != _ORDER[: len(lines) - whole]).any():
            raise source.fail("expected facet, outer loop, three vertices, endloop, endfacet", start + int(first[0]))
        open_lines = lines[whole:]
        is_vertex = kind == 2
        if (words[is_vertex] != 4).any():
            at = first[is_vertex][np.argmax(words[is_vertex] != 4)]
            raise source.fail("vertex: expected 3 numbers", start + int(at))
        keep = np.concatenate([np.zeros(first[0], bool), np.repeat(is_vertex, np.diff(first, append=len(buffer)))])
        keep[(first[is_vertex][:, None] + np.arange(6)).ravel()] = False
        numbers = np.where(keep, buffer, 32).astype(np.uint8).tobytes()
        parts.append(read_rows(source, numbers, start)[0].reshape(-1, 3))
    if open_lines.size or not ended:
        raise source.fail("the file ends before endsolid", len(text))
    xyz = np.concatenate(parts) if parts else np.empty((0, 3))
    if not np.isfinite(xyz).all():
        raise source.fail("vertex: expected finite numbers, got NaN or inf")
    return text_precision(xyz, None)


def write_stl(geometry: Geometry) -> bytes:
    """Binary STL: float32 coordinates, facet normals from the corners; vertices no face names and normals are lost.

    Raises: ShapeError where there are colours, which STL does not hold, or coordinates beyond float32.
    """
    if geometry.colors is not None:
        raise ShapeError("colors: STL holds none, expected a mesh without them")
    faces = np.empty((0, 3), np.int64) if geometry.faces is None else geometry.faces
    with np.errstate(over="ignore"):
        corners = geometry.positions[faces].astype(np.float32)
    if not np.isfinite(corners).all():
        raise ShapeError("vertices: STL stores float32, expected coordinates below 3.4e38")
    facets = np.zeros(len(faces), _FACET)
    facets["vertices"] = corners
    wide = corners.astype(np.float64)
    normal = np.cross(wide[:, 1] - wide[:, 0], wide[:, 2] - wide[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    facets["normal"] = normal / np.where(length > 0, length, 1)
    return b"geom binary STL".ljust(80) + len(faces).to_bytes(4, "little") + facets.tobytes()
