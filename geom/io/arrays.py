"""NumPy arrays and KITTI scans: NPY, NPZ and BIN, their headers read here and no pickle ever opened."""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from geom.errors import FileFormatError, ShapeError
from geom.io.bytes import Source
from geom.io.faces import fan
from geom.io.geometry import Geometry, checked
from geom.io.text import columns_to_geometry

__all__ = ["read_arrays", "read_bin", "read_npy", "read_npz", "write_bin", "write_npy", "write_npz"]

_POSITIONS = ("positions", "vertices", "points", "xyz")
_OTHERS = ("faces", "normals", "colors", "intensities", "offsets")
_HEADER = 1 << 16  # bytes of header at most; NumPy itself writes 118


def _npy_header(source: Source, head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Type, shape, Fortran order and where the numbers begin. Raises: FileFormatError."""
    if head[:6] != b"\x93NUMPY" or head[6:7] not in (b"\1", b"\2", b"\3"):
        raise source.fail("expected the header of a .npy array", 0)
    wide = 2 if head[6] == 1 else 4
    start = 8 + wide
    stop = start + int.from_bytes(head[8:start], "little")
    if stop > len(head):
        raise source.fail("the header of the array is cut off or longer than 65536 bytes", 8)
    text = head[start:stop].decode("latin-1")
    kind = re.search(r"'descr':\s*'([<>|=]?[fiu][1248])'", text)
    order = re.search(r"'fortran_order':\s*(True|False)", text)
    shape = re.search(r"'shape':\s*\(([0-9L, ]*)\)", text)
    sizes = [] if shape is None else [n.strip().removesuffix("L") for n in shape[1].removesuffix(",").split(",")]
    sizes = [] if sizes == [""] else sizes
    if re.search(r"'descr':\s*'\|O", text):
        raise source.fail(
            "an array of pickled objects, which are not read; where they can be, save it again as plain numbers, "
            "`.toarray()` of a sparse matrix, `np.array(x)` of others",
            start,
        )
    plain = shape is not None and all(re.fullmatch("[0-9]{1,18}", n) for n in sizes)
    if kind is None or order is None or not plain or kind[1][-2:] == "f1":
        raise source.fail(f"expected numbers, plain ones in an array, got {text.strip()[:120]}", start)
    return np.dtype(kind[1]), tuple(map(int, sizes)), order[1] == "True", stop


def _sized(source: Source, dtype: np.dtype[Any], shape: tuple[int, ...], have: int) -> int:
    """Bytes an array needs. Raises: FileFormatError unless these are all there are."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    if size != have or len(shape) > 8:
        raise source.fail(f"an array {str(shape)[:80]} of {dtype} takes {size} bytes, there are {have}")
    return size


_WIDEST = 32  # columns; a (3, N) array would pass for three points


def read_npy(source: Source) -> Geometry:
    """Read a .npy array (N, K), K >= 3, of floats or integers; `columns_to_geometry` says what the columns are."""
    dtype, shape, fortran, start = _npy_header(source, source.data[:_HEADER])
    _sized(source, dtype, shape, len(source.data) - start)
    if len(shape) != 2 or not 3 <= shape[1] <= _WIDEST:
        turned = "; transposed?" if len(shape) == 2 and shape[0] == 3 < shape[1] else ""
        raise source.fail(f"expected an array (N, 3) to (N, {_WIDEST}), got shape {shape}{turned}", start)
    flat = np.frombuffer(source.data, dtype, offset=start)
    rows = flat.reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "f" and not np.isfinite(rows).all():
        raise source.fail("expected finite numbers, got NaN or inf")
    return columns_to_geometry(source, rows, rows[:, :3])


def read_npz(source: Source) -> Geometry:
    """Read a .npz archive.

    Arrays: `positions`, `vertices`, `points` or `xyz` (N, 3); `faces` (F, K) of polygons with K >= 3 corners, which
    make it a mesh; `normals` (N, 3); `colors` (N, 3); `intensities` (N,); `offsets` (B+1,). Others are not opened.

    Raises: FileFormatError, also where the archive unpacks to far more than its size.
    """
    arrays = read_arrays(source, _POSITIONS + _OTHERS, widened=True)
    name = next((n for n in _POSITIONS if n in arrays), None)
    if name is None:
        raise source.fail(f"expected an array named {', '.join(_POSITIONS)}")
    faces, xyz = arrays.get("faces"), arrays[name]
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise source.fail(f"{name}: expected shape (N, 3), got {xyz.shape}")
    if faces is not None:
        if faces.ndim != 2 or (faces.shape[1] < 3 and len(faces)):
            raise source.fail(f"faces: expected shape (F, 3), got {faces.shape}")
        faces = fan(source, faces.reshape(-1), np.full(len(faces), faces.shape[1]))
    others = {n: arrays[n] for n in _OTHERS if n in arrays and n != "faces"}
    return checked(source, xyz, faces=faces, **others)


def read_arrays(
    source: Source, names: Sequence[str] | None = None, *, widened: bool = False
) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz archive by name: of `names` those that are there, others not opened; all if None.

    Args: widened, whether float64 is made of them, which counts as their memory.
    Raises: FileFormatError for what is no archive of plain numbers, or unpacks to far more than its size.
    """
    try:
        return _unpack(source, names, widened)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError, LookupError) as error:
        raise source.fail(f"not a readable zip archive: {error}") from error
    except FileFormatError:
        raise
    except (ValueError, OverflowError, struct.error) as error:  # of zipfile, on names and dates
        raise source.fail(f"not a readable zip archive: {error}") from error


def _unpack(source: Source, wanted_names: Sequence[str] | None, widened: bool) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(source.data)) as archive:
        every = [m for m in archive.infolist() if not m.is_dir()]
        wanted = [m for m in every if wanted_names is None or m.filename.removesuffix(".npy") in wanted_names]
        names = [m.filename for m in wanted]
        if len(set(names)) < len(names):
            raise source.fail("an array stands there twice")
        unpacked = 0
        for member in wanted:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise source.fail(f"{member.filename}: expected it stored or deflated")
            if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
                raise source.fail(
                    f"{member.filename}: stored in {member.compress_size} bytes, {member.file_size} declared"
                )
            with archive.open(member) as file:
                unpacked += member.file_size if member.compress_type == zipfile.ZIP_DEFLATED else 0
                name = member.filename.removesuffix(".npy")
                try:
                    arrays[name] = _array(source, file, member.file_size, unpacked, widened)
                except FileFormatError as error:
                    raise source.fail(f"{name}: {error.reason}") from error
    return arrays


def _array(source: Source, file: IO[bytes], size: int, unpacked: int, widened: bool) -> NDArray[Any]:
    """One array of `size` bytes, header included; memory is taken only after all numbers agree."""
    head = file.read(10)
    if len(head) == 10:
        rest = int.from_bytes(head[8:10], "little") if head[6] == 1 else 2
        head += file.read(rest)
        if head[6] != 1 and len(head) == 12:
            head += file.read(min(int.from_bytes(head[8:12], "little"), _HEADER))
    dtype, shape, fortran, start = _npy_header(source, head)
    _sized(source, dtype, shape, size - start)
    source.budget(unpacked * ({8: 1, 4: 3}.get(dtype.itemsize, 9) if widened else 1), "compressed arrays")
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    view = array.reshape(-1, order="A").view(np.uint8)
    at = 0
    while at < len(view):
        piece = file.read(min(1 << 20, len(view) - at))
        if not piece:
            raise source.fail("an array of the archive is cut off")
        view[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    file.read(1)  # the end, where the checksum is compared
    return array


def read_bin(source: Source) -> Geometry:
    """Read a KITTI scan: float32 little endian x, y, z, intensity, and nothing else."""
    if len(source.data) % 16:
        raise source.fail(f"expected rows of 16 bytes (x, y, z, intensity), got {len(source.data)} bytes")
    rows = np.frombuffer(source.data, "<f4").reshape(-1, 4)
    return checked(source, rows[:, :3], intensities=rows[:, 3])


def write_npz(geometry: Geometry) -> bytes:
    """NPZ, not compressed; holds everything, offsets too."""
    arrays = {"positions" if geometry.faces is None else "vertices": geometry.positions}
    arrays |= {n: a for n in _OTHERS if (a := getattr(geometry, n)) is not None}
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def write_npy(geometry: Geometry) -> bytes:
    """NPY (N, 3), or (N, 4) with intensities. Raises: ShapeError where there are normals or colours."""
    _refuse_extras(geometry, "NPY")
    rows = geometry.positions
    if geometry.intensities is not None:
        rows = np.concatenate([rows, geometry.intensities[:, None].astype(rows.dtype)], 1)
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    return file.getvalue()


def write_bin(geometry: Geometry) -> bytes:
    """KITTI BIN: float32; intensities that are absent become 0.

    Raises: ShapeError where there are normals or colours, no points at all, or coordinates beyond float32.
    """
    _refuse_extras(geometry, "BIN")
    if not len(geometry.positions):
        raise ShapeError("positions: BIN has no header, so that no points would be an empty file; expected 1 or more")
    rows = np.zeros((len(geometry.positions), 4), "<f4")
    with np.errstate(over="ignore"):
        rows[:, :3] = geometry.positions
    if geometry.intensities is not None:
        rows[:, 3] = geometry.intensities
    if not np.isfinite(rows).all():
        raise ShapeError("positions: BIN stores float32, expected coordinates below 3.4e38")
    return rows.tobytes()


def _refuse_extras(geometry: Geometry, name: str) -> None:
    for extra in ("normals", "colors"):
        if getattr(geometry, extra) is not None:
            raise ShapeError(
                f"{extra}: {name} holds none, expected points without them (PLY, PCD, XYZ and NPZ hold them)"
            )
