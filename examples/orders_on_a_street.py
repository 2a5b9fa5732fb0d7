"""Six walks through a street: `python examples/orders_on_a_street.py`.

Point Cloud Mamba reads a cloud along six orders, the consistent traverses: line after line of cells, the first letter's
axis fastest and the last one's slowest, and back again, so that a line's end and the next one's start are neighbours.
Each is drawn through a KITTI frame of GEOM_DATA, or without it through the simulated street that comes with geom, from
violet to yellow. Beside it stands what the published code makes of it, whose keys tell cells apart along one axis only.
The number is the longest mean step of the six, as a share of the shortest of the published ones.
"""

import math
import os
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from geom.io import load_points
from geom.points import serialize, voxel_downsample
from geom.sequence.order_locality import locality
from geom.viz import Camera, Lines, View, render
from geom.viz.colors import colormap

ORDERS = ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx")
REACH = 25.0  # metres about the sensor
CELL = 0.8  # metres


def scan() -> Tensor:
    """Points (N, 3) within `REACH` of the sensor, z up, metres, one in each cell, in no order."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    found = sorted(folder.glob("pointclouds/kitti*.bin"))
    if found:
        points = load_points(found[0]).positions
    else:
        with (files("geom.assets") / "scan_street.npz").open("rb") as file:
            points = torch.from_numpy(np.load(file)["tgt"])
    near = points[(points[:, :2].norm(dim=-1) < REACH) & (points[:, 2] > -3)]
    coarse = voxel_downsample(near, CELL).positions
    return coarse[torch.randperm(len(coarse), generator=torch.Generator().manual_seed(0))]


def overhead(points: Tensor, width: int) -> View:
    """All of the points from high above, a little from the south."""
    low, high = points.amin(0), points.amax(0)
    wide, deep, tall = (high - low).tolist()
    share = (0.9 * deep + 0.45 * tall) / wide  # of the picture's width is its height
    middle, away = (low + high) / 2, 1.08 * share * wide / 2 / math.tan(0.1)
    eye = middle + away * torch.tensor([0.0, -0.45, 0.9])
    camera = Camera(eye=tuple(eye.tolist()), target=tuple(middle.tolist()), fov=0.2)
    return View(size=(width, round(share * width)), camera=camera, background=(0.06, 0.07, 0.10))


def main(quick: bool = False, out: Path = Path("out/examples/orders_on_a_street.png")) -> float:
    """Walk through the scan along six orders, true and as published, and compare their steps.

    Args:
        quick: A smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: The longest mean step of the six orders, as a share of the shortest of the published ones.
    """
    points = scan()
    true = locality(points, orders=ORDERS, grid_size=CELL)
    published = locality(points, orders=[f"{name}-official" for name in ORDERS], grid_size=CELL)
    walks = serialize(points, order=ORDERS, grid_size=CELL).order
    view = overhead(points, 200 if quick else 600)
    figure = Figure(figsize=(12, 8 * view.size[1] / view.size[0] + 1.2), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for k, name in enumerate(tqdm(ORDERS, leave=False, disable=not sys.stderr.isatty())):
        place = torch.arange(len(points))
        colors = torch.from_numpy(colormap(place.double().numpy(), low=0, high=len(points)))
        line = Lines(points[walks[k]], torch.stack([place[:-1], place[1:]], -1), 0.2 + 0.8 * colors)
        panels[k].imshow(render(line, view=view))
        title = f"{name}: steps of {float(true.mean[k]):.2f} m, {100 * float(true.near[k]):.0f} % to a cell beside"
        panels[k].set_title(f"{title}\nas published: {float(published.mean[k]):.1f} m", fontsize=11)
        panels[k].axis("off")
    picture = out if out.suffix == ".png" else out / "orders_on_a_street.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 150)
    print(true, published, sep="\n")
    print(f"wrote {picture}")

    ratio = float(true.mean.amax() / published.mean.amin())
    assert ratio < 0.8, f"expected each true order to step less than each published one, got a ratio of {ratio:.2f}"
    return ratio


if __name__ == "__main__":
    tyro.cli(main)
