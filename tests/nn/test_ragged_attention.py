"""Attention with masks and over clouds: against sums in float64, one head of keys, derivatives, wrong input."""

import math

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.nn.ragged_attention import attention
from geom.testing import assert_gradients

TOLERANCE = {torch.float32: 1e-6, torch.float64: 2e-15}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def operands(dtype: torch.dtype = torch.float64, *batch: int, n: int = 5, m: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    return (
        draw(*batch, 3, n, 4, seed=1, dtype=dtype),
        draw(*batch, 3, m, 4, seed=2, dtype=dtype),
        draw(*batch, 3, m, 6, seed=3, dtype=dtype),
    )


def by_loop(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float = 0.5) -> Tensor:
    """One query at a time, in float64."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    for i in range(q.shape[-2]):
        logits = scale * (k.double() @ q[..., i, :, None].double())[..., 0]
        if mask is not None:
            own = mask.expand(*q.shape[:-1], k.shape[-2])[..., i, :]
            logits = torch.where(own, logits, -math.inf) if own.dtype == torch.bool else logits + own
        weights = (logits - logits.amax(-1, keepdim=True)).exp().nan_to_num(0)
        total = weights.sum(-1, keepdim=True)
        out[..., i, :] = ((weights / total.clamp(min=1e-300))[..., None] * v.double()).sum(-2)
    return out


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert float((got.double() - want).abs().max()) <= TOLERANCE[got.dtype] * float(want.abs().max())


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_sums(dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    q, k, v = operands(dtype, *batch)
    close(attention(q, k, v), by_loop(q, k, v))
    close(attention(q, k, v, scale=2.0), by_loop(q, k, v, scale=2.0))


def test_more_features_in_keys_than_in_values(dtype: torch.dtype) -> None:
    q, k, v = operands(dtype)
    close(attention(q, k, v[..., :1]), by_loop(q, k, v[..., :1]))


def test_one_head_serves_all(dtype: torch.dtype) -> None:
    q, k, v = operands(dtype, 2)
    close(attention(q, k[:, :1], v[:, :1]), by_loop(q, k[:, :1].expand_as(k), v[:, :1].expand_as(v)))


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 5, 7), (2, 3, 1, 7)])
@pytest.mark.parametrize("additive", [False, True])
def test_masks(dtype: torch.dtype, shape: tuple[int, ...], additive: bool) -> None:
    q, k, v = operands(dtype, 2)
    mask = draw(*shape, seed=4) > 0
    mask[..., 0, :] = False  # a query that sees nothing
    if additive:
        mask = torch.where(mask, draw(*shape, seed=5), -math.inf).to(dtype)
    got = attention(q, k, v, mask=mask)
    close(got, by_loop(q, k, v, mask))
    if shape[-2] > 1:
        assert bool((got[..., 0, :] == 0).all())


def test_clouds_are_as_by_themselves(dtype: torch.dtype) -> None:
    lengths, others = [3, 0, 5, 3, 2, 1], [2, 4, 0, 2, 5, 1]
    q, k, v = operands(dtype, n=sum(lengths), m=sum(others))
    offsets, key_offsets = (torch.tensor([0, *x]).cumsum(0) for x in (lengths, others))
    got = attention(q, k, v, offsets=offsets, key_offsets=key_offsets)
    for a, b, c, d in zip(offsets, offsets[1:], key_offsets, key_offsets[1:], strict=False):
        if d > c:
            close(got[:, a:b], by_loop(q[:, a:b], k[:, c:d], v[:, c:d])) if b > a else None
        else:
            assert bool((got[:, a:b] == 0).all())
    own = attention(q, q, q, offsets=offsets)
    close(own[:, 3:8], by_loop(q[:, 3:8], q[:, 3:8], q[:, 3:8]))


def test_nothing() -> None:
    q, k, v = operands()
    assert attention(q[:, :0], k, v).shape == (3, 0, 6)
    assert bool((attention(q, k[:, :0], v[:, :0]) == 0).all())
    empty = torch.tensor([0, 0])
    assert attention(q[:, :0], q[:, :0], v[:, :0], offsets=empty).shape == (3, 0, 6)


def test_derivatives() -> None:
    q, k, v = operands(n=3, m=4)
    assert_gradients(attention, q, k[:1], v[:1], forward=False)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0] = False
    mask[1, 2:] = False
    assert_gradients(lambda q, k, v: attention(q, k, v, mask=mask), q, k, v, forward=False)
    offsets = torch.tensor([0, 1, 3])
    assert_gradients(lambda q: attention(q, q, q, offsets=offsets), q, forward=False, vmap=False)


def test_gradients_can_be_taken_twice() -> None:
    q, k, v = (x.requires_grad_() for x in operands())
    out = attention(q, k, v).square().sum()
    first = torch.autograd.grad(out, (q, k, v), retain_graph=True)
    again = torch.autograd.grad(out, (q, k, v), create_graph=True)
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("unchecked")
def test_compiles() -> None:
    q, k, v = operands()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), attention(q, k, v))


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    q, k, v = operands()
    for change, message in [
        ({"queries": q[0, 0]}, "queries: expected a tensor"),
        ({"keys": k[:2]}, "keys: expected batch, heads and features"),
        ({"values": v[:, :3]}, "values: expected one for each key"),
        ({"keys": k.float()}, "queries and keys: expected one dtype"),
        ({"mask": torch.ones(4, 7, dtype=torch.bool)}, "mask: expected to broadcast"),
        ({"key_offsets": torch.tensor([0, 7])}, "offsets: expected to come with"),
        ({"offsets": torch.tensor([0, 5]), "key_offsets": torch.tensor([0, 2, 7])}, "key_offsets: expected 2"),
        ({"offsets": torch.tensor([0, 4])}, "offsets: expected to rise from 0 to 5"),
    ]:
        with pytest.raises(ShapeError, match=message):
            attention(**{"queries": q, "keys": k, "values": v, **change})
