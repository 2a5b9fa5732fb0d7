"""`show`: a window where there is a display, a picture in a file elsewhere."""

import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from geom.viz._worker import geometry
from geom.viz.camera import View, fit_camera
from geom.viz.render import render, save_png
from geom.viz.scene import RGB, Thing, build_scene

__all__ = ["show"]

logger = logging.getLogger(__name__)


def show(
    *things: Thing,
    scalars: Sequence[Tensor | npt.NDArray[np.floating] | None] | None = None,
    colors: Sequence[RGB | None] | None = None,
    view: View | None = None,
    title: str = "geom",
    path: str | os.PathLike[str] | None = None,
) -> Path | None:
    """Open a window with the things and wait until it is closed; without a display, save a picture.

    Args:
        things, scalars, colors, view: as for `render`.
        title: of the window; in letters that a file name may have, also the picture's default name.
        path: where to save the picture (PNG); default "<title>.png" in the current folder. Given, a picture is saved
            and no window opens.

    Returns: the picture's path, or None after a window. Raises: ShapeError; OSError.
    """
    if path is None and _has_display():
        if find_spec("open3d") is not None:
            _open_window(*things, scalars=scalars, colors=colors, view=view or View(), title=title)
            return None
        logger.warning("a window needs open3d: pip install 'geom-toolkit[viz]'; saving a picture instead")
    name = re.sub(r"[^\w.-]+", "-", title).strip("-.") or "geom"
    target = Path(path if path is not None else f"{name}.png")
    save_png(target, render(*things, scalars=scalars, colors=colors, view=view))
    logger.info("saved %s", target.absolute())
    return target


def _has_display() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open_window(
    *things: Thing,
    scalars: Sequence[Tensor | npt.NDArray[np.floating] | None] | None,
    colors: Sequence[RGB | None] | None,
    view: View,
    title: str,
) -> None:
    """open3d's viewer, about the scene's origin; it lights meshes itself, since the camera will move."""
    import open3d as o3d

    scene = build_scene(*things, scalars=scalars, colors=colors)
    camera = fit_camera(scene.core, view)
    shapes = []
    for thing in scene.drawables:
        shape, shader = geometry(thing.kind, thing.positions, thing.colors, thing.index, thing.normals)
        material = o3d.visualization.rendering.MaterialRecord()
        material.shader, material.line_width = shader, 2.0
        material.point_size = view.point_size or 3.0
        material.base_roughness = 0.7
        shapes.append({"name": thing.name, "geometry": shape, "material": material})
    o3d.visualization.draw(
        shapes,
        title=title,
        width=view.size[0],
        height=view.size[1],
        eye=np.asarray(camera.eye) - scene.origin,
        lookat=np.asarray(camera.target) - scene.origin,
        up=np.asarray(camera.up, np.float64),
        field_of_view=float(np.degrees(camera.fov)),
        bg_color=(*view.background, 1.0),
        show_skybox=False,
        show_ui=False,
        point_size=round(view.point_size or 3),
    )
