import logging
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.errors import GeomError, ShapeError
from geom.lie import Rigid
from geom.train import Cosine, TrainConfig, adamw, load_checkpoint, load_weights, train
from tests.train.problem import EVERYTHING, Points, loss, network, noisy_loss, train_everything

BASE = TrainConfig(steps=12, batch=8, rate=1e-2, seed=2)


def run(config: TrainConfig = BASE, **changes: Any) -> tuple[list[dict[str, float]], torch.nn.Module]:
    module = changes.pop("module", None) or network()
    data, function = changes.pop("data", Points()), changes.pop("loss", loss)
    return train(module, data, function, config=config, device="cpu", **changes), module


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_loop_is_the_one_you_would_write(dtype: torch.dtype) -> None:
    """Against a plain loop over the items in the order of the seed, with torch's own clipping, schedule and AdamW."""
    from geom.train.batches import order

    data = Points()
    data.x = data.x.to(dtype)
    config = TrainConfig(
        steps=25, batch=4, accumulate=2, rate=1e-2, weight_decay=0.1, clip=0.5, schedule=Cosine(), seed=5
    )
    history, module = run(config, data=data, module=network().to(dtype))
    other, places = network().to(dtype), order(5, len(data), 0)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25)
    for record in history:
        x = torch.stack([data.x[next(places)] for _ in range(8)])  # one batch of both passes
        value = (other(x) - x.square().sum(-1, keepdim=True)).square().mean()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        got = [record[name] for name in ("loss", "grad_norm", "rate")]
        assert got == pytest.approx([value.item(), norm.item(), schedule.get_last_lr()[0]], rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert [record["step"] for record in history] == list(range(1, 26))
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        assert p.dtype == dtype and torch.allclose(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 13},
        {"batch": 7},
        {"accumulate": 2},
        {"rate": 2e-2},
        {"schedule": Cosine()},
        {"weight_decay": 0.5},
        {"clip": 1.0},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"average": 0.9},
        {"seed": 3},
    ],
    ids=str,
)
def test_each_setting_changes_the_result(change: dict[str, Any]) -> None:
    (_, a), (_, b) = run(), run(replace(BASE, **change))
    assert not same(a, b)
    assert all(bool(torch.isfinite(p).all()) for p in b.parameters())


def test_same_seed_same_bits_whatever_the_global_generators_hold() -> None:
    settings = {"data": Points(noisy=True), "loss": noisy_loss}
    first = run(module=network(dropout=0.3), **settings)
    torch.rand(7), random.random(), np.random.random()  # noqa: NPY002
    second = run(module=network(dropout=0.3), **settings)
    assert first[0] == second[0] and same(first[1], second[1])


