"""Codes and orders: against Skilling's published steps, bits by hand, the traverse's own formula, and torch's sort."""

from collections.abc import Callable
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geom.errors import ShapeError
from geom.points import Points, decode, encode, serialize
from geom.points.morton import cell_keys, sort_codes

CUBES = ["morton", "morton-transposed", "hilbert", "hilbert-transposed"]
TRAVERSES = ["".join(letters) for letters in permutations("xyz")]
OFFICIAL = [f"{name}-official" for name in TRAVERSES]
BIJECTIVE = CUBES + TRAVERSES
both = pytest.mark.parametrize("backend", ["warp", "torch"])


def draw(*shape: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def cloud(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def box(*extents: int) -> Tensor:
    return torch.cartesian_prod(*map(torch.arange, extents)).reshape(-1, 3)


def steps(grid: Tensor, code: Tensor) -> Tensor:
    """Lengths of the steps along the curve, in cells along the axes."""
    return grid[code.argsort()].diff(dim=0).abs().sum(-1)


def skilling(x: list[int], bits: int) -> int:
    """The Hilbert integer: Skilling (2004), AxestoTranspose, and its transposed form read out from the top."""
    x = list(x)
    q = 1 << (bits - 1)
    while q > 1:
        for i in range(3):
            if x[i] & q:
                x[0] ^= q - 1
            else:
                t = (x[0] ^ x[i]) & (q - 1)
                x[0] ^= t
                x[i] ^= t
        q >>= 1
    x[1] ^= x[0]
    x[2] ^= x[1]
    t, q = 0, 1 << (bits - 1)
    while q > 1:
        if x[2] & q:
            t ^= q - 1
        q >>= 1
    x = [c ^ t for c in x]
    return sum((x[axis] >> bit & 1) << (3 * bit + 2 - axis) for bit in range(bits) for axis in range(3))


@both
@pytest.mark.parametrize("bits", [*range(1, 17), 20, 21])
def test_morton_and_hilbert_in_the_published_bit_order(bits: int, backend: str) -> None:
    grid = torch.cat([draw(60, 3, below=1 << bits, seed=bits), torch.tensor([[0, 0, 0], [(1 << bits) - 1] * 3])])
    hilbert = encode(grid, order="hilbert", bits=bits, backend=backend)
    assert hilbert.tolist() == [skilling(cell, bits) for cell in grid.tolist()]
    morton = encode(grid, order="morton", bits=bits, backend=backend)
    assert morton.tolist() == [
        sum((c >> bit & 1) << (3 * bit + 2 - axis) for axis, c in enumerate(cell) for bit in range(bits))
        for cell in grid.tolist()
    ]
    for name, code in (("morton", morton), ("hilbert", hilbert)):
        swapped = encode(grid[:, [1, 0, 2]], order=f"{name}-transposed", bits=bits, backend=backend)
        assert torch.equal(swapped, code)


def test_hilbert_codes_of_the_first_cubes() -> None:
    octants = encode(box(2, 2, 2), order="hilbert")
    assert octants.tolist() == [0, 1, 3, 2, 7, 6, 4, 5]
    grid = torch.tensor([[0, 0, 1], [2, 1, 3], [3, 3, 3], [5, 2, 7], [7, 0, 0]])
    assert encode(grid, order="hilbert", bits=3).tolist() == [skilling(cell, 3) for cell in grid.tolist()]


def test_one_morton_encoder(dtype: torch.dtype) -> None:
    """Voxel keys have x lowest: the codes of the axes the other way round."""
    grid = draw(300, 3, below=1 << 21)
    zero, one = torch.zeros(1, 3, dtype=dtype), torch.ones(1, dtype=dtype)
    for backend in ("warp", "torch"):
        keys = cell_keys(grid.to(dtype), torch.tensor([0, 300]), zero, one, backend=backend)
        assert torch.equal(keys, encode(grid.flip(-1), order="morton", bits=21, backend=backend))


@given(
    st.sampled_from(BIJECTIVE), st.integers(1, 21), st.integers(0, 200), st.integers(0, 2**31), st.integers(1, 2**20)
)
def test_decode_undoes_encode(order: str, bits: int, count: int, seed: int, clouds: int) -> None:
    grid = draw(count, 3, below=1 << bits, seed=seed)
    code = encode(grid, order=order, bits=bits)
    assert torch.equal(code, encode(grid, order=order, bits=bits, backend="torch"))
    assert not count or (int(code.min()) >= 0 and int(code.max()) < 1 << 3 * bits)
    above = code | min(clouds, (1 << 63 - 3 * bits) - 1) << 3 * bits
    for backend in ("warp", "torch"):
        assert torch.equal(decode(code, order=order, bits=bits, backend=backend), grid)
        assert torch.equal(decode(above, order=order, bits=bits, backend=backend), grid)


@both
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", BIJECTIVE)
def test_full_cubes(order: str, bits: int, backend: str) -> None:
    grid = box(*[1 << bits] * 3)
    code = encode(grid, order=order, backend=backend)
    assert torch.equal(code.sort().values, torch.arange(1 << 3 * bits))
    assert torch.equal(decode(torch.arange(1 << 3 * bits), order=order, bits=bits, backend=backend)[code], grid)
    if "morton" not in order:
        assert set(steps(grid, code).tolist()) == {1}


def test_hilbert_follows_the_depth_modulo_three() -> None:
    grid = draw(200, 3, below=64)
    order = [encode(grid, order="hilbert", bits=bits).argsort(stable=True) for bits in range(6, 13)]
    assert all(torch.equal(order[i], order[i + 3]) for i in range(4))
    assert not torch.equal(order[0], order[1]) and not torch.equal(order[1], order[2])


@pytest.mark.parametrize("order", TRAVERSES)
@pytest.mark.parametrize("extents", [(1, 1, 7), (2, 3, 4), (5, 3, 7), (6, 5, 1), (4, 6, 8), (15, 15, 15), (16, 9, 11)])
def test_traverse_walks_boxes_by_single_steps(order: str, extents: tuple[int, int, int]) -> None:
    for corner, bits in product([(0, 0, 0), (1, 2, 3), (4, 1, 7)], (None, 5, 21)):
        grid = box(*extents) + torch.tensor(corner)
        assert set(steps(grid, encode(grid, order=order, bits=bits)).tolist()) == {1}


@given(st.sampled_from(TRAVERSES), st.lists(st.integers(1, 9), min_size=3, max_size=3), st.integers(0, 2**31))
def test_traverse_orders_as_with_true_extents(order: str, extents: list[int], seed: int) -> None:
    """The compact form, y' = c1 or n1 - 1 - c1, line = c2 n1 + y', x' = c0 or n0 - 1 - c0, code = line n0 + x'."""
    grid = box(*extents)
    grid = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(seed))[: 1 + seed % len(grid)]]
    axes = ["xyz".index(letter) for letter in order]
    (n0, n1, _), (c0, c1, c2) = grid.amax(0)[axes] + 1, grid[:, axes].unbind(-1)
    line = c2 * n1 + torch.where(c2 % 2 == 0, c1, n1 - 1 - c1)
    compact = line * n0 + torch.where(line % 2 == 0, c0, n0 - 1 - c0)
    for bits in (None, 7):
        assert torch.equal(encode(grid, order=order, bits=bits).argsort(), compact.argsort())


