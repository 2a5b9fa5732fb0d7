"""`save_html`: one page that holds the scene and its own viewer, and asks nothing of any network."""

import base64
import html
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from geom.files import write_atomically
from geom.viz._page import PAGE
from geom.viz.camera import View, fit_camera
from geom.viz.render import suitable_point_size
from geom.viz.scene import RGB, Thing, build_scene

__all__ = ["save_html"]


def save_html(
    path: str | os.PathLike[str],
    *things: Thing,
    scalars: Sequence[Tensor | npt.NDArray[np.floating] | None] | None = None,
    colors: Sequence[RGB | None] | None = None,
    names: Sequence[str] | None = None,
    title: str = "geom",
    view: View | None = None,
) -> None:
    """Write the things into one HTML page with a viewer.

    Drag to turn, wheel or pinch to zoom, right drag or two fingers to move, click a name to hide it, double click to
    start again. Coordinates are kept as float32 about the scene's origin, which the page's JSON names in full. A
    browser without WebGL 2 shows a sentence and the list of things instead.

    Args:
        path: the page; written whole or not at all.
        things, scalars, colors, view: as for `render`; the page fills its window, whatever `view.size`.
        names: one for each thing, for the legend.
        title: of the page.

    Raises: ShapeError; OSError.
    """
    view = view or View()
    scene = build_scene(*things, scalars=scalars, colors=colors, names=names)
    camera = fit_camera(scene.core, view)
    count = sum(len(d.positions) for d in scene.drawables if d.kind == "points")
    data = {
        "origin": scene.origin.tolist(),
        "radius": scene.radius,
        "eye": (np.asarray(camera.eye) - scene.origin).tolist(),
        "target": (np.asarray(camera.target) - scene.origin).tolist(),
        "up": list(map(float, camera.up)),
        "fov": camera.fov,
        "background": list(map(float, view.background)),
        "point_size": view.point_size or suitable_point_size(view.size, count),
        "things": [
            {
                "kind": thing.kind,
                "name": thing.name,
                "count": len(thing.positions),
                "positions": _base64(thing.positions, "<f4"),
                "colors": _base64(np.rint(thing.colors * 255), "u1"),
                "index": None if thing.index is None else _base64(thing.index, "<u4"),
                "normals": None if thing.normals is None else _base64(np.rint(thing.normals * 127), "i1"),
            }
            for thing in scene.drawables
        ],
    }
    listing = "".join(f"<li>{html.escape(d.name)}: {len(d.positions)} vertices</li>" for d in scene.drawables)
    text = json.dumps(data).replace("<", "\\u003c")  # no name can end the script element
    fill = {"@TITLE@": html.escape(title), "@LISTING@": listing, "@DATA@": text}
    write_atomically(path, re.sub("|".join(fill), lambda mark: fill[mark.group()], PAGE))


def _base64(array: npt.NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array).astype(dtype).tobytes()).decode()
