"""Train the network that tells where planets will be: nbody.safetensors beside this script, nbody.json, its report.

`python assets/clifford/train_nbody.py [--steps 5000]`, on 1,000 systems of a star and three planets that are drawn
here. Scores are mean squared errors of a coordinate after the last step: on ten times 5,000 others, on the same shifted
by 200, on ten times 5,000 of five planets; and on clifford/nbody/*.npz of GEOM_DATA, if there are any. What was killed
goes on from out/clifford. It takes five minutes of one core, and two more to score.

Planets that meet within a step of the simulation kick each other out, as no smooth function tells: nine tenths of all
error is that of twenty systems in 5,000. So every score stands beside "alone", the error of an exact calculation
without attraction between planets, and has a spread, the standard deviation over the ten draws; "without_worst" leaves
out the one system in a hundred that errs most.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from geom.clifford.bodies import Bodies, BodyNetwork, draw_planets, move_bodies
from geom.train import Cosine, TrainConfig, train

HERE = Path(__file__).resolve().parent
DRAWS = 10
MEETING = 3e-3  # mean squared error from which a system counts less and less: its planets have met


@dataclass
class Options:
    """Train on planets."""

    steps: int = 5000
    """Steps of gradient descent."""
    count: int = 1000
    """Systems to train on."""
    out: Path = HERE / "nbody.safetensors"
    """The weights."""


def draw(seed: int, count: int, planets: int = 3, shift: float = 0.0) -> tuple[Bodies, Tensor]:
    """Systems and their later positions, float32."""
    generator = torch.Generator().manual_seed(seed)
    start, end = draw_planets(count, planets, shift=(shift, 0.0, 0.0), generator=generator)
    return start.to(torch.float32), end.position.float()


def load() -> dict[str, tuple[Bodies, Tensor]]:
    """The sets of GEOM_DATA: what was, and positions 0.1 later."""
    folder = Path(os.environ.get("GEOM_DATA", HERE.parents[1] / "../shared/data")) / "clifford" / "nbody"
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            x = [torch.from_numpy(file[key]).float() for key in ("m", "x_initial", "v_initial", "x_final")]
        found[f"data/{path.stem}"] = Bodies(*x[:3]), x[3]
    return found


def alone_with_star(bodies: Bodies) -> Tensor:
    """Where each planet would be if there were no others."""
    x = bodies.to(torch.float64)
    star = x.mass.argmax(-1, keepdim=True)[..., None]
    pairs = Bodies(
        torch.stack([x.mass.amax(-1, keepdim=True).expand_as(x.mass), x.mass], -1),
        *(torch.stack([y.take_along_dim(star, -2).expand_as(y), y], -2) for y in (x.position, x.velocity)),
    )
    return move_bodies(pairs).position[..., 1, :]


def score(network: BodyNetwork, sets: list[tuple[Bodies, Tensor]]) -> dict[str, float]:
    """Mean squared errors of a coordinate, over all systems of all sets."""
    with torch.no_grad():
        found = [torch.cat([network(x[i : i + 500]) for i in range(0, len(y), 500)]) for x, y in sets]
    ways = {
        "mse": found,
        "alone": [alone_with_star(x) for x, _ in sets],
        "straight_on": [x.position + network.duration * x.velocity for x, _ in sets],
        "at_rest": [x.position for x, _ in sets],
    }
    scores = {}
    for name, ends in ways.items():
        errors = torch.stack([(y.double() - z).square().mean((1, 2)) for y, (_, z) in zip(ends, sets, strict=True)])
        scores[name] = errors.mean()
        if name in ("mse", "alone"):
            scores[f"{name}_without_worst"] = errors.flatten().sort().values[: -max(errors.numel() // 100, 1)].mean()
        if name in ("mse", "alone") and len(sets) > 1:
            scores[f"{name}_spread"] = errors.mean(1).std()
    return {name: float(f"{x:.3e}") for name, x in scores.items()}


def loss(network: BodyNetwork, batch: tuple[Bodies, Tensor], _: torch.Generator) -> Tensor:
    start, end = batch
    errors = (network(start) - end).square().mean((-2, -1))
    return (MEETING * (errors / MEETING).log1p()).mean() / 0.005


def main(options: Options) -> None:
    torch.set_num_threads(1)
    start, end = draw(0, options.count)
    network = BodyNetwork(generator=torch.Generator().manual_seed(0))
    config = TrainConfig(
        steps=options.steps,
        batch=64,
        rate=2e-3,
        schedule=Cosine(warmup=100),
        weight_decay=1e-2,
        clip=1.0,
        average=0.999,
    )
    items = [(start[i], end[i]) for i in range(options.count)]
    folder = HERE.parents[1] / "out" / "clifford" / f"{options.out.stem}-{options.steps}"
    begun = time.process_time()
    train(network, items, loss, config=config, out=folder, device="cpu")
    spent = time.process_time() - begun
    network.save(options.out)
    seeds = range(1, DRAWS + 1)
    sets = {
        "eval": [draw(seed, 5000) for seed in seeds],
        "shifted": [draw(seed, 5000, shift=200.0) for seed in seeds],
        "five_planets": [draw(seed, 5000, 5) for seed in seeds],
        **{name: [x] for name, x in load().items()},
    }
    report = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "seed": 0,
        "steps": options.steps,
        "cpu_seconds": round(spent),
        "scores": {name: score(network, some) for name, some in sets.items()},
    }
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Options))
