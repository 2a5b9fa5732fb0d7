"""Panels side by side, from one camera."""

import numpy as np
import pytest
import torch

from geom.errors import ShapeError
from geom.viz import View, render_strip


def test_panels_share_a_camera() -> None:
    """One point that moves by a metre, in three panels: alone in its own, and each a metre of pixels further."""
    points = [torch.tensor([[x, 0.0, 0.0]]) for x in (-1.0, 0.0, 1.0)]
    picture = render_strip([[(x, (0.0, 0.0, 0.0))] for x in points], view=View(size=(120, 90)))
    assert picture.shape == (90, 360, 3)
    middles = [(panel.min(-1) < 128).nonzero()[1].mean() for panel in np.split(picture, 3, 1)]
    assert middles[0] + 10 < middles[1] < middles[2] - 10


def test_a_camera_that_is_given_stays() -> None:
    point = torch.zeros(1, 3)
    ahead = View(size=(60, 60), camera=((0.0, -3.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    picture = render_strip([[(point, (0.0, 0.0, 0.0))], [(point + 5, (0.0, 0.0, 0.0))]], view=ahead)
    assert picture[25:35, 25:35].min() < 128  # in the middle, whatever other panels show
    assert picture[:, 60:].min() == 255


def test_no_panels() -> None:
    with pytest.raises(ShapeError, match="at least one"):
        render_strip([])
