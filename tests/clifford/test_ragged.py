"""Clouds of several sizes at once are as each by itself: nets, references, centres; and so if one has NaN."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from geom.clifford.attention import AttentionPlan
from geom.clifford.embedding import embed_plane, embed_point
from geom.clifford.gatr import GATr, GATrBlock, GATrPlan
from geom.clifford.reference import centre_of, join_reference
from geom.clifford.serialized import SerializedGATr
from geom.clifford.slim import SlimGATr, to_slim
from tests.clifford.drawn import draw

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}
LENGTHS = [4, 16, 1, 0, 7, 4, 13]
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)


def clouds(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Points and planes, each cloud somewhere else."""
    own = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    x = draw(len(own), 3) + 5 * draw(len(LENGTHS), 3, seed=3)[own]
    return torch.stack([embed_point(x), embed_plane(draw(len(own), 3, seed=1), x)], -2).to(dtype), draw(
        len(own), 3, seed=2, dtype=dtype
    )


def parts() -> list[slice]:
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(OFFSETS) if b > a]


def close(got: Tensor, want: Tensor) -> None:
    error = float((got - want).detach().abs().max())
    assert error <= TOLERANCE[got.dtype] * max(1.0, float(want.detach().abs().max())), error


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("reference", ["data", "canonical"])
def test_nets(dtype: torch.dtype, rotary: bool, reference: str) -> None:
    plan = GATrPlan(4, 8, 2, AttentionPlan(2, rotary=rotary), reinsert_channels=(0,))
    net = GATr(2, 1, 3, 2, plan=plan, generator=torch.Generator().manual_seed(0)).to(dtype)
    x, s = clouds(dtype)
    y, t = net(x, s, offsets=OFFSETS, reference=reference)
    for part in parts():
        own = net(x[part], s[part], reference=reference)
        close(y[part], own[0])
        close(t[part], own[1])


@pytest.mark.parametrize("kind", [GATr, SlimGATr, SerializedGATr])
@pytest.mark.parametrize("where", ["multivectors", "scalars"])
def test_nan_stays_in_its_cloud(dtype: torch.dtype, kind: type[torch.nn.Module], where: str) -> None:
    net = kind(2, 1, 3, 2, plan=GATrPlan(4, 8, 2, AttentionPlan(2)), generator=torch.Generator().manual_seed(0))
    more = {"orders": torch.arange(int(OFFSETS[-1]))} if kind is SerializedGATr else {}
    x, s = clouds(dtype)
    x = to_slim(x) if kind is SlimGATr else x
    want = net.to(dtype)(x, s, offsets=OFFSETS, **more)
    with_nan = x.clone(), s.clone()
    with_nan[where == "scalars"][OFFSETS[4] + 2] = math.nan
    inside = torch.arange(len(x)).ge(OFFSETS[4]) & torch.arange(len(x)).lt(OFFSETS[5])
    for got, right in zip(net(*with_nan, offsets=OFFSETS, **more), want, strict=True):
        assert bool(got[inside].isnan().flatten(1).any(1).all())
        assert torch.equal(got[~inside], right[~inside]) and bool(right.isfinite().all())


def test_gradients(dtype: torch.dtype) -> None:
    net = GATr(2, 1, 3, 2, plan=GATrPlan(4, 8, 1, AttentionPlan(2))).to(dtype)
    x, s = clouds(dtype)
    x.requires_grad_()
    whole = torch.autograd.grad(net(x, s, offsets=OFFSETS)[1].square().sum(), x)[0]
    loop = torch.stack([net(x[part], s[part])[1].square().sum() for part in parts()]).sum()
    alone = torch.autograd.grad(loop, x)[0]
    assert float((whole - alone).abs().max()) <= 10 * TOLERANCE[dtype] * float(alone.abs().max())


def test_blocks(dtype: torch.dtype) -> None:
    block = GATrBlock(GATrPlan(2, 3, attention=AttentionPlan(2))).to(dtype)
    x, s = clouds(dtype)
    reference = join_reference(x, offsets=OFFSETS)
    y, _ = block(x, s, reference, offsets=OFFSETS)
    for part in parts():
        close(y[part], block(x[part], s[part], join_reference(x[part]))[0])


def test_references_and_centres(dtype: torch.dtype) -> None:
    x, _ = clouds(dtype)
    reference, centre = join_reference(x, offsets=OFFSETS), centre_of(x, offsets=OFFSETS)
    assert reference.shape == (len(x), 1, 16) and centre.shape == (len(x), 1, 3)
    for part in parts():
        close(reference[part], x[part].mean((0, 1)).expand(reference[part].shape))
        close(centre[part], centre_of(x[part]).expand(centre[part].shape))
