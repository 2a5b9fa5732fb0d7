"""The chapter on cables: shipped parameters against motion capture, and a cable simulated between two grips."""

import math
import re
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geom.demo.pictures import GRIP, SOURCE, TARGET, draw_strip
from geom.demo.tour import Chapter, Result
from geom.errors import FileFormatError
from geom.io.arrays import read_arrays
from geom.io.bytes import open_source
from geom.lie import so3
from geom.rods import Cable, Residual, Rod, load_cable, predict, predict_with, rollout, start, track_errors
from geom.values import replace
from geom.viz import Lines

__all__ = ["chapter", "read_clips"]

_TEXT = (
    "Where there are data, real cables: filmed by motion capture while two grips move their ends. geom.rods.predict "
    "sees where the cable is in the first two frames, and from there on only the grips; geom.rods.predict_with adds "
    "the network that learned what the physics leaves over. Neither was fitted to the clips shown, but the network's "
    "training kept the step that was best on these and the other clips held out, so its figures flatter it a little. "
    "The error is the mean over coordinates, vertices and frames. The last cable needs no data: it is simulated, and "
    "cannot stretch."
)
_COLUMNS = {
    "vertices": "{vertices}",
    "branches": "{branches}",
    "clips": "{clips} of {clip_seconds:.0f} s",
    "physics alone": "{physics_error_cm:.2f} cm",
    "with its network": "{error_cm:.2f} cm",
    "edges off by": "{stretched:.0e}",
    "time": "{seconds:.2f} s",
}
_CLIPS = 5  # every fifth was held out of the fits
_SECONDS, _PANELS = 3.0, 6  # of the simulation


def chapter(data: Path | None) -> Chapter:
    """Jobs for the first single and the first branched cable of `rods/*_train.npz` under `data` whose parameters come
    with the package, then for a simulated one."""
    jobs: list[tuple[str, Callable[[Path], Result]]] = []
    seen = set()
    for path in sorted((data / "rods").glob("*_train.npz")) if data else ():
        found = re.search(r"_((b?)dlo\d+)_train$", path.stem)
        if found and found[2] not in seen and (files("geom.assets") / "rods" / f"{found[1]}.json").is_file():
            seen.add(found[2])
            jobs.append((found[1], partial(_predicted, found[1], path)))
    jobs.append(("two grips", _simulated))
    return Chapter("cables", "Cables: where they will be", _TEXT, _COLUMNS, jobs)


def read_clips(path: Path, vertices: int) -> Tensor:
    """Clips 0 and 5 (at most 2, frames, vertices, 3) float32, metres, of `x` in an .npz archive; NaN is a lost marker.

    Raises: FileFormatError if it is something else; OSError as `open` would.
    """
    source = open_source(path)
    x = read_arrays(source, ("x",)).get("x")
    if x is None:
        raise source.fail("expected clips x (clips, frames, vertices, 3)")
    if x.ndim != 4 or x.shape[2:] != (vertices, 3) or x.dtype.kind != "f" or x.shape[0] < 1 or x.shape[1] < 3:
        raise FileFormatError(
            path, f"x: expected floats (clips, at least 3 frames, {vertices}, 3), got {x.dtype} of shape {x.shape}"
        )
    return torch.from_numpy(x[::_CLIPS][:2].astype(np.float32))


def _shipped(name: str, dtype: torch.dtype = torch.float32) -> Cable:
    with as_file(files("geom.assets") / "rods" / f"{name}.json") as path:
        return load_cable(path, dtype=dtype)


@torch.no_grad()
def _predicted(name: str, path: Path, out: Path) -> Result:
    cable = _shipped(name)
    with as_file(files("geom.assets") / "rods" / f"{name}.safetensors") as weights:
        residual = Residual.load(weights)
    track = read_clips(path, len(cable.rod.parent))
    how: dict[str, Any] = {"clamped": cable.clamped, "held": cable.held, "substeps": cable.substeps}
    how["dt"] = 1 / cable.rate
    physics = 100 * track_errors(predict(cable.rod, track, **how), track)
    predict_with(cable.rod, residual, track, **how)  # the first run may compile
    begin = time.perf_counter()
    moved = predict_with(cable.rod, residual, track, **how)
    seconds = time.perf_counter() - begin
    error = 100 * track_errors(moved, track)
    if not bool(torch.cat([physics, error]).isfinite().all()):
        raise FileFormatError(path, f"expected a motion that cable {name} can follow, got an error that is not finite")
    frames = track.shape[1]
    numbers = {
        "vertices": track.shape[2],
        "branches": len(cable.branches),
        "clips": len(track),
        "clip_seconds": frames / cable.rate,
        "physics_error_cm": float(physics.mean()),
        "error_cm": float(error.mean()),
        "clip_errors_cm": error.tolist(),
        "seconds": seconds,
    }
    count = min(8, math.ceil((frames - 1) / cable.rate))
    times = [min(round(k * cable.rate), frames - 1) for k in range(1, count + 1)]
    panels = []
    for k in times:
        panels.append([*_seen(cable.rod, track[0, k], TARGET), *_seen(cable.rod, moved[0, k], SOURCE)])
        panels[-1].append((moved[0, k, list(cable.clamped)], GRIP))
    drawn = draw_strip(out, name, panels, size=(320, 320))
    words = (
        f"{'A branched cable' if cable.branches else 'A cable'}, {numbers['clip_seconds']:.0f} s ahead: what is "
        f"predicted (orange) over what was filmed (blue), grips in black. Off by {numbers['error_cm']:.2f} cm on "
        f"average over {len(track)} clips; physics alone {numbers['physics_error_cm']:.2f} cm. {drawn.problem}"
    )
    captions = tuple(f"{k / cable.rate:.0f} s" for k in times)
    return Result(name, numbers, words.strip(), drawn.picture, captions=captions)


