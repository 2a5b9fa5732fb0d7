"""Normals and curvature of a point cloud: `python examples/neighbors_and_normals.py`.

Noisy points on a smooth surface of genus 5, f(x, y, z) = 0, are thinned to an even spacing. Colour is the curvature of
each neighbourhood, the share of its spread across the surface; the light falls on the estimated normals. The number is
their mean angle to the true ones, grad f.
"""

from pathlib import Path

import torch
import tyro
from torch import Tensor

from geom.points import Points, estimate_covariances, estimate_normals, knn, voxel_downsample
from geom.viz import Camera, View, render, save_png
from geom.viz.colors import colormap


def height(points: Tensor) -> Tensor:
    """f for points (N, 3): x^4 - 5 x^2 + y^4 - 5 y^2 + z^4 - 5 z^2 + 11.8, the tanglecube."""
    square = points.square()
    return (square * (square - 5)).sum(-1) + 11.8


def gradient(points: Tensor) -> Tensor:
    return torch.func.grad(lambda x: height(x).sum())(points)


def sample_surface(count: int, *, noise: float, generator: torch.Generator) -> Tensor:
    """About `count` points (N, 3) float64 on f = 0, by Newton's steps from anywhere, then noise along grad f."""
    points = 5.6 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 2.8
    for _ in range(12):
        slope = gradient(points)
        points = points - (height(points) / slope.square().sum(-1).clamp(min=1e-6))[:, None] * slope
    points = points[(height(points).abs() < 1e-9) & (points.abs().amax(-1) < 2.8)]
    away = noise * torch.randn(len(points), 1, generator=generator, dtype=torch.float64)
    return points + away * torch.nn.functional.normalize(gradient(points), dim=-1)


def main(quick: bool = False, out: Path = Path("out/examples/neighbors_and_normals.png"), seed: int = 0) -> float:
    """Thin, find neighbours, normals and curvature, draw them, and check the normals.

    Args:
        quick: Fewer points and a smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the points.

    Returns: the mean angle between estimated and true normals, degrees.
    """
    generator = torch.Generator().manual_seed(seed)
    dense = sample_surface(200_000 if quick else 800_000, noise=0.002, generator=generator)
    points = voxel_downsample(dense, 0.06 if quick else 0.035).positions
    camera = Camera(eye=(7.6, -12.4, 8.1), target=(0.0, 0.0, -0.05), fov=0.42)
    normals = estimate_normals(points, k=60, viewpoint=torch.tensor(camera.eye))

    spread = torch.linalg.eigvalsh(estimate_covariances(points, k=60))  # ascending
    curvature = (spread[:, 0] / spread.sum(-1)).sqrt()
    spacing = knn(points, points, 2).distance[:, 1].mean()  # the nearest but the point itself

    true = torch.nn.functional.normalize(gradient(points), dim=-1)
    angle = torch.rad2deg((normals * true).sum(-1).abs().clamp(max=1).acos()).mean().item()
    print(f"{len(dense)} points thinned to {len(points)}, {spacing:.3f} apart")
    print(f"normals {angle:.2f} deg from the true ones on average")

    low, high = torch.quantile(curvature, torch.tensor([0.02, 0.98], dtype=torch.float64)).tolist()
    base = torch.from_numpy(colormap(curvature.numpy(), low=low, high=high))
    light = torch.nn.functional.normalize(torch.tensor([0.2, -0.55, 0.8], dtype=torch.float64), dim=0)
    lit = base * (0.45 + 0.75 * (normals @ light).clamp(min=0)).float()[:, None]
    view = View(size=(450, 400) if quick else (1350, 1200), camera=camera, point_size=6 if quick else 11)
    picture = out if out.suffix == ".png" else out / "neighbors_and_normals.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, render(Points(points, colors=lit.clamp(max=1)), view=view))
    print(f"wrote {picture}")

    assert angle < 2, f"expected normals to 2 degrees, got {angle:.2f}"
    return angle


if __name__ == "__main__":
    tyro.cli(main)
