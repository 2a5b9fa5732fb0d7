"""Output files: checked before the work starts, written when all of it is done."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from geom.errors import GeomError
from geom.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Contents", "OutputError", "check_outputs", "write_outputs"]

Contents: TypeAlias = "dict[Path, str | npt.NDArray[np.uint8]]"


class OutputError(GeomError):
    """An output file that could not be written, or must not be."""


def check_outputs(outputs: Iterable[Path | None], *, inputs: Iterable[Path] = ()) -> None:
    """Raise OutputError unless each output (None: not asked for) can be written and is no input, nor another output."""
    taken = {path.resolve(): "an input" for path in inputs}
    for path in filter(None, outputs):
        folder = path.resolve().parent
        if not folder.is_dir():
            raise OutputError(f"{path}: expected a folder to write into, {folder} is not one")
        if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK) or not os.access(folder, os.W_OK):
            raise OutputError(f"{path}: expected a file that can be written, got {_state(path)}")
        if path.suffix.lower() in (".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"):
            raise OutputError(f"{path}: expected a .png for a picture, got {path.suffix}")
        if path.resolve() in taken:
            raise OutputError(f"{path}: expected a file of its own to write, got {taken[path.resolve()]}")
        taken[path.resolve()] = "another output"


def write_outputs(contents: Contents) -> None:
    """Write the files, each whole or not at all, and name them on stdout; an array (H, W, 3) uint8 becomes a PNG."""
    for path, data in contents.items():
        if isinstance(data, str):
            write_atomically(path, data)
        else:
            from geom.viz import save_png

            save_png(path, data)
        print(f"wrote {path}")


def _state(path: Path) -> str:
    return "a folder" if path.is_dir() else "one without permission"
