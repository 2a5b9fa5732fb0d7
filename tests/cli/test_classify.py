"""`geom classify`: names of clouds and meshes, the JSON, and one clear line for bad input."""

import json
from pathlib import Path

import pytest
import torch

from geom.cli import main
from geom.io import save_mesh, save_points
from geom.meshes import Mesh
from geom.points import Points


def cloud(kind: str, count: int = 900) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    if kind == "ring":
        around = torch.nn.functional.normalize(x * torch.tensor([1.0, 1, 0]), dim=1)
        x = around + 0.3 * torch.nn.functional.normalize(x + around * torch.randn(count, 1, generator=generator), dim=1)
    return 5 * x + 100


@pytest.mark.parametrize("kind", ["ball", "ring"])
def test_a_cloud_is_named(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "cloud.ply", tmp_path / "names.json"
    save_points(Points(cloud(kind)), source)
    assert main(["classify", str(source), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text())
    assert lines[0].split()[0] == next(iter(found["probabilities"])) == kind and lines[-1] == f"wrote {out}"
    numbers = list(found["probabilities"].values())
    assert found["file"] == "cloud.ply" and len(lines) == len(numbers) + 1
    assert numbers == sorted(numbers, reverse=True) and sum(numbers) == pytest.approx(1, abs=1e-5)


def test_a_mesh_is_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turn = torch.arange(24) * 2 * torch.pi / 24
    rim = torch.stack([turn.cos(), turn.sin(), torch.zeros(24)], 1)
    ends = torch.tensor([[0.0, 0, 0], [0, 0, 2]])
    k, after = torch.arange(24), (torch.arange(24) + 1) % 24
    faces = torch.cat([torch.stack([k, after, torch.full((24,), 25)], 1), torch.stack([after, k, 0 * k + 24], 1)])
    save_mesh(Mesh(torch.cat([rim, ends]), faces), tmp_path / "cone.obj")
    assert main(["classify", str(tmp_path / "cone.obj")]) == 0
    assert capsys.readouterr().out.split()[0] == "cone"


@pytest.mark.parametrize("kind", ["missing", "few", "one place", "own input"])
def test_bad_input(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "cloud.ply", tmp_path / "names.json"
    out.write_text("old")
    if kind != "missing":
        save_points(Points(torch.ones(50, 3) if kind == "one place" else cloud("ball", 9)), source)
    assert main(["classify", str(source), "--out", str(source if kind == "own input" else out)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("geom: ") and said.err.count("\n") == 1
    assert out.read_text() == "old"
