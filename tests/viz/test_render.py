"""Both engines draw the thing where the camera says it is, in its colour, nearest first."""

import io
import logging
import sys

import numpy as np
import pytest
import torch

from geom.errors import MissingDependencyError, ShapeError
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.viz import Camera, Lines, Probe, View, probe, render, save_png
from geom.viz.colors import PALETTE
from geom.viz.shading import finish

SIZE = (160, 120)
FRONT = Camera((0, -4, 0), (0, 0, 0))
VIEW = View(size=SIZE, camera=FRONT, point_size=7)


def at(image, place, camera=FRONT):
    """The pixel on which a place falls."""
    pixels, _ = camera.project(np.asarray([place], np.float64), SIZE)
    x, y = np.floor(pixels[0]).astype(int)
    return image[y, x].astype(int)


def close(pixel, rgb, tolerance=4):
    return np.abs(pixel - 255 * np.asarray(rgb)).max() <= tolerance


def square(depth, size=0.7):
    corners = torch.tensor([[-size, depth, -size], [size, depth, -size], [size, depth, size], [-size, depth, size]])
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]))


def test_points_stand_where_they_should(draw):
    places = torch.tensor([[0.6, 0, 0.4], [-0.8, 1, -0.3], [0, -1, 0.1]])
    image = draw(*places[:, None], view=VIEW)
    assert image.shape == (120, 160, 3) and image.dtype == np.uint8
    for i, place in enumerate(places.tolist()):
        assert close(at(image, place), PALETTE[i])
    assert (image[0, 0] == 255).all() and (image != 255).any(2).mean() < 0.02


def test_background_and_point_size(draw):
    view = View(size=SIZE, camera=FRONT, background=(0, 0, 1), point_size=15)
    image = draw(torch.zeros(1, 3), colors=[(1, 0, 0)], view=view)
    assert (image[0, 0] == [0, 0, 255]).all()
    assert 12 <= (image[60, :, 0] > 128).sum() <= 16


def test_the_nearer_thing_covers_the_farther(draw):
    wall, point = square(0.0), torch.tensor([[0.1, -0.5, 0.1]])
    behind, line = torch.tensor([[-0.3, 0.5, -0.2]]), Lines(torch.tensor([[-0.5, 0.5, 0.4], [0.5, 0.5, 0.4]]), ENDS)
    image = draw(wall, point, behind, line, colors=[(0.2, 0.7, 0.2), (1, 0, 0), (0, 0, 1), (0, 0, 1)], view=VIEW)
    assert close(at(image, (0.1, -0.5, 0.1)), (1, 0, 0))
    assert at(image, (-0.3, 0.5, -0.2)).argmax() == 1 and at(image, (0, 0.5, 0.4)).argmax() == 1
    nearer = draw(square(0.5), Lines(torch.tensor([[-0.5, 0.0, 0.4], [0.5, 0.0, 0.4]]), ENDS), view=VIEW)
    assert close(at(nearer, (0, 0, 0.4)), PALETTE[1], 30)


ENDS = torch.tensor([[0, 1]])


def test_both_sides_of_a_mesh_are_drawn(draw):
    wall = square(0.0)
    for mesh in (wall, Mesh(wall.vertices, wall.faces.flip(1))):
        image = draw(mesh, view=VIEW)
        assert at(image, (0, 0, 0)).argmax() == 2  # the palette's blue, shaded
        inside, _ = FRONT.project(mesh.vertices.double().numpy(), SIZE)
        share = np.prod(np.ptp(inside, axis=0)) / np.prod(SIZE)
        assert (image != 255).any(2).mean() == pytest.approx(share, rel=0.05)


def test_frames_and_scalars(draw):
    image = draw(Rigid.identity(), torch.tensor([[0.9, 0, -0.4], [-0.9, 0, -0.4]]), view=VIEW)
    red, blue = at(image, (0.1, 0, 0)), at(image, (0, 0, 0.1))
    assert red.argmax() == 0 and blue.argmax() == 2
    places = torch.tensor([[-0.5, 0, 0], [0.5, 0, 0]])
    image = draw(places, scalars=[torch.tensor([3.0, 9.0])], view=VIEW)
    low, high = at(image, (-0.5, 0, 0)), at(image, (0.5, 0, 0))
    assert low.argmax() == 2 and high.argmax() == 1  # violet, then yellow-green


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1e6), (1e-6, 0.0), (1e6, 0.0)])
def test_any_unit_and_any_place(draw, scale, shift):
    places = torch.tensor([[0.6, 0, 0.4], [-0.8, 1, -0.3]], dtype=torch.float64)
    reference = draw(*places[:, None], view=View(size=SIZE, point_size=7))
    moved = draw(*(places * scale + shift)[:, None], view=View(size=SIZE, point_size=7))
    assert (np.abs(reference.astype(int) - moved) > 40).mean() < 0.002


