"""From things to arrays: what every engine draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_field, check_indices, check_points, describe
from geom.errors import ShapeError
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points
from geom.values import Value, value
from geom.viz.colors import PALETTE, Floats, colormap
from geom.viz.shading import split_creases

__all__ = ["Drawable", "Lines", "Scene", "Thing", "build_scene"]

Doubles = npt.NDArray[np.float64]
RGB: TypeAlias = Sequence[float]
_AXES = np.array([[0.86, 0.13, 0.16], [0.12, 0.62, 0.24], [0.13, 0.34, 0.88]], np.float32)


@value
class Lines(Value):
    """Straight segments over shared points.

    Fields: `positions` (N, 3) float32 or float64, metres; `segments` (E, 2) int64, each index in [0, N); `colors`
    (N, 3) float32 in [0, 1] or None.

    Raises: ShapeError where a field has the wrong shape or dtype, or a segment names a point that is not there.

    >>> Lines(torch.rand(2, 3), torch.tensor([[0, 1]])).segments.shape
    torch.Size([1, 2])
    """

    positions: Float[Tensor, "n 3"]
    segments: Int64[Tensor, "e 2"]
    colors: Float[Tensor, "n 3"] | None = None

    def __post_init__(self) -> None:
        count = check_points(self.positions, "positions", finite=False).shape[0]
        check_indices(self.segments, 2, count, "segments", "E")
        check_field(self.colors, (count, 3), "colors")


Thing: TypeAlias = Points | Mesh | Lines | Rigid | Tensor | npt.NDArray[np.floating]


@dataclass(frozen=True)
class Drawable:
    """One thing as arrays: `positions` (N, 3) float32 about the scene's origin, `colors` (N, 3) float32 in [0, 1],
    `index` (E, 2) or (F, 3) int32 for lines and meshes, `normals` (N, 3) float32 for meshes."""

    kind: Literal["points", "lines", "mesh"]
    name: str
    positions: Floats
    colors: Floats
    index: npt.NDArray[np.int32] | None = None
    normals: Floats | None = None


@dataclass(frozen=True)
class Scene:
    """Drawables about `origin` (3,) float64, and `core` (M, 3): a sample of their positions, without far outliers, that
    a camera should see."""

    drawables: tuple[Drawable, ...]
    origin: Doubles
    core: Doubles

    @property
    def radius(self) -> float:
        """Half the diagonal of the core's box; 1 where the core is one place."""
        return float(np.linalg.norm(np.ptp(self.core, axis=0)) / 2) or 1.0


