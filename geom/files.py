"""Writing files so that a failure leaves the old one untouched."""

import os
import stat
import tempfile

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write the whole file or nothing: a temporary file beside it, then one rename. Text is written as UTF-8.

    Raises: OSError as `open` would; the old file, if any, is then unchanged.
    """
    path = os.path.abspath(os.path.realpath(path))
    try:
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".geom-")
    except OSError as error:  # it names the temporary file, which the user never asked for
        raise type(error)(error.errno, error.strerror, path) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.chmod(temporary, _mode(path))  # mkstemp's 0600 would surprise whoever shares the folder
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _mode(path: str) -> int:
    """The permissions a file has, or those `open` would give a new one."""
    if os.path.exists(path):
        return stat.S_IMODE(os.stat(path).st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
