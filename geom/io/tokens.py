"""Numbers in text: strict, vectorised, and the place of the first one that is none."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.io.bytes import Source

__all__ = [
    "blocks",
    "declared_dtype",
    "first_words",
    "format_rows",
    "read_rows",
    "row_offset",
    "table",
    "unix_lines",
    "without_comments",
    "word_starts",
]

_SPACE = np.zeros(256, bool)
_SPACE[list(b" \t\n\r\v\f")] = True
_NUMERIC = _SPACE.copy()
_NUMERIC[list(b"0123456789+-.eEnNaAiIfFtTyY")] = True  # "nan" and "inf" are read here, and refused by who asked
_NUMBER = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_DECLARED = re.compile(rb"^#[ \t]*geom[ \t]+(float32|float64)[ \t]*\r?$", re.MULTILINE)

Bytes = NDArray[np.uint8]


def blocks(source: Source, text: bytes) -> Iterator[tuple[int, int]]:
    """Cut a text at line ends into pieces of about 1 MiB, so that masks and words need little memory.

    Raises: FileFormatError where a line is longer than 4 MiB.
    """
    start = 0
    while start < len(text):
        stop = text.find(b"\n", min(start + (1 << 20), len(text))) + 1 or len(text)
        if stop - start > 5 << 20:
            raise source.fail("expected lines of text, got one of more than 4 MiB")
        yield start, stop
        start = stop


def unix_lines(text: bytes) -> bytes:
    """The text with lone carriage returns as line ends, no byte moved."""
    return text.replace(b"\r", b"\n") if b"\r" in text and b"\n" not in text else text


def without_comments(source: Source, text: bytes, *, slashes: bool = False) -> bytes:
    """The text with blanks from each # (or //) to the end of its line, no byte moved."""
    if b"#" not in text and not (slashes and b"//" in text):
        return text
    parts = []
    for start, stop in blocks(source, text):
        buffer = np.frombuffer(text, np.uint8, stop - start, start)
        mark = buffer == ord("#")
        if slashes:
            mark[:-1] |= (buffer[:-1] == ord("/")) & (buffer[1:] == ord("/"))
        place = np.arange(1, len(buffer) + 1, dtype=np.int32)
        comment = np.maximum.accumulate(place * mark) > np.maximum.accumulate(place * (buffer == 10))
        parts.append(np.where(comment, np.uint8(32), buffer).tobytes())
    return b"".join(parts)


def word_starts(text: Bytes) -> NDArray[np.bool_]:
    """True where a word begins."""
    white = _SPACE[text]
    starts = ~white
    starts[1:] &= white[:-1]
    return starts


def first_words(text: Bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each line that is not blank has its first word, and how many words it has."""
    words = np.flatnonzero(word_starts(text))
    if not words.size:
        return words, words
    line = np.searchsorted(np.flatnonzero(text == 10), words)
    first = np.flatnonzero(np.diff(line, prepend=-1))
    return words[first], np.diff(first, append=len(words))


def read_rows(source: Source, text: bytes, offset: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """All numbers of a text, and how many stand in each line that is not blank.

    Args: text; offset, where it begins in the file (for the error only).
    Raises: FileFormatError at the first word that is no decimal number; "nan" and "inf" are numbers here.
    """
    values, used = np.empty(0), 0  # grows in place: a list of pieces would be in memory twice when joined
    counts: list[NDArray[np.int32]] = []
    for start, stop in blocks(source, text):
        piece = text[start:stop]
        buffer = np.frombuffer(piece, np.uint8)
        if not _NUMERIC[buffer].all():
            _refuse(source, piece, offset + start)
        count = first_words(buffer)[1].astype(np.int32)
        total = int(count.sum())
        if not total:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # numpy < 2.3 warns where later ones raise
                numbers = np.fromstring(piece, np.float64, sep=" ")
        except ValueError:
            numbers = np.empty(0)
        if len(numbers) != total:  # stopped early, or cut a word such as 1.5.2 in two
            _refuse(source, piece, offset + start)
        if used + total > len(values):
            guess = int((used + total) * (len(text) / stop) * 1.01)  # as dense as so far
            values.resize(max(used + total, min(guess, used + total + (len(text) - stop) // 2 + 1)), refcheck=False)
        values[used : used + total] = numbers
        used += total
        counts.append(count)
    values.resize(used, refcheck=False)
    return values, np.concatenate(counts) if counts else np.empty(0, np.int32)


def _refuse(source: Source, piece: bytes, offset: int) -> None:
    for word in re.finditer(rb"[^ \t\n\r\v\f]+", piece):
        if not _NUMBER.fullmatch(word[0]):
            raise source.fail(f"expected a number, got {word[0][:40]!r}", offset + word.start())
    raise source.fail("expected numbers", offset)


def row_offset(source: Source, text: bytes, row: int) -> int | None:
    """Where the line `row` begins, counting those that are not blank."""
    for start, stop in blocks(source, text):
        first = first_words(np.frombuffer(text, np.uint8, stop - start, start))[0]
        if row < len(first):
            return start + int(first[row])
        row -= len(first)
    return None


def table(source: Source, text: bytes, offset: int = 0) -> NDArray[np.float64]:
    """Lines of equally many numbers as an array (rows, columns). Raises: FileFormatError at the first odd line."""
    values, counts = read_rows(source, text, offset)
    if not counts.size:
        return np.empty((0, 0))
    odd = np.flatnonzero(counts != counts[0])
    if odd.size:
        at = row_offset(source, text, int(odd[0]))
        raise source.fail(
            f"expected {counts[0]} numbers in every line, got {counts[odd[0]]}", None if at is None else offset + at
        )
    return values.reshape(len(counts), -1)


def declared_dtype(text: bytes) -> str | None:
    """What our own writers say in a comment near the top: "# geom float64"."""
    found = _DECLARED.search(text, 0, 4096)
    return found[1].decode() if found else None


def format_rows(*columns: NDArray[Any], lead: str = "") -> str:
    """Lines of numbers with the fewest digits that read back as the same ones.

    Args: columns, each (N, K) of float32, float64 or integers; lead, what begins each line.
    """
    # str of a numpy scalar is shortest for its own type; a Python float's would print float32 as float64
    words = [list(map(str, c.ravel() if c.dtype == np.float32 else c.ravel().tolist())) for c in columns]
    parts = [words[i][k :: c.shape[1]] for i, c in enumerate(columns) for k in range(c.shape[1])]
    return "".join([f"{lead}{' '.join(row)}\n" for row in zip(*parts, strict=True)])