def test_official_keys_have_twelve_values() -> None:
    grid = box(12, 12, 12)
    assert [len(encode(grid, order=name).unique()) for name in OFFICIAL] == [12] * 6
    assert [len(encode(grid, order=name).unique()) for name in TRAVERSES] == [1728] * 6
    for a, b in ("xyz", "xzy"), ("yxz", "yzx"), ("zxy", "zyx"):  # the other axes are not in the key
        place = encode(grid, order=f"{a}-official"), encode(grid, order=f"{b}-official")
        assert torch.equal(place[0] - place[0].min(), place[1] - place[1].min())


@both
@pytest.mark.parametrize("order", OFFICIAL)
def test_official_keys_step_by_step(order: str, backend: str) -> None:
    axes, offsets = ["xyz".index(letter) for letter in order[:3]], torch.tensor([0, 30, 30, 80])
    for seed, below in product(range(4), (2, 9, 10)):
        grid = draw(80, 3, below=below, seed=seed)
        m0, m1, m2 = (int(grid[:, axis].max()) for axis in axes)
        want = []
        for k, cell in enumerate(grid.tolist()):
            key = m1 * m0 + cell[axes[0]] if m1 % 2 == 0 else (m1 + 1) * m0 - cell[axes[0]]
            key = m2 * m0 * m1 + key if m2 % 2 == 0 else (m2 + 1) * m0 * m1 - key
            want.append((0 if k < 30 else 2) * m0 * m1 * m2 + key)
        assert encode(grid, order=order, offsets=offsets, backend=backend).tolist() == want


