"""`geom serialize`: points in a new order, the report, the picture, and one clear line for bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch

from geom.cli import main
from geom.io import load_points, save_points
from geom.points import Points, serialize


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    points = Points(
        torch.rand(300, 3, generator=generator),
        colors=torch.rand(300, 3, generator=generator),
        intensities=torch.rand(300, generator=generator),
    )
    save_points(points, tmp_path / "cloud.ply")
    return tmp_path / "cloud.ply"


@pytest.mark.parametrize("suffix", [".ply", ".npz"])
def test_points_in_their_new_order(cloud: Path, suffix: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / f"sorted{suffix}"
    assert main(["serialize", str(cloud), "--order", "xyz", "morton", "--grid-size", "0.1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("300 points\n") and said.endswith(f"wrote {out}\n") and "cells of 0.1" in said
    assert [line.split()[0] for line in said.splitlines()[2:4]] == ["xyz", "morton"]
    before, after = load_points(cloud), load_points(out)
    expected = serialize(before, order=("xyz", "morton"), grid_size=0.1)
    assert torch.equal(after.positions, before.positions[expected.order[0]])
    assert torch.equal(after.colors, before.colors[expected.order[0]])
    assert torch.equal(after.intensities, before.intensities[expected.order[0]])
    if suffix == ".npz":
        with np.load(out) as archive:
            for name in ("order", "inverse", "code"):
                assert np.array_equal(archive[name], getattr(expected, name).numpy())
            assert archive["edge"] == 0.1


def test_the_default_is_hilbert_on_the_points_own_grid(cloud: Path, tmp_path: Path) -> None:
    assert main(["serialize", str(cloud), "--out", str(tmp_path / "a.pcd")]) == 0
    points = load_points(cloud).positions
    found = load_points(tmp_path / "a.pcd").positions
    assert torch.equal(found, points[serialize(points, order="hilbert").order])


def test_a_picture(cloud: Path, tmp_path: Path, capsys) -> None:
    picture = tmp_path / "curve.png"
    assert main(["serialize", str(cloud), "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.endswith(f"wrote {picture}\n")


@pytest.mark.parametrize("kind", ["missing", "order", "size", "suffix", "own input", "batch"])
def test_bad_input(kind: str, cloud: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "old.ply"
    out.write_text("old")
    batch = tmp_path / "batch.npz"
    save_points(Points(torch.rand(4, 3), offsets=torch.tensor([0, 2, 4])), batch)
    arguments = {
        "missing": [str(tmp_path / "no.ply"), "--out", str(out)],
        "order": [str(cloud), "--order", "peano", "--out", str(out)],
        "size": [str(cloud), "--grid-size", "0", "--out", str(out)],
        "suffix": [str(cloud), "--out", str(tmp_path / "a.stl")],
        "own input": [str(cloud), "--out", str(cloud)],
        "batch": [str(batch), "--out", str(out)],
    }[kind]
    assert main(["serialize", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("geom: ") and said.err.count("\n") == 1
    assert out.read_text() == "old" and not (tmp_path / "a.stl").exists()
