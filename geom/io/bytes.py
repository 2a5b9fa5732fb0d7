"""A file as checked bytes: every reader asks here before it looks, so that no header is believed on its word."""

import os
import stat
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from geom.errors import FileFormatError

__all__ = ["Source", "open_source"]

_ALLOWANCE = 24 << 20


@dataclass(frozen=True, eq=False)
class Source:
    """The bytes of one file and where they came from.

    Fields: `path`; `data`, the whole file.
    """

    path: str
    data: bytes

    def fail(self, reason: str, offset: int | None = None) -> FileFormatError:
        """The error to raise: `raise source.fail("truncated", 84)`."""
        return FileFormatError(self.path, reason, offset=offset)

    def need(self, offset: int, size: int, what: str) -> None:
        """Raise unless `size` bytes stand at `offset`."""
        have = max(len(self.data) - offset, 0)
        if offset < 0 or size < 0 or size > have:
            raise self.fail(f"{what}: expected {size} bytes, the file holds {have} there", offset)

    def array(self, dtype: DTypeLike, shape: tuple[int, ...], offset: int, what: str) -> NDArray[Any]:
        """A read-only view of the file as an array; nothing is allocated. Raises: FileFormatError."""
        dtype, count = np.dtype(dtype), 1
        for n in shape:  # Python integers: a product of lies may not wrap around
            count *= n
        self.need(offset, count * dtype.itemsize, what)
        return np.frombuffer(self.data, dtype, count, offset if count else 0).reshape(shape)

    def integer(self, offset: int, size: int, order: Literal["little", "big"], what: str) -> int:
        """The unsigned integer of `size` bytes at `offset`."""
        self.need(offset, size, what)
        return int.from_bytes(self.data[offset : offset + size], order)

    def budget(self, size: int, what: str) -> None:
        """Raise where what is unpacked or instanced would take far more memory than the file: 8 times and 24 MiB."""
        allowed = 8 * len(self.data) + _ALLOWANCE
        if size > allowed:
            raise self.fail(
                f"{what}: {size} bytes of memory for a file of {len(self.data)} bytes, at most {allowed} are given"
            )

    def padding(self, offset: int, what: str) -> None:
        """Raise unless all bytes from `offset` on are zero or white."""
        rest = self.data[offset:].lstrip(b"\0 \t\r\n")
        if rest:
            raise self.fail(f"{what}: {len(rest)} bytes more than the header declares", len(self.data) - len(rest))


def open_source(path: str | os.PathLike[str]) -> Source:
    """Read a whole regular file. Raises: FileFormatError where there is none, it is empty or cannot be read."""
    name = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):  # a directory, or a pipe that would never end
            raise FileFormatError(name, "not a regular file")
        with open(name, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise FileFormatError(name, "no such file") from error
    except (OSError, UnicodeError) as error:
        raise FileFormatError(name, f"cannot be read: {error}") from error
    except ValueError as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(name, f"not a file name: {error}") from error
    if not data:
        raise FileFormatError(name, "the file is empty: 0 bytes", offset=0)
    return Source(name, data)
