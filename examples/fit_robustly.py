"""A pose from matches of which three in ten are wrong: `python examples/fit_robustly.py`.

Plain least squares bends to every wrong match; Huber's kernel bounds their pull, Cauchy's and Geman-McClure's let it
fade. All trials are one batch of `least_squares` on a `Rigid`. "gm" is blind to what is far, so it starts from Huber's
pose. Left: the matches of one trial, wrong ones red. Right: the error in every trial.
"""

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from geom.lie import Rigid
from geom.optim import Robust, least_squares
from geom.viz import Camera, Lines, View, render

MATCHES, SHOWN, WRONG = 300, 50, 0.3
NOISE, SCALE = 0.002, 0.01  # metres, on an object of 0.3 m
APART = torch.tensor([0.56, -0.12, 0.0], dtype=torch.float64)
KERNELS = {
    "plain": (None, "#8a909c"),
    "huber": (Robust("huber", SCALE), "#2f6fbf"),
    "cauchy": (Robust("cauchy", SCALE), "#1f9a7a"),
    "gm": (Robust("gm", SCALE), "#ec7623"),
}


def match(points: Tensor, truth: Rigid, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Sources (b, m, 3) drawn from `points`, targets under the poses `truth` (b,), and which are wrong (b, m)."""
    shape = (*truth.translation.shape[:-1], MATCHES)
    source, other = (points[torch.randint(len(points), shape, generator=generator)] for _ in range(2))
    wrong = torch.rand(shape, generator=generator) < WRONG
    noise = NOISE * torch.randn(source.shape, generator=generator, dtype=torch.float64)
    return source, truth.apply(torch.where(wrong[..., None], other, source)) + noise, wrong


def draw(matches: Lines, points: Tensor, placed: Tensor, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The object where it was and, `APART` of it, where it went, and the matches between them."""
    camera = Camera(eye=(0.24, -0.3, -1.15), target=(0.205, -0.03, 0.0), up=(0.0, -1.0, 0.0), fov=0.4)
    colors = [(0.16, 0.42, 0.74), (0.93, 0.55, 0.25), None]
    return render(points, placed + APART, matches, colors=colors, view=View(size=size, camera=camera))


def main(quick: bool = False, out: Path = Path("out/examples/fit_robustly.png"), seed: int = 0) -> float:
    """Fit every trial with every kernel, draw the errors, and check the best against the plain one.

    Args:
        quick: Fewer trials and a smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the matches and their noise.

    Returns: how many times the median error of plain squares is that of "gm".
    """
    generator = torch.Generator().manual_seed(seed)
    with (files("geom.assets") / "scan_object.npz").open("rb") as file:
        points = torch.from_numpy(np.load(file)["src"]).double()
    points = points - points.mean(0)
    start = Rigid.identity(20 if quick else 100, dtype=torch.float64)
    twist = torch.randn(len(start.translation), 6, generator=generator, dtype=torch.float64)
    truth = start.retract(twist * torch.tensor([0.1, 0.1, 0.1, 0.4, 0.4, 0.4], dtype=torch.float64))  # metres, radians
    source, target, wrong = match(points, truth, generator)

    error, pose = {}, start
    for name, (kernel, _) in tqdm(KERNELS.items(), unit="kernel", leave=False, disable=not sys.stderr.isatty()):
        fit = least_squares(lambda p: p.apply(source) - target, pose if name == "gm" else start, robust=kernel)
        pose = fit.value if name == "huber" else pose
        error[name] = 1e3 * (fit.value.apply(points) - truth.apply(points)).square().sum(-1).mean(-1).sqrt()  # mm
        tqdm.write(f"{name:6} median error {error[name].median().item():.3f} mm, {int(fit.iterations.max())} steps")

    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    ends = torch.cat([source[0, :SHOWN], target[0, :SHOWN] + APART])
    red, green = torch.tensor([0.88, 0.16, 0.27]), torch.tensor([0.10, 0.62, 0.48])
    colors = torch.where(wrong[0, :SHOWN, None], red, green).repeat(2, 1)
    matches = Lines(ends, torch.arange(len(ends)).reshape(2, -1).T, colors)
    left.imshow(draw(matches, points, truth[0].apply(points), (500, 360) if quick else (1250, 900)))
    left.axis("off")
    for i, (name, (_, color)) in enumerate(KERNELS.items()):
        spread = i + 0.5 * torch.rand(len(error[name]), generator=generator) - 0.25
        right.semilogy(spread, error[name], "o", color=color, alpha=0.45, markersize=4, markeredgewidth=0)
        middle = error[name].median().item()
        right.plot([i - 0.4, i + 0.4], [middle, middle], color=color, linewidth=2.5)
        right.annotate(f"{middle:.2f} mm", (i, 16), color=color, ha="center", fontweight="bold")
    right.set_xticks(range(4), KERNELS)
    right.set_ylim(0.08, 25)
    right.set_ylabel("error of the object's points (mm)")
    right.grid(axis="y", alpha=0.25)
    right.spines[["top", "right"]].set_visible(False)
    picture = out if out.suffix == ".png" else out / "fit_robustly.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80 if quick else 150)
    print(f"wrote {picture}")

    gain = (error["plain"].median() / error["gm"].median()).item()
    assert gain > 10, f"expected gm to be ten times as exact as plain squares, got {gain:.1f}"
    return gain


if __name__ == "__main__":
    tyro.cli(main)
