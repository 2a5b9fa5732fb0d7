"""Values to convert: what each field of them may be, and singular rotations among the random ones."""

import pytest
import torch

from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points


def unit(*batch: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


@pytest.fixture
def quats(dtype: torch.dtype) -> torch.Tensor:
    """Unit quaternions (12, 4): random, both signs, the identity, half turns."""
    half = torch.eye(4, dtype=torch.float64)
    return torch.cat([unit(6, 4), half, -half[:2]]).to(dtype)


@pytest.fixture
def rigids(quats: torch.Tensor) -> Rigid:
    """Motions of batch shape (12,), each with w >= 0 or w < 0 as it comes."""
    draw = torch.Generator().manual_seed(1)
    return Rigid(quats, torch.randn(12, 3, generator=draw, dtype=torch.float64).to(quats.dtype))


@pytest.fixture
def cloud(dtype: torch.dtype) -> Points:
    """Nine points with everything; colours that eight bits hold."""
    draw = torch.Generator().manual_seed(2)
    colors = torch.randint(256, (9, 3), generator=draw) / 255
    return Points(unit(9, 3).to(dtype) * 7, unit(9, 3, seed=3).to(dtype), colors, torch.rand(9, generator=draw))


@pytest.fixture
def mesh(cloud: Points) -> Mesh:
    """Nine vertices, five triangles, some of them equal; two vertices in the same place."""
    vertices = cloud.positions.clone()
    vertices[8] = vertices[0]
    faces = torch.tensor([[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8], [0, 1, 2]])
    return Mesh(vertices, faces, cloud.normals, cloud.colors)
