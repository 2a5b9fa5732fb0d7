"""The hybrid of DreamMesh4D: its two ends, its strain, its scores, and the weights of its deformation graph."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.io import load_mesh
from geom.lie import so3
from geom.meshes import HeatGeodesics, Mesh
from geom.skinning.dual_quaternion import dqs
from geom.skinning.hybrid import graph_weights, hybrid, hybrid_blend
from geom.skinning.linear import lbs
from geom.testing import assert_gradients

f64 = torch.float64


def drawn(dtype: torch.dtype = f64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    vertices = torch.randn(3, 3, generator=generator, dtype=dtype)
    weights = torch.tensor([[0.6, 0.4], [0.1, 0.9], [1.0, 0.0]], dtype=dtype)
    turn = so3.exp(torch.randn(2, 3, 3, generator=generator, dtype=dtype))
    bones = torch.cat([turn, torch.randn(2, 3, 3, 1, generator=generator, dtype=dtype)], -1)
    return vertices, weights, bones, torch.tensor([[0, 2], [1, 0], [2, 1]])


@pytest.mark.parametrize("backend", ["warp", "torch"])
def test_both_ends_are_exact(backend: str, dtype: torch.dtype) -> None:
    vertices, weights, bones, indices = drawn(dtype)
    more = {"indices": indices, "backend": backend}
    straight, round_ = lbs(vertices, weights, bones, **more), dqs(vertices, weights, bones, **more)
    assert torch.equal(hybrid(vertices, weights, bones, blend=1.0, **more), straight)
    assert torch.equal(hybrid(vertices, weights, bones, blend=0.0, **more), round_)
    eta = torch.tensor([1.0, 0.0, 0.25], dtype=dtype)
    mixed = hybrid(vertices, weights, bones, blend=eta, **more)
    assert torch.equal(mixed[:, 0], straight[:, 0]) and torch.equal(mixed[:, 1], round_[:, 1])
    assert torch.equal(mixed[:, 2], 0.25 * straight[:, 2] + 0.75 * round_[:, 2])
    assert hybrid(vertices, weights, bones, blend=eta.repeat(4, 1, 1), **more).shape == (4, 2, 3, 3)


def test_strain_stretches_what_blends_linearly() -> None:
    vertices, weights, bones, indices = drawn()
    strain = torch.tensor([0.1, -0.2, 0.3, 0.4, 0.5, -0.6], dtype=f64).repeat(3, 1)
    stretch = torch.tensor([[1.1, 0.4, 0.5], [0.4, 0.8, -0.6], [0.5, -0.6, 1.3]], dtype=f64)
    stretched = torch.cat([bones[..., :3] @ stretch, bones[..., 3:]], -1)
    found = hybrid(vertices, weights, bones, blend=1.0, strain=strain, indices=indices)
    assert (found - lbs(vertices, weights, stretched, indices=indices)).abs().max() < 1e-14
    round_ = hybrid(vertices, weights, bones, blend=0.0, strain=strain, indices=indices)
    assert torch.equal(round_, dqs(vertices, weights, bones, indices=indices))


def test_scores_of_bones() -> None:
    scores = torch.tensor([[0.2, 0.4, 1.0], [0.0, 0.0, 0.0]])
    weights, indices = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0, 1], [2, 0]])
    assert torch.allclose(hybrid_blend(weights, scores, indices=indices), torch.tensor([[0.7, 1.0], [0.4, 0.4]]))
    assert torch.allclose(hybrid_blend(weights, scores, indices=indices, floor=0.0)[1], torch.zeros(2))
    dense = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(hybrid_blend(dense, scores), hybrid_blend(weights, scores, indices=indices))


def test_derivatives() -> None:
    vertices, weights, bones, indices = drawn()
    vertices, weights, indices, bones = vertices[:2], weights[:2], indices[:2], bones[0]
    scores, strain = torch.tensor([0.1, 0.3, 0.2], dtype=f64), 0.1 * torch.ones(3, 6, dtype=f64)

    def both(v: Tensor, w: Tensor, b: Tensor, o: Tensor, e: Tensor) -> Tensor:
        return hybrid(v, w, b, blend=hybrid_blend(w, o, indices=indices), strain=e, indices=indices)

    assert_gradients(both, vertices, weights, bones, scores, strain)


def strip(heights: list[float], width: float = 1.0) -> Mesh:
    """A band of squares along a hairpin: up in the first column, and down beside it."""
    n = len(heights)
    x = torch.tensor([0.0] * n + [width] * n, dtype=f64)
    z = torch.tensor(heights + heights[::-1], dtype=f64)
    places = torch.stack([x, torch.zeros_like(x), z], -1)
    vertices = torch.cat([places, places + torch.tensor([0.0, 1, 0], dtype=f64)])
    a = torch.arange(2 * n - 1)
    faces = torch.cat([torch.stack([a, a + 1, a + 2 * n], -1), torch.stack([a + 1, a + 2 * n + 1, a + 2 * n], -1)])
    return Mesh(vertices, faces)


def test_neighbours_are_along_the_surface() -> None:
    mesh = strip([0.0, 1, 2, 3, 4, 5], width=0.5)
    nodes = torch.tensor([0, 2, 5, 11])  # the last one stands beside the first
    indices, weights = graph_weights(mesh, nodes, neighbors=2)
    assert indices[0].tolist() == [0, 1]  # not 3, ten steps away
    near, far = 1.0, (1 - 2 / 5) ** 2  # the third neighbour, node 5, is 5 away
    want = torch.tensor([near, far], dtype=f64) / (near + far)
    assert (weights[0] - want).abs().max() < 1e-14
    assert (weights.sum(-1) - 1).abs().max() < 1e-15 and (weights >= 0).all()
    assert (weights[:, 0] >= weights[:, 1]).all() and weights.dtype == f64


def test_weights_on_a_real_surface(data: Path) -> None:
    mesh = load_mesh(sorted(data.glob("meshes/bunny*"))[0])
    nodes = torch.arange(0, len(mesh.vertices), len(mesh.vertices) // 60)
    indices, weights = graph_weights(mesh, nodes)
    along = HeatGeodesics(mesh).distance(nodes[:, None]).T
    nearest = along.sort(-1).values
    # the node of the least share may be any of the K + 1: its weight is 0 up to how straight and curved ways differ
    assert (along.gather(1, indices).amax(-1) <= nearest[:, 4]).all()
    assert indices.shape == (len(mesh.vertices), 4) and (weights.sum(-1) - 1).abs().max() < 1e-6
    assert weights[nodes, 0].eq(weights[nodes].amax(-1)).all() and (indices[nodes, 0] == torch.arange(len(nodes))).all()
    moved = lbs(mesh.vertices, weights, torch.eye(3, 4).repeat(len(nodes), 1, 1), indices=indices)
    assert (moved - mesh.vertices).abs().max() < 1e-6 * mesh.vertices.abs().max()


def test_parts_with_few_nodes_or_none() -> None:
    one, side = strip([0.0, 1, 2]), torch.tensor([0.0, 50, 0], dtype=f64)
    n = len(one.vertices)
    vertices = torch.cat([one.vertices, one.vertices + side, one.vertices + 2 * side])
    mesh = Mesh(vertices, torch.cat([one.faces, one.faces + n, one.faces + 2 * n]))
    nodes = torch.tensor([0, 1, 3, 5, n])  # four on the first part, one on the second, none on the third
    indices, weights = graph_weights(mesh, nodes, neighbors=3)
    assert (indices[:n] < 4).all()
    assert (indices[n : 2 * n, 0] == 4).all() and (weights[n : 2 * n, 0] == 1).all()
    assert weights.isfinite().all() and (weights.sum(-1) - 1).abs().max() < 1e-15
    assert (indices[2 * n :, 0] == 4).all()  # in space the nearest
    even = Mesh(torch.eye(3, dtype=f64), torch.tensor([[0, 1, 2]]))
    alike = torch.cat([even.vertices, even.vertices.mean(0, keepdim=True)])
    fan = Mesh(alike, torch.tensor([[0, 1, 3], [1, 2, 3], [2, 0, 3]]))
    assert (graph_weights(fan, torch.tensor([0, 1, 2]), neighbors=2)[1][3] - 0.5).abs().max() < 1e-7


@pytest.mark.usefixtures("unchecked")
def test_wrong_input_is_named() -> None:
    vertices, weights, bones, indices = drawn()
    with pytest.raises(ShapeError, match=r"blend: expected a number or a tensor \(\.\.\., 3\)"):
        hybrid(vertices, weights, bones, blend=torch.zeros(2, dtype=f64), indices=indices)
    with pytest.raises(ShapeError, match=r"strain: expected a tensor \(\.\.\., 3, 6\)"):
        hybrid(vertices, weights, bones, blend=0.5, strain=torch.zeros(3, 3, 3, dtype=f64), indices=indices)
    with pytest.raises(ShapeError, match="scores: expected a tensor"):
        hybrid_blend(weights, torch.zeros(3, dtype=f64))
    with pytest.raises(ShapeError, match=r"indices: expected indices in \[0, 2\)"):
        hybrid_blend(weights, torch.zeros(2, dtype=f64), indices=indices)
    mesh = strip([0.0, 1, 2])
    with pytest.raises(ShapeError, match="neighbors: expected an integer from 1 to 1"):
        graph_weights(mesh, torch.tensor([0, 1]), neighbors=2)
    with pytest.raises(ShapeError, match="nodes: expected indices in"):
        graph_weights(mesh, torch.tensor([0, 100]), neighbors=1)
