"""Train the network of examples/artery.py: artery.safetensors beside this script, with artery.json, its report.

`python assets/clifford/train_artery.py [--steps 2000] [--net serialized]`, on 96 vessels that the example makes; each
step sees 16 rings in a row of two of them, and in the end the whole of one. 32 others score the weights after the last
step, as they stand, turned at random, and mirrored too. `--net full` trains the twin that attends to all, and `--net
points` a network of the same inputs that treats each point by itself beside the greatest features of all (Qi et al.,
2017); they leave no file. What was killed goes on from out/clifford. The seed is 0; it takes ten minutes of one core.
"""

import itertools
import json
import runpy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from geom.clifford import GATr
from geom.clifford.serialized import SerializedGATr
from geom.lie import quaternion
from geom.meshes import Mesh
from geom.nn.serialized_attention import principal_coordinates
from geom.points import serialize
from geom.train import Cosine, TrainConfig, save_checkpoint, train

HERE = Path(__file__).resolve().parent
ARTERY = runpy.run_path(str(HERE.parents[1] / "examples" / "artery.py"))
SEEN, TESTED = range(1000, 1096), range(2000, 2032)
Item = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # points and planes, scalars, field, positions; offsets


@dataclass
class Options:
    """Train on arteries."""

    net: Literal["serialized", "full", "points"] = "serialized"
    """What attends."""
    steps: int = 2000
    """Steps of gradient descent on parts, before three tenths as many on whole vessels."""
    out: Path = HERE / "artery.safetensors"
    """The weights."""


class PointNet(nn.Module):
    """Field of each point from its own features and the greatest of all; in the given frame."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.own = nn.Sequential(nn.Linear(9, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU())
        self.last = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.leave = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        own = self.own(x)
        return self.leave(self.last(torch.cat([own, self.all(own).amax(0).expand(len(x), -1)], -1)))


def predict(net: nn.Module, item: Item) -> Tensor:
    """The field (V, 3) that a network finds."""
    x, scalars, _, positions, offsets = item
    if isinstance(net, PointNet):
        ends = offsets.tolist()
        every = torch.cat([positions / 8, x[:, 1, 2:5], scalars], -1)
        return torch.cat([net(every[a:b]) for a, b in itertools.pairwise(ends)])
    if isinstance(net, SerializedGATr):
        own = principal_coordinates(positions, offsets=offsets)
        orders = serialize(own, order=ARTERY["ORDERS"], offsets=offsets).order
        return ARTERY["field_of"](*net(x, scalars, orders=orders, offsets=offsets))
    return ARTERY["field_of"](*net(x, scalars, offsets=offsets))


def error(net: nn.Module, item: Item) -> Tensor:
    """Relative error of the field, in L2."""
    return (predict(net, item) - item[2]).norm() / item[2].norm()


def loss(net: nn.Module, item: Item, _: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean error of the parts; and one less their cosine, without which a network that knows no way says 0."""
    found, field, bounds = predict(net, item), item[2], item[4][1:-1]

    def sums(x: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in x.tensor_split(bounds)])

    size, own = sums(field.square()).sqrt(), sums(found.square()).sqrt()
    off = (sums((found - field).square()).sqrt() / size).mean()
    return off + (1 - sums(found * field) / (size * own)).mean(), {"error": off}


class Parts:
    """Vessels, each time others of their 64 rings, in a row."""

    def __init__(self, vessels: list[Item], rings: int) -> None:
        self.vessels, self.rings = vessels, rings

    def __len__(self) -> int:
        return len(self.vessels)

    def __getitem__(self, index: int) -> Item:
        start, count = 24 * int(torch.randint(65 - self.rings, ())), 24 * self.rings
        x, scalars, field, positions = (x[start : start + count] for x in self.vessels[index][:4])
        return x, scalars, field, positions, torch.tensor([0, count])


def collate(items: list[Item]) -> Item:
    x, scalars, field, positions = (torch.cat([item[k] for item in items]) for k in range(4))
    return x, scalars, field, positions, torch.tensor([0, *(len(item[0]) for item in items)]).cumsum(0)


def load(seed: int, *, sign: int = 0, around: int = 24, along: int = 64) -> Item:
    """A vessel, as it is made, or turned at random (sign 1) and mirrored as well (-1)."""
    mesh, field = ARTERY["make_artery"](seed, around=around, along=along)
    if sign:
        motion = sign * quaternion.to_matrix(
            quaternion.random(generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        )
        mesh = Mesh(mesh.vertices @ motion.mT, mesh.faces if sign > 0 else mesh.faces.flip(-1))
        field = field @ motion.mT
    x, scalars, _ = ARTERY["describe"](mesh, around)
    return x, scalars, field.float(), mesh.vertices.float(), torch.tensor([0, len(x)])


def make_net(kind: str, generator: torch.Generator) -> nn.Module:
    if kind == "points":
        torch.manual_seed(0)
        return PointNet()
    if kind == "full":
        return GATr(2, 1, 3, 1, plan=ARTERY["PLAN"], generator=generator)
    return SerializedGATr(2, 1, 3, 1, plan=ARTERY["PLAN"], patch=ARTERY["PATCH"], generator=generator)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    vessels = [load(seed) for seed in SEEN]
    net = make_net(options.net, torch.Generator().manual_seed(0))
    begun = time.process_time()
    short = options.steps * 3 // 10
    for rings, patch, steps, rate in ((16, 192, options.steps, 4e-3), (64, ARTERY["PATCH"], short, 1.5e-3)):
        if isinstance(net, SerializedGATr):
            net.patch = patch
        config = TrainConfig(
            steps=steps,
            batch=32 // min(rings, 32),
            rate=rate,
            schedule=Cosine(warmup=100),
            weight_decay=1e-3,
            clip=1.0,
            average=0.99,
        )
        folder = HERE.parents[1] / "out" / "clifford" / f"artery-{options.net}-{rings}-{steps}"
        train(net, Parts(vessels, rings), loss, config=config, out=folder, device="cpu", collate=collate)
    spent = time.process_time() - begun
    with torch.no_grad():
        errors, turned, mirrored = (
            torch.stack([error(net, load(seed, sign=sign)) for seed in TESTED]) for sign in (0, 1, -1)
        )
    report = {
        "net": options.net,
        "parameters": sum(p.numel() for p in net.parameters()),
        "seed": 0,
        "steps": [options.steps, short],
        "cpu_seconds": round(spent),
        "error": round(float(errors.mean()), 4),
        "error_turned": round(float(turned.mean()), 4),
        "error_mirrored": round(float(mirrored.mean()), 4),
        "error_worst": round(float(errors.max()), 4),
    }
    print(json.dumps(report))
    if options.net == "serialized":
        save_checkpoint(options.out, {"module": net.state_dict()})
        options.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
