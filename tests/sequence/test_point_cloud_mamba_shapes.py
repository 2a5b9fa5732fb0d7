"""The shipped networks: shapes are named, and parts of them found, however many points there are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geom.errors import ShapeError
from geom.lie import quaternion
from geom.sequence.classification import classify, draw, load_classifier, load_segmenter, normalize_cloud, segment


def ball(count: int) -> Tensor:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1)


def test_normalize_cloud(dtype: torch.dtype) -> None:
    x = (ball(50) * torch.tensor([3.0, 1, 1]) + 70).to(dtype)
    y = normalize_cloud(x)
    assert y.dtype == dtype and float(y.norm(dim=1).max()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(y.amax(0), -y.amin(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize_cloud(2 * x - 5), y, atol=2e-5, rtol=0)
    still = torch.ones(4, 3, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(normalize_cloud(still).sum(), still)
    assert not normalize_cloud(still).any() and bool(slope.isfinite().all())


def test_classify() -> None:
    x = ball(2000)
    found = classify(x)
    assert next(iter(found)) == "ball" and sum(found.values()) == pytest.approx(1, abs=1e-6)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert classify(x) == found and classify(x, seed=1) != found and classify(x, views=1) != found
    for name, p in classify(30 * x + 1000).items():
        assert p == pytest.approx(found[name], abs=1e-4)
    assert next(iter(classify(x[:100].float()))) == "ball"


def test_the_classifier_is_small() -> None:
    network, names = load_classifier()
    assert sum(p.numel() for p in network.parameters()) <= 1_000_000 and not network.training
    assert {"chair", "monitor"} <= set(names) and len(names) == network.shape["classes"]


def test_draw(dtype: torch.dtype) -> None:
    x = (7 * ball(300) + 5).to(dtype)
    whole = draw(x, generator=torch.Generator().manual_seed(0))
    assert whole.dtype == dtype and len(whole) == 256
    assert float(torch.cdist(7 * whole + 5, x).amin(1).max()) < 0.3  # the bounding box is a little another
    filled = draw(x[:100], generator=torch.Generator().manual_seed(0))
    assert len(filled) == 256
    gaps = torch.cdist(filled[100:], filled[:100]).amin(1)
    assert 0.02 < float(gaps.mean()) < 0.15 and float(filled[:100].norm(dim=1).max()) == pytest.approx(1, abs=1e-6)
    assert bool(draw(torch.ones(1, 3, dtype=dtype)).isfinite().all())


@pytest.mark.parametrize(("turned", "count", "bound"), [(False, 4096, 39), (True, 4096, 37), (False, 128, 38)])
def test_shapes_that_were_not_learned_from(turned: bool, count: int, bound: int, data: Path) -> None:
    (path,) = sorted(data.glob("pointclouds/modelnet10_chair_monitor*.npz"))[:1] or [None]
    if path is None:
        pytest.skip("no chairs and monitors")
    with np.load(path) as file:
        cells, labels = np.unpackbits(file["vox"], axis=1).reshape(-1, 32, 32, 32), file["label"]
    right, generator = [], torch.Generator().manual_seed(0)
    for k in range(0, 200, 5):
        occupied = torch.from_numpy(cells[k]).nonzero().double()
        points = occupied + torch.rand(occupied.shape, generator=generator) - 0.5
        points = points[torch.randperm(len(points), generator=generator)[:count]]
        if turned:
            points = quaternion.rotate(quaternion.random(generator=generator, dtype=torch.float64), points)
        right.append(next(iter(classify(points, views=2))) == ("chair", "monitor")[labels[k]])
    assert sum(right) >= bound, f"{sum(right)} of 40"


class Echo(nn.Module):
    """Probabilities that tell where a point is; it keeps how many there were in each cloud."""

    sizes: list[int]

    def forward(self, points: Tensor, *, offsets: Tensor) -> Tensor:
        self.sizes = offsets.diff().tolist()
        share = 0.4 * points[:, 0] + 0.5
        return torch.stack([share.log(), (1 - share).log()], 1)


def test_segment_deals_and_gathers() -> None:
    x, network = torch.rand(1000, 3, dtype=torch.float64), Echo()
    found = segment(x, network=network, views=3, points_each=300)
    torch.testing.assert_close(found[:, 0], 0.4 * normalize_cloud(x)[:, 0] + 0.5)
    assert network.sizes == [333, 333, 334]
    segment(x[:20], network=network, points_each=300)
    assert network.sizes == [20]


def test_segment_takes_points_of_another_dtype_than_the_network() -> None:
    x, (network, _) = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)), load_segmenter()
    found = segment(x.double(), network=network)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), segment(x, network=network), atol=1e-4, rtol=0)


def test_caps_have_brims(data: Path) -> None:
    network, names = load_segmenter()
    assert names == ("crown", "brim")
    found = sorted(data.glob("pointclouds/shapenetpart_cap*.npz"))
    if not found:
        pytest.skip("no caps")
    with np.load(found[0]) as file:
        sizes = np.diff(file["offsets"]).tolist()
        points, parts = (torch.from_numpy(file[name]).split(sizes) for name in ("pos", "part"))
    for place, part in zip(points, parts, strict=True):
        guess, is_brim = segment(3 * place + 1, network=network).argmax(1) == 1, part == 7
        union = [(guess | is_brim).sum(), (~guess | ~is_brim).sum()]
        shares = [(guess & is_brim).sum() / union[0], (~guess & ~is_brim).sum() / union[1]]
        assert float(sum(shares)) / 2 > 0.8


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    for wrong in (ball(31), torch.ones(40, 3), torch.full((40, 3), torch.nan), torch.rand(40, 2)):
        with pytest.raises(ShapeError, match="points"):
            classify(wrong)
    with pytest.raises(ShapeError, match="views"):
        classify(ball(40), views=0)
    with pytest.raises(ShapeError, match="points_each"):
        segment(ball(40), network=Echo(), points_each=0)
