"""Can open3d draw here without a display, and on what? Asked once, by drawing one small picture."""

import json
import logging
import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from geom.files import write_atomically
from geom.viz.filament import RendererError, run_worker

__all__ = ["Probe", "probe"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """What open3d can do here.

    Fields: `works`: it draws off screen; `software`: it does so on the CPU (llvmpipe and its like), slower than our own
    engine; `reason`: where it does not work, why, and what to install.
    """

    works: bool
    software: bool = False
    reason: str = ""


@cache
def probe() -> Probe:
    """Draw one red picture with open3d in another process; the answer holds for the rest of this one.

    A success is also kept in the user's cache folder (XDG_CACHE_HOME, else ~/.cache) for this machine and open3d, and
    saves three seconds next time; a failure is not, for the next call may come after the installation that cures it.

    >>> from geom import viz
    >>> viz.probe().reason  # doctest: +SKIP
    ''
    """
    if find_spec("open3d") is None:
        return Probe(False, reason="drawing with open3d needs open3d: pip install 'geom-toolkit[viz]'")
    known, here = _cache_file(), _environment()
    try:
        kept = json.loads(known.read_text())
        if kept["environment"] == here:
            return Probe(**kept["probe"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing known, or not readable: ask again
    found = _ask()
    if found.works:
        try:
            known.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(known, json.dumps({"environment": here, "probe": asdict(found)}))
        except OSError as error:
            logger.debug("cannot keep the answer in %s: %s", known, error)
    return found


def _ask() -> Probe:
    ahead, up, one = np.array([0.0, 1, 0]), np.array([0.0, 0, 1]), np.array(1.0)
    job = {"size": np.array([64, 64]), "background": np.array([1.0, 0, 0]), "kinds": np.array([], "U6")}
    job |= {"range": np.array([0.1, 10]), "fov_degrees": 40 * one, "eye": 0 * up, "target": ahead, "up": up}
    try:
        result, printed = run_worker(job)
    except RendererError as error:
        return Probe(False, reason=str(error))
    if result["image"].shape != (64, 64, 3) or result["image"][32, 32].tolist() != [255, 0, 0]:
        return Probe(False, reason=f"open3d drew {result['image'][32, 32].tolist()} where red was asked for")
    words = printed.lower()
    return Probe(True, software=any(name in words for name in ("llvmpipe", "lavapipe", "swiftshader", "software")))


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
