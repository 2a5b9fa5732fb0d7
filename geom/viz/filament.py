"""The open3d engine: Filament, in a process of its own.

Drivers that fail take their process along, and some never return from a frame: each picture has its own process and a
time limit.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geom.errors import MissingDependencyError
from geom.viz.camera import Camera
from geom.viz.scene import Scene
from geom.viz.shading import shade

__all__ = ["RendererError", "draw_filament", "run_worker"]

Arrays = dict[str, npt.NDArray[Any]]
SYSTEM_LIBRARIES = (
    "apt-get install -y libusb-1.0-0 libgl1 libegl1 libgomp1 libx11-6 libvulkan1 mesa-vulkan-drivers"  # Debian, Ubuntu
)
_TIME_LIMIT = 30.0  # seconds; a picture takes about 3


class RendererError(MissingDependencyError):
    """open3d is to draw and cannot: it is absent, or a system library is; the message holds the line to run."""

    def __init__(self, reason: str) -> None:
        ImportError.__init__(self, reason)


def draw_filament(
    scene: Scene,
    camera: Camera,
    size: tuple[int, int],
    *,
    background: tuple[float, float, float],
    point_size: float,
    line_width: float,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """As `rasterise`, through Filament. The light is ours, in the colours of the vertices. Raises: RendererError."""
    eye, basis = np.asarray(camera.eye) - scene.origin, camera.basis()
    target = np.asarray(camera.target) - scene.origin
    scale = 1 / scene.radius  # whatever the unit, the GPU's float32 sees numbers near 1
    distance = float(np.linalg.norm(eye - target))
    reach = max(float(np.linalg.norm(d.positions - eye, axis=1).max()) for d in scene.drawables)
    job: Arrays = {
        "size": np.array(size),
        "background": np.array(background, np.float64),
        "point_size": np.array(float(point_size)),
        "line_width": np.array(float(line_width)),
        "kinds": np.array([d.kind for d in scene.drawables]),
        "range": scale * np.array([min(1e-2 * distance, 0.5 * reach), 1.01 * reach]),
        "fov_degrees": np.array(np.degrees(camera.fov)),
        "eye": scale * eye,
        "target": scale * target,
        "up": -basis[1],
    }
    for i, thing in enumerate(scene.drawables):
        job[f"positions{i}"] = thing.positions.astype(np.float64) * scale
        job[f"colors{i}"] = thing.colors
        if thing.normals is not None:
            job[f"colors{i}"] = shade(thing.colors, thing.normals, thing.positions, eye, basis)
        if thing.index is not None:
            job[f"index{i}"] = thing.index
    result, _ = run_worker(job)
    depth = result["depth"]
    near = np.where(np.isfinite(depth) & (depth > 0), 1 / np.where(depth > 0, depth, 1), 0)
    return result["image"], near.astype(np.float32)


def run_worker(job: Arrays) -> tuple[Arrays, str]:
    """One job's arrays and what the driver printed. Raises: RendererError where no picture came, saying why."""
    with tempfile.TemporaryDirectory(prefix="geom-") as folder:
        source, target = Path(folder, "job.npz"), Path(folder, "picture.npz")
        np.savez(source, **job)  # type: ignore[arg-type]
        command = [sys.executable, "-c", Path(__file__).with_name("_worker.py").read_text(), str(source), str(target)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIME_LIMIT)
        except subprocess.TimeoutExpired:
            raise RendererError(f"open3d did not draw a picture within {_TIME_LIMIT:.0f} s; {_ADVICE}") from None
        printed = run.stdout + run.stderr
        if run.returncode or not target.exists():
            lines = printed.strip().splitlines() or ["no picture came"]
            cause = f"the process died of signal {-run.returncode}" if run.returncode < 0 else lines[-1]
            raise RendererError(f"open3d cannot draw off screen ({cause}); {_ADVICE}")
        with np.load(target) as file:
            return dict(file), printed


_ADVICE = f"it may lack system libraries: {SYSTEM_LIBRARIES}"
