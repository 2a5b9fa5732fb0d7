"""How far it is along a surface: `python examples/geodesics_on_a_mesh.py`.

`HeatGeodesics` prepares a mesh once, and then is asked for one source after the other. Left: the distance from one
vertex, and lines of equal distance. Right: sources that were added one by one, each the vertex farthest from those
before, and whose each place is. The mesh is the bunny of GEOM_DATA, or without it a knot. The number says how well
distances keep to what all distances do: none is shorter than the straight line or longer than the shortest way along
edges, and no detour from source to source is shorter than the way itself, there or back.
"""

import math
import os
import sys
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor
from tqdm import trange

from geom.io import load_mesh
from geom.meshes import HeatGeodesics, Mesh, edges, subdivide, vertex_normals
from geom.viz import Lines, View, render
from geom.viz.colors import PALETTE, colormap

LINES = 24  # across the greatest distance
SOURCES = 8  # as many as the palette has colours


def knot(around: int, along: int) -> Mesh:
    """A tube about the trefoil, which passes close to itself where it is far along it."""
    turn = torch.arange(along, dtype=torch.float64) * (2 * math.pi / along)
    middle = torch.stack([turn.sin() + 2 * (2 * turn).sin(), -(3 * turn).sin(), turn.cos() - 2 * (2 * turn).cos()], -1)
    ahead = middle.roll(-1, 0) - middle.roll(1, 0)
    side = torch.nn.functional.normalize(ahead.cross(torch.tensor([[0.0, 1, 0]]).to(ahead), dim=-1), dim=-1)
    other = torch.nn.functional.normalize(side.cross(ahead, dim=-1), dim=-1)
    tilt = (torch.arange(around, dtype=torch.float64) * (2 * math.pi / around))[:, None, None]
    vertices = middle + 0.45 * (tilt.cos() * side + tilt.sin() * other)
    a = torch.arange(around * along).reshape(around, along)
    b, c, d = a.roll(-1, 1), a.roll((-1, -1), (0, 1)), a.roll(-1, 0)
    faces = torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)])
    return Mesh(vertices.reshape(-1, 3), faces.reshape(-1, 3))


def bunny_or_knot(quick: bool) -> Mesh:
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    found = sorted(folder.glob("meshes/bunny*"))
    if not found:
        return knot(24, 240) if quick else knot(72, 720)
    return subdivide(load_mesh(found[0]), steps=1 if quick else 3)


def isolines(mesh: Mesh, values: Tensor, step: float) -> Lines:
    """Where `values` (V,), linear in each face, are multiples of `step`; lifted off the surface, so that they show."""
    lift = 1e-3 * (mesh.vertices.amax(0) - mesh.vertices.amin(0)).norm()
    x, ends = mesh.vertices + lift * vertex_normals(mesh.vertices, mesh.faces), []
    here, there = mesh.faces, mesh.faces.roll(-1, 1)  # the three sides of each face
    for k in range(1, math.ceil(float(values.max()) / step)):
        cut = (values[here] > k * step) != (values[there] > k * step)  # two sides of a face, or none
        a, b = here[cut], there[cut]
        share = ((k * step - values[a]) / (values[b] - values[a]))[:, None]
        ends.append(x[a] + share * (x[b] - x[a]))
    places = torch.cat(ends)
    return Lines(places, torch.arange(len(places)).reshape(-1, 2), torch.zeros(len(places), 3))


def main(quick: bool = False, out: Path = Path("out/examples/geodesics_on_a_mesh.png")) -> float:
    """Solve for one source and for several, draw both, and check the distances.

    Args:
        quick: A coarser mesh and a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: by how much the worst distance breaks a rule, as a share of the greatest distance.
    """
    mesh = bunny_or_knot(quick)
    x, solver = mesh.vertices.double(), HeatGeodesics(mesh)
    sources = [int(x[:, 1].argmax())]  # the top
    each = [solver.distance(torch.tensor(sources))]
    for _ in trange(1, SOURCES, leave=False, disable=not sys.stderr.isatty()):
        sources.append(int(torch.stack(each).amin(0).argmax()))
        each.append(solver.distance(torch.tensor(sources[-1:])))
    found = torch.stack(each).double()
    nearest, owner = found.min(0)

    start, stop = edges(mesh.faces).unbind(-1)
    graph = coo_array(((x[start] - x[stop]).norm(dim=-1).numpy(), (start.numpy(), stop.numpy())), (len(x), len(x)))
    along = torch.from_numpy(dijkstra(graph, directed=False, indices=sources))
    straight = (x - x[sources][:, None]).norm(dim=-1)
    detour = torch.stack([(found + row).amin(-1) for row in found])
    greatest = float(found[0].max())
    breaches = ((found - along).max(), (straight - found).max(), (found[:, sources] - detour).max())
    breach = float(max(breaches)) / greatest
    print(f"{len(x)} vertices; the way along edges is {float(along.sum() / found.sum()) - 1:.1%} longer on average")
    print(f"distances break their rules by {breach:.2%} of the greatest at most")

    shades = torch.from_numpy(colormap(-found[0].numpy(), low=-greatest, high=0))
    colors = (0.35 + 0.65 * shades, 0.25 + 0.75 * torch.from_numpy(PALETTE)[owner])
    titles = ("distance from one vertex", f"distance from the nearest of {SOURCES}")
    view = View(size=(300, 270) if quick else (1000, 900), up=(0.0, 1.0, 0.0))
    figure = Figure(figsize=(12, 5.7), layout="constrained")
    for panel, paint, values, title in zip(figure.subplots(1, 2), colors, (found[0], nearest), titles, strict=True):
        painted = Mesh(mesh.vertices, mesh.faces, colors=paint)
        panel.imshow(render(painted, isolines(mesh, values, greatest / LINES), view=view))
        panel.set_title(title, fontsize=15)
        panel.axis("off")
    picture = out if out.suffix == ".png" else out / "geodesics_on_a_mesh.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 150)
    print(f"wrote {picture}")

    assert breach < 0.01, f"expected distances to keep their rules to 1 % of the greatest, got {breach:.2%}"
    return breach


if __name__ == "__main__":
    tyro.cli(main)
