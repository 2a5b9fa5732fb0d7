"""Skeletons: the published ones bit by bit, the definition step by step, topology kept, and the product's gradient."""

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, label
from torch import Tensor

from geom.errors import ShapeError
from geom.skinning.skeletonization import skeletonize

BACKENDS = ("warp", "torch")
CRITERIA = ("boolean", "euler")
both = pytest.mark.parametrize("backend", BACKENDS)
each = pytest.mark.parametrize("criterion", CRITERIA)
ALL, FACES = np.ones((3, 3, 3)), np.zeros((3, 3, 3))
FACES[1, 1, :] = FACES[1, :, 1] = FACES[:, 1, 1] = 1
STEPS = np.abs(np.indices((3, 3, 3)) - 1).sum(0)  # from the centre, along axes


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(count: int, *size: int, seed: int = 0) -> Tensor:
    """Smooth random shapes with handles and holes, and rough ones."""
    noise = np.random.default_rng(seed).normal(size=(count, 1, *size))
    smooth = np.stack([gaussian_filter(x, sigma) for x, sigma in zip(noise, np.linspace(0, 1.2, count), strict=True)])
    return torch.from_numpy(smooth > np.random.default_rng(seed).normal(size=(count, *[1] * (len(size) + 1))) * 0.05)


def pieces(ones: np.ndarray, joined: np.ndarray) -> tuple[np.ndarray, int]:
    return label(ones, joined)  # type: ignore[return-value]


def is_simple(block: np.ndarray) -> bool:
    """The definition: the ones about the centre are one piece, and the zeros at its faces are one piece within 18."""
    ones = block.copy()
    ones[1, 1, 1] = False
    holes, _ = pieces(~block & (STEPS > 0) & (STEPS < 3), FACES)
    return pieces(ones, ALL)[1] == 1 and len(set(holes[(STEPS == 1) & ~block])) == 1


def euler_number(ones: np.ndarray, joined: Callable[..., Any]) -> int:
    """V - E + F - C: 2, 4 or 8 neighbours share a cell if all (of the zeros), or any (of the ones), are there."""
    total, padded = 0, np.pad(ones, 1)
    for shifts in product((0, 1), repeat=3):
        parts = [
            padded[tuple(slice(o, o - 1 or None) if s else slice(1, None) for o, s in zip(at, shifts, strict=True))]
            for at in product(*[(0, 1) if s else (0,) for s in shifts])
        ]
        total += (-1) ** sum(shifts) * int(joined(np.stack(parts), 0).sum())
    return total if joined is np.all else -total  # zeros are the vertices, ones the cells


def keeps_euler(block: np.ndarray) -> bool:
    on, off = (~block).copy(), (~block).copy()
    on[1, 1, 1], off[1, 1, 1] = False, True
    return euler_number(on, np.all) == euler_number(off, np.all)


@lru_cache(None)
def judge(criterion: str, code: bytes) -> bool:
    block = np.frombuffer(code, dtype=bool).reshape(3, 3, 3)
    return (is_simple if criterion == "boolean" else keeps_euler)(block)


def by_hand(volume: np.ndarray, rounds: int, criterion: str) -> tuple[np.ndarray, np.ndarray]:
    """The algorithm voxel by voxel: the skeleton, and where the product's factors are all 1."""
    x, free = np.pad(volume, 1), np.ones(np.add(volume.shape, 2), dtype=bool)
    places = list(np.argwhere(np.pad(np.ones_like(volume), 1)))
    for _ in range(rounds):
        ends = {tuple(p): x[tuple(slice(i - 1, i + 2) for i in p)].sum() - x[tuple(p)] <= 1 for p in places}
        for c, b, a in product((0, 1), repeat=3):
            for p in map(tuple, places):
                if tuple(i % 2 for i in p) == (a, b, c) and not ends[p]:
                    block = x[tuple(slice(i - 1, i + 2) for i in p)].copy()
                    block[1, 1, 1] = True
                    if judge(criterion, block.tobytes()):
                        x[p] = free[p] = False
    inner = (slice(1, -1),) * 3
    return x[inner], free[inner]


