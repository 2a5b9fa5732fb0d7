"""Train the network that names shapes: shapes.safetensors beside this script, with shapes.json, its report.

`python assets/sequence/train_classifier.py` learns from pointclouds/modelnet10_chair_monitor*.npz in GEOM_DATA, where
every fifth is kept to score, and from balls, cylinders, cones and rings that are made here: one run of less than ten
minutes of one core. What was killed goes on from out/sequence.

With `--network pointnet` a PointNet is trained the same way, on the same clouds, as many steps of the same optimiser,
and asked the same way; with `pointnet-framed` one that is shown the two frames that our network makes for itself. Their
scores go beside ours in the report. `--orders official` takes the published orders. `--validate` is to choose by: it
learns from four fifths of the shapes that are not kept, and scores the others.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from clouds import (
    DATA,
    HERE,
    SOLIDS,
    PointNet,
    damage,
    faces,
    load_cells,
    move,
    sample_cells,
    sample_solid,
    sample_volume,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from geom.sequence.classification import draw
from geom.sequence.point_cloud_mamba import PointCloudMambaPlan
from geom.sequence.shape_classifier import ShapeClassifier, two_frames
from geom.train import Cosine, TrainConfig, train

NAMES = ("chair", "monitor", *SOLIDS)
VIEWS = 8  # that `classify` takes the mean of
POOL = 2048  # points of an item, of which a batch takes some
COUNTS = (128, 128, 192, 256, 256, 384)
PLAN = PointCloudMambaPlan(
    channels=6,
    width=32,
    expansion=(2, 2),
    blocks=(1, 2),
    orders=("xyz", "yzx", "zxy"),
    reduce=(4, 2),
    neighbors=12,
    prompts=2,
    prompt_width=64,
    drop_path=0.0,
    grid_size=0.15,
)
CONDITIONS: dict[str, dict[str, float]] = {
    "whole": {},
    "shaken": {"shake": 0.04},  # of the radius
    "cut": {"cut": 0.33},  # a third of the points is missing on one side
    "few": {},  # 128 points, all others 1,024
    "outliers": {"stray": 0.05},  # of the points
    "uneven": {"slope": 2.0},  # up to e^4 times as dense on one side
}
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass
class Options:
    """Train on shapes."""

    steps: int = 2200
    """Steps of gradient descent."""
    batch: int = 16
    """Clouds of a step."""
    rate: float = 2e-3
    """Learning rate, in the beginning."""
    network: Literal["mamba", "pointnet", "pointnet-framed"] = "mamba"
    """What to train: a PointNet as it is, or one that sees the two frames that our network sees."""
    orders: Literal["true", "official"] = "true"
    """Traverse orders."""
    any_turn: float = 0.4
    """Part of the clouds that are turned about any axis, and not only about the vertical."""
    seed: int = 0
    """Of everything."""
    validate: bool = False
    """Leave the kept shapes alone: score on a fifth of the others, and do not learn from that."""
    compare: bool = False
    """Add the scores to the report, and leave the weights as they are; so for a PointNet in any case."""
    out: Path = HERE / "shapes.safetensors"
    """The weights, and beside them the report."""


class Shape:
    """A shape to draw points from: the sides of its cells, and the cells."""

    def __init__(self, cells: Tensor) -> None:
        self.sides, self.cells = faces(cells), cells.nonzero()

    def sample(self, count: int, *, inside: bool) -> Tensor:
        return sample_volume(self.cells, count) if inside else sample_cells(self.sides, count)


class Shapes:
    """Clouds of POOL points and their labels, drawn anew each time: of twenty eight chairs, seven monitors."""

    def __init__(self, shapes: list[Shape], labels: Tensor, any_turn: float) -> None:
        every = list(zip(shapes, labels.tolist(), strict=True))
        self.kinds = [[x for x, label in every if label == kind] for kind in (0, 1)]
        self.any_turn = any_turn

    def __len__(self) -> int:
        return 20_000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = 0 if index % 20 < 8 else 1 if index % 20 < 15 else 2 + index % len(SOLIDS)
        if label < 2:
            some = self.kinds[label]
            points = some[int(torch.randint(len(some), ()))].sample(POOL, inside=bool(torch.rand(()) < 0.4))
        else:
            points = sample_solid(label - 2, POOL)
        return move(points, up=2, any_turn=self.any_turn), label


def collate(items: list[tuple[Tensor, int]]) -> Batch:
    """As many points of each cloud, some of them damaged in some ways, as those of CONDITIONS or worse."""

    def some(part: float, most: float) -> float:
        return float(most * torch.rand(())) if torch.rand(()) < part else 0.0

    count = COUNTS[int(torch.randint(len(COUNTS), ()))]
    points = [
        damage(x, count, shake=some(0.6, 0.06), cut=some(0.3, 0.4), stray=some(0.25, 0.08), slope=some(0.25, 2.5))
        for x, _ in items
    ]
    return torch.cat(points), torch.arange(len(points) + 1) * count, torch.tensor([label for _, label in items])


def loss(network: nn.Module, batch: Batch, _: torch.Generator) -> Tensor:
    points, offsets, labels = batch
    return cross_entropy(network(points, offsets=offsets), labels, label_smoothing=0.1)


class PlainPointNet(PointNet):
    """A PointNet that sees points as they stand, in the unit ball."""

    def forward(self, points: Tensor, features: Tensor | None = None, *, offsets: Tensor) -> Tensor:
        return super().forward(two_frames(points, offsets)[:, 3:], offsets=offsets)


class FramedPointNet(PointNet):
    """A PointNet that sees what our network sees."""

    def forward(self, points: Tensor, features: Tensor | None = None, *, offsets: Tensor) -> Tensor:
        return super().forward(two_frames(points, offsets), offsets=offsets)


@torch.no_grad()
def settle(network: nn.Module, dataset: Shapes, *, batches: int = 60) -> None:
    """Numbers of the norms as they are for the averaged weights and for clouds as `classify` shows them."""
    norms = [x for x in network.eval().modules() if isinstance(x, nn.BatchNorm1d)]
    torch.manual_seed(2)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for _ in range(batches):
        points, offsets, _ = collate([dataset[int(k)] for k in torch.randint(len(dataset), (16,))])
        shown = torch.cat([draw(x) for x in points.split(offsets.diff().tolist())])
        network(shown, offsets=torch.arange(0, len(shown) + 1, 256))
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


@torch.no_grad()
def score(network: nn.Module, shapes: list[Shape], labels: Tensor) -> dict[str, list[float]]:
    """Percent of shapes named right, as `classify` names them, among all names, and among the two of the data.

    Under each condition once turned about z and once any way; every other shape is sampled inside of its cells.
    """
    found = {}
    for turned in (0.0, 1.0):
        for condition, how in CONDITIONS.items():
            torch.manual_seed(1)
            count = 128 if condition == "few" else 1024
            clouds = torch.stack(
                [
                    damage(move(x.sample(4096, inside=i % 2 > 0), up=2, any_turn=turned), count, **how)
                    for i, x in enumerate(shapes)
                ]
            )
            mean = torch.zeros(len(shapes), len(NAMES))
            for _ in range(VIEWS):
                seen = [torch.cat([draw(x) for x in some]) for some in clouds.split(32)]
                logits = [network(x, offsets=torch.arange(0, len(x) + 1, 256)) for x in seen]
                mean += torch.cat(logits).softmax(1) / VIEWS
            right = [(x.argmax(1) == labels).float().mean() for x in (mean, mean[:, :2])]
            found[f"{condition}, {'any turn' if turned else 'upright'}"] = [round(100 * float(x), 2) for x in right]
    every = list(found.values())
    return found | {"mean": [round(sum(x) / len(x), 2) for x in zip(*every, strict=True)]}


def build(options: Options) -> nn.Module:
    """The network, its first weights drawn by the seed."""
    torch.manual_seed(options.seed)
    if options.network == "pointnet":
        return PlainPointNet(len(NAMES))
    if options.network == "pointnet-framed":
        return FramedPointNet(len(NAMES), channels=6)
    plan = dataclasses.replace(PLAN, official_orders=True, grid_size=0.02) if options.orders == "official" else PLAN
    return ShapeClassifier(len(NAMES), plan=plan)


def main(options: Options) -> None:
    begun = time.process_time()
    torch.set_num_threads(1)
    cells, labels = (
        torch.cat(x) for x in zip(*map(load_cells, sorted(DATA.glob("modelnet10_chair_mon*"))), strict=True)
    )
    place = torch.arange(len(labels)) % 5
    learned, held = (place > 1, place == 1) if options.validate else (place > 0, place == 0)
    network = build(options)
    config = TrainConfig(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        schedule=Cosine(warmup=100),
        weight_decay=1e-2,
        clip=1.0,
        average=0.99,
        seed=options.seed,
        checkpoint_every=200,
    )
    name = f"{options.network}-{options.orders}-{options.steps}-{options.seed}{'-validate' * options.validate}"
    dataset = Shapes([Shape(x) for x in cells[learned]], labels[learned], options.any_turn)
    folder = HERE.parents[1] / "out" / "sequence" / f"{options.out.stem}-{name}"
    train(network, dataset, loss, config=config, collate=collate, out=folder, device="cpu")
    settle(network, dataset)
    trained = time.process_time()
    scores = score(network, [Shape(x) for x in cells[held]], labels[held])
    report = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "cpu_seconds": {"training": round(trained - begun), "all": round(time.process_time() - begun)},
        "held_out_shapes": int(held.sum()),
        "named_right": scores,
    }
    print(name, json.dumps(report))
    about = options.out.with_suffix(".json")
    every = json.loads(about.read_text()) if about.exists() else {}
    every["names"] = NAMES
    every.setdefault("runs", {})[name] = report
    if isinstance(network, ShapeClassifier) and not options.compare:
        network.save(options.out)
        every["weights"] = name
    about.write_text(json.dumps(every, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