@pytest.mark.parametrize("order", BIJECTIVE)
def test_clouds_stand_above_the_cells(order: str) -> None:
    grid, offsets = draw(90, 3, below=32), torch.tensor([0, 0, 20, 20, 60, 90, 90])
    code = encode(grid, order=order, bits=6, offsets=offsets)
    number = torch.searchsorted(offsets, torch.arange(90), right=True) - 1
    assert torch.equal(code >> 18, number)
    assert torch.equal(code & (1 << 18) - 1, encode(grid, order=order, bits=6))
    assert torch.equal(encode(grid.int(), order=order, bits=6, offsets=offsets), code)
    columns = grid.T.contiguous().T
    assert torch.equal(encode(columns, order=order), encode(grid, order=order, bits=5)), "depth of the greatest, 31"


def test_depth_is_that_of_the_greatest_coordinate() -> None:
    for top, bits in (0, 1), (1, 1), (2, 2), (255, 8), (256, 9), ((1 << 21) - 1, 21):
        grid = torch.tensor([[0, 0, 0], [top, 0, top // 2]])
        for order in BIJECTIVE:
            assert torch.equal(encode(grid, order=order), encode(grid, order=order, bits=bits))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "z"}, "order: expected one of 'morton', 'hilbert'"),
        ({"grid": torch.zeros(4, 3)}, "grid: expected an int64 or int32 tensor"),
        ({"grid": torch.zeros(4, 2, dtype=torch.int64)}, "grid: expected an int64 or int32 tensor"),
        ({"grid": torch.tensor([[0, -1, 0]])}, "got -1 to 0"),
        ({"grid": torch.tensor([[0, 8, 0]]), "bits": 3}, r"expected coordinates in \[0, 8\), got 0 to 8"),
        ({"grid": torch.tensor([[0, 1 << 21, 0]])}, r"expected coordinates in \[0, 2097152\)"),
        ({"bits": 0}, "bits: expected an integer from 1 to 21, got int 0"),
        ({"bits": 22}, "bits: expected an integer from 1 to 21"),
        ({"bits": 2.0}, "bits: expected an integer from 1 to 21"),
        ({"bits": 21, "offsets": torch.tensor([0, 1, 4])}, "bits: expected at most 20 an axis"),
        ({"offsets": torch.tensor([0, 3])}, "offsets: expected to rise from 0 to 4"),
        ({"backend": "numpy"}, "backend: expected one of"),
    ],
)
@pytest.mark.parametrize("official", [False, True])
def test_encode_refuses(options: dict[str, object], words: str, official: bool) -> None:
    given = {"grid": draw(4, 3, below=2), "order": "xyz-official" if official else "xyz", **options}
    with pytest.raises(ShapeError, match=words):
        encode(given.pop("grid"), **given)


@pytest.mark.usefixtures("unchecked")
def test_decode_refuses() -> None:
    code = torch.arange(4)
    for options, words in (
        ({"order": "xyz-official"}, "order: expected one of"),
        ({"bits": None}, "bits: expected an integer"),
        ({"bits": 22}, "bits: expected an integer"),
        ({"code": code.float()}, "code: expected an int64 tensor"),
        ({"code": code[None]}, "code: expected an int64 tensor"),
        ({"code": -code}, "code: expected numbers of at least 0, got -3"),
    ):
        given = {"code": code, "order": "xyz", "bits": 2, **options}
        with pytest.raises(ShapeError, match=words):
            decode(given.pop("code"), **given)


@pytest.mark.usefixtures("unchecked")
@both
def test_compile_and_vmap(backend: str) -> None:
    grid, offsets = draw(4, 50, 3, below=512), torch.tensor([0, 10, 50])
    for order in ("morton-transposed", "hilbert", "zxy", "yzx-official"):

        def there(x: Tensor, order: str = order) -> Tensor:
            return encode(x, order=order, bits=9, offsets=offsets, backend=backend)

        def back(code: Tensor, order: str = order) -> Tensor:
            return decode(code, order=order, bits=9, backend=backend)

        want = torch.stack([there(x) for x in grid])
        assert torch.equal(torch.compile(there, fullgraph=True, backend="aot_eager")(grid[0]), want[0])
        if backend == "torch":
            assert torch.equal(torch.func.vmap(there)(grid), want)
        if order != "yzx-official":
            assert torch.equal(torch.compile(back, fullgraph=True, backend="aot_eager")(want[0]), grid[0])
            if backend == "torch":
                assert torch.equal(torch.func.vmap(back)(want), grid)
    with pytest.raises(ShapeError, match="bits: expected a number under"):
        torch.func.vmap(lambda x: encode(x, order="xyz"))(grid)


