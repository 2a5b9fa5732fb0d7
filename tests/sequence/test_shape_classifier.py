"""The classifier of shapes: two frames of a cloud, levels that are pooled, and what turns do not change."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, linear, relu

from geom.errors import FileFormatError, ShapeError
from geom.lie import quaternion
from geom.sequence.classification import normalize_cloud
from geom.sequence.grouping import PointLayer
from geom.sequence.point_cloud_mamba import PointCloudMamba, PointCloudMambaPlan
from geom.sequence.shape_classifier import ShapeClassifier, two_frames

PLAN = PointCloudMambaPlan(6, 8, (2, 1), (1, 1), ("xyz", "zxy"), reduce=(2, 2), neighbors=4, prompts=1, prompt_width=4)
OFFSETS = torch.tensor([0, 40, 57, 90])


def clouds() -> Tensor:
    """Three of other widths along each axis, with skewness, so that their axes are no matter of rounding."""
    x = torch.rand(90, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    return x * torch.tensor([3.0, 2, 1]) + 5


def make(dtype: torch.dtype = torch.float64) -> ShapeClassifier:
    torch.manual_seed(0)
    network = ShapeClassifier(3, plan=PLAN, pooled=(5, 6, 7), hidden=(8, 4)).double()
    network(clouds(), offsets=OFFSETS)  # norms that have seen something
    return network.to(dtype).eval()


def test_two_frames(dtype: torch.dtype) -> None:
    x = clouds().to(dtype)
    both = two_frames(x, OFFSETS)
    assert both.dtype == dtype and both.shape == (90, 6)
    sizes = OFFSETS.diff().tolist()
    own = torch.cat([normalize_cloud(cloud) for cloud in x.split(sizes)])
    torch.testing.assert_close(both[:, 3:], own)
    turn = quaternion.random(generator=torch.Generator().manual_seed(1), dtype=dtype)
    for moved in (quaternion.rotate(turn, x), -x, 7 * x - 2):
        limit = 1e-12 if dtype == torch.float64 else 2e-4
        assert float((two_frames(moved, OFFSETS)[:, :3] - both[:, :3]).abs().max()) < limit
    assert float((two_frames(-x, OFFSETS)[:, 3:] - both[:, 3:]).abs().max()) > 0.5
    even = torch.tensor([0, 30, 60, 90])
    alone = torch.cat([two_frames(cloud) for cloud in x.split(30)])
    torch.testing.assert_close(two_frames(x, even), alone)
    assert not two_frames(torch.ones(4, 3, dtype=dtype)).any()


def layer(module: PointLayer, x: Tensor) -> Tensor:
    convolution, norm = module.net
    y = linear(x, convolution.weight[..., 0])
    return relu(batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias))


def test_it_is_its_equations(dtype: torch.dtype) -> None:
    network, x = make(), clouds()
    with torch.no_grad():
        want = []
        for cloud in x.split(OFFSETS.diff().tolist()):
            both, ends = two_frames(cloud), torch.tensor([0, len(cloud)])
            levels = network.encoder(both[:, :3], both, ends)
            tops = [
                layer(pool, torch.cat([level.features, level.points], 1)).amax(0)
                for pool, level in zip(network.pools, levels, strict=True)
            ]
            y = torch.cat(tops)[None]
            for part in network.head[:-1]:
                y = layer(part[0], y)
            want.append(network.head[-1](y))
        want = torch.cat(want)
        got = network.to(dtype)(x.to(dtype), offsets=OFFSETS)
    assert got.dtype == dtype and got.shape == (3, 3)
    limit = 1e-11 if dtype == torch.float64 else 2e-4
    assert float((got - want).abs().max()) <= limit * float(want.abs().max())


def test_turns_change_what_stands_as_it_is_alone() -> None:
    network, x = make(), clouds()
    turned = quaternion.rotate(quaternion.random(dtype=torch.float64), x)
    with torch.no_grad():
        assert float((network(turned, offsets=OFFSETS) - network(x, offsets=OFFSETS)).abs().max()) > 1e-3
        network.encoder.embedding.net[0].weight[:, 3:] = 0
        torch.testing.assert_close(network(turned, offsets=OFFSETS), network(x, offsets=OFFSETS))
        torch.testing.assert_close(network(9 * x + 1, offsets=OFFSETS), network(x, offsets=OFFSETS))


def test_all_of_it_learns() -> None:
    network = make().train()
    network(clouds(), offsets=OFFSETS).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    network, path = make(torch.float32), tmp_path / "network.safetensors"
    network.save(path)
    again, x = ShapeClassifier.load(path), clouds().float()
    assert not again.training and again.shape["classes"] == 3
    with torch.no_grad():
        assert torch.equal(again(x, offsets=OFFSETS), network(x, offsets=OFFSETS))
    with pytest.raises(FileFormatError):
        PointCloudMamba.load(path)


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    for pooled, channels in (((5, 6), 6), ((5, 6, 7), 3)):
        plan = PointCloudMambaPlan(channels, 8, (2, 1), (1, 1), ("xyz", "zxy"), reduce=(2, 2))
        with pytest.raises(ShapeError, match="6 channels"):
            ShapeClassifier(3, plan=plan, pooled=pooled)
    network = make()
    with pytest.raises(ShapeError, match="at least 4"):
        network(clouds(), offsets=torch.tensor([0, 3, 90]))
    with pytest.raises(ShapeError, match="at least 1"):
        two_frames(clouds(), torch.tensor([0, 0, 90]))
    with pytest.raises(ShapeError, match="points"):
        two_frames(torch.rand(5, 2))
