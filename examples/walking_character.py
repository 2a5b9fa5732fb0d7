"""A character that walks, through a file: `python examples/walking_character.py`.

The synthetic human of assets/bodies swings its legs and arms through one second; `make_rig` turns it into a rig with an
animation, `save_rig` writes it as glTF, and what `load_rig` reads is posed between the key frames and skinned. With
`--rig character.glb` a character of your own is drawn instead, by its first animation. The number is the largest
distance of the posed surface from the one before it was written, at the key frames.
"""

import math
import tempfile
from pathlib import Path

import torch
import tyro
from torch import Tensor

from geom.lie import quaternion
from geom.lie.kinematics import compose_affine, invert_affine
from geom.meshes import Mesh
from geom.skinning import BodyState, Rig, deform, load_rig, make_rig, save_rig, synthetic_human
from geom.values import replace
from geom.viz import View, render_strip, save_png

RATE, FRAMES = 24.0, 25  # one second, its end as its beginning


def stride(names: tuple[str, ...], state: BodyState) -> BodyState:
    """States (FRAMES,) of one double step: rotation vectors of each joint as waves of the time."""
    phase = 2 * math.pi * torch.arange(FRAMES, dtype=torch.float64) / (FRAMES - 1)
    turn = torch.zeros(FRAMES, len(names), 3, dtype=torch.float64)
    for side, own, out in (("left", phase, -1.0), ("right", phase + math.pi, 1.0)):
        turn[:, names.index(f"{side}_hip"), 0] = -0.1 - 0.45 * own.sin()
        turn[:, names.index(f"{side}_knee"), 0] = 0.15 + 0.75 * (own - 0.4).cos().clamp(min=0) ** 2
        turn[:, names.index(f"{side}_ankle"), 0] = 0.2 * own.cos()
        turn[:, names.index(f"{side}_shoulder"), 2] = 1.15 * out
        turn[:, names.index(f"{side}_elbow"), 1] = out * (0.35 - 0.25 * own.sin())
        turn[:, names.index(f"{side}_collar"), 1] = -0.3 * own.sin()
    turn[:, names.index("spine2"), 1] = 0.12 * phase.sin()
    turn[:, names.index("pelvis"), 1] = -0.1 * phase.sin()
    sway = torch.stack([0 * phase, 0.02 * (2 * phase).cos(), 0 * phase], -1)
    return replace(state, quat_wxyz=quaternion.exp(turn).float(), translation=sway.float())


def human() -> tuple[Rig, Tensor]:
    """The walking human as a rig, and its vertices (FRAMES, V, 3) at the key frames."""
    body = replace(synthetic_human(), corrective=None)  # glTF skins know matrices alone
    walk = body.apply(stride(body.names, body.state(FRAMES)))
    rest = body.apply(body.state())
    at_rest = torch.eye(3, 4).repeat(len(body.joints), 1, 1)
    at_rest[:, :, 3] = rest.joints
    motion = compose_affine(compose_affine(walk.bones, invert_affine(rest.bones)), at_rest)
    how = {"weights": body.weights, "indices": body.indices, "names": body.names, "rate": RATE}
    rig = make_rig(rest.vertices, body.faces, parent=body.parent, joints=at_rest, motion=motion, **how)
    return rig, walk.vertices


def main(rig: Path | None = None, quick: bool = False, out: Path = Path("out/examples/walking_character.png")) -> float:
    """Write a walking character, read it back, and draw it step by step.

    Args:
        rig: A character of your own (glb, gltf), drawn instead.
        quick: Smaller pictures.
        out: The picture, a PNG, or a folder for it.

    Returns: largest distance at the key frames of what was read from what was written, metres.
    """
    error = 0.0
    if rig is not None:
        character = load_rig(rig)
    else:
        made, expected = human()
        with tempfile.TemporaryDirectory() as folder:
            save_rig(made, Path(folder) / "walk.glb")
            character = load_rig(Path(folder) / "walk.glb")
        (found,) = deform(character, character.pose(animation=0, time=torch.arange(FRAMES) / RATE))
        error = float((found - expected).norm(dim=-1).max())
        print(f"{len(made.names)} nodes, {expected.shape[1]} vertices: off by {1e6 * error:.2f} um after the file")

    poses = character.pose(animation=0, time=torch.linspace(0, character.animations[0].duration, 9)[:-1])
    frames = deform(character, poses)
    every = torch.cat([x.flatten(0, -2) for x in frames])
    low, high = every.amin(0), every.amax(0)
    x, y, z = ((low + high) / 2).tolist()
    far = 1.75 * float((high - low).norm())
    size = (110, 220) if quick else (300, 600)
    view = View(size=size, camera=((x + 0.75 * far, y + 0.1 * far, z + 0.6 * far), (x, y, z), (0, 1, 0)))
    surfaces = [(v.float(), p.faces) for v, p in zip(frames, character.primitives, strict=True) if len(p.faces)]
    strip = render_strip([[(Mesh(v[k], faces), None) for v, faces in surfaces] for k in range(8)], view=view)
    picture = out if out.suffix == ".png" else out / "walking_character.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, strip)
    print(f"wrote {picture}")

    assert error < 2e-6, f"expected the same surface within 2 um, got {1e6 * error:.2f} um"
    return error


if __name__ == "__main__":
    tyro.cli(main)
