"""Networks of point attention: symmetries, forces, momentum norms, files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from geom.clifford.momentum_norm import MomentumLayerNorm, MomentumNorm
from geom.clifford.point_network import PointNetwork, PointPotential, pair_values
from geom.clifford.point_products import TupleProducts
from geom.errors import FileFormatError, ShapeError
from geom.lie import Rigid
from geom.testing import assert_equivariant
from geom.train import save_checkpoint

KINDS = torch.tensor([0, 0, 1, 2, 2])


def network(dtype: torch.dtype, outer: int = 1) -> PointNetwork:
    torch.manual_seed(0)
    return PointNetwork(6, outer, TupleProducts(invariants="full"), channels=8).to(dtype)


def molecule(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 5, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_energies_and_forces_of_a_molecule_anywhere(dtype: torch.dtype) -> None:
    potential = PointPotential(network(dtype))
    tolerance = 1e-11 if dtype == torch.float64 else 1e-3
    options = {"act_in": "point", "tolerance": tolerance, "generator": torch.Generator().manual_seed(2)}
    assert_equivariant(lambda x: potential(x, KINDS), molecule(dtype), act_out="invariant", **options)
    assert_equivariant(lambda x: potential.forces(x, KINDS), molecule(dtype), act_out="vector", **options)
    swap = torch.tensor([1, 0, 2, 4, 3])
    torch.testing.assert_close(potential(molecule(dtype)[:, swap], KINDS), potential(molecule(dtype), KINDS))
    assert potential(molecule(dtype)[0], KINDS).shape == ()


def test_forces_are_the_energys_derivative_and_have_their_own() -> None:
    potential, x = PointPotential(network(torch.float64)), molecule(torch.float64)
    assert torch.autograd.gradcheck(lambda x: potential(x, KINDS), x.clone().requires_grad_())
    step = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        slope = (potential(x + 1e-5 * step, KINDS) - potential(x - 1e-5 * step, KINDS)) / 2e-5
        forces = potential.forces(x, KINDS)
    assert not forces.requires_grad
    torch.testing.assert_close(-(forces * step).sum((-2, -1)), slope, rtol=1e-7, atol=1e-9)
    potential.forces(x, KINDS).square().sum().backward()
    weight = potential.network.enter.weight
    assert weight.grad is not None and bool(weight.grad.abs().max() > 0)
    inputs = x[:, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: potential.forces(x, KINDS[1:3]), inputs)


def test_far_from_the_origin_and_on_top_of_each_other() -> None:
    potential, x = PointPotential(network(torch.float64)), molecule(torch.float64)
    far = Rigid.identity(dtype=torch.float64).apply(x) + 1e4
    torch.testing.assert_close(potential.forces(far, KINDS), potential.forces(x, KINDS), rtol=1e-7, atol=1e-9)
    x[0, 1] = x[0, 0]
    forces = potential.forces(x.requires_grad_(), KINDS)
    forces.square().sum().backward()
    assert bool(forces.isfinite().all()) and x.grad is not None and bool(x.grad.isfinite().all())


def test_weights_and_masks_reach_the_attention() -> None:
    net = network(torch.float64, outer=3)
    points = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values = torch.randn(4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(6) < 4
    whole = net(points, values)
    assert whole.shape == (4, 3)
    got = net(points, values, mask=mask.expand(4, 6))
    torch.testing.assert_close(got, net(points[:, :4], values[:, :4]))
    assert not torch.allclose(got, whole)
    assert not torch.allclose(net(points, values, weights=0.1 + mask.double().expand(4, 6)), whole)


def test_files(tmp_path: Path) -> None:
    net = network(torch.float32, outer=2)
    net.save(tmp_path / "net.safetensors")
    again = PointNetwork.load(tmp_path / "net.safetensors")
    assert again.products == net.products and again.plan == net.plan
    points, values = torch.randn(7, 3), torch.randn(7, 6)
    assert torch.equal(again(points, values), net(points, values))
    save_checkpoint(tmp_path / "other.safetensors", {"module": {}})
    with pytest.raises(FileFormatError, match="expected a saved network"):
        PointNetwork.load(tmp_path / "other.safetensors")
    save_checkpoint(tmp_path / "other.safetensors", {"network": {"products": {"rank": 0}}, "module": {}})
    with pytest.raises(FileFormatError, match="expected a saved network"):
        PointNetwork.load(tmp_path / "other.safetensors")


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    with pytest.raises(ShapeError, match="network: expected one number"):
        PointPotential(network(torch.float32, outer=2))
    with pytest.raises(ShapeError, match="positions: expected"):
        PointPotential(network(torch.float32))(torch.randn(4, 3), KINDS)
    with pytest.raises(ShapeError, match="momentum: expected"):
        MomentumNorm(3, momentum=1.5)
    with pytest.raises(ShapeError, match="x: expected"):
        MomentumNorm(3)(torch.randn(4, 2))


def test_pair_values() -> None:
    found = pair_values(torch.tensor([0, 2]), torch.tensor([[0, 1], [1, 2]]), 3)
    assert found.shape == (2, 2, 6)
    assert found[0, 1].tolist() == [-1, 1, 0, 1, 1, 0] and found[1, 1].tolist() == [0, 0, 0, 0, 0, 2]


# --- momentum norms ---------------------------------------------------------------------------------------------------


def test_running_statistics(dtype: torch.dtype) -> None:
    x = 3 + 2 * torch.randn(50, 4, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    norm = MomentumNorm(3, momentum=0.5).to(dtype)
    norm(x)
    torch.testing.assert_close(norm.mu, 0.5 * x.mean((0, 1)))
    torch.testing.assert_close(norm.sigma, 0.5 + 0.5 * x.reshape(-1, 3).std(0, correction=0))
    for _ in range(50):
        y = norm(x)
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(3, dtype=dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std((0, 1), correction=0), torch.ones(3, dtype=dtype))
    before = norm.mu.clone()
    norm.eval()
    assert torch.equal(norm(x + 1) - norm(x), (x + 1 - norm.mu) / norm.sigma - (x - norm.mu) / norm.sigma)
    norm.train()(x[:0])
    assert torch.equal(norm.mu, before)


def test_running_length_leaves_directions(dtype: torch.dtype) -> None:
    x = 5 * torch.randn(50, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    norm = MomentumLayerNorm(momentum=0.0).to(dtype)
    y = norm(x)
    torch.testing.assert_close(y.norm(dim=-1).mean(), torch.ones((), dtype=dtype))
    torch.testing.assert_close(y, x / x.norm(dim=-1).mean())
    norm.eval()
    assert torch.equal(norm(2 * x), 2 * y)


@pytest.mark.parametrize("norm", [MomentumNorm(3), MomentumLayerNorm()])
def test_statistics_have_no_gradient_and_constants_are_finite(norm: torch.nn.Module) -> None:
    x = torch.ones(4, 3, requires_grad=True)
    for _ in range(3):
        norm(x).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    assert not any(buffer.requires_grad for buffer in norm.buffers())
    with torch.no_grad():
        assert bool(norm(torch.zeros(4, 3)).isfinite().all())