def betti(volume: np.ndarray) -> tuple[int, int, int]:
    """Components, tunnels and cavities of (D, H, W)."""
    solid, hollow = pieces(volume, ALL)[1], pieces(~np.pad(volume, 1), FACES)[1] - 1
    return solid, solid + hollow - euler_number(volume, np.any), hollow


@both
def test_the_published_skeletons(data: Path, backend: str, dtype: torch.dtype) -> None:
    folder = data / "skinning" / "skeletonize"
    pairs = [(path, path.with_name(path.name.replace("image", "skeleton"))) for path in folder.glob("image_*")]
    assert pairs
    for image, wanted in pairs:
        given, found = (np.load(p) if p.suffix == ".npy" else np.asarray(Image.open(p)) for p in (image, wanted))
        volume = torch.from_numpy(given > 0)[None, None].to(dtype)
        skeleton = skeletonize(volume, iterations=5 if given.ndim == 2 else 10, backend=backend)
        assert torch.equal(skeleton, torch.from_numpy(found > 0).reshape(volume.shape).to(dtype))


@both
@each
def test_points_are_simple_by_definition(criterion: str, backend: str) -> None:
    blocks = torch.cat([random(500, 1, 3, 3, 3, seed=k) < k / 8 for k in range(9)])
    blocks[..., 1, 1, 1] = True  # the centre of a block is the first to go
    left = skeletonize(blocks, iterations=1, criterion=criterion, backend=backend)[..., 1, 1, 1].flatten()
    for block, stays in zip(blocks[:, 0].numpy(), left.tolist(), strict=True):
        assert stays == (block.sum() <= 2 or not judge(criterion, block.tobytes()))


@both
@each
def test_all_512_points_of_images(criterion: str, backend: str) -> None:
    squares = (torch.arange(512)[:, None] >> torch.arange(9) & 1).bool().reshape(512, 1, 3, 3)
    squares[..., 1, 1] = True
    left = skeletonize(squares, iterations=1, criterion=criterion, backend=backend)[..., 1, 1].flatten()
    for square, stays in zip(squares[:, 0].numpy(), left.tolist(), strict=True):
        assert stays == (square.sum() <= 2 or not is_simple(np.pad(square[None], ((1, 1), (0, 0), (0, 0)))))


@both
@each
@pytest.mark.parametrize("size", [(5, 6, 7), (6, 3, 4), (9, 10)])
def test_the_algorithm_voxel_by_voxel(size: tuple[int, ...], criterion: str, backend: str) -> None:
    for seed in range(2):
        volume = blobs(3, *size, seed=seed)
        for rounds in (1, 2, 9):
            x = volume.double().requires_grad_()
            y = skeletonize(x, iterations=rounds, criterion=criterion, backend=backend)
            y.sum().backward()
            assert x.grad is not None
            for given, found, grad in zip(volume, y.detach(), x.grad, strict=True):
                skeleton, free = by_hand(given.reshape(-1, *size[-2:]).numpy(), rounds, criterion)
                assert np.array_equal(found.reshape(skeleton.shape).numpy(), skeleton)
                assert np.array_equal(grad.reshape(skeleton.shape).numpy(), free)


def test_topology_of_a_thousand_volumes() -> None:
    seen = set()
    for k in range(10):
        volume = blobs(100, 8 + k % 3, 9, 7 + k % 4, seed=k)
        for before, after in zip(volume[:, 0].numpy(), skeletonize(volume)[:, 0].numpy(), strict=True):
            assert betti(after) == betti(before)
            seen.add(betti(before))
    assert all(max(column) > 1 for column in zip(*seen, strict=True))  # they had all of it


def test_the_euler_criterion_keeps_the_euler_number_alone() -> None:
    volume, changed = blobs(100, 9, 9, 9, seed=3), 0
    for before, after in zip(volume[:, 0].numpy(), skeletonize(volume, criterion="euler")[:, 0].numpy(), strict=True):
        assert euler_number(after, np.any) == euler_number(before, np.any)
        changed += betti(after) != betti(before)
    assert changed


