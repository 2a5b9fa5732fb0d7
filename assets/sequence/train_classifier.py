"""Train the network that names shapes: shapes.safetensors beside this script, with shapes.json, its report.

`python assets/sequence/train_classifier.py [--steps 800]`, on the chairs and monitors of
pointclouds/modelnet10_chair_monitor*.npz in GEOM_DATA, of which every fifth is kept to score, and on balls, cylinders,
cones and rings that are made here. What was killed goes on from out/sequence.

The weights that are here had 800 steps with drop_path 0.1 and dropout 0.3 on shapes in the proportion of the data, and
then 450 of this script with `--begin` and `--rate 1.5e-3`: eight minutes of one core.

With `--network pointnet` the same is done for a PointNet, and `--orders official` takes the published orders, to
compare; `--out` says where.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from clouds import DATA, HERE, SOLIDS, PointNet, cut, faces, load_cells, move, sample_cells, sample_solid
from torch import Tensor, nn

from geom.sequence.point_cloud_mamba import PointCloudMamba, PointCloudMambaPlan
from geom.train import Cosine, TrainConfig, train

NAMES = ("chair", "monitor", *SOLIDS)
MOST = 1024  # points of an item, of which a batch takes some
COUNTS = (256, 256, 256, 384, 384, 384, 512, 512, 768)  # what it takes, when a quarter may have been cut away
PLAN = PointCloudMambaPlan(
    width=32,
    expansion=(1, 2, 2),
    blocks=(1, 2, 3),
    orders=("xyz", "xzy", "yxz", "yzx", "zxy", "zyx"),
    reduce=(2, 2, 2),
    neighbors=8,
    prompt_width=64,
    drop_path=0.0,
    grid_size=0.15,
)
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass
class Options:
    """Train on shapes."""

    steps: int = 800
    """Steps of gradient descent."""
    batch: int = 16
    """Clouds of a step."""
    rate: float = 2e-3
    """Learning rate, in the beginning."""
    network: Literal["mamba", "pointnet"] = "mamba"
    """What to train."""
    orders: Literal["true", "official"] = "true"
    """Traverse orders."""
    begin: Path | None = None
    """Weights to begin from."""
    any_turn: float = 0.3
    """Part of the clouds that are turned about any axis, and not only about the vertical."""
    seed: int = 0
    """Of everything."""
    out: Path = HERE / "shapes.safetensors"
    """The weights."""


class Shapes:
    """Clouds of up to MOST points and their labels, drawn anew each time: of twenty eight chairs, seven monitors."""

    def __init__(self, surfaces: list[tuple[Tensor, Tensor]], labels: Tensor, any_turn: float) -> None:
        every = list(zip(surfaces, labels.tolist(), strict=True))
        self.kinds = [[x for x, label in every if label == kind] for kind in (0, 1)]
        self.any_turn = any_turn

    def __len__(self) -> int:
        return 20_000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = 0 if index % 20 < 8 else 1 if index % 20 < 15 else 2 + index % len(SOLIDS)
        if label < 2:
            some = self.kinds[label]
            points = sample_cells(some[int(torch.randint(len(some), ()))], MOST)
        else:
            points = sample_solid(label - 2, MOST)
        points = move(points, up=2, any_turn=self.any_turn)
        return points[cut(MOST, points)], label


def collate(items: list[tuple[Tensor, int]]) -> Batch:
    """As many points of each cloud: 256 to 768."""
    count = COUNTS[int(torch.randint(len(COUNTS), ()))]
    points = [x[:count] for x, _ in items]
    return torch.cat(points), torch.arange(len(points) + 1) * count, torch.tensor([label for _, label in items])


def loss(network: nn.Module, batch: Batch, _: torch.Generator) -> Tensor:
    points, offsets, labels = batch
    return nn.functional.cross_entropy(network(points, offsets=offsets), labels, label_smoothing=0.1)


@torch.no_grad()
def score(network: nn.Module, surfaces: list[tuple[Tensor, Tensor]], labels: Tensor) -> dict[str, list[float]]:
    """Percent of shapes named right among all names, and among the two of the data: 512 points turned about z, or any
    way, without noise or with some of up to a twenty-fifth of the radius."""
    found = {}
    for name, any_turn, jitter in (("upright", 0.0, 0.0), ("any turn", 1.0, 0.0), ("any turn, shaken", 1.0, 0.04)):
        torch.manual_seed(1)
        logits = []
        for first in range(0, len(surfaces), 32):
            some = surfaces[first : first + 32]
            points = [move(sample_cells(x, 512), up=2, any_turn=any_turn, jitter=jitter) for x in some]
            logits.append(network(torch.cat(points), offsets=torch.arange(len(some) + 1) * 512))
        every = torch.cat(logits)
        right = [(x.argmax(1) == labels).float().mean() for x in (every, every[:, :2])]
        found[name] = [round(100 * float(x), 2) for x in right]
    return found


def main(options: Options) -> None:
    torch.set_num_threads(1)
    cells, labels = (
        torch.cat(x) for x in zip(*map(load_cells, sorted(DATA.glob("modelnet10_chair_mon*"))), strict=True)
    )
    surfaces = [faces(x) for x in cells]
    held = torch.arange(len(labels)) % 5 == 0
    kept = [x for x, h in zip(surfaces, held, strict=True) if not h]
    torch.manual_seed(options.seed)
    plan = dataclasses.replace(PLAN, official_orders=True, grid_size=0.02) if options.orders == "official" else PLAN
    network: nn.Module = PointNet(len(NAMES))
    if options.network == "mamba":
        network = PointCloudMamba(len(NAMES), plan=plan, hidden=(128, 64), dropout=0.1)
        if options.begin:
            network.load_state_dict(PointCloudMamba.load(options.begin).state_dict())
    config = TrainConfig(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        schedule=Cosine(warmup=50),
        weight_decay=1e-2,
        clip=1.0,
        average=0.99,
        seed=options.seed,
        checkpoint_every=100,
    )
    name = f"{options.out.stem}-{options.network}-{options.orders}-{options.steps}-{options.seed}"
    begun = time.process_time()
    dataset = Shapes(kept, labels[~held], options.any_turn)
    train(
        *(network, dataset, loss),
        config=config,
        collate=collate,
        out=HERE.parents[1] / "out" / "sequence" / name,
        device="cpu",
    )
    spent = time.process_time() - begun
    network.eval()
    report = {
        "names": NAMES,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seed": options.seed,
        "steps": options.steps,
        "cpu_seconds": round(spent),
        "held_out_shapes": int(held.sum()),
        "named_right": score(network, [x for x, h in zip(surfaces, held, strict=True) if h], labels[held]),
    }
    if isinstance(network, PointCloudMamba):
        network.save(options.out)
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Options))
