"""A body found in a scan: `python examples/fit_body.py`.

The synthetic human of assets/bodies, tall or short, broad or slim, in some pose, is scanned: points all over its
surface with 0.3 mm of noise, and key-points that are good to 1 cm. From these `fit_body` finds shape, bone lengths and
pose at once. Left: the body at rest, where it begins. Middle: the scan. Right: the body found, in colours of its
distance to the true one, whose vertices it was not shown; their mean is the number.
"""

from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from geom.lie import quaternion
from geom.meshes import Mesh, sample_surface
from geom.points import Points
from geom.skinning import BodyModel, BodyState, fit_body, synthetic_human
from geom.values import replace
from geom.viz import View, render
from geom.viz.colors import colormap

NOISE, ROUGH = 3e-4, 0.01  # metres, of the scan and of the key-points
STEP = {  # rotation vectors, radians
    "pelvis": (0.0, 0.35, 0.0),
    "left_hip": (-0.55, 0.0, 0.0),
    "right_hip": (0.35, 0.0, 0.0),
    "left_knee": (0.5, 0.0, 0.0),
    "right_knee": (0.6, 0.0, 0.0),
    "spine2": (0.1, -0.25, 0.0),
    "left_shoulder": (0.3, 0.2, -1.1),
    "right_shoulder": (-0.2, 0.5, 1.1),
    "left_elbow": (0.0, -0.8, 0.0),
    "right_elbow": (0.0, 1.0, 0.0),
    "head": (0.1, 0.3, 0.0),
}


def somebody(body: BodyModel, generator: torch.Generator) -> BodyState:
    """Mid-step, with a shape and bones of their own."""
    state = body.state()
    turn = torch.zeros(len(body.parent), 3)
    for name, rotvec in STEP.items():
        turn[body.names.index(name)] = torch.tensor(rotvec)
    turn += 0.05 * torch.randn(turn.shape, generator=generator)
    shape = torch.randn(state.shape.shape, generator=generator)
    skeleton = torch.randn(state.skeleton.shape, generator=generator)
    return replace(state, shape=shape, skeleton=skeleton, quat_wxyz=quaternion.exp(turn))


def main(quick: bool = False, out: Path = Path("out/examples/fit_body.png")) -> float:
    """Scan a body, fit the model to the scan, draw both, and compare with the truth.

    Args:
        quick: Fewer points and a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: mean distance of the vertices found from the true ones, metres.
    """
    generator = torch.Generator().manual_seed(4)
    body = synthetic_human()
    truth = body.apply(somebody(body, generator))

    def noise(like: Tensor, size: float) -> Tensor:
        return size * torch.randn(like.shape, generator=generator)

    count = 3000 if quick else 6000
    scan = sample_surface(Mesh(truth.vertices, body.faces), count, generator=generator).points
    scan = scan + noise(scan, NOISE)
    keypoints = truth.joints + noise(truth.joints, ROUGH)
    weights = torch.full((len(keypoints),), (NOISE / ROUGH) ** 2)  # as exact as each is
    fit = fit_body(body, scan=scan, keypoints=keypoints, weights=weights)
    found = body.apply(fit.value)
    error = (found.vertices - truth.vertices).norm(dim=-1)
    joints = (found.joints - truth.joints).norm(dim=-1)
    print(f"{count} points, {int(fit.iterations)} steps, converged: {bool(fit.converged)}")
    print(f"vertices: {1e3 * error.mean():.2f} mm on average, {1e3 * error.max():.2f} at most")
    print(f"joints: {1e3 * joints.mean():.2f} mm on average, {1e3 * joints.max():.2f} at most")

    grey, blue = torch.tensor([0.75, 0.75, 0.78]), torch.tensor([0.15, 0.35, 0.6])
    shades = torch.from_numpy(colormap(error.numpy(), low=0.0, high=3e-3))
    panels = {
        "the body at rest": Mesh(body.template, body.faces, colors=grey.repeat(len(body.template), 1)),
        f"a scan of {count} points": Points(scan, colors=blue.repeat(count, 1)),
        "the body found, off by 0 (dark) to 3 mm": Mesh(found.vertices, body.faces, colors=shades),
    }
    size = (260, 300) if quick else (900, 1000)
    figure = Figure(figsize=(15, 5.9), layout="constrained")
    for panel, (title, thing) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        panel.imshow(render(thing, view=View(size=size, up=(0.0, 1.0, 0.0))))
        panel.set_title(title, fontsize=15)
        panel.axis("off")
    picture = out if out.suffix == ".png" else out / "fit_body.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 150)
    print(f"wrote {picture}")

    mean = float(error.mean())
    assert mean < 1e-3, f"expected the body within 1 mm of the true one on average, got {1e3 * mean:.2f} mm"
    return mean


if __name__ == "__main__":
    tyro.cli(main)
