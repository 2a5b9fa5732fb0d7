"""An overhand knot pulled tight: `python examples/tighten_knot.py`.

A rope tied loosely, along Shastri's trefoil, a curve of polynomials, is pulled at its two ends. Contact of the rope
with itself, and friction, keep it a knot. The picture shows the rope at four times; the number is the least distance
that two strands ever come to, in thicknesses of the rope: near 1 they touch, far below they pass through each other.
"""

import sys
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import trange

from geom.meshes import Mesh
from geom.rods import directors_without_twist, edge_tangents, make_contacts, make_rod, rollout, start
from geom.viz import Camera, View, render

COUNT, RADIUS, DT = 81, 0.0055, 5e-4  # vertices of 1.2 m of rope; m; s


def loose_knot() -> Tensor:
    """Vertices (COUNT, 3), evenly along a knot 1.2 m long."""
    t = torch.linspace(-2.15, 2.15, 20_001, dtype=torch.float64)
    curve = torch.stack([t**3 - 3 * t, 0.25 * (t**5 - 10 * t), t**4 - 4 * t**2], -1)
    way = torch.cat([torch.zeros(1).double(), curve.diff(dim=0).norm(dim=-1).cumsum(0)])
    near = torch.searchsorted(way, torch.linspace(0, float(way[-1]), COUNT).double()).clamp(max=20_000)
    return curve[near] * (1.2 / way[-1])


def tube(x: Tensor) -> Mesh:
    """The rope's surface."""
    x = torch.nn.functional.interpolate(x.T[None], scale_factor=4, mode="linear", align_corners=True)[0].T
    x = torch.nn.functional.avg_pool1d(x.T[None], 5, stride=1)[0].T
    parent, sides = torch.arange(-1, len(x) - 1), 16
    tangent = edge_tangents(x, parent)
    m = directors_without_twist(tangent, parent)
    tangent, m = (torch.cat([y[1:2], y[1:]]) for y in (tangent, m))
    angle = torch.arange(sides) * (2 * torch.pi / sides)
    ring = angle.cos()[:, None] * m[:, None] + angle.sin()[:, None] * torch.linalg.cross(tangent, m)[:, None]
    i, j = torch.meshgrid(torch.arange(len(x) - 1), torch.arange(sides), indexing="ij")
    a, b, c, d = i * sides + j, i * sides + (j + 1) % sides, (i + 1) * sides + j, (i + 1) * sides + (j + 1) % sides
    faces = torch.cat([torch.stack([a, b, d], -1).reshape(-1, 3), torch.stack([a, d, c], -1).reshape(-1, 3)])
    return Mesh((x[:, None] + RADIUS * ring).reshape(-1, 3), faces)


def least_gap(x: Tensor) -> float:
    """The least distance of strands (t, n, 3) from others at least 6 edges further along."""
    fine = torch.nn.functional.interpolate(x.mT, size=6 * (COUNT - 1) + 1, mode="linear", align_corners=True).mT
    place = torch.arange(fine.shape[1])
    apart = (place[:, None] - place).abs() >= 36
    return min(float(torch.cdist(frame, frame)[apart].min()) for frame in fine)


def main(quick: bool = False, out: Path = Path("out/examples/tighten_knot.png")) -> float:
    """Pull the rope, draw it, and check that it has not passed through itself.

    Args:
        quick: A short pull, and a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: the least distance between two strands, in thicknesses of the rope.
    """
    x = loose_knot()
    rod = make_rod(x, EI=2e-4, GJ=2e-4, linear_density=0.06, drag=20.0)
    touch = make_contacts(
        radius=RADIUS, stiffness=1500.0, friction=0.1, damping=DT, self_contact=True, dtype=torch.float64
    )
    state, ends = start(rod, x, clamped=(0, -1)), x[[0, -1]]
    goal = torch.tensor([[-0.48, 0, 0], [0.48, 0, 0]], dtype=torch.float64) + ends.mean(0)
    shapes, chunks = [state.position], 12 if quick else 60
    for i in trange(chunks, desc="pull", leave=False, disable=not sys.stderr.isatty()):
        part = (i + torch.arange(1, 101, dtype=torch.float64)[:, None, None] / 100) / 60
        path = ends + part * (goal - ends)
        track = rollout(rod, state, clamped=(0, -1), targets=path, dt=DT, gravity=(0, 0, 0), contacts=touch)
        state = track.end
        shapes.append(state.position)
    gap = least_gap(torch.stack(shapes)) / (2 * RADIUS)
    left = float((state.position[0] - state.position[-1]).norm())
    print(f"ends {left:.2f} m apart; strands never nearer than {gap:.3f} thicknesses of the rope")

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for k, panel in enumerate(figure.subplots(2, 2).flat):
        frame = round(k * chunks / 3)
        a, b, c = ((shapes[frame].amin(0) + shapes[frame].amax(0)) / 2).tolist()
        camera = Camera(eye=(a + 0.1, b - 0.72, c + 0.25), target=(a, b, c))
        view = View(size=(200, 80) if quick else (700, 280), camera=camera)
        panel.imshow(render(tube(shapes[frame]), colors=[(0.87, 0.52, 0.22)], view=view, engine="numpy"))
        panel.set_title(f"{100 * DT * frame:.1f} s")
        panel.axis("off")
    picture = out if out.suffix == ".png" else out / "tighten_knot.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 110)
    print(f"wrote {picture}")

    assert gap > 0.9, f"expected strands no nearer than 0.9 thicknesses, got {gap:.3f}"
    return gap


if __name__ == "__main__":
    tyro.cli(main)
