"""`render_strip`: moments of a motion, or several things alike, side by side."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from geom.errors import ShapeError
from geom.viz.camera import View, fit_camera
from geom.viz.render import Picture, render
from geom.viz.scene import RGB, Thing, build_scene

__all__ = ["render_strip"]


def render_strip(panels: Sequence[Sequence[tuple[Thing, RGB | None]]], *, view: View | None = None) -> Picture:
    """Panels of things side by side, seen by one camera that sees all of them, (H, panels W, 3) uint8.

    Args:
        panels: in each, things as `render` takes them, each with its colour, RGB in [0, 1], or None for its own or the
            palette's.
        view: size (W, H) of each panel, camera, background, point size.
    Raises: ShapeError for no panels, and as `render`.

    Not differentiable; deterministic.

    >>> render_strip([[(np.eye(3), None)], [(2 * np.eye(3), None)]], view=View(size=(60, 40))).shape
    (40, 120, 3)
    """
    if not panels:
        raise ShapeError("panels: expected at least one, got none")
    view = view or View()
    if view.camera is None:
        every = build_scene(*(thing for panel in panels for thing, _ in panel))
        view = replace(view, camera=fit_camera(every.core, view))
    pictures = [render(*(x for x, _ in panel), colors=[c for _, c in panel], view=view) for panel in panels]
    return np.concatenate(pictures, 1)
