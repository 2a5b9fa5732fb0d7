"""Train the potential of ethanol: ethanol.safetensors beside this script, with ethanol.json, its report.

`python assets/clifford/train_xtb.py [--steps 1500]`, on the forces of clifford/xtb/*.npz of GEOM_DATA: frames of
molecular dynamics with GFN2-xTB. Shuffled by the seed, 0, the last 200 score the weights after the last step,
the 200 before them are left out, and the others are trained on. What was killed goes on from out/clifford. It takes two
minutes of one core.
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
from torch.utils.data import Subset, TensorDataset

from geom.clifford.point_network import PointNetwork, PointPotential
from geom.clifford.point_products import TupleProducts
from geom.train import Cosine, TrainConfig, train

HERE = Path(__file__).resolve().parent
HELD_OUT = 200  # frames to choose settings by, and as many to score them


@dataclass
class Options:
    """Train on forces."""

    steps: int = 1500
    """Steps of gradient descent."""
    out: Path = HERE / "ethanol.safetensors"
    """The weights."""


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions (frames, atoms, 3), Angstrom; forces, eV/Angstrom; kinds of atoms (atoms,); a shuffle of the frames."""
    folder = Path(os.environ.get("GEOM_DATA", HERE.parents[1] / "../shared/data")) / "clifford" / "xtb"
    with np.load(next(iter(sorted(folder.glob("*.npz"))))) as file:
        positions, forces, numbers = torch.from_numpy(file["R"]), torch.from_numpy(file["F"]), file["z"]
    kinds = torch.from_numpy(np.unique(-numbers, return_inverse=True)[1])  # the heaviest first
    return positions, forces, kinds, torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))


def main(options: Options) -> None:
    torch.set_num_threads(1)
    positions, forces, kinds, order = load()
    seen, test = order[: -2 * HELD_OUT], order[-HELD_OUT:]
    torch.manual_seed(0)
    potential = PointPotential(PointNetwork(2 * int(kinds.max() + 1), 1, TupleProducts(invariants="full")))

    def loss(potential: PointPotential, batch: tuple[Tensor, Tensor], _: torch.Generator) -> Tensor:
        x, want = batch
        with torch.enable_grad():
            return (potential.forces(x, kinds) - want).square().mean()

    config = TrainConfig(
        steps=options.steps,
        batch=8,
        rate=2e-3,
        schedule=Cosine(warmup=100),
        clip=10.0,
        average=0.999,
    )
    data = Subset(TensorDataset(positions, forces), seen.tolist())
    folder = HERE.parents[1] / "out" / "clifford" / f"{options.out.stem}-{options.steps}"
    begun = time.process_time()
    train(potential, data, loss, config=config, out=folder, device="cpu")
    spent = time.process_time() - begun
    potential.network.save(options.out)
    with torch.no_grad():
        error = potential.forces(positions[test], kinds) - forces[test]
    report = {
        "parameters": sum(p.numel() for p in potential.parameters()),
        "seed": 0,
        "steps": options.steps,
        "cpu_seconds": round(spent),
        "test_frames": len(test),
        "force_mae_eV_per_angstrom": round(float(error.abs().mean()), 5),
        "force_rmse_eV_per_angstrom": round(float(error.square().mean().sqrt()), 5),
    }
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Options))
