"""pytorch3d's mesh operators and losses: every golden number, batches, degenerate meshes, derivatives."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.compat.pytorch3d import ops
from geom.compat.pytorch3d.loss import mesh_edge_loss, mesh_laplacian_smoothing, mesh_normal_consistency
from geom.errors import ShapeError
from geom.meshes import Mesh, edges, face_areas, face_normals, sample_surface, vertex_normals
from geom.testing import assert_gradients

LOSSES = {
    "uniform": mesh_laplacian_smoothing,
    "cot": lambda m: mesh_laplacian_smoothing(m, "cot"),
    "cotcurv": lambda m: mesh_laplacian_smoothing(m, method="cotcurv"),
    "edge": lambda m: mesh_edge_loss(m, target_length=0.1),
    "normal": mesh_normal_consistency,
}


@dataclass
class Meshes:
    """The getters of pytorch3d's class that are asked for."""

    verts: list[Tensor]
    faces: list[Tensor]

    def verts_list(self) -> list[Tensor]:
        return self.verts

    def faces_list(self) -> list[Tensor]:
        return self.faces


def octahedron(dtype: torch.dtype = torch.float64) -> Mesh:
    places = torch.tensor(
        [[1, 0, 0], [0, 1.1, 0.1], [-1, 0.2, 0], [0.1, -1, 0], [0, 0.1, 1.2], [0.2, 0, -1]], dtype=dtype
    )
    around = [0, 1, 2, 3]
    faces = [f for k in range(4) for a, b in [(around[k], around[(k + 1) % 4])] for f in ([a, b, 4], [b, a, 5])]
    return Mesh(places, torch.tensor(faces))


def test_goldens(data: Path) -> None:
    path = data / "pytorch3d" / "p3d_mesh_ellipsoid.npz"
    if not path.is_file():
        pytest.skip("no p3d_mesh_ellipsoid.npz in the data folder")
    golden = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    verts, faces = golden["verts"], golden["faces"]
    mesh = Meshes([verts], [faces])
    matrix, inverse = ops.cot_laplacian(verts, faces)
    made = {
        "cot_L_indices": matrix.indices(),
        "cot_L_values": matrix.values(),
        "inv_areas": inverse,
        "face_normals": face_normals(verts, faces),
        "vert_normals": vertex_normals(verts, faces),
        "face_areas": face_areas(verts, faces),
        "edges": edges(faces),
        "laplacian_packed": ops.laplacian(verts, edges(faces)).to_dense(),
        "lap_uniform": LOSSES["uniform"](mesh),
        "lap_cot": LOSSES["cot"](mesh),
        "lap_cotcurv": LOSSES["cotcurv"](mesh),
        "edge_loss": LOSSES["edge"](mesh),
        "normal_consistency": LOSSES["normal"](mesh),
    }
    assert made.keys() | {"verts", "faces"} == golden.keys()
    for name, found in made.items():
        assert found.shape == golden[name].shape and found.dtype == golden[name].dtype, name
        if found.dtype == torch.int64:
            assert torch.equal(found, golden[name]), name
        else:
            assert (found - golden[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_is_the_mean_of_its_meshes(name: str, dtype: torch.dtype) -> None:
    a, b = octahedron(dtype), octahedron(dtype)
    b = Mesh(2 * b.vertices, b.faces[:6])
    loss = LOSSES[name]
    found = loss([a, b])
    assert found.dtype == dtype and found.shape == ()
    assert float(found) == pytest.approx(float(loss(a) + loss([b])) / 2, rel=1e-6)
    same = loss(Meshes([a.vertices, b.vertices], [a.faces, b.faces]))
    assert torch.equal(found, same)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_nothing_are_0(name: str) -> None:
    x = torch.zeros(2, 3, requires_grad=True)  # vertices without faces count with their distance from the origin
    none = Mesh(x, torch.zeros(0, 3, dtype=torch.int64))
    found = LOSSES[name](none)
    assert float(found.detach()) == 0
    (gradient,) = torch.autograd.grad(found, x)
    assert (gradient == 0).all()
    none = Mesh(x.detach(), none.faces)
    assert float(LOSSES[name](Meshes([], []))) == 0
    half = LOSSES[name]([none, Mesh(octahedron().vertices.float(), octahedron().faces)])
    assert float(half) == pytest.approx(float(LOSSES[name](octahedron())) / 2, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses(name: str) -> None:
    mesh = octahedron()
    # Laplacians' weights are constants, as in pytorch3d: finite differences would see them move
    order = 0 if name in ("cot", "cotcurv") else 2
    assert_gradients(
        lambda v: LOSSES[name](Meshes([v], [mesh.faces])), mesh.vertices, order=order, forward=False, vmap=False
    )
    # coincident vertices, faces without area, a flat mesh
    places = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]], dtype=torch.float64)
    flat = torch.tensor([[0, 1, 2], [1, 3, 2], [1, 4, 3], [2, 3, 4]])
    assert_gradients(lambda v: LOSSES[name](Meshes([v], [flat])), places, order=0, forward=False, vmap=False)


