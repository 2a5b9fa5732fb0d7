"""The errors of the house. Every message says what was expected and what came."""

from functools import partial
from os import PathLike, fspath

__all__ = ["GeomError", "ShapeError", "FileFormatError", "MissingDependencyError", "ConvergenceWarning"]


class GeomError(Exception):
    """Base of every error that `geom` raises on purpose."""


class ShapeError(GeomError, ValueError):
    """A value has the wrong shape, dtype, size or range."""


class FileFormatError(GeomError, ValueError):
    """A file cannot be read as what it claims to be.

    Attributes: `path` (str), `offset` (of the byte, or None where no place can be named), `reason` (str).
    """

    def __init__(self, path: str | PathLike[str], reason: str, *, offset: int | None = None) -> None:
        self.path, self.reason, self.offset = fspath(path), reason, offset
        where = "" if offset is None else f" at byte {offset}"
        super().__init__(f"{self.path}{where}: {reason}")

    def __reduce__(self) -> tuple[partial["FileFormatError"], tuple[()]]:  # keyword-only arguments do not pickle
        return partial(FileFormatError, self.path, self.reason, offset=self.offset), ()


class MissingDependencyError(GeomError, ImportError):
    """An optional package is needed and absent; the message holds the line that installs it."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        self._arguments = {"package": package, "extra": extra, "purpose": purpose}
        super().__init__(f"{purpose} needs {package}: pip install 'geom-toolkit[{extra}]'")

    def __reduce__(self) -> tuple[partial["MissingDependencyError"], tuple[()]]:
        return partial(MissingDependencyError, **self._arguments), ()


class ConvergenceWarning(UserWarning):
    """An iterative method stopped at its iteration limit; the result is the best it had."""