def _seen(rod: Rod, x: Tensor, color: tuple[float, float, float]) -> list[tuple[Lines, tuple[float, float, float]]]:
    """The edges of a rod whose two vertices are there; a lost marker is NaN."""
    there = x.isfinite().all(-1)
    child = ((rod.parent >= 0) & there & there[rod.parent.clamp(min=0)]).nonzero()[:, 0]
    place = there.cumsum(0) - 1
    return [(Lines(x[there], place[torch.stack([rod.parent[child], child], 1)]), color)] if len(child) else []


@torch.no_grad()
def _simulated(out: Path) -> Result:
    """In float64, whose rounding is small against a short edge too."""
    name, cable = "two_grips", _shipped("dlo1", torch.float64)
    rod, grips = cable.rod, list(cable.clamped)
    rod = replace(rod, stretch_stiffness=torch.full_like(rod.stretch_stiffness, math.inf))
    x = torch.zeros(len(rod.parent), 3, dtype=torch.float64)
    turn = torch.linspace(-0.6, 0.6, len(x), dtype=torch.float64)  # an arc that hangs
    steps = rod.length[:, None] * torch.stack([turn.cos(), 0 * turn, turn.sin()], -1)
    x[1:] = steps[1:].cumsum(0)
    begin = time.perf_counter()
    first = start(rod, x, clamped=grips)
    held = [k for k, p in enumerate(rod.parent.tolist()) if k in grips and p in grips]
    path = _half_circle(first.position[grips], round(_SECONDS * cable.rate) * cable.substeps)
    dt = 1 / (cable.rate * cable.substeps)
    track = rollout(rod, first, clamped=grips, targets=path, held=held, dt=dt).position
    seconds = time.perf_counter() - begin
    edge = (track - track[:, rod.parent.clamp(min=0)]).norm(dim=-1)[:, 1:]
    numbers = {
        "vertices": len(x),
        "branches": 0,
        "clips": 1,
        "clip_seconds": _SECONDS,
        "stretched": float(((edge - rod.length[1:]).abs() / rod.length[1:]).max()),
        "lowest_m": float(track[..., 2].min()),
        "seconds": seconds,
    }
    times = [round(k * (len(track) - 1) / (_PANELS - 1)) for k in range(_PANELS)]
    panels = [[*_seen(rod, track[k], SOURCE), (track[k, grips], GRIP)] for k in times]
    drawn = draw_strip(out, name, panels, size=(270, 240))
    words = (
        "Cable dlo1, made inextensible and simulated: the far grip goes half around the near one, turns on the way, "
        f"and comes to half the distance. In {len(track)} steps no edge is off its length by more than "
        f"{numbers['stretched']:.0e} of it. {drawn.problem}"
    )
    captions = tuple(f"{(k + 1) * dt:.1f} s" for k in times)
    return Result("two grips", numbers, words.strip(), drawn.picture, captions=captions)


def _half_circle(grips: Tensor, steps: int) -> Tensor:
    """Paths (steps, k, 3) of vertices (k, 3) along x: the first half stay, the others, rigid, go half around them."""
    near, far = grips.chunk(2)
    part = torch.arange(1, steps + 1, dtype=grips.dtype) / steps
    eased = (1 - torch.cos(math.pi * part)) / 2
    about = so3.exp(math.pi * eased[:, None] * grips.new_tensor([0.0, 0.0, 1.0]))
    centre = near.mean(0)
    shift = (far.mean(0) - centre) * (1 - eased[:, None] / 2)
    moved = shift[:, None] + (far - far.mean(0))
    return torch.cat([near.expand(steps, -1, -1), centre + moved @ about.mT], 1)
