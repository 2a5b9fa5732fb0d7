"""Warp: the seven numbers of a transform, there and back through an array that shares them."""

import numpy as np
import pytest
import torch
import warp as wp

from geom.errors import ShapeError
from geom.interop import from_warp, to_warp
from geom.kernels import bridge  # noqa: F401 (sets Warp up quietly)
from geom.lie import Rigid


def test_there_and_back_exactly(rigids: Rigid) -> None:
    numbers = to_warp(rigids)
    assert numbers.shape == (12, 7) and numbers.is_contiguous()
    wp.init()
    kind = wp.transformf if numbers.dtype == torch.float32 else wp.transformd
    for array in (wp.from_torch(numbers, dtype=kind), numbers, wp.to_torch(wp.from_torch(numbers, dtype=kind))):
        back = from_warp(array)
        assert torch.equal(back.quat_wxyz, rigids.quat_wxyz) and torch.equal(back.translation, rigids.translation)
    grid = from_warp(wp.from_torch(to_warp(rigids).reshape(3, 4, 7), dtype=kind))
    assert grid.translation.shape == (3, 4, 3)


def test_warp_moves_points_alike(rigids: Rigid) -> None:
    wp.init()
    x = [0.3, -2.0, 0.7]
    for i, row in enumerate(to_warp(rigids).tolist()):
        moved = wp.transform_point(wp.transformf(row[:3], row[3:]), wp.vec3f(*x))
        want = rigids[i].apply(torch.tensor([x], dtype=rigids.translation.dtype))[0]
        assert np.abs(np.array(moved) - want.numpy()).max() < 2e-6


def test_a_copy_is_made_and_gradients_pass(rigids: Rigid) -> None:
    numbers = to_warp(rigids)
    back = from_warp(numbers)
    numbers.zero_()
    assert torch.equal(back.translation, rigids.translation) and torch.equal(back.quat_wxyz, rigids.quat_wxyz)
    t = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    q = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: from_warp(to_warp(Rigid(q, t))).translation, (t,))


def test_other_things_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected a Rigid"):
        to_warp(torch.zeros(7))  # type: ignore[arg-type]
    for wrong in (torch.zeros(6), torch.zeros(7, dtype=torch.int64), np.zeros((2, 3)), [1.0]):
        with pytest.raises(ShapeError, match=r"expected a wp.array of transforms or a float tensor \(..., 7\)"):
            from_warp(wrong)
