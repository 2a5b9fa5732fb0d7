"""Codes of weights: what comes back, simplices, seeds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.skinning.compression import WeightCode, fit_weight_code


def chain(count: int = 500, joints: int = 8) -> Tensor:
    """Weights along a bent line, two or three joints a vertex."""
    s = torch.linspace(0, joints - 1, count, dtype=torch.float64)[:, None]
    w = torch.exp(-2 * (s - torch.arange(joints)).square())
    return w / w.sum(1, keepdim=True)


def fit(w: Tensor, steps: int = 250, seed: int = 0, dimensions: int = 3) -> tuple[WeightCode, Tensor, Tensor]:
    return fit_weight_code(w, dimensions=dimensions, steps=steps, generator=torch.Generator().manual_seed(seed))


def test_a_small_code_holds_smooth_weights(dtype: torch.dtype) -> None:
    w = chain().to(dtype)
    network, codes, error = fit(w)
    network.requires_grad_(False)
    assert codes.shape == (500, 3) and codes.dtype == dtype
    assert float(codes.min()) > 0 and float(codes.max()) < 1
    back = network.decode(codes)
    assert (back.sum(1) - 1).abs().max() < 1e-6 and float(back.min()) > 0
    assert torch.allclose(error, (back - w).abs().sum(1) / 2, atol=1e-7)
    assert torch.allclose(network(w), back)
    assert error.mean() < 0.04
    assert error.mean() < fit(w, steps=40)[2].mean() / 2


def test_more_dimensions_hold_more() -> None:
    draw = torch.Generator().manual_seed(1)
    w = torch.softmax(3 * torch.randn(300, 6, generator=draw), 1)
    errors = [float(fit(w, dimensions=d)[2].mean()) for d in (1, 5)]
    assert errors[1] < errors[0] / 2


def test_same_seed_same_bits() -> None:
    w = chain(700, 5).float()
    first, second, other = (fit(w, steps=10, seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_hand(data: Path) -> None:
    files = sorted(data.glob("skinning/igl/*bbw*.npz"))
    if not files:
        pytest.skip("no weights in skinning/igl")
    w = torch.from_numpy(np.load(files[0])["W_raw"]).clamp(0, 1)
    w = w / w.sum(1, keepdim=True)
    assert fit(w, steps=300)[2].mean() < 0.12


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    for w in (chain()[:0], -chain(), chain()[0], chain().long()):
        with pytest.raises(ShapeError):
            fit_weight_code(w, steps=1)
