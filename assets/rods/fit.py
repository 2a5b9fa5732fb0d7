"""Fit the cables of motion capture: CABLE.json beside this script, for each rods/*_CABLE_train.npz of GEOM_DATA.

`python assets/rods/fit.py [dlo1 bdlo1 ...] [--iterations 150]`. Clips 0, 5, 10, ... are held out: never fitted, only
scored. What is there is not fitted again; remove it first. The seed is 0; each cable takes some minutes of one core.
"""

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from geom.rods import guess_rod, identify, predict
from geom.rods.clips import Cable, branched_errors, save_cable

BRANCHES = {"bdlo1": ((4, 4), (8, 3)), "bdlo3": ((4, 2), (7, 3))}
CLAMPED = (0, 1, -2, -1)


@dataclass
class Options:
    """Fit cables to motion capture."""

    cables: Positional[tuple[str, ...]] = ()
    """Cables by name; all if none."""
    iterations: int = 150
    """Steps of gradient descent."""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    folder = Path(os.environ.get("GEOM_DATA", Path(__file__).parents[2] / "../shared/data")) / "rods"
    here = Path(__file__).parent
    for path in sorted(folder.glob("*_train.npz")):
        found = re.fullmatch(r"[a-z]+_(b?dlo\d+)_train", path.stem)
        if not found or (options.cables and found[1] not in options.cables) or (here / f"{found[1]}.json").exists():
            continue
        fit(found[1], torch.tensor(np.load(path)["x"]), here / f"{found[1]}.json", options.iterations)


def fit(name: str, track: torch.Tensor, out: Path, iterations: int) -> None:
    branches = BRANCHES.get(name, ())
    parent = track.shape[2] - sum(own for _, own in branches)
    clamped = tuple(v % parent for v in CLAMPED)
    held_out = torch.zeros(len(track), dtype=torch.bool)
    held_out[::5] = True
    begun = time.process_time()
    mass = 1e-3 if branches else 0.0
    guess = [guess_rod(track[~held_out], branches=branches, straight=s, marker_mass=mass) for s in (False, True)]
    found = identify(
        track,
        guess,
        clamped=clamped,
        held_out=held_out,
        iterations=iterations,
        generator=torch.Generator().manual_seed(0),
    )
    spent = time.process_time() - begun
    cable = Cable(found.value, clamped, branches=branches)
    report = {
        "score": "DEFORM: mean absolute error over vertices and coordinates, cm",
        "parameters": found.parameters,
        "seed": 0,
        "iterations": iterations,
        "cpu_seconds": round(spent),
        **summary("fitted", found.error[~held_out]),
        **summary("held_out", found.error[held_out]),
        "held_out_clips": [round(100 * float(e), 3) for e in found.error[held_out]],
    }
    if branches:
        with torch.no_grad():
            predicted = predict(found.value, track, clamped=clamped)
        deft = branched_errors(predicted, track, branches)
        distance = (predicted - track)[:, 2:].norm(dim=-1).mean((1, 2))
        report |= summary("deft_fitted", deft[~held_out]) | summary("deft_held_out", deft[held_out])
        report |= summary("vertex_distance_held_out", distance[held_out])
    save_cable(out, cable, report)
    print(name, json.dumps(report))


def summary(name: str, error: torch.Tensor) -> dict[str, float]:
    return {
        f"{name}_mean": round(100 * float(error.mean()), 4),
        f"{name}_median": round(100 * float(error.median()), 4),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
