"""PointMamba: its layers written out, the published size and names, clouds by themselves."""

import math

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.points import encode, farthest_point_sample
from geom.sequence.point_mamba import PointMamba, PointMambaPlan

SMALL = PointMambaPlan(classes=5, patches=8, neighbors=6, width=16, depth=2, head=12)


def clouds(*lengths: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)


def make(plan: PointMambaPlan = SMALL, dtype: torch.dtype = torch.float64) -> PointMamba:
    torch.manual_seed(0)
    return PointMamba(plan, generator=torch.Generator().manual_seed(0)).to(dtype).eval()


def test_the_steps_written_out() -> None:
    net, points = make(), clouds(60)
    centres = points[farthest_point_sample(points, 8)]
    tokens = []
    for centre in centres:
        near = (points - centre).square().sum(1).sort(stable=True)[1][:6]
        h = net.encoder.first_conv((points[near] - centre).mT[None])
        h = net.encoder.second_conv(torch.cat([h.amax(2, keepdim=True).expand(1, 256, 6), h], 1))
        tokens.append(h.amax(2)[0])
    position = net.pos_embed(centres)
    grid = ((centres - centres.amin(0)) / 0.02).long()
    runs = []
    for k, order in ((1, "hilbert"), (2, "hilbert-transposed")):
        row = encode(grid, order=order, bits=10).argsort(stable=True)
        gamma, beta = (net.get_parameter(f"OrderScale_{name}_{k}") for name in ("gamma", "beta"))
        runs.append(torch.stack(tokens)[row] * gamma + beta + position[row])
    hidden, residual = torch.cat(runs)[None], 0.0
    for layer in net.blocks.layers:
        residual = residual + hidden
        hidden = layer.mixer(layer.norm(residual))
    mean = net.norm(net.blocks.norm_f(residual + hidden)).mean(1)
    torch.testing.assert_close(net.features(points), mean, atol=1e-11, rtol=0)
    torch.testing.assert_close(net(points), net.cls_head_finetune(mean), atol=1e-11, rtol=0)


def test_clouds_are_as_by_themselves(dtype: torch.dtype) -> None:
    net, points = make(dtype=dtype), clouds(20, 9, 31, dtype=dtype)
    both = net(points, offsets=torch.tensor([0, 20, 29, 60]))
    for k, (start, stop) in enumerate(((0, 20), (20, 29), (29, 60))):
        torch.testing.assert_close(
            net(points[start:stop])[0], both[k], atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0
        )
    assert torch.equal(net(points.reshape(3, 20, 3)), net(points, offsets=torch.tensor([0, 20, 40, 60])))


def test_float32_is_near_float64() -> None:
    with torch.no_grad():
        exact, single = make()(clouds(60)), make(dtype=torch.float32)(clouds(60, dtype=torch.float32))
    assert float((single - exact).abs().max() / exact.abs().max()) < 2e-5


def test_gradients_reach_every_parameter() -> None:
    net = make()
    net(clouds(40, 40), offsets=torch.tensor([0, 40, 80])).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_gradients() -> None:
    net = make(PointMambaPlan(classes=2, patches=4, neighbors=3, width=4, depth=1, head=3))
    x = (clouds(12)).requires_grad_()
    assert torch.autograd.gradcheck(net, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(net, (x,), fast_mode=True)


def test_the_published_size_and_names() -> None:
    with torch.device("meta"):
        net = PointMamba()
    count = sum(math.prod(p.shape) for p in net.parameters())
    assert round(count / 1e6, 1) == 12.3
    names = dict(net.named_parameters())
    for name in (
        "encoder.first_conv.0.weight",
        "encoder.second_conv.3.bias",
        "pos_embed.2.weight",
        "blocks.layers.11.mixer.A_log",
        "blocks.layers.11.mixer.out_proj.weight",
        "blocks.layers.0.norm.weight",
        "blocks.norm_f.bias",
        "norm.weight",
        "OrderScale_gamma_2",
        "cls_head_finetune.8.weight",
    ):
        assert name in names
    assert names["cls_head_finetune.8.weight"].shape == (40, 256)


def test_a_state_dict_is_all_there_is() -> None:
    net, other = make(), PointMamba(SMALL, generator=torch.Generator().manual_seed(1)).double().eval()
    points = clouds(40)
    assert not torch.allclose(net(points), other(points))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(points), other(points))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "call",
    [
        lambda: PointMambaPlan(depth=0),
        lambda: make()(clouds(7)),
        lambda: make()(clouds(30)[:, :2]),
        lambda: make()(1000 * clouds(30)),
        lambda: make()(clouds(30), offsets=torch.tensor([0, 5, 30])),
    ],
)
def test_wrong_input_is_a_shape_error(call) -> None:
    with pytest.raises(ShapeError, match="expected"):
        call()