@both
def test_without_a_number_of_rounds_nothing_is_left_to_take(backend: str) -> None:
    volume = blobs(6, 12, 11, 10, seed=5)
    skeleton = skeletonize(volume, backend=backend)
    assert torch.equal(skeletonize(skeleton, iterations=1, backend=backend), skeleton)
    assert not torch.equal(skeletonize(volume, iterations=1, backend=backend), skeleton)
    for x in np.pad(skeleton[:, 0].numpy(), ((0, 0), (1, 1), (1, 1), (1, 1))):
        for p in np.argwhere(x):
            block = x[tuple(slice(i - 1, i + 2) for i in p)]
            assert block.sum() <= 2 or not judge("boolean", block.tobytes())


@both
def test_a_ring_and_a_shell(backend: str) -> None:
    z, y, x = torch.meshgrid(*[torch.arange(15.0) - 7] * 3, indexing="ij")
    ring = ((x.square() + y.square()).sqrt() - 4.5).square() + z.square() < 5
    shell = ((x.square() + y.square() + z.square()).sqrt() - 5).abs() < 1.6
    left = skeletonize(torch.stack([ring, shell])[:, None], backend=backend)[:, 0].numpy()
    assert betti(ring.numpy()) == betti(left[0]) == (1, 1, 0) and left[0].sum() < 40
    assert betti(shell.numpy()) == betti(left[1]) == (1, 0, 1)


@both
def test_full_and_empty_volumes(backend: str, dtype: torch.dtype) -> None:
    for size in ((3, 3), (8, 5), (7, 6, 5)):
        full = skeletonize(torch.ones(2, 1, *size, dtype=dtype), backend=backend)
        assert betti((full[0] > 0).reshape(-1, *size[-2:]).numpy()) == (1, 0, 0)
        assert full.sum() < 2 * max(size)
        x = torch.zeros(2, 1, *size, dtype=dtype, requires_grad=True)
        nothing = skeletonize(x, backend=backend)
        nothing.sum().backward()
        assert not nothing.any()
        assert x.grad is not None and bool((x.grad == 1).all())  # any point would stand alone, and stay
        none = skeletonize(torch.ones(0, 1, *size, dtype=dtype), backend=backend)
        assert none.shape == (0, 1, *size) and none.dtype == dtype


@both
def test_dtypes_batches_and_layouts_agree(backend: str) -> None:
    volume = blobs(4, 9, 10, 11, seed=1)
    wanted = skeletonize(volume, backend=backend)
    assert wanted.dtype == torch.bool
    for x in (volume.float(), volume.double(), volume * 0.4 + 0.3, volume.double().movedim(2, 4).contiguous()):
        given = x.movedim(4, 2) if x.shape[2] == 10 else x
        found = skeletonize(given, backend=backend)
        assert found.dtype == given.dtype and torch.equal(found > 0, wanted) and set(found.unique().tolist()) == {0, 1}
    assert torch.equal(torch.cat([skeletonize(x[None], backend=backend) for x in volume]), wanted)
    flat = volume[:, :, 0].float().to(memory_format=torch.channels_last)
    assert torch.equal(skeletonize(flat, backend=backend), skeletonize(flat.contiguous(), backend=backend))


def test_the_same_bits_on_several_threads(threads: Callable[[int], None]) -> None:
    volume = blobs(20, 40, 40, 40, seed=2)
    one = skeletonize(volume)
    threads(3)
    assert torch.equal(skeletonize(volume), one)


