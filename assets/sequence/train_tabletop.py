"""Train the net that finds what stands on a table: tabletop.safetensors beside this script, tabletop.json, its report.

`python assets/sequence/train_tabletop.py [--steps 400]`, on depth images of boxes and cans that are made up here. Two
others of them, tabletop_1.npz and tabletop_2.npz, are for the example, which has the net and all that it sees. Scores
are the example's, on made-up scenes apart from those, and on pointclouds/mosd_*.npz of GEOM_DATA, if there are any; by
them its REACH and FEW were chosen. What was killed goes on from out/sequence. It takes three minutes of one core.
"""

import json
import math
import os
import runpy
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from geom.nn import Voxels, scatter
from geom.sequence.serialized import SerializedTransformer
from geom.train import Cosine, TrainConfig, save_checkpoint, train

HERE = Path(__file__).resolve().parent
EXAMPLE = runpy.run_path(str(HERE.parents[1] / "examples" / "tabletop.py"))
CELL, UNIT = EXAMPLE["CELL"], EXAMPLE["UNIT"]
Batch = tuple[Tensor, ...]


@dataclass
class Options:
    """Train on made-up tables."""

    steps: int = 400
    """Steps of gradient descent."""
    count: int = 200
    """Scenes to train on."""
    out: Path = HERE / "tabletop.safetensors"
    """The weights."""


def make_scene(generator: torch.Generator, side: int = 130) -> tuple[Tensor, Tensor]:
    """A depth image (N, 3) in the camera's frame, z forward, and what each point is of: 0 the table, 1, 2, ... objects.

    Prisms with 4 or 24 sides on the plane z = 0, some upon others, met by rays from an eye about 0.9 m away.
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    tilt, away = draw(0.6, 1.1), draw(0.75, 1.1)
    forward = torch.tensor([0.0, math.cos(tilt), -math.sin(tilt)])
    axes = torch.stack([torch.tensor([1.0, 0, 0]), torch.tensor([0, -math.sin(tilt), -math.cos(tilt)]), forward])
    grid = torch.linspace(-0.5, 0.5, side)
    rays = torch.cat([torch.cartesian_prod(grid, 0.7 * grid), torch.ones(side * side, 1)], 1)
    eye, rays = -away * forward, (rays + 0.3 / side * torch.randn(rays.shape, generator=generator)) @ axes
    depth, label = eye[2] / -rays[:, 2], torch.zeros(len(rays), dtype=torch.int64)
    stood: list[tuple[float, float, float, float]] = []  # x, y, radius, height
    for number in range(1, 2 + int(draw(1, 5))):
        sides, turn, height = (4 if draw(0, 1) < 0.6 else 24), draw(0, 3), draw(0.03, 0.25)
        wide = torch.tensor([draw(0.03, 0.12), draw(0.03, 0.12)]) if sides == 4 else torch.full((2,), draw(0.03, 0.08))
        x, y, low, radius = draw(-0.35, 0.35), draw(-0.25, 0.25), 0.0, float(wide.norm() if sides == 4 else wide[0])
        if stood and draw(0, 1) < 0.3:
            x, y, _, low = stood[int(draw(0, len(stood)))]
        elif any(math.hypot(x - a, y - b) < 0.85 * (radius + r) for a, b, r, _ in stood):
            continue
        stood.append((x, y, radius, low + height))
        angle = turn + torch.arange(sides) * (2 * math.pi / sides)
        outward = torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
        normals = torch.cat([outward, torch.tensor([[0.0, 0, 1], [0, 0, -1]])])
        reach = outward @ torch.tensor([x, y, 0.0]) + wide.repeat(sides // 2)
        far = torch.cat([reach, torch.tensor([low + height, -low])])
        speed = rays @ normals.T
        meets = (far - normals @ eye) / speed
        enter = meets.where(speed < 0, -torch.inf).amax(1)
        hit = (enter < meets.where(speed > 0, torch.inf).amin(1)) & (enter < depth)
        depth, label = depth.where(~hit, enter), label.where(~hit, number)
    depth = depth * (1 + 0.0015 * torch.randn(depth.shape, generator=generator))
    seen = (depth > 0) & (depth < 1.7)
    return (depth[:, None] * (rays @ axes.T))[seen], label[seen]


class Scenes:
    """Upright scenes, turned about and mirrored each time."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.scenes = []
        for _ in range(count):
            points, label = make_scene(generator)
            self.scenes.append((*EXAMPLE["upright"](points), label))

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Batch:
        """Grid and features of voxels; the object of each, 0 for the table, and where its middle is, in UNIT."""
        points, normals, label = self.scenes[index]
        angle, mirror = float(torch.rand(1)) * 2 * math.pi, 1.0 if torch.rand(1) < 0.5 else -1.0
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        turn = torch.block_diag(turn * torch.tensor([1.0, mirror]), torch.eye(1))
        points, normals = points @ turn.T + torch.rand(3) * torch.tensor([CELL, CELL, 0.0]), normals @ turn.T
        voxels, cell = EXAMPLE["look"](points, normals)
        count = int(label.max()) + 1
        top, low = (scatter(points, label, count, reduce=reduce) for reduce in ("max", "min"))
        own = scatter(label.float(), cell, len(voxels.grid), reduce="max").long()
        middle = ((top + low) / 2)[own] - (voxels.grid + 0.5) * CELL
        return voxels.grid, voxels.features, own, middle / UNIT