def build_scene(
    *things: Thing,
    scalars: Sequence[Tensor | npt.NDArray[np.floating] | None] | None = None,
    colors: Sequence[RGB | None] | None = None,
    names: Sequence[str] | None = None,
) -> Scene:
    """Check the things and turn them into one scene.

    Coordinates lose the scene's origin in float64 before they become float32, so a map at 1e6 m keeps its millimetres.
    Colour is `scalars` (one scale for all: percentiles 2 to 98), else `colors`, else the thing's own, else the
    palette's by position.

    Raises: ShapeError for no things, an unknown or empty one, NaN or inf, or options that do not fit the things.
    """
    if not things:
        raise ShapeError("expected at least one thing to draw, got none")
    scalar_list = [None if s is None else _array(s) for s in _matching(scalars, len(things), "scalars")]
    color_list = _matching(colors, len(things), "colors")
    name_list = _matching(names, len(things), "names")
    given = [s.ravel() for s in scalar_list if s is not None and s.size]
    low, high = np.percentile(np.concatenate(given), [2, 98]) if given else (0.0, 1.0)
    raw: list[tuple[Drawable, Doubles]] = []
    turn = 0
    for i, thing in enumerate(things):
        drawable, positions = _arrays(thing, turn, f"thing {i}")
        turn += len(thing) if isinstance(thing, Points) else 1
        drawable = replace(drawable, name=name_list[i] or f"{drawable.name} {i + 1}")
        values, rgb = scalar_list[i], color_list[i]
        if values is not None and rgb is not None:
            raise ShapeError(f"thing {i}: expected scalars or a colour, got both")
        if values is not None:
            if isinstance(thing, Rigid) or values.shape != (len(positions),) or not np.isfinite(values).all():
                raise ShapeError(f"scalars[{i}]: expected {len(positions)} finite numbers, got shape {values.shape}")
            drawable = replace(drawable, colors=colormap(values, low=float(low), high=float(high)))
        if rgb is not None:
            flat = np.asarray(rgb, np.float32)
            if flat.shape != (3,) or not ((flat >= 0) & (flat <= 1)).all():
                raise ShapeError(f"colors[{i}]: expected RGB in [0, 1], got {rgb}")
            drawable = replace(drawable, colors=np.tile(flat, (len(drawable.colors), 1)))
        raw.append((drawable, positions))
    core = np.concatenate([_core(d.kind, p) for d, p in raw])
    size = float(np.linalg.norm(np.ptp(core, axis=0)) / 2) or 1.0
    grown = [_grow_frames(d, p, size) for d, p in raw]
    core = np.concatenate([core, *(_core(d.kind, p) for d, p in grown if d.kind == "lines")])  # with their axes
    origin = (core.min(0) + core.max(0)) / 2
    return Scene(tuple(_finish(d, p - origin) for d, p in grown), origin, core)


def _arrays(thing: Thing, turn: int, label: str) -> tuple[Drawable, Doubles]:
    """A drawable in its own colours, positions still float64; a Rigid's are its translations, six times over."""
    if isinstance(thing, np.ndarray):
        if thing.dtype.kind not in "fiu":
            raise ShapeError(f"{label}: expected numbers (N, 3), got an array of {thing.dtype}")
        thing = torch.from_numpy(np.ascontiguousarray(thing, np.float64))
    if isinstance(thing, Tensor):
        thing = Points(check_points(thing, label, minimum=1))
    if isinstance(thing, Rigid):
        return _frames(thing, label)
    if isinstance(thing, Points):
        positions = _array(check_points(thing.positions, label, minimum=1))
        return Drawable("points", "points", _EMPTY, _point_colors(thing, turn, label)), positions
    if isinstance(thing, Mesh | Lines):
        mesh = isinstance(thing, Mesh)
        positions = _array(check_points(thing.vertices if mesh else thing.positions, label, minimum=1))
        index = _array(thing.faces if mesh else thing.segments).astype(np.int32)
        if not len(index):
            raise ShapeError(f"{label}: expected at least one {'face' if mesh else 'segment'}, got none")
        colors = _palette(turn, len(positions)) if thing.colors is None else _colors(thing.colors, label)
        normals = None
        if isinstance(thing, Mesh) and thing.normals is not None:
            normals = _array(check_points(thing.normals, f"{label} normals")).astype(np.float32)
        kind: Literal["mesh", "lines"] = "mesh" if mesh else "lines"
        return Drawable(kind, kind, _EMPTY, colors, index, normals), positions
    raise ShapeError(f"{label}: expected Points, Mesh, Lines, Rigid or points (N, 3), got {describe(thing)}")


def _point_colors(points: Points, turn: int, label: str) -> Floats:
    count = points.positions.shape[0]
    if points.colors is not None:
        return _colors(points.colors, label)
    if points.offsets is not None and len(points) > 1:
        lengths = np.diff(_array(points.offsets).astype(np.int64))
        return PALETTE[(turn + np.repeat(np.arange(len(lengths)), lengths)) % len(PALETTE)]
    if points.intensities is not None:
        values = _array(points.intensities)
        if not np.isfinite(values).all():
            raise ShapeError(f"{label}: expected finite intensities, got NaN or inf")
        low, high = np.percentile(values, [2, 98])
        return colormap(values, low=float(low), high=float(high))
    return _palette(turn, count)


