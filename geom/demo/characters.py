"""The chapter on characters: glTF rigs posed, the synthetic human skinned in three ways, and found again in a scan."""

import re
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geom.demo.pictures import SOURCE, TARGET, draw_strip
from geom.demo.tour import Chapter, Result
from geom.errors import ConvergenceWarning, FileFormatError
from geom.io.arrays import read_arrays
from geom.io.bytes import open_source
from geom.lie import quaternion
from geom.meshes import Mesh, mass_properties, sample_surface
from geom.skinning import BodyModel, BodyState, Rig, deform, fit_body, load_rig, synthetic_human
from geom.values import replace

__all__ = ["chapter", "golden_error"]

_TEXT = (
    "Surfaces that follow their bones. geom.skinning.load_rig reads a character from glTF, geom.skinning.deform bends "
    "its skin at some moments of its animation; the error is the largest against the reference vertices beside "
    "the file, as a share of the character's size. The human is our own and comes with the package: no person was "
    "measured for it. A time is that of one pose out of several that are computed at once, its bones included."
)
_COLUMNS = {
    "vertices": "{vertices}",
    "joints": "{joints}",
    "a pose": "{milliseconds_a_pose:.2f} ms",
    "off the reference": "{reference_error:.0e}",
    "volume kept": "{least_volume_linear:.0%} / {least_volume_corrected:.0%} / {least_volume_dual:.0%}",
    "off the truth": "{vertex_error_mm:.2f} mm",
}
_UP = (0.0, 1.0, 0.0)
_PANELS = 6
_KEY = re.compile(r"anim(None|\d+)_t(.+)_node(\d+)_prim(\d+)")
_WAYS = {"linear": "linear", "corrected": "linear + corrective", "dual": "dual quaternions"}
# rotation vectors, radians, of joints on the left; the right ones mirror them
_POSES = {
    "crouch": {
        "hip": (-1.5, 0.0, 0.0),
        "knee": (1.9, 0.0, 0.0),
        "shoulder": (0.0, 0.0, -1.1),
        "elbow": (0.0, -2.2, 0.0),
    },
    "stretch": {"hip": (0.0, 0.0, 0.7), "shoulder": (0.0, 0.0, 1.0), "elbow": (2.6, 0.0, 0.0)},
}


def chapter(data: Path | None) -> Chapter:
    """Jobs for `skinning/gltf/*.gl*` under `data`, with `skinning/golden/<stem>_skinned.npz` where there is one, then
    for the human that comes with the package."""
    jobs: list[tuple[str, Callable[[Path], Result]]] = []
    for path in sorted((data / "skinning" / "gltf").glob("*.gl*")) if data else ():
        golden = path.parents[1] / "golden" / f"{path.stem}_skinned.npz"
        jobs.append((path.stem, partial(_played, path, golden if golden.is_file() else None)))
    jobs += [("human", _bent), ("scanned human", _scanned)]
    return Chapter("characters", "Characters: skin over bones", _TEXT, _COLUMNS, jobs)


def golden_error(rig: Rig, path: Path) -> float:
    """The largest distance along an axis of `deform` from vertices `anim{a}_t{seconds}_node{n}_prim{p}` in an .npz
    archive, over the diagonal of those.

    Raises: FileFormatError if it is something else, or another character's; OSError as `open` would.
    """
    place = {(p.node, p.index): i for i, p in enumerate(rig.primitives)}
    worst = 0.0
    golden = {name: torch.from_numpy(x.astype(np.float64)) for name, x in read_arrays(open_source(path)).items()}
    for key, expected in golden.items():
        found = _KEY.fullmatch(key)
        try:
            which, moment, node, index = found.groups() if found else (None, "", "", "")
            animation = None if which in (None, "None") else int(which)
            if animation is not None and animation >= len(rig.animations):
                raise IndexError(f"animation {animation}")
            x = deform(rig, rig.pose(animation=animation, time=float(moment)))[place[int(node), int(index)]]
        except (ValueError, KeyError, IndexError) as error:
            raise FileFormatError(path, f"{key}: expected an animation and a surface of the character") from error
        if x.shape != expected.shape or not bool(expected.isfinite().all()):
            raise FileFormatError(path, f"{key}: expected finite {tuple(x.shape)}, got {tuple(expected.shape)}")
        if len(x):
            extent = float((expected.amax(0) - expected.amin(0)).norm())
            worst = max(worst, float((x - expected).abs().max()) / max(extent, 1e-12))
    return worst


def _timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """What a job returns, and the median of its seconds in runs after the first, which may compile."""
    found, seconds = job(), []
    for _ in range(7):
        begin = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - begin)
    return found, statistics.median(seconds)


