"""Wavefront OBJ: vertices, normals and polygons; materials and every other file it names stay closed."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.io.bytes import Source
from geom.io.faces import fan, whole
from geom.io.geometry import Geometry, checked, text_precision
from geom.io.tokens import (
    blocks,
    declared_dtype,
    first_words,
    format_rows,
    read_rows,
    unix_lines,
    without_comments,
    word_starts,
)

__all__ = ["read_obj", "write_obj"]

_STATEMENTS = set(
    b"v vt vn vp f fo l p g o s mg usemtl mtllib usemap maplib cstype deg bmat step curv curv2 surf parm trim hole "
    b"scrv sp end con bevel c_interp d_interp lod shadow_obj trace_obj ctech stech call csh".split()
)


def read_obj(source: Source) -> Geometry:
    """Read an OBJ file.

    Vertices are `v x y z`, `v x y z w` (w is ignored) or `v x y z r g b`; faces are polygons of v, v/vt, v//vn or
    v/vt/vn, counted from 1 or back from the last one. Normals are kept where every vertex is used with one normal only,
    or where faces name none and there are as many normals as vertices. Texture coordinates and unknown statements are
    ignored.
    An OBJ file is a mesh, also one without faces.

    Raises: FileFormatError.
    """
    text = unix_lines(source.data)
    declared = declared_dtype(text)
    if b"\0" in text:
        raise source.fail("expected text, got a zero byte", text.index(b"\0"))
    for ending in (b"\\\r\n", b"\\\n"):  # a continued line; spaces in its place move no byte
        text = text.replace(ending, b" " * len(ending))
    text = without_comments(source, text)
    parts = _Parts(source)
    for start, stop in blocks(source, text):
        parts.read(text[start:stop], start)
    if not parts.vertices:
        _refuse_unless_obj(source, text)
    xyz = text_precision(_joined(parts.vertices), declared)
    normals, faces = _joined(parts.normals), _joined(parts.faces).astype(np.int64, copy=False)
    if parts.largest[1] >= parts.count[1]:
        raise source.fail(f"faces: expected texture indices up to {parts.count[1]}, got {parts.largest[1] + 1}")
    if parts.largest[2] >= parts.count[2]:
        raise source.fail(f"faces: expected normal indices up to {parts.count[2]}, got {parts.largest[2] + 1}")
    whole_faces = not faces.size or faces.max() < len(xyz)  # else `checked` refuses, before normals are looked up
    chosen = _per_vertex(parts, len(xyz)) if len(normals) and whole_faces else None
    return checked(
        source,
        xyz,
        faces=faces,
        normals=None if chosen is None else normals[chosen],
        colors=_joined(parts.colors) if sum(map(len, parts.colors)) == len(xyz) > 0 else None,
    )


def _joined(blocks: list[NDArray[Any]]) -> NDArray[Any]:
    """All rows of all blocks (n, 3); the blocks are let go."""
    whole = np.concatenate(blocks) if len(blocks) > 1 else blocks[0] if blocks else np.empty((0, 3))
    blocks.clear()
    return whole


class _Parts:
    """What has been read so far."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.vertices: list[NDArray[np.float64]] = []
        self.colors: list[NDArray[np.float64]] = []  # as many rows as vertices, where all of those have a colour
        self.normals: list[NDArray[np.float64]] = []
        self.faces: list[NDArray[np.int64]] = []
        self.pairs: list[NDArray[np.int64]] = []  # (n, 2): vertex, normal, of each corner that has both
        self.count = [0, 0, 0]  # vertices, texture coordinates, normals
        self.largest = [-1, -1, -1]

    def read(self, text: bytes, offset: int) -> None:
        """Read whole lines that begin at byte `offset` of the file."""
        buffer = np.frombuffer(text + b"\n\n", np.uint8)
        first, words = first_words(buffer)
        c0, c1, c2 = buffer[first], buffer[first + 1], buffer[np.minimum(first + 2, len(buffer) - 1)]
        white1, white2 = c1 <= 32, c2 <= 32
        kinds = [(c0 == ord("v")) & white1, (c0 == ord("v")) & (c1 == ord("t")) & white2]
        kinds += [(c0 == ord("v")) & (c1 == ord("n")) & white2]
        is_face = (c0 == ord("f")) & white1

        def only(chosen: NDArray[np.bool_], width: int) -> bytes:
            """The text with all but the chosen lines blank, their keywords too."""
            lengths = np.diff(first, append=len(buffer))
            keep = np.concatenate([np.zeros(first[0], bool), np.repeat(chosen, lengths)])
            for k in range(width):
                keep[first[chosen] + k] = False
            return np.where(keep | (buffer == 10), buffer, 32).astype(np.uint8).tobytes()

        if kinds[0].any():
            if int(kinds[0].sum()) != int((words[kinds[0]] > 1).sum()):
                raise self.source.fail("v: expected 3 numbers, got none", offset)
            self._vertices(only(kinds[0], 1), offset)
        if kinds[2].any():
            values, counts = read_rows(self.source, only(kinds[2], 2), offset)
            if (counts != 3).any() or len(counts) != int(kinds[2].sum()):
                raise self.source.fail("vn: expected 3 numbers", offset)
            self.normals.append(values.reshape(-1, 3))
        if is_face.any():
            if (words[is_face] < 4).any():
                at = first[is_face][np.argmax(words[is_face] < 4)]
                raise self.source.fail("f: expected at least 3 corners", offset + int(at))
            before = [(np.cumsum(k) + n)[is_face] for k, n in zip(kinds, self.count, strict=True)]
            self._faces(only(is_face, 1), offset, words[is_face] - 1, before)
        for k in range(3):
            self.count[k] += int(kinds[k].sum())

    def _vertices(self, text: bytes, offset: int) -> None:
        values, counts = read_rows(self.source, text, offset)
        if bad := set(np.unique(counts).tolist()) - {3, 4, 6, 7}:
            raise self.source.fail(f"v: expected 3, 4 or 6 numbers, got {min(bad)}", offset)
        start = np.cumsum(counts) - counts
        xyz = values[start[:, None] + np.arange(3)]
        if not np.isfinite(xyz).all():
            raise self.source.fail("v: expected finite numbers, got NaN or inf", offset)
        self.vertices.append(xyz)
        self.colors.append(values[start[counts >= 6][:, None] + np.arange(3, 6)])

    def _faces(self, text: bytes, offset: int, corners: NDArray[np.int64], before: list[NDArray[Any]]) -> None:
        """Faces of one block; `before` (3 arrays) counts v, vt and vn above each face, for negative indices."""
        buffer = np.frombuffer(text, np.uint8)
        slash = buffer == ord("/")
        starts = word_starts(buffer)
        spaced = text.replace(b"/", b" ")
        pieces = np.flatnonzero(word_starts(np.frombuffer(spaced, np.uint8)))
        values, _ = read_rows(self.source, spaced, offset)
        indices = whole(self.source, values, "f")
        if not corners.size or int(starts.sum()) != int(corners.sum()):
            raise self.source.fail("f: expected corners such as 1, 1/2, 1//3 or 1/2/3", offset)
        if (indices == 0).any():
            at = int(pieces[np.argmax(indices == 0)])
            raise self.source.fail("f: expected indices counted from 1, got 0", offset + at)
        word = (np.cumsum(starts, dtype=np.int32) - 1)[pieces]  # the corner to which each number belongs
        slashes = np.cumsum(slash, dtype=np.int32)
        part = slashes[pieces] - (slashes - slash)[np.flatnonzero(starts)][word]  # 0: v, 1: vt, 2: vn
        if (part > 2).any():
            raise self.source.fail(
                "f: expected at most 3 indices in a corner", offset + int(pieces[np.argmax(part > 2)])
            )
        found: list[NDArray[np.int64]] = []
        for k in range(3):
            index = np.full(int(corners.sum()), -1, np.int64)
            here = part == k
            absolute = indices[here]
            relative = np.repeat(before[k], corners)[word[here]] + absolute
            index[word[here]] = np.where(absolute > 0, absolute - 1, relative)
            if (index[word[here]] < 0).any():
                at = int(pieces[here][np.argmax(index[word[here]] < 0)])
                raise self.source.fail("f: an index counts back beyond the first one", offset + at)
            self.largest[k] = max(self.largest[k], int(index.max()))
            found.append(index)
        if (found[0] < 0).any():
            raise self.source.fail("f: a corner names no vertex", offset)
        self.faces.append(fan(self.source, found[0], corners))
        has = found[2] >= 0
        self.pairs.append(np.stack([found[0][has], found[2][has]], 1))


