"""Pictures without a display: `render` through open3d where it works, through our own rasteriser elsewhere."""

import logging
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from geom.checks import check_choice, describe
from geom.errors import ShapeError
from geom.files import write_atomically
from geom.viz.camera import Camera, View, fit_camera
from geom.viz.probe import RendererError, probe
from geom.viz.rasterise import rasterise
from geom.viz.scene import RGB, Scene, Thing, build_scene
from geom.viz.shading import finish, shade

__all__ = ["render", "save_png"]

logger = logging.getLogger(__name__)
Engine = Literal["auto", "open3d", "numpy"]
Picture = npt.NDArray[np.uint8]
_LINE_WIDTH = 2.2  # pixels


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
            colour by position), `Mesh` (shaded, smooth up to creases), `Lines`, `Rigid` (frames: x red, y green, z blue),
            tensors or arrays (N, 3), in one unit and one frame.
        scalars: for each thing None or numbers (N,), drawn through a map from violet to yellow on one scale for all.
        colors: for each thing None or one RGB in [0, 1].
        view: size, camera, background, point size.
        engine: "auto" is open3d where `probe()` says that it draws, else numpy.

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
    draw = rasterise if engine == "numpy" or not _open3d_draws() else _draw_open3d
    count = sum(len(d.positions) for d in scene.drawables if d.kind == "points")
    image, near = draw(
        scene,
        camera,
        (2 * view.size[0], 2 * view.size[1]),
        background=view.background,
        point_size=2 * (view.point_size or _suitable(view.size, count)),
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


def _suitable(size: tuple[int, int], count: int) -> float:
    """A point's diameter in pixels, by the room that each has."""
    return float(np.clip(0.75 * np.sqrt(size[0] * size[1] / max(count, 1)), 2.0, 9.0))


@cache
def _open3d_draws() -> bool:
    found = probe()
    if not found.works:
        logger.info("drawing with the numpy engine: %s", found.reason)
    return found.works


def _draw_open3d(
    scene: Scene,
    camera: Camera,
    size: tuple[int, int],
    *,
    background: tuple[float, float, float],
    point_size: float,
    line_width: float,
) -> tuple[Picture, npt.NDArray[np.float32]]:
    """As `rasterise`, through Filament. The light is ours, in the vertices: Filament's tone mapping would tint the white."""
    with _quiet():
        import open3d as o3d

        rendering = o3d.visualization.rendering
        with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
            renderer = rendering.OffscreenRenderer(*size)
    stage = renderer.scene
    stage.view.set_post_processing(False)
    stage.set_background([*background, 1.0])
    scale = 1 / scene.radius  # whatever the unit, the GPU's float32 sees numbers near 1
    eye, basis = (np.asarray(camera.eye) - scene.origin), camera.basis()
    for i, (geometry, shader) in enumerate(open3d_geometries(scene, scale, eye, basis)):
        material = rendering.MaterialRecord()
        material.shader, material.point_size, material.line_width = shader, point_size, line_width
        stage.add_geometry(str(i), geometry, material)
    target = (np.asarray(camera.target) - scene.origin) * scale
    eye = eye * scale
    distance = float(np.linalg.norm(eye - target))
    reach = max(float(np.linalg.norm(d.positions * scale - eye, axis=1).max()) for d in scene.drawables)
    lens = rendering.Camera.FovType.Vertical
    stage.camera.set_projection(np.degrees(camera.fov), size[0] / size[1], 1e-2 * distance, 1.01 * reach, lens)
    stage.camera.look_at(target, eye, -basis[1])
    image = np.asarray(renderer.render_to_image()).copy()
    depth = np.asarray(renderer.render_to_depth_image(True))
    with np.errstate(divide="ignore"):
        near = np.where(np.isfinite(depth) & (depth > 0), 1 / depth, 0).astype(np.float32)
    return image, near


def open3d_geometries(
    scene: Scene, scale: float, eye: npt.NDArray[np.float64], basis: npt.NDArray[np.float64]
) -> Iterator[tuple[Any, str]]:
    """Each drawable as an open3d geometry about the scene's origin, times `scale`, with the shader that draws it."""
    import open3d as o3d

    vectors, pairs, triples = o3d.utility.Vector3dVector, o3d.utility.Vector2iVector, o3d.utility.Vector3iVector
    for thing in scene.drawables:
        places = vectors(thing.positions.astype(np.float64) * scale)
        if thing.kind == "points":
            cloud = o3d.geometry.PointCloud(places)
            cloud.colors = vectors(thing.colors.astype(np.float64))
            yield cloud, "defaultUnlit"
        elif thing.kind == "lines":
            lines = o3d.geometry.LineSet(places, pairs(thing.index))
            lines.colors = vectors(thing.colors[thing.index].mean(1).astype(np.float64))  # open3d: one for a segment
            yield lines, "unlitLine"
        elif thing.normals is not None and thing.index is not None:
            both = np.concatenate([thing.index, thing.index[:, ::-1]])  # open3d draws front faces only
            mesh = o3d.geometry.TriangleMesh(places, triples(both))
            lit = shade(thing.colors, thing.normals, thing.positions, eye, basis)
            mesh.vertex_colors = vectors(lit.astype(np.float64))
            yield mesh, "defaultUnlit"


@contextmanager
def _quiet() -> Iterator[None]:
    """Filament reports its start on the process's stdout, where a caller may be writing JSON; it goes to the log."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(1)
        try:
            os.dup2(file.fileno(), 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            logger.debug("%s", file.read().decode(errors="replace"))
