"""Scenes of known place and colour, and the engines that can draw them here."""

from functools import partial

import pytest

from geom.viz import probe, render


@pytest.fixture(params=["numpy", "open3d"])
def draw(request: pytest.FixtureRequest):
    """`render` through one engine."""
    if request.param == "open3d" and not probe().works:
        pytest.skip(probe().reason)
    return partial(render, engine=request.param)
