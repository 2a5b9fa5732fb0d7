"""A cable harness falls and swings: `python examples/branched_harness.py`.

A trunk with two branches, held level at one end, is let go. It loses nothing: implicit midpoint steps have no damping
of their own, so what falls and what bends must add up to the same energy all the time. The picture shows the harness
on its way, with its energies; the number is how far their sum strays, of what falls at first.
"""

import sys
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from tqdm import trange

from geom.rods import Rod, implicit_midpoint, make_rod, potential_energy, start

CLAMPED, HELD = (0, 1), (1,)
BRANCHES = ((4, 5), (8, 4))  # vertex of the trunk, number of own vertices


def harness() -> tuple[Rod, torch.Tensor]:
    """A trunk of 60 cm along x with 13 vertices, and branches of 25 and 20 cm to either side, at rest as they lie."""
    trunk = torch.zeros(13, 3, dtype=torch.float64)
    trunk[:, 0] = 0.05 * torch.arange(13)
    ways = torch.tensor([[0.03, 0.04, 0.0], [0.03, -0.04, 0.0]], dtype=torch.float64)
    parts = [trunk]
    for (vertex, count), way in zip(BRANCHES, ways, strict=True):
        parts.append(trunk[vertex] + way * torch.arange(1, count + 1)[:, None])
    offsets = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    x = torch.cat(parts)
    joined = [(vertex, i + 1) for i, (vertex, _) in enumerate(BRANCHES)]
    return make_rod(x, EI=4e-3, GJ=3e-3, linear_density=0.05, offsets=offsets, junctions=joined), x


def main(quick: bool = False, out: Path = Path("out/examples/branched_harness.png")) -> float:
    """Let the harness go, draw it on its way, and check its energy.

    Args:
        quick: A third of a second, and a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: how far the energy strays, relative to the kinetic energy at its greatest.
    """
    rod, x = harness()
    state = start(rod, x, clamped=CLAMPED, held=HELD)
    states = [state]
    for _ in trange(30 if quick else 150, desc="swing", leave=False, disable=not sys.stderr.isatty()):
        states.append(implicit_midpoint(rod, states[-1], steps=5, clamped=CLAMPED, held=HELD, dt=0.002).end)
    potential = torch.stack([potential_energy(rod, s) for s in states])
    kinetic = torch.stack([0.5 * (rod.mass[:, None] * s.velocity.square()).sum() for s in states])
    potential = potential - potential[0]
    total = potential + kinetic
    drift = float(total.abs().max() / kinetic.max())
    print(f"{len(rod.parent)} vertices, {len(states) / 100:.1f} s; the energy strays by {100 * drift:.3f} %")

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=(1, 0.9))
    top, bottom = (figure.add_subfigure(row) for row in rows)
    panels = top.subplots(1, 6, sharex=True, sharey=True)
    oblique = torch.tensor([[1.0, 0.0], [0.5, 0.3], [0.0, 1.0]], dtype=torch.float64)  # y goes back and to the right
    paths = torch.stack([s.position for s in states]) @ oblique
    begins = [13, 13 + BRANCHES[0][1], len(rod.parent)]
    for panel, frame in zip(panels, torch.linspace(0, len(states) - 1, 6).round().long().tolist(), strict=True):
        shape = paths[frame]
        for tip in (12, begins[1] - 1, begins[2] - 1):
            panel.plot(*paths[: frame + 1, tip].T, color="0.75", lw=1)
        panel.plot(*shape[:13].T, color="tab:blue", lw=3.5, solid_capstyle="round")
        for (vertex, _), begin, end, color in zip(
            BRANCHES, begins, begins[1:], ("tab:orange", "tab:green"), strict=False
        ):
            panel.plot(*shape[[vertex, *range(begin, end)]].T, color=color, lw=2.5, solid_capstyle="round")
        panel.plot(*shape[:2].T, color="0.1", lw=8, solid_capstyle="round")
        panel.set_title(f"{frame / 100:.1f} s")
        panel.set_aspect("equal")
        panel.axis("off")
    panels[0].set(xlim=(-0.34, 0.64), ylim=(-0.56, 0.1))
    panel, time = bottom.subplots(), 0.01 * torch.arange(len(states))
    energies = (
        (kinetic, "kinetic", "tab:red"),
        (potential, "potential, bending and twist", "tab:purple"),
        (total, "sum", "0.1"),
    )
    for energy, name, color in energies:
        panel.plot(time, 1e3 * energy, label=name, color=color)
    panel.set(xlabel="time, s", ylabel="energy, mJ", xlim=(0, float(time[-1])), ylim=(-110, 150))
    panel.legend(fontsize=9, ncols=3, loc="upper right")
    picture = out if out.suffix == ".png" else out / "branched_harness.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 110)
    print(f"wrote {picture}")

    assert drift < 0.01, f"expected the energy to stray by less than 1 %, got {100 * drift:.2f} %"
    return drift


if __name__ == "__main__":
    tyro.cli(main)
