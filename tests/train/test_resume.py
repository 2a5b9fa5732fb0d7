"""A training that is killed goes on to the same bits."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from geom.errors import FileFormatError, GeomError, ShapeError
from geom.train import Constant, TrainConfig, load_checkpoint, load_weights, train
from tests.train.problem import EVERYTHING, Points, loss, network, train_everything

ROOT = Path(__file__).resolve().parents[2]


def test_killed_anywhere_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Between passes, between steps, and in the middle of writing history and checkpoint."""
    command = [sys.executable, "-m", "tests.train.killed", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kills, ends = map(int, done.stdout.split())
    assert kills >= 15 and ends >= 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "whole"
    train_everything(out)
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy of a finished training, to go on from."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def test_a_finished_training_returns_what_it_left(out: Path) -> None:
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    module, history = train_everything(out)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert [record["step"] for record in history] == list(range(1, EVERYTHING.steps + 1))
    assert "".join(json.dumps(record) + "\n" for record in history) == (out / "history.jsonl").read_text()
    loaded = network(norm=True, seed=1)
    load_weights(loaded, out / "last.safetensors")
    for name, x in module.state_dict().items():
        assert torch.equal(x, loaded.state_dict()[name]), name


@pytest.mark.parametrize("precision", ["full", "float16"])
def test_it_goes_on_to_more_steps(tmp_path: Path, precision: Any) -> None:
    """In float16 with a loss so steep that the scale has fallen by then."""

    def steep(module: torch.nn.Module, batch: Any, generator: torch.Generator) -> torch.Tensor:
        return 100 * loss(module, batch, generator)

    long = TrainConfig(steps=20, batch=8, seed=1, precision=precision)
    train(network(), Points(), steep, config=replace(long, steps=7), out=tmp_path, device="cpu")
    other = network(seed=5)  # its own weights do not count: the checkpoint's do
    history = train(other, Points(), steep, config=long, out=tmp_path, device="cpu")
    straight = network()
    assert history == train(straight, Points(), steep, config=long, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), straight.parameters(), strict=True))


def test_the_best_is_still_the_best_after_an_interruption(tmp_path: Path) -> None:
    """With a rate at which the loss jumps about, interrupted where it was lowest."""
    config = TrainConfig(steps=40, batch=8, rate=0.3, validate_every=1)

    def run(steps: int, out: str) -> list[dict[str, float]]:
        settings = {"config": replace(config, steps=steps), "out": tmp_path / out, "validation": Points(10)}
        return train(network(), Points(), loss, device="cpu", **settings)

    losses = [record["validation_loss"] for record in run(40, "whole")]
    lowest = losses.index(min(losses)) + 1
    assert lowest < 40
    run(lowest, "interrupted")
    run(40, "interrupted")
    assert load_checkpoint(tmp_path / "interrupted" / "best.safetensors")["step"] == lowest


def test_records_after_the_checkpoint_are_dropped_and_a_cut_line_too(out: Path, whole: Path) -> None:
    for path in out.glob("*.safetensors"):
        path.unlink()  # killed before the first checkpoint
    lines = (out / "history.jsonl").read_text()
    (out / "history.jsonl").write_text(lines[:-7])
    (out / ".geom-1234").write_bytes(b"half a checkpoint")
    train_everything(out)
    assert (out / "history.jsonl").read_text() == lines
    assert (out / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()
    assert not list(out.glob(".geom-*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rate": 0.5}, "rate 0.01 (now 0.5)"),
        ({"seed": 4}, "seed 3 (now 4)"),
        ({"schedule": Constant()}, "schedule {'kind': 'cosine'"),
        ({"steps": 20}, "30 steps done (now 20 in all)"),
    ],
)
def test_another_training_is_refused(out: Path, change: dict[str, Any], says: str) -> None:
    before = (out / "config.json").read_text()
    with pytest.raises(GeomError, match=re.escape(says)):
        train_everything(out, replace(EVERYTHING, **change))
    assert (out / "config.json").read_text() == before


def test_other_data_and_another_module_are_refused(out: Path) -> None:
    with pytest.raises(GeomError, match=re.escape("items 40 (now 41)")):
        train(network(norm=True), Points(41), loss, config=EVERYTHING, out=out, device="cpu")
    with pytest.raises(ShapeError, match="expected the structure of the checkpoint"):
        train(network(), Points(), loss, config=EVERYTHING, out=out, device="cpu")


def test_what_may_change_may(out: Path) -> None:
    config = replace(EVERYTHING, steps=31, checkpoint_every=7)
    assert len(train_everything(out, config)[1]) == 31
    assert TrainConfig.from_json((out / "config.json").read_text()) == config


def test_a_foreign_checkpoint_is_refused(out: Path) -> None:
    (out / "last.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FileFormatError, match="expected a saved checkpoint"):
        train_everything(out)
    shutil.copy(out / "best.safetensors", out / "last.safetensors")
    with pytest.raises(FileFormatError, match="expected a checkpoint to go on from"):
        train_everything(out)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(steps=10, batch=4, checkpoint_every=5)
    train(network(), Points(), loss, config=replace(config, steps=5), out=tmp_path, device="cpu")
    before = (tmp_path / "last.safetensors").read_bytes()

    rename = os.replace

    def full(source: str, target: str) -> None:
        if target.endswith("last.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device", target)
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "replace", full)
        train(network(), Points(), loss, config=config, out=tmp_path, device="cpu")
    assert (tmp_path / "last.safetensors").read_bytes() == before
    history = train(network(), Points(), loss, config=config, out=tmp_path, device="cpu")
    assert history == train(network(), Points(), loss, config=config, device="cpu")


def test_the_checkpoint_says_what_it_is(out: Path) -> None:
    state = load_checkpoint(out / "last.safetensors")
    assert state["step"] == 30 and state["items"] == 40 and state["processes"] == 1
    assert state["config"] == EVERYTHING.to_plain()
    assert set(state["average"]) == {name for name, _ in network(norm=True).named_parameters()}
