import pytest
import torch
from torch import nn

from geom.nn import BatchNorm
from geom.sequence import PointCloudMamba, PointCloudMambaPlan, PointMamba, PointMambaPlan

PLAN = PointCloudMambaPlan(width=8, blocks=(1, 1), orders=("xyz", "hilbert"), expansion=(1, 2), reduce=(2, 2))


@pytest.mark.parametrize("rows", [2, 7])
def test_rows_are_normalised_as_by_torch(rows, dtype):
    ours, theirs = BatchNorm(3, momentum=0.3).to(dtype), nn.BatchNorm1d(3, momentum=0.3).to(dtype)
    x = torch.randn(rows, 3, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_or_none_is_taken_as_outside_of_training(rows, dtype):
    norm = BatchNorm(3).to(dtype)
    norm(torch.randn(9, 3, dtype=dtype))
    before = [x.clone() for x in norm.buffers()]
    x = torch.randn(rows, 3, dtype=dtype, requires_grad=True)
    y = norm(x)
    assert torch.equal(y, norm.eval()(x))
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), before, strict=True))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert rows == 0 or gradient.abs().amin() > 0


@pytest.mark.parametrize(
    "network", [PointCloudMamba(3, plan=PLAN), PointMamba(PointMambaPlan(3, patches=4, neighbors=4, width=16, depth=1))]
)
def test_networks_are_trained_on_one_cloud(network):
    network.train()(torch.rand(20, 3)).sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients and all(bool(g.isfinite().all()) for g in gradients)
