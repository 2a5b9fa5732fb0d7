"""`SerializedGATr`: patches against loops and full attention, symmetry, derivatives."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from geom.clifford.algebra import PGA
from geom.clifford.attention import AttentionPlan
from geom.clifford.embedding import embed_plane, embed_point, extract_point
from geom.clifford.gatr import GATr, GATrPlan
from geom.clifford.reference import join_reference
from geom.clifford.serialized import SerializedGATr
from geom.errors import ShapeError
from geom.nn.serialized_attention import principal_coordinates
from geom.points import serialize
from geom.testing import assert_equivariant
from tests.clifford.drawn import draw

PLAN = GATrPlan(4, 8, 3, AttentionPlan(2), reinsert_channels=(1,), reinsert_scalars=(0,))
OFFSETS = torch.tensor([0, 20, 23, 23, 50])


def points(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Two channels: points, and planes through them."""
    x = draw(n, 3)
    return torch.stack([embed_point(x), embed_plane(draw(n, 3, seed=1), x)], -2).to(dtype)


def shuffled(offsets: Tensor, seed: int) -> Tensor:
    parts = zip(offsets.tolist(), offsets.diff().tolist(), strict=False)
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([start + torch.randperm(n, generator=generator) for start, n in parts])


def make(plan: GATrPlan = PLAN, patch: int = 8) -> SerializedGATr:
    return SerializedGATr(2, 1, 3, 2, plan=plan, patch=patch, generator=torch.Generator().manual_seed(0)).double()


def test_patches_of_whole_clouds_are_full_attention(dtype: torch.dtype) -> None:
    net = make(patch=27).to(dtype)
    full = GATr(2, 1, 3, 2, plan=PLAN).to(dtype)
    full.load_state_dict(net.state_dict())
    x, s = points(50, dtype), draw(50, 3, dtype=dtype)
    orders = torch.stack([shuffled(OFFSETS, seed) for seed in (0, 1)])
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    for got, want in zip(net(x, s, orders=orders, offsets=OFFSETS), full(x, s, offsets=OFFSETS), strict=True):
        assert float((got - want).detach().abs().max()) <= tolerance * float(want.detach().abs().max())