def test_each_pass_draws_numbers_of_its_own() -> None:
    def drawn(seed: int) -> tuple[list[float], list[float]]:
        own: list[float] = []
        everyones: list[float] = []

        def drawing(module: torch.nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
            own.append(torch.rand((), generator=generator).item())
            everyones.append(torch.rand(()).item() + random.random())
            return loss(module, batch, generator)

        run(replace(BASE, accumulate=2, seed=seed), loss=drawing)
        return own, everyones

    first, other = drawn(0), drawn(1)
    assert all(len(set(numbers)) == 2 * BASE.steps for numbers in first)
    assert not set(first[0]) & set(other[0]) and not set(first[1]) & set(other[1])


@pytest.mark.usefixtures("unchecked")  # the checks draw from python's generator
def test_global_generators_modes_and_gradients_come_back() -> None:
    module = network(dropout=0.3)
    module[0].eval()
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    run(module=module, data=Points(noisy=True), validation=Points(5))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert [part.training for part in module] == [False, True, True, True] and module.training
    assert all(p.grad is None for p in module.parameters())


def test_workers_change_no_bit() -> None:
    """In a program of its own: forking this one would warn."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from dataclasses import replace\n"
        "from tests.train.problem import *\n"
        "a, b = (train_everything(None, replace(EVERYTHING, workers=n)) for n in (0, 2))\n"
        "assert a[1] == b[1] and len(a[1]) == 30\n"
        "assert all(torch.equal(x, y) for x, y in zip(a[0].state_dict().values(), b[0].state_dict().values()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_validation_is_the_mean_over_all_items_in_eval_mode() -> None:
    data = Points(19)
    module = network(dropout=0.5)
    history, _ = run(replace(BASE, validate_every=5), module=module, validation=data, loss=counted())
    assert [r["step"] for r in history if "validation_loss" in r] == [5, 10, 12]
    module.eval()
    with torch.no_grad():
        want = (module(data.x) - data.x.square().sum(-1, keepdim=True)).square().mean()
    assert history[-1]["validation_loss"] == pytest.approx(float(want), rel=1e-5)
    assert history[-1]["validation_training"] == 0 and history[-1]["training"] == 1


def counted() -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    def function(module: torch.nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(module, batch, generator), {"training": torch.tensor(float(module.training))}

    return function


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    config = replace(BASE, steps=40, rate=0.3, validate_every=1, average=0.5)  # a rate that makes it jump about
    history, module = run(config, validation=Points(10), out=tmp_path)
    losses = [record["validation_loss"] for record in history]
    state = load_checkpoint(tmp_path / "best.safetensors")
    assert state["validation_loss"] == min(losses) < losses[-1]
    assert state["step"] == losses.index(min(losses)) + 1
    load_weights(module, tmp_path / "best.safetensors")
    x = Points(10).x
    with torch.no_grad():
        got = (module(x) - x.square().sum(-1, keepdim=True)).square().mean()
    assert float(got) == pytest.approx(min(losses), rel=1e-5)


def test_the_average_is_that_of_the_formula() -> None:
    kept: list[list[Tensor]] = []

    def watched(module: torch.nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        kept.append([p.detach().clone() for p in module.parameters()])
        return loss(module, batch, generator)

    _, last = run()  # the parameters after the last step
    _, module = run(replace(BASE, average=0.4), loss=watched)
    kept.append([p.detach() for p in last.parameters()])
    want = [p.clone() for p in kept[0]]
    for step, parameters in enumerate(kept[1:], start=1):
        d = min(0.4, (1 + step) / (10 + step))
        want = [d * a + (1 - d) * p for a, p in zip(want, parameters, strict=True)]
    for p, a in zip(module.parameters(), want, strict=True):
        assert torch.allclose(p, a, rtol=1e-5, atol=1e-6)


def test_your_own_optimizer_and_collate() -> None:
    def sgd(module: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        groups = [{"params": module[0].parameters(), "lr": 0.0}, {"params": module[3].parameters()}]
        return torch.optim.SGD(groups, lr=config.rate)

    def ragged(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        sizes = torch.tensor([0] + [1 + k % 2 for k in range(len(items))])
        return {
            "x": torch.cat([items[k][0].expand(int(n), 3) for k, n in enumerate(sizes[1:])]),
            "offsets": sizes.cumsum(0),
        }

    def over_clouds(module: torch.nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        assert batch["offsets"][-1] == len(batch["x"]) == 12
        return module(batch["x"]).square().mean()

    module, before = network(), network()
    history, _ = run(
        replace(BASE, steps=40, schedule=Cosine()), module=module, optimizer=sgd, collate=ragged, loss=over_clouds
    )
    assert torch.equal(module[0].weight, before[0].weight) and not torch.equal(module[3].weight, before[3].weight)
    assert history[-1]["loss"] < history[0]["loss"]


def test_frozen_parameters_stay() -> None:
    module, before = network(), network()
    module[0].requires_grad_(False)
    run(replace(BASE, weight_decay=0.1), module=module)
    assert torch.equal(module[0].weight, before[0].weight) and not torch.equal(module[3].weight, before[3].weight)
    assert len(adamw(module, BASE).param_groups[0]["params"]) == 2


def test_what_must_not_decay_does_not() -> None:
    from geom.sequence import Mamba

    module = Mamba(8, bidirectional=True)
    groups = adamw(module, replace(BASE, weight_decay=0.1)).param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    still = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert still == {"A_log", "D", "A_b_log", "D_b"}
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_values_travel_as_batches() -> None:
    twists = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    poses = [Rigid.exp(twist) for twist in twists]

    def alignment(module: torch.nn.Module, batch: Rigid, generator: torch.Generator) -> Tensor:
        return (module(batch.translation) - batch.apply(torch.zeros(8, 1, 3))[:, 0]).square().mean()

    history, _ = run(replace(BASE, steps=50, rate=0.1), module=torch.nn.Linear(3, 3), data=poses, loss=alignment)
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


# --- what must not pass in silence -----------------------------------------------------------------------------------


def breaking(step: int, spoil: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A loss that is spoilt from the given step on."""
    calls = 0

    def function(module: torch.nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += module.training
        value = loss(module, batch, generator)
        return spoil(value) if calls >= step else value

    return function


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x: x * math.nan, "step 7: expected a finite loss, got nan"),
        (lambda x: x / 0, "step 7: expected a finite loss, got inf"),
        (lambda x: x.detach() + (x - x).abs().sqrt(), "step 7: expected a finite grad_norm, got nan"),
    ],
)
def test_what_is_not_finite_is_reported_and_never_saved(
    tmp_path: Path, spoil: Callable[[Tensor], Tensor], says: str
) -> None:
    config = replace(BASE, checkpoint_every=3)
    with pytest.raises(GeomError, match=says):
        run(config, loss=breaking(7, spoil), out=tmp_path)
    assert load_checkpoint(tmp_path / "last.safetensors")["step"] == 6
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 6
    mended, module = run(config, out=tmp_path)
    whole, other = run(config)
    assert mended == whole and same(module, other)


