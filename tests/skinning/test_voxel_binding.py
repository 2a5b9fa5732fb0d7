"""Voxel weights: ways through the inside, broken meshes, parts without a bone."""

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.meshes import Mesh, subdivide
from geom.skinning.voxel_binding import voxel_weights

f64 = torch.float64


def box(low: list[float], high: list[float], steps: int = 3) -> Mesh:
    corners = torch.cartesian_prod(*[torch.tensor(pair, dtype=f64) for pair in zip(low, high, strict=True)])
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = torch.tensor([[s[0], s[k], s[k + 1]] for s in sides for k in (1, 2)])
    return subdivide(Mesh(corners, faces), steps=steps, scheme="midpoint")


def join(*meshes: Mesh) -> Mesh:
    starts = torch.tensor([0, *(len(m.vertices) for m in meshes)]).cumsum(0).tolist()
    faces = [m.faces + at for m, at in zip(meshes, starts, strict=False)]
    return Mesh(torch.cat([m.vertices for m in meshes]), torch.cat(faces))


def fork() -> tuple[Mesh, Tensor]:
    """Two tines close together on a handle, three boxes that overlap; a bone in each tine."""
    tines = [box([0.0, 0, 0], [0.2, 1, 0.2]), box([0.3, 0, 0], [0.5, 1, 0.2])]
    bones = torch.tensor([[[0.1, 0.9, 0.1], [0.1, 0.5, 0.1]], [[0.4, 0.9, 0.1], [0.4, 0.5, 0.1]]], dtype=f64)
    return join(*tines, box([0.0, -0.2, 0], [0.5, 0.1, 0.2])), bones


def test_the_way_leads_through_the_inside() -> None:
    mesh, bones = fork()
    w = voxel_weights(mesh, bones, resolution=48)
    assert float(w.min()) > 0 and (w.sum(1) - 1).abs().max() < 1e-14
    tip = (mesh.vertices[:, 1] == 1) & (mesh.vertices[:, 0] <= 0.2)
    # 0.14 to the own bone, 0.3 straight to the other, but 1.7 along the tines
    assert float(w[tip, 1].max()) < 0.01
    assert (w[tip, 1].max()) > 0
    middle = (mesh.vertices[:, 1] == -0.2) & ((mesh.vertices[:, 0] - 0.25).abs() < 0.01)
    assert bool(middle.any()) and (w[middle] - 0.5).abs().max() < 0.1


def test_weights_are_the_stated_function_of_distance() -> None:
    mesh = box([0.0, 0, 0], [4, 1, 1])
    bones = torch.tensor([[[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], [[3.5, 0.5, 0.5], [3.5, 0.5, 0.5]]], dtype=f64)
    straight = (mesh.vertices[:, None] - bones[:, 0]).norm(dim=-1)
    unit = straight.min(1).values.mean()
    for falloff in (0.0, 0.5, 1.0):
        d = straight / unit
        exact = 1 / ((1 - falloff) * d + falloff * d * d).square()
        exact = exact / exact.sum(1, keepdim=True)
        w = voxel_weights(mesh, bones, resolution=64, falloff=falloff)
        assert (w - exact).abs().max() < 0.08  # ways between voxels turn by 45 degrees at least
        assert (w - exact).abs().mean() < 0.02


def test_bones_of_one_joint() -> None:
    mesh, bones = fork()
    middle = bones[:1].mean(1, keepdim=True)
    halves = torch.cat([bones[:1, :1], middle, middle, bones[:1, 1:]], 1).reshape(2, 2, 3)
    whole = voxel_weights(mesh, bones, resolution=32)
    owner = torch.tensor([0, 0, 1])
    assert torch.equal(voxel_weights(mesh, torch.cat([halves, bones[1:]]), owner=owner, resolution=32), whole)
    skipped = voxel_weights(mesh, bones, owner=torch.tensor([0, 2]), resolution=32)
    assert torch.equal(skipped[:, [0, 2]], whole) and bool((skipped[:, 1] == 0).all())


def test_broken_meshes_keep_their_weights(dtype: torch.dtype) -> None:
    mesh, bones = fork()
    whole = voxel_weights(mesh, bones, resolution=32)
    draw = torch.Generator().manual_seed(0)
    kept = torch.rand(len(mesh.faces), generator=draw) > 0.1
    faces = torch.cat([mesh.faces[kept], mesh.faces[:5]])  # holes, and faces that stand twice
    soup = Mesh(mesh.vertices[faces].reshape(-1, 3), torch.arange(3 * len(faces)).reshape(-1, 3)).to(dtype)
    torn = voxel_weights(soup, bones.to(dtype), resolution=32)
    assert torn.dtype == dtype
    assert (torn.double() - whole[faces].reshape(-1, 2)).abs().mean() < 0.02


def test_parts_and_bones_apart() -> None:
    mesh, bones = fork()
    crumb = box([0.35, 1.3, 0.0], [0.4, 1.35, 0.05], 1)
    w = voxel_weights(join(mesh, crumb), bones, resolution=32)
    assert w[-len(crumb.vertices) :].tolist() == [[0, 1]] * len(crumb.vertices)
    outside = torch.cat([bones, bones[:1] + torch.tensor([-0.5, 0, 0], dtype=f64)])
    w = voxel_weights(mesh, outside, resolution=32)
    assert bool(w.isfinite().all()) and float(w[:, 2].max()) > 0.1  # it starts at the nearest voxel


def test_more_voxels_change_little() -> None:
    mesh, bones = fork()
    coarse, fine = (voxel_weights(mesh, bones, resolution=n) for n in (24, 64))
    assert 1e-6 < (coarse - fine).abs().mean() < 0.02


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    mesh, bones = fork()
    for change in (
        {"resolution": 1},
        {"resolution": 32.0},
        {"falloff": 1.5},
        {"mesh": Mesh(mesh.vertices, mesh.faces[:0])},
        {"mesh": Mesh(0 * mesh.vertices, mesh.faces)},
        {"segments": bones[:0]},
        {"owner": torch.tensor([0])},
        {"owner": torch.tensor([0, -1])},
    ):
        with pytest.raises(ShapeError):
            voxel_weights(**{"mesh": mesh, "segments": bones, **change})