def _per_vertex(parts: _Parts, count: int) -> NDArray[np.int64] | None:
    """Which normal each vertex has, or None where that is open."""
    same_count = parts.count[2] == count
    chosen = np.arange(count) if same_count else np.full(count, -1)
    pairs = np.concatenate(parts.pairs) if parts.pairs else np.empty((0, 2), np.int64)
    chosen[pairs[:, 0]] = pairs[:, 1]
    unique = np.array_equal(chosen[pairs[:, 0]], pairs[:, 1])
    return chosen if unique and (chosen >= 0).all() else None


def _refuse_unless_obj(source: Source, text: bytes) -> None:
    """A file without vertices may be empty, but every line of it is still OBJ."""
    for line in re.finditer(rb"[^\n]+", text):
        words = line[0].split(None, 1)
        if words and words[0] not in _STATEMENTS:
            raise source.fail(f"no vertices, and no statement of OBJ: {words[0][:40]!r}", line.start())


def write_obj(geometry: Geometry) -> bytes:
    """OBJ text; a comment names the type of the coordinates and digits suffice to read the same numbers back."""
    faces = np.empty((0, 3), np.int64) if geometry.faces is None else geometry.faces
    xyz = [geometry.positions] if geometry.colors is None else [geometry.positions, geometry.colors]
    text = f"# geom {geometry.positions.dtype}\n" + format_rows(*xyz, lead="v ")
    if geometry.normals is None:
        return (text + format_rows(faces + 1, lead="f ")).encode()
    text += format_rows(geometry.normals, lead="vn ")
    return (text + "".join([f"f {a}//{a} {b}//{b} {c}//{c}\n" for a, b, c in (faces + 1).tolist()])).encode()
