"""The chapter on registration: real pairs of scans where there are any, and the two that come with the package."""

import io
import math
import time
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from geom.demo.pictures import Look, draw_pair
from geom.demo.tour import Chapter, Result
from geom.errors import ConvergenceWarning, FileFormatError
from geom.lie import Rigid
from geom.registration import Registration, icp

__all__ = ["Pair", "chapter", "perturb", "pose_error", "read_pair"]

_TEXT = (
    "Two scans of one place, each in its own sensor's coordinates. geom.registration.icp starts from a pose that is "
    "wrong by the amount named and finds the one that lays the source (orange) onto the target (blue). The error is "
    "that against the label; labels of real pairs are themselves off by some hundredths of a degree to one degree, and "
    "by centimetres, while those of the simulated pairs are exact. The standard deviations are those that icp reports."
)
_COLUMNS = {
    "points": "{source_points} → {target_points}",
    "start": "{start_rotation_deg:.0f}°, {start_translation_m:g} m",
    "rotation error": "{rotation_error_deg:.3f}°",
    "translation error": "{translation_error_m:.4f} m",
    "std. deviations": "{worst_rotation_sd_deg:.3f}°, {worst_translation_sd_m:.4f} m",
    "rmse": "{rmse_m:.4f} m",
    "overlap": "{overlap:.0%}",
    "iterations": "{iterations}",
    "converged": "{converged}",
    "time": "{seconds:.2f} s",
}


class Kind(NamedTuple):
    """A sensor: how wrong its pairs start, from where the picture is taken, and a sentence."""

    degrees: float
    metres: float
    look: Look
    words: str


LIDAR = Kind(
    5.0,
    0.5,
    Look.LIDAR,
    "Rings on the ground and lines on the walls, from a spinning LiDAR at two places.",
)
RGBD = Kind(
    10.0,
    0.15,
    Look.CAMERA,
    "A room through a depth camera from two sides; each sees parts that are hidden from the other.",
)
STREET = LIDAR._replace(
    words="A simulated street: two turns of a 32-beam LiDAR, 6 m and 20° apart. Cars and trees throw shadows, the "
    "windows' dark glass sends little back, and the returns thin out with distance."
)
TEAPOT = Kind(
    10.0,
    0.03,
    Look.CAMERA,
    "A simulated teapot of 0.3 m before a depth camera at 0.6 m, from two sides 35° apart; half of it stays unseen.",
)


class File(Protocol):
    """A path, or a file inside a package."""

    def read_bytes(self) -> bytes: ...


class Pair(NamedTuple):
    """Two clouds (N, 3) and (M, 3) float32, metres, and the true pose: target ~ T_target_source source."""

    source: Tensor
    target: Tensor
    T_target_source: Rigid


def chapter(data: Path | None) -> Chapter:
    """Jobs for `registration/lidar/*.npz` and `registration/rgbd/*.npz` under `data`, then for the shipped pairs."""
    jobs: list[tuple[str, Callable[[Path], Result]]] = []
    for folder, kind in (("lidar", LIDAR), ("rgbd", RGBD)):
        for path in sorted((data / "registration" / folder).glob("*.npz")) if data else ():
            jobs.append((path.stem, partial(_job, path.stem, path, kind)))
    for name, kind in (("street", STREET), ("teapot", TEAPOT)):
        file = files("geom.assets") / f"scan_{'object' if name == 'teapot' else name}.npz"
        jobs.append((name, partial(_job, name, file, kind)))
    return Chapter("registration", "Registration: two scans become one", _TEXT, _COLUMNS, jobs)