def test_engines_agree():
    if not probe().works:
        pytest.skip(probe().reason)
    cloud = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    a, b = (render(cloud, engine=e, view=View(size=SIZE, point_size=3)).astype(int) for e in ("numpy", "open3d"))
    assert np.abs(a - b).mean() < 6 and ((a != 255) == (b != 255)).mean() > 0.95


def test_a_wall_that_runs_behind_the_camera():
    floor = Mesh(
        torch.tensor([[-9.0, -50, -1], [9, -50, -1], [9, 50, -1], [-9, 50, -1]]), torch.tensor([[0, 1, 2], [0, 2, 3]])
    )
    rail = Lines(torch.tensor([[0.0, -50, -0.9], [0, 50, -0.9]]), torch.tensor([[0, 1]]))
    image = render(floor, rail, colors=[None, (1, 0, 0)], view=VIEW, engine="numpy")
    assert (image[-1] != 255).any(1).all() and (image[0] == 255).all()
    assert image[100, 80].argmax() == 0


def test_colors_are_linear_in_space_not_on_screen():
    strip = Mesh(
        torch.tensor([[-1.0, -2, -0.5], [1, -2, -0.5], [1, 8, -0.5], [-1, 8, -0.5]]),
        torch.tensor([[0, 1, 2], [0, 2, 3]]),
        colors=torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]),
    )
    image = render(strip, view=View(size=SIZE, camera=FRONT), engine="numpy").astype(int)
    start, middle = at(image, (0, -1.5, -0.5))[0], at(image, (0, 3, -0.5))[0]
    assert middle - start > 40
    mid = 0.5 * (at(image, (0, 7.5, -0.5))[0] + start)
    assert middle == pytest.approx(mid, abs=12)


def test_flat_ground_is_not_darkened_but_a_step_is():
    y, x = np.mgrid[0:80, 0:80].astype(np.float32)
    white = np.full((80, 80, 3), 255, np.uint8)
    plane = 1 + 0.01 * x + 0.02 * y
    assert (finish(white, plane)[5:-5, 5:-5] == 255).all()
    step = np.where(x < 40, 1.0, 2.0).astype(np.float32)
    dark = finish(white, step)
    assert dark[20, 18].max() < 230 and (dark[20, 22] == 255).all() and (dark[20, 5] == 255).all()


def test_engine_auto_falls_back_and_says_so_once(monkeypatch, caplog):
    module = sys.modules["geom.viz.render"]  # the package's `render` is the function
    module._chosen.cache_clear()
    monkeypatch.setattr(module, "probe", lambda: Probe(False, reason="no Vulkan; apt-get install libvulkan1"))
    with caplog.at_level(logging.INFO, logger="geom.viz"):
        images = [render(torch.zeros(1, 3), view=VIEW) for _ in range(2)]
    module._chosen.cache_clear()
    np.testing.assert_array_equal(images[0], render(torch.zeros(1, 3), view=VIEW, engine="numpy"))
    assert [r.getMessage() for r in caplog.records] == [
        "drawing with the numpy engine: no Vulkan; apt-get install libvulkan1"
    ]
    with pytest.raises(MissingDependencyError, match="apt-get install libvulkan1"):
        render(torch.zeros(1, 3), view=VIEW, engine="open3d")


def test_unknown_engine():
    with pytest.raises(ShapeError, match="engine"):
        render(torch.zeros(1, 3), engine="opengl")  # type: ignore[arg-type]


def test_png_reads_back(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    save_png(tmp_path / "a.png", image)
    pillow = pytest.importorskip("PIL.Image")
    with pillow.open(io.BytesIO((tmp_path / "a.png").read_bytes())) as read:
        np.testing.assert_array_equal(np.asarray(read), image)
    with pytest.raises(ShapeError):
        save_png(tmp_path / "b.png", image.astype(float))
    assert not (tmp_path / "b.png").exists()