@both
@each
def test_gradients_are_the_product_s(criterion: str, backend: str, dtype: torch.dtype) -> None:
    volume = blobs(5, 8, 9, 10, seed=7).to(dtype).requires_grad_()
    weights = random(*volume.shape).to(dtype).requires_grad_()
    skeleton = skeletonize(volume, iterations=4, criterion=criterion, backend=backend)
    (grad,) = torch.autograd.grad((weights * skeleton).sum(), volume, create_graph=True)
    free = grad / weights
    assert torch.equal(free.detach(), (free > 0.5).to(dtype))
    assert bool((free[skeleton > 0] == 1).all()) and bool((free[(skeleton == 0) & (volume > 0)] == 0).all())
    (again,) = torch.autograd.grad(grad.sum(), weights)
    assert torch.equal(again, free.detach())


@both
def test_gradients_reach_what_would_bridge_a_gap(backend: str) -> None:
    line = torch.zeros(1, 1, 7, 15, dtype=torch.float64)
    line[..., 3, 1:14] = 1
    line[..., 3, 7] = 0
    line.requires_grad_()
    skeletonize(line, iterations=3, backend=backend).sum().backward()
    assert line.grad is not None
    assert line.grad[0, 0, 3, 7] == 1  # the gap
    assert line.grad[0, 0, 3, 1:14].sum() == 13 and line.grad[0, 0, 2, 4] == 0  # the line; a second layer beside it


@each
def test_transforms(criterion: str) -> None:
    volume = blobs(4, 6, 7, 8, seed=9).double()

    def total(x: Tensor) -> Tensor:
        return (skeletonize(x, iterations=2, criterion=criterion) * 3).sum()

    x = volume.clone().requires_grad_()
    total(x).backward()
    assert x.grad is not None
    assert torch.equal(torch.func.grad(total)(volume), x.grad)
    assert torch.equal(torch.func.vmap(torch.func.grad(total))(volume[:, None])[:, 0], x.grad)
    jacobian = torch.func.jacrev(lambda x: skeletonize(x, iterations=2, criterion=criterion))(volume[:1])
    assert torch.equal(3 * jacobian.flatten(5).flatten(0, 4).diagonal().reshape(x.grad[:1].shape), x.grad[:1])


@pytest.mark.usefixtures("unchecked")
@both
def test_compiled(backend: str) -> None:
    volume = blobs(2, 6, 5, 7, seed=4).double().requires_grad_()
    compiled = torch.compile(
        lambda x: skeletonize(x, iterations=1, backend=backend), fullgraph=True, backend="aot_eager"
    )
    wanted, found = skeletonize(volume, iterations=1, backend=backend), compiled(volume)
    assert torch.equal(found, wanted)
    grads = [torch.autograd.grad(y.sum(), volume)[0] for y in (wanted, found)]
    assert torch.equal(*grads)


