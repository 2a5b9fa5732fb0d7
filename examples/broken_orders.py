"""Does the order matter? `python examples/broken_orders.py`, or with `--steps 300` for longer trainings.

Point Cloud Mamba reads a cloud along six traverses. In the published code their keys tell points apart along the first
axis only, so that "xyz" and "xzy" are one order, and the walk jumps about within each slice. Small networks learn here
from the same first weights and the same clouds with the true orders and with the published ones, from three seeds: the
chairs and monitors of GEOM_DATA, or without it cylinders and cones that are made here, turned any way. The number is
how many per cent more of the shapes that were kept apart are named right with the true orders, in the mean.
"""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from geom.lie import quaternion
from geom.points import encode
from geom.sequence import PointCloudMamba, PointCloudMambaPlan
from geom.sequence.classification import normalize_cloud
from geom.train import Cosine, TrainConfig, train
from geom.viz import Lines, View, render
from geom.viz.colors import colormap

ORDERS = ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx")
SHAPE = PointCloudMambaPlan(3, 16, (2, 1), (3, 3), ORDERS, reduce=(2, 2), neighbors=8, prompts=2)
PLANS = {
    "as published": dataclasses.replace(SHAPE, official_orders=True, grid_size=0.02),
    "true": dataclasses.replace(SHAPE, grid_size=0.2),
}


def load_shapes() -> list[tuple[Tensor, int]]:
    """Points (2048, 3) in each shape's occupied cells, or on a cylinder's or a cone's side, and its kind, 0 or 1."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data")) / "pointclouds"
    found = []
    for path in sorted(folder.glob("modelnet10_chair_monitor*.npz")):
        with np.load(path) as file:
            cells = torch.from_numpy(np.unpackbits(file["vox"], axis=1).reshape(-1, 32, 32, 32))
            for x, kind in zip(cells, file["label"].tolist(), strict=True):
                found.append((x.nonzero()[torch.randint(int(x.sum()), (2048,))] + torch.rand(2048, 3), kind))
    for k in range(0 if found else 400):
        turn, high = 2 * math.pi * torch.rand(2048), torch.rand(2048)
        reach, tall = 1 - high * (k % 2), 1 + 2 * torch.rand(())
        found.append((torch.stack([reach * turn.cos(), reach * turn.sin(), tall * high], 1), k % 2))
    return found


def draw(shapes: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """128 points of each shape within the unit ball, turned any way, cloud after cloud, and the kinds."""
    some = [points[torch.randint(2048, (128,))] for points, _ in shapes]
    turned = [normalize_cloud(quaternion.rotate(quaternion.random(), x)) for x in some]
    return torch.cat(turned), torch.tensor([kind for _, kind in shapes])


def logits(network: nn.Module, points: Tensor) -> Tensor:
    return network(points, offsets=torch.arange(0, len(points) + 1, 128))


def loss(network: nn.Module, batch: tuple[Tensor, Tensor], _: torch.Generator) -> Tensor:
    return cross_entropy(logits(network, batch[0]), batch[1])


def main(quick: bool = False, out: Path = Path("out/examples/broken_orders.png"), steps: int = 60) -> float:
    """Train with either orders, compare how many shapes are named right, and draw a walk of each.

    Args:
        quick: Two steps, one seed, and a smaller picture.
        out: The picture, a PNG, or a folder for it.
        steps: Of each training, of 16 clouds.

    Returns: how many per cent more are named right with the true orders.
    """
    steps, seeds = (2, 1) if quick else (steps, 3)
    torch.manual_seed(0)
    shapes = load_shapes()
    learned = [x for k, x in enumerate(shapes) if k % 5]
    points, kinds = draw(shapes[::5][:20] if quick else 4 * shapes[::5])
    right: dict[str, list[float]] = {name: [] for name in PLANS}
    for seed, name in tqdm([(s, name) for s in range(seeds) for name in PLANS], disable=None, unit="training"):
        torch.manual_seed(seed)
        network = PointCloudMamba(2, plan=PLANS[name], hidden=(64,), dropout=0.1)
        config = TrainConfig(steps=steps, batch=16, rate=3e-3, schedule=Cosine(warmup=5), clip=1.0, seed=seed)
        train(network, learned, loss, config=config, collate=draw, device="cpu")
        with torch.no_grad():
            found = torch.cat([logits(network.eval(), x) for x in points.split(38 * 128)]).argmax(1)
        right[name].append(round(100 * int((found == kinds).sum()) / len(kinds), 1))
    gap = float(np.mean(right["true"]) - np.mean(right["as published"]))

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    place, shape = torch.arange(512), normalize_cloud(shapes[0][0][:512]) + 1
    colors = 0.2 + 0.8 * torch.from_numpy(colormap(place.double().numpy(), low=0, high=512))
    view = View(size=(200, 200) if quick else (400, 400), background=(0.06, 0.07, 0.10))
    for axes, (name, plan) in zip(panels, PLANS.items(), strict=False):
        order = "xyz-official" if plan.official_orders else "xyz"
        walk = encode((shape / plan.grid_size).long(), order=order).argsort(stable=True)
        axes.imshow(render(Lines(shape[walk], torch.stack([place[:-1], place[1:]], 1), colors), view=view))
        axes.set(title=f"xyz {name}", xticks=[], yticks=[])
    panels[2].plot(list(PLANS), list(right.values()), "o-")
    panels[2].set(title=f"% right after {steps} steps, {gap:+.1f}", xlim=(-0.3, 1.3))
    picture = out if out.suffix == ".png" else out / "broken_orders.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 75)
    print(f"{steps} steps: named right {right}\nwrote {picture}")

    assert quick or gap > -5, f"expected the true orders to name no fewer right, got {gap:+.1f} %"
    return gap


if __name__ == "__main__":
    tyro.cli(main)
