"""Which crystal is this? `python examples/crystal_structures.py`.

An atom and its twelve nearest neighbours, each shaken by heat: the network of assets/clifford, 37,000 weights of
geometric-algebra attention, names the crystal structure they come from, however they are turned. The clouds are those
of clifford/crystals_val.npz in GEOM_DATA, or, without them, of six of the eight structures, built and shaken here. The
number is the part that is named right; the picture shows which structures are taken for which, and what the noise does.
"""

import os
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from geom.clifford.point_network import PointNetwork, pair_values
from geom.lie import quaternion

NAMES = ("hP2-Mg", "cI2-W", "cF4-Cu", "cF8-C", "cF8-SZn", "cP46-Si", "cF136-Si", "cP2-ClCs")
FCC = ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
DIAMOND = (*FCC, *((x + 0.25, y + 0.25, z + 0.25) for x, y, z in FCC))
CELLS = {  # place in NAMES: edges of the cell in nearest distances (hP2-Mg: in units of its own), atoms, kinds
    0: ((1.156, 1.156 * 3**0.5, 1.873), ((0, 0, 0), (0.5, 0.5, 0), (0.5, 5 / 6, 0.5), (0, 1 / 3, 0.5)), (0,) * 4),
    1: ((1.1547,) * 3, ((0, 0, 0), (0.5, 0.5, 0.5)), (0, 0)),
    2: ((2**0.5,) * 3, FCC, (0,) * 4),
    3: ((2.3094,) * 3, DIAMOND, (0,) * 8),
    4: ((2.3094,) * 3, DIAMOND, (0,) * 4 + (1,) * 4),
    7: ((1.1547,) * 3, ((0, 0, 0), (0.5, 0.5, 0.5)), (0, 1)),
}
Clouds = tuple[Tensor, Tensor, Tensor, Tensor]


def load_clouds(count: int, generator: torch.Generator) -> tuple[Clouds, str]:
    """Points (M, 12, 3), values (M, 12, 4), structure (M,), noise (M,), and where they are from."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    found = sorted(folder.glob("clifford/crystals_val*.npz"))
    if found:
        with np.load(found[0]) as file:
            x = {key: torch.from_numpy(file[key]) for key in ("rij", "type_i", "type_j", "label", "noise")}
        return (x["rij"], pair_values(x["type_i"].long(), x["type_j"].long(), 2), x["label"].long(), x["noise"]), "val"
    clouds = []
    shifts = torch.cartesian_prod(*(torch.arange(-3.0, 4),) * 3)
    for label, (edges, atoms, kinds) in CELLS.items():
        for i in range(count):
            noise = (0.001, 0.05, 0.1)[i % 3]
            center = i % len(atoms)
            lattice = (shifts[:, None] + torch.tensor(atoms) - torch.tensor(atoms[center])) * torch.tensor(edges)
            rij = lattice.flatten(0, 1)
            rij = rij[rij.norm(dim=-1) > 1e-3]
            kind = torch.tensor(kinds).repeat(len(shifts))[lattice.flatten(0, 1).norm(dim=-1) > 1e-3]
            rij = rij + noise * torch.randn(rij.shape, generator=generator)
            near = rij.norm(dim=-1).argsort()[:12]
            points = quaternion.rotate(quaternion.random(generator=generator), rij[near])
            values = pair_values(torch.tensor(kinds[center]), kind[near], 2)
            clouds.append((points, values, torch.tensor(label), torch.tensor(noise)))
    points, values, labels, noises = (torch.stack(x) for x in zip(*clouds, strict=True))
    return (points, values, labels, noises), "built"


def main(quick: bool = False, out: Path = Path("out/examples/crystal_structures.png"), seed: int = 0) -> float:
    """Name the clouds, draw what was taken for what, and check how many are named right.

    Args:
        quick: Fewer clouds, and a smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the noise.

    Returns: the part of the clouds that is named right.
    """
    generator = torch.Generator().manual_seed(seed)
    (points, values, labels, noise), name = load_clouds(30 if quick else 120, generator)
    with as_file(files("geom.assets") / "clifford" / "crystals.safetensors") as path:
        network = PointNetwork.load(path)
    with torch.no_grad():
        named = torch.cat([network(*x).argmax(-1) for x in zip(points.split(120), values.split(120), strict=True)])
        strengths = torch.linspace(0, 0.2, 3 if quick else 9)
        still = noise < 0.01
        clean = (points[still], values[still])
        curve = []
        for strength in strengths:
            shaken = clean[0] + strength * torch.randn(clean[0].shape, generator=generator)
            curve.append(float((network(shaken, clean[1]).argmax(-1) == labels[still]).float().mean()))
    right = named == labels
    accuracy = float(right.float().mean())
    each = ", ".join(f"{x:.3f}: {100 * float(right[noise == x].float().mean()):.1f} %" for x in noise.unique())
    print(f"{len(points)} clouds ({name}): {100 * accuracy:.2f} % named right; by noise {each}")

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, panel = figure.subplots(1, 2, width_ratios=(1, 1))
    table = torch.zeros(len(NAMES), len(NAMES)).index_put((labels, named), torch.ones(len(labels)), accumulate=True)
    left.imshow((table / table.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmax=1)
    for (i, j), n in np.ndenumerate(table.int().numpy()):
        if n:
            left.text(j, i, str(n), ha="center", va="center", fontsize=9, color="w" if i == j else "0.1")
    left.set(xlabel="named", ylabel="is", xticks=range(len(NAMES)), yticks=range(len(NAMES)), yticklabels=NAMES)
    left.set_xticklabels(NAMES, rotation=45, ha="right")
    panel.plot(strengths, 100 * np.array(curve), marker="o", color="tab:blue")
    panel.set(xlabel="noise, of the nearest distance", ylabel="named right, %", title="neighbours shaken in place")
    picture = out if out.suffix == ".png" else out / "crystal_structures.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 110)
    print(f"wrote {picture}")

    bound = 0.98
    assert accuracy >= bound, f"expected at least {bound} named right, got {accuracy:.4f}"
    return accuracy


if __name__ == "__main__":
    tyro.cli(main)
