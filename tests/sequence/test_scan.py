"""The selective scan: kernels against the recurrence in float64, clouds, gradients, torch's rules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.scan import extra_bytes
from geom.errors import ShapeError
from geom.sequence import selective_scan
from geom.sequence.scan import selective_scan_by_torch
from geom.testing import assert_gradients

RULES = ("test_schema", "test_autograd_registration", "test_faketensor")  # and compile, below
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
FORWARD, GRADIENT = {torch.float32: 2e-7, torch.float64: 2e-15}, {torch.float32: 3e-6, torch.float64: 1e-14}


def draw(batch: int, width: int, length: int, states: int = 16, *, seed: int = 0) -> dict[str, Any]:
    """Of numbers that float32 holds."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    wide = (batch, width, length)
    every = {
        "u": normal(*wide),
        "delta": normal(*wide) - 2,
        "A": -torch.arange(1.0, states + 1).repeat(width, 1),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": normal(width),
        "z": normal(*wide),
        "delta_bias": normal(width) / 4,
    }
    return {name: x.double() for name, x in every.items()}


def change(given: dict[str, Any], function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: function(x) for name, x in given.items()}


def assert_near(got: Tensor, want: Tensor, limit: float) -> None:
    assert got.shape == want.shape
    assert float((got.double() - want).abs().max()) <= limit * float(want.abs().max())


def compare(given: dict[str, Any], dtype: torch.dtype, **options: Any) -> None:
    """Values, last states and gradients with the twin's in float64."""

    def run(kind: torch.dtype, backend: str) -> tuple[Tensor, ...]:
        own = change(given, lambda x: x.to(kind).requires_grad_())
        y, last = selective_scan(**own, delta_softplus=True, return_last_state=True, backend=backend, **options)
        generator = torch.Generator().manual_seed(9)
        weights = [torch.randn(x.shape, generator=generator).to(kind) for x in (y, last)]
        return y, last, *torch.autograd.grad((y, last), list(own.values()), weights)

    got, want = run(dtype, "warp"), run(torch.float64, "torch")
    for name, a, b in zip(("y", "last", *NAMES), got, want, strict=True):
        assert a.dtype == dtype
        assert_near(a.detach(), b.detach(), (FORWARD if name == "y" else GRADIENT)[dtype])


@pytest.mark.parametrize("size", [(2, 40, 50, 16), (1, 16, 64, 16), (2, 17, 3, 5), (1, 1, 33, 1), (9, 16, 16, 20)])
@pytest.mark.parametrize("options", [{}, {"reverse": True}], ids=["on", "back"])
def test_kernels_are_their_twin(size: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype) -> None:
    compare(draw(*size), dtype, **options)


def test_decays_that_change_sign(dtype: torch.dtype) -> None:
    given = draw(1, 5, 40, 4)
    compare(given, dtype, allow_neg_eigval=True)
    plain, signed = (selective_scan(**given, allow_neg_eigval=x) for x in (False, True))
    assert not torch.allclose(plain, signed)
    # delta A -> -inf: h_t = -h_{t-1} + delta u B, so that an impulse comes back with alternating signs
    one = torch.ones(1, 1, 4, dtype=dtype)
    impulse = one * torch.tensor([1, 0, 0, 0])
    got = selective_scan(impulse, one, torch.full((1, 1), -200.0, dtype=dtype), one, one, allow_neg_eigval=True)
    assert got.flatten().tolist() == [1, -1, 1, -1]


def test_clouds(dtype: torch.dtype) -> None:
    offsets = torch.tensor([0, 0, 5, 21, 21, 70])
    for reverse in (False, True):
        compare(draw(1, 20, 70, 4), dtype, offsets=offsets, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])
def test_clouds_are_a_loop_bit_for_bit(reverse: bool, dtype: torch.dtype) -> None:
    offsets = torch.tensor([0, 37, 37, 101, 164, 229, 230])
    given = change(draw(1, 40, 230), lambda x: x.to(dtype).requires_grad_())
    y, last = selective_scan(**given, offsets=offsets, delta_softplus=True, reverse=reverse, return_last_state=True)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    of_tokens = [given[name] for name in ("u", "delta", "B", "C", "z")]
    grads = torch.autograd.grad(y, of_tokens, weight)
    for cloud, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        own = {k: x[..., begin:end] if x.ndim == 3 else x for k, x in given.items()}
        alone, state = selective_scan(**own, delta_softplus=True, reverse=reverse, return_last_state=True)
        assert torch.equal(alone, y[..., begin:end]) and torch.equal(state[0], last[cloud])
        found = torch.autograd.grad(alone, of_tokens, weight[..., begin:end])
        for a, b in zip(found, grads, strict=True):
            assert torch.equal(a[..., begin:end], b[..., begin:end])


