"""Heat weights: the closed form along a tube, what bones see, and odd surfaces."""

import math

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.meshes import Mesh
from geom.skinning.diffusion import heat_weights
from geom.skinning.segments import cage_conditions, handle_conditions, nearest_on_segments

f64 = torch.float64


def tube(around: int, along: int, *, length: float = 1.0, radius: float = 0.1, closed: bool = True) -> Mesh:
    """A tube along x."""
    turn = torch.arange(around, dtype=f64) * (2 * math.pi / around)
    ring = radius * torch.stack([0 * turn, turn.cos(), turn.sin()], -1)
    steps = torch.linspace(0, length, along + 1, dtype=f64)
    x = ring + torch.stack([steps, 0 * steps, 0 * steps], -1)[:, None]
    a = torch.arange(around * (along + 1)).reshape(along + 1, around)
    b = a.roll(-1, 1)
    faces = [torch.stack([a[:-1], a[1:], b[1:]], -1), torch.stack([a[:-1], b[1:], b[:-1]], -1)]
    vertices, faces = x.reshape(-1, 3), torch.cat([f.reshape(-1, 3) for f in faces]).flip(1)
    if not closed:
        return Mesh(vertices, faces)
    ends = torch.tensor([[0.0, 0, 0], [length, 0, 0]], dtype=f64)
    low, high = len(vertices), len(vertices) + 1
    caps = [torch.stack([torch.full_like(a[0], low), a[0], b[0]], -1)]
    caps.append(torch.stack([torch.full_like(a[0], high), b[-1], a[-1]], -1))
    return Mesh(torch.cat([vertices, ends]), torch.cat([faces, *(cap.flip(1) for cap in caps)]))


def chain(*x: float, y: float = 0.0) -> Tensor:
    places = torch.tensor([[a, y, 0] for a in x], dtype=f64)
    return torch.stack([places[:-1], places[1:]], 1)


@pytest.mark.parametrize("strength", [1.0, 0.22])
def test_exponential_along_a_tube(strength: float) -> None:
    r, a = 0.1, 10
    half = a * r / strength**0.5
    errors = []
    for along in (60, 120):
        mesh = tube(16, along, length=2 * half, radius=r, closed=False)
        w = heat_weights(mesh, chain(0, half, 2 * half), strength=strength)[:, 1]
        s = (mesh.vertices[:, 0] - half) * strength**0.5 / r  # r^2 w'' = strength (w - p)
        exact = torch.where(s < 0, (s + a).cosh(), 2 * math.cosh(a) - (a - s).cosh()) / (2 * math.cosh(a))
        errors.append(float((w - exact).abs()[s.abs() < a / 2].max()))  # the ends are open, and see farther
    assert errors[1] < 1e-3 and errors[1] < errors[0] / 3.5  # of second order at least


def test_rows_sum_to_one_in_both_dtypes(dtype: torch.dtype) -> None:
    mesh = tube(12, 20).to(dtype)
    w = heat_weights(mesh, chain(0, 0.4, 0.7, 1).to(dtype))
    assert w.dtype == dtype and w.shape == (len(mesh.vertices), 3)
    assert float(w.min()) >= 0 and (w.sum(1) - 1).abs().max() < 4 * torch.finfo(dtype).eps
    assert bool((w[:, 0].reshape(-1)[: 12 * 21].reshape(21, 12).diff(dim=0) < 1e-6).all())  # falls along the tube
    assert (w.double() - heat_weights(tube(12, 20), chain(0, 0.4, 0.7, 1))).abs().max() < 1e-5


def test_a_bone_behind_the_surface_is_not_seen() -> None:
    left = tube(16, 10)
    right = Mesh(left.vertices + torch.tensor([0, 0.25, 0], dtype=f64), left.faces)
    both = Mesh(torch.cat([left.vertices, right.vertices]), torch.cat([left.faces, right.faces + len(left.vertices)]))
    bones = torch.cat([chain(0.1, 0.9, y=-0.08), chain(0.1, 0.9, y=0.17)])
    nearer = nearest_on_segments(left.vertices, bones)[0].argmin(1)
    assert bool((nearer == 1).any())  # the other tube's bone is nearer, but outside
    w = heat_weights(both, bones)
    n = len(left.vertices)
    assert (w[:n, 0] - 1).abs().max() < 1e-12 and (w[n:, 1] - 1).abs().max() < 1e-12


def test_odd_surfaces() -> None:
    mesh = tube(8, 4)
    lone = Mesh(torch.cat([mesh.vertices, mesh.vertices[:1] + 5]), mesh.faces)  # a vertex without a face
    w = heat_weights(lone, chain(0, 0.5, 1))
    assert bool(w.isfinite().all()) and w[-1].tolist() == [0, 1]
    on = heat_weights(mesh, torch.stack([mesh.vertices[:2], mesh.vertices[2:4]]))  # bones in the surface
    assert bool(on.isfinite().all()) and (on.sum(1) - 1).abs().max() < 1e-12
    point = heat_weights(mesh, torch.zeros(1, 2, 3, dtype=f64))
    assert (point - 1).abs().max() < 1e-12
    flat = Mesh(0 * mesh.vertices, mesh.faces)
    assert bool(heat_weights(flat, chain(0, 0.5, 1)).isfinite().all())
    inside_out = Mesh(mesh.vertices, mesh.faces.flip(1))
    assert bool(heat_weights(inside_out, chain(0, 0.5, 1)).isfinite().all())


def test_handles_and_cages(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0], [2, 2, 0], [1, 1, 0]], dtype=dtype)
    corners = x[[0, 2, 4]]
    fixed, values = handle_conditions(x, torch.stack([corners[:2], corners[1:], x[[5, 5]]], 0))
    assert fixed.tolist() == [0, 1, 2, 3, 4, 5]
    assert values.tolist() == [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    fixed, values = cage_conditions(x, corners, torch.tensor([[0, 1], [1, 2]]))
    assert fixed.tolist() == [0, 1, 2, 3, 4]
    assert values.tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    wide = handle_conditions(x, x[[5, 5]][None], tolerance=0.4)
    assert wide.fixed.tolist() == [1, 3, 5]  # a metre away, of an extent of 2.83


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    mesh = tube(6, 2)
    for call in (
        lambda: heat_weights(mesh, torch.zeros(0, 2, 3, dtype=f64)),
        lambda: heat_weights(mesh, torch.zeros(2, 3, dtype=f64)),
        lambda: heat_weights(mesh, torch.full((1, 2, 3), torch.nan, dtype=f64)),
        lambda: heat_weights(mesh, torch.zeros(1, 2, 3)),
        lambda: heat_weights(mesh, chain(0, 1), strength=0.0),
        lambda: heat_weights(Mesh(mesh.vertices, mesh.faces[:0]), chain(0, 1)),
        lambda: handle_conditions(mesh.vertices, chain(0, 1) + 7),
        lambda: cage_conditions(mesh.vertices, mesh.vertices[:2], torch.tensor([[0, 2]])),
    ):
        with pytest.raises(ShapeError):
            call()
