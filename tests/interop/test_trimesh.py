"""trimesh: meshes, clouds and poses there and back."""

import numpy as np
import pytest
import torch
import trimesh

from geom.errors import ShapeError
from geom.interop import from_trimesh, to_trimesh
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points


def test_meshes(mesh: Mesh) -> None:
    there = to_trimesh(mesh)
    assert isinstance(there, trimesh.Trimesh) and len(there.vertices) == 9  # the two that coincide stay two
    back = from_trimesh(there)
    assert isinstance(back, Mesh)
    assert torch.equal(back.vertices, mesh.vertices.double()) and torch.equal(back.faces, mesh.faces)
    assert torch.equal(back.normals, mesh.normals.double()) and torch.equal(back.colors, mesh.colors)
    bare = from_trimesh(to_trimesh(Mesh(mesh.vertices, mesh.faces)))
    assert isinstance(bare, Mesh) and bare.normals is None and bare.colors is None


def test_clouds(cloud: Points) -> None:
    there = to_trimesh(cloud)
    assert isinstance(there, trimesh.PointCloud)
    back = from_trimesh(there)
    assert isinstance(back, Points)
    assert torch.equal(back.positions, cloud.positions.double()) and torch.equal(back.colors, cloud.colors)
    assert back.normals is None and back.intensities is None
    bare = from_trimesh(to_trimesh(Points(cloud.positions)))
    assert isinstance(bare, Points) and bare.colors is None


def test_colors_are_rounded_to_eight_bits() -> None:
    colors = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    back = from_trimesh(to_trimesh(Points(torch.zeros(200, 3), colors=colors)))
    assert isinstance(back, Points) and back.colors is not None
    assert 1e-4 < (back.colors - colors).abs().max() < 0.5001 / 255


def test_normals_are_taken_only_where_they_are_held() -> None:
    box = trimesh.creation.box()
    before = from_trimesh(box)
    assert isinstance(before, Mesh) and before.normals is None
    want = box.vertex_normals.copy()
    after = from_trimesh(box)
    assert isinstance(after, Mesh) and after.normals is not None and np.array_equal(after.normals.numpy(), want)
    box.visual.face_colors = [255, 0, 0, 255]
    per_face = from_trimesh(box)
    assert isinstance(per_face, Mesh) and per_face.colors is None


def test_poses_move_as_trimesh_moves(rigids: Rigid, mesh: Mesh) -> None:
    pose = to_trimesh(rigids)
    moved = to_trimesh(mesh).apply_transform(pose[3]).vertices
    assert np.abs(moved - rigids[3].to(torch.float64).apply(mesh.vertices.double()).numpy()).max() < 1e-5
    back = from_trimesh(pose)
    assert isinstance(back, Rigid) and torch.equal(back.translation, rigids.translation.double())
    again = from_trimesh(to_trimesh(back))
    assert isinstance(again, Rigid) and (again.to_matrix() - back.to_matrix()).abs().max() < 2e-15


def test_empty_ones() -> None:
    empty = from_trimesh(to_trimesh(Points(torch.zeros(0, 3))))
    assert isinstance(empty, Points) and empty.positions.shape == (0, 3)
    none = from_trimesh(to_trimesh(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))))
    assert isinstance(none, Mesh) and none.vertices.shape == none.faces.shape == (0, 3)


def test_what_has_no_counterpart_is_refused() -> None:
    two = Points(torch.zeros(5, 3), offsets=torch.tensor([0, 2, 5]))
    with pytest.raises(ShapeError, match=r"expected one cloud, points\[i\], got a batch of 2"):
        to_trimesh(two)
    with pytest.raises(ShapeError, match="expected a Rigid, a Points or a Mesh"):
        to_trimesh("box")  # type: ignore[arg-type]
    for wrong in (3, trimesh.Scene(), np.zeros(3)):
        with pytest.raises(ShapeError, match="expected a Trimesh"):
            from_trimesh(wrong)
    with pytest.raises(ShapeError, match="rigid motion"):
        from_trimesh(np.diag([1.0, 1, -1, 1]))