def read_pair(file: File) -> Pair:
    """Read a pair: `src` (N, 3), `tgt` (M, 3), `T_tgt_src` (4, 4) in an .npz archive.

    Raises: FileFormatError if it is something else; OSError as `open` would.
    """
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            src, tgt, T = (arrays[key] for key in ("src", "tgt", "T_tgt_src"))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise FileFormatError(str(file), f"expected scans src and tgt and a pose T_tgt_src: {error}") from error
    for name, x, fits in (
        ("src", src, src.ndim == 2 and src.shape[1] == 3),
        ("tgt", tgt, tgt.ndim == 2 and tgt.shape[1] == 3),
        ("T_tgt_src", T, T.shape == (4, 4)),
    ):
        if not fits or x.dtype.kind != "f" or not np.isfinite(x).all():
            raise FileFormatError(str(file), f"{name}: expected finite floats, got {x.dtype} of shape {x.shape}")
    source, target = (torch.from_numpy(x.astype(np.float32)) for x in (src, tgt))
    return Pair(source, target, Rigid.from_matrix(torch.from_numpy(T.astype(np.float64))))


def perturb(pose: Rigid, about: Tensor, *, degrees: float, metres: float, seed: int) -> Rigid:
    """`pose` after a turn about the point `about` (3,) of the source and a shift, random in direction, not in size."""
    rng = np.random.default_rng(seed)
    axis, shift = (torch.from_numpy(v / np.linalg.norm(v)) for v in rng.normal(size=(2, 3)))
    half = math.radians(degrees) / 2
    turn = torch.cat([torch.tensor([math.cos(half)], dtype=torch.float64), math.sin(half) * axis])
    to_centre, still = about.double(), Rigid.identity(dtype=torch.float64).quat_wxyz
    moved = Rigid(turn, to_centre + metres * shift).compose(Rigid(still, -to_centre))
    return pose.compose(moved)


def pose_error(pose: Rigid, truth: Rigid) -> tuple[float, float]:
    """Angle (degrees) and distance of translations (metres) between two poses."""
    angle, distance = pose.distance(truth)
    return math.degrees(angle), float(distance)


def _job(name: str, file: File, kind: Kind, out: Path) -> Result:
    pair = read_pair(file)
    start = perturb(
        pair.T_target_source, pair.source.mean(0), degrees=kind.degrees, metres=kind.metres, seed=sum(map(ord, name))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the table tells
        icp(pair.source, pair.target, init=start)  # the first run may compile
        begin = time.perf_counter()
        found = icp(pair.source, pair.target, init=start)
        seconds = time.perf_counter() - begin
    numbers = {
        "source_points": len(pair.source),
        "target_points": len(pair.target),
        "start_rotation_deg": kind.degrees,
        "start_translation_m": kind.metres,
        **_numbers(pair, found),
        "seconds": seconds,
    }
    drawn = draw_pair(out, name, pair.source, pair.target, before=start, after=found.value, look=kind.look)
    return Result(name, numbers, f"{kind.words} {_words(numbers)} {drawn.problem}".strip(), drawn.picture, drawn.scene)


def _numbers(pair: Pair, found: Registration) -> dict[str, Any]:
    rotation, translation = pose_error(found.value, pair.T_target_source)
    deviations = found.covariance.diagonal().sqrt()
    return {
        "rotation_error_deg": rotation,
        "translation_error_m": translation,
        "rmse_m": float(found.rmse),
        "overlap": float(found.overlap),
        "converged": bool(found.converged),
        "iterations": int(found.iterations),
        "translation_sd_m": deviations[:3].tolist(),
        "rotation_sd_deg": deviations[3:].rad2deg().tolist(),
        "worst_translation_sd_m": float(deviations[:3].max()),
        "worst_rotation_sd_deg": float(deviations[3:].max().rad2deg()),
        "degenerate_directions": found.degenerate_directions.tolist(),
    }


def _words(numbers: dict[str, Any]) -> str:
    free = len(numbers["degenerate_directions"])
    return (
        f"It starts {numbers['start_rotation_deg']:.0f}° and {numbers['start_translation_m']:g} m off, and ends "
        f"{numbers['rotation_error_deg']:.2f}° and {1e3 * numbers['translation_error_m']:.1f} mm from the label"
        + (f"; {free} of 6 directions are hardly held by the scene." if free else ".")
    )
