"""open3d: clouds, meshes and poses there and back."""

import sys

import numpy as np
import pytest
import torch

from geom.errors import MissingDependencyError, ShapeError
from geom.interop import from_open3d, to_open3d
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points

o3d = pytest.importorskip("open3d")


def test_clouds(cloud: Points) -> None:
    there = to_open3d(cloud)
    assert isinstance(there, o3d.geometry.PointCloud)
    back = from_open3d(there)
    assert isinstance(back, Points)
    assert torch.equal(back.positions, cloud.positions.double()) and back.positions.dtype == torch.float64
    assert torch.equal(back.normals, cloud.normals.double()) and torch.equal(back.colors, cloud.colors)
    assert back.intensities is None and back.offsets is None
    bare = from_open3d(to_open3d(Points(cloud.positions)))
    assert isinstance(bare, Points) and bare.normals is None and bare.colors is None


def test_meshes(mesh: Mesh) -> None:
    there = to_open3d(mesh)
    assert isinstance(there, o3d.geometry.TriangleMesh)
    back = from_open3d(there)
    assert isinstance(back, Mesh)
    assert torch.equal(back.vertices, mesh.vertices.double()) and torch.equal(back.faces, mesh.faces)
    assert torch.equal(back.normals, mesh.normals.double()) and torch.equal(back.colors, mesh.colors)
    bare = from_open3d(to_open3d(Mesh(mesh.vertices, mesh.faces)))
    assert isinstance(bare, Mesh) and bare.normals is None and bare.colors is None


def test_tensor_geometry_is_taken(cloud: Points, mesh: Mesh) -> None:
    points = o3d.t.geometry.PointCloud.from_legacy(to_open3d(cloud))
    back = from_open3d(points)
    assert isinstance(back, Points) and torch.equal(back.positions.float(), cloud.positions.float())
    triangles = o3d.t.geometry.TriangleMesh.from_legacy(to_open3d(mesh))
    back = from_open3d(triangles)
    assert isinstance(back, Mesh) and torch.equal(back.faces, mesh.faces)


def test_poses_move_as_open3d_moves(rigids: Rigid, cloud: Points) -> None:
    pose = to_open3d(rigids)
    assert pose.shape == (12, 4, 4) and pose.dtype == np.float64
    moved = np.asarray(to_open3d(cloud).transform(pose[3]).points)
    assert np.abs(moved - rigids[3].to(torch.float64).apply(cloud.positions.double()).numpy()).max() < 1e-5
    back = from_open3d(pose)
    assert isinstance(back, Rigid)
    assert (back.to_matrix() - rigids.to(torch.float64).to_matrix()).abs().max() < 1e-6
    again = from_open3d(to_open3d(back))
    assert isinstance(again, Rigid) and (again.to_matrix() - back.to_matrix()).abs().max() < 2e-15
    assert torch.equal(again.translation, back.translation)


def test_nothing_is_shared(cloud: Points, mesh: Mesh) -> None:
    there = to_open3d(mesh)
    back = from_open3d(there)
    there.translate([9.0, 0, 0])
    assert isinstance(back, Mesh) and torch.equal(back.vertices, mesh.vertices.double())
    grad = Points(cloud.positions.clone().requires_grad_())
    assert not from_open3d(to_open3d(grad)).positions.requires_grad


def test_empty_ones() -> None:
    empty = from_open3d(to_open3d(Points(torch.zeros(0, 3))))
    assert isinstance(empty, Points) and empty.positions.shape == (0, 3)
    none = from_open3d(to_open3d(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))))
    assert isinstance(none, Mesh) and none.vertices.shape == none.faces.shape == (0, 3)


def test_what_has_no_counterpart_is_refused() -> None:
    two = Points(torch.zeros(5, 3), offsets=torch.tensor([0, 2, 5]))
    with pytest.raises(ShapeError, match=r"expected one cloud, points\[i\], got a batch of 2"):
        to_open3d(two)
    with pytest.raises(ShapeError, match="expected a Rigid, a Points or a Mesh"):
        to_open3d(torch.zeros(4, 3))  # type: ignore[arg-type]
    for wrong in (3, o3d.geometry.LineSet()):
        with pytest.raises(ShapeError, match="expected an open3d PointCloud, TriangleMesh or pose"):
            from_open3d(wrong)
    with pytest.raises(ShapeError, match="rigid motion"):
        from_open3d(np.diag([2.0, 2, 2, 1]))
    broken = o3d.geometry.TriangleMesh(o3d.utility.Vector3dVector(np.eye(3)), o3d.utility.Vector3iVector([[0, 1, 3]]))
    with pytest.raises(ShapeError, match=r"indices in \[0, 3\)"):
        from_open3d(broken)


def test_without_open3d(monkeypatch: pytest.MonkeyPatch, cloud: Points) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(MissingDependencyError, match=r"to_open3d needs open3d: pip install 'geom-toolkit\[viz\]'"):
        to_open3d(cloud)
