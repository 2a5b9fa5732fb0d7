"""Windows, equal groups, merging and spreading of voxels, against dictionaries and loops; odd shapes included."""

from itertools import pairwise, product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from geom.errors import ShapeError
from geom.nn import Voxels, merge_voxels
from geom.sequence.voxel_merge import SpatialDescriptor, VoxelMerge, coarse_shape, expand_voxels, generate_voxels
from geom.sequence.windows import equal_groups, window_order

SHAPES = [(1, 1, 1), (7, 5, 3), (13, 4, 5), (9, 9, 9), (2, 31, 1)]


def scene(
    shape: tuple[int, int, int], clouds: int = 1, width: int = 4, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Voxels:
    """About half of a box's cells, in no order, the last cell among them, in each of several clouds."""
    generator = torch.Generator().manual_seed(seed)
    grids = []
    for _ in range(clouds):
        every = torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, 3)
        kept = torch.randperm(len(every), generator=generator)[: (len(every) + 1) // 2]
        kept = torch.cat([kept[kept != len(every) - 1], torch.tensor([len(every) - 1])])
        grids.append(every[kept])
    offsets = torch.tensor([0, *(len(g) for g in grids)]).cumsum(0)
    count = int(offsets[-1])
    features = torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype)
    return Voxels(torch.cat(grids), features, offsets if clouds > 1 else None)


