"""What shapes are these? `python examples/classify_shapes.py`.

The network of assets/sequence, a small Point Cloud Mamba, names clouds of 512 points, turned about the vertical. The
shapes are the chairs and monitors of GEOM_DATA that it did not learn from, and balls, cylinders, cones and rings that
are made here. The number is the part that is named right; the picture shows some of them with their names.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from geom.lie import so3
from geom.sequence.classification import classify
from geom.viz import View, render


def solid(name: str, count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 3) on a solid."""
    turn, u = (torch.rand(count, generator=generator) * x for x in (2 * math.pi, 1))
    around = torch.stack([turn.cos(), turn.sin(), 0 * turn], 1)
    up = torch.tensor([0.0, 0, 1])
    if name == "ball":
        return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    if name == "ring":
        own = 2 * math.pi * u
        return around * (1 + 0.3 * own.cos())[:, None] + 0.3 * own.sin()[:, None] * up
    lid = torch.rand(count, generator=generator) < 0.3
    if name == "cone":
        high = torch.where(lid, 0.0, 1 - u.sqrt())
        return around * torch.where(lid, u.sqrt(), 1 - high)[:, None] + 1.8 * high[:, None] * up
    return around * torch.where(lid, u.sqrt(), 1.0)[:, None] + torch.where(lid, u.round(), u)[:, None] * 2 * up


def load_shapes(count: int, generator: torch.Generator) -> list[tuple[str, Tensor]]:
    """Names and points (512, 3), `count` of each kind."""
    found = [(name, solid(name, 512, generator)) for name in ("ball", "cylinder", "cone", "ring") for _ in range(count)]
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data")) / "pointclouds"
    for path in sorted(folder.glob("modelnet10_chair_monitor*.npz")):
        with np.load(path) as file:
            cells, labels = np.unpackbits(file["vox"], axis=1).reshape(-1, 32, 32, 32), file["label"]
        for label, name in enumerate(("chair", "monitor")):
            for k in [k for k in range(0, len(labels), 5) if labels[k] == label][:count]:
                occupied = torch.from_numpy(cells[k]).nonzero().float()
                rows = torch.randint(len(occupied), (512,), generator=generator)
                found.append((name, occupied[rows] + torch.rand(512, 3, generator=generator) - 0.5))
    return found


def main(quick: bool = False, out: Path = Path("out/examples/classify_shapes.png"), seed: int = 0) -> float:
    """Name shapes, check how many are named right, and draw one of each kind.

    Args:
        quick: Fewer shapes, and a smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the points and the turns.

    Returns: the part of the shapes that is named right.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes, named = load_shapes(3 if quick else 30, generator), []
    for _, points in tqdm(shapes, disable=None, unit="shape"):
        angle = 2 * math.pi * torch.rand((), generator=generator)
        named.append(classify(points @ so3.exp(angle * torch.tensor([0.0, 0, 1])).mT))
    right = [next(iter(found)) == name for (name, _), found in zip(shapes, named, strict=True)]
    accuracy = sum(right) / len(right)
    kinds = list(dict.fromkeys(name for name, _ in shapes))
    each = {kind: [ok for (name, _), ok in zip(shapes, right, strict=True) if name == kind] for kind in kinds}
    print(f"{len(shapes)} shapes, {100 * accuracy:.1f} % named right")
    print(", ".join(f"{kind}: {100 * sum(x) / len(x):.0f} %" for kind, x in each.items()))

    figure = Figure(figsize=(2.6 * len(kinds), 3.2), layout="constrained")
    view = View(size=(160, 160) if quick else (320, 320))
    for axes, kind in zip(figure.subplots(1, len(kinds)), kinds, strict=True):
        k = [name for name, _ in shapes].index(kind)
        axes.imshow(render(shapes[k][1], view=view))
        axes.set_axis_off()
        best = list(named[k].items())[:2]
        axes.set_title("\n".join(f"{name} {100 * p:.0f} %" for name, p in best), fontsize=11)
    picture = out if out.suffix == ".png" else out / "classify_shapes.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 110)
    print(f"wrote {picture}")

    bound = 0.9
    assert accuracy >= bound, f"expected at least {bound} named right, got {accuracy:.3f}"
    return accuracy


if __name__ == "__main__":
    tyro.cli(main)
