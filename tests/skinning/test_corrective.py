"""The corrective: nothing at rest, what its dense matrices give, masks that hold, derivatives."""

import pytest
import torch

from geom.errors import ShapeError
from geom.lie import so3
from geom.skinning.corrective import Corrective, make_corrective, pose_feature
from geom.testing import assert_gradients
from geom.values import replace

PARENT = torch.tensor([-1, 0, 1, 2, 0, 4, 4])  # a leg of four joints and a fork
OWNER = torch.tensor([0, 3, 1, 1, 2, 6, 4, 4, 0, 3, 2, 6])  # no vertex hangs on joint 5


def filled(
    hops: int = 1,
    dtype: torch.dtype = torch.float64,
    width: int = 24,
    parent: torch.Tensor = PARENT,
    owner: torch.Tensor = OWNER,
) -> Corrective:
    generator = torch.Generator().manual_seed(hops)
    corrective = make_corrective(parent, owner, hops=hops, width=width, dtype=dtype, generator=generator)
    return replace(corrective, output=torch.randn(corrective.output.shape, dtype=dtype, generator=generator))


def turns(*batch: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return so3.exp(torch.randn(*batch, len(PARENT), 3, dtype=dtype, generator=generator))


def test_zero_at_rest(dtype):
    rest = so3.exp(torch.zeros(3, len(PARENT), 3, dtype=dtype))
    offsets = filled(dtype=dtype).apply(rest)
    assert offsets.shape == (3, len(OWNER), 3)
    assert torch.equal(offsets, torch.zeros_like(offsets))  # exactly
    assert filled(dtype=dtype).apply(turns(dtype=dtype)).abs().max() > 0.1


def test_a_turn_of_the_root_is_not_heard():
    rotations = torch.eye(3, dtype=torch.float64).repeat(len(PARENT), 1, 1)
    rotations[0] = turns()[0]
    assert torch.equal(filled().apply(rotations), torch.zeros(len(OWNER), 3, dtype=torch.float64))


@pytest.mark.parametrize("hops", [1, 2])
def test_equals_the_dense_network(hops, dtype):
    corrective, rotations = filled(hops, dtype), turns(5, dtype=dtype)
    first, second = corrective.dense()
    assert first.shape == (7 * 24, 7 * 6) and second.shape == (3 * 12, 7 * 24)
    units = (pose_feature(rotations).flatten(-2) @ first.mT).relu()
    expected = (units @ second.mT).unflatten(-1, (-1, 3))
    error = (corrective.apply(rotations) - expected).abs().max() / expected.abs().max()
    assert error < (1e-14 if dtype == torch.float64 else 1e-6)


def test_masks_hold():
    """A vertex hears a joint at most where both are near a third: twice `hops` bones away."""
    corrective = filled()
    rest = torch.eye(3, dtype=torch.float64).repeat(len(PARENT), 1, 1)
    heard = []
    for joint in range(len(PARENT)):
        rotations = rest.clone()
        rotations[joint] = turns()[joint]
        heard.append((corrective.apply(rotations) != 0).any(-1))
    heard = torch.stack(heard)
    # owner 3, the end of the leg, hears 1, 2, 3 and neither the fork nor the root
    assert heard[:, OWNER == 3].all(1).tolist() == [False, True, True, True, False, False, False]
    assert not heard[4:, OWNER == 2].any()  # the fork is four bones away


def test_more_hops_hear_more():
    assert filled(2).near[3] == (1, 2, 3) and filled(1).near[3] == (2, 3)


def test_features_are_columns():
    rotation = so3.exp(torch.tensor([0.0, 0.0, torch.pi / 2], dtype=torch.float64))
    assert pose_feature(rotation).allclose(torch.tensor([-1.0, 1, 0, -1, -1, 0], dtype=torch.float64))


@pytest.mark.usefixtures("unchecked")
def test_gradients():
    corrective = filled(width=2, parent=PARENT[:4], owner=torch.tensor([0, 2, 3, 3]))

    def offsets(rotvec: torch.Tensor, hidden: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return replace(corrective, hidden=hidden, output=output).apply(so3.exp(rotvec))

    rotvec = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert_gradients(offsets, rotvec, corrective.hidden, corrective.output, compile=True)
    # at rest the units have a kink: only finiteness can be asked
    assert_gradients(offsets, torch.zeros_like(rotvec), corrective.hidden, corrective.output, order=0)


def test_saves(tmp_path):
    corrective = filled(dtype=torch.float32)
    corrective.save(tmp_path / "corrective.safetensors")
    again = Corrective.load(tmp_path / "corrective.safetensors")
    rotations = turns(dtype=torch.float32)
    assert torch.equal(again.apply(rotations), corrective.apply(rotations))


def test_same_seed_same_bits():
    first, second = (make_corrective(PARENT, OWNER, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first.hidden, second.hidden) and not first.output.any()


@pytest.mark.usefixtures("unchecked")
def test_wrong_input():
    with pytest.raises(ShapeError, match="owner: expected a joint"):
        make_corrective(PARENT, OWNER + 5)
    with pytest.raises(ShapeError, match="parent: expected"):
        make_corrective(PARENT + 7, OWNER)
    with pytest.raises(ShapeError, match="width: expected"):
        make_corrective(PARENT, OWNER, width=0)
    with pytest.raises(ShapeError, match="rotations: expected"):
        filled().apply(turns()[:3])