def test_reverse_is_a_scan_of_what_is_turned_round(dtype: torch.dtype) -> None:
    given = change(draw(2, 16, 45), lambda x: x.to(dtype))
    turned = change(given, lambda x: x.flip(2) if x.ndim == 3 else x)
    assert torch.equal(
        selective_scan(**given, delta_softplus=True, reverse=True),
        selective_scan(**turned, delta_softplus=True).flip(2),
    )


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65])
def test_lengths(length: int, dtype: torch.dtype) -> None:
    given = draw(1, 3, length, 2)
    if length:
        compare(given, dtype)
    else:
        y, last = selective_scan(**change(given, lambda x: x.to(dtype).requires_grad_()), return_last_state=True)
        assert y.shape == (1, 3, 0) and not bool(last.any())
        (y.sum() + last.sum()).backward()
    assert selective_scan(**change(given, lambda x: x[:0] if x.ndim == 3 else x)).shape == (0, 3, length)


def test_a_long_sequence_keeps_its_state() -> None:
    # no decay: a running sum of ones is exact, to the last of 1e5 tokens
    one = torch.ones(1, 1, 100_000)
    got, last = selective_scan(one, one, torch.zeros(1, 1), one, one, return_last_state=True)
    assert torch.equal(got.flatten(), torch.arange(1.0, 100_001)) and last.item() == 100_000


def test_steps_of_any_size_are_finite(dtype: torch.dtype) -> None:
    given = change(draw(1, 16, 64), lambda x: x.to(dtype).requires_grad_())
    given["delta"] = torch.logspace(-8, 3, 64).to(dtype).expand(1, 16, 64).clone().requires_grad_()
    del given["delta_bias"]
    y = selective_scan(**given)
    grads = torch.autograd.grad(y.sum(), list(given.values()))
    assert all(bool(x.isfinite().all()) for x in (y, *grads))
    want = selective_scan_by_torch([*(x.double() for x in given.values()), None], None, (False, False, False))[0]
    assert_near(y.detach(), want.detach(), FORWARD[dtype])


def test_memory_of_any_layout(dtype: torch.dtype) -> None:
    given = change(draw(2, 40, 50), lambda x: x.to(dtype))
    want = selective_scan(**given, delta_softplus=True)
    own = dict(given)
    for name in ("u", "delta", "z", "B", "C"):  # channels side by side, as a layer makes them
        own[name] = given[name].transpose(1, 2).contiguous().transpose(1, 2)
    got = selective_scan(**own, delta_softplus=True)
    assert torch.equal(got, want) and got.stride(1) == 1
    assert torch.equal(selective_scan(**{**own, "delta": given["delta"]}, delta_softplus=True), want)


def test_the_same_bits_with_any_number_of_threads(threads: Callable[[int], None]) -> None:
    given = change(draw(2, 130, 300), lambda x: x.float().requires_grad_())
    found = []
    for count in (1, 2, 3):
        threads(count)
        y = selective_scan(**given, delta_softplus=True)
        found.append((y, *torch.autograd.grad(y.sum(), list(given.values()))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 0, 40, 40, 41, 150, 150])], ids=["whole", "clouds"])
def test_the_same_bits_for_any_span_of_tiles(
    offsets: Tensor | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = change(draw(1, 40, 150), lambda x: x.to(dtype).requires_grad_())
    found = []
    for span in (64, 3, 1):
        monkeypatch.setattr("geom.kernels.scan._SPAN", span)
        y, last = selective_scan(**given, delta_softplus=True, offsets=offsets, return_last_state=True)
        found.append(torch.autograd.grad(y.sum() + last.square().sum(), list(given.values())))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_derivatives() -> None:
    given = draw(1, 1, 2, 1)
    given["delta"] = given["delta"] + 2
    points = list(given.values())
    assert_gradients(lambda *x: selective_scan(*x, delta_softplus=True, return_last_state=True), *points)


def test_derivatives_over_tiles() -> None:
    given = draw(1, 2, 20, 2)
    offsets = torch.tensor([0, 18, 20])
    points = [x.requires_grad_() for x in given.values()]
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, delta_softplus=True, offsets=offsets), points, fast_mode=True
    )
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, delta_softplus=True, allow_neg_eigval=True, reverse=True), points, fast_mode=True
    )


def test_some_operands_alone() -> None:
    given = draw(2, 3, 20, 2)
    for name in NAMES:
        own = {k: x.clone().requires_grad_(k == name) for k, x in given.items()}
        grads = [
            torch.autograd.grad(selective_scan(**own, backend=backend).sum(), own[name])[0]
            for backend in ("warp", "torch")
        ]
        torch.testing.assert_close(grads[0], grads[1])
    less = {k: given[k].requires_grad_() for k in NAMES[:5]}
    _, last = selective_scan(**less, return_last_state=True)
    found = torch.autograd.grad(last.sum(), less["delta"])[0]
    _, last = selective_scan(**less, return_last_state=True, backend="torch")
    torch.testing.assert_close(found, torch.autograd.grad(last.sum(), less["delta"])[0])


