"""The order of the data as a function of the seed and the step, and the batches it makes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from geom.errors import ShapeError
from geom.train.config import TrainConfig
from geom.train.seeds import derive, sow

__all__ = ["Batches", "Collate", "Items", "Piece", "order", "pieces", "stack"]

Collate = Callable[[list[Any]], Any]
T = TypeVar("T", covariant=True)


@runtime_checkable
class Items(Protocol[T]):
    """What a dataset is: items 0, 1, ..., len - 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T: ...


class Piece(NamedTuple):
    """One pass of one process: the indices of its items, and the number it is seeded with."""

    items: list[int]
    number: int


def order(seed: int, length: int, start: int) -> Iterator[int]:
    """Indices from place `start` on of an endless sequence: one permutation of all items after the other."""
    epoch, place = divmod(start, length)
    while True:
        generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
        yield from torch.randperm(length, generator=generator)[place:].tolist()
        epoch, place = epoch + 1, 0


def pieces(config: TrainConfig, length: int, start: int, process: int, processes: int) -> Iterator[Piece]:
    """The pieces of one process, `accumulate` a step, from step `start` on.

    All processes walk the same sequence and take turns, so that two processes compute what one would with twice the
    passes.
    """
    share = config.accumulate * processes
    indices = order(config.seed, length, start * share * config.batch)
    for number in range(start * share, config.steps * share):
        items = [next(indices) for _ in range(config.batch)]
        if number % processes == process:
            yield Piece(items, number)


class Batches(Generic[T]):
    """Batches of a dataset, each made under its own seed, here or in `workers` processes ahead of time."""

    def __init__(self, dataset: Items[T], collate: Collate, seed: int, purpose: str) -> None:
        self._dataset, self._collate, self._seed, self._purpose = dataset, collate, seed, purpose

    def __getitem__(self, piece: Piece) -> tuple[int, Any]:
        """The piece's number and its batch."""
        sow(derive(self._seed, f"{self._purpose} data", piece.number), torch.device("cpu"))
        return piece.number, self._collate([self._dataset[index] for index in piece.items])

    def walk(self, wanted: Iterable[Piece], workers: int) -> Iterator[tuple[int, Any]]:
        """The number and the batch of each piece, in order."""
        if not workers:
            return map(self.__getitem__, wanted)
        loader = DataLoader(
            self,  # pyright: ignore[reportArgumentType]  # anything with __getitem__ is good
            batch_size=None,
            sampler=wanted,
            num_workers=workers,
            collate_fn=_same,
        )
        return iter(loader)


def stack(items: list[Any]) -> Any:
    """Items of one structure as one batch: tensors, arrays and numbers get a leading dimension, field by field.

    Tuples, lists, dicts and values (`geom.lie.Rigid`, ...) are walked through; strings and None become lists. Clouds of
    different sizes cannot be stacked: write a `collate` of your own that concatenates them and adds `offsets`.

    Args:
        items: at least one; all of the same structure, shapes and dtypes.

    Returns:
        the same structure, each tensor with a leading dimension of len(items).

    Raises: ShapeError if the items differ in structure or shapes.

    >>> x, label = stack([(torch.zeros(3), 0), (torch.ones(3), 1)])
    >>> x.shape, label
    (torch.Size([2, 3]), tensor([0, 1]))

    Guarantees: differentiable; deterministic; a copy.
    """
    if not items:
        raise ShapeError("items: expected at least one, got none")

    def join(*leaves: Any) -> Any:
        if isinstance(leaves[0], Tensor):
            return torch.stack(leaves)
        if isinstance(leaves[0], (bool, int, float, complex, np.ndarray, np.generic)):
            return torch.stack([torch.as_tensor(leaf) for leaf in leaves])
        return list(leaves)

    try:
        return pytree.tree_map(join, *items)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ShapeError(
            f"items: expected one structure and one shape a field (or your own collate), got {reason}"
        ) from error


def _same(batch: Any) -> Any:
    return batch
