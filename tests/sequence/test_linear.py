"""Linear attention and the delta rule: against the recurrences and closed forms, clouds, gradients, torch's rules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from geom.errors import ShapeError
from geom.sequence import additive_gates, delta_rule, linear_attention, selective_scan
from geom.testing import assert_gradients

LIMIT = {torch.float32: 2e-6, torch.float64: 5e-15}
RULES = ("test_schema", "test_autograd_registration", "test_faketensor")  # and compile, below
OFFSETS = torch.tensor([0, 5, 5, 30])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands(kind: str, *shape: int, heads: int = 2, d: int = 20, e: int = 7) -> tuple[Callable[..., Tensor], Any]:
    q, k, v = draw(*shape, heads, d), normalize(draw(*shape, heads, d, seed=1), dim=-1), draw(*shape, heads, e, seed=2)
    if kind == "delta":
        return delta_rule, (q, k, v, 2 * torch.sigmoid(draw(*shape, heads, seed=3)))
    if kind == "gated":
        return linear_attention, (q, k, v, -draw(*shape, heads, d, seed=3).abs() / 3)
    return linear_attention, (q, k, v)


kinds = pytest.mark.parametrize("kind", ["linear", "gated", "delta"])
ways = pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])


@kinds
@ways
@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["batch", "clouds"])
def test_kernels_are_their_twins(kind: str, reverse: bool, offsets: Tensor | None, dtype: torch.dtype) -> None:
    shape = (2, 30) if offsets is None else (30,)
    function, given = operands(kind, *shape)
    weight = draw(*shape, 2, 7, seed=5)
    results = []
    for kind_of_float, backend in ((dtype, "warp"), (torch.float64, "torch")):
        own = [x.float().to(kind_of_float).requires_grad_() for x in given]
        y = function(*own, offsets=offsets, reverse=reverse, backend=backend)
        results.append((y, *torch.autograd.grad(y, own, weight.float().to(kind_of_float))))
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert float((a - b).detach().abs().max()) <= LIMIT[dtype] * float(b.detach().abs().max())


@kinds
def test_each_cloud_is_alone_and_both_ways_mirror_each_other(kind: str, dtype: torch.dtype) -> None:
    function, given = operands(kind, 30)
    given = [x.to(dtype) for x in given]
    whole = function(*given, offsets=OFFSETS)
    for begin, end in zip(OFFSETS[:-1].tolist(), OFFSETS[1:].tolist(), strict=True):
        assert torch.equal(function(*(x[begin:end] for x in given)), whole[begin:end])
    assert torch.equal(function(*(x.flip(0) for x in given)).flip(0), function(*given, reverse=True))


def test_attention_is_a_masked_product() -> None:
    _, (q, k, v, g) = operands("gated", 30)
    total = g.cumsum(0)
    for decay in (None, g):
        weight = torch.ones(30, 30, 2, 20).double() if decay is None else (total[:, None] - total[None]).exp()
        weight = (q[:, None] * k[None] * weight).sum(-1) * torch.ones(30, 30).tril()[..., None]
        want = torch.einsum("tsh,she->the", weight, v) / 20**0.5
        torch.testing.assert_close(linear_attention(q, k, v, decay), want)


def test_a_sign_that_changes_counts_parity() -> None:
    # rate 2 along a key reflects the state: after each such token the memory of what was written first turns round
    key, rates = torch.ones(6, 1, 1), torch.tensor([1.0, 2, 0, 2, 2, 0])[:, None]
    values = torch.tensor([1.0, 0, 0, 0, 0, 0])[:, None, None]
    assert delta_rule(key, key, values, rates).flatten().tolist() == [1, -1, -1, 1, -1, -1]


def test_strong_decays_are_exact(dtype: torch.dtype) -> None:
    q, k, v = operands("linear", 40)[1]
    g = torch.full((40, 2, 20), -500.0)  # exp(-sums) would overflow
    got = linear_attention(q.to(dtype), k.to(dtype), v.to(dtype), g.to(dtype))
    torch.testing.assert_close(got.double(), (q * k).sum(-1, keepdim=True) * v / 20**0.5, atol=1e-5, rtol=1e-5)


def test_one_decay_for_a_head_is_the_scan_of_mamba_2(dtype: torch.dtype) -> None:
    width, states, length = 3, 4, 25
    u, B, C = draw(1, width, length), draw(1, states, length, seed=1), draw(1, states, length, seed=2)
    delta, rate = draw(1, width, length, seed=3).exp(), -draw(width, seed=4).exp()
    want = selective_scan(u, delta, rate[:, None].expand(width, states), B, C)
    q, k = (x[0].mT[:, None].expand(length, width, states).to(dtype) for x in (C, B))
    got = linear_attention(q, k, (delta * u)[0].mT[..., None].to(dtype), (delta[0].mT * rate).to(dtype), scale=1)
    assert float((got[..., 0].mT - want[0]).abs().max()) <= LIMIT[dtype] * float(want.abs().max())


@pytest.mark.parametrize("kind", ["gated", "delta"])
def test_long_sequences_keep_their_digits(kind: str) -> None:
    function, given = operands(kind, 4000, heads=1, d=16, e=16)
    weight, results = draw(4000, 1, 16, seed=5).float(), []
    for dtype in (torch.float32, torch.float64):
        own = [x.float().to(dtype).requires_grad_() for x in given]
        y = function(*own)
        results.append((y, *torch.autograd.grad(y, own, weight.to(dtype))))
    for a, b in zip(*results, strict=True):
        assert float((a - b).detach().abs().max()) <= 3e-6 * float(b.detach().abs().max())


@ways
def test_additive_gates_are_a_running_softmax(reverse: bool) -> None:
    logits, values = 5 * draw(30, 2, 4), draw(30, 2, 3, seed=1)
    keys, decays = additive_gates(logits, offsets=OFFSETS, reverse=reverse)
    got = linear_attention(torch.ones_like(keys), keys, values, decays, scale=1, offsets=OFFSETS, reverse=reverse)
    for begin, end in ((0, 5), (5, 30)):
        for t in range(begin, end):
            past = slice(t, end) if reverse else slice(begin, t + 1)
            want = torch.einsum("shd,she->he", logits[past].softmax(0), values[past])
            torch.testing.assert_close(got[t], want)
    assert bool((decays <= 0).all())


@kinds
def test_derivatives(kind: str) -> None:
    function, given = operands(kind, 2, heads=1, d=2, e=1)
    assert_gradients(function, *given)
    function, given = operands(kind, 4, heads=1, d=2, e=2)
    own = [x.requires_grad_() for x in given]
    offsets = torch.tensor([0, 3, 4])
    assert torch.autograd.gradcheck(lambda *x: function(*x, offsets=offsets, reverse=True), own)
    assert torch.autograd.gradgradcheck(lambda *x: function(*x, offsets=offsets, reverse=True), own)


def test_derivatives_of_gates() -> None:
    assert_gradients(additive_gates, draw(3, 1, 1))


@kinds
@pytest.mark.usefixtures("unchecked")
def test_under_compile_the_kernels_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linear_attention_by_torch", "delta_rule_by_torch"):
        monkeypatch.setattr(f"geom.sequence.linear.{name}", None, raising=True)
    function, given = operands(kind, 2, 5, heads=1, d=2, e=2)
    own = [x.requires_grad_() for x in given]
    torch.compiler.reset()
    got, want = torch.compile(function, fullgraph=True, backend="aot_eager")(*own), function(*own)
    assert torch.equal(got, want)
    for a, b in zip(*(torch.autograd.grad(y.sum(), own) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["gated", "delta"])
def test_the_operators_keep_torchs_rules(kind: str) -> None:
    _, given = operands(kind, 5, heads=1, d=2, e=2)
    op = torch.ops.geom.delta_rule if kind == "delta" else torch.ops.geom.linear_attention
    torch.library.opcheck(
        op.default, (*(x.requires_grad_() for x in given), torch.tensor([0, 2, 5]), True), test_utils=RULES
    )


@kinds
def test_the_same_bits_with_any_number_of_threads(kind: str, threads: Callable[[int], None]) -> None:
    function, given = operands(kind, 3, 200, heads=3, d=32, e=32)
    own = [x.float().requires_grad_() for x in given]
    found = []
    for count in (1, 2, 3):
        threads(count)
        y = function(*own)
        found.append((y, *torch.autograd.grad(y.square().sum(), own)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@kinds
def test_nothing_and_wide_heads(kind: str) -> None:
    for shape in ((0,), (2, 0), (0, 3)):
        function, given = operands(kind, *shape)
        own = [x.requires_grad_() for x in given]
        y = function(*own)
        assert y.shape == given[2].shape
        y.sum().backward()
    function, given = operands(kind, 4, d=260, e=3)  # beyond what the kernels have room for
    torch.testing.assert_close(function(*given), function(*given, backend="torch"))


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    q, k, v, g = operands("gated", 30)[1]
    rates = g[..., 0]
    for wrong, words in (
        ((q[0, 0], k, v), "queries: expected"),
        ((q, k[:-1], v), "keys: expected"),
        ((q, k, v[:-1]), "values: expected"),
        ((q, k.float(), v), "one dtype"),
        ((q, k, v, g[:-1]), "log_decay: expected"),
    ):
        with pytest.raises(ShapeError, match=words):
            linear_attention(*wrong)
    with pytest.raises(ShapeError, match="rates: expected"):
        delta_rule(q, k, v, rates[:-1])
    with pytest.raises(ShapeError, match="one dtype"):
        delta_rule(q, k, v, rates.float())
    with pytest.raises(ShapeError, match="offsets: expected to come with"):
        linear_attention(q[None], k[None], v[None], offsets=OFFSETS)
    with pytest.raises(ShapeError, match="rise"):
        linear_attention(q, k, v, offsets=OFFSETS[:-1])
    with pytest.raises(ShapeError, match="at most 256 features"):
        delta_rule(*operands("delta", 4, d=260)[1], backend="warp")
    with pytest.raises(ShapeError, match="logits: expected"):
        additive_gates(q[0, 0])
