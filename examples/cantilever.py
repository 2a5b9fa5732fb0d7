"""Cantilevers that bend under their own weight: `python examples/cantilever.py`.

Rods clamped level at one end hang by their own weight, from stiff to soft: alpha = w L^3 / EI for the weight w of a
metre. The heavy elastica, EI phi'' = -w (L - s) cos(phi), says where each point is; `equilibrium` finds it for a chain
of vertices. The picture lays one on the other and shows how the error of the tip falls with the number of vertices,
by the square. The number is the tip's error at 100 edges, in lengths of the rod, for the worst alpha.
"""

from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from scipy.integrate import solve_bvp

from geom.rods import equilibrium, make_rod

ALPHAS = (1.0, 5.0, 10.0, 50.0)


def elastica(alpha: float) -> np.ndarray:
    """Points (2, 201) of a rod of length 1: x along the clamp, y down."""

    def slope(s: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([y[1], -alpha * (1 - s) * np.cos(y[0]), np.cos(y[0]), np.sin(y[0])])

    s = np.linspace(0, 1, 201)
    guess = np.stack([1.5 * s, 1.5 * (1 - s), s, s])
    solved = solve_bvp(slope, lambda a, b: np.array([a[0], b[1], a[2], a[3]]), s, guess, tol=1e-10, max_nodes=100_000)
    return solved.sol(s)[2:]


def hang(alpha: float, edges: int) -> torch.Tensor:
    """Vertices (edges + 2, 2) at rest, x and depth: the clamped edge reaches half its length into the wall."""
    length = 1 / (edges + 0.5)  # a clamp of two vertices acts halfway between them
    x = torch.zeros(edges + 2, 3, dtype=torch.float64)
    x[:, 0] = length * (torch.arange(edges + 2) - 0.5)
    rod = make_rod(x, EI=9.81 / alpha, GJ=9.81 / alpha, linear_density=1.0)
    fit = equilibrium(rod, x, clamped=(0, 1))
    assert bool(fit.converged)
    return fit.value.position[:, [0, 2]] * torch.tensor([1.0, -1.0])


def main(quick: bool = False, out: Path = Path("out/examples/cantilever.png")) -> float:
    """Hang the rods, draw them on the elastica, and check their tips.

    Args:
        quick: A smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: the greatest error of a tip at 100 edges, in lengths of the rod.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    counts, errors = (12, 25, 50, 100), {}
    for i, alpha in enumerate(ALPHAS):
        exact = elastica(alpha)
        chains = {count: hang(alpha, count) for count in counts}
        errors[alpha] = [float(np.linalg.norm(chains[count][-1].numpy() - exact[:, -1])) for count in counts]
        print(f"alpha {alpha:4.0f}: tip off by", ", ".join(f"{e:.1e}" for e in errors[alpha]), f"at {counts} edges")
        left.plot(*exact, color=f"C{i}", lw=5, alpha=0.35, solid_capstyle="round")
        left.plot(*chains[25].T, "o-", color=f"C{i}", ms=3, lw=1, label=rf"$\alpha$ = {alpha:.0f}")
        right.loglog(counts, errors[alpha], "o-", color=f"C{i}")
    left.axvspan(-0.06, 0, color="0.8", lw=0)
    left.set(xlabel="x / L", ylabel="depth / L", title="the elastica (wide), 25 edges (dots)", xlim=(-0.06, 1.03))
    left.set_aspect("equal")
    left.invert_yaxis()
    left.legend(loc="lower right")
    slope = np.array([12.0, 100.0])
    right.loglog(slope, 0.06 * (slope / 12) ** -2, color="0.5", ls="--", label="second order")
    right.set(xlabel="edges", ylabel="error of the tip / L", title="how it falls")
    right.set_xticks(counts, map(str, counts))
    right.minorticks_off()
    right.grid(alpha=0.3)
    right.legend()
    picture = out if out.suffix == ".png" else out / "cantilever.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 110)
    print(f"wrote {picture}")

    worst = max(error[-1] for error in errors.values())
    assert worst < 5e-4, f"expected tips within 5e-4 of the elastica's, got {worst:.1e}"
    return worst


if __name__ == "__main__":
    tyro.cli(main)
