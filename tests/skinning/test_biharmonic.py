"""Bounded biharmonic weights: closed forms, the conditions of a minimum, libigl's hand, and wrong input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.errors import ConvergenceWarning, ShapeError
from geom.meshes import Mesh, cotangent_laplacian, tetrahedralize, vertex_areas
from geom.meshes.tetrahedra import volumes
from geom.skinning import biharmonic
from geom.skinning.biharmonic import biharmonic_weights
from geom.skinning.volume import tetrahedral_laplacian, voronoi_volumes

f64 = torch.float64


def grid(n: int, m: int, dtype: torch.dtype = f64) -> tuple[Tensor, Tensor]:
    """A strip of n x m squares of side 1 / n."""
    x, y = torch.meshgrid(torch.arange(n + 1), torch.arange(m + 1), indexing="ij")
    vertices = torch.stack([x, y, 0 * x], -1).reshape(-1, 3).to(dtype) / n
    a = (torch.arange(n)[:, None] * (m + 1) + torch.arange(m)).flatten()
    b = a + m + 1
    return vertices, torch.cat([torch.stack([a, b, b + 1], 1), torch.stack([a, b + 1, a + 1], 1)])


def block(n: int = 5) -> tuple[Tensor, Tensor]:
    """Tetrahedra in a bar twice as long as wide."""
    cube = torch.cartesian_prod(*[torch.tensor([0.0, 1], dtype=f64)] * 3) * torch.tensor([2.0, 1, 1], dtype=f64)
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = torch.tensor([[s[0], s[k], s[k + 1]] for s in sides for k in (1, 2)])
    return tetrahedralize(Mesh(cube, faces), edge_length=1 / n)


def distance(raw: Tensor, Q: Tensor, free: Tensor) -> float:
    """The documented residual, from dense matrices."""
    gradient = Q @ raw
    scale = Q.diagonal().clamp(max=1)[:, None]
    return float((raw - (raw - gradient / scale).clamp(0, 1)).abs()[free].max())


def scaled(L: Tensor, mass: Tensor, free: Tensor) -> Tensor:
    Q = L @ (L / mass[:, None])
    return Q / Q.diagonal()[free].mean()


def test_two_ends_of_a_strip_give_a_cubic_between_them(dtype: torch.dtype) -> None:
    x, faces = grid(24, 2, dtype)
    column = (x[:, 0] * 24).round().long()
    fixed = ((column <= 1) | (column >= 23)).nonzero()[:, 0]  # two columns clamp the slope too
    values = torch.stack([(column[fixed] <= 1), (column[fixed] >= 23)], 1).to(dtype)
    found = biharmonic_weights(x, faces, fixed, values)
    # the minimum of the squared second difference that is 1, 1, ..., 0, 0 at its ends, as a dense solve says
    D = np.diff(np.eye(25), 2, axis=0)
    Q, free = D.T @ D, np.arange(2, 23)
    row = np.zeros(25)
    row[:2] = 1
    row[free] = np.linalg.solve(Q[np.ix_(free, free)], -Q[np.ix_(free, [0, 1])].sum(1))
    assert (found.raw[:, 0].double() - torch.from_numpy(row)[column]).abs().max() < 1e-5
    assert (found.raw.sum(1) - 1).abs().max() < 1e-5  # two handles share what is between them
    assert found.weights.dtype == dtype and found.residual <= 1e-6


@pytest.mark.parametrize("solid", [False, True])
def test_conditions_of_the_minimum(solid: bool) -> None:
    x, elements = block(3) if solid else grid(9, 9)
    handles = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:8]
    values = torch.eye(8, dtype=f64)
    found = biharmonic_weights(x, elements, handles, values, tolerance=1e-9)
    free = torch.ones(len(x), dtype=torch.bool).index_fill(0, handles, False)
    L = (tetrahedral_laplacian(x, elements) if solid else cotangent_laplacian(x, elements)).to_dense()
    mass = voronoi_volumes(x, elements) if solid else vertex_areas(x, elements, kind="voronoi")
    Q = scaled(L, mass, free)
    assert distance(found.raw, Q, free) <= 1e-9 and found.residual <= 1e-9
    assert torch.equal(found.raw[handles], values)
    assert bool((found.raw >= 0).all()) and bool((found.raw <= 1).all())
    assert bool((found.raw[free] == 0).any())  # bounds hold exactly where they hold
    assert (found.weights.sum(1) - 1).abs().max() < 1e-15
    assert found.energy == pytest.approx(float(0.5 * (found.raw * (Q @ found.raw)).sum()), rel=1e-12)


def test_newton_alone_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, faces = grid(10, 10)
    fixed, values = torch.tensor([0, 3, 30, 60, 61, 100]), torch.eye(6, dtype=f64)
    split = biharmonic_weights(x, faces, fixed, values, tolerance=1e-9)
    monkeypatch.setattr(biharmonic, "_SPLITS", 3)
    newton = biharmonic_weights(x, faces, fixed, values, tolerance=1e-9)
    assert bool((split.raw[1:3] == 0).any())
    assert (split.raw - newton.raw).abs().max() < 1e-6
    monkeypatch.setattr(biharmonic, "_NEWTONS", 1)
    with pytest.warns(ConvergenceWarning, match="residual"):
        biharmonic_weights(x, faces, fixed, values, tolerance=1e-9)


def test_units_and_places_do_not_matter() -> None:
    x, tets = block(4)
    fixed = torch.tensor([0, len(x) - 1])
    values = torch.eye(2, dtype=f64)
    one = biharmonic_weights(x, tets, fixed, values, tolerance=1e-10)
    other = biharmonic_weights(1000 * x - 7, tets, fixed, values, tolerance=1e-10)
    assert (one.raw - other.raw).abs().max() < 1e-6
    assert one.energy == pytest.approx(other.energy, rel=1e-8)


def test_hand(data: Path) -> None:
    files = sorted(data.glob("skinning/igl/*bbw*.npz"))
    if not files:
        pytest.skip("no boundary conditions in skinning/igl")
    for file in files:
        given = {k: torch.from_numpy(v) for k, v in np.load(file).items()}
        x, tets, fixed = given["V"].double(), given["T"].long(), given["b"].long()
        found = biharmonic_weights(x, tets, fixed, given["bc"].double())
        free = torch.ones(len(x), dtype=torch.bool).index_fill(0, fixed, False)
        L, mass = tetrahedral_laplacian(x, tets), voronoi_volumes(x, tets)

        def gradient(w: Tensor, L: Tensor = L, mass: Tensor = mass) -> Tensor:
            return L @ ((L @ w) / mass[:, None])

        rows, columns = L.indices()
        diagonal = torch.zeros_like(mass).index_add(0, columns, L.values().square() / mass[rows])
        scale = diagonal[free].mean()
        theirs = given["W_raw"].double()
        energies = [float(0.5 * (w * gradient(w)).sum() / scale) for w in (found.raw, theirs)]
        assert energies[0] == pytest.approx(found.energy, rel=1e-9)
        assert energies[0] < 0.9943 * energies[1]  # libigl 2.6.3 stops early
        moved = found.raw - gradient(found.raw) / scale / (diagonal / scale).clamp(max=1)[:, None]
        assert float((found.raw - moved.clamp(0, 1)).abs()[free].max()) <= 1e-6
        assert float(found.raw.min()) == 0 and float(found.raw.max()) == 1
        assert (found.weights.sum(1) - 1).abs().max() < 1e-15
        assert torch.equal(found.raw[fixed], given["bc"].double())


def test_stiffness_of_linear_functions() -> None:
    x, tets = block(3)
    L = tetrahedral_laplacian(x, tets)
    way = torch.tensor([0.3, -1.0, 2.0], dtype=f64)
    assert (L @ torch.ones_like(x)).abs().max() < 1e-12
    energy = (x @ way) @ (L @ (x @ way)[:, None])[:, 0]
    assert float(energy) == pytest.approx(float(way.square().sum() * volumes(x, tets).sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("corners", "shares"),
    [
        ([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]], [1 / 4] * 4),  # regular
        (
            [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [1 / 2, 1 / 6, 1 / 6, 1 / 6],
        ),  # its centre snaps to the far face
        ([[0, 0, 0], [1, 0, 0], [0.3, 0.3, 0.1], [0, 1, 0]], [0.25, 0.125, 0.5, 0.125]),  # and to a side
    ],
)
def test_voronoi_volumes(corners: list[list[float]], shares: list[float]) -> None:
    x = torch.tensor(corners, dtype=f64)
    for tet in ([0, 1, 2, 3], [0, 2, 1, 3], [2, 3, 0, 1]):  # however it is turned
        tets = torch.tensor([tet])
        found = voronoi_volumes(x, tets) / volumes(x, tets).abs()
        assert (found - torch.tensor(shares, dtype=f64)).abs().max() < 1e-14
    x, tets = block(3)
    found = voronoi_volumes(x, tets)
    assert bool((found > 0).all())
    assert float(found.sum()) == pytest.approx(float(volumes(x, tets).sum()), rel=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    x, faces = grid(4, 1)
    fixed, values = torch.tensor([0, 9]), torch.eye(2, dtype=f64)
    for change, message in (
        ({"elements": faces[:, :2]}, "elements"),
        ({"fixed": torch.tensor([0, 0])}, "once"),
        ({"fixed": torch.tensor([0, 10])}, "fixed"),
        ({"values": 2 * values}, r"\[0, 1\]"),
        ({"values": values[:1]}, "values"),
        ({"values": values[:, :0]}, "at least 1"),
        ({"vertices": torch.cat([x, x[:1]])}, "in none"),
        ({"vertices": x * torch.tensor([0.0, 1, 1], dtype=f64)}, "area"),
        ({"fixed": torch.zeros(0, dtype=torch.int64), "values": values[:0]}, "connected part"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"elements": torch.tensor([[0, 1, 2, 3]])}, "in none"),
    ):
        with pytest.raises(ShapeError, match=message):
            biharmonic_weights(**{"vertices": x, "elements": faces, "fixed": fixed, "values": values, **change})
    far = torch.cat([x, x + 5])
    with pytest.raises(ShapeError, match="1 of 2 parts"):
        biharmonic_weights(far, torch.cat([faces, faces + 10]), fixed, values)
