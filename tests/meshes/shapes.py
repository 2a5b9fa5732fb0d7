"""Surfaces with known answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from geom.io import load_mesh
from geom.meshes import Mesh

REAL = ("meshes/*.ply", "meshes/*.obj", "skinning/igl/*.off", "skinning/meshes/*.obj")


def from_trimesh(x: trimesh.Trimesh, dtype: torch.dtype = torch.float64) -> Mesh:
    return Mesh(torch.tensor(np.array(x.vertices), dtype=dtype), torch.tensor(np.array(x.faces), dtype=torch.int64))


def to_trimesh(x: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(x.vertices.detach().double().numpy(), x.faces.numpy(), process=False)


def sphere(level: int = 3, dtype: torch.dtype = torch.float64) -> Mesh:
    return from_trimesh(trimesh.creation.icosphere(level), dtype)


def box(sides: tuple[float, float, float] = (1.0, 2.0, 3.0), dtype: torch.dtype = torch.float64) -> Mesh:
    return from_trimesh(trimesh.creation.box(sides), dtype)


def torus(dtype: torch.dtype = torch.float64) -> Mesh:
    return from_trimesh(trimesh.creation.torus(1.0, 0.4, major_sections=24, minor_sections=12), dtype)


def tetrahedron(dtype: torch.dtype = torch.float64) -> Mesh:
    corners = torch.cat([torch.zeros(1, 3, dtype=dtype), torch.eye(3, dtype=dtype)])
    return Mesh(corners, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def bumpy(dtype: torch.dtype = torch.float64) -> Mesh:
    """A sphere of 42 vertices, all a little off: no two lengths alike."""
    ball = sphere(1)
    noise = torch.randn(ball.vertices.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Mesh((ball.vertices + 0.05 * noise).to(dtype), ball.faces)


def flat(dtype: torch.dtype = torch.float64) -> Mesh:
    """A good face, one with its corners on a line, one with two at the same place, one that is a point."""
    places = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    return Mesh(torch.tensor(places, dtype=dtype), torch.tensor([[0, 1, 2], [0, 1, 3], [1, 4, 2], [0, 5, 6]]))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def around(mesh: Mesh, count: int) -> Tensor:
    """Places in the bounding box and somewhat beyond."""
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    return low + (high - low) * (1.4 * random(count, 3, dtype=mesh.vertices.dtype) - 0.2)


def closed(data: Path) -> list[Mesh]:
    """The real meshes without a border, float64."""
    found = [load_mesh(path) for pattern in REAL for path in sorted(data.glob(pattern)) if path.stat().st_size > 4096]
    meshes = [Mesh(x.vertices.double(), x.faces) for x in found if len(x.faces) > 100]
    meshes = [x for x in meshes if to_trimesh(x).is_watertight]
    if not meshes:
        pytest.skip("no closed meshes in the data folder")
    return meshes
