"""Things become arrays in the right colours about the right origin, and what cannot be drawn is refused."""

import math

import numpy as np
import pytest
import torch

from geom.errors import ShapeError
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points
from geom.viz import Lines
from geom.viz.colors import PALETTE, colormap
from geom.viz.scene import build_scene
from geom.viz.shading import split_creases

CUBE = torch.tensor([[x, y, z] for x in (0.0, 1) for y in (0.0, 1) for z in (0.0, 1)])
CUBE_FACES = torch.tensor([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]])
CUBE_FACES = torch.cat([CUBE_FACES, torch.tensor([[2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])])


def test_every_kind(dtype):
    points = torch.rand(5, 3, dtype=dtype, requires_grad=True)
    lines = Lines(points, torch.tensor([[0, 1], [3, 4]]))
    scene = build_scene(points, points.detach().numpy(), Points(points), Mesh(points, torch.tensor([[0, 1, 2]])), lines)
    assert [d.kind for d in scene.drawables] == ["points", "points", "points", "mesh", "lines"]
    assert [d.name for d in scene.drawables] == ["points 1", "points 2", "points 3", "mesh 4", "lines 5"]
    for i, drawable in enumerate(scene.drawables):
        assert (drawable.colors == PALETTE[i]).all()
    np.testing.assert_allclose(scene.drawables[0].positions + scene.origin, points.detach().numpy(), atol=1e-6)


def test_own_colors_come_before_intensities():
    points = torch.rand(30, 3)
    own, ramp = torch.rand(30, 3), torch.linspace(0, 1, 30)
    first, second = build_scene(
        Points(points, colors=own, intensities=ramp), Points(points, intensities=ramp)
    ).drawables
    np.testing.assert_array_equal(first.colors, own.numpy())
    assert len(np.unique(second.colors, axis=0)) > 20


def test_each_cloud_of_a_batch_has_its_color():
    batch = Points(torch.rand(6, 3), offsets=torch.tensor([0, 2, 2, 6]))
    first, second = build_scene(batch, torch.rand(1, 3)).drawables
    np.testing.assert_array_equal(first.colors, PALETTE[[0, 0, 2, 2, 2, 2]])
    np.testing.assert_array_equal(second.colors, PALETTE[[3]])


def test_scalars_share_one_scale():
    x = torch.rand(100, 3)
    low, high = build_scene(x, x, scalars=[torch.linspace(0, 1, 100), torch.linspace(1, 2, 100)]).drawables
    np.testing.assert_allclose(low.colors[-1], high.colors[0])
    assert np.abs(low.colors[0] - high.colors[-1]).max() > 0.4
    assert (np.diff(colormap(np.linspace(0, 1, 50), low=0, high=1)[:, 1]) > 0).all()  # ever greener: it has an order
    assert np.isfinite(colormap(np.ones(3), low=1, high=1)).all()


def test_one_color_for_a_thing():
    first, second = build_scene(torch.rand(4, 3), torch.rand(4, 3), colors=[None, (1, 0, 0)]).drawables
    assert (second.colors == [1, 0, 0]).all() and (first.colors == PALETTE[0]).all()


def test_frames_point_along_their_axes():
    quarter = Rigid(torch.tensor([math.sqrt(0.5), 0, 0, math.sqrt(0.5)]), torch.tensor([1.0, 2, 3]))  # x to y
    (frame,) = build_scene(quarter).drawables
    start, end = frame.positions[frame.index].swapaxes(0, 1)
    way = (end - start) / np.linalg.norm(end - start, axis=1, keepdims=True)
    np.testing.assert_allclose(way, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-6)
    assert frame.colors[::2].argmax(1).tolist() == [0, 1, 2]  # red, green, blue
    batch = Rigid(torch.tensor([1.0, 0, 0, 0]).expand(2, 3, 4), torch.rand(2, 3, 3))
    assert len(build_scene(batch).drawables[0].index) == 18


def test_millimetres_survive_a_map_grid():
    near = torch.rand(50, 3, dtype=torch.float64)
    scene = build_scene(near + 1e6)
    np.testing.assert_allclose(scene.drawables[0].positions + (scene.origin - 1e6), near.numpy(), atol=1e-6)


def test_core_leaves_out_far_points_but_no_whole_thing():
    cloud = torch.rand(1000, 3)
    cloud[0] = 1e4
    assert build_scene(cloud).radius < 2
    assert build_scene(cloud, torch.full((1, 3), 50.0)).radius > 30


def test_a_cube_keeps_its_edges_and_a_sphere_is_smooth():
    _, _, normals = split_creases(CUBE.double().numpy(), CUBE_FACES.int().numpy())
    assert len(normals) == 24 and set(np.abs(normals).max(1).tolist()) == {1.0}
    angle = torch.linspace(0, 2 * math.pi, 25, dtype=torch.float64)[:-1]
    rim = torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    pipe = torch.cat([rim, rim + torch.tensor([0.0, 0, 1])]).numpy()
    i, j = np.arange(24), (np.arange(24) + 1) % 24
    faces = np.concatenate([np.stack([i, j, j + 24], 1), np.stack([i, j + 24, i + 24], 1)]).astype(np.int32)
    which, index, normals = split_creases(pipe, faces)
    assert len(which) < 2 * len(pipe) and index.shape == faces.shape
    np.testing.assert_array_equal(which[index], faces)
    assert (np.einsum("ij,ij->i", normals[:, :2], pipe[which, :2]) > 0.98).all()


def test_a_face_without_area_has_a_normal():
    _, _, normals = split_creases(np.zeros((3, 3)), np.array([[0, 1, 2]], np.int32))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)


