"""Forward kinematics against the product along each chain."""

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie.kinematics import compose_affine, forward_kinematics, invert_affine
from geom.testing import assert_gradients

TREES = {
    "chain": [-1, 0, 1, 2, 3, 4, 5],
    "chain upside down": [1, 2, 3, 4, 5, 6, -1],
    "forest": [3, -1, 1, 1, -1, 0, 0, 4],
    "roots": [-1, -1, -1],
    "one": [-1],
    "none": [],
}


def along_chains(parent: list[int], local: Tensor) -> Tensor:
    """Each node's product of 4x4 matrices, from the root down."""
    full = torch.cat([local, local.new_tensor([[0, 0, 0, 1]]).expand(*local.shape[:-2], 1, 4)], -2)
    rows = []
    for node in range(len(parent)):
        found = full[..., node, :, :]
        while parent[node] >= 0:
            node = parent[node]
            found = full[..., node, :, :] @ found
        rows.append(found[..., :3, :])
    return torch.stack(rows, -3) if rows else local


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_equals_the_product_along_each_chain(name: str, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    parent = TREES[name]
    local = torch.randn(*batch, len(parent), 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    world = forward_kinematics(torch.tensor(parent, dtype=torch.int64), local)
    expected = along_chains(parent, local)
    error = (world - expected).abs().max() if world.numel() else world.sum()
    assert error <= (2e-6 if dtype == torch.float32 else 4e-15) * max(1.0, float(expected.abs().sum().clamp(max=100)))
    assert world.dtype == dtype and world.shape == local.shape


def test_a_deep_chain_moves_every_node(dtype: torch.dtype) -> None:
    n = 1000
    local = torch.eye(3, 4, dtype=dtype).repeat(n, 1, 1)
    local[:, 0, 3] = 1
    world = forward_kinematics(torch.arange(n) - 1, local)
    assert torch.equal(world[:, 0, 3], torch.arange(1.0, n + 1, dtype=dtype))


def test_gradients() -> None:
    parent = torch.tensor(TREES["forest"])
    local = torch.randn(2, 8, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_gradients(lambda x: forward_kinematics(parent, x), local)
    assert_gradients(lambda x: forward_kinematics(parent, x), torch.zeros_like(local))
    assert_gradients(lambda a, b: compose_affine(a, b), local, local.flip(0))
    assert_gradients(invert_affine, local)


def test_transforms_of_torch_func() -> None:
    parent = torch.tensor(TREES["forest"])
    local = torch.randn(5, 8, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mapped = torch.func.vmap(lambda x: forward_kinematics(parent, x))(local)
    torch.testing.assert_close(mapped, forward_kinematics(parent, local))
    assert torch.func.jacrev(lambda x: forward_kinematics(parent, x))(local[0]).shape == (8, 3, 4, 8, 3, 4)
    assert torch.func.jacfwd(lambda x: forward_kinematics(parent, x))(local[0]).shape == (8, 3, 4, 8, 3, 4)


@pytest.mark.usefixtures("unchecked")
def test_compiles() -> None:
    parent = torch.tensor(TREES["forest"])
    local = torch.randn(2, 8, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(forward_kinematics, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(parent, local), forward_kinematics(parent, local))


def test_compose_and_invert(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 4, 3, 4, dtype=dtype, generator=torch.Generator().manual_seed(2))
    tolerance = 1e-3 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(compose_affine(a, b), along_chains([-1, 0], torch.stack([a, b], 1))[:, 1])
    one = torch.eye(3, 4, dtype=dtype).expand(4, 3, 4)
    torch.testing.assert_close(compose_affine(a, invert_affine(a)), one, rtol=0, atol=tolerance)
    torch.testing.assert_close(compose_affine(a[0], b), compose_affine(a[:1].expand(4, 3, 4), b))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "parent", [torch.tensor([0]), torch.tensor([1, 0]), torch.tensor([-1, 2, 3, 1]), torch.tensor([-2]), torch.ones(1)]
)
def test_what_is_no_forest_is_refused(parent: Tensor) -> None:
    with pytest.raises(ShapeError, match="parent"):
        forward_kinematics(parent, torch.zeros(len(parent), 3, 4))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (1, 4, 4)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="local"):
        forward_kinematics(torch.tensor([-1]), torch.zeros(shape))
