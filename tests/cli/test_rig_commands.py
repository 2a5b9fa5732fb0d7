"""`geom rig`: meshes, skeletons and sequences in, characters out, one clear line for what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from geom.cli import main
from geom.io import save_mesh
from geom.io.gltf_rig import load_rig
from geom.meshes import Mesh, subdivide
from geom.skinning.pose import deform


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A box 1 x 1 x 4 m, and two joints in it."""
    cube = torch.cartesian_prod(*[torch.tensor([0.0, 1])] * 3) * torch.tensor([1.0, 1, 4])
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = torch.tensor([[s[0], s[k], s[k + 1]] for s in sides for k in (1, 2)])
    save_mesh(subdivide(Mesh(cube, faces), steps=3, scheme="midpoint"), tmp_path / "box.ply")
    skeleton = {"names": ["low", "high"], "parents": [-1, 0], "joints": [[0.5, 0.5, 0.5], [0.5, 0.5, 2]]}
    (tmp_path / "joints.json").write_text(json.dumps(skeleton))
    return tmp_path / "box.ply", tmp_path / "joints.json"


def sequence(path: Path, **more: object) -> np.ndarray:
    """Two halves of a cloud that turn apart."""
    x = np.random.default_rng(0).random((60, 3)) * [1, 1, 2]
    angle = np.linspace(0, 1, 9)
    joint = np.array([0.0, 0, 1])
    turns = [np.array([[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]]) for a in angle]
    turned = np.stack([(x - joint) @ turn + joint for turn in turns])
    track = np.where(x[:, 2:] > 1, turned, x).astype(np.float32)
    np.savez(path, vertices=track, **more)
    return track


def test_bind_and_skin(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mesh, skeleton = map(str, files)
    out = tmp_path / "box.glb"
    assert main(["rig", "bind", mesh, skeleton, "--out", str(out)]) == 0
    assert "2 joints" in capsys.readouterr().out
    rig = load_rig(out)
    assert rig.names == ("low", "high", "surface")
    x, w = rig.primitives[0].vertices, rig.primitives[0].weights
    assert (w.sum(1) - 1).abs().max() < 1e-6
    assert main(["rig", "bind", mesh, skeleton, "--out", str(out), "--method", "voxel", "--influences", "1"]) == 0
    rigid = load_rig(out).primitives[0]
    assert bool(((rigid.weights > 0).sum(1) == 1).all())
    assert ((rigid.indices[:, 0] == 1) == (x[:, 2] > 2)).double().mean() > 0.9
    assert main(["rig", "bind", mesh, str(out), "--out", str(tmp_path / "again.gltf")]) == 0
    assert main(["skin", str(out), "--out", str(tmp_path / "posed.npz")]) == 0
    (posed,) = np.load(tmp_path / "posed.npz").values()
    assert np.abs(posed - x.numpy()).max() < 1e-6


def test_solve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track = sequence(tmp_path / "turn.npz", faces=np.array([[0, 1, 2]]), rate=10.0)
    out = tmp_path / "turn.glb"
    assert main(["rig", "solve", str(tmp_path / "turn.npz"), "--bones", "2", "--out", str(out)]) == 0
    assert "2 bones" in capsys.readouterr().out
    rig = load_rig(out)
    assert len(rig.skins[0].joints) == 2 and rig.primitives[0].faces.tolist() == [[0, 1, 2]]
    assert rig.animations[0].duration == pytest.approx(0.8)
    (x,) = deform(rig, rig.pose(animation=0, time=torch.arange(9) / 10))
    assert np.abs(x.numpy() - track).max() < 1e-4


def test_solve_with_the_mesh_at_rest(tmp_path: Path) -> None:
    track = sequence(tmp_path / "turn.npz")
    rest = Mesh(torch.from_numpy(track[4]), torch.tensor([[3, 4, 5]]))
    save_mesh(rest, tmp_path / "rest.ply")
    args = ["--bones", "2", "--mesh", str(tmp_path / "rest.ply"), "--out", str(tmp_path / "turn.glb")]
    assert main(["rig", "solve", str(tmp_path / "turn.npz"), *args]) == 0
    surface = load_rig(tmp_path / "turn.glb").primitives[0]
    assert torch.equal(surface.vertices, rest.vertices) and torch.equal(surface.faces, rest.faces)


def test_solve_what_skin_wrote(tmp_path: Path) -> None:
    track = sequence(tmp_path / "turn.npz")
    names = {f"anim0_t{k / 4}_node2_prim0": x for k, x in enumerate(track)}
    np.savez(tmp_path / "posed.npz", **names, anim1_t0_node2_prim0=track[0])
    out = tmp_path / "turn.glb"
    assert main(["rig", "solve", str(tmp_path / "posed.npz"), "--bones", "2", "--out", str(out)]) == 0
    rig = load_rig(out)
    (x,) = deform(rig, rig.pose(animation=0, time=torch.arange(9) / 4))
    assert np.abs(x.numpy() - track).max() < 1e-4
    args = ["rig", "solve", str(tmp_path / "posed.npz"), "--bones", "2", "--out", str(out), "--rate", "8"]
    assert main(args) == 0 and load_rig(out).animations[0].duration == pytest.approx(1)


def test_bad_input(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mesh, skeleton = map(str, files)
    out = ["--out", str(tmp_path / "out.glb")]
    (tmp_path / "bad.json").write_text('{"names": []}')
    (tmp_path / "bad.npz").write_bytes(b"PK")
    np.savez(tmp_path / "other.npz", y=np.zeros(3))
    np.savez(tmp_path / "flat.npz", vertices=np.zeros((3, 4)))
    sequence(tmp_path / "turn.npz")
    turn = str(tmp_path / "turn.npz")
    for arguments, word in (
        (["bind", mesh, str(tmp_path / "bad.json"), *out], "bad.json"),
        (["bind", mesh, str(tmp_path / "none.json"), *out], "none.json"),
        (["bind", skeleton, skeleton, *out], "joints.json"),
        (["bind", mesh, skeleton, "--out", str(tmp_path / "out.obj")], ".glb"),
        (["bind", mesh, skeleton, "--out", mesh], "box.ply"),
        (["bind", mesh, skeleton, *out, "--influences", "0"], "influences"),
        (["solve", str(tmp_path / "bad.npz"), "--bones", "2", *out], "bad.npz"),
        (["solve", str(tmp_path / "other.npz"), "--bones", "2", *out], "other.npz"),
        (["solve", str(tmp_path / "flat.npz"), "--bones", "2", *out], "flat.npz"),
        (["solve", turn, "--bones", "0", *out], "bones"),
        (["solve", turn, "--bones", "2", "--rate", "0", *out], "rate"),
        (["solve", turn, "--bones", "2", "--mesh", mesh, *out], "60 vertices"),
    ):
        assert main(["rig", *arguments]) == 2, arguments
        said = capsys.readouterr().err
        assert word in said and said.count("\n") == 1, said
    assert not (tmp_path / "out.glb").exists()
