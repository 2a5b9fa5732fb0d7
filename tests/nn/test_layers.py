"""Layers: the maps they build, weights of dense layers and of spconv, a net down and up again, and training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.nn import (
    SparseConv3d,
    SparseInverseConv3d,
    SubmanifoldConv3d,
    Voxels,
    strided_map,
    submanifold_map,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(channels: int = 4, count: int = 120) -> Voxels:
    cells = torch.cartesian_prod(*(torch.arange(-4, 4),) * 3)
    grid = cells[torch.randperm(len(cells), generator=seeded())[:count]]
    return Voxels(grid, torch.randn(count, channels, generator=seeded(1)), torch.tensor([0, 50, count]))


def test_layers_build_the_map_that_they_would_be_given() -> None:
    voxels = blob()
    same = SubmanifoldConv3d(4, 6, dilation=2, generator=seeded())
    down = SparseConv3d(4, 6, kernel_size=3, stride=2, padding=1, bias=False, generator=seeded())
    maps = (
        submanifold_map(voxels, dilation=2),
        strided_map(voxels, kernel_size=3, padding=1),
    )
    for layer, kernel_map in zip((same, down), maps, strict=True):
        a, b = layer(voxels), layer(voxels, kernel_map)
        assert torch.equal(a.features, b.features) and torch.equal(a.grid, b.grid) and len(a) == 2
        assert torch.equal(a.offsets, b.offsets) and a.features.shape == (len(kernel_map.target), 6)


def test_down_and_up_again_ends_where_it_began() -> None:
    voxels = blob()
    down = strided_map(voxels)
    coarse = SparseConv3d(4, 8, generator=seeded())(voxels, down)
    fine = SparseInverseConv3d(8, 4, generator=seeded())(coarse, down)
    assert len(coarse.grid) < len(voxels.grid) and torch.equal(fine.grid, voxels.grid)
    assert torch.equal(torch.as_tensor(fine.offsets), torch.as_tensor(voxels.offsets))
    with pytest.raises(ShapeError, match="features: expected"):
        SparseInverseConv3d(4, 4)(voxels, down)


def test_the_first_weights_are_those_of_a_dense_layer_in_law() -> None:
    layer = SubmanifoldConv3d(16, 32, generator=seeded())
    bound = float(torch.nn.Conv3d(16, 32, 3).weight.detach().abs().max())
    assert layer.bias is not None and layer.weight.shape == (27, 16, 32) and layer.bias.shape == (32,)
    for x in (layer.weight, layer.bias):
        assert x.abs().max() <= (27 * 16) ** -0.5
    assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=1e-2)
    assert float(layer.weight.detach().std()) == pytest.approx((3 * 27 * 16) ** -0.5, rel=2e-2)
    assert torch.equal(SubmanifoldConv3d(16, 32, generator=seeded()).weight, layer.weight)
    assert SparseConv3d(2, 3, bias=False).bias is None and "kernel_size=(2, 2, 2)" in repr(SparseConv3d(2, 3))


def test_weights_of_a_dense_layer_and_of_spconv() -> None:
    """spconv's grids have columns (z, y, x), its weights (C_out, k_z, k_y, k_x, C_in)."""
    dense = torch.nn.Conv3d(3, 5, 3, padding=1)
    cells = torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(5))
    volume = torch.randn(1, 3, 4, 3, 5, generator=seeded())
    want = dense(volume)[0].permute(1, 2, 3, 0).reshape(-1, 5)
    voxels = Voxels(cells, volume[0].permute(1, 2, 3, 0).reshape(-1, 3))
    layer = SubmanifoldConv3d(3, 5)
    state = {"weight": dense.weight.permute(2, 3, 4, 1, 0).reshape(27, 3, 5), "bias": dense.bias}
    layer.load_state_dict(state)
    assert torch.allclose(layer(voxels).features, want, atol=1e-6)
    # the same net as spconv has it: dense axes are (z, y, x), our columns (x, y, z)
    theirs = dense.weight.permute(0, 2, 3, 4, 1)
    layer.load_state_dict({"weight": theirs.permute(3, 2, 1, 4, 0).reshape(27, 3, 5), "bias": dense.bias})
    assert torch.allclose(layer(Voxels(cells.flip(1), voxels.features)).features, want, atol=1e-6)
    layer.load_state_dict({"weight": theirs.permute(1, 2, 3, 4, 0).reshape(27, 3, 5), "bias": dense.bias})
    assert torch.allclose(layer(voxels).features, want, atol=1e-6)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = SubmanifoldConv3d(4, 8, generator=seeded(2))
        self.down = SparseConv3d(8, 8, generator=seeded(3))
        self.up = SparseInverseConv3d(8, 1, generator=seeded(4))

    def forward(self, voxels: Voxels) -> Tensor:
        hidden = self.first(voxels)
        hidden = Voxels(hidden.grid, hidden.features.relu(), hidden.offsets)
        down = strided_map(hidden)
        return self.up(self.down(hidden, down), down).features


def test_a_net_learns_where_its_voxels_are() -> None:
    voxels, net = blob(), Net()
    target = (voxels.grid.sum(1, keepdim=True) > 0).float()
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=1e-2), []
    for _ in range(60):
        loss = (net(voxels) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_state_goes_and_comes_back(tmp_path: Path) -> None:
    net, other = Net(), Net().double()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    voxels = blob()
    assert torch.allclose(other(voxels.to(torch.float64)).float(), net(voxels), atol=1e-5)


WRONG: dict[str, tuple[Any, str]] = {
    "channels": (lambda: SubmanifoldConv3d(0, 4), "in_channels: expected an integer of at least 1, got 0"),
    "out": (lambda: SparseConv3d(4, 2.5), "out_channels: expected an integer of at least 1, got 2.5"),  # type: ignore[arg-type]
    "kernel": (lambda: SparseInverseConv3d(4, 4, kernel_size=0), "kernel_size: expected an integer of at least 1"),
    "even": (lambda: SubmanifoldConv3d(4, 4, kernel_size=2)(blob()), "kernel_size: expected odd numbers"),
    "map": (lambda: SubmanifoldConv3d(4, 4)(blob(), strided_map(blob())), r"weight: expected a tensor \(8, 4, C_out\)"),
    "voxels": (lambda: SparseConv3d(5, 4)(blob()), r"weight: expected a tensor \(8, 4, C_out\)"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_shape_error(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        call()
