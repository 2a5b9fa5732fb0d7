"""The bones of a volume: `python examples/skeleton_of_a_volume.py`.

`skeletonize` takes voxels away from a volume until lines are left that have its topology, and `skeleton_graph` turns
those into joints and bones of a few voxels each. Left: the volume. Middle: its skeleton. Right: the bones, each in a
colour of its own. The volume is a piece of the blood vessels of GEOM_DATA, or without it a knotted tube. The
number is how many components and tunnels the bones have too many or too few.
"""

import math
import os
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from matplotlib.figure import Figure
from scipy.ndimage import label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm import tqdm

from geom.meshes import Mesh
from geom.points import Points
from geom.skinning import skeleton_graph, skeletonize
from geom.viz import Camera, Lines, View, render
from geom.viz.colors import PALETTE


def knot(size: int) -> Tensor:
    """A tube about the trefoil, (size, size, size) bool."""
    turn = torch.arange(600) * (2 * math.pi / 600)
    line = torch.stack([-(3 * turn).sin(), turn.sin() + 2 * (2 * turn).sin(), turn.cos() - 2 * (2 * turn).cos()], -1)
    axis = torch.linspace(-3.7, 3.7, size)
    near = [torch.cdist(part, line).amin(-1) < 0.45 for part in torch.cartesian_prod(axis, axis, axis).split(1 << 14)]
    return torch.cat(near).reshape(size, size, size)


def vessels_or_knot(quick: bool) -> Tensor:
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    found = sorted(folder.glob("skinning/skeletonize/image_*.npy"))
    return torch.from_numpy(np.load(found[0])) > 0.5 if found else knot(32 if quick else 64)


def hull(volume: Tensor) -> Mesh:
    """The faces of voxels that meet the air."""
    padded, corners = F.pad(volume, (1,) * 6), []
    for axis, side in product(range(3), (0, 1)):
        outside = padded.roll(1 - 2 * side, axis)[1:-1, 1:-1, 1:-1]
        face = torch.full((4, 3), side)
        face[:, [(axis + 1) % 3, (axis + 2) % 3]] = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]])
        corners.append((volume & ~outside).nonzero()[:, None] + (face if side else face.flip(0)))
    places, index = torch.cat(corners).reshape(-1, 3).unique(dim=0, return_inverse=True)
    return Mesh(places - 0.5, index.reshape(-1, 4)[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3))


def topology(volume: Tensor) -> tuple[int, int]:
    """Components and tunnels, by V - E + F - C of the voxels' corners, edges, faces and insides; no cavities."""
    x = F.pad(volume, (1,) * 6).float()[None]
    cells = {size: int(F.max_pool3d(x, size, stride=1).sum()) for size in product((1, 2), repeat=3)}
    components = int(label(volume.numpy(), np.ones((3, 3, 3)))[1])  # type: ignore[index]
    return components, components - sum((-1) ** size.count(1) * count for size, count in cells.items())


def main(quick: bool = False, out: Path = Path("out/examples/skeleton_of_a_volume.png")) -> int:
    """Peel the volume, join what is left, draw all three, and compare their topology.

    Args:
        quick: A smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: components and tunnels that are too many or too few.
    """
    volume = vessels_or_knot(quick)
    skeleton = skeletonize(volume[None, None])[0, 0]
    joints, bones = skeleton_graph(skeleton, steps=4)

    wanted = topology(volume)
    forest = coo_array((np.ones(len(bones)), tuple(bones.T.numpy())), (len(joints), len(joints)))
    components = connected_components(forest, directed=False)[0]
    found = components, len(bones) - len(joints) + components
    print(
        f"{int(volume.sum())} voxels, {int(skeleton.sum())} in the skeleton, {len(joints)} joints, {len(bones)} bones"
    )
    print(f"{wanted[0]} components and {wanted[1]} tunnels; the bones have {found[0]} and {found[1]}")

    sticks = Lines(
        joints[bones].reshape(-1, 3).float(),
        torch.arange(2 * len(bones)).reshape(-1, 2),
        torch.from_numpy(PALETTE)[torch.arange(2 * len(bones)) // 2 % len(PALETTE)],
    )
    low, high = volume.nonzero().float().aminmax(dim=0)
    middle = (low + high) / 2
    eye = middle + 1.4 * (high - low).norm() * torch.tensor([0.6, -0.6, 0.5])
    camera = Camera(eye=tuple(eye.tolist()), target=tuple(middle.tolist()))
    view = View(size=(220, 220) if quick else (800, 800), camera=camera)
    balls = Points(joints.float(), colors=torch.full((len(joints), 3), 0.15))
    panels = {"volume": (hull(volume),), "skeleton": (hull(skeleton),), "joints and bones": (sticks, balls)}
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    drawn = tqdm(panels.items(), leave=False, disable=not sys.stderr.isatty())
    for panel, (title, things) in zip(figure.subplots(1, 3), drawn, strict=True):
        panel.imshow(render(*things, view=view))
        panel.set_title(title, fontsize=15)
        panel.axis("off")
    picture = out if out.suffix == ".png" else out / "skeleton_of_a_volume.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 150)
    print(f"wrote {picture}")

    wrong = sum(abs(a - b) for a, b in zip(found, wanted, strict=True))
    assert wrong == 0, f"expected {wanted} components and tunnels, got {found}"
    return wrong


if __name__ == "__main__":
    tyro.cli(main)