@pytest.mark.parametrize("n", [32, 29])
def test_against_a_loop(n: int) -> None:
    net = make(replace(PLAN, blocks=5))
    x, s = points(n), draw(n, 3)
    x[..., 11:] -= x[:, :1, 11:].mean(0)  # the centre is the origin
    x[:, 0, 14] = 1
    orders = torch.stack([shuffled(torch.tensor([0, n]), seed) for seed in (0, 1)])
    reference = join_reference(x).expand(n, 1, 16)
    y, t = net.linear_in(x, s)
    for k, block in enumerate(net.blocks):
        order, shift = orders[k % 2], (0, 0, 4, 4, 0)[k]  # an order's second turn is shifted, its third is not
        y_new, t_new = torch.empty_like(y), torch.empty_like(t)
        for begin in range(-shift, n, 8):
            start = max(0, min(begin, n - 8))
            seen, own = order[start : start + 8], slice(max(begin, 0) - start, begin + 8 - start)
            out = block(y[seen], t[seen], reference[seen], extra=(x[seen][:, 1:2], s[seen][:, :1]))
            y_new[seen[own]], t_new[seen[own]] = out[0][own], out[1][own]
        y, t = y_new, t_new
    for got, want in zip(net(x, s, orders=orders), net.linear_out(y, t), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_one_order_alone_may_come_without_its_axis() -> None:
    net, order = make(), shuffled(OFFSETS, 0)
    x, s = points(50), draw(50, 3)
    got = net(x, s, orders=order, offsets=OFFSETS)[0]
    assert torch.equal(got, net(x, s, orders=order[None], offsets=OFFSETS)[0])
    other = net(x, s, orders=shuffled(OFFSETS, 1), offsets=OFFSETS)[0]
    assert float((got - other).detach().abs().max()) > 1e-6
    assert net(x[:0], s[:0], orders=order[:0])[0].shape == (0, 1, 16)


def test_symmetry_with_orders_in_the_cloud_s_own_frame(dtype: torch.dtype) -> None:
    net = make().to(dtype)
    cloud = (draw(60, 3).exp() * torch.tensor([3.0, 2, 1])).to(dtype)

    def function(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor | None]:
        own = principal_coordinates(extract_point(x[:, 0]))
        return net(x, s, orders=serialize(own, order=("hilbert", "xyz"), grid_size=0.5).order)

    def turn(versor: Tensor, x: Tensor) -> Tensor:
        return PGA.sandwich(versor, x.double()).to(x.dtype)

    versors = [torch.eye(16, dtype=torch.float64)[0]]
    for k in range(3):  # of one, two and three mirrors
        mirror = embed_plane(torch.nn.functional.normalize(draw(3, seed=k), dim=-1), draw(3, seed=k + 5))
        versors.append(PGA.geometric_product(mirror, versors[-1]))
    normals = draw(60, 3, seed=1, dtype=dtype)
    assert_equivariant(
        function,
        *(torch.stack([embed_point(cloud), embed_plane(normals, cloud)], -2), draw(60, 3, dtype=dtype)),
        elements=versors,
        act_in=[turn, "invariant"],
        act_out=[turn, "invariant"],
        tolerance={torch.float64: 1e-12, torch.float32: 2e-6}[dtype],
    )


def test_derivatives() -> None:
    net, x, s = make(), points(21), draw(21, 3)
    orders = torch.stack([torch.arange(21), shuffled(torch.tensor([0, 21]), 1)])
    weight = draw(21, 1, 16, seed=4)
    weight[..., 11:] = 0  # what points are, and thus the centre that has no part in gradients, does not matter

    def function(x: Tensor, s: Tensor) -> Tensor:
        y, t = net(x, s, orders=orders)
        assert t is not None
        return (y * weight).sum() + t.square().sum()

    inputs = [a.requires_grad_() for a in (x, s, next(net.blocks[1].parameters()))]
    first = torch.autograd.grad(function(x, s), inputs, create_graph=True)
    steps = [draw(*a.shape, seed=5 + k) for k, a in enumerate(inputs)]
    steps[0][..., 11:] = 0
    along = torch.stack([(g * d).sum() for g, d in zip(first, steps, strict=True)]).sum()
    second = torch.autograd.grad(along, inputs)

    def moved(h: float) -> Tensor:
        with torch.no_grad():
            for a, d in zip(inputs, steps, strict=True):
                a += h * d
            value = function(x, s)
            for a, d in zip(inputs, steps, strict=True):
                a -= h * d
        return value

    h = 1e-4
    torch.testing.assert_close((moved(h) - moved(-h)) / (2 * h), along.detach(), rtol=1e-6, atol=1e-6)
    curvature = torch.stack([(g * d).sum() for g, d in zip(second, steps, strict=True)]).sum()
    torch.testing.assert_close((moved(h) - 2 * moved(0) + moved(-h)) / h**2, curvature, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    net = make()
    x, s, order = points(9), draw(9, 3), torch.arange(9)
    for call, message in [
        (lambda: net(x[None], s[None], orders=order), "multivectors: expected a tensor .n, 2, 16"),
        (lambda: net(x, s, orders=order[:8]), "orders: expected an int64 tensor .K, 9"),
        (lambda: net(x, s, orders=None), "orders: expected an int64 tensor .K, 9"),
        (lambda: net(x, s, orders=order.double()), "order: expected an int64 tensor"),
        (lambda: net(x, s, orders=order, offsets=torch.tensor([0, 8])), "offsets: expected to rise"),
        (lambda: SerializedGATr(1, 1, plan=GATrPlan(join=False)), "plan: expected joins and no tracks"),
        (lambda: make(patch=1), "patch: expected an integer of at least 2"),
    ]:
        with pytest.raises(ShapeError, match=message):
            call()
