"""Train the network that finds the parts of caps: caps.safetensors beside this script, with caps.json, its report.

`python assets/sequence/train_parts.py [--steps 300]`, on the caps of pointclouds/shapenetpart_cap*.npz in GEOM_DATA,
which are few: they are stretched, turned, thinned and shaken, their brims widened and bent, and worn by others; and on
as many that are made here. With `--leave-out` each cap in turn is kept out of a training of its own, and scored;
`--network pointnet` does the same for a PointNet. What was killed goes on from out/sequence.

The weights that are here had 200 steps; what was left out, and the PointNet, 130.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from clouds import DATA, HERE, PointNet
from torch import Tensor, nn

from geom.lie import quaternion
from geom.sequence.classification import normalize_cloud, segment
from geom.sequence.decoders import PointCloudMambaSegmenter
from geom.sequence.point_cloud_mamba import PointCloudMambaPlan
from geom.train import Cosine, TrainConfig, train

NAMES = ("crown", "brim")  # parts 6 and 7 of ShapeNetPart
PLAN = PointCloudMambaPlan(
    width=32,
    expansion=(1, 2, 1),
    blocks=(1, 1, 2),
    orders=("xyz", "yzx", "zxy", "hilbert"),
    reduce=(2, 2, 2),
    neighbors=12,
    prompt_width=64,
    grid_size=0.12,
)
POINTS = 768
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass
class Options:
    """Train on caps."""

    steps: int = 300
    """Steps of gradient descent."""
    batch: int = 4
    """Clouds of a step."""
    rate: float = 2e-3
    """Learning rate, in the beginning."""
    network: Literal["mamba", "pointnet"] = "mamba"
    """What to train."""
    made: float = 0.5
    """Part of the clouds that are made here."""
    mix: float = 0.2
    """Part of the clouds that have the crown of one cap and the brim of another."""
    leave_out: bool = False
    """Also train without each cap in turn, and score on it."""
    seed: int = 0
    """Of everything."""
    out: Path = HERE / "caps.safetensors"
    """The weights."""


def load_caps() -> list[tuple[Tensor, Tensor]]:
    """Points (N, 3), y up and the brim at +x, and parts (N,) 0 or 1 of each cap."""
    found = []
    for path in sorted(DATA.glob("shapenetpart_cap*.npz")):
        with np.load(path) as file:
            sizes = np.diff(file["offsets"]).tolist()
            points, parts = (torch.from_numpy(file[name]) for name in ("pos", "part"))
        found += zip(points.split(sizes), (parts.long() - 6).split(sizes), strict=True)
    return found


def wear(points: Tensor, parts: Tensor, others: Tensor, other_parts: Tensor) -> tuple[Tensor, Tensor]:
    """A cap's crown with another's brim, which is moved and stretched as the crowns' lower edges differ."""
    crown, other = points[parts == 0], others[other_parts == 0]
    (low, high), (low_2, high_2) = ((x.amin(0), x.amax(0)) for x in (crown, other))
    scale = (high - low) / (high_2 - low_2)
    scale[1] = 1.0
    brim = (others[other_parts == 1] - low_2) * scale + low
    return torch.cat([crown, brim]), torch.cat([parts[parts == 0], other_parts[other_parts == 1]])


def droop(points: Tensor, parts: Tensor) -> Tensor:
    """The brim wider or narrower, and bent up, or down by more."""
    crown = points[parts == 0]
    base, reach = crown[:, 1].amin(), crown[:, [0, 2]].norm(dim=1).quantile(0.5)
    out = (points[:, [0, 2]].norm(dim=1) / reach - 1).clamp(min=0)[:, None]
    wide = points * torch.tensor([0.8 + 0.5 * torch.rand(()), 1.0, 0.8 + 0.5 * torch.rand(())])
    down = torch.tensor([0.0, 1.0, 0.0]) * (points[:, 1].amax() - base) * (0.8 * torch.rand(()) - 0.2)
    return torch.where(parts[:, None] == 1, wide - down * out, points)


