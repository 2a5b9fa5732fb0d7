"""`geom rig bind | solve`."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from geom.cli.outputs import check_outputs
from geom.errors import FileFormatError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["bind", "solve"]

_POSED = re.compile(r"anim(.+)_t(.+)_node(\d+)_prim(\d+)")  # what `geom skin` writes


def bind(
    mesh: Positional[Path],
    skeleton: Positional[Path],
    /,
    *,
    out: Path,
    method: Literal["auto", "heat", "biharmonic", "voxel"] = "auto",
    influences: int = 4,
) -> int:
    """Bind a mesh to a skeleton: a character that `geom skin` can pose.

    Args:
        mesh: Surface, metres, counter-clockwise seen from outside (ply, obj, off, stl, glb, gltf, usd).
        skeleton: Joints in the mesh's space: JSON {"names": [...], "parents": [-1, 0, ...], "joints": [[x, y, z], ...]}
            or a character whose joints are taken (glb, gltf).
        out: File for the character (glb, gltf).
        method: How weights are found; "auto" is heat for closed surfaces, else voxel.
        influences: Joints that a vertex may follow.
    """
    check_outputs((out,), inputs=(mesh, skeleton))
    _check_suffix(out)
    from geom.io import load_mesh
    from geom.io.gltf_rig import save_rig
    from geom.skinning.binding import bind as bind_mesh
    from geom.skinning.skeleton import load_skeleton

    rig = bind_mesh(load_mesh(mesh), load_skeleton(skeleton), method=method, influences=influences)
    save_rig(rig, out)
    print(f"{len(rig.primitives[0].vertices)} vertices, {len(rig.skins[0].joints)} joints")
    print(f"wrote {out}")
    return 0


def solve(
    sequence: Positional[Path],
    /,
    *,
    bones: int,
    out: Path,
    mesh: Path | None = None,
    influences: int = 4,
    tolerance: float | None = None,
    rate: float | None = None,
) -> int:
    """Find bones, weights and an animation from the vertices of a moving mesh.

    Args:
        sequence: File with `vertices (frames, vertices, 3)`, metres, and perhaps `faces (faces, 3)` and `rate` (npz);
            or vertices that `geom skin` wrote.
        bones: How many, at most.
        out: File for the character (glb, gltf).
        mesh: The mesh at rest, vertex by vertex that of the sequence; without it the shape at rest is solved for too.
        influences: Bones that a vertex may follow.
        tolerance: Greatest root mean square error, metres: the fewest bones that meet it.
        rate: Frames a second; else the file's, else 30.
    """
    check_outputs((out,), inputs=filter(None, (sequence, mesh)))
    _check_suffix(out)
    from geom.io import load_mesh
    from geom.io.gltf_rig import save_rig
    from geom.skinning.decomposition import solve_skinning

    track, faces, rate = _read(sequence, rate)
    rest = None
    if mesh is not None:
        still = load_mesh(mesh)
        if len(still.vertices) != track.shape[1]:
            raise ShapeError(f"mesh: expected the sequence's {track.shape[1]} vertices, got {len(still.vertices)}")
        faces, rest = still.faces, still.vertices.to(track)
    how = {"bones": bones, "rest": rest, "influences": influences, "tolerance": tolerance}
    found = solve_skinning(track, faces=faces, rate=rate, **how)
    save_rig(found.value, out)
    error = math.sqrt(2 * float(found.cost) / (track.shape[0] * track.shape[1]))
    extent = float((track.amax((0, 1)) - track.amin((0, 1))).norm())
    share = error / extent if extent > 0 else 0.0
    count = len(found.value.skins[0].joints)
    print(f"{count} bones, root mean square error {error:.3g} m, {share:.2g} of the diagonal")
    print(f"wrote {out}")
    return 0


def _check_suffix(out: Path) -> None:
    if out.suffix.lower() not in (".glb", ".gltf"):
        raise FileFormatError(out, f"unknown suffix {out.suffix!r}: expected .glb or .gltf")


def _read(path: Path, rate: float | None) -> "tuple[Tensor, Tensor | None, float]":
    import numpy as np
    import torch

    from geom.io.arrays import read_arrays
    from geom.io.bytes import open_source

    source = open_source(path)
    arrays = read_arrays(source)
    try:
        vertices, found = (arrays["vertices"], 30.0) if "vertices" in arrays else _posed(arrays)
        found = float(arrays.get("rate", found))
        faces = None if "faces" not in arrays else torch.from_numpy(arrays["faces"].astype(np.int64))
    except (ValueError, TypeError) as error:
        raise source.fail(f"expected an npz with vertices (frames, vertices, 3), got {error}") from error
    if vertices.ndim != 3 or vertices.shape[-1] != 3 or vertices.dtype.kind != "f" or min(vertices.shape) < 1:
        raise FileFormatError(path, f"expected vertices (frames, vertices, 3) of floats, got {vertices.shape}")
    chosen = found if rate is None else rate
    if not (math.isfinite(chosen) and chosen > 0):
        raise ShapeError(f"rate: expected frames a second above 0, got {chosen}")
    return torch.from_numpy(vertices.astype(np.float64)), faces, chosen


def _posed(arrays: dict[str, Any]) -> tuple[Any, float]:
    """The vertices of all surfaces, moment by moment, of the first animation in the file, and its rate."""
    import numpy as np

    named = [(match, array) for name, array in arrays.items() if (match := _POSED.fullmatch(name))]
    if not named:
        raise ValueError(f"arrays {sorted(arrays)[:6]}")
    first = named[0][0][1]
    frames: dict[float, list[tuple[int, int, Any]]] = {}
    for match, array in named:
        if match[1] == first:
            frames.setdefault(float(match[2]), []).append((int(match[3]), int(match[4]), array))
    times = sorted(frames)
    track = np.stack([np.concatenate([x for *_, x in sorted(frames[t], key=lambda part: part[:2])]) for t in times])
    return track, (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 30.0
