"""Sparse convolution: dense on full grids, a dictionary on a scan, derivatives of both orders, batches, threads."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv3d, conv_transpose3d

from geom.errors import ShapeError
from geom.nn import KernelMap, Voxels, sparse_conv, strided_map, submanifold_map, voxelize
from geom.testing import assert_gradients

EPS = {torch.float32: 4e-7, torch.float64: 1e-15}  # what the docstring guarantees, of the greatest output
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-14}  # where the truth itself is float64
both = pytest.mark.parametrize("backend", ["warp", "torch"])


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def full(*extents: int, channels: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Voxels:
    """Every cell of a box, in an order that is not theirs."""
    grid = torch.cartesian_prod(*map(torch.arange, extents))
    grid = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(seed))]
    return Voxels(grid, random(len(grid), channels, dtype=dtype, seed=seed))


def dense(voxels: Voxels, shape: tuple[int, ...]) -> Tensor:
    """(1, C, *shape): the features where they stand."""
    volume = voxels.features.new_zeros((*shape, voxels.features.shape[1]))
    return volume.index_put(tuple(voxels.grid.unbind(1)), voxels.features).movedim(-1, 0)[None]


def dense_weight(weight: Tensor, *size: int) -> Tensor:
    return weight.reshape(*size, *weight.shape[1:]).permute(4, 3, 0, 1, 2)


def at(volume: Tensor, grid: Tensor) -> Tensor:
    return volume[0].movedim(0, -1)[tuple(grid.unbind(1))]


def error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max()) if b.numel() else 0.0


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "submanifold": ({"kernel_size": 3}, {"padding": 1}),
    "submanifold_5": ({"kernel_size": 5}, {"padding": 2}),
    "dilated": ({"kernel_size": (3, 1, 3), "dilation": 2}, {"padding": (2, 0, 2), "dilation": 2}),
    "halves": ({"kernel_size": 2, "stride": 2}, {"stride": 2}),
    "published": ({"kernel_size": 3, "stride": 2, "padding": 1}, {"stride": 2, "padding": 1}),
    "mixed": (
        {"kernel_size": (3, 2, 1), "stride": (1, 3, 2), "padding": (2, 0, 0), "dilation": (2, 1, 1)},
        {"stride": (1, 3, 2), "padding": (2, 0, 0), "dilation": (2, 1, 1)},
    ),
}


def build(voxels: Voxels, options: dict[str, Any], shape: tuple[int, int, int]) -> KernelMap:
    return strided_map(voxels, shape=shape, **options) if "stride" in options else submanifold_map(voxels, **options)


@both
@pytest.mark.parametrize("channels", [(1, 1), (5, 18), (16, 32)])
@pytest.mark.parametrize("shape", [(6, 5, 7), (8, 4, 6)])
@pytest.mark.parametrize("case", CASES)
def test_full_grids_are_dense_convolutions(
    case: str, shape: tuple[int, int, int], channels: tuple[int, int], backend: str, dtype: torch.dtype
) -> None:
    options, others = CASES[case]
    voxels = full(*shape, channels=channels[0], dtype=dtype)
    kernel_map = build(voxels, options, shape)
    size = options["kernel_size"]
    sizes = size if isinstance(size, tuple) else (size,) * 3
    weight, bias = random(len(kernel_map.neighbors), *channels, seed=1), random(channels[1], seed=2)
    inputs = [x.to(dtype).requires_grad_() for x in (voxels.features, weight, bias)]
    got = sparse_conv(inputs[0], inputs[1], kernel_map, bias=inputs[2], backend=backend)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    volume = conv3d(dense(Voxels(voxels.grid, exact[0]), shape), dense_weight(exact[1], *sizes), exact[2], **others)
    want = at(volume, kernel_map.target)
    assert len(kernel_map.target) == volume[0, 0].numel()
    assert got.dtype == dtype and error(got, want) <= CLOSE[dtype]
    cotangent = random(*got.shape, seed=3).abs()  # sums that do not cancel
    gradients = torch.autograd.grad(got, inputs, cotangent.to(dtype))
    truths = torch.autograd.grad(want, exact, cotangent.to(dtype).double())
    for gradient, truth in zip(gradients, truths, strict=True):
        assert gradient.dtype == dtype and error(gradient, truth) <= CLOSE[dtype]


@both
@pytest.mark.parametrize("size", [2, 3])
def test_the_way_back_is_the_transposed_convolution(size: int, backend: str, dtype: torch.dtype) -> None:
    shape = (6, 5, 4)
    fine = full(*shape, channels=1)
    down = strided_map(fine, kernel_size=size, shape=shape if size == 3 else None)
    coarse = Voxels(down.target, random(len(down.target), 3, dtype=dtype))
    weight = random(size**3, 3, 4, dtype=dtype, seed=1)
    got = sparse_conv(coarse.features, weight, down.transpose(), backend=backend)
    box = tuple(int(n) + 1 for n in down.target.amax(0))
    volume = conv_transpose3d(
        dense(coarse, box).double(), weight.double().reshape(size, size, size, 3, 4).permute(3, 4, 0, 1, 2), stride=2
    )
    volume = torch.nn.functional.pad(volume, (0, 2) * 3)  # fine cells that no coarse one covers
    assert error(got, at(volume, fine.grid)) <= CLOSE[dtype]


def test_a_dictionary_on_a_scan(data: Path, dtype: torch.dtype) -> None:
    files = sorted((data / "registration" / "lidar").glob("*.npz"))
    if not files:
        pytest.skip("no lidar scans")
    voxels, _ = voxelize(torch.from_numpy(np.load(files[0])["src"]), 0.2)
    x, weight = random(len(voxels.grid), 2, dtype=dtype), random(27, 2, 2, dtype=dtype, seed=1)
    cotangent = random(len(voxels.grid), 2, dtype=dtype, seed=2)
    rows = {tuple(cell): row for row, cell in enumerate(voxels.grid.tolist())}
    out, grad_x, grad_weight = (np.zeros(tuple(t.shape)) for t in (x, x, weight))
    given, w, g = (t.double().numpy() for t in (x, weight, cotangent))
    for k, way in enumerate(product((-1, 0, 1), repeat=3)):
        pairs = [(rows.get((a + way[0], b + way[1], c + way[2])), row) for (a, b, c), row in rows.items()]
        from_, to = np.array([pair for pair in pairs if pair[0] is not None]).T
        np.add.at(out, to, given[from_] @ w[k])
        np.add.at(grad_x, from_, g[to] @ w[k].T)
        grad_weight[k] = given[from_].T @ g[to]
    inputs = (x.requires_grad_(), weight.requires_grad_())
    got = sparse_conv(*inputs, submanifold_map(voxels))
    found = (got, *torch.autograd.grad(got, inputs, cotangent))
    for mine, truth in zip(found, (out, grad_x, grad_weight), strict=True):
        assert error(mine.detach(), torch.from_numpy(truth)) <= CLOSE[dtype]


def test_wide_channels_keep_their_accuracy(dtype: torch.dtype) -> None:
    voxels = full(6, 6, 6, channels=64, dtype=dtype)
    kernel_map, weight = submanifold_map(voxels), random(27, 64, 40, dtype=dtype, seed=1)
    got = sparse_conv(voxels.features, weight, kernel_map)
    padded = np.concatenate([voxels.features.numpy().astype(np.longdouble), np.zeros((1, 64), np.longdouble)])
    wide = weight.numpy().astype(np.longdouble)
    want = sum(padded[rows] @ w for rows, w in zip(kernel_map.neighbors.numpy(), wide, strict=True))
    assert np.abs(got.numpy() - want).max() <= EPS[dtype] * np.abs(want).max()


@both
def test_derivatives_of_both_orders(backend: str) -> None:
    grid = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1], [2, 1, 1], [-1, 0, 0]])
    down = strided_map(Voxels(grid, torch.ones(5, 1)), kernel_size=(1, 2, 3), padding=(0, 0, 1))
    transforms = backend == "torch"
    assert_gradients(
        lambda x, w, b: sparse_conv(x, w, down, bias=b, backend=backend).square(),
        random(5, 2),
        random(6, 2, 3, seed=1),
        random(3, seed=2),
        forward=transforms,
        vmap=transforms,
    )


def test_third_derivatives_stay_in_the_kernels() -> None:
    kernel_map = submanifold_map(full(3, 2, 2, channels=1))
    x, w = random(12, 2).requires_grad_(), random(27, 2, 2, seed=1).requires_grad_()

    def third(backend: str) -> Tensor:
        y: Tensor = sparse_conv(x, w, kernel_map, backend=backend).pow(4).sum()
        for wanted in (x, w, x):
            y = torch.autograd.grad(y, wanted, create_graph=True)[0].square().sum()
        return y

    assert torch.allclose(third("warp"), third("torch"), rtol=1e-11)


def test_auto_is_the_twin_under_transforms() -> None:
    kernel_map = submanifold_map(full(3, 2, 2, channels=1))
    x, w = random(12, 2), random(27, 2, 3, seed=1)
    jacobian = torch.func.jacrev(lambda w: sparse_conv(x, w, kernel_map))(w)
    assert torch.allclose((jacobian * w).sum((2, 3, 4)), sparse_conv(x, w, kernel_map), atol=1e-12)
    many = torch.stack([x, 2 * x])
    both_at_once = torch.func.vmap(lambda x: sparse_conv(x, w, kernel_map))(many)
    assert torch.allclose(both_at_once[1], 2 * both_at_once[0])


@pytest.mark.usefixtures("unchecked")
@both
def test_compiles(backend: str) -> None:
    kernel_map = submanifold_map(full(4, 3, 3, channels=1))
    inputs = [x.requires_grad_() for x in (random(36, 3), random(27, 3, 5, seed=1), random(5, seed=2))]

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return sparse_conv(x, w, kernel_map, bias=b, backend=backend)

    torch.compiler.reset()
    a, b = torch.compile(f, fullgraph=True, backend="aot_eager")(*inputs), f(*inputs)
    assert torch.allclose(a, b, atol=1e-14)
    for x, y in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (a, b)), strict=True):
        assert torch.allclose(x, y, rtol=1e-12)


@both
def test_ragged_is_one_by_one(backend: str, dtype: torch.dtype) -> None:
    """Bit for bit, though every cloud begins at another place in its block and tile."""
    clouds = [full(n, 3, 5, channels=7, dtype=dtype, seed=n) for n in (1, 4, 0, 2, 13)]
    sizes = torch.tensor([0, *(len(cloud.grid) for cloud in clouds)]).cumsum(0)
    whole = Voxels(torch.cat([c.grid for c in clouds]), torch.cat([c.features for c in clouds]), sizes)
    options: dict[str, Any] = {"kernel_size": 3, "padding": 1}
    weight = random(27, 7, 9, dtype=dtype)
    for make in (submanifold_map, lambda v: strided_map(v, **options)):
        kernel_map = make(whole)
        got = sparse_conv(whole.features, weight, kernel_map, backend=backend)
        assert kernel_map.target_offsets is not None
        for i, cloud in enumerate(clouds):
            begin, end = kernel_map.target_offsets[i : i + 2].tolist()
            alone = sparse_conv(cloud.features, weight, make(cloud), backend=backend)
            if backend == "warp":
                assert torch.equal(got[begin:end], alone)
            else:  # torch's products differ with their size
                assert torch.allclose(got[begin:end], alone, atol=1e-4 if dtype == torch.float32 else 1e-12)


def test_threads_do_not_change_a_bit(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    voxels = full(30, 25, 20, channels=8, dtype=dtype)
    kernel_map, weight, found = submanifold_map(voxels), random(27, 8, 20, dtype=dtype), []
    for count in (1, 2, 3):
        threads(count)
        inputs = (voxels.features.clone().requires_grad_(), weight.clone().requires_grad_())
        out = sparse_conv(*inputs, kernel_map)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), inputs)))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives(dtype: torch.dtype) -> None:
    points, results = random(3000, 3, dtype=dtype), []
    weight = random(27, 3, 5, dtype=dtype)
    for device in ("cpu", "cuda"):
        voxels, _ = voxelize(points.to(device), 0.3, offsets=torch.tensor([0, 1000, 3000], device=device))
        kernel_map = submanifold_map(voxels)
        inputs = [x.detach().to(device).requires_grad_() for x in (voxels.features, weight)]
        out = sparse_conv(inputs[0], inputs[1], kernel_map)
        found = (out.detach(), *torch.autograd.grad(out.square().sum(), inputs))
        results.append((kernel_map.neighbors.cpu(), *(x.cpu() for x in found)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(error(a, b) <= CLOSE[dtype] for a, b in zip(results[1][1:], results[0][1:], strict=True))


@both
def test_empty_single_and_absent(backend: str, dtype: torch.dtype) -> None:
    weight, bias = random(27, 3, 5, dtype=dtype).requires_grad_(), random(5, dtype=dtype)
    for count in (0, 1):
        voxels = Voxels(torch.full((count, 3), -7), random(count, 3, dtype=dtype))
        x = voxels.features.clone().requires_grad_()
        out = sparse_conv(x, weight, submanifold_map(voxels), bias=bias, backend=backend)
        assert out.shape == (count, 5) and error(out, x @ weight[13] + bias) <= EPS[dtype]
        gradients = torch.autograd.grad(out.sum(), (x, weight))
        assert gradients[0].shape == (count, 3) and (gradients[1].abs().sum((1, 2)) > 0).sum() == count
    lost = strided_map(Voxels(torch.tensor([[1, 1, 1]]), torch.ones(1, 3)), kernel_size=1)  # reaches no coarse cell
    got = sparse_conv(random(1, 3, dtype=dtype), weight[:1], lost, backend=backend)
    assert got.shape == (0, 5)
    back = sparse_conv(random(0, 3, dtype=dtype), weight[:1], lost.transpose(), bias=bias, backend=backend)
    assert torch.equal(back, bias[None])


@both
def test_inputs_that_are_not_contiguous_stay_as_they_are(backend: str) -> None:
    kernel_map = submanifold_map(full(4, 3, 3, channels=1))
    x, w, b = random(3, 36).mT, random(27, 5, 3).mT, random(10)[::2]
    copies = [t.clone() for t in (x, w, b)]
    got = sparse_conv(x, w, kernel_map, bias=b, backend=backend)
    assert torch.equal(
        got, sparse_conv(*[t.contiguous() for t in (x, w)], kernel_map, bias=b.contiguous(), backend=backend)
    )
    assert all(torch.equal(a, b) for a, b in zip((x, w, b), copies, strict=True))


M = submanifold_map(full(2, 2, 1, channels=1))
X, W = torch.ones(4, 2), torch.ones(27, 2, 3)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"features": X[:3]}, r"features: expected a tensor \(4, C_in\), a row for each source voxel, got"),
    "elements": ({"weight": W[:8]}, r"weight: expected a tensor \(27, 2, C_out\), got"),
    "channels": ({"weight": W[:, :1]}, r"weight: expected a tensor \(27, 2, C_out\), got"),
    "kinds": ({"weight": W.double()}, "weight and features: expected one dtype and device"),
    "bias": ({"bias": torch.ones(2)}, r"bias: expected a tensor \(3,\), got"),
    "bias_kind": ({"bias": torch.ones(3).double()}, "bias and features: expected one dtype"),
    "backend": ({"backend": "gpu"}, "backend: expected one of"),
    "half": ({"features": X.half(), "weight": W.half(), "backend": "warp"}, "backend: expected float32 or float64"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_shape_error(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        sparse_conv(**{"features": X, "weight": W, "kernel_map": M, **change})