def make_cap(count: int) -> tuple[Tensor, Tensor]:
    """Points and parts of a dome with a brim, all around it or in front."""
    height, round_ = 0.5 + 1.1 * torch.rand(()), 1.6 + 3.4 * torch.rand(())
    length = 0.05 + 0.9 * torch.rand(())
    half = torch.pi if torch.rand(()) < 0.5 else 0.6 + 0.8 * torch.rand(())
    area = half * ((1 + length).square() - 1) / (2 * torch.pi * (0.5 + height))  # of the brim, over the dome's
    brim = max(8, int(count * area / (1 + area)))
    turn, up = 2 * torch.pi * torch.rand(count - brim), torch.pi / 2 * torch.rand(count - brim)
    reach = up.cos().clamp(min=0) ** (2 / round_)
    crown = torch.stack([reach * turn.cos(), height * up.sin() ** (2 / round_), reach * turn.sin()], 1)
    turn = half * (2 * torch.rand(brim) - 1)
    ends = length if half > 3 else length * (turn / half * torch.pi / 2).cos().clamp(min=0).sqrt()
    out = ends * torch.rand(brim).sqrt()
    down = 0.8 * torch.rand(()) - 0.2
    ring = torch.stack([(1 + out) * turn.cos(), 0.1 * torch.rand(()) - down * out, (1 + out) * turn.sin()], 1)
    wide = torch.tensor([1.0, 1.0, 0.75 + 0.25 * torch.rand(())])
    return torch.cat([crown, ring]) * wide, (torch.arange(count) >= count - brim).long()


class Caps:
    """Clouds of (POINTS, 3) points and their parts, another draw of the caps each time."""

    def __init__(self, caps: list[tuple[Tensor, Tensor]], length: int, made: float, mix: float) -> None:
        self.caps, self.length, self.made, self.mix = caps, length, made, mix

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        points, parts = self.caps[index % len(self.caps)] if torch.rand(()) >= self.made else make_cap(3 * POINTS)
        if torch.rand(()) < self.mix:
            points, parts = wear(points, parts, *self.caps[int(torch.randint(len(self.caps), ()))])
        weight = torch.where(parts == 1, 2 ** (4 * torch.rand(()) - 2.5), 1.0)  # more of the brim, or less
        chosen = torch.multinomial(weight, POINTS)
        points, parts = points[chosen], parts[chosen]
        points = droop(points, parts)
        stretch = (0.6 * torch.rand(3) - 0.3 + torch.tensor([0.0, 0.4, 0.0]) * torch.rand(())).exp()
        stretch[2] *= 1 if torch.rand(()) < 0.5 else -1
        turn = quaternion.exp(torch.randn(3) * torch.tensor([0.08, 0.2, 0.08]))
        points = normalize_cloud(quaternion.rotate(turn, points * stretch))
        return points + 0.02 * torch.rand(()) * torch.randn(points.shape), parts


def collate(items: list[tuple[Tensor, Tensor]]) -> Batch:
    points, parts = (torch.cat(x) for x in zip(*items, strict=True))
    return points, torch.arange(len(items) + 1) * POINTS, parts


def loss(network: nn.Module, batch: Batch, _: torch.Generator) -> Tensor:
    points, offsets, parts = batch
    return nn.functional.cross_entropy(network(points, offsets=offsets), parts, label_smoothing=0.05)


def overlap(network: nn.Module, points: Tensor, parts: Tensor) -> float:
    """Mean over both parts of intersection over union, in percent."""
    found = segment(points, network=network, points_each=POINTS).argmax(1)
    each = [((found == k) & (parts == k)).sum() / ((found == k) | (parts == k)).sum().clamp(min=1) for k in (0, 1)]
    return 50 * float(sum(each))


def fit(caps: list[tuple[Tensor, Tensor]], options: Options, name: str) -> nn.Module:
    torch.manual_seed(options.seed)
    network: nn.Module = PointNet(len(NAMES), parts=True)
    if options.network == "mamba":
        network = PointCloudMambaSegmenter(len(NAMES), plan=PLAN, dropout=0.3)
    config = TrainConfig(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        schedule=Cosine(warmup=20),
        weight_decay=1e-2,
        clip=1.0,
        seed=options.seed,
        checkpoint_every=100,
    )
    folder = HERE.parents[1] / "out" / "sequence" / f"{name}-{options.network}-{options.steps}-{options.seed}"
    train(
        network,
        Caps(caps, 1000, options.made, options.mix),
        loss,
        config=config,
        collate=collate,
        out=folder,
        device="cpu",
    )
    return network.eval()


def main(options: Options) -> None:
    torch.set_num_threads(1)
    caps = load_caps()
    left_out = []
    if options.leave_out:
        for k, (points, parts) in enumerate(caps):
            left_out.append(overlap(fit([*caps[:k], *caps[k + 1 :]], options, f"caps-without-{k}"), points, parts))
            print(f"without cap {k}: {left_out[-1]:.1f} %", flush=True)
    begun = time.process_time()
    network = fit(caps, options, "caps")
    spent = time.process_time() - begun
    report = {
        "names": NAMES,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seed": options.seed,
        "steps": options.steps,
        "cpu_seconds": round(spent),
        "left_out_overlap": [round(x, 1) for x in left_out],
        "left_out_mean": round(sum(left_out) / max(1, len(left_out)), 2),
        "learned_overlap": [round(overlap(network, *cap), 1) for cap in caps],
    }
    if isinstance(network, PointCloudMambaSegmenter):
        network.save(options.out)
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Options))
