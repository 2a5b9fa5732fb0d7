"""How hard does blood rub on this wall? `python examples/artery.py`.

On the wall of an artery, made at random, is a vector field like the shear of a stream. A geometric algebra transformer
finds it from the wall's points and normals and how far the inlet is, attending within patches along space-filling
curves in the vessel's own frame. The number is the relative error in L2, over vessels that it was not trained on.
"""

from importlib.resources import as_file, files
from itertools import accumulate
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from geom.clifford import AttentionPlan, GATrPlan
from geom.clifford.embedding import embed_plane, embed_point
from geom.clifford.serialized import SerializedGATr
from geom.lie import so3
from geom.meshes import Mesh, geodesic_distance, vertex_normals
from geom.nn.serialized_attention import principal_coordinates
from geom.points import serialize
from geom.train import load_checkpoint
from geom.viz import Lines, View, render
from geom.viz.colors import colormap

LENGTH, ORDERS, TITLES = 24.0, ("hilbert", "hilbert-transposed"), ("the field", "predicted", "the difference")
PATCH, PLAN = 256, GATrPlan(8, 32, 4, AttentionPlan(heads=4), reinsert_channels=(0,), reinsert_scalars=(1, 2))


def make_artery(seed: int, *, around: int = 24, along: int = 64) -> tuple[Mesh, Tensor]:
    """A tube of radius 0.5 to 1.5 about a random line, its inlet the first `around` vertices; and the field (V, 3).

    With the line's tangent t and curvature k, the tube's radius r and the way e out of it, the field is the part along
    the wall of r^-3 (1 - 1.5 r') ((1 - 2 r k.e) t + 0.6 r k): the 4 mu Q / (pi r^3) of Poiseuille's stream, for one Q,
    and, put on by hand, what narrowing and bending do to it. It is like a wall's shear, and it is not one.
    """
    draw = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    place = torch.linspace(0, 1, along, dtype=torch.float64)
    step, waves = LENGTH / (along - 1), torch.pi * (place[:, None] * torch.tensor([1, 2]) + 2 * draw[1:3])
    bend = 0.22 * (2 * draw[3:5] - 1) * waves.sin()
    turns = so3.exp(step * torch.stack([-bend[:, 1], bend[:, 0], 0 * place], -1))
    frame = torch.stack([*accumulate(turns[:-1], torch.matmul, initial=torch.eye(3, dtype=torch.float64))])
    tangent = frame[..., 2]  # after two normals that do not spin
    dent = ((place - 0.25 - 0.5 * draw[5]) * LENGTH / (1.2 + draw[6])) ** 2
    radius = (1.1 + 0.4 * draw[7]) * (1 - (0.05 + 0.15 * draw[8]) * place) * (1 - 0.4 * draw[9] * (-dent).exp())
    slope = torch.gradient(radius, spacing=(step,))[0]
    turn = torch.arange(around, dtype=torch.float64) * (2 * torch.pi / around)
    out = torch.stack([turn.cos(), turn.sin()], -1) @ frame[..., :2].mT  # (along, around, 3)
    curvature = (frame[..., :2] @ bend[..., None]).mT
    r, inward = radius[:, None, None], (out * curvature).sum(-1, keepdim=True)
    field = (1 - 1.5 * slope[:, None, None]) / r**3 * ((1 - 2 * r * inward) * tangent[:, None] + 0.6 * r * curvature)
    a = torch.arange(around * along).reshape(along, around)
    b, c, d = (x[:-1] for x in (a.roll(-1, 1), a.roll((-1, -1), (0, 1)), a.roll(-1, 0)))
    faces = torch.cat([torch.stack([a[:-1], b, c], -1), torch.stack([a[:-1], c, d], -1)])
    mesh = Mesh((step * (tangent.cumsum(0) - tangent)[:, None] + r * out).reshape(-1, 3), faces.reshape(-1, 3))
    field, normals = field.reshape(-1, 3), vertex_normals(mesh.vertices, mesh.faces)
    return mesh, field - (field * normals).sum(-1, keepdim=True) * normals


def describe(mesh: Mesh, around: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """What the network is given: points and tangent planes (V, 2, 16); distances, and their waves (V, 3); orders."""
    x, normals = mesh.vertices, vertex_normals(mesh.vertices, mesh.faces)
    distance = geodesic_distance(mesh, torch.arange(around))[:, None]
    orders = serialize(principal_coordinates(x), order=ORDERS).order
    scalars = torch.cat([distance / 8, distance.sin(), distance.cos()], 1).float()
    return torch.stack([embed_point(x), embed_plane(normals, x)], 1).float(), scalars, orders


def field_of(multivectors: Tensor, scalars: Tensor | None) -> Tensor:
    """The field (V, 3): a plane's normal, times the exponential of a scalar, for it is large where the tube is thin."""
    return multivectors[:, 0, 2:5] * (1 if scalars is None else scalars.exp())


def main(quick: bool = False, out: Path = Path("out/examples/artery.png")) -> float:
    """Predict the fields of some vessels, draw the first one's, and check how far off they are.

    Args:
        quick: Fewer vessels, and a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: the relative error in L2, the mean over the vessels.
    """
    network = SerializedGATr(2, 1, 3, 1, plan=PLAN, patch=PATCH)
    with as_file(files("geom.assets") / "clifford" / "artery.safetensors") as path:
        network.load_state_dict(load_checkpoint(path)["module"])

    def predict(mesh: Mesh) -> Tensor:
        points, scalars, orders = describe(mesh)
        with torch.no_grad():
            return field_of(*network(points, scalars, orders=orders)).double()

    vessels = [make_artery(k) for k in range(2 if quick else 8)]
    errors = [float((predict(mesh) - field).norm() / field.norm()) for mesh, field in vessels]
    (mesh, field), found, error = vessels[0], predict(vessels[0][0]), sum(errors) / len(errors)
    print(f"{len(errors)} vessels of {len(field)} vertices: {100 * error:.1f} % off, {100 * max(errors):.1f} % at most")
    turn = so3.exp(torch.tensor([1.0, 2, 3], dtype=torch.float64))
    change = predict(Mesh(mesh.vertices @ turn.mT, mesh.faces)) - found @ turn.mT
    print(f"the first, turned: {float(change.norm() / found.norm()):.0e} off what it was")
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    view, most = View(size=(260, 240) if quick else (800, 740)), float(field.norm(dim=-1).max())
    start = mesh.vertices + 0.04 * vertex_normals(mesh.vertices, mesh.faces)
    some = torch.arange(len(field)).reshape(-1, 24)[1::3, ::3].flatten()
    for panel, x, title in zip(figure.subplots(1, 3), (field, found, found - field), TITLES, strict=True):
        paint = 0.3 + 0.7 * torch.from_numpy(colormap(x.norm(dim=-1).numpy(), low=0, high=most))
        ends = torch.cat([start[some], (start + 0.9 * x)[some]])
        arrows = Lines(ends, torch.arange(len(ends)).reshape(2, -1).mT, torch.zeros(len(ends), 3))
        panel.imshow(render(Mesh(mesh.vertices, mesh.faces, colors=paint), arrows, view=view))
        panel.set(xlabel=title, xticks=(), yticks=(), frame_on=False)
    picture = out if out.suffix == ".png" else out / "artery.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 150)
    print(f"wrote {picture}")
    assert error <= 0.16, f"expected an error of at most 0.16, got {error:.3f}"
    return error


if __name__ == "__main__":
    tyro.cli(main)
