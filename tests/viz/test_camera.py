"""The fitted camera sees everything, fills the picture, and keeps what is up up."""

import numpy as np
import pytest

from geom.errors import ShapeError
from geom.viz import Camera, View
from geom.viz.camera import fit_camera


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, -1)])
@pytest.mark.parametrize("size", [(300, 200), (100, 400)])
def test_fit_fills_the_picture(up, size):
    points = np.random.default_rng(0).normal(size=(500, 3)) * [1, 2, 0.3] + 1e4
    camera = fit_camera(points, View(size=size, up=up))
    pixels, depth = camera.project(points, size)
    assert (depth > 0).all() and (pixels > 0).all() and (pixels < size).all()
    assert (np.ptp(pixels, axis=0) / size).max() > 0.88
    high, _ = camera.project(np.stack([points.mean(0), points.mean(0) + 0.1 * np.asarray(up)]), size)
    assert high[1, 1] < high[0, 1]


@pytest.mark.parametrize("place", [(0.0, 0, 0), (1e6, 1e6, 0)])
def test_one_place(place):
    pixels, depth = fit_camera(np.array([place]), View()).project(np.array([place]), (1200, 800))
    np.testing.assert_allclose(pixels, [[600, 400]], atol=1e-3)
    assert depth > 0


def test_project_follows_the_pinhole():
    pixels, _ = Camera((0, -2, 0), (0, 0, 0), fov=np.pi / 2).project(np.array([[1.0, 0, 0], [0, 0, 1]]), (400, 200))
    np.testing.assert_allclose(pixels, [[250, 100], [200, 50]])


@pytest.mark.parametrize(
    "options",
    [
        {"size": (0, 10)},
        {"size": (10, 20000)},
        {"camera": ((0, 0, 0), (0, 0, 0), (0, 0, 1))},
        {"camera": ((0, 0, 0), (0, 0, 1), (0, 0, 1))},
        {"camera": ((0, 0, float("nan")), (0, 0, 1), (0, 1, 0))},
        {"camera": Camera((0, 0, 0), (0, 0, 1), (0, 1, 0), fov=4)},
        {"up": (0, 0, 0)},
        {"up": (0, 1)},
        {"background": (2, 0, 0)},
        {"point_size": 0},
    ],
)
def test_refused(options):
    with pytest.raises(ShapeError):
        View(**options)
