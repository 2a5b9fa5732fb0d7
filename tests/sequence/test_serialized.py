"""Serialised attention: blocks against the sums they stand for, pooling by codes, the whole net."""

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

from geom.errors import ShapeError
from geom.nn import merge_voxels, submanifold_map
from geom.nn.serialized_attention import patches
from geom.points import decode, encode
from geom.sequence.serialized import (
    ORDERS,
    SerializedBlock,
    SerializedPlan,
    SerializedTransformer,
    pool_by_code,
    voxel_orders,
)
from geom.values import replace
from tests.sequence.test_windows import scene

SMALL = SerializedPlan((8, 12), (2, 1), (2, 3), (8,), (2,), (2,), patch=10, expand=2)
SHAPE = (7, 6, 5)


def make(plan: SerializedPlan = SMALL, dtype: torch.dtype = torch.float64) -> SerializedTransformer:
    torch.manual_seed(0)
    return SerializedTransformer(4, 3, plan).to(dtype)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 2])
def test_pooling_by_code_merges_cells(order: str, steps: int) -> None:
    voxels, bits = scene((16, 13, 9), 2), 4
    code = encode(voxels.grid, order=order, bits=bits, offsets=voxels.offsets)
    coarse, index = pool_by_code(code, steps)
    assert torch.equal(coarse[index], code >> 3 * steps) and bool((coarse.diff() > 0).all())
    cloud = torch.repeat_interleave(torch.arange(2), voxels.offsets.diff())
    cells = torch.cat([cloud[:, None], voxels.grid >> steps], 1)
    assert len(cells.unique(dim=0)) == len(coarse)
    shifted = coarse & (1 << 3 * (bits - steps)) - 1
    assert torch.equal(decode(shifted, order=order, bits=bits - steps)[index], voxels.grid >> steps)
    merged, parent = merge_voxels(voxels, stride=2**steps)
    assert len(merged.grid) == len(coarse)
    assert len(torch.stack([parent, index], 1).unique(dim=0)) == len(coarse)


@pytest.mark.parametrize("patch", [10, 1000])
def test_a_block_written_out(patch: int) -> None:
    torch.manual_seed(0)
    voxels, block = scene(SHAPE, 2, 8), SerializedBlock(8, 2, expand=2).double()
    row = voxel_orders(voxels, ["hilbert"])[0]
    cut, around = patches(row, patch, offsets=voxels.offsets), submanifold_map(voxels)
    x = voxels.features
    x = x + block.position(block.conv(voxels, around).features)
    q, k, v = block.qkv_proj(layer_norm(x, (8,))).chunk(3, 1)
    y = torch.zeros_like(x)
    for start, stop in zip(cut.offsets[:-1].tolist(), cut.offsets[1:].tolist(), strict=True):
        items = cut.index[start:stop]
        for place in range(start, stop):
            item = int(cut.index[place])
            if int(cut.home[item]) != place:
                continue
            for head in (slice(0, 4), slice(4, 8)):
                weights = torch.softmax(k[items][:, head] @ q[item, head] / 2, 0)
                y[item, head] = weights @ v[items][:, head]
    x = x + block.out_proj(y)
    h = gelu(linear(layer_norm(x, (8,)), block.mlp[0].weight, block.mlp[0].bias))
    x = x + linear(h, block.mlp[2].weight, block.mlp[2].bias)
    torch.testing.assert_close(block(voxels, cut, around).features, x, atol=1e-12, rtol=0)


def test_clouds_are_as_by_themselves(dtype: torch.dtype) -> None:
    net, voxels = make(dtype=dtype), scene(SHAPE, 3, dtype=dtype)
    both = net(voxels)
    assert both.shape == (len(voxels.grid), 3) and both.dtype == dtype
    for k, (start, stop) in enumerate(zip(voxels.offsets[:-1].tolist(), voxels.offsets[1:].tolist(), strict=True)):
        torch.testing.assert_close(
            both[start:stop], net(voxels[k]), atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0
        )


def test_patch_and_orders_and_shuffling_change_the_result() -> None:
    voxels = scene(SHAPE)
    state, result = make().state_dict(), make()(voxels)
    for change in ({"patch": 20}, {"orders": ("hilbert", "morton")}, {"orders": ("xyz",)}):
        net = make(dataclasses.replace(SMALL, **change))
        net.load_state_dict(state)
        assert not torch.allclose(net(voxels), result)
    shuffled = [make()(voxels, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(shuffled[0], shuffled[1])
    assert not torch.allclose(shuffled[0], shuffled[2]) and not torch.allclose(shuffled[0], result)


def test_gradients_reach_every_parameter() -> None:
    net = make()
    net(scene(SHAPE, 2)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_gradients() -> None:
    voxels, net = scene((3, 3, 2), 2), make(SerializedPlan((4, 4), (1, 1), (2, 2), (4,), (1,), (2,), patch=4, expand=2))

    def run(x: torch.Tensor) -> torch.Tensor:
        return net(replace(voxels, features=x))

    x = voxels.features.clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True)


def test_float32_is_near_float64() -> None:
    with torch.no_grad():
        exact, single = make()(scene(SHAPE)), make(dtype=torch.float32)(scene(SHAPE, dtype=torch.float32))
    assert float((single - exact).abs().max() / exact.abs().max()) < 1e-5


def test_the_published_plan() -> None:
    with torch.device("meta"):
        net = SerializedTransformer(6, 20)
    assert [len(stage.blocks) for stage in net.down] == [2, 2, 2, 6, 2]
    assert [stage.blocks[0].heads for stage in net.up] == [16, 8, 4, 4]
    assert 30e6 < sum(math.prod(p.shape) for p in net.parameters()) < 60e6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "call",
    [
        lambda: SerializedPlan(depths=(1, 2)),
        lambda: SerializedPlan(up_widths=(1, 2)),
        lambda: SerializedPlan(orders=()),
        lambda: SerializedBlock(8, 3),
        lambda: pool_by_code(torch.arange(3), 0),
        lambda: make()(scene(SHAPE, 1, 3)),
        lambda: make(dataclasses.replace(SMALL, orders=("peano",)))(scene(SHAPE)),
    ],
)
def test_wrong_input_is_a_shape_error(call) -> None:
    with pytest.raises(ShapeError, match="expected"):
        call()
