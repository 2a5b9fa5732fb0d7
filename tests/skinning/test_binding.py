"""Binding: skeletons and their files, every method on a bar that bends, seams, broken meshes."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geom.errors import FileFormatError, ShapeError
from geom.io.gltf_rig import load_rig, save_rig
from geom.io.rig import Rig
from geom.meshes import Mesh, mass_properties
from geom.skinning import solid_binding
from geom.skinning.binding import bind
from geom.skinning.pose import deform
from geom.skinning.pruning import densify_weights
from geom.skinning.skeleton import Skeleton, load_skeleton, rig_skeleton
from geom.skinning.solid_binding import solid_weights
from geom.values import replace

f64 = torch.float64


def bar(around: int = 16, along: int = 24, dtype: torch.dtype = f64) -> Mesh:
    """A closed round bar along z, 3 m long, of radius 0.25."""
    turn = torch.arange(around, dtype=f64) * (2 * math.pi / around)
    ring = 0.25 * torch.stack([turn.cos(), turn.sin(), 0 * turn], -1)
    rise = torch.linspace(0, 3, along + 1, dtype=f64)
    x = (ring + torch.stack([0 * rise, 0 * rise, rise], -1)[:, None]).reshape(-1, 3)
    a = torch.arange(around * (along + 1)).reshape(along + 1, around)
    b = a.roll(-1, 1)
    sides = [torch.stack([a[:-1], b[:-1], b[1:]], -1), torch.stack([a[:-1], b[1:], a[1:]], -1)]
    low, high = torch.full_like(a[0], len(x)), torch.full_like(a[0], len(x) + 1)
    caps = [torch.stack([low, b[0], a[0]], -1), torch.stack([high, a[-1], b[-1]], -1)]
    faces = torch.cat([part.reshape(-1, 3) for part in sides + caps])
    return Mesh(torch.cat([x, torch.tensor([[0.0, 0, 0], [0, 0, 3]], dtype=f64)]).to(dtype), faces)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tetrahedra than users get."""
    monkeypatch.setattr(solid_binding, "_CELLS", 300)


def arm(dtype: torch.dtype = f64) -> Skeleton:
    places = torch.tensor([[0.0, 0, 0.2], [0, 0, 1.6]], dtype=dtype)
    return Skeleton(torch.tensor([-1, 0]), places, ("upper", "lower"))


def shares(mesh: Mesh, skeleton: Skeleton | Rig, *, method: str = "auto", influences: int = 4) -> Tensor:
    """The weights that binding gives, of all joints."""
    rig = bind(mesh, skeleton, method=method, influences=influences)
    surface = rig.primitives[0]
    assert surface.indices is not None and surface.weights is not None
    assert surface.weights.shape[1] <= influences and (surface.weights.sum(1) - 1).abs().max() < 1e-6
    return densify_weights(surface.indices, surface.weights, len(rig.skins[0].joints))


