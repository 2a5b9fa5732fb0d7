"""Morton order: the kernel against the twin and against interleaving by hand, the radix sort against torch's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geom.points.morton import CELLS, cell_keys, cell_order, corners, morton_order


def random(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def interleave(cell: list[int]) -> int:
    return sum((c >> bit & 1) << (3 * bit + axis) for axis, c in enumerate(cell) for bit in range(21))


def test_keys_by_hand(dtype: torch.dtype) -> None:
    cells = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [5, 3, 6], [CELLS - 1] * 3, [CELLS - 1, 0, 1 << 20]]
    points, one = torch.tensor(cells, dtype=dtype), torch.tensor([0, len(cells)])
    size = torch.ones(1, dtype=dtype)
    for backend in ("warp", "torch"):
        keys = cell_keys(points, one, torch.zeros(1, 3, dtype=dtype), size, backend=backend)
        assert keys.tolist() == [interleave(cell) for cell in cells]
    beyond = torch.tensor([[-5.0, 0.5, 1e9]], dtype=dtype)
    for backend in ("warp", "torch"):
        (key,) = cell_keys(beyond, torch.tensor([0, 1]), torch.zeros(1, 3, dtype=dtype), size, backend=backend)
        assert int(key) == interleave([0, 0, CELLS - 1])


def test_keys_of_ragged_clouds_match_the_twin(dtype: torch.dtype) -> None:
    points, offsets = random(1000, dtype), torch.tensor([0, 0, 3, 3, 400, 1000, 1000])
    origin, size = corners(points, offsets)[0] - 0.01, torch.tensor([1, 0.1, 2, 0.03, 0.5, 1], dtype=dtype)
    a, b = (cell_keys(points, offsets, origin, size, backend=name) for name in ("warp", "torch"))
    assert torch.equal(a, b) and len(a.unique()) > 300


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 63), st.integers(0, 2**31))
def test_radix_sort_is_the_stable_sort(sizes: list[int], bits: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randint(0, 2**63 - 1, (sum(sizes),), generator=draw) & (2**bits - 1)
    keys = torch.where(torch.rand(len(keys), generator=draw) < 0.3, keys[:1], keys)  # equal ones, too
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    ordered, order = cell_order(keys, offsets, bits=bits)
    assert all(map(torch.equal, cell_order(keys, offsets, backend="torch"), (ordered, order)))
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        want = keys[start:stop].sort(stable=True)
        assert torch.equal(ordered[start:stop], want.values)
        assert torch.equal(order[start:stop], want.indices + start)


def test_morton_order_of_ragged_clouds(dtype: torch.dtype) -> None:
    points, offsets = random(300, dtype), torch.tensor([0, 0, 100, 101, 300])
    order = morton_order(points, offsets)
    assert torch.equal(order.sort().values, torch.arange(300))
    for start, stop in ((0, 100), (100, 101), (101, 300)):
        alone = morton_order(points[start:stop], torch.tensor([0, stop - start]))
        assert torch.equal(order[start:stop], alone + start)
    walk = points[order[101:]]
    steps = (walk[1:] - walk[:-1]).norm(dim=-1).mean()
    assert steps < 0.6 * (points[102:] - points[101:-1]).norm(dim=-1).mean(), "neighbours in order are near"


@pytest.mark.parametrize("count", [0, 1, 7])
def test_points_in_one_place_keep_their_order(count: int, dtype: torch.dtype) -> None:
    points = torch.full((count, 3), 2.5, dtype=dtype)
    assert torch.equal(morton_order(points, torch.tensor([0, count])), torch.arange(count))
