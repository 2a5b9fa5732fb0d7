"""Motion bases: blends of rotations are rotations, whatever is blended."""

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import so3
from geom.skinning.linear import lbs
from geom.skinning.motion_bases import blend_bases, motion_bases
from geom.testing import assert_gradients


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(7, 3, generator=generator, dtype=dtype)
    weights = torch.randn(7, 4, generator=generator, dtype=dtype).softmax(-1)
    rotations = torch.randn(2, 4, 6, generator=generator, dtype=dtype)
    return points, weights, rotations, torch.randn(2, 4, 3, generator=generator, dtype=dtype)


def test_six_numbers_blend_and_then_become_a_rotation(dtype: torch.dtype) -> None:
    points, weights, rotations, translations = drawn(dtype)
    found = motion_bases(points, weights, rotations, translations)
    for pose in range(2):
        for p in range(7):
            six = (weights[p, :, None] * rotations[pose]).sum(0)
            first = six[:3] / six[:3].norm()
            second = six[3:] - (first @ six[3:]) * first
            second = second / second.norm()
            turn = torch.stack([first, second, torch.linalg.cross(first, second)], -1)
            want = turn @ points[p] + (weights[p, :, None] * translations[pose]).sum(0)
            assert (found[pose, p] - want).abs().max() < (1e-14 if dtype == torch.float64 else 5e-6)
    indices = torch.arange(4).flip(0).repeat(7, 1)
    other = motion_bases(points, weights.flip(1), rotations, translations, indices=indices)
    assert (other - found).abs().max() < (1e-14 if dtype == torch.float64 else 5e-6)


def test_motions_serve_as_bones() -> None:
    points, weights, rotations, translations = drawn()
    moves = blend_bases(weights, rotations, translations)
    assert moves.shape == (2, 7, 3, 4)
    turn = moves[..., :3]
    assert (turn.mT @ turn - torch.eye(3, dtype=turn.dtype)).abs().max() < 1e-14
    one, own = torch.ones(7, 1, dtype=turn.dtype), torch.arange(7)[:, None]
    found = motion_bases(points, weights, rotations, translations)
    assert (lbs(points, one, moves, indices=own) - found).abs().max() < 1e-14


def test_one_basis_is_its_motion(dtype: torch.dtype) -> None:
    points = drawn(dtype)[0]
    turn = so3.exp(torch.tensor([0.3, 2.0, -1.0], dtype=dtype))
    shift = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype)
    found = motion_bases(points, torch.ones(7, 1, dtype=dtype), so3.to_6d(turn)[None], shift)
    assert (found - (points @ turn.mT + shift)).abs().max() < (2e-15 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("columns", [[1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, -1, 0, 0], [0.0, 0, 0, 0, 0, 0]])
def test_degenerate_blends_are_rotations(columns: list[float], dtype: torch.dtype) -> None:
    six = torch.tensor(columns, dtype=dtype)
    rotations = torch.stack([six, -six]).requires_grad_()
    points = torch.ones(1, 3, dtype=dtype, requires_grad=True)
    weights = torch.full((1, 2), 0.5, dtype=dtype, requires_grad=True)
    moves = blend_bases(weights, rotations, torch.zeros(2, 3, dtype=dtype))
    turn = moves[0, :, :3].detach()
    assert (turn.mT @ turn - torch.eye(3, dtype=dtype)).abs().max() < 1e-6 and torch.linalg.det(turn) > 0.99
    out = motion_bases(points, weights, rotations, torch.zeros(2, 3, dtype=dtype))
    grads = torch.autograd.grad(out.sum(), (points, weights, rotations))
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)


def test_derivatives() -> None:
    points, weights, rotations, translations = drawn()
    assert_gradients(motion_bases, points[:2], weights[:2], rotations[0], translations[0])


@pytest.mark.usefixtures("unchecked")
def test_it_compiles() -> None:
    points, weights, rotations, translations = drawn()
    rest = {"order": 0, "forward": False, "vmap": False, "compile": True}
    assert_gradients(motion_bases, points[:2], weights[:2], rotations[0], translations[0], **rest)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input_is_named() -> None:
    points, weights, rotations, translations = drawn()
    with pytest.raises(ShapeError, match=r"rotations: expected a tensor \(\.\.\., J, 6\)"):
        motion_bases(points, weights, rotations[..., :4], translations)
    with pytest.raises(ShapeError, match=r"translations: expected a tensor \(2, 4, 3\)"):
        motion_bases(points, weights, rotations, translations[0])
    with pytest.raises(ShapeError, match=r"points: expected a float32 or float64 tensor"):
        motion_bases(points[:, :2], weights, rotations, translations)
    with pytest.raises(ShapeError, match=r"weights: expected \(7, 4\)"):
        blend_bases(weights[:, :3], rotations, translations)