def test_draws_have_their_probabilities_and_seeds(dtype: torch.dtype) -> None:
    def draw(p: float, seed: int, beta: float = 0.33) -> Tensor:
        volume = torch.full((1, 1, 100, 100), p, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        return skeletonize(volume, iterations=0, probabilistic=True, generator=generator, beta=beta)

    assert torch.equal(draw(0.4, 1), draw(0.4, 1)) and not torch.equal(draw(0.4, 1), draw(0.4, 2))
    for p, beta in ((0.4, 1.0), (0.4, 0.33), (0.7, 2.0), (0.5, 0.33)):
        chance = 1 / (1 + ((1 - p) / p) ** (1 / beta))  # of log(p / (1 - p)) > beta times logistic noise
        assert abs(draw(p, 3, beta=beta).mean() - chance) < 4 * (chance * (1 - chance)) ** 0.5 / 100
    assert draw(0.49, 4, beta=0.0).sum() == 0
    assert torch.equal(draw(0.0, 5, beta=0.5), torch.zeros(1, 1, 100, 100, dtype=dtype))
    assert torch.equal(draw(1.0, 5, beta=0.5), torch.ones(1, 1, 100, 100, dtype=dtype))


def test_draws_have_the_derivative_of_the_logistic_function(dtype: torch.dtype) -> None:
    p = torch.linspace(0, 1, 90, dtype=dtype).reshape(1, 1, 9, 10).requires_grad_()
    for beta, tau in ((0.0, 1.0), (0.33, 1.0), (0.33, 0.5), (0.33, 2.0)):
        generator = torch.Generator().manual_seed(0)
        y = skeletonize(p, iterations=0, probabilistic=True, beta=beta, tau=tau, generator=generator)
        (grad,) = torch.autograd.grad(y.sum(), p)
        u = torch.rand(p.shape, generator=generator.manual_seed(0), dtype=torch.float64)
        q = p.detach().double().requires_grad_()
        z = (((q + 1e-8) / (1 - q + 1e-8)).log() + beta * (u / (1 - u)).log()) / tau
        sigma = torch.sigmoid(z)
        wanted = (torch.exp(-z.abs()) / (1 + torch.exp(-z.abs())) ** 2).detach()
        (slope,) = torch.autograd.grad(z.sum(), q)
        assert torch.equal(y > 0, sigma > 0.5) and set(y.unique().tolist()) == {0, 1}
        torch.testing.assert_close(grad.double(), wanted * slope, rtol=2e-5 if dtype == torch.float32 else 1e-7, atol=0)
        assert bool(grad.isfinite().all()) and (tau != 1 or bool((grad > 0).all()))


@both
def test_skeletons_of_draws(backend: str) -> None:
    p = (blobs(3, 8, 9, 10, seed=8) * 0.8 + 0.1).double().requires_grad_()
    options = {"probabilistic": True, "backend": backend}
    drawn = skeletonize(p, iterations=0, generator=torch.Generator().manual_seed(6), **options)
    found = skeletonize(p, iterations=3, generator=torch.Generator().manual_seed(6), **options)
    assert torch.equal(found, skeletonize(drawn, iterations=3, backend=backend))
    first, second = (torch.autograd.grad(y.sum(), p)[0] for y in (drawn, found))
    binary = drawn.detach().requires_grad_()
    (free,) = torch.autograd.grad(skeletonize(binary, iterations=3, backend=backend).sum(), binary)
    assert torch.equal(second, first * free)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("volume", "options", "message"),
    [
        (torch.zeros(5, 5), {}, r"\(B, 1, H, W\) or \(B, 1, D, H, W\), got a float32 tensor of shape \(5, 5\)"),
        (torch.zeros(1, 1, 5, 5, dtype=torch.int64), {}, "expected a float32, float64 or bool tensor"),
        ([[1]], {}, "got a list"),
        (torch.zeros(1, 2, 5, 5), {}, "expected one channel"),
        (torch.zeros(1, 1, 5, 2), {}, "sides of at least 3"),
        (torch.zeros(1, 1, 1, 5, 5), {}, "sides of at least 3"),
        (torch.full((1, 1, 5, 5), 1.5), {}, r"expected numbers in \[0, 1\]"),
        (torch.full((1, 1, 5, 5), float("nan")), {}, r"expected numbers in \[0, 1\]"),
        (torch.zeros(1, 1, 5, 5), {"iterations": -1}, "expected None or an int of at least 0, got int -1"),
        (torch.zeros(1, 1, 5, 5), {"iterations": 2.5}, "got float 2.5"),
        (torch.zeros(1, 1, 5, 5), {"criterion": "Boolean"}, "expected one of 'boolean', 'euler'"),
        (torch.zeros(1, 1, 5, 5), {"probabilistic": True, "tau": 0.0}, "tau: expected a finite number above 0"),
        (torch.zeros(1, 1, 5, 5), {"probabilistic": True, "beta": -1.0}, "beta: expected a finite number of at least"),
        (torch.zeros(1, 1, 5, 5), {"backend": "cuda"}, "backend: expected one of"),
    ],
)
def test_wrong_input(volume: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        skeletonize(volume, **options)


def test_transforms_want_a_number_of_rounds() -> None:
    with pytest.raises(ShapeError, match=r"expected a number under torch\.func"):
        torch.func.vmap(skeletonize)(torch.zeros(2, 1, 1, 5, 5))