@pytest.mark.usefixtures("unchecked")
def test_under_compile_the_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    points = list(draw(1, 2, 20, 2).values())
    offsets = torch.tensor([0, 18, 20])
    monkeypatch.setattr("geom.sequence.scan.selective_scan_by_torch", None)
    for options in ({"offsets": offsets}, {"reverse": True}):
        torch.compiler.reset()

        def run(*x: Tensor, options: dict[str, Any] = options) -> Tensor:
            return selective_scan(*x, delta_softplus=True, **options)

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        pairs = []
        for function in (compiled, run):
            own = [x.clone().requires_grad_() for x in points]
            y = function(*own)
            pairs.append((y, *torch.autograd.grad(y.sum(), own)))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b)


def test_the_operator_keeps_torchs_rules() -> None:
    op = torch.ops.geom.selective_scan.default
    operands = [x.requires_grad_() for x in draw(2, 3, 20, 2).values()]
    torch.library.opcheck(op, (*operands, None, False, True, False, True), test_utils=RULES)
    apart = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in operands[:2]]
    torch.library.opcheck(
        op, (*apart, *operands[2:5], None, None, None, None, True, False, True, True), test_utils=RULES
    )
    packed = [x.detach()[:1].requires_grad_() if x.ndim == 3 else x for x in operands]
    torch.library.opcheck(op, (*packed, torch.tensor([0, 3, 20]), False, True, False, True), test_utils=RULES)


def test_forward_mode_and_half_precision() -> None:
    given = draw(1, 2, 6, 2)
    tangent = torch.ones_like(given["u"])
    got = torch.func.jvp(lambda u: selective_scan(**{**given, "u": u}), (given["u"],), (tangent,))[1]
    torch.testing.assert_close(got, selective_scan(**{**given, "u": tangent}))  # linear in u
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(given["u"], tangent)
        y = torch.autograd.forward_ad.unpack_dual(selective_scan(**{**given, "u": dual})).tangent
    torch.testing.assert_close(y, got)
    half = selective_scan(**change(given, lambda x: x.bfloat16()))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), selective_scan(**given), atol=0.1, rtol=0.05)


def test_states_beyond_the_kernels_run_the_twin() -> None:
    given = change(draw(1, 2, 3, 300), lambda x: x.float())
    torch.testing.assert_close(
        selective_scan(**given, delta_softplus=True), selective_scan(**given, delta_softplus=True, backend="torch")
    )


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    given = draw(2, 3, 20, 2)
    wrong: list[tuple[str, Any, str]] = [
        ("u", given["u"][0], "u: expected a float tensor"),
        ("delta", given["delta"][:, :2], "delta: expected"),
        ("A", given["A"][:2], "A: expected"),
        ("B", given["B"].transpose(1, 2), "B: expected"),
        ("C", None, "C: expected"),
        ("D", given["A"], "D: expected"),
        ("z", given["z"][:1], "z: expected"),
        ("delta_bias", given["D"].float(), "one dtype"),
    ]
    for name, x, words in wrong:
        with pytest.raises(ShapeError, match=words):
            selective_scan(**{**given, name: x})
    with pytest.raises(ShapeError, match=r"expected \(1, D, L\)"):
        selective_scan(**given, offsets=torch.tensor([0, 20]))
    with pytest.raises(ShapeError, match="rise"):
        selective_scan(**change(given, lambda x: x[:1] if x.ndim == 3 else x), offsets=torch.tensor([0, 19]))
    with pytest.raises(ShapeError, match="backend"):
        selective_scan(**given, backend="cuda")
    with pytest.raises(ShapeError, match="at most 256 states"):
        selective_scan(**draw(1, 2, 3, 300), backend="warp")


def test_memory_is_that_of_one_state_in_sixteen() -> None:
    given = change(draw(1, 32, 160), lambda x: x.float().requires_grad_())
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        selective_scan(**given)
    known = {x.data_ptr() for x in given.values()}
    extra = [x for x in kept if x.data_ptr() not in known]
    assert [x.numel() for x in extra] == [32 * 160 * 16 // 16]


def test_gradients_hold_the_sums_of_few_tiles() -> None:
    given = change(draw(1, 32, 8192), lambda x: x.float())
    for name in ("B", "C"):  # as the kernels read them
        given[name] = given[name].mT.contiguous().mT
    del given["z"]
    weight = torch.ones_like(given["u"])

    def both() -> tuple[Tensor, ...]:
        own = change(given, lambda x: x.detach().requires_grad_())
        y = selective_scan(**own)
        return y.detach(), *torch.autograd.grad(y, list(own.values()), weight)

    both()
    # the result, states, gradients of u and delta; those of B and C; sums, half of u; a tenth for what is small
    wide, few = given["u"].nbytes, given["B"].nbytes
    assert extra_bytes(both, "cpu") <= 4.6 * wide + 2 * few