def by_hand(points: Tensor, starts: list[int], order: str, size: float, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and order, cloud by cloud, with torch's sort."""
    codes, places = [], []
    for b, (start, stop) in enumerate(pairwise(starts)):
        x = points[start:stop]
        code = encode(((x - x.min(0).values) / size).long() if len(x) else x.long(), order=order, bits=bits)
        codes.append(code | b << 3 * bits)
        places.append(code.sort(stable=True).indices + start)
    return torch.cat(codes), torch.cat(places)


@both
@pytest.mark.parametrize("starts", [[0, 500], [0, 0, 1, 130, 130, 499, 500, 500]])
def test_serialize_is_encode_and_stable_sort(starts: list[int], backend: str, dtype: torch.dtype) -> None:
    points, size = cloud(500, dtype) * 3 - 1, 0.4
    offsets = torch.tensor(starts) if len(starts) > 2 else None
    every = serialize(points, order=BIJECTIVE, grid_size=size, offsets=offsets, backend=backend)
    assert every.code.shape == every.order.shape == every.inverse.shape == (10, 500)
    for k, name in enumerate(BIJECTIVE):
        code, order = by_hand(points, starts, name, size, 3)
        one = serialize(Points(points, offsets=offsets), order=name, grid_size=size, backend=backend)
        for found in (every[k], one):
            assert torch.equal(found.code, code) and torch.equal(found.order, order)
            assert torch.equal(found.order[found.inverse], torch.arange(500))
            assert torch.equal(found.code[found.order], code.sort().values), "clouds follow in their order"
        assert len(code.unique()) < 450, "some points share a cell"


@both
def test_fixed_bits_and_official_keys(backend: str, dtype: torch.dtype) -> None:
    points, offsets = cloud(300, dtype), torch.tensor([0, 100, 300])
    found = serialize(points, order="hilbert", grid_size=0.1, bits=8, offsets=offsets, backend=backend)
    assert torch.equal(found.order, by_hand(points, [0, 100, 300], "hilbert", 0.1, 8)[1])
    names = ["zyx-official", "hilbert", "xyz-official"]
    several = serialize(points, order=names, grid_size=0.1, offsets=offsets, backend=backend)
    low = torch.stack([points[:100].min(0).values, points[100:].min(0).values])
    grid = ((points - low.repeat_interleave(offsets.diff(), 0)) / 0.1).long()
    for k, name in enumerate(names):
        code = encode(grid, order=name, offsets=offsets)
        assert torch.equal(several[k].code, code)
        want = torch.cat([code[:100].sort(stable=True).indices, code[100:].sort(stable=True).indices + 100])
        assert torch.equal(several[k].order, want)


def test_official_keys_of_a_flat_cloud() -> None:
    """Without extent along y the keys are negative and clouds are not apart: each is sorted on its own all the same."""
    points, offsets = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 1], [2, 0, 1], [0, 0, 0]]), torch.tensor([0, 3, 5])
    found = serialize(points, order="xyz-official", grid_size=1, offsets=offsets)
    assert found.code.tolist() == [0, -1, -3, -2, 0]
    assert found.order.tolist() == [2, 1, 0, 3, 4]


@both
def test_default_grid_follows_the_spacing(backend: str, dtype: torch.dtype) -> None:
    line = torch.zeros(3000, 3, dtype=dtype)
    line[:, 0] = torch.arange(3000)
    shuffled = line[torch.randperm(3000, generator=torch.Generator().manual_seed(0))] / 4
    found = serialize(shuffled, order="xyz", backend=backend)
    assert torch.equal(found.code, serialize(shuffled, order="xyz", grid_size=0.75).code)
    assert int(found.code.max()) == 999, "three points a cell"
    both_clouds = torch.cat([shuffled[:1000], shuffled[:1]])  # a point alone has no spacing
    offsets = torch.tensor([0, 0, 1000, 1001])
    assert torch.equal(
        serialize(both_clouds, order="xyz", offsets=offsets, backend=backend).order[:1000],
        serialize(shuffled[:1000], order="xyz", backend=backend).order,
    )
    pairs = torch.cat([torch.full((2000, 3), 1e-6, dtype=dtype), torch.full((1, 3), 1e6, dtype=dtype)])
    found = serialize(pairs, order="hilbert", backend=backend)  # spacing 0 or so, and a far point: the finest grid
    assert int(found.code[0]) == 0 and int(found.order[-1]) == 2000
    grad = shuffled.clone().requires_grad_()
    assert torch.equal(serialize(grad, order="xyz", backend=backend).code, serialize(shuffled, order="xyz").code)


