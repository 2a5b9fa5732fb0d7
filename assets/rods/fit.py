"""Fit the cables of motion capture: CABLE.json beside this script, for each rods/*_CABLE_train.npz of GEOM_DATA.

`python assets/rods/fit.py [dlo1 bdlo1 ...] [--iterations 150]`. Clips 0, 5, 10, ... are held out: never fitted, only
scored. What is there is not fitted again; remove it first. The seed is 0; each cable takes some minutes of one core.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from geom.rods import Clips, guess_rod, identify, predict, track_errors
from geom.rods.clips import Cable, branched_errors, save_cable

CABLES = ("dlo1", "dlo2", "dlo3", "dlo4", "dlo5", "bdlo1", "bdlo3")
BRANCHES = {"bdlo1": ((4, 4), (8, 3)), "bdlo3": ((4, 2), (7, 3))}
CLAMPED = (0, 1, -2, -1)
MID_CLAMPED = (2, -2, -1)  # in the sets *_mid_clamp_train.npz, fitted together with the cable's other clips


@dataclass
class Options:
    """Fit cables to motion capture."""

    cables: Positional[tuple[str, ...]] = ()
    """Cables by name; all if none."""
    iterations: int = 150
    """Steps of gradient descent."""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    for name in options.cables or CABLES:
        out = Path(__file__).with_name(f"{name}.json")
        if not out.exists():
            fit(name, out, options.iterations)


def motion_capture(name: str) -> dict[str, Clips]:
    """The cable's clips by how they are held: "" at both ends, "mid_clamp_" where there are such."""
    folder = Path(os.environ.get("GEOM_DATA", Path(__file__).parents[2] / "../shared/data")) / "rods"
    sets = {}
    for kind, clamped in {"": CLAMPED, "mid_clamp_": MID_CLAMPED}.items():
        for path in folder.glob(f"*_{name}_{kind}train.npz"):
            track = torch.tensor(np.load(path)["x"])
            parent = track.shape[2] - sum(own for _, own in BRANCHES.get(name, ()))
            held_out = torch.arange(len(track)) % 5 == 0
            sets[kind] = Clips(track, tuple(v % parent for v in clamped), None, held_out)
    return sets


def fit(name: str, out: Path, iterations: int) -> None:
    branches, sets = BRANCHES.get(name, ()), motion_capture(name)
    first, *more = sets.values()
    begun = time.process_time()
    mass = 1e-3 if branches else 0.0
    seen = first.track[~first.held_out]
    guess = [guess_rod(seen, branches=branches, straight=s, marker_mass=mass) for s in (False, True)]
    found = identify(
        first.track,
        guess,
        clamped=first.clamped,
        held_out=first.held_out,
        more=more,
        iterations=iterations,
        generator=torch.Generator().manual_seed(0),
    )
    spent = time.process_time() - begun
    report: dict[str, object] = {
        "score": "DEFORM: mean absolute error over vertices and coordinates, cm",
        "parameters": found.parameters,
        "seed": 0,
        "iterations": iterations,
        "cpu_seconds": round(spent),
    }
    for prefix, (x, clamped, _, held_out) in sets.items():
        with torch.no_grad():
            predicted = predict(found.value, x, clamped=clamped)
        error = track_errors(predicted, x)
        report |= summary(prefix + "fitted", error[~held_out]) | summary(prefix + "held_out", error[held_out])
        report[prefix + "held_out_clips"] = [round(100 * float(e), 3) for e in error[held_out]]
        if branches:
            deft = branched_errors(predicted, x, branches)
            distance = (predicted - x)[:, 2:].norm(dim=-1).mean((1, 2))
            report |= summary(prefix + "deft_fitted", deft[~held_out])
            report |= summary(prefix + "deft_held_out", deft[held_out])
            report |= summary(prefix + "vertex_distance_held_out", distance[held_out])
    save_cable(out, Cable(found.value, first.clamped, branches=branches), report)
    print(name, json.dumps(report))


def summary(name: str, error: torch.Tensor) -> dict[str, float]:
    return {
        f"{name}_mean": round(100 * float(error.mean()), 4),
        f"{name}_median": round(100 * float(error.median()), 4),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
