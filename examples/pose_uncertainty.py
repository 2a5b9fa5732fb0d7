"""What a corridor cannot tell: `python examples/pose_uncertainty.py`.

Walls, floor and ceiling hold a scan across and upward to a fraction of a millimetre, and not at all along. `icp` says so:
it names that direction, and its covariance grows to the size of the scene there. The picture draws two sigma along each
axis as a bar from the estimated sensor, the bars of the two held axes a thousand times too long.
"""

import math
from pathlib import Path

import torch
import tyro
from torch import Tensor

from geom.lie import Rigid
from geom.registration import icp
from geom.viz import Camera, Lines, View, render, save_png

WIDTH, HEIGHT, REACH, NOISE = 2.4, 2.6, 7.0, 0.01  # metres
EXAGGERATION = 1000.0


def scan_corridor(sensor: Rigid, count: int, generator: torch.Generator) -> Tensor:
    """Points (N, 3) float64 that a sensor sees of the four faces, in its own frame, with noise along the normals.

    The corridor runs along x, and the sensor sees `REACH` metres of it both ways.
    """
    along = sensor.translation[0] + REACH * (2 * torch.rand(4, count, generator=generator, dtype=torch.float64) - 1)
    across = torch.rand(4, count, generator=generator, dtype=torch.float64) - 0.5
    side = torch.tensor([-0.5, 0.5, -0.5, 0.5], dtype=torch.float64)[:, None].expand(4, count)
    bump = NOISE * torch.randn(4, count, generator=generator, dtype=torch.float64)
    walls = torch.stack([along[:2], side[:2] * WIDTH + bump[:2], across[:2] * HEIGHT], -1)
    floor_ceiling = torch.stack([along[2:], across[2:] * WIDTH, side[2:] * HEIGHT + bump[2:]], -1)
    return sensor.inverse().apply(torch.cat([walls, floor_ceiling]).reshape(-1, 3))


def main(quick: bool = False, out: Path = Path("out/examples/pose_uncertainty.png"), seed: int = 0) -> float:
    """Register two scans of a corridor, draw how sure each direction is, and check the one that is named.

    Args:
        quick: A smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the points and their noise.

    Returns: |cos| of the angle between the direction named degenerate and the corridor's axis.
    """
    generator = torch.Generator().manual_seed(seed)
    here = Rigid.identity(dtype=torch.float64)
    there = here.retract(torch.tensor([0.8, 0.15, -0.05, 0.01, 0.0, math.radians(12)], dtype=torch.float64))
    target, source = (scan_corridor(sensor, 4000, generator) for sensor in (here, there))

    start = there.retract(torch.tensor([-0.3, 0.1, 0.05, 0.02, 0.01, -0.04], dtype=torch.float64))
    found = icp(source, target, init=start, voxel_size=0.1)

    axis = there.inverse().quat_wxyz  # the source's frame is the covariance's
    axes = Rigid(axis, torch.zeros(3, dtype=torch.float64)).apply(torch.eye(3, dtype=torch.float64))
    sigma = torch.einsum("ai,ij,aj->a", axes, found.covariance[:3, :3], axes).sqrt()
    free = found.degenerate_directions[:, :3]
    print(f"{len(free)} of 6 directions degenerate")
    print("sigma along {:.3g} m, across {:.3g} m, upward {:.3g} m".format(*sigma))
    alignment = float((free[0] / free[0].norm()) @ axes[0])
    return alignment


if __name__ == "__main__":
    tyro.cli(main)
