"""Characters of the tour: rigs from files against their references, and the human bent and found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geom.demo import characters
from geom.errors import FileFormatError
from geom.lie import so3
from geom.skinning import Rig, deform, load_rig, make_rig, save_rig


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


def bar() -> Rig:
    """A triangle between two joints, the upper of which turns by a right angle in one second."""
    vertices = torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [0.0, 2, 0]])
    rest = torch.eye(3, 4).repeat(2, 1, 1)
    rest[1, 1, 3] = 1
    motion = rest.repeat(3, 1, 1, 1)
    motion[:, 1, :, :3] = so3.exp(torch.tensor([0.0, 0.25, 0.5])[:, None] * torch.tensor([0.0, 0, torch.pi]))
    return make_rig(
        vertices,
        torch.tensor([[0, 1, 2]]),
        parent=torch.tensor([-1, 0]),
        joints=rest,
        weights=torch.tensor([[1.0, 0], [1, 0], [0, 1]]),
        motion=motion,
        rate=2.0,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One character with a reference, one without."""
    for name in ("gltf", "golden"):
        (tmp_path / "data" / "skinning" / name).mkdir(parents=True)
    for name in ("bar", "other"):
        save_rig(bar(), tmp_path / "data" / "skinning" / "gltf" / f"{name}.glb")
    rig = load_rig(tmp_path / "data" / "skinning" / "gltf" / "bar.glb", dtype=torch.float64)
    place = rig.primitives[0]
    arrays = {
        f"anim{a}_t{t}_node{place.node}_prim0": deform(rig, rig.pose(animation=a, time=t))[0].numpy()
        for a, t in ((None, 0.0), (0, 0.5), (0, 1.0))
    }
    write(tmp_path / "data" / "skinning" / "golden" / "bar_skinned.npz", arrays)
    return tmp_path / "data"


def test_every_character_then_the_human(folder: Path, data: Path) -> None:
    assert [name for name, _ in characters.chapter(folder).jobs] == ["bar", "other", "human", "scanned human"]
    assert [name for name, _ in characters.chapter(None).jobs] == ["human", "scanned human"]
    names = [name for name, _ in characters.chapter(data).jobs]
    assert names[:-2] == [path.stem for path in sorted((data / "skinning" / "gltf").glob("*.gl*"))]


def test_a_character_is_posed_and_compared(folder: Path, tmp_path: Path) -> None:
    (_, first), (_, second), *_ = characters.chapter(folder).jobs
    result = first(tmp_path)
    numbers = result.numbers
    assert (numbers["vertices"], numbers["joints"], numbers["animations"]) == (3, 2, 1)
    assert numbers["reference_error"] < 5e-7 and numbers["milliseconds_a_pose"] > 0
    assert result.picture == "rig_bar.png" and len(result.captions) == 6
    assert "reference_error" not in second(tmp_path).numbers


def test_the_error_is_that_of_the_worst_vertex(folder: Path) -> None:
    rig = load_rig(folder / "skinning" / "gltf" / "bar.glb", dtype=torch.float64)
    path = folder / "skinning" / "golden" / "bar_skinned.npz"
    with np.load(path) as file:
        arrays = dict(file)
    key = next(name for name in arrays if "t0.5" in name)
    arrays[key] = arrays[key] + np.array([[0, 0, 0], [0, 0, 0.25], [0, 0, 0]])
    write(path, arrays)
    extent = np.linalg.norm(np.ptp(arrays[key], axis=0))
    assert characters.golden_error(rig, path) == pytest.approx(0.25 / extent, rel=1e-9)


def test_references_hold_on_real_characters(data: Path, tmp_path: Path) -> None:
    for name, job in characters.chapter(data).jobs[:-2]:
        result = job(tmp_path)
        assert result.picture and result.numbers["vertices"] > 0, name
        if (data / "skinning" / "golden" / f"{name}_skinned.npz").is_file():
            assert result.numbers["reference_error"] < 5e-7, name


def test_a_reference_that_is_none(folder: Path) -> None:
    rig = load_rig(folder / "skinning" / "gltf" / "bar.glb")
    node = rig.primitives[0].node
    good, bad = f"anim0_t0.5_node{node}_prim0", folder / "bad.npz"
    for key, x in (
        (good, np.zeros((4, 3))),
        (good, np.full((3, 3), np.nan)),
        (good, np.array([None])),
        ("vertices", np.zeros((3, 3))),
        (f"anim1_t0.5_node{node}_prim0", np.zeros((3, 3))),
        (f"anim0_tsoon_node{node}_prim0", np.zeros((3, 3))),
        (f"anim0_tnan_node{node}_prim0", np.zeros((3, 3))),
        ("anim0_t0.5_node99_prim0", np.zeros((3, 3))),
    ):
        write(bad, {key: x})
        with pytest.raises(FileFormatError, match=r"bad\.npz"):
            characters.golden_error(rig, bad)
    for content in (b"", b"hello", b"PK\x03\x04"):
        bad.write_bytes(content)
        with pytest.raises(FileFormatError):
            characters.golden_error(rig, bad)


def test_the_human_loses_and_keeps_volume(tmp_path: Path) -> None:
    result = characters._bent(tmp_path)
    numbers = result.numbers
    assert numbers["volume_linear_crouch"] < 0.87 and 0.93 < numbers["volume_corrected_crouch"] < 0.98
    for pose in ("crouch", "stretch"):
        assert numbers[f"volume_linear_{pose}"] + 0.03 < numbers[f"volume_corrected_{pose}"]
        assert abs(numbers[f"volume_dual_{pose}"] - 1) < 0.07
        assert all(numbers[f"least_volume_{w}"] <= numbers[f"volume_{w}_{pose}"] for w in characters._WAYS)
    assert len(result.captions) == 6 and (tmp_path / "human.png").is_file()


def test_right_mirrors_left() -> None:
    body = characters.synthetic_human(dtype=torch.float64)
    for pose in ("crouch", "stretch"):
        joints = body.apply(characters._posed(body, pose)).joints
        for name in ("foot", "wrist"):
            left, right = (joints[body.names.index(f"{side}_{name}")] for side in ("left", "right"))
            torch.testing.assert_close(left * torch.tensor([-1.0, 1, 1]).double(), right, atol=1e-6, rtol=0)


def test_the_human_is_found_in_its_scan(tmp_path: Path) -> None:
    numbers = characters._scanned(tmp_path).numbers
    assert numbers["converged"] and numbers["vertex_error_mm"] < 1 and numbers["worst_vertex_error_mm"] < 4
