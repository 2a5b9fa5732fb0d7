"""`state_space_dual` against a plain loop: tiles and stretches, groups, signs, clouds, gradients, other backends."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.sequence.state_space import state_space_dual

OFFSETS = torch.tensor([0, 1, 1, 16, 50, 350])  # 300 tokens are three stretches
SIZES = [(2, 1, 32, 16), (4, 2, 5, 3), (6, 3, 16, 40), (1, 1, 20, 128)]  # heads, groups, channels, states
NAMES = ("x", "delta", "A", "B", "C", "D")


def draw(count: int, heads: int, groups: int, width: int, states: int, dtype: torch.dtype = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    delta, A = normal(count, heads).exp() * 0.3, -normal(heads).exp()
    small = states**-0.5
    x, B, C = (
        normal(count, heads, width),
        small * normal(count, groups, states),
        small * normal(count, groups, states),
    )
    return [y.to(dtype) for y in (x, delta, A, B, C, normal(heads))]


def loop(operands: Any, offsets: Tensor, reverse: bool, signed: bool) -> Tensor:
    """h_t = a_t h_{t-1} + delta_t B_t x_t^T, y_t = h_t^T C_t + D x_t, as it is written."""
    x, delta, A, B, C, D = operands
    count, heads, _ = x.shape
    out: list[Any] = [None] * count
    for begin, end in pairwise(offsets.tolist()):
        for head in range(heads):
            group = head // (heads // B.shape[1])
            h = torch.zeros(B.shape[2], x.shape[2], dtype=x.dtype)
            for t in reversed(range(begin, end)) if reverse else range(begin, end):
                a = torch.exp(delta[t, head] * A[head])
                a = 2 * a - 1 if signed else a
                h = a * h + delta[t, head] * torch.outer(B[t, group], x[t, head])
                y = h.mT @ C[t, group] + D[head] * x[t, head]
                out[t] = y[None] if head == 0 else torch.cat([out[t], y[None]])
    return torch.stack(out)


@pytest.mark.parametrize("signed", [False, True], ids=["decays", "signed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernels_are_their_twin(
    size: tuple[int, int, int, int], reverse: bool, signed: bool, dtype: torch.dtype
) -> None:
    exact = [y.requires_grad_() for y in draw(350, *size)]
    own = [y.detach().to(dtype).requires_grad_() for y in exact]
    want = state_space_dual(*exact, offsets=OFFSETS, reverse=reverse, allow_neg_eigval=signed, backend="torch")
    got = state_space_dual(*own, offsets=OFFSETS, reverse=reverse, allow_neg_eigval=signed)
    assert got.dtype == dtype and got.shape == want.shape
    limit, slack = (5e-7, 2e-6) if dtype == torch.float32 else (1e-15, 4e-15)
    assert far(got, want) <= limit
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = zip(
        torch.autograd.grad(got, own, grad.to(dtype)), torch.autograd.grad(want, exact, grad), NAMES, strict=True
    )
    for a, b, name in pairs:
        assert far(a, b) <= slack, name


def far(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().abs().max() / want.detach().abs().max())


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("signed", [False, True], ids=["decays", "signed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])
def test_the_equation(reverse: bool, signed: bool, backend: str) -> None:
    operands = draw(40, 4, 2, 3, 5)
    offsets = torch.tensor([0, 2, 2, 40])
    want = loop(operands, offsets, reverse, signed)
    got = state_space_dual(*operands, offsets=offsets, reverse=reverse, allow_neg_eigval=signed, backend=backend)
    assert far(got, want) <= 1e-15


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 128, 129, 257])
def test_clouds_are_bit_for_bit_as_by_themselves(count: int, dtype: torch.dtype) -> None:
    operands = draw(count + 21, 2, 1, 20, 6, dtype)
    x, delta, A, B, C, D = operands
    offsets = torch.tensor([0, 21, 21 + count])
    whole = state_space_dual(*operands, offsets=offsets)
    for begin, end in pairwise(offsets.tolist()):
        part = (x[begin:end], delta[begin:end], A, B[begin:end], C[begin:end], D)
        assert torch.equal(state_space_dual(*part), whole[begin:end])
        assert torch.equal(state_space_dual(*(y[None] if y.ndim > 1 else y for y in part))[0], whole[begin:end])


def test_slices_of_a_tensor_are_read_in_place() -> None:
    x, delta, A, B, C, D = draw(60, 2, 1, 20, 6)
    whole = torch.cat([y.flatten(1) for y in (x, B, C)], 1)
    u, b, c = whole.split([40, 6, 6], 1)
    got = state_space_dual(u.unflatten(1, (2, 20)), delta, A, b[:, None], c[:, None], D)
    assert torch.equal(got, state_space_dual(x, delta, A, B, C, D))
    turned = state_space_dual(x.mT.contiguous().mT, delta.T.contiguous().T, A, B.mT.contiguous().mT, C, D)
    assert torch.equal(turned, got)


def test_no_skip_and_no_tokens() -> None:
    x, delta, A, B, C, D = draw(20, 2, 1, 4, 6)
    torch.testing.assert_close(
        state_space_dual(x, delta, A, B, C), state_space_dual(x, delta, A, B, C, D) - D[:, None] * x
    )
    x, delta, A, B, C, D = (y.requires_grad_() for y in draw(0, 2, 1, 4, 6))
    out = state_space_dual(x, delta, A, B, C, D)
    assert out.shape == (0, 2, 4)
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(out.sum(), (x, delta, A, B, C, D)))


@pytest.mark.parametrize("signed", [False, True], ids=["decays", "signed"])
def test_steps_of_any_size_are_finite(signed: bool, dtype: torch.dtype) -> None:
    x, _, A, B, C, D = (y.requires_grad_() for y in draw(80, 2, 1, 4, 6, dtype))
    for step in (0.0, 1e-8, 0.7, 1e3):
        delta = torch.full((80, 2), step, dtype=dtype, requires_grad=True)
        out = state_space_dual(x, delta, A, B, C, D, allow_neg_eigval=signed)
        assert bool(out.isfinite().all())
        for g in torch.autograd.grad(out.sum(), (x, delta, A, B, C, D)):
            assert bool(g.isfinite().all())


def test_a_decay_of_zero_has_its_gradient() -> None:
    """2 exp(delta A) - 1 = 0 where delta A = log(1/2): quotients of running products would have none."""
    x, delta, A, B, C, D = draw(40, 2, 1, 4, 6)
    delta[::3] = torch.tensor(0.5, dtype=torch.float64).log() / A
    delta.requires_grad_()
    got, want = (
        torch.autograd.grad(
            state_space_dual(x, delta, A, B, C, D, allow_neg_eigval=True, backend=b).square().sum(), delta
        )[0]
        for b in ("auto", "torch")
    )
    assert far(got, want) <= 4e-15


@pytest.mark.parametrize("signed", [False, True], ids=["decays", "signed"])
def test_derivatives(signed: bool) -> None:
    operands = [y.requires_grad_() for y in draw(19, 2, 1, 3, 2)]

    def run(*operands: Tensor) -> Tensor:
        return state_space_dual(*operands, offsets=torch.tensor([0, 2, 19]), allow_neg_eigval=signed)

    assert torch.autograd.gradcheck(run, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, operands, fast_mode=True)
    tangent = torch.func.jacfwd(lambda D: run(*operands[:5], D))(operands[5].detach())
    torch.testing.assert_close(tangent, torch.func.jacrev(lambda D: run(*operands[:5], D))(operands[5].detach()))


def test_wide_heads_run_linear_attention() -> None:
    operands = [y.requires_grad_() for y in draw(20, 2, 1, 4, 130)]
    got, want = (state_space_dual(*operands, backend=backend) for backend in ("warp", "torch"))
    assert far(got, want) <= 1e-15
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), operands) for y in (got, want)), strict=True):
        assert far(a, b) <= 4e-15
    signed = state_space_dual(*operands, allow_neg_eigval=True)
    torch.testing.assert_close(signed, state_space_dual(*operands, allow_neg_eigval=True, backend="torch"))
    with pytest.raises(ShapeError, match="at most 128"):
        state_space_dual(*operands, allow_neg_eigval=True, backend="warp")


@pytest.mark.usefixtures("unchecked")
def test_compile() -> None:
    operands = [y.requires_grad_() for y in draw(20, 2, 1, 4, 6)]
    torch.compiler.reset()
    got = torch.compile(state_space_dual, fullgraph=True, backend="aot_eager")(*operands)
    want = state_space_dual(*operands)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), operands) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [*NAMES, "groups", "dtype", "offsets"])
def test_errors(name: str) -> None:
    operands, offsets = dict(zip(NAMES, draw(20, 2, 1, 4, 6), strict=True)), None
    if name in NAMES:
        operands[name] = torch.zeros((3, *operands[name].shape[1:])).double()
    if name == "groups":
        operands |= {"B": torch.zeros(20, 3, 6).double(), "C": torch.zeros(20, 3, 6).double()}
    if name == "dtype":
        operands["B"] = operands["B"].float()
    if name == "offsets":
        operands = {k: y[None] if y.ndim > 1 else y for k, y in operands.items()}
        offsets = torch.tensor([0, 20])
    with pytest.raises(ShapeError, match="expected"):
        state_space_dual(*operands.values(), offsets=offsets)
