"""Before and after a registration, with a scene to turn; and strips, panels side by side from one camera."""

import enum
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geom.errors import GeomError
from geom.lie import Rigid
from geom.viz import Camera, View, render, render_strip, save_html, save_png
from geom.viz.scene import Thing

__all__ = ["GRIP", "SOURCE", "TARGET", "Color", "Drawn", "Look", "before_after", "draw_pair", "draw_strip"]

Color: TypeAlias = tuple[float, float, float]

SOURCE, TARGET = (0.93, 0.46, 0.12), (0.12, 0.42, 0.75)  # orange onto blue
GRIP = (0.1, 0.1, 0.1)
_SIZE = (800, 600)  # pixels of each half


class Look(enum.Enum):
    """Where the target's sensor sits in its frame, and so from where its cloud looks good."""

    ANY = "z up, seen whole"
    LIDAR = "sensor at the origin, z up: from behind and above it"
    CAMERA = "optical frame, z forward and y down: from beside the camera"


class Drawn(NamedTuple):
    """Names of the files drawn, None where that failed; `problem` then says why."""

    picture: str | None
    scene: str | None
    problem: str = ""


def before_after(
    source: Tensor, target: Tensor, *, before: Rigid, after: Rigid, look: Look = Look.ANY
) -> npt.NDArray[np.uint8]:
    """Two views from one camera, side by side, (H, W, 3): the source under the pose `before`, and under `after`."""
    moved = [_move(pose, source) for pose in (before, after)]
    view = _view(target, moved[1], look)
    pictures = [render(target, x, colors=[TARGET, SOURCE], view=view) for x in moved]
    gap = np.full((_SIZE[1], 6, 3), 190, np.uint8)
    return np.concatenate([pictures[0], gap, pictures[1]], 1)


def draw_pair(
    out: Path, name: str, source: Tensor, target: Tensor, *, before: Rigid, after: Rigid, look: Look
) -> Drawn:
    """Write `name.png` (before | after) and `name.html` (a scene of the target and both sources) into `out`."""
    try:
        save_png(out / f"{name}.png", before_after(source, target, before=before, after=after, look=look))
        first, last = _move(before, source), _move(after, source)
        save_html(
            out / f"{name}.html",
            *(target, last, first),
            names=["target", "source, after", "source, before"],
            colors=[TARGET, SOURCE, (0.75, 0.75, 0.75)],
            title=name,
            view=_view(target, last, look),
        )
    except GeomError as error:
        return Drawn(None, None, f"No picture: {error}")
    return Drawn(f"{name}.png", f"{name}.html")


def draw_strip(
    out: Path,
    name: str,
    panels: Sequence[Sequence[tuple[Thing, Color | None]]],
    *,
    size: tuple[int, int],
    up: Color = (0.0, 0.0, 1.0),
) -> Drawn:
    """Write panels side by side as `name.png` into `out`; up, what a picture's up is."""
    try:
        save_png(out / f"{name}.png", render_strip(panels, view=View(size=size, up=up)))
    except GeomError as error:
        return Drawn(None, None, f"No picture: {error}")
    return Drawn(f"{name}.png", None)


def _move(pose: Rigid, points: Tensor) -> Tensor:
    return pose.apply(points.double())


def _view(target: Tensor, source: Tensor, look: Look) -> View:
    return View(size=_SIZE, camera=_camera(target, source, look))


def _camera(target: Tensor, source: Tensor, look: Look) -> Camera | None:
    cloud = torch.cat([target.double(), source])
    if look is Look.LIDAR:
        reach = 6.0 + 0.75 * float(cloud.norm(dim=-1).mean())  # metres: near scans want more around them
        return Camera((-2.1 * reach, -1.0 * reach, 1.7 * reach), (0.3 * reach, 0.0, -0.1 * reach))
    if look is Look.CAMERA:
        middle = (cloud.min(0).values + cloud.max(0).values) / 2
        radius = float((cloud - middle).norm(dim=-1).quantile(0.98))
        toward = -middle / middle.norm() + torch.tensor([-0.25, -0.3, 0.0], dtype=torch.float64)
        eye = middle + toward / toward.norm() * radius / math.tan(0.3)
        return Camera(tuple(eye.tolist()), tuple(middle.tolist()), up=(0.0, -1.0, 0.0))
    return None
