"""A sphere that becomes a cow: `python examples/fit_sphere_to_mesh.py`.

Every step draws points on both surfaces and moves the sphere's vertices down the Chamfer distance between them. Three
terms keep the faces well: short edges, neighbouring faces that agree, vertices near the mean of their neighbours. Each
stage has four times the faces of the last. The target is the cow of GEOM_DATA, or without it a star of six arms. The
number is how far, rms, points of either surface are from the other in the end.
"""

import os
import sys
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from tqdm import trange

from geom.io import load_mesh
from geom.meshes import Mesh, closest_points, face_adjacency, face_normals, sample_surface, subdivide, uniform_laplacian
from geom.points import chamfer
from geom.viz import Camera, View, render


def sphere(steps: int) -> Mesh:
    """The unit sphere: an icosahedron, its faces cut in four `steps` times."""
    ratio = (1 + 5**0.5) / 2
    corner = torch.tensor([[0.0, a, b * ratio] for a in (-1, 1) for b in (-1, 1)])
    corner = torch.cat([corner.roll(axis, 1) for axis in range(3)])
    triple = torch.combinations(torch.arange(12), 3)
    faces = triple[(torch.cdist(corner, corner)[triple, triple.roll(1, 1)] < 2.1).all(1)]
    faces = torch.where(torch.linalg.det(corner[faces])[:, None] < 0, faces.flip(1), faces)  # seen from outside
    mesh = subdivide(Mesh(corner, faces), steps=steps, scheme="midpoint")
    return Mesh(torch.nn.functional.normalize(mesh.vertices, dim=-1), mesh.faces)


def target_mesh() -> Mesh:
    """The cow where there is one, else the star; its middle at 0, its farthest coordinate at 1."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    found, ball = sorted(folder.glob("meshes/cow*")), sphere(5)
    arms = ball.vertices.pow(4).sum(-1, keepdim=True).square()  # 1 on the axes, 1/9 half-way between all three
    mesh = load_mesh(found[0]) if found else Mesh(ball.vertices * (0.3 + 0.7 * arms), ball.faces)
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    return Mesh((mesh.vertices - (low + high) / 2) / ((high - low).max() / 2), mesh.faces)


def fit(mesh: Mesh, target: Mesh, steps: int, rate: float, count: int, generator: torch.Generator) -> Mesh:
    """The mesh with its vertices moved by `steps` of Adam on `count` points of each surface."""
    x = mesh.vertices.clone().requires_grad_()
    laplacian, neighbors = uniform_laplacian(mesh.faces, len(x)), face_adjacency(mesh.faces)
    start, stop = neighbors.edges.unbind(-1)  # all edges: the surface is closed
    optimizer = torch.optim.Adam([x], lr=rate)
    for _ in trange(steps, desc=f"{len(x)} vertices", leave=False, disable=not sys.stderr.isatty()):
        drawn = [sample_surface(m, count, generator=generator).points for m in (Mesh(x, mesh.faces), target)]
        length = (x[start] - x[stop]).square().sum(-1).mean()
        one, other = face_normals(x, mesh.faces)[neighbors.faces].unbind(1)
        bend = 1 - (one * other).sum(-1).mean()
        rough = (laplacian @ x).norm(dim=-1).mean()
        loss = chamfer(*drawn) + 0.3 * length + 0.003 * bend + 0.005 * rough
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Mesh(x.detach(), mesh.faces)


def apart(a: Mesh, b: Mesh, generator: torch.Generator) -> float:
    """Root of the mean squared distance from points of each surface to the other."""
    both = ((a, b), (b, a))
    away = [closest_points(sample_surface(x, 20_000, generator=generator).points, y).distance for x, y in both]
    return float(torch.cat(away).square().mean().sqrt())


def main(quick: bool = False, out: Path = Path("out/examples/fit_sphere_to_mesh.png"), seed: int = 0) -> float:
    """Fit the sphere stage by stage, draw every stage beside the target, and check what is left.

    Args:
        quick: Two coarse stages of few steps and a smaller picture.
        out: The picture, a PNG, or a folder for it.
        seed: Of the points drawn.

    Returns: the distance between the surfaces, in half-sizes of the target.
    """
    generator = torch.Generator().manual_seed(seed)
    target, mesh = target_mesh(), sphere(2)
    stages, left = {"the sphere": mesh}, [apart(mesh, target, generator)]
    steps, count = (60, 1000) if quick else (200, 5000)
    for stage in range(2 if quick else 4):
        mesh = fit(subdivide(mesh, steps=min(stage, 1)), target, steps, 0.02 * 0.4**stage, count, generator)
        name = f"{len(mesh.vertices):,} vertices"
        stages[name] = mesh
        left.append(apart(mesh, target, generator))
        print(f"{name:15} {100 * left[-1]:.2f} % of the target's half-size away, from {100 * left[-2]:.2f} %")

    camera = Camera(eye=(1.75, 1.2, -3.7), target=(0.0, 0.0, 0.0), up=(0.0, 1.0, 0.0))
    view = View(size=(160, 160) if quick else (560, 540), camera=camera)
    stages["the target"] = target
    figure = Figure(figsize=(2.5 * len(stages), 2.75), layout="constrained")
    for panel, (name, thing) in zip(figure.subplots(1, len(stages)), stages.items(), strict=True):
        color = (0.93, 0.55, 0.25) if thing is target else (0.2, 0.46, 0.76)
        panel.imshow(render(thing, colors=[color], view=view))
        panel.set_title(name, fontsize=14)
        panel.axis("off")
    picture = out if out.suffix == ".png" else out / "fit_sphere_to_mesh.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 150)
    print(f"wrote {picture}")

    bound = 0.05 if quick else 0.01
    assert left[-1] < bound, f"expected the surfaces to be within {bound} of each other, got {left[-1]:.4f}"
    return left[-1]


if __name__ == "__main__":
    tyro.cli(main)
