"""Geometric attention: its formula, points and distances, masks, rotary positions, further channels."""

import math

import pytest
import torch
from torch import Tensor

from geom.clifford.algebra import PGA
from geom.clifford.attention import AttentionPlan, CrossAttention, SelfAttention, geometric_attention, join_attention
from geom.clifford.embedding import embed_point
from geom.testing import assert_gradients
from tests.clifford.drawn import draw

Heads = tuple[Tensor, Tensor]


def operands(dtype: torch.dtype = torch.float64) -> tuple[Heads, Heads, Heads]:
    return (
        (draw(2, 3, 5, 2, 16, dtype=dtype), draw(2, 3, 5, 4, seed=1, dtype=dtype)),
        (draw(2, 3, 6, 2, 16, seed=2, dtype=dtype), draw(2, 3, 6, 4, seed=3, dtype=dtype)),
        (draw(2, 3, 6, 1, 16, seed=4, dtype=dtype), draw(2, 3, 6, 7, seed=5, dtype=dtype)),
    )


def by_formula(queries: Heads, keys: Heads, values: Heads, weights: Tensor, epsilon: float) -> Heads:
    (x, s), (y, t) = queries, keys
    x, y = x[..., :, None, :, :], y[..., None, :, :, :]
    products = PGA.inner_product(x, y) - x[..., 14] * y[..., 14]
    (p, a), (q, b) = ((z[..., 11:14] / z[..., 14:15], z[..., 14].square()) for z in (x, y))
    a, b = a / (a + epsilon), b / (b + epsilon)
    distances = (a * b).square() * (p - q).square().sum(-1)
    logits = (products - weights[..., None, :] * distances).sum(-1) + s @ t.mT
    found = (logits / math.sqrt(12 * x.shape[-2] + s.shape[-1])).softmax(-1)
    value, scalar = values
    return (found @ value.flatten(-2)).unflatten(-1, value.shape[-2:]), found @ scalar


