"""The candy wrapper: `python examples/candy_wrapper.py`.

A bar between two bones, one of which turns about the bar. Linear blend skinning averages matrices: in the middle the
mean of two opposite turns is close to zero, and the bar collapses like the end of a candy's wrapper. Dual quaternions
average the screw motions themselves, and keep the bar. The hybrid goes from one to the other vertex by vertex: here
with scores that rest on the bones, so that its floor makes the difference. Above: the bar by 170 degrees. Below: what
is left of its volume at every angle, and the closed form for the linear one, 1 - (1 - cos a)/3. The number says how far
the volumes are from what they should be: that form, and all of it.
"""

import math
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from geom.lie import so3
from geom.meshes import Mesh, mass_properties
from geom.skinning import dqs, hybrid, hybrid_blend, lbs
from geom.viz import View, render
from geom.viz.colors import PALETTE

ANGLE = 170.0  # degrees, of the pictures


def bar(along: int, around: int) -> tuple[Tensor, Tensor]:
    """A closed prism about x, from 0 to 1, of a square with round corners: vertices and faces."""
    turn = torch.arange(around, dtype=torch.float64) * (2 * math.pi / around)
    ring = torch.stack([turn.cos(), turn.sin()], -1)
    ring = 0.15 * ring / ring.abs().pow(6).sum(-1, keepdim=True).pow(1 / 6)
    height = torch.linspace(0, 1, along + 1, dtype=torch.float64)
    sides = torch.cat([height.repeat_interleave(around)[:, None], ring.repeat(along + 1, 1)], -1)
    vertices = torch.cat([sides, torch.tensor([[0.0, 0, 0], [1, 0, 0]], dtype=torch.float64)])
    a = torch.arange(along * around).reshape(along, around)
    b, c, d = a.roll(-1, 1), a.roll(-1, 1) + around, a + around
    walls = torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]).reshape(-1, 3)
    first, last = torch.full((around,), len(sides)), torch.full((around,), len(sides) + 1)
    ends = [torch.stack([first, a[0].roll(-1), a[0]], -1), torch.stack([last, d[-1], d[-1].roll(-1)], -1)]
    return vertices, torch.cat([walls, *ends])


def twist(degrees: Tensor) -> Tensor:
    """Bones (..., 2, 3, 4): one that stays, and one that turns about x."""
    turn = so3.exp(torch.deg2rad(degrees)[..., None, None] * torch.tensor([[0.0, 0, 0], [1, 0, 0]]).to(degrees))
    return torch.cat([turn, torch.zeros_like(turn[..., :1])], -1)


def main(quick: bool = False, out: Path = Path("out/examples/candy_wrapper.png")) -> float:
    """Twist the bar in three ways, measure and draw it.

    Args:
        quick: A coarser bar, fewer angles and a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: the largest error of a volume, as a share of the whole: linear against the closed form, dual quaternions
    against all of it.
    """
    vertices, faces = bar(200, 48) if quick else bar(400, 96)
    weights = torch.stack([1 - vertices[:, 0], vertices[:, 0]], -1)
    eta = hybrid_blend(weights, torch.zeros(2, dtype=torch.float64))  # no scores: the floor, 0.4, everywhere
    ways = {
        "linear": lambda bones: lbs(vertices, weights, bones),
        "hybrid": lambda bones: hybrid(vertices, weights, bones, blend=eta),
        "dual quaternions": lambda bones: dqs(vertices, weights, bones),
    }
    degrees = torch.linspace(0, ANGLE, 11 if quick else 35, dtype=torch.float64)
    whole = mass_properties(vertices, faces).volume
    kept = {name: mass_properties(deform(twist(degrees)), faces).volume / whole for name, deform in ways.items()}
    closed = 1 - (1 - torch.deg2rad(degrees).cos()) / 3
    for name, volume in kept.items():
        print(f"{name:<17} keeps {volume[-1]:.4f} of the volume at {ANGLE:g} degrees")
    error = float(max((kept["linear"] - closed).abs().max(), (kept["dual quaternions"] - 1).abs().max()))
    print(f"volumes are {error:.2e} from the closed forms at most")

    stripes = torch.from_numpy(PALETTE)[(torch.atan2(vertices[:, 2], vertices[:, 1]) * (4 / math.pi) + 4.01).long() % 2]
    view = View(size=(300, 200) if quick else (900, 500), camera=((0.5, -1.25, 0.45), (0.5, 0.0, 0.0), (0.0, 0.0, 1.0)))
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=[1, 1.2])
    for column, (name, deform) in enumerate(ways.items()):
        panel = figure.add_subplot(grid[0, column])
        panel.imshow(render(Mesh(deform(twist(degrees[-1])), faces, colors=stripes), view=view))
        panel.set_title(name, fontsize=15)
        panel.axis("off")
    plot = figure.add_subplot(grid[1, :])
    for name, volume in kept.items():
        plot.plot(degrees, volume, label=name, linewidth=3)
    plot.plot(degrees, closed, "k:", label="1 - (1 - cos a)/3")
    plot.set(xlabel="twist, degrees", ylabel="volume left", ylim=(0, 1.05))
    plot.legend(loc="lower left")
    picture = out if out.suffix == ".png" else out / "candy_wrapper.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 120)
    print(f"wrote {picture}")

    assert error < 0.005, f"expected volumes within 0.5 % of the closed forms, got {error:.2%}"
    return error


if __name__ == "__main__":
    tyro.cli(main)
