"""Kernel maps and look-ups against dictionaries of cells: batches, signs, boxes, repeats, and what is refused."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.nn import KernelMap, Voxels, lookup, merge_voxels, strided_map, submanifold_map

both = pytest.mark.parametrize("backend", ["warp", "torch"])


def scattered(count: int, extent: int = 9, seed: int = 0) -> Voxels:
    """Distinct cells about the origin, in no order, more than half of them empty."""
    cells = torch.cartesian_prod(*(torch.arange(-extent // 2, extent - extent // 2),) * 3)
    grid = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:count]]
    return Voxels(grid, torch.arange(float(count))[:, None])


def batch(*clouds: Voxels) -> Voxels:
    sizes = torch.tensor([0, *(len(cloud.grid) for cloud in clouds)])
    return Voxels(torch.cat([c.grid for c in clouds]), torch.cat([c.features for c in clouds]), sizes.cumsum(0))


def rows_of(grid: Tensor) -> dict[tuple[int, ...], int]:
    return {tuple(cell): row for row, cell in enumerate(grid.tolist())}


def same(a: KernelMap, b: KernelMap) -> bool:
    names = ("neighbors", "transposed", "source", "target", "source_offsets", "target_offsets")
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


def assert_transposed(kernel_map: KernelMap) -> None:
    """Both tables hold the same pairs."""
    pairs = []
    for table, flip in ((kernel_map.neighbors, False), (kernel_map.transposed, True)):
        k, a = (table >= 0).nonzero().unbind(1)
        b = table[k, a].long()
        pairs.append(
            set(zip(k.tolist(), *((b.tolist(), a.tolist()) if flip else (a.tolist(), b.tolist())), strict=True))
        )
    assert pairs[0] == pairs[1] and pairs[0]
    again = kernel_map.transpose().transpose()
    assert same(again, kernel_map) and torch.equal(kernel_map.transpose().neighbors, kernel_map.transposed)


@both
@pytest.mark.parametrize(("size", "dilation"), [((3, 3, 3), (1, 1, 1)), ((1, 3, 5), (1, 2, 1)), ((1, 1, 1), (1, 1, 1))])
def test_submanifold_neighbours_of_a_dictionary(
    size: tuple[int, int, int], dilation: tuple[int, int, int], backend: str
) -> None:
    voxels = scattered(300)
    kernel_map = submanifold_map(voxels, kernel_size=size, dilation=dilation, backend=backend)
    rows = rows_of(voxels.grid)
    want = [
        [
            rows.get(tuple(x + (k - n // 2) * d for x, k, n, d in zip(cell, ways, size, dilation, strict=True)), -1)
            for cell in rows
        ]
        for ways in product(*map(range, size))
    ]
    assert kernel_map.neighbors.tolist() == want and kernel_map.neighbors.dtype == torch.int32
    assert torch.equal(kernel_map.source, voxels.grid) and torch.equal(kernel_map.target, voxels.grid)
    assert_transposed(kernel_map)


STRIDED: dict[str, dict[str, Any]] = {
    "halves": {},
    "published": {"kernel_size": 3, "padding": 1},
    "no_padding": {"kernel_size": 3},
    "thirds_apart": {"kernel_size": 2, "stride": 3, "dilation": 2},
    "one_axis": {"kernel_size": (3, 1, 1), "stride": (2, 1, 1)},
    "unstrided": {"kernel_size": 3, "stride": 1, "padding": 1},
    "some_lost": {"kernel_size": 1, "stride": 2},
}


@both
@pytest.mark.parametrize("case", STRIDED)
def test_strided_cells_and_neighbours_of_a_dictionary(case: str, backend: str) -> None:
    voxels = scattered(200)
    kernel_map = strided_map(voxels, **STRIDED[case], backend=backend)
    options = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, **STRIDED[case]}
    size, stride, padding, dilation = (x if isinstance(x, tuple) else (x,) * 3 for x in options.values())
    rows, want = rows_of(voxels.grid), {}
    for coarse in product(range(-10, 11), repeat=3):
        found = [
            rows.get(
                tuple(o * s - p + k * d for o, s, p, k, d in zip(coarse, stride, padding, ways, dilation, strict=True)),
                -1,
            )
            for ways in product(*map(range, size))
        ]
        if max(found) >= 0:
            want[coarse] = found
    got = dict(zip(map(tuple, kernel_map.target.tolist()), kernel_map.neighbors.mT.tolist(), strict=True))
    assert got == want and len(kernel_map.target) == len(want)
    assert_transposed(kernel_map)


def test_a_box_ends_where_the_dense_one_does() -> None:
    full = Voxels(torch.cartesian_prod(torch.arange(7), torch.arange(6), torch.arange(5)), torch.ones(210, 1))
    options: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1}
    free, boxed = strided_map(full, **options), strided_map(full, **options, shape=(7, 6, 5))
    dense = torch.nn.functional.conv3d(torch.ones(1, 1, 7, 6, 5), torch.ones(1, 1, 3, 3, 3), stride=2, padding=1)
    assert boxed.target.amax(0).tolist() == [n - 1 for n in dense.shape[2:]] and boxed.target.amin() == 0
    assert len(boxed.target) == dense.numel() < len(free.target)


@pytest.mark.parametrize("case", ["submanifold", *STRIDED])
def test_warp_is_the_twin_and_ragged_is_one_by_one(case: str) -> None:
    empty = Voxels(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 1))
    clouds = [scattered(150), empty, scattered(1, seed=1), scattered(300, extent=13, seed=2), empty]

    def build(voxels: Voxels, backend: str) -> KernelMap:
        if case == "submanifold":
            return submanifold_map(voxels, backend=backend)
        return strided_map(voxels, **STRIDED[case], backend=backend)

    whole = build(batch(*clouds), "warp")
    assert same(whole, build(batch(*clouds), "torch"))
    assert whole.source_offsets is not None and whole.target_offsets is not None
    for i, cloud in enumerate(clouds):
        alone = build(cloud, "warp")
        from_, to = whole.source_offsets[i : i + 2].tolist(), whole.target_offsets[i : i + 2].tolist()
        assert torch.equal(whole.target[to[0] : to[1]], alone.target)
        for name, (begin, end), other in (("neighbors", to, from_), ("transposed", from_, to)):
            part = getattr(whole, name)[:, begin:end]
            assert torch.equal(torch.where(part < 0, -1, part - other[0]), getattr(alone, name))


@both
def test_lookup(backend: str) -> None:
    voxels, other = scattered(200), scattered(150, seed=3)
    asked = torch.cartesian_prod(*(torch.arange(-12, 13),) * 3)
    rows = rows_of(voxels.grid)
    got = lookup(voxels, asked, backend=backend)
    assert got.tolist() == [rows.get(tuple(cell), -1) for cell in asked.tolist()]
    assert torch.equal(lookup(voxels, voxels.grid, backend=backend), torch.arange(200))
    two = lookup(
        batch(voxels, other),
        torch.cat([asked, other.grid]),
        offsets=torch.tensor([0, len(asked), len(asked) + 150]),
        backend=backend,
    )
    assert torch.equal(two[: len(asked)], got) and torch.equal(two[len(asked) :], 200 + torch.arange(150))
    far = torch.tensor([[2**62, 0, 0], [-(2**62), 0, 0], [2**63 - 1] * 3, [0, 0, 2**21], [0, -1 - 2**21, 0]])
    assert lookup(voxels, far, backend=backend).tolist() == [-1] * 5


@both
def test_cells_far_from_the_origin(backend: str) -> None:
    voxels = scattered(200)
    far = Voxels(voxels.grid + torch.tensor([2**60, -(2**61), 12345]), voxels.features)
    assert torch.equal(
        submanifold_map(far, backend=backend).neighbors, submanifold_map(voxels, backend=backend).neighbors
    )
    assert torch.equal(lookup(far, far.grid, backend=backend), torch.arange(200))


@both
def test_nothing_and_one(backend: str) -> None:
    for count in (0, 1):
        voxels = scattered(count)
        same_grid, down = submanifold_map(voxels, backend=backend), strided_map(voxels, backend=backend)
        assert same_grid.neighbors.shape == (27, count) and (same_grid.neighbors >= 0).sum() == count
        assert down.neighbors.shape == (8, count) and down.transposed.shape == (8, count)
        assert lookup(voxels, torch.full((2, 3), 99), backend=backend).tolist() == [-1, -1]
        assert lookup(voxels, voxels.grid, backend=backend).tolist() == list(range(count))


@both
def test_a_cell_twice_is_refused_and_merging_helps(backend: str) -> None:
    voxels = Voxels(torch.tensor([[1, 2, 3], [0, 0, 0], [1, 2, 3]]), torch.ones(3, 1))
    for build in (submanifold_map, strided_map):
        with pytest.raises(
            ShapeError, match=r"voxels: expected each cell once, got \[1, 2, 3\] again in row [02]; merge"
        ):
            build(voxels, backend=backend)
    with pytest.raises(ShapeError, match="expected each cell once"):
        lookup(voxels, voxels.grid, backend=backend)
    assert submanifold_map(merge_voxels(voxels)[0], backend=backend).neighbors.shape == (27, 2)
    apart = Voxels(voxels.grid, voxels.features, torch.tensor([0, 2, 3]))  # one in each of two clouds
    assert int((submanifold_map(apart, backend=backend).neighbors >= 0).sum()) == 3


@both
def test_too_wide_a_cloud(backend: str) -> None:
    wide = Voxels(torch.tensor([[0, 0, 0], [0, 2**21 - 3, 0]]), torch.ones(2, 1))
    assert int((submanifold_map(wide, backend=backend).neighbors >= 0).sum()) == 2
    with pytest.raises(ShapeError, match="grid: expected a cloud of at most 2097152 cells along an axis, got 2097154"):
        submanifold_map(wide, kernel_size=5, backend=backend)
    huge = Voxels(torch.tensor([[-(2**63), 0, 0], [2**63 - 1, 0, 0]]), torch.ones(2, 1))
    for build in (submanifold_map, strided_map):
        with pytest.raises(ShapeError, match="at most 2097152 cells"):
            build(huge, backend=backend)


def test_threads_do_not_change_a_bit(threads: Callable[[int], None]) -> None:
    voxels, found = scattered(40_000, extent=60), []
    for count in (1, 2):
        threads(count)
        found.append((submanifold_map(voxels), strided_map(voxels, kernel_size=3, padding=1)))
    assert all(same(a, b) for a, b in zip(*found, strict=True))


V = scattered(5)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "even": (
        lambda: submanifold_map(V, kernel_size=2),
        "kernel_size: expected odd numbers, which have a middle, got 2",
    ),
    "zero": (lambda: submanifold_map(V, kernel_size=0), "kernel_size: expected an integer of at least 1, or three"),
    "pair": (lambda: submanifold_map(V, dilation=(1, 2)), "dilation: expected"),  # type: ignore[arg-type]
    "stride": (lambda: strided_map(V, stride=0), "stride: expected an integer of at least 1"),
    "padding": (lambda: strided_map(V, padding=-1), "padding: expected an integer of at least 0"),
    "shape": (lambda: strided_map(V, shape=(3, 3, 3)), r"shape: expected cells in \[0, \(3, 3, 3\)\), got"),
    "asked": (lambda: lookup(V, V.grid.int()), r"grid: expected an int64 tensor \(N, 3\)"),
    "clouds": (
        lambda: lookup(V, V.grid, offsets=torch.tensor([0, 2, 5])),
        "offsets: expected those of 1 clouds, got 2",
    ),
    "backend": (lambda: submanifold_map(V, backend="gpu"), "backend: expected one of"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_shape_error(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        call()