def bent(method: str, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Weights of the lower joint, and the bar with it turned by a right angle about x."""
    skeleton = arm(mesh.vertices.dtype)
    rig = bind(mesh, skeleton, method=method)
    turned = rig.quat_wxyz.clone()
    turned[1] = torch.tensor([math.cos(math.pi / 4), math.sin(math.pi / 4), 0, 0])
    (x,) = deform(rig, rig.pose_from(quat_wxyz=turned))
    return shares(mesh, skeleton, method=method)[:, 1], x


@pytest.mark.parametrize("method", ["heat", "biharmonic", "voxel"])
def test_a_bar_bends_at_its_joint(method: str, dtype: torch.dtype) -> None:
    mesh = bar(dtype=dtype)
    w, x = bent(method, mesh)
    height = mesh.vertices[:, 2]
    assert x.dtype == dtype and bool(((w >= 0) & (w <= 1)).all())
    steps = w[(height > 0.2) & (height < 2.3)].reshape(-1, 16).mean(1).diff()
    assert bool((steps > -1e-4).all())  # rises along the bones
    slack = {"heat": 0.04, "biharmonic": 0.02, "voxel": 0.15}[method]
    assert float(w[height < 0.9].max()) < slack and float(w[height > 2.3].min()) > 1 - slack
    assert (w[(height - 1.6).abs() < 0.07] - 0.5).abs().max() < 0.2
    rigid = torch.stack([mesh.vertices[:, 0], -(height - 1.6), 1.6 + mesh.vertices[:, 1]], -1)
    assert (x - rigid)[height > 2.3].norm(dim=1).max() < 3 * slack
    assert (x - mesh.vertices)[height < 0.9].norm(dim=1).max() < 3 * slack
    assert float(mass_properties(x, mesh.faces).volume) > 0.8 * float(mass_properties(mesh.vertices, mesh.faces).volume)


def test_at_rest_nothing_moves(dtype: torch.dtype) -> None:
    mesh = replace(bar(dtype=dtype), normals=torch.nn.functional.normalize(bar(dtype=dtype).vertices, dim=1))
    rig = bind(mesh, arm())
    (x,) = deform(rig, rig.pose())
    assert (x - mesh.vertices).abs().max() < (1e-14 if dtype == f64 else 1e-6)
    assert rig.names[:2] == ("upper", "lower") and rig.primitives[0].normals is mesh.normals


def test_auto_is_heat_on_closed_surfaces_else_voxel() -> None:
    mesh = bar()
    for whole, method in ((mesh, "heat"), (Mesh(mesh.vertices, mesh.faces[1:]), "voxel")):
        auto, named = (shares(whole, arm(), method=m) for m in ("auto", method))
        assert torch.equal(auto, named)


@pytest.mark.parametrize("method", ["auto", "heat", "biharmonic", "voxel"])
def test_seams_do_not_open(method: str) -> None:
    mesh = bar()
    whole = shares(mesh, arm(), method=method)
    soup = Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), torch.arange(3 * len(mesh.faces)).reshape(-1, 3))
    torn = shares(soup, arm(), method=method)
    assert (torn - whole[mesh.faces.flatten()]).abs().max() < 1e-6


def test_fewer_influences() -> None:
    count = 8
    places = torch.stack([torch.zeros(count), torch.zeros(count), torch.linspace(0.2, 2.8, count)], -1).double()
    snake = Skeleton(torch.arange(-1, count - 1), places, tuple(f"{k}" for k in range(count)))
    for k in (1, 3, 4):
        assert bool(((shares(bar(), snake, method="voxel", influences=k) > 0).sum(1) == k).all())


def test_parts_that_no_bone_reaches() -> None:
    mesh = bar()
    crumb = 0.1 * mesh.vertices + torch.tensor([2.0, 0, 2.5], dtype=f64)
    both = Mesh(torch.cat([mesh.vertices, crumb]), torch.cat([mesh.faces, mesh.faces + len(mesh.vertices)]))
    n = len(mesh.vertices)
    for method in ("heat", "voxel", "biharmonic"):
        w = shares(both, arm(), method=method)
        assert float(w[n:, 1].min()) > 0.99, method  # the lower bone is nearest


def test_solid_edge_length() -> None:
    mesh, bones = bar(), arm().bones()[0]
    coarse, fine = (solid_weights(mesh, bones, edge_length=h) for h in (0.2, 0.1))
    assert 1e-4 < (coarse - fine).abs().mean() < 0.02 and (fine.sum(1) - 1).abs().max() < 1e-14


def test_bones_of_a_skeleton() -> None:
    places = torch.tensor([[0.0, 0, 2], [0, 0, 0], [1, 0, 0], [0, 2, 0]], dtype=f64)
    tree = Skeleton(torch.tensor([1, -1, 1, 2]), places, ("tip", "root", "left", "end"))
    segments, owner = tree.bones()
    assert owner.tolist() == [0, 1, 1, 2, 3]
    found = {(o, *s.flatten().tolist()) for o, s in zip(owner.tolist(), segments, strict=True)}
    assert found == {
        (0, 0, 0, 2, 0, 0, 3),
        (1, 0, 0, 0, 0, 0, 2),
        (1, 0, 0, 0, 1, 0, 0),
        (2, 1, 0, 0, 0, 2, 0),
        (3, 0, 2, 0, -0.5, 3, 0),
    }
    lone = Skeleton(torch.tensor([-1]), places[:1], ("only",))
    assert lone.bones()[0].tolist() == [[[0, 0, 2], [0, 0, 2]]]
    assert bool((shares(bar(), lone) == 1).all())


def test_skeleton_files(tmp_path: Path) -> None:
    file = tmp_path / "arm.json"
    given = {"names": ["upper", "lower"], "parents": [-1, 0], "joints": [[0, 0, 0.2], [0, 0, 1.6]]}
    file.write_text(json.dumps(given))
    found = load_skeleton(file)
    assert found.names == arm().names and torch.equal(found.joints, arm().joints)
    rig = bind(bar(), found)
    save_rig(rig, tmp_path / "bar.glb")
    again = load_skeleton(tmp_path / "bar.glb")
    assert again.names == found.names and torch.equal(again.parent, found.parent)
    assert (again.joints - found.joints).abs().max() < 1e-6
    assert torch.equal(shares(bar(), rig), shares(bar(), found))
    for change in (
        {"names": ["upper"]},
        {"names": [1, 2]},
        {"parents": [-1, 2]},
        {"parents": [1, 0]},
        {"parents": [-1, 0.5]},
        {"joints": [[0, 0], [0, 1]]},
        {"joints": [[0, 0, 0], [0, 1, "x"]]},
        {"joints": [[0, 0, 0], [0, 1, math.inf]]},
        {"joints": []},
    ):
        file.write_text(json.dumps({**given, **change}))
        with pytest.raises(FileFormatError, match=r"arm\.json"):
            load_skeleton(file)
    for text in ("", "[]", "{}", "\xff", "[" * 100_000):
        file.write_text(text, encoding="latin-1")
        with pytest.raises(FileFormatError, match=r"arm\.json"):
            load_skeleton(file)


def test_skeletons_of_characters(data: Path) -> None:
    files = sorted(data.glob("skinning/gltf/*.gl*"))
    if not files:
        pytest.skip("no characters in skinning/gltf")
    for file in files:
        rig = load_rig(file)
        found = rig_skeleton(rig)
        assert len(found.names) == (len(rig.skins[0].joints) if rig.skins else len(rig.names))
        assert int((found.parent < 0).sum()) >= 1


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    mesh = bar()
    for call in (
        lambda: bind(mesh, arm(), method="magic"),
        lambda: bind(mesh, arm(), influences=0),
        lambda: bind(Mesh(mesh.vertices, mesh.faces[:0]), arm()),
        lambda: solid_weights(mesh, arm().bones()[0], edge_length=-1.0),
        lambda: Skeleton(torch.tensor([1, 0]), arm().joints, ("a", "b")),
        lambda: Skeleton(torch.tensor([-1, 0]), arm().joints, ("a",)),
        lambda: Skeleton(torch.tensor([-1, 2]), arm().joints, ("a", "b")),
        lambda: Skeleton(torch.tensor([-1]), arm().joints, ("a", "b")),
    ):
        with pytest.raises(ShapeError):
            call()
