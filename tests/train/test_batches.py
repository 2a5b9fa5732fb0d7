import random
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geom.errors import ShapeError
from geom.lie import Rigid
from geom.train import TrainConfig, stack
from geom.train.batches import order, pieces
from geom.train.seeds import derive, preserved, sow


@given(st.integers(0, 2**40), st.integers(1, 30), st.integers(0, 100))
def test_the_order_can_be_entered_anywhere(seed: int, length: int, start: int) -> None:
    whole = list(islice(order(seed, length, 0), start + 50))
    assert list(islice(order(seed, length, start), 50)) == whole[start:]
    for epoch in range(len(whole) // length):
        assert sorted(whole[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_the_order_differs_between_epochs_and_seeds() -> None:
    twice = list(islice(order(0, 50, 0), 100))
    assert twice[:50] != twice[50:]
    assert twice != list(islice(order(1, 50, 0), 100))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 4))
def test_processes_and_passes_split_one_sequence(processes: int, accumulate: int, batch: int, start: int) -> None:
    config = TrainConfig(steps=5, batch=batch, accumulate=accumulate)
    alone = TrainConfig(steps=5, batch=batch, accumulate=accumulate * processes)
    split = [piece for k in range(processes) for piece in pieces(config, 13, start, k, processes)]
    assert sorted(split, key=lambda piece: piece.number) == list(pieces(alone, 13, start, 0, 1))
    assert len(split) == (5 - start) * accumulate * processes


def test_seeds_are_those_of_any_machine() -> None:
    assert derive(0, "train loss", 0) == 0x5AE1C272021B6801 >> 1  # b2sum -l 64, read from its last byte
    assert len({derive(s, p, k) for s in range(5) for p in ("a", "b") for k in range(100)}) == 1000


def test_sowing_seeds_everything_and_everything_comes_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    cpu = torch.device("cpu")
    sow(1, cpu)
    first = draw()
    with preserved(cpu):
        generator = sow(2, cpu)
        second = draw()
        own = torch.rand((), generator=generator)
    third = draw()
    sow(1, cpu)
    assert (first, third) == (draw(), draw())
    assert torch.equal(torch.rand((), generator=sow(2, cpu)), own)
    sow(2, cpu)
    assert draw() == second != first


def test_stack_walks_through_structures(dtype: torch.dtype) -> None:
    def item(k: int) -> dict[str, object]:
        pose = Rigid.identity(dtype=dtype)
        return {
            "pose": pose,
            "x": [torch.full((2,), float(k), dtype=dtype), k],
            "a": np.full(3, k),
            "name": f"item {k}",
        }

    batch = stack([item(k) for k in range(4)])
    assert batch["pose"].translation.shape == (4, 3) and batch["pose"].translation.dtype == dtype
    assert batch["x"][0].shape == (4, 2) and batch["x"][0].dtype == dtype
    assert batch["x"][1].tolist() == [0, 1, 2, 3]
    assert batch["a"].shape == (4, 3)
    assert batch["name"] == [f"item {k}" for k in range(4)]


@pytest.mark.parametrize(
    "items", [[], [torch.zeros(3), torch.zeros(4)], [{"a": 1}, {"b": 1}], [(torch.zeros(1),), torch.zeros(1)]]
)
def test_what_cannot_be_stacked_is_refused(items: list[object]) -> None:
    with pytest.raises(ShapeError, match="items: expected"):
        stack(items)