def spans(voxels: Voxels) -> list[tuple[int, int]]:
    ends = [0, len(voxels.grid)] if voxels.offsets is None else voxels.offsets.tolist()
    return list(pairwise(ends))


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (2, 31, 1)], ids=str)
@pytest.mark.parametrize("clouds", [1, 3])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("window", [(3, 3, 2), (4, 2, 5), (13, 13, 32)], ids=str)
def test_window_order_of_a_dictionary(
    shape: tuple[int, int, int], clouds: int, shift: bool, axis: str, window: tuple[int, int, int]
) -> None:
    voxels = scene(shape, clouds)
    expected: list[int] = []
    for start, stop in spans(voxels):
        by_window: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
        for row in range(start, stop):
            moved = [g + (w // 2 if shift else 0) for g, w in zip(voxels.grid[row].tolist(), window, strict=True)]
            turn = (0, 1, 2) if axis == "x" else (1, 0, 2)
            outer, inner = tuple(moved[k] // window[k] for k in turn), tuple(moved[k] % window[k] for k in turn)
            by_window.setdefault(outer, {})[inner] = row
        expected += [within[i] for _, within in sorted(by_window.items()) for i in sorted(within)]
    assert window_order(voxels, window, axis=axis, shift=shift).tolist() == expected


def test_the_published_keys_give_the_same_order() -> None:
    shape, (wx, wy, wz) = (7, 5, 9), (3, 2, 4)
    voxels = scene(shape)
    for shift in (False, True):
        x, y, z = (voxels.grid + torch.tensor([wx // 2, wy // 2, wz // 2]) * shift).unbind(1)
        mx, my, mz = (-(-n // w) + 1 for n, w in zip(shape, (wx, wy, wz), strict=True))
        key_x = ((x // wx) * my * mz + (y // wy) * mz + z // wz) * wx * wy * wz + (x % wx * wy + y % wy) * wz + z % wz
        key_y = ((y // wy) * mx * mz + (x // wx) * mz + z // wz) * wx * wy * wz + (y % wy * wx + x % wx) * wz + z % wz
        assert torch.equal(window_order(voxels, (wx, wy, wz), axis="x", shift=shift), key_x.argsort())
        assert torch.equal(window_order(voxels, (wx, wy, wz), axis="y", shift=shift), key_y.argsort())


def test_cells_of_any_sign() -> None:
    voxels = scene((9, 8, 7), 2)
    far = Voxels(voxels.grid + torch.tensor([-12, 40_000, -(2**20)]), voxels.features, voxels.offsets)
    for axis in "xy":  # by multiples of the window
        assert torch.equal(window_order(far, (4, 8, 16), axis=axis), window_order(voxels, (4, 8, 16), axis=axis))
    assert window_order(Voxels(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 1)), 4).shape == (0,)


def padded_by_a_loop(order: list[int], bounds: list[int], size: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for start, stop in pairwise(bounds):
        own, before = order[start:stop], None
        for begin in range(0, len(own), size):
            group = own[begin : begin + size]
            if len(group) < size:
                group = group + before[len(group) :] if before else (group * size)[:size]
            groups.append(group)
            before = group
    return groups


@given(lengths=st.lists(st.integers(0, 23), min_size=0, max_size=4), size=st.integers(1, 9), data=st.data())
def test_groups_of_a_loop(lengths: list[int], size: int, data: st.DataObject) -> None:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    order = torch.cat(
        [torch.zeros(0, dtype=torch.int64)]
        + [
            torch.tensor(data.draw(st.permutations(range(a, b))), dtype=torch.int64)
            for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
    )
    cut = equal_groups(order, size, offsets=bounds)
    expected = padded_by_a_loop(order.tolist(), bounds.tolist(), size)
    assert cut.index.reshape(-1, size).tolist() == expected
    assert cut.size == size and cut.offsets.tolist() == list(range(0, size * len(expected) + 1, size))
    assert cut.index[cut.home].tolist() == list(range(len(order)))
    for item, place in enumerate(cut.home.tolist()):
        assert place == cut.index.tolist().index(item)  # its own place is the first


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stride", [2, (1, 1, 2), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("clouds", [1, 2])
def test_merge_and_expand_of_a_dictionary(shape: tuple[int, int, int], stride, clouds: int, dtype: torch.dtype) -> None:
    voxels, step = scene(shape, clouds, dtype=dtype), torch.tensor(stride).expand(3)
    coarse, index = merge_voxels(voxels, stride=stride)
    box = torch.tensor(coarse_shape(shape, stride))
    assert torch.equal(coarse.grid.amax(0) + 1, box)  # the last slice is there, and is one of its own
    found: dict[tuple[int, ...], Tensor] = {}
    for cloud, (start, stop) in enumerate(spans(voxels)):
        for row in range(start, stop):
            key = (cloud, *(voxels.grid[row] // step).tolist())
            found[key] = found.get(key, torch.zeros(4, dtype=torch.float64)) + voxels.features[row].double()
    assert len(found) == len(coarse.grid)
    for cloud, (start, stop) in enumerate(spans(coarse)):
        for row in range(start, stop):
            expected = found[(cloud, *coarse.grid[row].tolist())]
            torch.testing.assert_close(coarse.features[row], expected.to(dtype), atol=1e-6, rtol=1e-6)

    # cell -> (parent, place within it) -> cell is one to one
    pairs = torch.cat([index[:, None], voxels.grid % step], 1)
    assert len(pairs.unique(dim=0)) == len(voxels.grid)
    assert torch.equal(coarse.grid[index] * step + voxels.grid % step, voxels.grid)
    back = expand_voxels(coarse, index, voxels)
    assert torch.equal(back.grid, voxels.grid)
    torch.testing.assert_close(back.features, voxels.features + coarse.features[index], atol=0, rtol=0)


def test_the_published_radix_would_collide() -> None:
    """Five slices merged by two with radix floor(5 / 2) would put the last one into the next row; ours stay apart."""
    column = Voxels(torch.tensor([[0, 0, 4], [0, 2, 0]]), torch.ones(2, 1))
    y, z = column.grid[:, 1] // 2, column.grid[:, 2] // 2
    assert len((y * (5 // 2) + z).unique()) == 1
    assert sorted(merge_voxels(column, stride=2)[0].grid.tolist()) == [[0, 0, 2], [0, 1, 0]]


@pytest.mark.parametrize("clouds", [1, 3])
@pytest.mark.parametrize("bounded", [False, True])
def test_generated_voxels_of_a_loop(clouds: int, bounded: bool, dtype: torch.dtype) -> None:
    shape = (7, 5, 3)
    voxels = scene(shape, clouds, dtype=dtype)
    voxels = Voxels(voxels.grid, voxels.features.round(), voxels.offsets)  # with equals among them
    more, own = generate_voxels(voxels, share=0.2, shape=shape if bounded else None)
    assert torch.equal(more.grid[own], voxels.grid) and torch.equal(more.features[own], voxels.features)
    for (start, stop), (first, last) in zip(spans(voxels), spans(more), strict=True):
        score = voxels.features[start:stop].mean(1).tolist()
        best = sorted(range(stop - start), key=lambda k: (-score[k], k))[: int(0.2 * (stop - start))]
        cells = []
        for k, dx, dy in product(best, (-1, 1), (-1, 1)):
            x, y, z = voxels.grid[start + k].tolist()
            cell = [x + dx, y + dy, z]
            cells.append([min(max(c, 0), n - 1) for c, n in zip(cell, shape, strict=True)] if bounded else cell)
        assert more.grid[first + stop - start : last].tolist() == cells
        assert not more.features[first + stop - start : last].any()


def test_generation_changes_the_merge_and_not_the_sums() -> None:
    voxels = scene((9, 9, 4), 2, 8)
    plain, spread = VoxelMerge(8, stride=(1, 1, 2)).double(), VoxelMerge(8, stride=(1, 1, 2), generated=0.2).double()
    spread.load_state_dict(plain.state_dict())
    a, index = plain(voxels, (9, 9, 4))
    b, other = spread(voxels, (9, 9, 4))
    assert len(b.grid) > len(a.grid)
    assert torch.equal(a.grid[index], b.grid[other])
    torch.testing.assert_close(a.features[index], b.features[other])
    assert bool((b.grid >= 0).all()) and bool((b.grid < torch.tensor([9, 9, 2])).all())


def test_descriptor_of_a_dictionary() -> None:
    voxels, layer = scene((5, 4, 3), width=3), SpatialDescriptor(3).double()
    rows = {tuple(cell): k for k, cell in enumerate(voxels.grid.tolist())}
    conv = torch.zeros_like(voxels.features)
    for cell, k in rows.items():
        for element, step in enumerate(product((-1, 0, 1), repeat=3)):
            other = rows.get(tuple(a + b for a, b in zip(cell, step, strict=True)))
            if other is not None:
                conv[k] += voxels.features[other] @ layer.conv.weight[element]
    expected = torch.nn.functional.gelu(torch.nn.functional.layer_norm(conv, (3,)))
    torch.testing.assert_close(layer(voxels).features, expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "call",
    [
        lambda: window_order(scene((3, 3, 3)), 0),
        lambda: window_order(scene((3, 3, 3)), 2, axis="z"),
        lambda: window_order(Voxels(torch.tensor([[0, 0, 0], [2**22, 2**22, 2**22]]), torch.zeros(2, 1)), 3),
        lambda: equal_groups(torch.tensor([0, 0]), 2),
        lambda: equal_groups(torch.tensor([0, 5]), 2),
        lambda: equal_groups(torch.tensor([1, 0]), 2, offsets=torch.tensor([0, 1, 2])),
        lambda: equal_groups(torch.arange(3), 0),
        lambda: equal_groups(torch.arange(3.0), 2),  # type: ignore[arg-type]
        lambda: generate_voxels(scene((3, 3, 3)), share=1.5),
        lambda: expand_voxels(scene((3, 3, 3)), torch.zeros(2, dtype=torch.int64), scene((3, 3, 3))),
        lambda: expand_voxels(scene((1, 1, 1), width=2), torch.zeros(14, dtype=torch.int64), scene((3, 3, 3))),
        lambda: coarse_shape((3, 0, 1), 2),
    ],
)
def test_wrong_input_is_a_shape_error(call) -> None:
    with pytest.raises(ShapeError, match="expected"):
        call()
