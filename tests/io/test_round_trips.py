"""What is written comes back bit for bit, in both dtypes, with and without each attribute."""

from pathlib import Path

import pytest
import torch

from geom.errors import ShapeError
from geom.io import load, load_mesh, load_points, save_mesh, save_points
from geom.meshes import Mesh
from geom.points import Points
from geom.values import replace

POINTS = ["ply", "pcd", "xyz", "npz", "npy", "bin"]
MESHES = ["ply", "obj", "stl", "off", "npz", "glb"]
HARD = [0.1, 1 / 3, 1e-40, 3.4e38, -0.0, 16777217.0, 1e-7, 123456.789]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def positions(dtype: torch.dtype, generator: torch.Generator, count: int = 40) -> torch.Tensor:
    x = torch.randn(count, 3, dtype=dtype, generator=generator)
    x[: len(HARD), 0] = torch.tensor(HARD, dtype=torch.float64).to(dtype)
    return x


def extras(count: int, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Unit normals; colours from 8 bits."""
    normals = torch.nn.functional.normalize(torch.randn(count, 3, dtype=dtype, generator=generator), dim=1)
    return {"normals": normals, "colors": torch.randint(0, 256, (count, 3), generator=generator).float() / 255}


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(a, b) and torch.equal(torch.signbit(a), torch.signbit(b))


@pytest.mark.parametrize("suffix", POINTS)
@pytest.mark.parametrize("names", [(), ("normals",), ("colors", "intensities"), ("normals", "colors", "intensities")])
def test_points(
    tmp_path: Path, suffix: str, names: tuple[str, ...], dtype: torch.dtype, generator: torch.Generator
) -> None:
    x = positions(dtype, generator)
    every = extras(len(x), dtype, generator) | {"intensities": torch.rand(len(x), generator=generator)}
    points = Points(x, **{n: every[n] for n in names})
    path = tmp_path / f"a.{suffix}"
    if suffix in ("npy", "bin") and {"normals", "colors"} & set(names):
        with pytest.raises(ShapeError, match="holds none"):
            save_points(points, path)
        assert not path.exists()
        points = replace(points, normals=None, colors=None)
    save_points(points, path)
    back = load(path)
    assert isinstance(back, Points)
    if suffix == "bin":
        assert same(back.positions, x.float())
        assert same(back.intensities, torch.zeros(len(x)) if points.intensities is None else points.intensities)
        return
    assert same(back.positions, x)
    assert same(back.normals, points.normals) and same(back.colors, points.colors)
    assert same(back.intensities, points.intensities)


@pytest.mark.parametrize("suffix", MESHES)
@pytest.mark.parametrize("names", [(), ("normals",), ("colors",), ("normals", "colors")])
def test_meshes(
    tmp_path: Path, suffix: str, names: tuple[str, ...], dtype: torch.dtype, generator: torch.Generator
) -> None:
    x = positions(dtype, generator)
    every = extras(len(x), dtype, generator)
    faces = torch.randint(0, len(x), (70, 3), generator=generator)
    mesh = Mesh(x, faces, **{n: every[n] for n in names})
    path = tmp_path / f"a.{suffix}"
    if suffix == "stl" and "colors" in names:
        with pytest.raises(ShapeError, match="STL holds none"):
            save_mesh(mesh, path)
        mesh = replace(mesh, colors=None)
    save_mesh(mesh, path)
    back = load(path)
    assert isinstance(back, Mesh)
    if suffix == "stl":
        assert same(back.vertices, x.float()[faces].reshape(-1, 3)) and back.normals is None
        assert torch.equal(back.faces, torch.arange(3 * len(faces)).reshape(-1, 3))
        return
    single = suffix == "glb"
    assert same(back.vertices, x.float() if single else x) and torch.equal(back.faces, faces)
    assert same(back.normals, mesh.normals.float() if single and mesh.normals is not None else mesh.normals)
    assert same(back.colors, mesh.colors)
    vertices = load_points(path)
    assert same(vertices.positions, back.vertices) and same(vertices.normals, back.normals)


@pytest.mark.parametrize("suffix", [s for s in POINTS if s != "bin"])
def test_no_points(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    save_points(Points(torch.zeros(0, 3, dtype=dtype)), tmp_path / f"a.{suffix}")
    back = load_points(tmp_path / f"a.{suffix}")
    assert back.positions.shape == (0, 3) and back.positions.dtype == dtype


def test_no_points_as_bin_would_be_no_file(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="1 or more"):
        save_points(Points(torch.zeros(0, 3)), tmp_path / "a.bin")


@pytest.mark.parametrize("suffix", [s for s in MESHES if s != "stl"])
@pytest.mark.parametrize("count", [0, 4])
def test_no_faces(tmp_path: Path, suffix: str, count: int) -> None:
    mesh = Mesh(torch.ones(count, 3), torch.zeros(0, 3, dtype=torch.int64), normals=torch.ones(count, 3))
    save_mesh(mesh, tmp_path / f"a.{suffix}")
    back = load_mesh(tmp_path / f"a.{suffix}")
    assert torch.equal(back.vertices, mesh.vertices) and back.faces.shape == (0, 3)


@pytest.mark.parametrize("suffix", ["ply", "xyz", "npz"])
def test_colours_that_are_not_of_8_bits_are_kept(tmp_path: Path, suffix: str, generator: torch.Generator) -> None:
    points = Points(torch.rand(99, 3, generator=generator), colors=torch.rand(99, 3, generator=generator))
    save_points(points, tmp_path / f"a.{suffix}")
    assert same(load_points(tmp_path / f"a.{suffix}").colors, points.colors)


@pytest.mark.parametrize("suffix", ["obj", "off", "glb", "ply"])
def test_colours_of_meshes_too(tmp_path: Path, suffix: str, generator: torch.Generator) -> None:
    faces = torch.randint(0, 99, (50, 3), generator=generator)
    mesh = Mesh(torch.rand(99, 3, generator=generator), faces, colors=torch.rand(99, 3, generator=generator))
    save_mesh(mesh, tmp_path / f"a.{suffix}")
    assert same(load_mesh(tmp_path / f"a.{suffix}").colors, mesh.colors)


def test_pcd_rounds_colours_to_8_bits(tmp_path: Path, generator: torch.Generator) -> None:
    points = Points(torch.rand(99, 3, generator=generator), colors=torch.rand(99, 3, generator=generator))
    save_points(points, tmp_path / "a.pcd")
    back = load_points(tmp_path / "a.pcd").colors
    assert back is not None and points.colors is not None and float((back - points.colors).abs().max()) <= 0.5001 / 255


def test_npz_keeps_batches_and_others_refuse_them(tmp_path: Path) -> None:
    points = Points(torch.rand(5, 3), offsets=torch.tensor([0, 2, 5]))
    save_points(points, tmp_path / "a.npz")
    back = load_points(tmp_path / "a.npz")
    assert (
        back.offsets is not None
        and back.offsets.tolist() == [0, 2, 5]
        and torch.equal(back.positions, points.positions)
    )
    for suffix in set(POINTS) - {"npz"}:
        with pytest.raises(ShapeError, match="NPZ"):
            save_points(points, tmp_path / f"a.{suffix}")
        save_points(Points(torch.rand(5, 3), offsets=torch.tensor([0, 5])), tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["xyz", "obj", "off"])
def test_shortest_digits_read_back_as_the_same_float32(tmp_path: Path, suffix: str, generator: torch.Generator) -> None:
    bits = torch.randint(-(2**31), 2**31, (9000, 3), generator=generator).to(torch.int32)
    x = bits.view(torch.float32)
    x = torch.where(torch.isfinite(x), x, 0.0)
    if suffix == "xyz":
        save_points(Points(x), tmp_path / "a.xyz")
    else:
        save_mesh(Mesh(x, torch.zeros(0, 3, dtype=torch.int64)), tmp_path / f"a.{suffix}")
    assert same(load_points(tmp_path / f"a.{suffix}").positions, x)


@pytest.mark.parametrize("suffix", ["ply", "xyz", "bin"])
def test_tensors_of_a_graph(tmp_path: Path, suffix: str) -> None:
    x = torch.rand(4, 3, requires_grad=True)
    save_points(Points(x), tmp_path / f"a.{suffix}")
    assert torch.equal(load_points(tmp_path / f"a.{suffix}").positions, x.detach())


@pytest.mark.gpu
def test_tensors_on_a_gpu(tmp_path: Path) -> None:
    mesh = Mesh(torch.rand(4, 3, device="cuda"), torch.tensor([[0, 1, 2]], device="cuda"))
    save_mesh(mesh, tmp_path / "a.obj")
    assert torch.equal(load_mesh(tmp_path / "a.obj").vertices, mesh.vertices.cpu())
    points = Points(torch.rand(4, 3, device="cuda"), offsets=torch.tensor([0, 1, 4], device="cuda"))
    save_points(points, tmp_path / "a.npz")
    assert torch.equal(load_points(tmp_path / "a.npz").positions, points.positions.cpu())
