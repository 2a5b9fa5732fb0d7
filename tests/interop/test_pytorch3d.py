"""pytorch3d, there and back: the real one where it is installed, or a stand-in with the documented constructors.

pytorch3d has no wheel, so on most machines the stand-in of this file is what the converters meet: classes with the
signatures and getters that pytorch3d's documentation gives, and nothing else.
"""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from geom.errors import ShapeError
from geom.interop import from_pytorch3d, to_pytorch3d
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points

EPS = {torch.float32: 6e-7, torch.float64: 1e-15}


class Transform3d:
    def __init__(self, dtype: Any = torch.float32, device: Any = "cpu", matrix: Any = None) -> None:
        assert matrix.ndim in (2, 3)
        self._matrix = matrix.view(-1, 4, 4) if matrix.is_contiguous() else matrix.reshape(-1, 4, 4)

    def get_matrix(self) -> Any:
        return self._matrix

    def transform_points(self, points: Any) -> Any:
        M = self._matrix
        return points @ M[:, :3, :3] + M[:, 3:, :3]


class Pointclouds:
    def __init__(self, points: Any, normals: Any = None, features: Any = None) -> None:
        self._fields = points, normals, features

    points_list = lambda self: self._fields[0]  # noqa: E731
    normals_list = lambda self: self._fields[1]  # noqa: E731
    features_list = lambda self: self._fields[2]  # noqa: E731


class Meshes:
    def __init__(self, verts: Any, faces: Any, textures: Any = None, *, verts_normals: Any = None) -> None:
        self._fields, self.textures, self._normals = (verts, faces), textures, verts_normals

    verts_list = lambda self: self._fields[0]  # noqa: E731
    faces_list = lambda self: self._fields[1]  # noqa: E731
    has_verts_normals = lambda self: self._normals is not None  # noqa: E731
    verts_normals_list = lambda self: self._normals  # noqa: E731


class TexturesVertex:
    def __init__(self, verts_features: Any) -> None:
        self._features = verts_features

    verts_features_list = lambda self: self._features  # noqa: E731


@pytest.fixture(autouse=True)
def p3d(monkeypatch: pytest.MonkeyPatch) -> Any:
    parts = {
        "transforms": {"Transform3d": Transform3d},
        "structures": {"Pointclouds": Pointclouds, "Meshes": Meshes},
        "renderer": {"TexturesVertex": TexturesVertex},
    }
    if importlib.util.find_spec("pytorch3d") is None:
        whole = ModuleType("pytorch3d")
        monkeypatch.setitem(sys.modules, "pytorch3d", whole)
        for name, classes in parts.items():
            part = ModuleType(f"pytorch3d.{name}")
            part.__dict__.update(classes)
            monkeypatch.setitem(sys.modules, part.__name__, part)
    imported = {name: importlib.import_module(f"pytorch3d.{name}") for name in parts}
    return SimpleNamespace(**imported)


def test_motions(p3d: Any, rigids: Rigid) -> None:
    there = to_pytorch3d(rigids)
    assert isinstance(there, p3d.transforms.Transform3d)
    x = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0)).to(rigids.translation)
    tolerance = 16 * EPS[x.dtype]
    assert (there.transform_points(x) - rigids.apply(x)).abs().max() < tolerance
    back = from_pytorch3d(there)
    assert isinstance(back, Rigid) and torch.equal(back.translation, rigids.translation)
    assert (back.to_matrix() - rigids.to_matrix()).abs().max() < tolerance
    one = from_pytorch3d(to_pytorch3d(rigids[0]))
    assert isinstance(one, Rigid) and one.translation.shape == (1, 3)


def test_clouds(p3d: Any, cloud: Points) -> None:
    batch = Points(cloud.positions, cloud.normals, cloud.colors, cloud.intensities, torch.tensor([0, 4, 4, 9]))
    there = to_pytorch3d(batch)
    assert isinstance(there, p3d.structures.Pointclouds) and [len(x) for x in there.points_list()] == [4, 0, 5]
    back = from_pytorch3d(there)
    assert isinstance(back, Points) and len(back) == 3 and torch.equal(back.offsets, batch.offsets)
    assert torch.equal(back.positions, cloud.positions) and torch.equal(back.normals, cloud.normals)
    assert torch.equal(back.colors, cloud.colors) and back.intensities is None
    bare = from_pytorch3d(to_pytorch3d(Points(cloud.positions)))
    assert isinstance(bare, Points) and bare.normals is None and bare.colors is None and bare.offsets.tolist() == [0, 9]


def test_features_that_are_no_colours_stay_behind(p3d: Any, cloud: Points) -> None:
    there = p3d.structures.Pointclouds(
        points=[cloud.positions], features=[torch.ones(9, 5, dtype=cloud.positions.dtype)]
    )
    back = from_pytorch3d(there)
    assert isinstance(back, Points) and back.colors is None
    none = from_pytorch3d(Pointclouds(points=[]))
    assert isinstance(none, Points) and len(none) == 0


def test_meshes(p3d: Any, mesh: Mesh) -> None:
    other = Mesh(mesh.vertices[:3], mesh.faces[:1], mesh.normals[:3], mesh.colors[:3])
    there = to_pytorch3d([mesh, other])
    assert isinstance(there, p3d.structures.Meshes)
    back = from_pytorch3d(there)
    assert isinstance(back, list)
    for want, got in zip((mesh, other), back, strict=True):
        for name in ("vertices", "faces", "normals", "colors"):
            assert torch.equal(getattr(want, name), getattr(got, name)), name
    (bare,) = from_pytorch3d(to_pytorch3d(Mesh(mesh.vertices, mesh.faces)))
    assert bare.normals is None and bare.colors is None


def test_what_has_no_counterpart_is_refused(mesh: Mesh) -> None:
    with pytest.raises(ShapeError, match=r"batch shape \(\) or \(N,\), got \(2, 3\)"):
        to_pytorch3d(Rigid.identity(2, 3))
    for wrong in (3, "mesh", [mesh, 3]):
        with pytest.raises(ShapeError, match="expected a Rigid, a Points, a Mesh or several"):
            to_pytorch3d(wrong)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="normals: expected all meshes of a batch to have them or none, got 1 of 2"):
        to_pytorch3d([mesh, Mesh(mesh.vertices, mesh.faces, colors=mesh.colors)])
    with pytest.raises(ShapeError, match="expected a pytorch3d Transform3d"):
        from_pytorch3d(3)
    with pytest.raises(ShapeError, match="rigid motion"):
        from_pytorch3d(Transform3d(matrix=torch.diag(torch.tensor([2.0, 2, 2, 1]))))
