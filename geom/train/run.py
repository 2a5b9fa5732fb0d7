"""A training under way: what a checkpoint holds, and what happens to it (a step, a validation, a save)."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils import _pytree as pytree

from geom.checks import describe
from geom.errors import FileFormatError, GeomError, ShapeError
from geom.files import write_atomically
from geom.train.average import Average
from geom.train.batches import Batches, Collate, Items, Piece
from geom.train.checkpoint import load_checkpoint, put, save_checkpoint
from geom.train.config import TrainConfig
from geom.train.history import Record
from geom.train.processes import Processes
from geom.train.seeds import derive, sow

__all__ = ["Loss", "Reading", "Run", "mode"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=torch.nn.Module)
Loss = Callable[[M, Any, torch.Generator], Tensor | tuple[Tensor, dict[str, Tensor]]]
_RESERVED = {"step", "loss", "rate", "grad_norm"}
_FREE = {"workers", "checkpoint_every", "steps"}  # what a training that goes on may have otherwise than it began


class Reading(NamedTuple):
    """What one step measured, still on the device: reading it there and then would make a GPU wait."""

    step: int
    rate: float
    names: list[str]
    numbers: Tensor  # float64, in the order of the names


class Run(Generic[M]):
    """Module, optimizer, average, scaler and the number of steps done."""

    def __init__(
        self,
        module: M,
        optimizer: torch.optim.Optimizer,
        loss: Loss[M],
        collate: Collate,
        config: TrainConfig,
        processes: Processes,
    ) -> None:
        self.module, self.optimizer, self.config, self.processes = module, optimizer, config, processes
        self._loss, self.collate = loss, collate
        self.step, self.best = 0, math.inf
        self.average = None if config.average is None else Average(module, config.average)
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=config.precision == "float16")
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def advance(self, batches: Iterator[tuple[int, Any]]) -> Reading:
        """One optimizer step on the next `accumulate` batches."""
        config, numbers, names = self.config, torch.zeros(()), ["loss"]
        factor = config.schedule.factor(self.step, config.steps)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        for _ in range(config.accumulate):
            number, batch = next(batches)
            value, names, measured = self._measure("train", number, batch)
            if not value.requires_grad:
                raise GeomError("loss: expected one that depends on the module's parameters, got a constant")
            self._scaler.scale(value / config.accumulate).backward()
            numbers = numbers.to(measured) + measured / config.accumulate
        self.processes.average_gradients(self._parameters)
        self._scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if config.clip is not None:
            clip_grads_with_norm_(self._parameters, config.clip, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        self.processes.share(list(self.module.buffers()))
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        numbers = torch.cat([numbers, norm.to(numbers).reshape(1)])
        return Reading(self.step, self._rates[0] * factor, [*names, "grad_norm"], numbers)

    def read(self, readings: list[Reading]) -> Iterator[Record]:
        """Their records, the mean over all processes. Raises: GeomError at the first that is not finite."""
        flat = self.processes.sum(torch.cat([r.numbers for r in readings])) / self.processes.count
        for r, numbers in zip(readings, flat.split([len(r.names) for r in readings]), strict=True):
            record = {"step": r.step, "rate": r.rate, **dict(zip(r.names, numbers.tolist(), strict=True))}
            # a scaled loss may overflow: the scaler has left that step out and halved the scale
            if self._scaler.is_enabled() and self._scaler.get_scale() >= 1 and not math.isfinite(record["grad_norm"]):
                del record["grad_norm"]
            for name in ("loss", "grad_norm"):
                if not math.isfinite(record.get(name, 0.0)):
                    raise GeomError(f"step {r.step}: expected a finite {name}, got {record[name]}")
            yield record

    def validate(self, dataset: Items[Any], out: Path | None) -> Record:
        """The mean of the loss and of each named scalar over a dataset; saves the best weights so far.

        Raises: GeomError if the loss is not finite.
        """
        config, n = self.config, len(dataset)
        every = [
            Piece(list(range(start, min(start + config.batch, n))), number)
            for number, start in enumerate(range(0, n, config.batch))
        ]
        mine = every[self.processes.index :: self.processes.count]
        weights = [len(piece.items) / n for piece in mine] or [0.0]  # one without work joins the sum too
        total, names = torch.zeros(()), ["loss"]
        with self.average.applied() if self.average else nullcontext(), mode(self.module, training=False):
            batches = Batches(dataset, self.collate, config.seed, "validation").walk(mine or every[:1], config.workers)
            with torch.no_grad():
                for weight, (number, batch) in zip(weights, batches, strict=True):
                    _, names, measured = self._measure("validation", number, batch)
                    total = total.to(measured) + measured * weight
            record = {f"validation_{k}": v for k, v in zip(names, self.processes.sum(total).tolist(), strict=True)}
            found = record["validation_loss"]
            if not math.isfinite(found):
                raise GeomError(f"step {self.step}: expected a finite validation loss, got {found}")
            logger.info("step %d: validation loss %.6g, best before %.6g", self.step, found, self.best)
            if found < self.best:
                self.best = found
                if out is not None and self.processes.first:
                    weights_now = {"module": self.module.state_dict(), "average": None}
                    about = {"step": self.step, "config": config.to_plain(), "validation_loss": found}
                    save_checkpoint(out / "best.safetensors", {**about, **weights_now})
        return record

    def save(self, out: Path, items: int) -> None:
        """Write all there is to go on from."""
        if not self.processes.first:
            return
        state = {
            "step": self.step,
            "best": self.best,
            "items": items,
            "processes": self.processes.count,
            "config": self.config.to_plain(),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.tensors,
            "scaler": self._scaler.state_dict(),
        }
        save_checkpoint(out / "last.safetensors", state)
        logger.info("step %d: saved %s", self.step, out / "last.safetensors")

    def resume(self, out: Path, items: int) -> None:
        """Go on from what `save` wrote there, if it did; make the folder otherwise.

        Raises: GeomError if it belongs to another training.
        """
        path = out / "last.safetensors"
        if path.exists():
            state = load_checkpoint(path)
            if "optimizer" not in state:
                raise FileFormatError(path, f"expected a checkpoint to go on from, got {', '.join(map(str, state))}")
            now = {**self.config.to_plain(), "items": items, "processes": self.processes.count}
            old = {**state["config"], "items": state["items"], "processes": state["processes"]}
            other = [f"{k} {old.get(k)!r} (now {v!r})" for k, v in now.items() if k not in _FREE and old.get(k) != v]
            if state["step"] > self.config.steps:
                other.append(f"{state['step']} steps done (now {self.config.steps} in all)")
            if other:
                raise GeomError(f"{out}: expected to go on with the same training, got one of {'; '.join(other)}")
            put(self.module, state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._scaler.load_state_dict(state["scaler"])
            if self.average is not None:
                self.average.load(state["average"])
            self.step, self.best = state["step"], state["best"]
            logger.info("step %d: going on from %s", self.step, path)
        if self.processes.first:
            out.mkdir(parents=True, exist_ok=True)
            for cut in out.glob(".geom-*"):  # what a kill left of a file that it interrupted
                cut.unlink()
            write_atomically(out / "config.json", self.config.to_json())

    def _measure(self, purpose: str, number: int, batch: Any) -> tuple[Tensor, list[str], Tensor]:
        """(loss, its name and those of the scalars beside it, all of them as float64)."""
        device, precision = self.processes.device, self.config.precision
        batch = pytree.tree_map(lambda x: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x, batch)
        generator = sow(derive(self.config.seed, f"{purpose} loss", number), device)
        dtype = torch.float16 if precision == "float16" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=precision != "full"):
            result = self._loss(self.module, batch, generator)
        value, extra = result if isinstance(result, tuple) else (result, {})
        scalars = {"loss": value, **extra}
        for name, x in scalars.items():
            if not isinstance(x, Tensor) or x.ndim:
                raise ShapeError(f"{name}: expected the loss function to return scalar tensors, got {describe(x)}")
        if _RESERVED & set(extra):
            raise ShapeError(f"loss: expected names other than {', '.join(sorted(_RESERVED))}, got {list(extra)}")
        return value, list(scalars), torch.stack([x.detach().to(device, torch.float64) for x in scalars.values()])


@contextmanager
def mode(module: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Every part of the module in training or in eval mode; each in its own again outside."""
    before = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, was in before:
            part.training = was
