"""Train the residual networks of cables: CABLE.safetensors beside this script, on top of CABLE.json.

`python assets/rods/train_residual.py [dlo1 bdlo1 ...] [--steps 3000]`, after `fit.py`. Clips 0, 5, 10, ... of
rods/*_CABLE_train.npz of GEOM_DATA are held out: never trained on, they choose the step whose weights are kept. What
was killed goes on from out/residual; what is there is not trained again, remove it first. The seed is 0; 3000
steps take some 12 minutes of one core. The report goes into CABLE.json.
"""

import dataclasses
import json
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from fit import motion_capture
from tyro.conf import Positional

from geom.rods import Cable, load_cable, predict, save_cable, track_errors
from geom.rods.clips import branched_errors
from geom.rods.residual import TRAINING, fit_residual, predict_with

HERE = Path(__file__).resolve().parent


@dataclass
class Options:
    """Train residual networks on motion capture."""

    cables: Positional[tuple[str, ...]] = ()
    """Cables by name; all that are fitted if none."""
    steps: int = TRAINING.steps
    """Steps of gradient descent."""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    for params in sorted(HERE.glob("*dlo*.json")):
        name = params.stem
        if (options.cables and name not in options.cables) or params.with_suffix(".safetensors").exists():
            continue
        train_cable(params, load_cable(params), options.steps)


def train_cable(params: Path, cable: Cable, steps: int) -> None:
    name, dt = params.stem, 1 / cable.rate
    sets = motion_capture(name)
    first, *more = sets.values()
    mark = zlib.crc32(torch.cat([cable.rod.table().flatten(), cable.rod.damping()]).numpy().tobytes())
    begun = time.process_time()
    residual = fit_residual(
        cable.rod,
        first.track,
        clamped=first.clamped,
        dt=dt,
        substeps=cable.substeps,
        held_out=first.held_out,
        more=more,
        config=dataclasses.replace(TRAINING, steps=steps),
        out=HERE.parents[1] / "out" / "residual" / f"{name}-{mark:08x}",  # another fit begins anew
    )
    spent = time.process_time() - begun
    size = sum(p.numel() for p in residual.parameters())
    report: dict[str, object] = {"parameters": size, "seed": TRAINING.seed, "steps": steps, "cpu_seconds": round(spent)}
    for prefix, (track, clamped, held, held_out) in sets.items():
        with torch.no_grad():
            how = {"clamped": clamped, "held": held, "dt": dt, "substeps": cable.substeps}
            before = predict(cable.rod, track, **how)
            after = predict_with(cable.rod, residual, track, **how)
        for kind, moved in (("physics", before), ("residual", after)):
            report[prefix + kind] = summary(100 * track_errors(moved, track), held_out)
            if cable.branches:
                deft = 100 * branched_errors(moved, track, cable.branches)
                report[f"{prefix}{kind}_deft"] = summary(deft, held_out)
    residual.save(params.with_suffix(".safetensors"))
    known = json.loads(params.read_text())["report"]
    save_cable(params, cable, {**known, "with_residual": report})
    print(name, json.dumps(report))


def summary(error: torch.Tensor, held_out: torch.Tensor) -> dict[str, float | list[float]]:
    held = error[held_out]
    return {
        "fitted_mean": round(float(error[~held_out].mean()), 4),
        "held_out_mean": round(float(held.mean()), 4),
        "held_out_median": round(float(held.median()), 4),
        "held_out_clips": [round(float(e), 3) for e in held],
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
