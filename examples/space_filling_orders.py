"""A scan put into a row: `python examples/space_filling_orders.py`.

Networks that read points one after the other, or in groups of so many, want neighbours in space to be neighbours in the
row. `serialize` sorts one scan along several curves at once. Above: the row cut into groups of as many points each,
neighbouring groups in different colours. Below: the row itself through a coarser cloud, from violet to yellow. The scan
is a KITTI frame of GEOM_DATA, or without it the simulated street that comes with geom. The number is the mean step from
point to point along Hilbert's curve, as a share of that along Morton's.
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
from geom.points import Points, serialize, voxel_downsample
from geom.viz import Camera, Lines, View, render
from geom.viz.colors import PALETTE, colormap

ORDERS = {"hilbert": "Hilbert", "morton": "Morton", "zxy": "traverse, z then x then y"}
REACH = 30.0  # metres about the sensor
GROUPS = 96


def scan() -> Tensor:
    """Points (N, 3) within `REACH` of the sensor, z up, metres."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    found = sorted(folder.glob("pointclouds/kitti*.bin"))
    if found:
        points = load_points(found[0]).positions
    else:
        with (files("geom.assets") / "scan_street.npz").open("rb") as file:
            points = torch.from_numpy(np.load(file)["tgt"])
    return points[(points[:, :2].norm(dim=-1) < REACH) & (points[:, 2] > -3)]


def overhead(points: Tensor, width: int) -> View:
    """All of the points from high above, a little from the south."""
    low, high = points.amin(0), points.amax(0)
    wide, deep, tall = (high - low).tolist()
    share = (0.9 * deep + 0.45 * tall) / wide  # of the picture's width is its height
    middle, away = (low + high) / 2, 1.08 * share * wide / 2 / math.tan(0.1)
    eye = middle + away * torch.tensor([0.0, -0.45, 0.9])
    camera = Camera(eye=tuple(eye.tolist()), target=tuple(middle.tolist()), fov=0.2)
    return View(size=(width, round(share * width)), camera=camera, background=(0.06, 0.07, 0.10))


def main(quick: bool = False, out: Path = Path("out/examples/space_filling_orders.png")) -> float:
    """Sort the scan along three curves, draw groups and curves, and compare their steps.

    Args:
        quick: A smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: Hilbert's mean step, as a share of Morton's.
    """
    points = scan()
    row = serialize(points, order=list(ORDERS))
    coarse = voxel_downsample(points, 0.8).positions
    curve = serialize(coarse, order=list(ORDERS), grid_size=0.8)
    view = overhead(points, 200 if quick else 800)
    height = 9 * view.size[1] / view.size[0] + 0.5
    figure = Figure(figsize=(13.5, height), layout="constrained")
    panels = figure.subplots(2, len(ORDERS))
    step = {}
    for k, (name, title) in enumerate(tqdm(ORDERS.items(), leave=False, disable=not sys.stderr.isatty())):
        step[name] = float(points[row[k].order].diff(dim=0).norm(dim=-1).mean())
        group = row[k].inverse * GROUPS // len(points)
        colors = 0.2 + 0.8 * torch.from_numpy(PALETTE)[group * 5 % len(PALETTE)]
        panels[0, k].imshow(render(Points(points, colors=colors), view=view))
        panels[0, k].set_title(f"{title}: steps of {100 * step[name]:.0f} cm", fontsize=14)
        ends = coarse[curve[k].order]
        place = torch.arange(len(ends))
        colors = torch.from_numpy(colormap(place.double().numpy(), low=0, high=len(ends)))
        line = Lines(ends, torch.stack([place[:-1], place[1:]], -1), 0.2 + 0.8 * colors)
        panels[1, k].imshow(render(line, view=view))
    for panel in panels.flat:
        panel.axis("off")
    picture = out if out.suffix == ".png" else out / "space_filling_orders.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 150)
    print(*(f"{title:25} mean step {step[name]:.3f} m" for name, title in ORDERS.items()), sep="\n")
    print(f"wrote {picture}")

    ratio = step["hilbert"] / step["morton"]
    assert ratio < 0.95 and step["morton"] < step["zxy"], f"expected Hilbert to step least, then Morton, got {step}"
    return ratio


if __name__ == "__main__":
    tyro.cli(main)