@both
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_few_points_and_one_place(count: int, backend: str, dtype: torch.dtype) -> None:
    points, along = torch.full((count, 3), 2.5, dtype=dtype), torch.arange(count)
    for size in (None, 0.1):
        for order in (*BIJECTIVE, *OFFICIAL):
            found = serialize(points, order=order, grid_size=size, backend=backend)
            assert torch.equal(found.order, along) and torch.equal(found.inverse, along)
            assert not found.code.any()
    tiny = torch.zeros(2, 3, dtype=dtype)
    tiny[1] = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # a subnormal extent
    assert serialize(tiny, order="morton", backend=backend).order.tolist() == [0, 1]
    none = serialize(points[:0], order=["xyz", "xyz-official"], offsets=torch.tensor([0]), backend=backend)
    assert none.code.shape == (2, 0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "spiral"}, "order: expected one of"),
        ({"order": ["xyz", "spiral"]}, "order: expected one of"),
        ({"order": []}, "order: expected at least one name"),
        ({"grid_size": 0.0}, "grid_size: expected a finite number above 0"),
        ({"grid_size": 1e-9}, r"grid_size: expected at least .* for this extent and 21 bits"),
        ({"grid_size": 0.01, "bits": 3}, r"grid_size: expected at least .* and 3 bits"),
        ({"grid_size": 1e-300}, "grid_size: expected at least"),
        ({"bits": 21, "offsets": torch.tensor([0, 5, 10])}, "bits: expected at most 20"),
        ({"backend": "fast"}, "backend: expected one of"),
        ({"points": torch.full((3, 3), float("nan"))}, "points: expected finite coordinates"),
    ],
)
def test_serialize_refuses(options: dict[str, object], words: str) -> None:
    given = {"points": cloud(10, torch.float32), "order": "xyz", **options}
    with pytest.raises(ShapeError, match=words):
        serialize(given.pop("points"), **given)


@pytest.mark.parametrize(("count", "bits"), [(70_000, 63), (70_000, 48), (70_000, 47), (70_000, 30), (3, 63), (1, 1)])
def test_sort_with_more_bits_than_a_word_has_room_for(count: int, bits: int) -> None:
    code = torch.cat([draw(count, below=1 << 62, seed=bits) << 1 | draw(count, below=2)] * 2) & (1 << bits) - 1
    code[::3] = code[0]
    starts = torch.tensor([0, count, 2 * count])
    order, inverse = sort_codes(code, starts, bits, count, invert=True)
    again, ordered = sort_codes(code, starts, bits, 2 * count)
    for start in (0, count):
        part = code[start : start + count].sort(stable=True)
        assert torch.equal(order[start : start + count], part.indices)
        assert torch.equal(again[start : start + count], part.indices + start)
        assert torch.equal(ordered[start : start + count], part.values)
        assert torch.equal(order[start : start + count][inverse[start : start + count]], torch.arange(count))


def test_any_number_of_threads(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    points, found = cloud(40_000, dtype), []
    for count in (1, 2, 3):
        threads(count)
        found.append(serialize(points, order=[*BIJECTIVE, "xyz-official"], grid_size=0.002))
    for other in found[1:]:
        assert torch.equal(other.code, found[0].code) and torch.equal(other.order, found[0].order)
        assert torch.equal(other.inverse, found[0].inverse)


def test_a_laser_scan(data: Path) -> None:
    files = sorted(data.glob("pointclouds/*.bin"))
    if not files:
        pytest.skip("no laser scans")
    points = torch.from_numpy(np.fromfile(files[0], np.float32).reshape(-1, 4)[:, :3].copy())
    found = serialize(points, order=CUBES, grid_size=0.05)
    twin = serialize(points, order=CUBES, grid_size=0.05, backend="torch")
    assert torch.equal(found.code, twin.code) and torch.equal(found.order, twin.order)
    assert torch.equal(found.inverse, twin.inverse)
    step = [float(points[order].diff(dim=0).norm(dim=-1).mean()) for order in found.order]
    assert max(step[2:]) < min(step[:2]) < 0.5, "a Hilbert curve never jumps; metres"


@pytest.mark.gpu
def test_the_same_bits_on_cuda(dtype: torch.dtype) -> None:
    points, offsets = cloud(5000, dtype), torch.tensor([0, 0, 2000, 5000])
    names = [*BIJECTIVE, "zxy-official"]
    here = serialize(points, order=names, grid_size=0.013, offsets=offsets)
    there = serialize(points.cuda(), order=names, grid_size=0.013, offsets=offsets.cuda())
    for a, b in zip((here.code, here.order, here.inverse), (there.code, there.order, there.inverse), strict=True):
        assert b.is_cuda and torch.equal(a, b.cpu())
    code = here.code[2]
    assert torch.equal(decode(code.cuda(), order="hilbert", bits=7).cpu(), decode(code, order="hilbert", bits=7))