def test_a_validation_that_is_not_finite_is_reported() -> None:
    data = Points(5)
    data.x[2] = math.inf
    with pytest.raises(GeomError, match="step 12: expected a finite validation loss, got"):
        run(validation=data)


def test_float16_leaves_out_steps_that_overflow_and_gives_up_where_all_do() -> None:
    """Gradients of 1e5 in float16 overflow at the first scale; those of 1e40 at any."""

    def steep(factor: float) -> Callable[..., Tensor]:
        def function(module: torch.nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
            return loss(module, batch, generator) * factor

        return function

    config = replace(BASE, precision="float16", steps=40)
    history, _ = run(config, loss=steep(1e2))
    left_out = [record["step"] for record in history if "grad_norm" not in record]
    assert left_out and left_out[0] == 1 and len(left_out) < 12
    assert history[-1]["loss"] < history[0]["loss"]
    with pytest.raises(GeomError, match="expected a finite grad_norm"):
        run(config, loss=steep(1e12))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda m, batch, g: 1.0, "loss: expected the loss function to return scalar tensors, got float 1.0"),
        (lambda m, batch, g: m(batch[0]), r"got a float32 tensor of shape \(8, 1\)"),
        (lambda m, batch, g: (m(batch[0]).sum(), {"a": 3}), "a: expected .* scalar tensors, got int 3"),
        (lambda m, batch, g: (m(batch[0]).sum(), {"rate": torch.ones(())}), "expected names other than"),
    ],
)
def test_a_wrong_loss_is_refused(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        run(loss=function)


def test_a_constant_loss_is_refused() -> None:
    with pytest.raises(GeomError, match="depends on the module's parameters, got a constant"):
        run(loss=lambda module, batch, generator: batch[0].mean())


@pytest.mark.usefixtures("unchecked")
def test_data_without_a_length_is_refused() -> None:
    with pytest.raises(ShapeError, match="dataset: expected something with a length and items by index"):
        run(data=(item for item in Points()))


def test_empty_data_is_refused() -> None:
    with pytest.raises(ShapeError, match="dataset: expected at least one item, got none"):
        run(data=[])
    with pytest.raises(ShapeError, match="validation: expected at least one item, got none"):
        run(validation=[])


def test_it_logs_and_prints_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "geom.train"):
        train_everything(tmp_path, replace(EVERYTHING, steps=6))
        train_everything(tmp_path, replace(EVERYTHING, steps=8))
    said = "\n".join(caplog.messages)
    for words in ("step 4: saved", "step 6: validation loss", "step 6: going on from", "step 8: saved"):
        assert words in said
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run()
    assert "12/12" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["full", "bfloat16", "float16"])
def test_on_a_gpu(tmp_path: Path, precision: Any) -> None:
    config = replace(BASE, steps=60, precision=precision, average=0.9, checkpoint_every=25)
    state, module = torch.cuda.get_rng_state(), network(dropout=0.1)

    def drawn(module: torch.nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        x, y = batch
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        return (module(x + 0.01 * noise) - y).float().square().mean()

    history = train(module, Points(), drawn, config=config, out=tmp_path, validation=Points(5))
    assert next(module.parameters()).is_cuda and history[-1]["loss"] < history[0]["loss"]
    assert [record["step"] for record in history] == list(range(1, 61))
    assert torch.equal(state, torch.cuda.get_rng_state())
    longer = train(network(), Points(), drawn, config=replace(config, steps=70), out=tmp_path, validation=Points(5))
    assert longer[:60] == history
