"""Layers as one step each, kernels and gradients by hand, against their readable twins; what networks save."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geom.clifford import attention as attention_module
from geom.clifford import attention_planes
from geom.clifford import linear as linear_module
from geom.clifford.attention import AttentionPlan, CrossAttention, SelfAttention
from geom.clifford.attention_planes import Part
from geom.clifford.gates import GATES, GatedNonlinearity
from geom.clifford.gatr import GATr, GATrPlan
from geom.clifford.linear import EquiLinear, apply_together
from geom.clifford.linear_map import linear_planes
from geom.clifford.norm import EquiLayerNorm, _normalise
from tests.clifford.drawn import draw

LIMIT = {torch.float32: 3e-6, torch.float64: 1e-13}


def derivatives(function: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """What a function gives, and the gradients of random sums of it."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = [x for x in function(*inputs) if x is not None]
    loss = torch.stack([(x * draw(*x.shape, seed=9, dtype=x.dtype)).sum() for x in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def close(got: list[Tensor], want: list[Tensor]) -> None:
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape
        if not a.numel():
            continue
        error = float((a.double() - b.double()).detach().abs().max())
        assert error <= LIMIT[a.dtype] * max(1.0, float(b.detach().abs().max())), (k, error)


HIDDEN = (torch.arange(5) != 2)[:, None] & (torch.arange(5) < 4)  # one query sees nothing


@pytest.mark.parametrize("multi_query", [True, False])
@pytest.mark.parametrize("scalars", [0, 6])
@pytest.mark.parametrize("case", ["plain", "rotary", "bool", "added", "clouds"])
def test_attention(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, multi_query: bool, scalars: int, case: str
) -> None:
    plan = AttentionPlan(3, multi_query, rotary=case == "rotary", epsilon=0.2)
    layer = SelfAttention(5, 2, scalars, 2, plan=plan, generator=torch.Generator().manual_seed(0)).to(dtype)
    batch: tuple[int, ...] = (2,)
    options: dict[str, Any] = {}
    if case == "clouds":
        batch, options = (), {"offsets": torch.tensor([0, 2, 4, 5])}
    elif case in ("bool", "added"):
        added = torch.where(HIDDEN, draw(2, 1, 5, 5, seed=7), -torch.inf).to(dtype)
        options = {"mask": HIDDEN if case == "bool" else added}
    x, s = draw(16, *batch, 5, 5, dtype=dtype), draw(*batch, 5, scalars, seed=1, dtype=dtype)

    def run(x: Tensor, s: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None]:
        return layer.planes(x, s if scalars else None, **options)

    def both() -> list[Tensor]:
        return derivatives(lambda x, s: run(x, s), [x, s]) + list(
            torch.autograd.grad(run(x, s)[0].square().sum(), layer.attention.log_weights)
        )

    calls: list[bool] = []
    can = attention_module.can_attend_planes
    monkeypatch.setattr(attention_module, "can_attend_planes", lambda *a: calls.append(can(*a)) or calls[-1])
    got = both()
    assert calls and all(calls)
    monkeypatch.setattr(attention_module, "can_attend_planes", lambda *_: False)
    close(got, both())


@pytest.mark.parametrize(("heads", "channels", "scalars"), [(8, 16, 40), (8, 5, 0), (16, 24, 72)])
@pytest.mark.parametrize("lengths", [((4, 4, 4), (4, 4, 4)), ((2, 5, 1), (7, 1, 9)), ((3, 2), (2, 66))])
def test_attention_of_small_clouds(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    heads: int,
    channels: int,
    scalars: int,
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    layer = CrossAttention(channels, channels, 2, scalars, scalars, 2, plan=AttentionPlan(heads, epsilon=0.2)).to(dtype)
    c, own = layer.head_channels, layer.head_scalars
    offsets = [torch.tensor([0, *x]).cumsum(0) for x in lengths]
    parts = Part(0, 0), Part(1, 1, c, own), Part(1, 1)
    (n, m), log_weights = (sum(x) for x in lengths), layer.attention.log_weights
    inputs = [draw(16, n, heads * c, dtype=dtype), draw(16, m, 2 * c, seed=1, dtype=dtype)]
    inputs += [draw(n, heads * own, seed=2, dtype=dtype), draw(m, 2 * own, seed=3, dtype=dtype)]
    inputs = [x / 2 for x in inputs]

    def run(*z: Tensor) -> Any:
        return layer._attend(z[:2], z[2:4] if own else (None, None), parts, 1, None, offsets[0], offsets[1])

    def all_of_them() -> list[Tensor]:
        again = [x.clone().requires_grad_() for x in inputs]
        first = torch.autograd.grad(
            (run(*again)[0] * draw(16, n, heads * c, dtype=dtype)).sum(), again[:2], create_graph=True
        )
        second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), again[:2])
        weights = torch.autograd.grad(run(*inputs)[0].square().mean(), log_weights)
        return [*derivatives(run, inputs), *(x / x.abs().max() for x in second), *weights]

    kinds: list[bool] = []
    few = attention_planes._small_clouds
    monkeypatch.setattr(attention_planes, "_small_clouds", lambda *x: kinds.append(few(*x) is not None) or few(*x))
    got = all_of_them()
    assert all(kinds) == (max(lengths[1]) <= 64)
    monkeypatch.setattr(attention_module, "can_attend_planes", lambda *_: False)
    close(got, all_of_them())


def test_threads_change_no_bits(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    layer = CrossAttention(16, 16, 1, 32, 32, 1).to(dtype)
    parts = Part(0, 0), Part(0, 0, 32, 64), Part(0, 0, 36, 72)
    inputs = [draw(16, 200, 4, 40, dtype=dtype), draw(200, 4, 80, seed=1, dtype=dtype)]
    linear = [draw(16, 1000, 16, dtype=dtype), draw(40, 16, 9, seed=1, dtype=dtype)]

    def run(x: Tensor, s: Tensor) -> Any:
        return layer._attend([x], [s], parts, 1, None, None, None)

    found = []
    for count in (1, 2):
        threads(count)
        found.append(derivatives(run, inputs) + derivatives(lambda x, w: [linear_planes(x, w)], linear))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("scalars", [0, 3])
@pytest.mark.parametrize("out", [0, 4])
def test_linear(dtype: torch.dtype, scalars: int, out: int) -> None:
    layers = [EquiLinear(4, c, scalars, out, generator=torch.Generator().manual_seed(c)).to(dtype) for c in (1, 3)]
    parameters = [p for layer in layers for p in layer._parts()]
    given = [p for p in parameters if p is not None]

    def twin(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor | None]:
        own = iter(rest[1:] if scalars else rest)
        every = [None if p is None else next(own) for p in parameters]
        return linear_module._apply(2, x, rest[0] if scalars else None, *every)

    def step(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor | None]:
        own = iter(rest[1:] if scalars else rest)
        every = [None if p is None else next(own) for p in parameters]
        return linear_module._Together.apply(2, x, rest[0] if scalars else None, *every)

    inputs = [draw(16, 6, 4, dtype=dtype), *([draw(6, scalars, seed=1, dtype=dtype)] if scalars else []), *given]
    close(derivatives(step, inputs), derivatives(twin, inputs))
    for k in range(2 if out else 1):  # gradients of one of the results alone
        close(derivatives(lambda *z: step(*z)[k : k + 1], inputs), derivatives(lambda *z: twin(*z)[k : k + 1], inputs))  # noqa: B023
    x, s = inputs[0], inputs[1] if scalars else None
    close([apply_together(layers, x, s)[0]], [twin(*inputs)[0]])


@pytest.mark.parametrize("channels", [1, 16, 21])
def test_norm_and_gates(dtype: torch.dtype, channels: int) -> None:
    x = draw(16, 2, 5, channels, dtype=dtype)
    x[:, 0] *= 1e-3  # below the floor
    layer = EquiLayerNorm()
    close(derivatives(lambda x: layer.planes(x, None), [x]), derivatives(lambda x: [_normalise(x, 0.01)], [x]))
    for name, (gate, _) in GATES.items():
        own = GatedNonlinearity(name)
        close(
            derivatives(lambda x: own.planes(x, None), [x]),  # noqa: B023
            derivatives(lambda x: [gate(x[0]) * x], [x]),  # noqa: B023
        )


def test_what_networks_save() -> None:
    net = GATr(1, 1, 1, 1, plan=GATrPlan(16, 128, 2))
    own, found = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            found[x.untyped_storage().data_ptr()] = x
        return x

    items = 64
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        net(draw(1, items, 1, 16, dtype=torch.float32), draw(1, items, 1, dtype=torch.float32))
    assert sum(x.untyped_storage().nbytes() for x in found.values()) <= 29_000 * items * 2
