"""What a corridor cannot tell: `python examples/pose_uncertainty.py`.

Walls, floor and ceiling hold a scan across and upward to a fifth of a millimetre, and not at all along the corridor:
there `icp` keeps the guess. It also says so: it names that direction, and gives it a standard deviation as large as
the scene. The picture shows the source (orange) on the target (blue) without ceiling and near wall, and the
ellipsoid of two sigma about the estimated sensor, true along the corridor and 1000 times too thick across it.
"""

import math
from pathlib import Path

import torch
import tyro
from torch import Tensor

from geom.lie import Rigid
from geom.meshes import Mesh
from geom.registration import icp
from geom.viz import Camera, View, render, save_png

WIDTH, HEIGHT, REACH, NOISE = 2.4, 2.6, 7.0, 0.01  # metres; the corridor runs along x
THICKER = 1000.0


def scan_corridor(sensor: Rigid, count: int, generator: torch.Generator) -> Tensor:
    """Points (4 count, 3) float64 on the four faces within `REACH` of the sensor, in its frame, noisy along normals."""
    along = sensor.translation[0] + REACH * (2 * torch.rand(4, count, generator=generator, dtype=torch.float64) - 1)
    across = torch.rand(4, count, generator=generator, dtype=torch.float64) - 0.5
    side = torch.tensor([-0.5, 0.5, -0.5, 0.5], dtype=torch.float64)[:, None].expand(4, count)
    bump = NOISE * torch.randn(4, count, generator=generator, dtype=torch.float64)
    walls = torch.stack([along[:2], side[:2] * WIDTH + bump[:2], across[:2] * HEIGHT], -1)
    floor_and_ceiling = torch.stack([along[2:], across[2:] * WIDTH, side[2:] * HEIGHT + bump[2:]], -1)
    return sensor.inverse().apply(torch.cat([walls, floor_and_ceiling]).reshape(-1, 3))


def ellipsoid(axes: Tensor, center: Tensor, steps: int = 48) -> Mesh:
    """The ellipsoid with half-axes `axes`, rows (3, 3), about `center` (3,)."""
    angle = torch.arange(2 * steps, dtype=torch.float64) * (math.pi / steps)
    tilt = torch.linspace(0, math.pi, steps + 1, dtype=torch.float64)
    around, down = torch.meshgrid(angle, tilt, indexing="ij")
    sphere = torch.stack([around.cos() * down.sin(), around.sin() * down.sin(), down.cos()], -1)
    corner = torch.arange(sphere[..., 0].numel()).reshape(2 * steps, steps + 1)
    a, b, c, d = corner[:, :-1], corner.roll(-1, 0)[:, :-1], corner.roll(-1, 0)[:, 1:], corner[:, 1:]
    faces = torch.cat([torch.stack([a, d, c], -1), torch.stack([a, c, b], -1)])
    return Mesh(sphere.reshape(-1, 3) @ axes + center, faces.reshape(-1, 3))


def main(quick: bool = False, out: Path = Path("out/examples/pose_uncertainty.png"), seed: int = 0) -> float:
    """Register two scans of a corridor, draw how sure each direction is, and check the one that is named.

    Args:
        quick: A smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the points and their noise.

    Returns: |cos| of the angle between the direction named and the corridor.
    """
    generator = torch.Generator().manual_seed(seed)
    here = Rigid.identity(dtype=torch.float64)
    there = here.retract(torch.tensor([0.8, 0.15, -0.05, 0.01, 0.0, 0.2], dtype=torch.float64))  # twist (v, omega)
    target, source = (scan_corridor(sensor, 10_000, generator) for sensor in (here, there))
    start = there.retract(torch.tensor([-0.3, 0.1, 0.05, 0.02, 0.01, -0.04], dtype=torch.float64))
    found = icp(source, target, init=start, voxel_size=0.05)

    turn = found.value.to_matrix()[:3, :3]  # the covariance is in the source's axes, the picture in the target's
    variance, columns = torch.linalg.eigh(found.covariance[:3, :3])  # ascending
    sigma, directions = variance.sqrt(), (turn @ columns).T
    named = turn @ found.degenerate_directions[0, :3]
    alignment = float(named[0].abs() / named.norm())
    off = (found.value.translation - there.translation).abs()
    print(f"{len(found.degenerate_directions)} of 6 directions are not held; |cos| to the corridor {alignment:.6f}")
    print("sigma {:.2g} m and {:.2g} m across, {:.2g} m along".format(*sigma))
    print("error {1:.2g} m and {2:.2g} m across, {0:.2g} m along".format(*off))

    moved = found.value.apply(source)
    seen = [x[(x[:, 2] < 0.45 * HEIGHT) & (x[:, 1] > -0.45 * WIDTH)] for x in (target, moved)]
    thickness = torch.tensor([THICKER, THICKER, 1.0], dtype=torch.float64)
    spread = ellipsoid((2 * sigma * thickness)[:, None] * directions, found.value.translation)
    camera = Camera(eye=(-6.0, -22.5, 9.5), target=(-0.1, 0.0, -0.5), fov=0.245)
    size, point_size = ((600, 210), 2.0) if quick else ((1800, 630), 3.5)
    view = View(size=size, camera=camera, background=(0.06, 0.07, 0.10), point_size=point_size)
    colors = [(0.36, 0.66, 0.98), (1.0, 0.58, 0.20), (0.93, 0.25, 0.36)]
    picture = out if out.suffix == ".png" else out / "pose_uncertainty.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, render(*seen, spread, colors=colors, view=view))
    print(f"wrote {picture}")

    assert alignment > 0.999, f"expected the corridor's direction to be named, got one at |cos| {alignment:.4f}"
    return alignment


if __name__ == "__main__":
    tyro.cli(main)
