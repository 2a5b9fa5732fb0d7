"""Bones out of a moving mesh: `python examples/bones_from_motion.py`.

What is given is vertices, at rest and frame by frame: no bones, no weights. `solve_skinning` finds a rig that moves as
they do; `geom.skinning.save_rig` would write it as glTF.
Left: the first frame, each vertex in the mixed colours of its bones, with the skeleton. Right: a later frame, as the
rig poses it. The mesh is the largest animated, skinned surface of GEOM_DATA (CesiumMan; `--quick`: the smallest), or
without it a tentacle. The number is the root mean square error over the diagonal.
"""

import math
import os
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from geom.lie import so3
from geom.lie.kinematics import forward_kinematics
from geom.meshes import Mesh
from geom.skinning import deform, lbs, load_rig, solve_skinning
from geom.viz import Lines, View, render
from geom.viz.colors import PALETTE


def tentacle(times: Tensor, rings: int) -> tuple[Tensor, Tensor, Tensor]:
    """A tube of four links that sway and nod: vertices (V, 3) at rest and (T, V, 3) in time, faces."""
    s = torch.linspace(0, 4, rings, dtype=torch.float64)[:, None].expand(-1, 16)
    turn = torch.linspace(0, 2 * math.pi, 17, dtype=torch.float64)[:-1].expand(rings, -1)
    rest = torch.stack([s, 0.25 * turn.cos(), 0.25 * turn.sin()], -1).flatten(0, 1)
    k = torch.arange(4, dtype=torch.float64)
    phase = times[:, None] + k
    sway = torch.stack([0 * phase, 0.3 * phase.cos(), 0.6 * (1.3 * phase).sin()], -1)
    start = torch.tensor([[0.0, 0, 0]] + [[1.0, 0, 0]] * 3, dtype=torch.float64).expand(len(times), -1, -1)
    world = forward_kinematics(torch.arange(4) - 1, torch.cat([so3.exp(sway), start[..., None]], -1))
    back = torch.stack([-k, 0 * k, 0 * k], -1)
    bones = torch.cat([world[..., :3], (world[..., :3] @ back[..., None]) + world[..., 3:]], -1)
    weights = (1 - (rest[:, :1] - 0.5 - k).abs()).clamp(min=0)
    a = torch.arange(rings * 16).reshape(rings, 16)
    b, c, d = a[:-1].roll(-1, 1), a[1:].roll(-1, 1), a[1:]
    faces = torch.cat([torch.stack([a[:-1], b, c], -1), torch.stack([a[:-1], c, d], -1)]).reshape(-1, 3)
    return rest, lbs(rest, weights / weights.sum(1, keepdim=True), bones), faces


def sequence(frames: int, quick: bool) -> tuple[Tensor, Tensor, Tensor, int, float]:
    """A track, its faces, its rest, how many bones to look for, and frames a second."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    paths = sorted(folder.glob("skinning/gltf/*.glb"), key=lambda path: path.stat().st_size, reverse=not quick)
    for path in paths:
        rig = load_rig(path, dtype=torch.float64)
        if not rig.animations or rig.primitives[0].weights is None or len(rig.primitives[0].vertices) < 50:
            continue
        surface = rig.primitives[0]
        assert surface.indices is not None and surface.weights is not None
        end = float(max(c.times[-1] for c in rig.animations[0].channels))
        times = torch.linspace(0, end, frames, dtype=torch.float64)
        bones = len(surface.indices[surface.weights > 1e-4].unique())
        track = deform(rig, rig.pose(animation=0, time=times))[0]
        return track, surface.faces, surface.vertices, bones, (frames - 1) / end
    rest, track, faces = tentacle(torch.linspace(0, 6, frames, dtype=torch.float64), 30 if quick else 60)
    return track, faces, rest, 4, 30.0


def main(quick: bool = False, out: Path = Path("out/examples/bones_from_motion.png")) -> float:
    """Solve for bones, draw them, and measure what they say of the motion.

    Args:
        quick: A smaller mesh, fewer frames and a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: the root mean square error over the diagonal of the first frame.
    """
    track, faces, rest, bones, rate = sequence(12 if quick else 48, quick)
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
    print(f"wrote {picture}")

    assert error < 1e-4, f"expected an error of at most 1e-4 of the diagonal, got {error:.1e}"
    return error


if __name__ == "__main__":
    tyro.cli(main)
