"""Skinning weights by the smoothest functions between 0 and 1: `python examples/hand_weights.py`.

Each bone of a hand gets a bounded biharmonic weight in the tetrahedra that fill it. Left: every bone in its colour,
mixed by the weights. Middle: one bone's weight. Right: the fingers bent by linear blend
skinning with these weights. The hand is that of GEOM_DATA, or without it a starfish. The number says how far the worst
weight is from the minimum, by the conditions that a minimum fulfils.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from geom.lie import so3
from geom.lie.kinematics import forward_kinematics
from geom.meshes import Mesh, marching_cubes, tetrahedralize
from geom.skinning import biharmonic_weights, handle_conditions, lbs
from geom.skinning.segments import nearest_on_segments
from geom.viz import View, render
from geom.viz.colors import PALETTE, colormap

BEND = 0.45  # radians at each joint


def hand_or_starfish(quick: bool) -> tuple[Tensor, Tensor, Tensor, float]:
    """Vertices (V, 3) and tetrahedra (T, 4); bones (J, 2, 3); how far from a bone a vertex is fixed to it."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    found = sorted(folder.glob("skinning/igl/*bbw*.npz"))
    if found:
        given = {name: torch.from_numpy(array) for name, array in np.load(found[0]).items()}
        return given["V"].double(), given["T"].long(), given["C"].double()[given["BE"]], 1e-6
    turn = torch.arange(5, dtype=torch.float64) * (2 * math.pi / 5)
    way = torch.stack([turn.cos(), turn.sin(), 0 * turn], -1)
    bones = torch.cat([torch.stack([a * way, (a + 0.4) * way], 1) for a in (0.1, 0.5, 0.9)])
    h = 0.06 if quick else 0.04
    axis = torch.arange(-1.5, 1.5, h, dtype=torch.float64)
    thin = torch.arange(-0.5, 0.5, h, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, thin)
    distance, along = nearest_on_segments(grid, torch.stack([0 * way, 1.2 * way], 1))
    field = (distance - 0.28 + 0.16 * along).amin(1).reshape(len(axis), len(axis), len(thin))
    surface = marching_cubes(field, spacing=h, origin=torch.stack([axis[0], axis[0], thin[0]]))
    return *tetrahedralize(surface, edge_length=1.5 * h), bones, 1.0 * h


def boundary(tets: Tensor) -> Tensor:
    """The faces (F, 3) of one tetrahedron only, counter-clockwise seen from outside."""
    faces = torch.cat([tets[:, corner] for corner in ([0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3])])
    _, which, times = torch.unique(faces.sort(1).values, dim=0, return_inverse=True, return_counts=True)
    return faces[times[which] == 1]


def curl(bones: Tensor) -> Tensor:
    """Transforms (J, 3, 4) that bend each bone at its start, towards the side that the flat of the hand faces."""
    start, stop = bones.unbind(1)
    parent = (start[:, None] - stop).norm(dim=-1).min(1)
    root = parent.values > 1e-9
    normal = torch.linalg.svd(start - start.mean(0)).Vh[-1]
    axis = torch.nn.functional.normalize(torch.linalg.cross(stop - start, normal.expand_as(start)), dim=-1)
    turn = so3.exp(axis * torch.where(root, 0.0, BEND)[:, None])
    local = torch.cat([turn, (start - (turn @ start[..., None])[..., 0])[..., None]], -1)
    return forward_kinematics(torch.where(root, -1, parent.indices), local)


def main(quick: bool = False, out: Path = Path("out/examples/hand_weights.png")) -> float:
    """Find the weights, check that they are the smoothest, and draw them.

    Args:
        quick: A smaller picture, and a coarser starfish.
        out: The picture, a PNG, or a folder for it.

    Returns: how far the worst weight is from the minimum.
    """
    x, tets, bones, near = hand_or_starfish(quick)
    extent = float((x.amax(0) - x.amin(0)).norm())
    fixed, values = handle_conditions(x, bones, tolerance=max(near / extent, 1e-6))
    found = biharmonic_weights(x, tets, fixed, values)
    w = found.weights
    print(f"{len(x)} vertices, {len(tets)} tetrahedra, {len(bones)} bones, {len(fixed)} vertices fixed")
    print(f"energy {found.energy:.5f}, residual {found.residual:.1e}")

    faces = boundary(tets)
    hues = torch.from_numpy(PALETTE)[torch.arange(len(bones)) % len(PALETTE)].double()
    one = w[:, int(w[faces.unique()].var(0).argmax())]
    shades = torch.from_numpy(colormap(one.numpy(), low=0, high=1))
    bent = lbs(x, w, curl(bones))
    panels = (("all bones", x, w @ hues), ("one bone", x, shades), ("bent", bent, w @ hues))
    spread = (x - x.mean(0)).T @ (x - x.mean(0))
    flat = torch.linalg.eigh(spread).eigenvectors
    eye = x.mean(0) + 1.45 * extent * (0.9 * flat[:, 0] + 0.25 * flat[:, 1])
    camera = tuple(tuple(float(n) for n in place) for place in (eye, x.mean(0), flat[:, 2]))
    view = View(size=(260, 260) if quick else (800, 800), camera=camera)
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    for panel, (title, place, color) in zip(figure.subplots(1, 3), panels, strict=True):
        panel.imshow(render(Mesh(place.float(), faces, colors=color.float().clamp(0, 1)), view=view))
        panel.set_title(title, fontsize=15)
        panel.axis("off")
    picture = out if out.suffix == ".png" else out / "hand_weights.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 120)
    print(f"wrote {picture}")

    assert found.residual <= 1e-6, f"expected weights within 1e-6 of the minimum, got {found.residual:.1e}"
    return found.residual


if __name__ == "__main__":
    tyro.cli(main)
