"""Bones out of a moving mesh: `python examples/bones_from_motion.py`.

What is given is vertices, frame by frame: no bones, no weights. `solve_skinning` finds a rig that moves as they do.
Left: the first frame, each vertex in the mixed colours of its bones, with the skeleton. Right: a later frame, as the
rig poses it. The mesh is the first animated, skinned surface of GEOM_DATA (CesiumMan), or without it a tentacle. The
number is the root mean square error over the diagonal.
"""

import math
import os
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from geom.io.gltf_rig import load_rig, save_rig
from geom.meshes import Mesh
from geom.skinning.decomposition import solve_skinning
from geom.skinning.pose import deform
from geom.viz import Lines, View, render
from geom.viz.colors import PALETTE


def tentacle(times: Tensor, rings: int = 60, around: int = 16) -> tuple[Tensor, Tensor]:
    """A tube of four links that wave, (V, 3) at rest and in each frame: no skinning made it."""
    s = torch.linspace(0, 4, rings, dtype=torch.float64)[:, None].expand(-1, around)
    turn = torch.linspace(0, 2 * math.pi, around + 1, dtype=torch.float64)[:-1].expand(rings, -1)
    bend = 0.5 * (times[:, None] + 0.8 * s[:, 0]).sin() * torch.tanh(s[:, 0])
    step = torch.stack([bend.cos(), bend.sin()], -1) * (4 / rings)
    middle = torch.cat([0 * step[:, :1], step.cumsum(1)[:, :-1]], 1)
    up = torch.stack([-bend.sin(), bend.cos()], -1)
    r = 0.25 * turn.cos()
    plane = middle[:, :, None] + r[..., None] * up[:, :, None]
    track = torch.cat([plane, (0.25 * turn.sin()).expand(len(times), -1, -1)[..., None]], -1)
    a = torch.arange(rings * around).reshape(rings, around)
    b, c, d = a[:-1].roll(-1, 1), a[1:].roll(-1, 1), a[1:]
    faces = torch.cat([torch.stack([a[:-1], b, c], -1), torch.stack([a[:-1], c, d], -1)])
    return track.reshape(len(times), -1, 3), faces.reshape(-1, 3)


def sequence(frames: int) -> tuple[Tensor, Tensor, Tensor | None, int, float]:
    """A track, its faces, its rest where it has one, how many bones to look for, and frames a second."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    for path in sorted(folder.glob("skinning/gltf/*.glb")):
        rig = load_rig(path, dtype=torch.float64)
        if not rig.animations or rig.primitives[0].weights is None:
            continue
        surface = rig.primitives[0]
        assert surface.indices is not None and surface.weights is not None
        end = float(max(c.times[-1] for c in rig.animations[0].channels))
        times = torch.linspace(0, end, frames, dtype=torch.float64)
        bones = len(surface.indices[surface.weights > 1e-4].unique())
        track = deform(rig, rig.pose(animation=0, time=times))[0]
        return track, surface.faces, surface.vertices, bones, (frames - 1) / end
    times = torch.linspace(0, 6, frames, dtype=torch.float64)
    track, faces = tentacle(times)
    return track, faces, None, 8, 30.0


def main(quick: bool = False, out: Path = Path("out/examples/bones_from_motion.png")) -> float:
    """Solve for bones, draw them, write the rig as glTF, and measure it.

    Args:
        quick: Fewer frames and a smaller picture.
        out: The picture, a PNG, or a folder for it; the rig is written beside it.

    Returns: the root mean square error over the diagonal of the first frame.
    """
    track, faces, rest, bones, rate = sequence(12 if quick else 48)
    fit = solve_skinning(track, bones=bones, rest=rest, faces=faces, rate=rate)
    rig = fit.value
    times = torch.arange(len(track), dtype=torch.float64) / rate
    pose = rig.pose(animation=0, time=times)
    posed = deform(rig, pose)[0]
    error = float((posed - track).square().sum(-1).mean().sqrt() / (track[0].amax(0) - track[0].amin(0)).norm())
    print(f"{track.shape[1]} vertices over {len(track)} frames: {bones} bones looked for, {len(rig.names) - 1} found")
    print(f"root mean square error {error:.1e} of the diagonal, after {int(fit.iterations)} alternations")

    surface, joints = rig.primitives[0], pose.world[:, : len(rig.names) - 1, :, 3]
    assert surface.weights is not None and surface.indices is not None
    hues = torch.from_numpy(PALETTE).float()[surface.indices % len(PALETTE)]
    colors = (surface.weights.float()[..., None] * hues).sum(1).clamp(0, 1)
    child = (rig.parent[: joints.shape[1]] >= 0).nonzero()[:, 0]
    segments = torch.stack([child, rig.parent[child]], -1)
    view = View(size=(300, 330) if quick else (900, 1000), up=(0.0, 1.0, 0.0))
    shift = 0.6 * (track[0].amax(0) - track[0].amin(0)).norm() * torch.tensor([1.0, 0, 0], dtype=torch.float64)
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    frames = (0, len(track) // 3)
    for panel, frame in zip(figure.subplots(1, 2), frames, strict=True):
        bones_beside = Lines(joints[frame] + shift, segments, torch.zeros(joints.shape[1], 3))
        panel.imshow(render(Mesh(posed[frame], faces, colors=colors), bones_beside, view=view))
        panel.set_title(f"frame {frame}", fontsize=15)
        panel.axis("off")
    picture = out if out.suffix == ".png" else out / "bones_from_motion.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 150)
    save_rig(rig, picture.with_suffix(".glb"))
    print(f"wrote {picture} and {picture.with_suffix('.glb')}")

    bound = 1e-4 if rest is not None else 1e-2
    assert error < bound, f"expected an error of at most {bound:g} of the diagonal, got {error:.1e}"
    return error


if __name__ == "__main__":
    tyro.cli(main)
