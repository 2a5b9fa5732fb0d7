"""The operators of sparse voxels by torch's own rules, and their products against plain torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geom.kernels import sparse
from geom.nn import sparse_conv  # noqa: F401 (defines the operators)
from geom.nn.sparse_conv import _convolve_by_torch, _weigh_by_torch


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tables(elements: int = 5, rows: int = 700, inputs: int = 600) -> tuple[Tensor, Tensor]:
    """Each element pairs some outputs with as many inputs, one with one; the second table has the pairs by input."""
    generator = torch.Generator().manual_seed(7)
    table = torch.full((elements, rows), -1, dtype=torch.int32)
    transposed = torch.full((elements, inputs), -1, dtype=torch.int32)
    for k in range(elements):
        count = min((0, 1, 37, 400, 600)[k % 5], rows, inputs)
        to, from_ = (torch.randperm(n, generator=generator)[:count] for n in (rows, inputs))
        table[k, to], transposed[k, from_] = from_.int(), to.int()
    return table, transposed


@pytest.mark.parametrize("channels", [(1, 1), (3, 16), (4, 17), (33, 8), (32, 40)])
def test_products(channels: tuple[int, int], dtype: torch.dtype) -> None:
    table, _ = tables()
    x, w, g = random(600, channels[0]), random(5, *channels, seed=1), random(700, channels[1], seed=2)
    low = [t.to(dtype) for t in (x, w, g)]
    tolerance = 2e-6 if dtype == torch.float32 else 1e-14
    pairs = [
        (sparse.convolve(low[0], low[1], table), _convolve_by_torch(x, w, table)),
        (sparse.weigh(low[0], low[2], table), _weigh_by_torch(x, g, table)),
    ]
    for got, want in pairs:
        assert got.dtype == dtype and (got - want).abs().max() <= tolerance * want.abs().max()


def test_sums_and_extremes(dtype: torch.dtype) -> None:
    values, order = random(6, 19, dtype=dtype), torch.tensor([4, 0, 2, 5, 1, 3])
    starts = torch.tensor([0, 2, 2, 6])
    parts = [values[order[a:b]] for a, b in ((0, 2), (2, 2), (2, 6))]
    want = torch.stack([part.double().sum(0) for part in parts]).to(dtype)
    assert torch.equal(sparse.segment_sum(values, order, starts), want)
    for least in (False, True):
        found, rows = sparse.segment_extreme(values, order, starts, least)
        assert (rows[1] == -1).all() and not found[1].any()
        for i in (0, 2):
            best = parts[i].amin(0) if least else parts[i].amax(0)
            assert torch.equal(values.gather(0, rows[i : i + 1])[0], best) and torch.equal(found[i], best)


OPERATORS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "sparse_convolve": lambda: (random(600, 3).requires_grad_(), random(5, 3, 2).requires_grad_(), *tables()),
    "sparse_weigh": lambda: (random(600, 3).requires_grad_(), random(700, 2).requires_grad_(), *tables()),
    "segment_sum": lambda: (random(4, 2).requires_grad_(), torch.tensor([2, 0, 1, 3]), torch.tensor([0, 1, 1, 4])),
    "segment_extreme": lambda: (
        random(4, 2).requires_grad_(),
        torch.tensor([2, 0, 1, 3]),
        torch.tensor([0, 1, 1, 4]),
        True,
    ),
    "segments": lambda: (torch.tensor([2, 0, 1, 0]), 3),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_torch_accepts_the_operator(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.geom, name).default, OPERATORS[name]())


def test_gradients_of_the_products() -> None:
    table, transposed = tables(rows=9, inputs=8, elements=4)
    ops = torch.ops.geom
    inputs = (random(8, 2), random(4, 2, 3, seed=1), random(9, 3, seed=2))
    x, w, g = (t.requires_grad_() for t in inputs)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x, w: ops.sparse_convolve(x, w, table, transposed), (x, w))
        assert check(lambda x, g: ops.sparse_weigh(x, g, table, transposed), (x, g))


def test_kernels_of_integers_alone_are_compiled_once() -> None:
    for found in (sparse.insert, sparse.locate, sparse.mirror):
        assert found[torch.float32] is found[torch.float64]
    assert sparse._weigh[torch.float32] is not sparse._weigh[torch.float64]
