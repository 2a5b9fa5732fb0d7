"""What stands under GEOM_DATA and is measured on: scans and closed surfaces, by the names of their files."""

import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import ROOT
from geom.errors import FileFormatError, GeomError
from geom.io import load_mesh, load_points

__all__ = ["choose", "data_folder", "read_scans", "read_surfaces"]

_FACES = 500  # of the least surface that is worth measuring


def data_folder() -> Path:
    return Path(os.environ.get("GEOM_DATA", ROOT.parent / "shared" / "data"))


def choose(known: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """The names. Raises: GeomError for one that is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise GeomError(f"inputs: expected names among {', '.join(known)}; got {name}")
    return list(names)


def read_scans() -> dict[str, NDArray[np.float32]]:
    """Positions (N, 3), metres, of whole LiDAR frames; the street that geom ships where there is none."""
    files = sorted((data_folder() / "pointclouds").glob("*.bin"))
    found = {path.stem: load_points(path, dtype=torch.float32).positions.numpy() for path in files}
    if not found:
        with resources.as_file(resources.files("geom.assets") / "scan_street.npz") as path, np.load(path) as arrays:
            found["scan_street"] = arrays["src"]
    return found


def read_surfaces() -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Vertices and faces of the closed surfaces among the meshes, from the least to the largest."""
    import trimesh

    found: dict[str, Any] = {}
    for path in sorted((data_folder() / "meshes").glob("*")):
        try:
            mesh = load_mesh(path, dtype=torch.float64)
        except FileFormatError:  # a point cloud
            continue
        vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
        if len(faces) >= _FACES and trimesh.Trimesh(vertices, faces, process=False).is_volume:
            found[path.stem] = vertices, faces
    return dict(sorted(found.items(), key=lambda item: len(item[1][1])))
