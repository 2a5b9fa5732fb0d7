"""A molecule's forces, learned: `python examples/xtb_forces.py`.

The potential of assets/clifford, 37,000 weights of geometric-algebra attention, has learned the forces in ethanol at
500 K from 836 frames of molecular dynamics with GFN2-xTB, a quantum-chemical method. Here it gives the forces of frames
that it has not seen, clifford/xtb in GEOM_DATA, and lets a molecule move by itself, at constant energy; without the
data the frames are those of that motion, compared with the slope of the energy. The number is the mean absolute error
of a force's coordinate, eV/Angstrom.
"""

import os
import sys
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import trange

from geom.clifford.point_network import PointNetwork, PointPotential

KINDS = torch.tensor([1, 1, 0, 2, 2, 2, 2, 2, 2])  # C C O and six H; the heaviest is kind 0
MASS = torch.tensor([12.011, 12.011, 15.999, *[1.008] * 6])[:, None]
# fmt: off
ETHANOL = torch.tensor([  # Angstrom
    [1.1452, -0.1939, -0.3204], [-0.0126, 0.6028, 0.0224], [-1.0475, -0.3320, 0.3005],
    [-0.8921, -1.0978, -0.2323], [0.0495, 1.2783, 0.9051], [-0.3502, 1.4496, -0.6219],
    [2.0248, 0.4946, -0.6478], [1.4174, -0.8619, 0.5476], [0.8821, -0.8652, -1.1691],
])
# fmt: on
FORCE = 0.00964853  # eV/Angstrom on 1 u, in Angstrom/fs^2
BOLTZMANN = 8.617e-5  # eV/K
HELD_OUT = 200


def unseen_frames() -> tuple[Tensor, Tensor] | None:
    """Positions and forces (200, 9, 3) of the frames that the training left out, or None without data."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    found = sorted(folder.glob("clifford/xtb/*ethanol*.npz"))
    if not found:
        return None
    with np.load(found[0]) as file:
        positions, forces = torch.from_numpy(file["R"]), torch.from_numpy(file["F"])
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))[-HELD_OUT:]
    return positions[order], forces[order]


def move(potential: PointPotential, steps: int, dt: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions and energies (steps, 2), potential and kinetic, by velocity Verlet from 500 K; dt in fs."""
    x = ETHANOL.clone()
    v = torch.randn(x.shape, generator=generator) * (BOLTZMANN * 500 * FORCE / MASS).sqrt()
    v -= (MASS * v).sum(0) / MASS.sum()
    force, track, energies = potential.forces(x, KINDS), [], []
    for _ in trange(steps, desc="move", leave=False, disable=not sys.stderr.isatty()):
        v = v + 0.5 * dt * FORCE * force / MASS
        x = x + dt * v
        force = potential.forces(x, KINDS)
        v = v + 0.5 * dt * FORCE * force / MASS
        track.append(x)
        energies.append(torch.stack([potential(x, KINDS), 0.5 * (MASS * v.square()).sum() / FORCE]))
    return torch.stack(track), torch.stack(energies)


@torch.no_grad()
def main(quick: bool = False, out: Path = Path("out/examples/xtb_forces.png"), seed: int = 0) -> float:
    """Give the forces, move the molecule, draw both, and check the forces' error.

    Args:
        quick: A shorter motion, and a smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the velocities.

    Returns: the mean absolute error of a force's coordinate, eV/Angstrom.
    """
    with as_file(files("geom.assets") / "clifford" / "ethanol.safetensors") as path:
        potential = PointPotential(PointNetwork.load(path))
    dt = 0.5
    track, energies = move(potential, 100 if quick else 1000, dt, torch.Generator().manual_seed(seed))
    total = energies.sum(1)
    known = unseen_frames()
    if known:
        (positions, wanted), name = known, "GFN2-xTB"
    else:
        positions, name = track[::25].double(), "slope of the energy"
        double, step = potential.double(), 1e-5 * torch.eye(27, dtype=torch.float64).reshape(27, 1, 9, 3)
        slope = (double(positions + step, KINDS) - double(positions - step, KINDS)) / -2e-5
        wanted = slope.T.reshape(positions.shape)
    forces = potential.forces(positions, KINDS)
    error = float((forces - wanted).abs().mean())
    print(
        f"{len(positions)} frames: {error:.4f} eV/Angstrom from the {name}; forces are {float(wanted.abs().mean()):.3f}"
    )
    print(f"{len(track) * dt / 1000:.2f} ps alone: energy within {1000 * float(total.max() - total.min()):.1f} meV")

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    left.plot(wanted.flatten(), forces.flatten(), ".", ms=3, alpha=0.4, color="tab:blue")
    left.axline((0, 0), slope=1, color="0.3", lw=0.8)
    left.set(xlabel=f"{name}, eV/Angstrom", ylabel="learned, eV/Angstrom", aspect="equal")
    time = dt * torch.arange(1, len(track) + 1) / 1000
    for values, label in ((energies[:, 0], "potential"), (energies[:, 1], "kinetic"), (total, "sum")):
        right.plot(time, values - values[0] * (label != "kinetic"), lw=1, label=label)
    right.set(xlabel="time, ps", ylabel="energy, eV")
    right.legend(fontsize=8, loc="upper right")
    picture = out if out.suffix == ".png" else out / "xtb_forces.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 110)
    print(f"wrote {picture}")

    bound = 0.15
    assert error < bound, f"expected forces within {bound} eV/Angstrom, got {error:.4f}"
    return error


if __name__ == "__main__":
    torch.set_num_threads(1)  # more of them gain nothing on nine atoms
    tyro.cli(main)
