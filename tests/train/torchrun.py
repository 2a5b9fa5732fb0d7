"""Run by torchrun: the trainings that `test_processes.py` compares with those of one process.

`torchrun --nproc-per-node=2 -m tests.train.torchrun FOLDER` leaves FOLDER/0.json and FOLDER/1.json, one a process.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from geom.train import Constant, TrainConfig, train
from tests.train.problem import EVERYTHING, Forked, Points, forked_loss, loss, network, noisy_loss

CONFIG = replace(EVERYTHING, precision="full", accumulate=1, schedule=Constant(), weight_decay=0.1)
INTERRUPTED = 12  # a step that validates anyway


def told(module: torch.nn.Module, history: list[dict[str, float]]) -> dict[str, Any]:
    return {"history": history, "weights": {name: x.tolist() for name, x in module.state_dict().items()}}


def plain(config: TrainConfig, *, seed: int = 0) -> dict[str, Any]:
    module = network(seed=seed)
    return told(module, train(module, Points(), loss, config=config, validation=Points(7), device="cpu"))


def noisy(config: TrainConfig, *, seed: int = 0, out: Path | None = None) -> dict[str, Any]:
    """Random in data, dropout and loss; three items to validate on, less than a batch for each process."""
    module, data = network(dropout=0.2, seed=seed), Points(noisy=True)
    return told(module, train(module, data, noisy_loss, config=config, validation=Points(3), out=out, device="cpu"))


def forked(config: TrainConfig) -> dict[str, Any]:
    """Passes that use other parameters than those beside them."""
    module = Forked()
    return told(module, train(module, Points(), forked_loss, config=config, device="cpu"))


def normed(config: TrainConfig) -> dict[str, Any]:
    """Buffers that each process would change in a way of its own."""
    module = network(norm=True)
    return told(module, train(module, Points(), loss, config=config, device="cpu"))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    noisy(replace(CONFIG, steps=INTERRUPTED), seed=rank, out=folder / "out")
    found = {
        "plain": plain(CONFIG, seed=rank),  # the first one's weights count
        "noisy": noisy(CONFIG, seed=rank, out=folder / "out"),
        "forked": forked(CONFIG),
        "normed": normed(CONFIG),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
