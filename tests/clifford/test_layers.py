"""Equivariant layers: symmetry under Pin(3, 0, 1), formulas, first weights, derivatives, wrong input."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import gelu

from geom.clifford.algebra import PGA
from geom.clifford.attention import AttentionPlan, CrossAttention, SelfAttention
from geom.clifford.bilinear import GeometricBilinear, GeoMLP
from geom.clifford.gates import GatedNonlinearity, GradeDropout, gate_by_scalar
from geom.clifford.gatr import GATrBlock, GATrPlan
from geom.clifford.linear import EquiLinear
from geom.clifford.norm import EquiLayerNorm
from geom.errors import ShapeError
from geom.testing import assert_equivariant, assert_gradients
from tests.clifford.drawn import draw, motions, seeded

PLAN = AttentionPlan(heads=2)


def turn(versor: Tensor, x: Tensor) -> Tensor:
    return PGA.sandwich(versor.to(x), x)


def check_symmetry(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, out: int = 2) -> None:
    """Of multivectors, whose last axis is 16, and of scalars; `out` results, multivectors first."""
    actions = [turn if x.shape[-1] == 16 else "invariant" for x in inputs]
    results = [turn, "invariant"][:out]
    assert_equivariant(function, *inputs, elements=motions(), act_in=actions, act_out=results, tolerance=1e-11)


LAYERS = {
    "linear": EquiLinear(3, 4, 5, 2, generator=seeded()),
    "norm": EquiLayerNorm(),
    **{f"gate {name}": GatedNonlinearity(name) for name in ("gelu", "relu", "sigmoid", "gelu_divided")},
    "attention": SelfAttention(3, 4, 5, 2, plan=PLAN, generator=seeded()),
    "many heads": SelfAttention(3, 4, 5, 2, plan=AttentionPlan(2, False), generator=seeded()),
    "rotary": SelfAttention(3, 4, 5, 2, plan=AttentionPlan(2, rotary=True), generator=seeded()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_equivariant(name: str) -> None:
    check_symmetry(LAYERS[name].double(), draw(2, 6, 3, 16), draw(2, 6, 5, seed=1))


@pytest.mark.parametrize(
    "layer",
    [
        GeometricBilinear(3, 4, 5, 2, generator=seeded()),
        GeoMLP([3, 6, 3, 2], [5, 10, 4, 3], generator=seeded()),
        GATrBlock(GATrPlan(3, 5, attention=PLAN), generator=seeded()),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_with_joins_are_equivariant(layer: nn.Module) -> None:
    check_symmetry(layer.double(), draw(2, 6, 3, 16), draw(2, 6, 5, seed=1), draw(2, 1, 1, 16, seed=2))


def test_cross_attention_is_equivariant() -> None:
    layer = CrossAttention(3, 2, 4, 5, 6, 2, plan=PLAN, generator=seeded()).double()
    inputs = draw(2, 4, 3, 16), draw(2, 6, 2, 16, seed=1), draw(2, 4, 5, seed=2), draw(2, 6, 6, seed=3)
    check_symmetry(layer, *inputs)


def test_joins_want_a_reference_that_turns() -> None:
    layer = GeometricBilinear(2, 4, 3, 1, generator=seeded()).double()
    fixed = torch.ones(1, 1, 16, dtype=torch.float64)
    with pytest.raises(AssertionError, match="error"):
        check_symmetry(lambda x, s: layer(x, s, fixed), draw(5, 2, 16), draw(5, 3, seed=1))


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_linear_is_its_formula(dtype: torch.dtype) -> None:
    layer = EquiLinear(3, 4, 5, 2, generator=seeded()).to(dtype)
    x, s = draw(2, 6, 3, 16, dtype=dtype), draw(2, 6, 5, seed=1, dtype=dtype)
    y, t = layer(x, s)
    want = torch.einsum("yxa,aij,...xj->...yi", layer.weight.double(), PGA.linear_basis(), x.double())
    want[..., 0] += layer.s2mvs.double()(s.double())
    torch.testing.assert_close(y.double(), want, rtol=0, atol={torch.float32: 3e-6, torch.float64: 1e-14}[dtype])
    scalars = layer.mvs2s.double()(x[..., 0].double()) + layer.s2s.double()(s.double())
    torch.testing.assert_close(t.double(), scalars, rtol=0, atol={torch.float32: 3e-6, torch.float64: 1e-14}[dtype])


def test_linear_without_scalars() -> None:
    layer = EquiLinear(3, 4, generator=seeded()).double()
    with torch.no_grad():
        layer.bias.add_(2)
    y, t = layer(torch.zeros(3, 16, dtype=torch.float64))
    assert t is None and y.tolist() == (2 * torch.eye(16)[0]).expand(4, 16).tolist()
    layer = EquiLinear(3, 4, 5, 2, generator=seeded()).double()
    y, t = layer(draw(3, 16))
    want, both = layer(draw(3, 16), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(t, both)
    torch.testing.assert_close(y[..., 0], want[..., 0] - layer.s2mvs.bias)


@pytest.mark.parametrize(
    ("init", "size", "one"),
    [("default", 1, 0), ("small", 0.1, 0), ("unit_scalar", 0.1, 1), ("almost_unit_scalar", 0.5, 1)],
)
def test_first_weights(init: str, size: float, one: float) -> None:
    layer = EquiLinear(50, 60, 30, 40, init=init, generator=seeded())
    bound = size / math.sqrt(50) * torch.tensor([0.5, 4, 6, 2, 0.5, 0.5, 1.5, 1.5, 0.5]).sqrt()
    greatest = layer.weight.abs().amax((0, 1))
    assert bool((greatest <= bound * (1 + 1e-6)).all() and (greatest > 0.98 * bound).all())
    assert abs(float(layer.s2mvs.bias.detach().mean()) - one) < 0.05
    small = 0.1 if init == "small" else 1.0
    assert 0.9 < float(layer.s2s.weight.detach().abs().max()) / (small / math.sqrt(60)) <= 1.0001
    assert 0.9 < float(layer.mvs2s.weight.detach().abs().max()) / (small / math.sqrt(100)) <= 1.0001
    again = EquiLinear(50, 60, 30, 40, init=init, generator=seeded())
    assert all(bool((a == b).all()) for a, b in zip(layer.parameters(), again.parameters(), strict=True))


def test_norm_has_size_one_or_a_floor(dtype: torch.dtype) -> None:
    x = draw(4, 3, 16, dtype=dtype)
    y, s = EquiLayerNorm()(x, draw(4, 7, dtype=dtype))
    torch.testing.assert_close(PGA.inner_product(y, y).mean(-1), torch.ones(4, dtype=dtype))
    torch.testing.assert_close(s, torch.nn.functional.layer_norm(draw(4, 7, dtype=dtype), (7,)))
    torch.testing.assert_close(EquiLayerNorm()(1e-3 * x)[0], 1e-2 * x)
    torch.testing.assert_close(EquiLayerNorm(floor=1e-12)(1e-3 * x)[0], y)


def test_gates() -> None:
    x, s = draw(4, 3, 16), draw(4, 5, seed=1)
    y, t = GatedNonlinearity()(x, s)
    torch.testing.assert_close(y, gelu(x[..., :1], approximate="tanh") * x)
    torch.testing.assert_close(t, gelu(s))
    torch.testing.assert_close(gate_by_scalar(x, x[..., :1], activation="gelu_divided") * x[..., :1], y)


def test_dropout_takes_whole_grades() -> None:
    layer = GradeDropout(0.4, generator=seeded())
    x, s = layer(torch.ones(200, 50, 16), torch.ones(200, 50))
    kept = torch.stack([x[..., PGA.grade_slice(k)].amax(-1) for k in range(5)], -1)
    for k in range(5):
        part = x[..., PGA.grade_slice(k)]
        assert bool((part == kept[..., k, None]).all())
    assert set(torch.cat([kept.flatten(), s.flatten()]).unique().tolist()) == {0.0, float(torch.tensor(1 / 0.6))}
    assert abs(float((kept > 0).float().mean()) - 0.6) < 0.01 and abs(float((s > 0).float().mean()) - 0.6) < 0.02
    y = draw(3, 2, 16)
    assert layer.eval()(y)[0].tolist() == y.tolist()


def test_dropout_in_networks_is_off_in_evaluation() -> None:
    layer = GeoMLP([2, 4, 2], [3, 6, 3], dropout=0.5, generator=seeded()).double()
    args = draw(4, 2, 16), draw(4, 3, seed=1), draw(1, 16, seed=2)
    assert not torch.equal(layer(*args)[0], layer(*args)[0])
    layer.eval()
    assert torch.equal(layer(*args)[0], layer(*args)[0])


# --- derivatives and shapes -------------------------------------------------------------------------------------------


def _cast(layer: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: p.detach().to(dtype) for name, p in layer.named_parameters()}


def of_any_dtype(layer: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x, *more: functional_call(layer, _cast(layer, x.dtype), (x, *more))


def test_derivatives() -> None:
    x, s, reference = draw(3, 2, 16), draw(3, 3, seed=1), draw(1, 1, 16, seed=2)
    for layer in (EquiLinear(2, 2, 3, 2, generator=seeded()), EquiLayerNorm(), GatedNonlinearity()):
        assert_gradients(of_any_dtype(layer), x, s)
    assert_gradients(of_any_dtype(GeoMLP([2, 2, 1], [3, 2, 1], generator=seeded())), x[:2], s[:2], reference)


def test_weights_have_gradients() -> None:
    layer = GATrBlock(GATrPlan(2, 3, attention=AttentionPlan(2)), generator=seeded()).double()
    y, t = layer(draw(4, 2, 16), draw(4, 3, seed=1), draw(1, 1, 16, seed=2))
    (y.square().sum() + t.square().sum()).backward()
    missing = [name for name, p in layer.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert all("k_linear" in name and "bias" in name for name in missing), missing  # of keys, mathematically 0


def test_any_batch() -> None:
    layer = EquiLinear(3, 4, 5, 2, generator=seeded()).double()
    x, s = draw(2, 3, 3, 16), draw(2, 3, 5, seed=1)
    y, t = layer(x, s)
    torch.testing.assert_close(layer(x[1, 2], s[1, 2])[0], y[1, 2])
    torch.testing.assert_close(layer(x.transpose(0, 1), s.transpose(0, 1))[1], t.transpose(0, 1))
    assert layer(x[:0], s[:0])[0].shape == (0, 3, 4, 16)


@pytest.mark.usefixtures("unchecked")
def test_compiles() -> None:
    layer = GeoMLP([2, 4, 2], [3, 6, 3], generator=seeded()).double()
    args = draw(4, 2, 16), draw(4, 3, seed=1), draw(1, 16, seed=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args)[0], layer(*args)[0])


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    layer = EquiLinear(3, 4, 5)
    for call, message in [
        (lambda: EquiLinear(0, 4), "in_channels: expected an integer of at least 1, got 0"),
        (lambda: EquiLinear(3, 4, -1), "in_scalars: expected an integer of at least 0"),
        (lambda: EquiLinear(3, 4, init="large"), "init: expected one of"),
        (lambda: layer(torch.ones(3, 15)), "multivectors: expected"),
        (lambda: layer(torch.ones(2, 16)), "multivectors: expected 3 channels, got 2"),
        (lambda: layer(torch.ones(3, 16), torch.ones(4)), "scalars: expected shape"),
        (lambda: GeometricBilinear(3, 5), "out_channels: expected an even number"),
        (lambda: GeometricBilinear(3, 4)(torch.ones(2, 3, 16), None, torch.ones(5, 1, 16)), "reference: expected to"),
        (lambda: GeoMLP([3], [4]), "channels and scalars: expected as many"),
        (lambda: GradeDropout(1.0), "p: expected a number"),
        (lambda: GatedNonlinearity("tanh"), "activation: expected one of"),
        (lambda: AttentionPlan(heads=0), "heads: expected an integer"),
        (lambda: SelfAttention(3, 3)(torch.ones(3, 16)), "multivectors: expected a tensor"),
        (lambda: CrossAttention(3, 3, 3, plan=AttentionPlan(rotary=True)), "plan: expected multi_query"),
    ]:
        with pytest.raises(ShapeError, match=message):
            call()