@pytest.mark.parametrize(
    ("things", "options", "words"),
    [
        ((), {}, "at least one thing"),
        ((torch.zeros(0, 3),), {}, "at least 1 points"),
        ((Points(torch.zeros(0, 3)),), {}, "at least 1 points"),
        ((Mesh(torch.rand(3, 3), torch.zeros(0, 3, dtype=torch.int64)),), {}, "at least one face"),
        ((Lines(torch.rand(3, 3), torch.zeros(0, 2, dtype=torch.int64)),), {}, "at least one segment"),
        ((torch.tensor([[0, 0, float("nan")]]),), {}, "NaN or inf in 1 of 1"),
        ((Points(torch.tensor([[0, 0, float("inf")]])),), {}, "NaN or inf"),
        ((Rigid(torch.ones(4), torch.tensor([0, 0, float("nan")])),), {}, "finite pose"),
        ((Points(torch.rand(2, 3), intensities=torch.tensor([0, float("nan")])),), {}, "finite intensities"),
        ((Points(torch.rand(2, 3), colors=torch.full((2, 3), float("nan"))),), {}, "colours"),
        ((torch.rand(3, 2),), {}, r"\(N, 3\)"),
        ((np.array(["a"]),), {}, "numbers"),
        (("cloud.ply",), {}, "expected Points, Mesh"),
        ((torch.tensor([[0.0, 0, 0], [1e35, 0, 0]], dtype=torch.float64),), {}, "float32 can hold"),
        ((torch.rand(2, 3),), {"scalars": [torch.rand(3)]}, "2 finite numbers"),
        ((torch.rand(2, 3),), {"scalars": [torch.tensor([0, float("nan")])]}, "2 finite numbers"),
        ((torch.rand(2, 3),), {"scalars": torch.rand(2)}, "a list of 1"),
        ((torch.rand(2, 3),), {"colors": [(2, 0, 0)]}, r"RGB in \[0, 1\]"),
        ((torch.rand(2, 3),), {"colors": [(1, 0, 0)], "scalars": [torch.rand(2)]}, "got both"),
        ((torch.rand(2, 3),), {"names": ["a", "b"]}, "a list of 1"),
    ],
)
def test_refused(things, options, words):
    with pytest.raises(ShapeError, match=words):
        build_scene(*things, **options)


def test_lines_are_checked():
    x = torch.rand(2, 3)
    for segments in (torch.tensor([[0, 2]]), torch.tensor([[0, -1]]), torch.tensor([[0.0, 1]]), torch.tensor([0, 1])):
        with pytest.raises(ShapeError, match="segments"):
            Lines(x, segments)
    with pytest.raises(ShapeError, match="colors"):
        Lines(x, torch.tensor([[0, 1]]), torch.rand(3, 3))
