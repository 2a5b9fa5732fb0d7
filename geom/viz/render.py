"""Pictures without a display: `render` through open3d where it works, through our own rasteriser elsewhere."""

import logging
import os
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from geom.checks import check_choice, describe
from geom.errors import ShapeError
from geom.files import write_atomically
from geom.viz.camera import View, fit_camera
from geom.viz.filament import RendererError, draw_filament
from geom.viz.probe import probe
from geom.viz.rasterise import rasterise
from geom.viz.scene import RGB, Thing, build_scene
from geom.viz.shading import finish

__all__ = ["render", "save_png", "suitable_point_size"]

logger = logging.getLogger(__name__)
Engine = Literal["auto", "open3d", "numpy"]
Picture = npt.NDArray[np.uint8]
_LINE_WIDTH = 2.8  # pixels


def render(
    *things: Thing,
    scalars: Sequence[Tensor | npt.NDArray[np.floating] | None] | None = None,
    colors: Sequence[RGB | None] | None = None,
    view: View | None = None,
    engine: Engine = "auto",
) -> Picture:
    """Draw things into a picture (H, W, 3) uint8, with no display.

    Args:
        things: any of `Points` (own colours; a ragged batch one colour a cloud; else intensities; else the palette's
            colour by position), `Mesh` (shaded, smooth up to creases), `Lines`, `Rigid` (frames: x red, y green, z
            blue), tensors or arrays (N, 3), in one unit and one frame.
        scalars: for each thing None or numbers (N,), drawn through a map from violet to yellow on one scale for all.
        colors: for each thing None or one RGB in [0, 1].
        view: size, camera, background, point size.
        engine: "auto" is open3d where `probe()` says that it draws on a graphics card, else numpy: on a CPU ours is the
            faster, and it needs nothing installed.

    Raises: ShapeError for something empty, not finite or not drawable; RendererError (a MissingDependencyError) for
    engine="open3d" where it cannot draw.

    Not differentiable; deterministic. Both engines draw the same scene with the same light from the same camera; open3d
    draws points as squares.

    >>> render(np.eye(3), view=View(size=(60, 40)), engine="numpy").shape
    (40, 60, 3)
    """
    check_choice(engine, ("auto", "open3d", "numpy"), "engine")
    view = view or View()
    scene = build_scene(*things, scalars=scalars, colors=colors)
    camera = fit_camera(scene.core, view)
    if engine == "open3d" and not probe().works:
        raise RendererError(probe().reason)
    count = sum(len(d.positions) for d in scene.drawables if d.kind == "points")
    image, near = (draw_filament if engine == "open3d" or (engine == "auto" and _chosen()) else rasterise)(
        scene,
        camera,
        (2 * view.size[0], 2 * view.size[1]),
        background=view.background,
        point_size=2 * (view.point_size or suitable_point_size(view.size, count)),
        line_width=2 * _LINE_WIDTH,
    )
    return finish(image, near)


def save_png(path: str | os.PathLike[str], image: Picture) -> None:
    """Write a picture (H, W, 3) uint8 as PNG, whole or not at all. Raises: ShapeError; OSError."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ShapeError(f"image: expected a uint8 array (H, W, 3), got {describe(image)}")
    height, width, _ = image.shape
    rows = image.reshape(height, -1)
    lines = np.empty((height, 1 + rows.shape[1]), np.uint8)
    lines[:, 0] = 2  # filter "up": each row as its difference to the one above, which zlib packs well
    lines[0, 1:], lines[1:, 1:] = rows[0], rows[1:] - rows[:-1]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # eight bits, RGB
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 6)) + chunk(b"IEND", b"")
    write_atomically(path, b"\x89PNG\r\n\x1a\n" + body)


def suitable_point_size(size: tuple[int, int], count: int) -> float:
    """A point's diameter in pixels, by the room that each has."""
    return float(np.clip(0.55 * np.sqrt(size[0] * size[1] / max(count, 1)), 2.0, 8.0))


@cache
def _chosen() -> bool:
    """Whether "auto" is open3d here; said once."""
    found = probe()
    if found.works and found.software:
        logger.info("drawing with the numpy engine: open3d would draw on the CPU too, and slower")
    elif not found.works:
        logger.info("drawing with the numpy engine: %s", found.reason)
    return found.works and not found.software