def test_cotangents_are_constants_in_the_loss() -> None:
    mesh = octahedron()
    x = mesh.vertices.clone().requires_grad_()
    matrix, _ = ops.cot_laplacian(mesh.vertices, mesh.faces)
    total = matrix.to_dense().sum(1, keepdim=True)
    want = (matrix.to_dense() @ x / total - x).norm(dim=1).mean()
    (a,) = torch.autograd.grad(want, x)
    (b,) = torch.autograd.grad(LOSSES["cot"](Mesh(x, mesh.faces)), x)
    assert (a - b).abs().max() < 1e-12


def test_losses_of_known_shapes() -> None:
    faces = torch.tensor([[0, 1, 2], [1, 3, 2]])
    square = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=torch.float64)
    assert float(mesh_normal_consistency(Mesh(square, faces))) == pytest.approx(0, abs=1e-15)
    bent = torch.cat([square[:3], torch.tensor([[0.5, 0.5, 0.5**0.5]], dtype=torch.float64)])
    assert float(mesh_normal_consistency(Mesh(bent, faces))) == pytest.approx(1)
    turned = torch.tensor([[0, 1, 2], [2, 3, 1]])  # one face inside out: the edge decides, not the order of corners
    assert float(mesh_normal_consistency(Mesh(square, turned))) == pytest.approx(0, abs=1e-15)
    assert float(mesh_normal_consistency(Mesh(square, faces[:1]))) == 0
    assert float(mesh_edge_loss(Mesh(square, faces))) == pytest.approx((4 + 2) / 5)


def test_laplacian_without_neighbours() -> None:
    found = ops.laplacian(torch.zeros(3, 3), torch.tensor([[0, 2]])).to_dense()
    assert found.tolist() == [[-1, 0, 1], [0, -1, 0], [1, 0, -1]]
    matrix, inverse = ops.cot_laplacian(torch.eye(4, 3), torch.tensor([[0, 1, 2]]))
    assert float(inverse[3]) == 0 and matrix.to_dense()[3].tolist() == [0, 0, 0, 0]
    flat, wide = (ops.cot_laplacian(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), eps=e)[1] for e in (1e-12, 1e-4))
    assert flat[:, 0].tolist() == pytest.approx([1e6] * 3) and wide[:, 0].tolist() == pytest.approx([1e2] * 3)


def test_samples() -> None:
    a = octahedron(torch.float32)
    none = Mesh(torch.ones(2, 3), torch.zeros(0, 3, dtype=torch.int64))
    torch.manual_seed(3)
    points, normals = ops.sample_points_from_meshes([a, none, a], 500, return_normals=True)
    assert points.shape == normals.shape == (3, 500, 3)
    assert (points[1] == 0).all() and (normals[1] == 0).all() and not torch.equal(points[0], points[2])
    torch.manual_seed(3)
    only = ops.sample_points_from_meshes(Meshes([a.vertices], [a.faces]), num_samples=500)
    assert torch.equal(only[0], points[0])
    torch.manual_seed(3)
    assert torch.equal(sample_surface(a, 500).points, points[0])
    assert torch.as_tensor(ops.sample_points_from_meshes(a)).shape == (1, 10000, 3)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    mesh = octahedron()
    for wrong in (mesh.vertices, [mesh.vertices], "mesh"):
        with pytest.raises(ShapeError, match="meshes: expected pytorch3d's Meshes, a Mesh or a list of Mesh"):
            mesh_edge_loss(wrong)
    with pytest.raises(ShapeError, match="method: expected one of 'uniform', 'cot', 'cotcurv'"):
        mesh_laplacian_smoothing(mesh, "mean")
    with pytest.raises(ShapeError, match="at least one face"):
        ops.sample_points_from_meshes(Mesh(torch.ones(2, 3), torch.zeros(0, 3, dtype=torch.int64)))
    with pytest.raises(ShapeError, match="return_textures"):
        ops.sample_points_from_meshes(mesh, return_textures=True)
    with pytest.raises(ShapeError, match="faces"):
        ops.cot_laplacian(mesh.vertices, mesh.faces.int())
