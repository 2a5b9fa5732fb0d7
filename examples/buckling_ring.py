"""A twisted ring that buckles: `python examples/buckling_ring.py`.

A straight rod is bent into a ring, its ends twisted against each other and joined. Michell found in 1889 that the ring
stays flat up to a twist of 2 pi sqrt(3) EI / GJ, and no further. Rings of several twists, a little disturbed, are left
to themselves; those that are twisted too much rise and writhe until they touch. The picture shows one of them, and how
high each has risen; the number is how far the least twist that buckles, found so, is from Michell's.
"""

import math
import sys
from pathlib import Path

import torch
import tyro
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import trange

from geom.lie import quaternion
from geom.rods import Rod, State, make_contacts, make_rod, rollout, start

EDGES, DT, DISTURBED = 48, 1e-4, 1e-3  # of a ring 1 m long, with EI = GJ = 1 N m^2, 1 kg/m; s; m
CLAMPED, HELD = (0, 1, EDGES, EDGES + 1), (1, EDGES + 1)  # the first and the last edge are one


def twisted_rings(twists: Tensor) -> tuple[Rod, State]:
    """Rings in the plane z = 0, all but flat, with the total twists given, radians."""
    turn = 2 * math.pi * (torch.arange(EDGES + 2, dtype=torch.float64) - 0.5) / EDGES
    x = torch.stack([turn.cos(), turn.sin(), 0 * turn], -1) / (2 * math.pi)
    rod = make_rod(x, EI=1.0, GJ=1.0, linear_density=1.0, drag=3.0)
    tangent = torch.nn.functional.normalize(x - x.roll(1, 0), dim=-1)
    tangent[0] = tangent[1]
    part = (torch.arange(EDGES + 2, dtype=torch.float64) - 1) / EDGES
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand(len(twists), EDGES + 2, 3)
    director = quaternion.rotate(quaternion.exp((twists[:, None] * part)[..., None] * tangent), up)
    x[2:EDGES, 2] = DISTURBED * (2 * turn[2:EDGES]).cos()
    return rod, start(rod, x.expand_as(up), clamped=CLAMPED, held=HELD, director=director)


def main(quick: bool = False, out: Path = Path("out/examples/buckling_ring.png")) -> float:
    """Let the rings go, draw what becomes of them, and check which have buckled.

    Args:
        quick: Three rings instead of nine, a shorter time, and a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: the twist between the last ring that stays and the first that buckles, relative to Michell's, less 1.
    """
    factors = torch.tensor([0.98, 1.02, 1.06]) if quick else torch.tensor([*range(965, 1036, 10), 1060]) / 1000
    rod, state = twisted_rings(2 * math.pi * math.sqrt(3) * factors.double())
    touch = make_contacts(radius=0.012, stiffness=5e4, damping=DT, self_contact=True, dtype=torch.float64)
    shapes = [state.position]
    for _ in trange(24 if quick else 60, desc="buckle", leave=False, disable=not sys.stderr.isatty()):
        given = {"clamped": CLAMPED, "held": HELD, "dt": DT, "gravity": (0.0, 0.0, 0.0), "contacts": touch}
        state = rollout(rod, state, steps=500, **given).end
        shapes.append(state.position)
    track = torch.stack(shapes)
    height = (track[..., 2].amax(-1) - track[..., 2].amin(-1)).T
    buckled = height[:, -1] > DISTURBED
    print(
        "twist / Michell's: "
        + ", ".join(f"{f:.3f} {'buckles' if b else 'stays'}" for f, b in zip(factors, buckled, strict=True))
    )
    first = int(buckled.long().argmax())
    critical = float(factors[first - 1 : first + 1].mean()) if first else 0.0

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=(1.1, 1))
    top, bottom = (figure.add_subfigure(row) for row in rows)
    panels = top.subplots(1, 5, subplot_kw={"projection": "3d"})
    rising = height[-1] / height[-1].max()
    frames = [0, *(int((rising > part).long().argmax()) for part in (0.2, 0.6, 0.95)), len(track) - 1]
    for panel, frame in zip(panels, frames, strict=True):
        x = track[frame, -1]
        panel.plot(*x[1:].T, color="tab:blue", lw=4, solid_capstyle="round")
        panel.plot(*x[:2].T, color="0.1", lw=6, solid_capstyle="round")
        middle = (x.amin(0) + x.amax(0)) / 2
        box = torch.stack([middle - 0.16, middle + 0.16], 1).tolist()
        panel.set(title=f"{500 * DT * frame:.2f} s", xlim=box[0], ylim=box[1], zlim=box[2])
        panel.set_box_aspect((1, 1, 1), zoom=1.35)
        panel.view_init(elev=25, azim=-60)
        panel.axis("off")
    panel, time = bottom.subplots(), 500 * DT * torch.arange(len(track))
    for i, factor in enumerate(factors.tolist()):
        color = colormaps["coolwarm"](min(1.0, max(0.0, 0.5 + 14 * (factor - 1))))
        panel.semilogy(time, height[i], color=color, lw=2, label=f"{factor:.3f}")
    panel.set(xlabel="time, s", ylabel="height, m")
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(handles[::-1], labels[::-1], title="twist / Michell's", fontsize=8, bbox_to_anchor=(1, 1.08))
    picture = out if out.suffix == ".png" else out / "buckling_ring.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 110)
    print(f"wrote {picture}")

    assert abs(critical - 1) < 0.01, (
        f"expected the ring to buckle within 1 % of Michell's twist, got {critical:.3f} of it"
    )
    return critical - 1


if __name__ == "__main__":
    tyro.cli(main)
