"""Weights carried to the same mesh, finer and coarser ones, over holes, to cloth that is inside out."""

import math

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.meshes import Mesh, decimate, subdivide
from geom.skinning.transfer import transfer_weights

f64 = torch.float64


def grid(n: int = 12, dtype: torch.dtype = f64) -> Mesh:
    x, y = torch.meshgrid(torch.arange(n + 1), torch.arange(n + 1), indexing="ij")
    vertices = torch.stack([x, y, 0 * x], -1).reshape(-1, 3).to(dtype) / n
    a = (torch.arange(n)[:, None] * (n + 1) + torch.arange(n)).flatten()
    b = a + n + 1
    return Mesh(vertices, torch.cat([torch.stack([a, b, b + 1], 1), torch.stack([a, b + 1, a + 1], 1)]))


def ball(steps: int = 3) -> Mesh:
    corners = torch.cat([torch.eye(3, dtype=f64), -torch.eye(3, dtype=f64)])
    faces = torch.tensor([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    mesh = subdivide(Mesh(corners, faces), steps=steps, scheme="midpoint")
    return Mesh(torch.nn.functional.normalize(mesh.vertices, dim=1), mesh.faces)


def linear(x: Tensor) -> Tensor:
    """Weights linear in place."""
    a = 0.2 + 0.3 * x[:, 0] + 0.2 * x[:, 1]
    return torch.stack([a, 1 - a], 1)


def smooth(x: Tensor) -> Tensor:
    return torch.softmax(torch.cat([x, -x], 1) * 1.5, 1)


def test_onto_itself(dtype: torch.dtype) -> None:
    mesh = ball(2).to(dtype)
    w = smooth(mesh.vertices)
    found, matched = transfer_weights(mesh, w, mesh)
    assert bool(matched.all()) and found.dtype == dtype
    assert (found - w).abs().max() < (1e-13 if dtype == f64 else 1e-6)
    assert (found.sum(1) - 1).abs().max() < 4 * torch.finfo(dtype).eps


def test_to_a_finer_mesh_is_linear_on_faces_and_to_a_coarser_close() -> None:
    mesh = ball(2)
    fine = subdivide(mesh, scheme="midpoint")
    found, matched = transfer_weights(mesh, smooth(mesh.vertices), fine)
    assert bool(matched.all())
    again, _ = transfer_weights(fine, found, mesh)
    assert (again - smooth(mesh.vertices)).abs().max() < 1e-12
    coarse = decimate(ball(4), 300)
    found, matched = transfer_weights(ball(4), smooth(ball(4).vertices), coarse)
    assert bool(matched.all()) and (found - smooth(coarse.vertices)).abs().max() < 0.02


def test_a_hole_is_filled_in_linearly() -> None:
    target = grid()
    centre = (target.vertices[target.faces].mean(1)[:, :2] - 0.5).abs().amax(1) < 0.25
    source = Mesh(target.vertices, target.faces[~centre])
    w = linear(target.vertices)
    torn = w.clone()
    inside = (target.vertices[:, :2] - 0.5).abs().amax(1) < 0.2
    torn[inside] = torch.tensor([1.0, 0], dtype=f64)  # what vertices without a face say does not count
    found, matched = transfer_weights(source, torn, target, max_distance=0.01, smoothing=0)
    assert 10 < int((~matched).sum()) < len(matched) / 4
    assert (found - w).abs().max() < 1e-10
    smoothed, _ = transfer_weights(source, torn, target, max_distance=0.01)
    assert (smoothed - w).abs().max() < 0.02


def test_smoothing_moves_what_was_filled_in_and_little_else() -> None:
    target = grid()
    centre = (target.vertices[target.faces].mean(1)[:, :2] - 0.5).abs().amax(1) < 0.25
    source = Mesh(target.vertices, target.faces[~centre])
    step = (target.vertices[:, :1] < 0.5).double()
    w = torch.cat([step, 1 - step], 1)
    rough, matched = transfer_weights(source, w, target, max_distance=0.01, smoothing=0)
    even, _ = transfer_weights(source, w, target, max_distance=0.01, smoothing=10)
    far = (target.vertices[:, :2] - 0.5).abs().amax(1) > 0.3
    assert torch.equal(rough[far], even[far]) and (rough - even)[~matched].abs().max() > 0.01
    assert float(rough.min()) >= 0 and (even.sum(1) - 1).abs().max() < 1e-14


def test_normals_part_what_is_close() -> None:
    """The two sides of a thin plate lie within reach of each other."""
    top = grid()
    lower = Mesh(top.vertices - torch.tensor([0, 0, 0.01], dtype=f64), top.faces.flip(1))
    source = Mesh(torch.cat([top.vertices, lower.vertices]), torch.cat([top.faces, lower.faces + len(top.vertices)]))
    w = torch.cat([torch.tensor([[1.0, 0]], dtype=f64).expand(len(top.vertices), 2), linear(lower.vertices)])
    raised = Mesh(top.vertices - torch.tensor([0, 0, 0.02], dtype=f64), top.faces)
    _, matched = transfer_weights(source, w, raised)
    assert not bool(matched.any())  # nearest is the lower side, which looks down
    found, matched = transfer_weights(source, w, raised, flip_normals=True)
    assert bool(matched.all()) and (found - linear(raised.vertices)).abs().max() < 1e-12
    turned, matched = transfer_weights(source, w, raised, max_angle=math.pi)
    assert bool(matched.all()) and (turned - found).abs().max() < 1e-12


def test_parts_without_a_match_keep_the_nearest() -> None:
    mesh = ball(2)
    far = Mesh(torch.cat([mesh.vertices, mesh.vertices + 9]), torch.cat([mesh.faces, mesh.faces + len(mesh.vertices)]))
    found, matched = transfer_weights(mesh, smooth(mesh.vertices), far)
    n = len(mesh.vertices)
    assert bool(matched[:n].all()) and not bool(matched[n:].any())
    assert bool((found[n:, :3].sum(1) > 0.75).all())  # of the side that looks there
    empty = transfer_weights(mesh, smooth(mesh.vertices), Mesh(mesh.vertices[:0], mesh.faces[:0]))
    assert empty.weights.shape == (0, 6)
    points = transfer_weights(mesh, smooth(mesh.vertices), Mesh(mesh.vertices, mesh.faces[:0]))  # no normals: no match
    assert bool(points.weights.isfinite().all()) and not bool(points.matched.any())


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    mesh = ball(1)
    w = smooth(mesh.vertices)
    for change in (
        {"weights": w[:-1]},
        {"weights": -w},
        {"weights": 0 * w},
        {"weights": w.float()},
        {"target": mesh.to(torch.float32)},
        {"source": Mesh(mesh.vertices, mesh.faces[:0])},
        {"max_distance": 0.0},
        {"max_angle": math.nan},
    ):
        with pytest.raises(ShapeError):
            transfer_weights(**{"source": mesh, "weights": w, "target": mesh, **change})
