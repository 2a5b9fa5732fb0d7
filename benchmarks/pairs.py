"""Pairs of scans with a known pose: those under GEOM_DATA, and the two that geom ships."""

import math
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.given import choose, data_folder

__all__ = ["Pair", "Setting", "choose_pairs", "first_and_largest", "inputs", "pose_errors", "read_pairs"]

Array = NDArray[np.float64]


class Setting(NamedTuple):
    """Metres and degrees: `voxel`; `reach`, the largest distance of a match and VGICP's voxel; `angle` and `shift`
    of the start from the label; `stop`, small_gicp's translation step counted as converged (its default is 1 mm)."""

    voxel: float
    reach: float
    angle: float
    shift: float
    stop: float


class Pair(NamedTuple):
    """`source` (N, 3) and `target` (M, 3) float32, metres; `pose` (4, 4) float64, target ~ pose source; `label`, how
    far the pose can be trusted."""

    name: str
    source: NDArray[np.float32]
    target: NDArray[np.float32]
    pose: Array
    setting: Setting
    label: str

    def start(self, seed: int) -> Array:
        """The label after a turn and a shift of the source about its centroid, in directions that `seed` draws."""
        random = np.random.default_rng(seed)
        axis, direction = (v / np.linalg.norm(v) for v in random.standard_normal((2, 3)))
        angle = math.radians(self.setting.angle)
        cross = np.cross(np.eye(3), -axis)
        turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
        center = self.source.mean(0, dtype=np.float64)
        move = np.eye(4)
        move[:3, :3] = turn
        move[:3, 3] = center - turn @ center + self.setting.shift * direction
        return self.pose @ move


_OUTDOOR = Setting(voxel=0.25, reach=1.0, angle=5, shift=0.5, stop=1e-3)
_INDOOR = Setting(voxel=0.05, reach=0.15, angle=10, shift=0.15, stop=1e-3)
_TABLETOP = Setting(voxel=0.005, reach=0.02, angle=10, shift=0.015, stop=2e-5)
_FOLDERS = {
    "lidar": (_OUTDOOR, "label good to 0.02-0.7 deg and 1-2 cm"),
    "rgbd": (_INDOOR, "label good to 0.5-1.4 deg and 2-11 cm"),
}
_SHIPPED = {"scan_street": _OUTDOOR, "scan_object": _TABLETOP}


def read_pairs() -> list[Pair]:
    """All pairs, by folder and name; the shipped two come last."""
    folder = data_folder()
    pairs = []
    for kind, (setting, label) in _FOLDERS.items():
        for path in sorted((folder / "registration" / kind).glob("*.npz")):
            pairs.append(_read(path.stem, path, setting, label))
    for name, setting in _SHIPPED.items():
        with resources.as_file(resources.files("geom.assets") / f"{name}.npz") as path:
            pairs.append(_read(name, path, setting, "label exact (simulated scans)"))
    return pairs


def _read(name: str, path: Path, setting: Setting, label: str) -> Pair:
    with np.load(path) as arrays:
        return Pair(name, arrays["src"], arrays["tgt"], arrays["T_tgt_src"], setting, label)


def choose_pairs(pairs: list[Pair], names: tuple[str, ...]) -> list[Pair]:
    """Those of the names. Raises: GeomError for a name that is not there."""
    known = {pair.name: pair for pair in pairs}
    return [known[name] for name in choose(known, names)]


def inputs(names: tuple[str, ...]) -> list[Pair]:
    """The pairs of these names. Raises: GeomError for a name that is not there."""
    return choose_pairs(read_pairs(), names)


def first_and_largest(pairs: list[Pair]) -> list[Pair]:
    """Two outdoor pairs, of which one is the largest; the shipped two where there is one outdoor pair only."""
    outdoor = [pair for pair in pairs if pair.setting == _OUTDOOR]
    largest = max(outdoor, key=lambda pair: len(pair.source))
    others = [pair for pair in [*outdoor, *pairs] if pair.name != largest.name]
    return [others[0], largest]


def pose_errors(pose: Array, label: Array) -> dict[str, float]:
    """Angle of the rotation between two poses, degrees, precise near 0, and distance of their translations, metres."""
    chord = float(np.linalg.norm(pose[:3, :3] - label[:3, :3])) / math.sqrt(8)
    return {
        "rotation_deg": math.degrees(2 * math.asin(min(1.0, chord))),
        "translation_m": float(np.linalg.norm(pose[:3, 3] - label[:3, 3])),
    }
