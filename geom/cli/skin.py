"""`geom skin`."""

import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from geom.cli.outputs import check_outputs, write_outputs
from geom.errors import FileFormatError, ShapeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from geom.io.rig import Rig

__all__ = ["skin"]

Method = Literal["lbs", "dqs", "hybrid"]
_CHUNK, _PICTURES = 32, 8


def skin(
    rig: Positional[Path],
    /,
    *,
    out: Path | None = None,
    animation: str = "0",
    time: tuple[float, ...] = (),
    fps: float | None = None,
    method: Method = "lbs",
    picture: Path | None = None,
) -> int:
    """Pose a character and bend its skin: morph targets, skins and nodes, in world coordinates.

    Args:
        rig: Character (glb, gltf).
        out: File for the vertices: npz with a float32 array for each moment and surface, named after animation,
            seconds, node and primitive; or glb or gltf with the character frozen at the first moment.
        animation: Which, by index or name; "rest" or "None" for none, and so is 0 where the file has none.
        time: Moments, seconds; else 0.
        fps: Frames a second over the whole animation, instead of moments.
        method: How joints share a vertex: matrices, dual quaternions, or half of each.
        picture: File for a strip of pictures, at most eight, as PNG.
    """
    check_outputs((out, picture), inputs=(rig,))
    if out is None and picture is None:
        raise ShapeError("skin: expected --out or --picture, got neither")
    if out is not None and out.suffix.lower() not in (".npz", ".glb", ".gltf"):
        raise FileFormatError(out, f"unknown suffix {out.suffix!r}: expected .npz, .glb or .gltf")
    import torch

    from geom.files import write_atomically
    from geom.io.gltf_rig import load_rig, save_rig
    from geom.skinning.pose import bake

    found = load_rig(rig, dtype=torch.float64)
    which = _animation(found, animation)
    moments = _moments(time, fps, 0.0 if which is None else found.animations[which].duration)
    with torch.no_grad():
        if out is not None and out.suffix.lower() == ".npz":
            write_atomically(out, _archive(found, which, moments, method))
        elif out is not None:
            save_rig(bake(found, found.pose(animation=which, time=moments[0]), method=method), out)
        if out is not None:
            count = len(moments) if out.suffix.lower() == ".npz" else 1
            print(f"{len(found.primitives)} surfaces, {len(found.names)} nodes, {count} poses")
            print(f"wrote {out}")
        if picture is not None:
            write_outputs({picture: _strip(found, which, moments, method)})
    return 0


def _animation(rig: "Rig", wanted: str) -> int | None:
    names = [animation.name for animation in rig.animations]
    if wanted in ("rest", "None") or (wanted == "0" and not names):
        return None
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    if wanted not in names:
        raise ShapeError(f"animation: expected one of {len(names)} by index or name {names[:9]}, got {wanted!r}")
    return names.index(wanted)


def _moments(time: tuple[float, ...], fps: float | None, duration: float) -> list[float]:
    if fps is None:
        if not all(map(math.isfinite, time)):
            raise ShapeError(f"time: expected finite seconds, got {time}")
        return list(dict.fromkeys(time)) or [0.0]
    if time:
        raise ShapeError("time, fps: expected one of them, got both")
    if not (math.isfinite(fps) and fps > 0 and duration * fps <= 1e6):
        raise ShapeError(f"fps: expected frames a second above 0, at most a million in all, got {fps}")
    return [k / fps for k in range(max(0, math.floor(duration * fps + 1e-6)) + 1)]


def _frames(rig: "Rig", which: int | None, moments: list[float], method: Method) -> "Iterator[tuple[Tensor, ...]]":
    """The vertices of every primitive, moment by moment; some are posed at a time."""
    import torch

    from geom.skinning.pose import deform

    for start in range(0, len(moments), _CHUNK):
        times = torch.tensor(moments[start : start + _CHUNK], dtype=torch.float64)
        moved = deform(rig, rig.pose(animation=which, time=times), method=method)
        for k in range(len(times)):
            yield tuple(x.expand(len(times), *x.shape[-2:])[k] for x in moved)


def _archive(rig: "Rig", which: int | None, moments: list[float], method: Method) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for moment, frame in zip(moments, _frames(rig, which, moments, method), strict=True):
            for primitive, x in zip(rig.primitives, frame, strict=True):
                name = f"anim{which}_t{moment!r}_node{primitive.node}_prim{primitive.index}"
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, x.float().numpy(), allow_pickle=False)
    return buffer.getvalue()


def _strip(rig: "Rig", which: int | None, moments: list[float], method: Method) -> "npt.NDArray[np.uint8]":
    """Moments side by side, from one camera, in front of the character and a little to its left; y is up."""
    import torch

    from geom.meshes import Mesh
    from geom.viz import View, render_strip

    count = min(len(moments), _PICTURES)
    chosen = [moments[round(i * (len(moments) - 1) / max(1, count - 1))] for i in range(count)]
    frames = [[x.float() for x in frame] for frame in _frames(rig, which, chosen, method)]
    every = [x for frame in frames for x in frame if len(x)]
    if not every:
        raise ShapeError("picture: expected a character with a surface, got none")
    low = torch.stack([x.amin(0) for x in every]).amin(0)
    high = torch.stack([x.amax(0) for x in every]).amax(0)
    x, y, z = ((low + high) / 2).tolist()
    reach = 1.75 * max(float((high - low).norm()), 1e-6)
    view = View(size=(280, 400), camera=((x + 0.5 * reach, y + 0.25 * reach, z + 0.83 * reach), (x, y, z), (0, 1, 0)))
    panels = [
        [(Mesh(x, p.faces) if len(p.faces) else x, None) for p, x in zip(rig.primitives, frame, strict=True) if len(x)]
        for frame in frames
    ]
    return render_strip(panels, view=view)
