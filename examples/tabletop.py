"""What stands on the table? `python examples/tabletop.py`.

A small net of `geom.sequence`, attention within patches along four space-filling orders, looks at voxels of a depth
image: it says which of them are not table, and where the middle of their object is. Where many point, there is one. It
has learned from boxes and cans that never were (assets/sequence/train_tabletop.py). The scenes are those of GEOM_DATA,
seen by a real camera, or without them others of its kind. The number is the overlap of an object with what was found,
intersection over union of its points, mean over objects; that of plain touching parts stands beside it.
"""

import math
import os
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from geom.nn import Voxels, voxelize
from geom.points import Points, estimate_normals
from geom.sequence.serialized import SerializedPlan, SerializedTransformer
from geom.train import load_checkpoint
from geom.viz import View, render_strip, save_png
from geom.viz.colors import PALETTE

PLAN = SerializedPlan((16, 24, 32), (1, 2, 2), (2, 3, 4), (24, 16), (1, 1), (3, 2), patch=128, expand=2)
CELL, UNIT, REACH = 0.012, 0.1, 0.05  # metres: of a voxel; in which the net votes; within which votes agree
FEW, LEAST = 20, 150  # votes that make no object; points of an object that counts


def upright(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points of a camera with the table, where most normals point, at z = 0; and their normals, toward the camera."""
    normals = estimate_normals(points, k=16, viewpoint=torch.zeros(3))
    up = normalize(normals.mean(0), dim=0)
    for angle in (0.8, 0.4, 0.2, 0.1):
        up = normalize(normals[normals @ up > math.cos(angle)].mean(0), dim=0)
    right = normalize(torch.linalg.cross(up, torch.tensor([0.0, 0, 1])), dim=0)
    axes = torch.stack([right, torch.linalg.cross(up, right), up])
    level = (points @ up)[normals @ up > math.cos(0.1)].median()
    return points @ axes.T - torch.tensor([0.0, 0, 1]) * level, normals @ axes.T


def look(points: Tensor, normals: Tensor) -> tuple[Voxels, Tensor]:
    """What the net sees, height and normal of each voxel, and the voxel of each point."""
    return voxelize(points, CELL, features=torch.cat([points[:, 2:] / UNIT, normals], 1))


def segment(net: SerializedTransformer, points: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Objects of upright points, 0 being the table: by votes, and by which parts touch."""
    voxels, index = look(points, normals)
    with torch.no_grad():
        out = net(voxels)
    rows = (out[:, 0] > 0).nonzero()[:, 0]
    places = (voxels.grid[rows] + 0.5) * CELL
    votes = places + UNIT * out[rows, 1:]
    apart = torch.cdist(votes, votes)
    free, peaks = torch.ones(len(rows), dtype=torch.bool), []
    while len(agree := ((apart < REACH) & free).sum(1) * free) and int(agree.max()) >= FEW:
        peaks.append(int(agree.argmax()))
        free &= apart[peaks[-1]] > 1.5 * REACH
    voted, touching = torch.zeros(2, len(voxels.grid), dtype=torch.int64)
    if peaks:
        voted[rows] = apart[:, peaks].argmin(1) + 1
    near = csr_array((torch.cdist(places, places) < 2 * CELL).numpy())
    touching[rows] = torch.from_numpy(connected_components(near)[1]).long() + 1
    return voted[index], touching[index]


def overlap(found: Tensor, label: Tensor) -> list[float]:
    """Of each object that counts, with the one found that overlaps it most."""
    scores = []
    for number in label.unique().tolist()[1:]:
        own = label == number
        others = [found == k for k in found[own].unique().tolist() if k]
        if int(own.sum()) >= LEAST:
            scores.append(max((float((own & x).sum() / (own | x).sum()) for x in others), default=0.0))
    return scores


def main(quick: bool = False, out: Path = Path("out/examples/tabletop.png")) -> float:
    """Find the objects of each scene and draw them: what is there above, what was found below.

    Args:
        quick: The first two scenes alone, in a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: The mean overlap.
    """
    net, assets = SerializedTransformer(4, 4, PLAN).eval(), files("geom.assets") / "sequence"
    with as_file(assets / "tabletop.safetensors") as weights:
        net.load_state_dict(load_checkpoint(weights)["module"])
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    paths = sorted(folder.glob("pointclouds/mosd_*.npz")) or sorted(Path(str(assets)).glob("tabletop_*.npz"))
    above, below, scores, plain = [], [], [], []
    for path in paths[: 2 if quick else 4]:
        with np.load(path) as file:
            points, label = torch.from_numpy(file["pos"]).float(), torch.from_numpy(file["label"].astype(int))
        label = label.unique(return_inverse=True)[1]  # 0 is the table
        points, normals = upright(points)
        found, touching = segment(net, points, normals)
        scores, plain = scores + overlap(found, label), plain + overlap(touching, label)
        for row, number in ((above, label), (below, found)):
            colors = torch.from_numpy(PALETTE).float()[number % len(PALETTE)].where(number[:, None] > 0, 0.75)
            row.append([(Points(points, colors=colors), None)])
    view = View(size=(225, 200) if quick else (450, 400), camera=((0.35, 0.3, 1.1), (0.0, -0.55, 0.0), (0, 0, 1)))
    picture = out if out.suffix == ".png" else out / "tabletop.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, np.concatenate([render_strip(row, view=view) for row in (above, below)]))
    score, beside = float(np.mean(scores)), float(np.mean(plain))
    print(f"{len(scores)} objects: overlap {score:.3f} by votes, {beside:.3f} by touching parts\nwrote {picture}")
    assert score > 0.75, f"expected objects to be found, got an overlap of {score:.2f}"
    return score


if __name__ == "__main__":
    tyro.cli(main)
