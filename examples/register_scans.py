"""Lay one LiDAR scan onto another: `python examples/register_scans.py`.

Two turns of a 32-beam LiDAR in a simulated street, 6 m and 20 degrees apart, start 1.1 m and 8 degrees off. The
picture shows the source (orange) on the target (blue), before and after; the number is the error against the true pose.
"""

import math
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import tyro

from geom.lie import Rigid, quaternion
from geom.registration import icp
from geom.viz import Camera, View, render, save_png

TARGET, SOURCE = (0.36, 0.66, 0.98), (1.0, 0.58, 0.20)  # blue, orange


def main(quick: bool = False, out: Path = Path("out/examples/register_scans.png")) -> float:
    """Register the street, draw it before and after, and check the error.

    Args:
        quick: A smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: the error of the translation, metres.
    """
    with (files("geom.assets") / "scan_street.npz").open("rb") as file:
        source, target, T_target_source = map(torch.from_numpy, map(np.load(file).get, ("src", "tgt", "T_tgt_src")))
    truth = Rigid.from_matrix(T_target_source)
    twist = torch.tensor([0.9, -0.6, 0.1, 0.0, 0.01, math.radians(8)], dtype=torch.float64)  # (v, omega)
    start = truth.retract(twist)

    begin = time.perf_counter()
    found = icp(source, target, init=start, voxel_size=0.25)
    seconds = time.perf_counter() - begin

    off = truth.inverse().compose(found.value)
    metres = float(off.translation.norm())
    degrees = math.degrees(quaternion.log(off.quat_wxyz).norm())
    sigma = found.covariance.diagonal().sqrt()
    print(f"{len(source)} onto {len(target)} points in {seconds:.2f} s, {int(found.iterations)} iterations")
    print(f"error {1e3 * metres:.1f} mm, {degrees:.4f} deg; reported sigma {1e3 * sigma[:3].norm():.1f} mm")

    camera = Camera(eye=(-30.0, -5.0, 38.0), target=(2.5, -0.5, 0.0))
    view = View(size=(480, 400) if quick else (900, 750), camera=camera, background=(0.06, 0.07, 0.10))
    poses = (start, found.value)
    panels = [render(target, pose.apply(source.double()), colors=[TARGET, SOURCE], view=view) for pose in poses]
    picture = out if out.suffix == ".png" else out / "register_scans.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, np.concatenate(panels, axis=1))
    print(f"wrote {picture}")

    assert metres < 0.02, f"expected the pose to 2 cm, got {metres:.3f} m"
    return metres


if __name__ == "__main__":
    tyro.cli(main)