def _frames(poses: Rigid, label: str) -> tuple[Drawable, Doubles]:
    matrices = _array(poses.to_matrix()).reshape(-1, 4, 4)
    if not len(matrices) or not np.isfinite(matrices).all():
        raise ShapeError(f"{label}: expected at least one finite pose, got {describe(poses.translation)}")
    count = len(matrices)
    # `normals` carries each vertex's axis (zero at the frame's foot) until the scene's size says how long axes are
    axes = np.zeros((count, 3, 2, 3), np.float32)
    axes[:, :, 1] = matrices[:, :3, :3].swapaxes(1, 2)
    feet = np.repeat(matrices[:, :3, 3], 6, axis=0)
    colors = np.tile(np.repeat(_AXES, 2, axis=0), (count, 1))
    index = np.arange(6 * count, dtype=np.int32).reshape(-1, 2)
    return Drawable("lines", "frames", _EMPTY, colors, index, axes.reshape(-1, 3)), feet


def _grow_frames(drawable: Drawable, positions: Doubles, size: float) -> tuple[Drawable, Doubles]:
    if drawable.kind != "lines" or drawable.normals is None:
        return drawable, positions
    length = size * (0.2 if len(positions) <= 6 * 10 else 0.08)
    return replace(drawable, normals=None), positions + length * drawable.normals


def _finish(drawable: Drawable, positions: Doubles) -> Drawable:
    if np.abs(positions).max() > 1e30:
        raise ShapeError(f"{drawable.name}: expected coordinates that float32 can hold, got one beyond 1e30")
    drawable = replace(drawable, positions=positions.astype(np.float32))
    if drawable.kind == "mesh" and drawable.normals is None and drawable.index is not None:
        which, index, normals = split_creases(positions, drawable.index)
        return replace(
            drawable,
            positions=drawable.positions[which],
            colors=drawable.colors[which],
            index=index,
            normals=normals,
        )
    return drawable


def _core(kind: str, positions: Doubles) -> Doubles:
    """A sample without the few points that would shrink all others to a speck: those beyond the percentiles 2 and 98 on
    an axis that they stretch to more than 1.6 times that range."""
    sample = positions[:: max(1, len(positions) // 20000)]
    if kind != "points" or len(sample) < 20:
        return np.concatenate([sample, positions.min(0, keepdims=True), positions.max(0, keepdims=True)])
    low, high = np.percentile(sample, [2, 98], axis=0)
    first, last = positions.min(0), positions.max(0)
    stretched = (last - first) > 1.6 * (high - low)
    air = 0.1 * (high - low)
    low, high = np.where(stretched, low - air, first), np.where(stretched, high + air, last)
    inside = sample[((sample >= low) & (sample <= high)).all(1)]
    return inside if len(inside) else np.median(sample, axis=0, keepdims=True)


_EMPTY: Floats = np.zeros((0, 3), np.float32)


def _palette(turn: int, count: int) -> Floats:
    return np.tile(PALETTE[turn % len(PALETTE)], (count, 1))


def _colors(colors: Tensor, label: str) -> Floats:
    array = _array(colors).astype(np.float32)
    if not np.isfinite(array).all():
        raise ShapeError(f"{label}: expected colours in [0, 1], got NaN or inf")
    return np.clip(array, 0, 1)


def _array(x: Tensor | npt.NDArray[np.floating]) -> Doubles:
    return (x.detach().cpu().double().numpy() if isinstance(x, Tensor) else np.asarray(x)).astype(np.float64)


def _matching(options: Sequence[Any] | None, count: int, name: str) -> list[Any]:
    if options is None:
        return [None] * count
    if isinstance(options, Tensor | np.ndarray | str) or len(options) != count:
        raise ShapeError(f"{name}: expected a list of {count}, one for each thing or None, got {describe(options)}")
    return list(options)