@pytest.mark.parametrize("epsilon", [1e-3, 0.1])
def test_formula(epsilon: float) -> None:
    heads, weights = operands(), draw(3, 1, 2, seed=6).exp()
    got = geometric_attention(*heads, weights=weights, epsilon=epsilon)
    for a, b in zip(got, by_formula(*heads, weights, epsilon), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_near_points_count_more() -> None:
    points = embed_point(torch.tensor([[0.0, 0, 0], [1, 0, 0], [5, 0, 0]], dtype=torch.float64))[None, :, None]
    none = torch.zeros(1, 3, 0, dtype=torch.float64)
    values = torch.eye(3, dtype=torch.float64)[None]
    weights = geometric_attention((points, none), (points, none), (points, values), epsilon=1e-9)[1][0]
    ratio = (weights[0, 0] / weights[0, 1]).log() * math.sqrt(12)
    torch.testing.assert_close(ratio, torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-6)
    assert weights[2].argmax() == 2 and weights[0, 2] < weights[0, 1]


@pytest.mark.parametrize("function", [geometric_attention, join_attention])
def test_what_sees_nothing_is_0(function: type[geometric_attention]) -> None:
    heads = operands()
    mask = torch.ones(2, 3, 5, 6, dtype=torch.bool)
    mask[0, 1, 2] = False
    mask[1, :, 0, 3:] = False
    x, s = function(*heads, mask=mask)
    assert bool((x[0, 1, 2] == 0).all() and (s[0, 1, 2] == 0).all())
    (k, t), (v, u) = heads[1:]
    y, _r = function(heads[0], (k[:, :, :3], t[:, :, :3]), (v[:, :, :3], u[:, :, :3]))
    torch.testing.assert_close(x[1, :, 0], y[1, :, 0])
    added = function(*heads, mask=torch.where(mask, 0.0, -math.inf).double())
    torch.testing.assert_close(added[1], s)


def test_derivatives() -> None:
    (x, s), (y, t), (z, u) = ((0.5 * a[0, :1, :2], b[0, :1, :2]) for a, b in operands())

    def function(x: Tensor, s: Tensor, y: Tensor, t: Tensor, z: Tensor, u: Tensor) -> Heads:
        return geometric_attention((x, s), (y, t), (z, u), epsilon=0.5)

    assert_gradients(function, x, s, y, t, z, u)
    assert_gradients(function, 0 * x, s, 0 * y, t, z, u)  # without points


def test_rotary_positions_are_relative_and_change_the_result() -> None:
    layer = SelfAttention(2, 2, 4, 3, plan=AttentionPlan(2, rotary=True), generator=torch.Generator()).double()
    x, s = draw(1, 2, 16).expand(6, 2, 16), draw(1, 4, seed=1).expand(6, 4)
    same = layer(x, s)[1]  # all items alike: values are alike wherever they are
    torch.testing.assert_close(same, same[:1].expand_as(same))
    x, s = draw(6, 2, 16), draw(6, 4, seed=1)
    y = layer(x, s)[1]
    assert float((layer(x.flip(0), s.flip(0))[1].flip(0) - y).detach().abs().max()) > 1e-6
    plain = SelfAttention(2, 2, 4, 3, plan=AttentionPlan(2), generator=torch.Generator()).double()
    torch.testing.assert_close(plain(x.flip(0), s.flip(0))[1].flip(0), plain(x, s)[1])


@pytest.mark.parametrize(
    ("plan", "size"),
    [
        (AttentionPlan(), (4, 32)),
        (AttentionPlan(64), (1, 4)),
        (AttentionPlan(8, increase=1), (2, 16)),
        (AttentionPlan(40, rotary=True), (1, 8)),
        (AttentionPlan(28, rotary=True), (1, 10)),
    ],
)
def test_sizes_of_heads(plan: AttentionPlan, size: tuple[int, int]) -> None:
    assert plan.sizes(16, 128) == size


def test_no_scalars(dtype: torch.dtype) -> None:
    layer = SelfAttention(2, 3, 0, 2, plan=AttentionPlan(2)).to(dtype)
    y, t = layer(draw(5, 2, 16, dtype=dtype))
    assert y.shape == (5, 3, 16) and t is not None and t.shape == (5, 2)
    assert CrossAttention(2, 2, 1, plan=AttentionPlan(2)).to(dtype)(y[:, :2], y[:4, :2])[1] is None


@pytest.mark.parametrize("multi_query", [False, True])
def test_further_channels_change_the_result(multi_query: bool) -> None:
    plan = AttentionPlan(2, multi_query)
    layer = SelfAttention(2, 3, 4, 2, plan=plan, extra_channels=1, extra_scalars=2).double()
    x, s, extra = draw(5, 2, 16), draw(5, 4, seed=1), (draw(5, 1, 16, seed=2), draw(5, 2, seed=3))
    y = layer(x, s, extra=extra)[0]
    for k in range(2):
        other = tuple(2 * z if i == k else z for i, z in enumerate(extra))
        assert float((layer(x, s, extra=(other[0], other[1]))[0] - y).detach().abs().max()) > 1e-9


def test_clouds(dtype: torch.dtype) -> None:
    offsets = torch.tensor([0, 3, 3, 7])
    layer = SelfAttention(2, 3, 4, 2, plan=AttentionPlan(2, rotary=True)).to(dtype)
    x, s = draw(7, 2, 16, dtype=dtype), draw(7, 4, seed=1, dtype=dtype)
    got = layer(x, s, offsets=offsets)
    for a, b in ((0, 3), (3, 7)):
        for y, want in zip(got, layer(x[a:b], s[a:b]), strict=True):
            torch.testing.assert_close(y[a:b], want, rtol=0, atol={torch.float32: 2e-6, torch.float64: 1e-14}[dtype])
