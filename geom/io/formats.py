"""Loading and saving: which reader or writer a file's suffix names."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch

from geom.checks import describe
from geom.errors import FileFormatError, GeomError, ShapeError
from geom.files import write_atomically
from geom.io.arrays import read_bin, read_npy, read_npz, write_bin, write_npy, write_npz
from geom.io.bytes import Source, open_source
from geom.io.geometry import Geometry, from_mesh, from_points, to_mesh, to_points
from geom.io.gltf import read_gltf, write_glb
from geom.io.obj import read_obj, write_obj
from geom.io.off import read_off, write_off
from geom.io.pcd import read_pcd, write_pcd
from geom.io.ply import read_ply, write_ply
from geom.io.stl import read_stl, write_stl
from geom.io.text import read_text, write_text
from geom.io.usd import read_usd
from geom.meshes import Mesh
from geom.points import Points

__all__ = ["load", "load_mesh", "load_points", "save_mesh", "save_points"]

Reader = Callable[[Source], Geometry]
Writer = Callable[[Geometry], bytes]
Path = str | os.PathLike[str]
T = TypeVar("T")

_READERS: dict[str, Reader] = {
    ".ply": read_ply,
    ".obj": read_obj,
    ".stl": read_stl,
    ".off": read_off,
    ".pcd": read_pcd,
    **dict.fromkeys((".xyz", ".txt", ".csv", ".asc"), read_text),
    ".npz": read_npz,
    ".npy": read_npy,
    ".bin": read_bin,
    **dict.fromkeys((".glb", ".gltf"), read_gltf),
    **dict.fromkeys((".usd", ".usda", ".usdc", ".usdz"), read_usd),
}
_POINT_WRITERS: dict[str, Writer] = {
    ".ply": write_ply,
    ".pcd": write_pcd,
    ".xyz": write_text,
    ".npz": write_npz,
    ".npy": write_npy,
    ".bin": write_bin,
}
_MESH_WRITERS: dict[str, Writer] = {
    ".ply": write_ply,
    ".obj": write_obj,
    ".stl": write_stl,
    ".off": write_off,
    ".npz": write_npz,
    ".glb": write_glb,
}


def load(path: Path) -> Points | Mesh:
    """Read a file as what it declares: a `Mesh` where its format or header has faces, even none of them, else `Points`.

    Formats: PLY, OBJ, STL, OFF, PCD, XYZ/TXT/ASC/CSV, NPZ, NPY, KITTI BIN, GLB/glTF, USD (extra `mesh`). OBJ, STL,
    OFF, glTF and USD are always meshes; PLY and NPZ are where they hold faces. Polygons become fans of triangles;
    vertices are never merged or reordered; glTF and USD scenes are joined in world coordinates.

    Returns: on the CPU. dtype float64 where the file stores doubles; a text format without types gives float32, or
    float64 where rounding would move a coordinate by more than 1e-6 of the longest side of the bounding box.

    Raises: FileFormatError for whatever is no valid file of its format: NaN or inf, indices out of range, counts that
    do not match, an unknown suffix, no file at all; MissingDependencyError for USD without usd-core.

    >>> import tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "a.ply")
    ...     save_points(Points(torch.rand(5, 3)), path)
    ...     load(path).positions.shape
    torch.Size([5, 3])
    """
    return _read(
        path, lambda source, geometry: (to_points if geometry.faces is None else to_mesh)(source, geometry, None)
    )


def load_points(path: Path, *, dtype: torch.dtype | None = None) -> Points:
    """Read the points of any file that `load` reads; of a mesh its vertices, with normals, colours and intensities.

    Args: dtype, float32, float64 or None for the file's own, as in `load`.
    Raises: FileFormatError, ShapeError, MissingDependencyError; in an organised PCD, NaN rows are dropped instead.
    """
    _check_dtype(dtype)
    return _read(path, lambda source, geometry: to_points(source, geometry, dtype))


def load_mesh(path: Path, *, dtype: torch.dtype | None = None) -> Mesh:
    """Read a mesh from any file that `load` reads; intensities are left out.

    Args: dtype, float32, float64 or None for the file's own, as in `load`.
    Raises: FileFormatError, also where the file declares no faces; ShapeError; MissingDependencyError.
    """
    _check_dtype(dtype)
    return _read(path, lambda source, geometry: to_mesh(source, geometry, dtype))


def save_points(points: Points, path: Path) -> None:
    """Write points, from any device, as the suffix says; a failed write leaves the old file.

    | suffix | positions | normals | colours | intensities | offsets |
    |---|---|---|---|---|---|
    | .ply (binary) | exact | exact | exact | exact | refused |
    | .pcd (binary) | exact | exact | rounded to 8 bits | exact | refused |
    | .xyz (text) | exact | exact | exact | exact | refused |
    | .npz | exact | exact | exact | exact | exact |
    | .npy | exact | refused | refused | exact | refused |
    | .bin (KITTI) | rounded to float32 | refused | refused | exact, 0 where absent | refused |

    "Exact" is bit for bit through `load_points`. Offsets of a single cloud say nothing and are left out.

    Raises: ShapeError where something is refused or not finite; FileFormatError for an unknown suffix; OSError where
    the folder cannot be written to.
    """
    write = _writer(path, _POINT_WRITERS, "points")
    geometry = from_points(points)
    if len(points) != 1 and write is not write_npz:
        raise ShapeError(f"offsets: only NPZ holds a batch, expected one cloud, got {len(points)}")
    write_atomically(path, write(geometry))


def save_mesh(mesh: Mesh, path: Path) -> None:
    """Write a mesh, from any device, as the suffix says; a failed write leaves the old file.

    | suffix | vertices | faces | normals | colours |
    |---|---|---|---|---|
    | .ply (binary), .npz | exact | exact | exact | exact |
    | .obj, .off (text) | exact | exact | exact | exact |
    | .stl (binary) | rounded to float32, three per face | as 0 1 2, 3 4 5, ... | recomputed per facet | refused |
    | .glb | rounded to float32 | exact | rounded to float32 | exact |

    "Exact" is bit for bit through `load_mesh`.

    Raises: ShapeError where something is refused or not finite; FileFormatError for an unknown suffix; OSError where
    the folder cannot be written to.
    """
    write = _writer(path, _MESH_WRITERS, "meshes")
    write_atomically(path, write(from_mesh(mesh)))


def _read(path: Path, make: Callable[[Source, Geometry], T]) -> T:
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in _READERS and not os.path.isdir(path):
        raise FileFormatError(path, f"unknown suffix {suffix!r}, expected one of {', '.join(_READERS)}")
    source = open_source(path)
    try:
        return make(source, _READERS[suffix](source))
    except GeomError:
        raise
    except Exception as error:  # the promise is FileFormatError for any bytes; the tests fail where this is needed
        raise source.fail(f"the reader fails on it, please report this: {error!r}") from error


def _writer(path: Path, writers: dict[str, Writer], what: str) -> Writer:
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in writers:
        raise FileFormatError(path, f"unknown suffix {suffix!r}: {what} are written as {', '.join(writers)}")
    return writers[suffix]


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.float32, torch.float64):
        raise ShapeError(f"dtype: expected torch.float32, torch.float64 or None, got {describe(dtype)} {dtype}")
