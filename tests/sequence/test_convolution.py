"""Causal convolution: torch's own as the oracle, clouds, gradients, torch's rules."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d

from geom.errors import ShapeError
from geom.sequence import causal_convolution
from geom.testing import assert_gradients

RULES = ("test_schema", "test_autograd_registration", "test_faketensor")  # and compile, below


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])
@pytest.mark.parametrize("size", [(2, 70, 40), (1, 2, 3), (3, 64, 16), (1, 1, 1)])
def test_against_torch(size: tuple[int, int, int], reverse: bool, dtype: torch.dtype) -> None:
    _, length, width = size
    x, weight, bias, grad = draw(*size), draw(width, 4, seed=1), draw(width, seed=2), draw(*size, seed=3)

    def oracle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.flip(1) if reverse else x
        y = conv1d(x.mT, weight[:, None], bias, padding=3, groups=width)[..., :length].mT
        return y.flip(1) if reverse else y

    want_in = [y.clone().requires_grad_() for y in (x, weight, bias)]
    want = oracle(*want_in)
    want_grads = torch.autograd.grad(want, want_in, grad)
    own = [y.to(dtype).requires_grad_() for y in (x, weight, bias)]
    limit = 2e-6 if dtype == torch.float32 else 1e-14
    for backend in ("warp", "torch"):
        got = causal_convolution(own[0], own[1], own[2], reverse=reverse, backend=backend)
        grads = torch.autograd.grad(got, own, grad.to(dtype))
        for a, b in zip((got, *grads), (want, *want_grads), strict=True):
            assert a.dtype == dtype and a.shape == b.shape
            assert float((a - b).detach().abs().max()) <= limit * float(b.detach().abs().max())


@pytest.mark.parametrize("backend", ["warp", "torch"])
@pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])
def test_no_cloud_sees_another(reverse: bool, backend: str, dtype: torch.dtype) -> None:
    offsets = torch.tensor([0, 1, 1, 3, 100, 150])
    x, weight = draw(150, 20).to(dtype).requires_grad_(), draw(20, 4, seed=1).to(dtype)
    got = causal_convolution(x, weight, offsets=offsets, reverse=reverse, backend=backend)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        alone = causal_convolution(x[begin:end], weight, reverse=reverse, backend=backend)
        assert torch.equal(alone, got[begin:end])
    grad = torch.autograd.grad(got[3:100].sum(), x)[0]
    assert not bool(grad[:3].any()) and not bool(grad[100:].any()) and bool(grad[3:100].any())


def test_derivatives() -> None:
    assert_gradients(causal_convolution, draw(3, 1), draw(1, 2, seed=1), draw(1, seed=2))
    offsets = torch.tensor([0, 1, 5])
    own = [draw(5, 2).requires_grad_(), draw(2, 3, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, w: causal_convolution(x, w, offsets=offsets, reverse=True), own)
    assert torch.autograd.gradgradcheck(lambda x, w: causal_convolution(x, w, offsets=offsets, reverse=True), own)
    x, weight = draw(5, 2), draw(2, 3, seed=1).requires_grad_()  # one of two wants a gradient
    assert torch.autograd.gradcheck(lambda w: causal_convolution(x, w), (weight,))


@pytest.mark.usefixtures("unchecked")
def test_under_compile_the_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geom.sequence.convolution.causal_convolution_by_torch", None)
    torch.compiler.reset()
    compiled = torch.compile(causal_convolution, fullgraph=True, backend="aot_eager")
    points = [y.requires_grad_() for y in (draw(2, 4, 2), draw(2, 3, seed=1), draw(2, seed=2))]
    got, want = compiled(*points), causal_convolution(points[0], points[1], points[2])
    assert torch.equal(got, want)
    for a, b in zip(*(torch.autograd.grad(y.sum(), points) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_operator_keeps_torchs_rules() -> None:
    points = [y.requires_grad_() for y in (draw(5, 2), draw(2, 3, seed=1), draw(2, seed=2))]
    torch.library.opcheck(
        torch.ops.geom.causal_convolution.default, (*points, torch.tensor([0, 2, 5]), True), test_utils=RULES
    )


def test_the_same_bits_with_any_number_of_threads(threads: Callable[[int], None]) -> None:
    x, weight = draw(3, 1000, 40).float().requires_grad_(), draw(40, 4, seed=1).float().requires_grad_()
    found = []
    for count in (1, 2, 3):
        threads(count)
        y = causal_convolution(x, weight)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_nothing_and_many_taps() -> None:
    assert causal_convolution(draw(0, 2), draw(2, 3)).shape == (0, 2)
    assert causal_convolution(draw(3, 0, 2), draw(2, 3), offsets=None).shape == (3, 0, 2)
    x, weight = draw(40, 2), draw(2, 30, seed=1)
    torch.testing.assert_close(causal_convolution(x, weight), causal_convolution(x, weight, backend="torch"))


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    x, weight = draw(5, 2), draw(2, 3)
    with pytest.raises(ShapeError, match="weight: expected"):
        causal_convolution(x, weight.mT)
    with pytest.raises(ShapeError, match="bias: expected"):
        causal_convolution(x, weight, draw(3))
    with pytest.raises(ShapeError, match="one dtype"):
        causal_convolution(x, weight.float())
    with pytest.raises(ShapeError, match="offsets"):
        causal_convolution(x[None], weight, offsets=torch.tensor([0, 5]))
    with pytest.raises(ShapeError, match="rise"):
        causal_convolution(x, weight, offsets=torch.tensor([0, 4]))
    with pytest.raises(ShapeError, match="at most 16 taps"):
        causal_convolution(x, draw(2, 17), backend="warp")
    with pytest.raises(ShapeError, match="x: expected"):
        causal_convolution(x[0], weight)
