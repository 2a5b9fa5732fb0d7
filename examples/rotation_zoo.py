"""How exact is the logarithm of a rotation, from angle 0 to pi: `python examples/rotation_zoo.py`.

Every library takes rotation vectors to rotations and back: what comes out should be what went in, and its derivative
the identity. Drawn are the worst errors over many axes against the angle, on a scale that spreads both ends, where
formulas lose digits: all of them, where the angle is the acos of the trace. The dashed line is the rounding of one
number. The number is geom's worst error in float64.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from math import log10, pi
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation
from torch import Tensor

from geom.lie import quaternion, so3

NEAR = {torch.float32: 1e-6, torch.float64: 1e-9}  # how close to pi; at pi either sign of the axis is right
COLORS = {"trace and acos": "#d55e00", "pypose": "#e69f00", "scipy": "#56b4e9", "roma": "#0072b2"}
COLORS |= {"pytorch3d's formulas": "#009e73", "geom": "#000000"}  # in the order of drawing
WIDTHS = {"geom": 2, "scipy": 3.2}


def by_sinc(rotvec: Tensor) -> Tensor:
    """pytorch3d's way, from the equations: a quaternion by sinc, its logarithm by atan2 and sinc."""
    angle = rotvec.norm(dim=-1, keepdim=True)
    w, xyz = (angle / 2).cos(), rotvec * torch.sinc(angle / (2 * pi)) / 2
    return 2 * xyz / torch.sinc(torch.atan2(xyz.norm(dim=-1, keepdim=True), w) / pi)


def by_acos(rotvec: Tensor) -> Tensor:
    """The textbook's way: angle = acos((tr R - 1)/2), times the axis in R - R^T."""
    matrix = so3.exp(rotvec)
    angle = torch.acos(((matrix.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1) / 2).clamp(-1, 1))
    return angle / angle.sin() * so3.vee(matrix)


def round_trips() -> dict[str, Callable[[Tensor], Tensor]]:
    """log(exp(v)) in each library that is installed."""
    found = {
        "trace and acos": by_acos,
        "scipy": lambda v: torch.from_numpy(Rotation.from_rotvec(v.detach()).as_rotvec()),
        "pytorch3d's formulas": by_sinc,
        "geom": lambda v: quaternion.log(quaternion.exp(v)),
    }
    if find_spec("roma"):
        roma = import_module("roma")
        found["roma"] = lambda v: roma.unitquat_to_rotvec(roma.rotvec_to_unitquat(v))
    if find_spec("pypose"):
        pypose = import_module("pypose")
        found["pypose"] = lambda v: pypose.so3(v).Exp().Log().tensor()
    return {name: found[name] for name in COLORS if name in found}


def errors(round_trip: Callable[[Tensor], Tensor], rotvec: Tensor) -> list[Tensor]:
    """Of rotvec (angles, axes, 3) the worst axis: |log(exp v) - v|/|v|, and |J - I| where there is a derivative."""
    leaf = rotvec.flatten(0, 1).requires_grad_()
    back = round_trip(leaf)
    found = [(back - leaf).detach().norm(dim=-1) / leaf.detach().norm(dim=-1)]
    if back.requires_grad:
        rows = [torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0] for x in back.unbind(-1)]
        found.append((torch.stack(rows, -2) - torch.eye(3)).abs().amax((-2, -1)))
    return [x.nan_to_num(nan=1).reshape(rotvec.shape[:2]).amax(-1) for x in found]


def main(quick: bool = False, out: Path = Path("out/examples/rotation_zoo.png"), seed: int = 0) -> float:
    """Measure every library's errors, draw them, and check geom's.

    Args:
        quick: Fewer angles and axes and a smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the axes.

    Returns: geom's worst relative error in float64.
    """
    axes = torch.randn(8 if quick else 64, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    worst, figure = {}, Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for row, dtype in zip(panels, NEAR, strict=True):
        place = torch.linspace(-11, log10(pi / NEAR[dtype]), 60 if quick else 300, dtype=torch.float64)
        angle = pi / (1 + 10**-place)  # place = log10(angle / (pi - angle))
        rotvec = (angle[:, None, None] * torch.nn.functional.normalize(axes, dim=-1)).to(dtype)
        eps = torch.finfo(dtype).eps
        for name, round_trip in round_trips().items():
            if name == "scipy" and dtype == torch.float32:
                continue  # it computes in float64 only
            found = errors(round_trip, rotvec)
            worst[name] = found[0].max().item()
            for panel, error in zip(row, found, strict=False):
                shown = torch.nn.functional.max_pool1d(error.clamp(eps / 20, 1)[None], 9, stride=1, padding=4)[0]
                panel.plot(place, shown, color=COLORS[name], linewidth=WIDTHS.get(name, 1.4), label=name)
        for panel, title in zip(row, ("relative error of log(exp v)", "error of its derivative"), strict=True):
            panel.set_yscale("log")
            panel.set_title(f"{title}, {str(dtype)[6:]}", loc="left", fontsize=11)
            panel.axhline(eps, color="#8a909c", linewidth=0.9, linestyle=(0, (4, 4)), zorder=0)
            panel.text(-11, eps / 14, "exact", fontsize=9)
            panel.grid(alpha=0.2)
            panel.spines[["top", "right"]].set_visible(False)
    start, end = [r"$10^{-8}$", r"$10^{-5}$", "0.01"], [r"$\pi\!-\!0.01$", r"$\pi\!-\!10^{-5}$", r"$\pi\!-\!10^{-8}$"]
    panels[0, 0].set_xticks([-8.5, -5.5, -2.5, 0, 2.5, 5.5, 8.5], [*start, r"$\pi/2$", *end])
    figure.supxlabel("angle of the rotation (rad)", fontsize=11)
    lines, names = panels[1, 0].get_legend_handles_labels()
    figure.legend(lines[::-1], names[::-1], loc="outside upper center", ncols=len(names), frameon=False)
    picture = out if out.suffix == ".png" else out / "rotation_zoo.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 180)
    print(*(f"{name:20} worst error in float64 {error:.1e}" for name, error in worst.items()), sep="\n")
    print(f"wrote {picture}")

    assert worst["geom"] < 4e-16, f"expected geom to be exact to 4e-16, got {worst['geom']:.1e}"
    return worst["geom"]


if __name__ == "__main__":
    tyro.cli(main)
