"""Where a picture is taken from: `Camera`, `View`, and the camera that fits a scene."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geom.checks import describe
from geom.errors import ShapeError

__all__ = ["Camera", "View", "fit_camera"]

Doubles = npt.NDArray[np.float64]
Triple = tuple[float, float, float]
_MARGIN = 1.08  # a fitted scene leaves this much air


class Camera(NamedTuple):
    """A pinhole camera at `eye` that looks at `target`; `up` points up in the picture, `fov` is its height in radians.

    >>> pixels, depth = Camera((0, -5, 0), (0, 0, 0)).project(np.zeros((1, 3)), (300, 200))
    >>> pixels.tolist(), depth.tolist()
    ([[150.0, 100.0]], [5.0])
    """

    eye: Triple
    target: Triple
    up: Triple = (0.0, 0.0, 1.0)
    fov: float = 0.6

    def basis(self) -> Doubles:
        """Rows right, down, forward (3, 3). Raises: ShapeError where eye = target or `up` runs along their line."""
        eye, target, up = (_vector(v, n) for v, n in zip(self[:3], ("eye", "target", "up"), strict=True))
        forward = target - eye
        right = np.cross(forward, up)
        scale = np.linalg.norm(forward) * np.linalg.norm(up)
        if not np.linalg.norm(right) > 1e-9 * scale:
            raise ShapeError(f"camera: expected eye, target and up to span a plane, got {eye}, {target}, {up}")
        right /= np.linalg.norm(right)
        forward /= np.linalg.norm(forward)
        return np.stack([right, np.cross(forward, right), forward])

    def to_camera(self, points: Doubles) -> Doubles:
        """World coordinates (N, 3) as camera coordinates: x right, y down, z forward."""
        return (np.asarray(points, np.float64) - np.asarray(self.eye, np.float64)) @ self.basis().T

    def focal(self, size: tuple[int, int]) -> float:
        """Focal length in pixels of a picture (width, height)."""
        return size[1] / 2 / math.tan(self.fov / 2)

    def project(self, points: Doubles, size: tuple[int, int]) -> tuple[Doubles, Doubles]:
        """Pixel coordinates (N, 2), x right and y down from the top left corner, and depths (N,) along the axis."""
        x, y, z = self.to_camera(points).T
        safe = np.where(z == 0, 1.0, z)
        focal = self.focal(size)
        return np.stack([size[0] / 2 + focal * x / safe, size[1] / 2 + focal * y / safe], -1), z


@dataclass(frozen=True)
class View:
    """How a picture is taken.

    Fields: `size` (width, height) in pixels; `camera` a `Camera`, a tuple (eye, target, up), or None to fit the scene
    from the front right above; `up` the direction that a fitted camera keeps upright, z unless said otherwise (glTF has
    y); `background` RGB in [0, 1]; `point_size` the diameter of a point in pixels, None for one that suits the count.

    Raises: ShapeError.
    """

    size: tuple[int, int] = (1200, 800)
    camera: Camera | tuple[Triple, Triple, Triple] | None = None
    up: Triple = (0.0, 0.0, 1.0)
    background: Triple = (1.0, 1.0, 1.0)
    point_size: float | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(isinstance(n, int) and 1 <= n <= 8192 for n in self.size):
            raise ShapeError(f"size: expected (width, height) from 1 to 8192 pixels, got {self.size}")
        if self.camera is not None:
            camera = self.camera if isinstance(self.camera, Camera) else Camera(*self.camera)
            camera.basis()
            if not 0 < camera.fov < math.pi:
                raise ShapeError(f"fov: expected radians in (0, pi), got {camera.fov}")
            object.__setattr__(self, "camera", camera)
        if not np.any(_vector(self.up, "up")):
            raise ShapeError("up: expected a direction, got zeros")
        if not np.all((_vector(self.background, "background") >= 0) & (np.asarray(self.background) <= 1)):
            raise ShapeError(f"background: expected RGB in [0, 1], got {self.background}")
        if self.point_size is not None and not 0 < self.point_size <= 100:
            raise ShapeError(f"point_size: expected pixels in (0, 100], got {self.point_size}")


def fit_camera(points: Doubles, view: View) -> Camera:
    """The nearest camera of the 3/4 view that sees all `points` (N, 3), which then fill the picture.

    For a direction of sight, with points in camera axes (x, y, z) about their centre and half-width t of the picture at
    unit depth, a camera at (cx, ., -d) sees a point if |x - cx| <= t (z + d). With A = max(x - t z), B = max(-x - t z):
    d = (A + B) / 2t, cx = (A - B) / 2; likewise in y; the larger d serves both.
    """
    if isinstance(view.camera, Camera):
        return view.camera
    low, high = points.min(0), points.max(0)
    centre, radius = (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, 1e-12)
    if radius <= 1e-9 * max(1e-3, float(np.abs(centre).max())):
        radius = max(1.0, 1e-6 * float(np.abs(centre).max()))  # one place only: any distance shows it
    up = np.asarray(view.up, np.float64) / np.linalg.norm(view.up)
    side = np.eye(3)[0] if abs(up[0]) < 0.9 else np.eye(3)[1]
    side = side - up * (side @ up)
    side /= np.linalg.norm(side)
    toward = 0.62 * side + np.cross(side, up) + 0.78 * up
    toward /= np.linalg.norm(toward)
    here = Camera(tuple(centre + toward), tuple(centre), tuple(up))
    right, down, forward = here.basis()
    x, y, z = ((points - centre) @ np.stack([right, down, forward]).T).T
    half_height = math.tan(here.fov / 2) / _MARGIN
    half_width = half_height * view.size[0] / view.size[1]
    shift: list[float] = []
    distance = 0.3 * radius - float(z.min())  # at the least: the eye stays outside
    for axis, half in ((x, half_width), (y, half_height)):
        plus, minus = float(np.max(axis - half * z)), float(np.max(-axis - half * z))
        shift.append((plus - minus) / 2)
        distance = max(distance, (plus + minus) / (2 * half))
    target = centre + shift[0] * right + shift[1] * down
    return here._replace(eye=tuple((target - distance * forward).tolist()), target=tuple(target.tolist()))


def _vector(x: object, name: str) -> Doubles:
    try:
        vector = np.asarray(x, np.float64)
    except (TypeError, ValueError):
        vector = np.full(1, np.nan)
    if vector.shape != (3,) or not np.isfinite(vector).all():
        raise ShapeError(f"{name}: expected three finite numbers, got {x if isinstance(x, tuple) else describe(x)}")
    return vector