def collate(items: list[Batch]) -> Batch:
    offsets = torch.tensor([0, *(len(item[0]) for item in items)]).cumsum(0)
    return (*map(torch.cat, zip(*items, strict=True)), offsets)


def loss(net: SerializedTransformer, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    grid, features, own, middle, offsets = batch
    out = net(Voxels(grid, features, offsets), generator=generator if net.training else None)
    there = own > 0
    objects = binary_cross_entropy_with_logits(out[:, 0], there.float())
    votes = smooth_l1_loss(out[there, 1:], middle[there], beta=0.1) if bool(there.any()) else 0 * objects
    return objects + votes, {"objects": objects.detach(), "votes": votes.detach()}


def score(net: SerializedTransformer, scenes: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    voted, touching = [], []
    for points, normals, label in scenes:
        found = EXAMPLE["segment"](net, points, normals)
        voted += EXAMPLE["overlap"](found[0], label)
        touching += EXAMPLE["overlap"](found[1], label)
    return {
        "objects": len(voted),
        "votes": round(float(np.mean(voted)), 4),
        "touching": round(float(np.mean(touching)), 4),
    }


def real() -> list[tuple[Tensor, Tensor, Tensor]]:
    folder = Path(os.environ.get("GEOM_DATA", HERE.parents[1] / "../shared/data"))
    scenes = []
    for path in sorted(folder.glob("pointclouds/mosd_*.npz")):
        with np.load(path) as file:
            label = torch.from_numpy(file["label"].astype(int)).unique(return_inverse=True)[1]
            scenes.append((*EXAMPLE["upright"](torch.from_numpy(file["pos"])), label))
    return scenes


def main(options: Options) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    for number in (1, 2):
        points, label = make_scene(generator)
        np.savez_compressed(
            HERE / f"tabletop_{number}.npz", pos=points.numpy().astype(np.float16), label=label.numpy().astype(np.uint8)
        )
    net = SerializedTransformer(4, 4, EXAMPLE["PLAN"], generator=torch.Generator().manual_seed(0))
    config = TrainConfig(
        steps=options.steps,
        batch=2,
        rate=2e-3,
        schedule=Cosine(warmup=20),
        weight_decay=1e-2,
        clip=1.0,
        average=0.98,
        checkpoint_every=100,
    )
    folder = HERE.parents[1] / "out" / "sequence" / f"{options.out.stem}-{options.steps}"
    begun = time.process_time()
    train(net, Scenes(options.count, 0), loss, config=config, out=folder, collate=collate, device="cpu")
    spent = time.process_time() - begun
    net.eval()
    save_checkpoint(options.out, {"module": net.state_dict()})
    report = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "seed": 0,
        "steps": options.steps,
        "cpu_seconds": round(spent),
        "made_up": score(net, Scenes(40, 2).scenes),
    }
    if scenes := real():
        report["real"] = score(net, scenes)
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Options))
