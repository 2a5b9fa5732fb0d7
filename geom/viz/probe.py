"""Can open3d draw here without a display? Asked once, in another process: a driver that fails may take its process along."""

import json
import logging
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from geom.errors import MissingDependencyError
from geom.files import write_atomically

__all__ = ["Probe", "RendererError", "probe"]

logger = logging.getLogger(__name__)

SYSTEM_LIBRARIES = (
    "apt-get install -y libusb-1.0-0 libgl1 libegl1 libgomp1 libx11-6 libvulkan1 mesa-vulkan-drivers"  # Debian, Ubuntu
)
_TIMEOUT = 90.0  # seconds; about 3 where it works
_DRAW = """
import numpy, open3d
r = open3d.visualization.rendering
renderer = r.OffscreenRenderer(64, 64)
renderer.scene.view.set_post_processing(False)
renderer.scene.set_background([1.0, 0.0, 0.0, 1.0])
image = numpy.asarray(renderer.render_to_image())
assert image.shape == (64, 64, 3) and image[32, 32].tolist() == [255, 0, 0], "a red picture came out wrong"
print("geom: drawn")
"""


class RendererError(MissingDependencyError):
    """open3d is asked to draw and cannot: it is absent, or a system library is; the message holds the line to run."""

    def __init__(self, reason: str) -> None:
        ImportError.__init__(self, reason)


@dataclass(frozen=True)
class Probe:
    """Whether open3d draws off screen in this environment, and if not, why and what to install."""

    works: bool
    reason: str


@cache
def probe() -> Probe:
    """Draw one small picture with open3d in another process; the answer holds for the rest of this one.

    A success is also kept in the user's cache folder (XDG_CACHE_HOME, else ~/.cache) for this machine and open3d, and
    saves the three seconds next time; a failure is not, for the next call may come after the installation that cures it.

    >>> isinstance(probe().works, bool)  # doctest: +SKIP
    True
    """
    if find_spec("open3d") is None:
        return Probe(False, "drawing with open3d needs open3d: pip install 'geom-toolkit[viz]'")
    known, here = _cache_file(), _environment()
    try:
        if json.loads(known.read_text()) == here:
            return Probe(True, "")
    except (OSError, ValueError):
        pass  # nothing known, or not readable: ask again
    found = _ask()
    if found.works:
        try:
            known.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(known, json.dumps(here))
        except OSError as error:
            logger.debug("cannot keep the answer in %s: %s", known, error)
    return found


def _ask() -> Probe:
    try:
        run = subprocess.run(
            [sys.executable, "-c", _DRAW], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return Probe(False, f"open3d did not draw a picture within {_TIMEOUT:.0f} s; {_advice()}")
    if run.returncode == 0 and "geom: drawn" in run.stdout:
        return Probe(True, "")
    if run.returncode < 0:
        reason = f"the process died of signal {-run.returncode}"
    else:
        reason = (run.stderr.strip() or run.stdout.strip() or "no picture came").splitlines()[-1]
    return Probe(False, f"open3d cannot draw off screen ({reason}); {_advice()}")


def _advice() -> str:
    return f"it may lack system libraries: {SYSTEM_LIBRARIES}"


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "geom" / "open3d-draws.json"


def _environment() -> dict[str, str]:
    found = "unknown"
    for name in ("open3d", "open3d-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
    return {"open3d": found, "python": platform.python_version(), "machine": platform.node()}
