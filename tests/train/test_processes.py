"""Two processes under torchrun train as one does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from geom.errors import GeomError, MissingDependencyError
from geom.train import TrainConfig, train
from tests.train import torchrun
from tests.train.problem import Points, loss, network
from tests.train.torchrun import CONFIG

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("torchrun")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "tests.train.torchrun", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "0.json").read_text())


def assert_same(got: dict[str, Any], want: dict[str, Any], tolerance: float) -> None:
    assert len(got["history"]) == len(want["history"]) == CONFIG.steps
    for a, b in zip(got["history"], want["history"], strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    for name, x in got["weights"].items():
        assert torch.allclose(torch.tensor(x), torch.tensor(want["weights"][name]), rtol=tolerance, atol=tolerance), (
            name
        )


def test_both_end_with_the_same_bits(folder: Path) -> None:
    assert (folder / "0.json").read_text() == (folder / "1.json").read_text()


def test_two_are_one_with_twice_the_batch(two: dict[str, Any]) -> None:
    one = torchrun.plain(replace(CONFIG, batch=2 * CONFIG.batch))
    assert_same(two["plain"], one, 1e-4)


def test_two_are_one_with_twice_the_passes_randomness_included(two: dict[str, Any]) -> None:
    """Although the two were interrupted, and one of them had nothing to validate."""
    assert_same(two["noisy"], torchrun.noisy(replace(CONFIG, accumulate=2)), 1e-6)


def test_a_parameter_that_one_process_uses_moves_in_both(two: dict[str, Any]) -> None:
    assert_same(two["forked"], torchrun.forked(replace(CONFIG, accumulate=2)), 1e-6)


def test_one_writes(folder: Path, two: dict[str, Any]) -> None:
    lines = (folder / "out" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == two["noisy"]["history"]


def test_one_process_does_not_go_on_with_what_two_began(folder: Path) -> None:
    with pytest.raises(GeomError, match="processes 2 \\(now 1\\)"):
        torchrun.noisy(CONFIG, out=folder / "out")


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    train(network(), Points(), loss, config=TrainConfig(steps=1), device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MissingDependencyError, match="pip install 'geom-toolkit\\[train\\]'"):
        train(network(), Points(), loss, config=TrainConfig(steps=1), device="cpu")
