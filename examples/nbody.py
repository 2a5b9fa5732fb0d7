"""Where will the planets be? `python examples/nbody.py`.

A star, and planets on circles about it: the network of assets/clifford, 74,000 weights of a geometric algebra
transformer, says at once where they are 0.1 later, up to one and a half turns further on. It has seen 1,000 systems.
These are others, those of clifford/nbody/eval.npz in GEOM_DATA, or drawn here. The picture shows four of them, and that
what it gets wrong are planets that meet: they kick each other, far or near, as chance will have it. The number is the
mean squared error of a coordinate where planets stay 0.05 apart.
"""

import os
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from geom.clifford.bodies import Bodies, BodyNetwork, draw_planets, move_bodies

STEPS = 100
APART = 0.05


def load_systems(count: int, generator: torch.Generator) -> tuple[Bodies, Tensor, str]:
    """What is, and positions 0.1 later, float64, and where they are from."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    found = sorted(folder.glob("clifford/nbody/eval*.npz"))
    if not found:
        start, end = draw_planets(count, generator=generator)
        return start, end.position, "drawn"
    with np.load(found[0]) as file:
        x = [torch.from_numpy(file[key])[:count].double() for key in ("m", "x_initial", "v_initial", "x_final")]
    return Bodies(*x[:3]), x[3], found[0].stem


def follow(start: Bodies) -> Tensor:
    """Positions (101, ..., n, 3), step by step."""
    track, now = [start.position], start
    for _ in range(STEPS):
        now = move_bodies(now, duration=0.1 / STEPS, steps=1)
        track.append(now.position)
    return torch.stack(track)


def closest(bodies: Bodies, track: Tensor) -> Tensor:
    """The least distance (...) at which two planets pass, to the hundredth step."""
    size = bodies.mass.shape[-1]
    planet = bodies.mass < bodies.mass.amax(-1, keepdim=True)
    pair = planet[..., None] & planet[..., None, :] & ~torch.eye(size, dtype=torch.bool)
    least = torch.stack([torch.cdist(x, x) for x in track]).amin(0)
    return least.where(pair, torch.inf).amin((-2, -1))


def flatten(bodies: Bodies, points: Tensor) -> Tensor:
    """Points (..., 3) of one system in the plane of its planets, (..., 2), the star at 0."""
    star = int(bodies.mass.argmax())
    from_star = bodies.position - bodies.position[star]
    plane = torch.linalg.svd(from_star).Vh[:2]
    return (points - bodies.position[star]) @ plane.mT


@torch.no_grad()
def main(quick: bool = False, out: Path = Path("out/examples/nbody.png"), seed: int = 0) -> float:
    """Say where the planets will be, draw some of them, and check how well.

    Args:
        quick: Fewer systems, and a smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the systems that are drawn.

    Returns: the mean squared error of a coordinate in the systems whose planets stay apart.
    """
    start, end, name = load_systems(200 if quick else 1000, torch.Generator().manual_seed(seed))
    with as_file(files("geom.assets") / "clifford" / "nbody.safetensors") as path:
        network = BodyNetwork.load(path)
    found = network(start.to(torch.float32)).double()
    straight = start.position + network.duration * start.velocity
    errors, guesses = ((x - end).square().mean((1, 2)) for x in (found, straight))
    track = follow(start)
    near = closest(start, track)
    error = float(errors[near > APART].mean())
    print(f"{len(errors)} systems ({name}): mean squared error {float(errors.mean()):.2e}, straight on", end=" ")
    print(f"{float(guesses.mean()):.2e}; of the {int((near > APART).sum())} where planets stay apart {error:.2e}")

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 4)
    far = (track[-1] - track[0]).norm(dim=-1).amax(-1).where(errors < 1e-3, 0)
    shown = torch.cat([far.topk(3).indices, errors.argmax()[None]])  # three that turn far, and the worst
    for i, k in enumerate(shown.tolist()):
        panel = figure.add_subplot(grid[i // 2, i % 2])
        paths, marks = flatten(start[k], track[:, k]), flatten(start[k], torch.stack([straight[k], found[k]]))
        for body in range(paths.shape[1]):
            panel.plot(*paths[:, body].T, color="0.6", lw=1)
            panel.plot(*paths[-1, body], "o", ms=8, mfc="none", color="0.2")
        panel.plot(*marks[0].T, "x", ms=5, color="tab:orange")
        panel.plot(*marks[1].T, "o", ms=4, color="tab:blue")
        reach = 1.15 * float(paths.abs().max())
        panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        panel.set_title(f"squared error {float(errors[k]):.0e}", fontsize=9)
    panel = figure.add_subplot(grid[:, 2:])
    panel.loglog(near, guesses, ".", ms=3, color="tab:orange", alpha=0.5, label="straight on")
    panel.loglog(near, errors, ".", ms=4, color="tab:blue", label="network")
    panel.set(xlabel="closest approach of two planets", ylabel="squared error of a coordinate, mean of a system")
    panel.set_title("left: true path and end, straight on (x), network (dots)", fontsize=9)
    panel.legend(fontsize=9, loc="lower left")
    picture = out if out.suffix == ".png" else out / "nbody.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 110)
    print(f"wrote {picture}")

    bound = 2e-5
    assert error < bound, f"expected a mean squared error below {bound}, got {error:.2e}"
    return error


if __name__ == "__main__":
    tyro.cli(main)