@torch.no_grad()
def _played(path: Path, golden: Path | None, out: Path) -> Result:
    name, rig = path.stem, load_rig(path)
    which = 0 if rig.animations else None
    duration = 0.0 if which is None else rig.animations[which].duration
    count = _PANELS if duration > 0 else 1
    times = torch.linspace(0, duration, count + 1, dtype=torch.float64)[:-1]  # the end is often the beginning
    frames, seconds = _timed(lambda: deform(rig, rig.pose(animation=which, time=times)))
    frames = [x.expand(count, *x.shape[-2:]) for x in frames]
    joints = {joint for skin in rig.skins for joint in skin.joints.tolist()}
    numbers: dict[str, Any] = {
        "vertices": sum(len(p.vertices) for p in rig.primitives),
        "joints": len(joints),
        "animations": len(rig.animations),
        "milliseconds_a_pose": 1e3 * seconds / count,
    }
    if golden is not None:
        numbers["reference_error"] = golden_error(rig, golden)
    surfaces = [(p, x) for p, x in zip(rig.primitives, frames, strict=True) if p.vertices.shape[0]]
    panels = [[(Mesh(x[k], p.faces) if len(p.faces) else x[k], None) for p, x in surfaces] for k in range(count)]
    drawn = draw_strip(out, f"rig_{name}", panels, size=(270, 340), up=_UP)
    what = f"skins: {len(rig.skins)}, morph targets: {rig.morph.shape[-1]}"
    how = f"moments of its first animation, {duration:.1f} s long" if duration > 0 else "at rest"
    words = f"{path.name}: nodes: {len(rig.names)}, {what}; {how}. {drawn.problem}"
    captions = tuple(f"{t:.2f} s" for t in times.tolist()) if duration > 0 else ("at rest",)
    return Result(name, numbers, words.strip(), drawn.picture, captions=captions)


def _posed(body: BodyModel, pose: str) -> BodyState:
    turn = body.template.new_zeros(len(body.names), 3)
    for side, mirror in (("left", (1.0, 1.0, 1.0)), ("right", (1.0, -1.0, -1.0))):
        for joint, rotvec in _POSES[pose].items():
            turn[body.names.index(f"{side}_{joint}")] = turn.new_tensor(rotvec) * turn.new_tensor(mirror)
    return replace(body.state(), quat_wxyz=quaternion.exp(turn))


@torch.no_grad()
def _bent(out: Path) -> Result:
    body = synthetic_human()
    plain = replace(body, corrective=None)
    ways = {"linear": plain, "corrected": body, "dual": replace(plain, method="dqs")}
    whole = mass_properties(body.template, body.faces).volume
    numbers: dict[str, Any] = {"vertices": len(body.template), "joints": len(body.parent)}
    panels = []
    for pose in _POSES:
        state = _posed(body, pose)
        for way, model in ways.items():
            x = model.apply(state).vertices
            numbers[f"volume_{way}_{pose}"] = float(mass_properties(x, body.faces).volume / whole)
            panels.append([(Mesh(x, body.faces), SOURCE if way == "linear" else TARGET)])
    for way in ways:
        numbers[f"least_volume_{way}"] = min(numbers[f"volume_{way}_{pose}"] for pose in _POSES)
    many = replace(plain.state(_PANELS), quat_wxyz=_posed(plain, "crouch").quat_wxyz.expand(_PANELS, -1, -1))
    numbers["milliseconds_a_pose"] = 1e3 * _timed(lambda: plain.apply(many))[1] / _PANELS
    drawn = draw_strip(out, "human", panels, size=(270, 400), up=_UP)
    words = (
        "Two poses of one body, in three ways. Linear blend skinning loses volume where joints bend or twist far: "
        f"down to {numbers['least_volume_linear']:.0%} of that at rest; with the body's corrective "
        f"{numbers['least_volume_corrected']:.0%}, by dual quaternions {numbers['least_volume_dual']:.0%}. "
        "Where the elbows twist, in the second pose, only dual quaternions keep the arm from closing up. "
        f"{drawn.problem}"
    )
    return Result("human", numbers, words.strip(), drawn.picture, captions=(*_WAYS.values(), *_WAYS.values()))


def _scanned(out: Path) -> Result:
    """Points on the crouching human of some shape, with noise, and rough key-points; then the body from these."""
    generator = torch.Generator().manual_seed(0)
    body = synthetic_human()

    def noise(like: Tensor, size: float) -> Tensor:
        return size * torch.randn(like.shape, generator=generator)

    state = _posed(body, "crouch")
    truth = body.apply(replace(state, shape=noise(state.shape, 1.0), skeleton=noise(state.skeleton, 1.0)))
    scan = sample_surface(Mesh(truth.vertices, body.faces), 2000, generator=generator).points
    scan = scan + noise(scan, 3e-4)
    keypoints = truth.joints + noise(truth.joints, 0.01)
    weights = torch.full((len(keypoints),), (3e-4 / 0.01) ** 2)  # as exact as each is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the numbers tell
        fit = fit_body(body, scan=scan, keypoints=keypoints, weights=weights)
    found = body.apply(fit.value).vertices
    error = (found - truth.vertices).norm(dim=-1)
    numbers = {
        "vertices": len(found),
        "joints": len(body.parent),
        "scan_points": len(scan),
        "iterations": int(fit.iterations),
        "converged": bool(fit.converged),
        "vertex_error_mm": float(1e3 * error.mean()),
        "worst_vertex_error_mm": float(1e3 * error.max()),
    }
    panels = [[(Mesh(body.template, body.faces), (0.75, 0.75, 0.78))], [(scan, TARGET)]]
    panels.append([(Mesh(found, body.faces), SOURCE)])
    drawn = draw_strip(out, "scanned_human", panels, size=(500, 440), up=_UP)
    words = (
        f"From {len(scan)} points with 0.3 mm of noise and {len(keypoints)} key-points good to 1 cm, geom.skinning."
        f"fit_body finds shape, bone lengths and pose at once, in {numbers['iterations']} steps: vertices it never saw "
        f"are off by {numbers['vertex_error_mm']:.2f} mm on average. {drawn.problem}"
    )
    captions = ("the body at rest, where it begins", "the scan", "the body found")
    return Result("scanned human", numbers, words.strip(), drawn.picture, captions=captions)
