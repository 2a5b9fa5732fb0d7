"""Every file of the data folders: those that are broken, and those that are merely awkward."""

from pathlib import Path

import pytest
import torch

from geom.errors import FileFormatError
from geom.io import load, load_mesh, load_points
from geom.io.formats import _READERS
from geom.meshes import Mesh


def check(path: Path) -> Mesh | None:
    """Load a file and see that what comes is finite and in range."""
    found = load(path)
    x = found.vertices if isinstance(found, Mesh) else found.positions
    assert bool(torch.isfinite(x).all()) and x.is_contiguous()
    for name in ("normals", "colors", "intensities"):
        field = getattr(found, name, None)
        assert field is None or bool(torch.isfinite(field).all())
    if isinstance(found, Mesh):
        assert not found.faces.numel() or (int(found.faces.min()) >= 0 and int(found.faces.max()) < len(x))
        return found
    return None


def test_malformed_files_raise_or_hold_valid_geometry(data: Path) -> None:
    paths = sorted((data / "malformed").iterdir())
    assert paths
    refused = set()
    for path in paths:
        try:
            check(path)
        except FileFormatError as error:
            assert "please report" not in error.reason
            refused.add(path.name)
    assert not [name for name in refused if name.startswith("ok.")]
    lies = ("empty", "trunc", "huge", "nan", "text", "cycle", "oob", "random", "negative", "nodata", "short")
    assert not [p.name for p in paths if any(word in p.name for word in lies) and p.name not in refused]


def test_awkward_meshes_load(data: Path) -> None:
    folders = (data / "meshes", data / "skinning" / "gltf", data / "skinning" / "igl", data / "skinning" / "meshes")
    paths = [p for folder in folders for p in sorted(folder.glob("*")) if p.suffix in _READERS and p.suffix != ".npz"]
    assert paths
    for path in paths:
        mesh = check(path)
        assert torch.equal(load_points(path).positions, load_mesh(path).vertices) if mesh else load_points(path)


@pytest.mark.parametrize("folder", ["meshes", "skinning/gltf"])
def test_scenes_are_where_trimesh_puts_them(data: Path, folder: str) -> None:
    import numpy as np
    import trimesh

    paths = sorted((data / folder).glob("*.glb"))
    if not paths:
        pytest.skip("no .glb in this folder")
    for path in paths:
        scene = trimesh.load_scene(path, process=False, merge_primitives=False)
        parts = [
            trimesh.transform_points(scene.geometry[name].vertices, matrix)
            for matrix, name in (scene.graph[node] for node in scene.graph.nodes_geometry)
        ]
        ours = load_mesh(path).vertices.numpy()
        theirs = np.concatenate(parts)
        assert ours.shape == theirs.shape and np.allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_point_clouds_load(data: Path) -> None:
    paths = [
        *sorted((data / "pointclouds").glob("*.bin")),
        *sorted((data / "registration" / "object").glob("*.p[cl][dy]")),
    ]
    assert paths
    for path in paths:
        check(path)
        assert len(load_points(path).positions)
