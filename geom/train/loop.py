"""The training loop."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from geom.checks import describe
from geom.errors import ShapeError
from geom.train.batches import Batches, Collate, Items, pieces, stack
from geom.train.config import TrainConfig
from geom.train.history import History, Record
from geom.train.processes import Processes
from geom.train.run import Loss, M, Reading, Run, mode
from geom.train.seeds import preserved

__all__ = ["adamw", "train"]

_AHEAD = 16  # steps that a GPU may run before the host reads their losses


def adamw(module: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the parameters that want gradients, with the rate and the weight decay of the configuration.

    Parameters with a true attribute `_no_weight_decay`, such as the rates of a state-space model, do not decay.

    Args:
        module: whose parameters are optimised.
        config: gives `rate` and `weight_decay`.

    Returns:
        the optimizer.

    Guarantees: not differentiable; deterministic.
    """
    decaying: dict[bool, list[torch.nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            decaying.setdefault(not getattr(p, "_no_weight_decay", False), []).append(p)
    groups = [{"params": own, "weight_decay": config.weight_decay * decays} for decays, own in decaying.items()]
    return torch.optim.AdamW(groups, lr=config.rate)


def train(
    module: M,
    dataset: Items[Any],
    loss: Loss[M],
    *,
    config: TrainConfig,
    out: str | os.PathLike[str] | None = None,
    validation: Items[Any] | None = None,
    collate: Collate = stack,
    optimizer: Callable[[torch.nn.Module, TrainConfig], torch.optim.Optimizer] = adamw,
    device: str | torch.device = "auto",
) -> list[Record]:
    """Train a module; called again with the same folder after a kill, go on to the same bits (CPU, one thread).

    A step averages the gradients of `loss` over `accumulate` passes in every process, clips them, and moves the
    parameters at rate x schedule. Before each pass all generators are seeded from the seed and the number of the pass
    (those of python, numpy and torch, which dataset and dropout draw from, and the one that `loss` is given), and the
    order of the data is a function of the seed too: a training has no random state, and any split of the same number of
    passes over processes draws the same numbers. Loss functions keep no state of their own between steps.

    Under torchrun the processes share the work, which needs accelerate, and a folder, in which the first one writes.
    Gradients are averaged once a step, without a wrapper around the module, so the loss may call any method of it.

    Args:
        module: trained in place, and moved to the device; of several processes, the first one's weights count.
        dataset: anything with `len` and `[index]`.
        loss: (module, batch on the device, generator of the device) -> scalar tensor, or (scalar, named scalars for
            the history). A mean over the batch, if several passes are to equal one over all of their items.
        config: the numbers.
        out: folder for `config.json`, `history.jsonl`, `last.safetensors` (everything to go on from) and, under
            validation, `best.safetensors` (weights of the lowest loss); see `load_weights`. None writes nothing.
            A folder with a checkpoint is continued: by the same configuration, save steps, workers, checkpoint_every.
        validation: items on which the loss is averaged every `validate_every` steps, in eval mode, without gradients,
            with the averaged weights where there are such, and with the same random numbers each time.
        collate: list of items -> batch.
        optimizer: (module, config) -> optimizer; its own rates are multiplied by the schedule.
        device: "auto" for CUDA where there is one.

    Returns:
        one record a step: step, loss, rate, grad_norm (before clipping; absent from float16 steps that overflowed), the
        named scalars, and validation_loss etc. on the steps that validate.

    Raises:
        GeomError: a loss or a gradient is not finite (the module is then spoilt, the last checkpoint is not); the
            folder holds a training of another configuration.
        ShapeError: empty data or an iterable dataset, a loss that is no scalar, a module unlike the checkpoint's.
        FileFormatError: the checkpoint in the folder is none.
        MissingDependencyError: several processes without accelerate.

    >>> module = torch.nn.Linear(1, 1)
    >>> data = [(torch.tensor([x]), torch.tensor([3 * x])) for x in torch.linspace(-1, 1, 16)]
    >>> def loss(module, batch, generator):
    ...     return (module(batch[0]) - batch[1]).square().mean()
    >>> history = train(module, data, loss, config=TrainConfig(steps=100, batch=4, rate=0.1), device="cpu")
    >>> bool(history[-1]["loss"] < 1e-2 < history[0]["loss"])
    True

    Guarantees: not differentiable; deterministic; the same bits after a kill on the CPU.
    """
    for name, items in {"dataset": dataset, "validation": validation}.items():
        if items is not None and not isinstance(items, Items):
            raise ShapeError(f"{name}: expected something with a length and items by index, got {describe(items)}")
        if items is not None and not len(items):
            raise ShapeError(f"{name}: expected at least one item, got none")
    processes = Processes(device)
    module.to(processes.device)
    processes.share([*module.parameters(), *module.buffers()])
    run = Run(module, optimizer(module, config), loss, collate, config, processes)
    folder = None if out is None else Path(out)
    history = History(None if folder is None else folder / "history.jsonl", writes=processes.first)
    if folder is not None:
        run.resume(folder, len(dataset))
        history.resume(run.step)
    with mode(module, training=True), preserved(processes.device):
        _walk(run, dataset, validation, history, folder)
    processes.wait()  # until the first has written its files
    if run.average is not None:
        run.average.swap()
    return history.records


def _walk(
    run: Run[Any], dataset: Items[Any], validation: Items[Any] | None, history: History, out: Path | None
) -> None:
    """The steps that are left, and what happens between them."""
    from tqdm import tqdm  # 30 ms that `import geom.train` need not spend

    config, processes = run.config, run.processes
    ahead = _AHEAD if processes.device.type == "cuda" else 1
    wanted = pieces(config, len(dataset), run.step, processes.index, processes.count)
    batches = Batches(dataset, run.collate, config.seed, "train").walk(wanted, config.workers)
    pending: list[Reading] = []
    shows = processes.first and sys.stderr.isatty()
    with tqdm(total=config.steps, initial=run.step, disable=not shows, unit="step") as bar:
        while run.step < config.steps:
            pending.append(run.advance(batches))
            bar.update()
            ends = run.step == config.steps
            validates = ends or run.step % config.validate_every == 0
            saves = ends or run.step % config.checkpoint_every == 0
            if not validates and not saves and len(pending) < ahead:
                continue
            for record in run.read(pending):
                if validates and validation is not None and record["step"] == run.step:
                    record |= run.validate(validation, out)
                history.append(record)
                bar.set_postfix_str(f"loss {record['loss']:.4g}", refresh=False)
            pending.clear()
            if saves and out is not None:  # after the history, which has then all steps of the checkpoint
                run.save(out, len(dataset))
