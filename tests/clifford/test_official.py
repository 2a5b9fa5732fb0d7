"""Every layer and net in the GATr goldens of GEOM_DATA: outputs and gradients, with weights from `load_official`."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geom.clifford.attention import AttentionPlan, CrossAttention, SelfAttention, geometric_attention, join_attention
from geom.clifford.bilinear import GeometricBilinear, GeoMLP
from geom.clifford.gates import gate_by_scalar
from geom.clifford.gatr import AxialGATr, GATr, GATrBlock, GATrPlan
from geom.clifford.linear import EquiLinear
from geom.clifford.norm import EquiLayerNorm
from geom.clifford.official import load_official
from geom.errors import ShapeError

Arrays = dict[str, Tensor]
# Of the greatest entry. In float32 that of the outputs of nets; single layers get multivectors at random, whose points
# lie far out where e123 is near 0, and logits of some hundreds lose two digits, in gradients more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-6}
LOOSE = {torch.float64: 1e-6, torch.float32: 1e-4}


def files(data: Path) -> list[Arrays]:
    """The arrays of each file that has GATr's tables or layers; skips without one."""
    found = []
    for path in sorted((data / "clifford").glob("*_golden_*.npz")):
        with np.load(path) as file:
            if any("EquiLinear" in key or key.startswith("attn/") for key in file.files):
                found.append({key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fib"})
    if not found:
        pytest.skip("no goldens of GATr in the clifford folder of GEOM_DATA")
    return found


def part(arrays: Arrays, prefix: str) -> Arrays:
    return {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}


def groups(data: Path) -> Iterator[tuple[str, Arrays]]:
    """The groups that are modules, name and arrays."""
    for arrays in files(data):
        for name in sorted({key.split("/")[0] for key in arrays}):
            group = part(arrays, f"{name}/")
            if any(key.startswith("in/") for key in group):
                yield name, group


def close(got: Tensor, want: Tensor, name: str, tolerance: float) -> None:
    assert got.shape == want.shape, (name, got.shape, want.shape)
    error = float((got.detach().double() - want.double()).abs().max() / want.abs().max().clamp(min=1e-30))
    assert error <= tolerance, (name, error)


# --- which module the weights are of ----------------------------------------------------------------------------------


def width(weights: Arrays, name: str, axis: int) -> int:
    return weights[name].shape[axis] if name in weights else 0


def linear_sizes(weights: Arrays, name: str = "") -> tuple[int, int, int, int]:
    c_out, c_in, _ = weights[f"{name}weight"].shape
    return c_in, c_out, width(weights, f"{name}s2mvs.weight", 1), width(weights, f"{name}mvs2s.weight", 0)


def attention_plan(weights: Arrays, channels: int) -> AttentionPlan:
    heads, _, own = weights["attention.log_weights"].shape
    increase = next(n for n in range(1, 99) if max(n * channels // heads, 1) == own)
    increase = 2 if max(2 * channels // heads, 1) == own else increase
    multi_query = not any("in_linear" in key for key in weights)
    return AttentionPlan(heads, multi_query, increase, any("inv_freq" in key for key in weights))


def block_plan(weights: Arrays) -> GATrPlan:
    c, _, s, _ = linear_sizes(weights, "mlp.layers.0.linear_left.")
    attention = part(weights, "attention.")
    first = next(
        key.removesuffix("weight") for key in attention if re.fullmatch(r"qkv_module\.(q|in)_linear\.weight", key)
    )
    wide, _, more, _ = linear_sizes(attention, first)
    return GATrPlan(c, s, 0, attention_plan(attention, c), "gelu", 0.0, tuple(range(wide - c)), tuple(range(more - s)))


def net_of(kind: type[nn.Module], weights: Arrays) -> Iterator[nn.Module]:
    """Nets with these weights, one for each choice of reinserted channels, whose indices no weight tells."""
    count = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))
    plans = [block_plan(part(weights, f"blocks.{k}.")) for k in range(count)]
    c_in, _, s_in, _ = linear_sizes(weights, "linear_in.")
    _, c_out, _, s_out = linear_sizes(weights, "linear_out.")
    sizes, plan = (c_in, c_out, s_in, s_out), replace(plans[0], blocks=count)
    if kind is AxialGATr:
        rotary = [any(own.attention.rotary for own in plans[k::2]) for k in (1, 0)]
        plan = replace(plan, attention=replace(plan.attention, rotary=False))
        yield AxialGATr(*sizes, plan=plan, rotary=(rotary[0], rotary[1]))
        return
    for channels in combinations(range(c_in), len(plan.reinsert_channels)):
        for scalars in combinations(range(s_in), len(plan.reinsert_scalars)):
            yield GATr(*sizes, plan=replace(plan, reinsert_channels=channels, reinsert_scalars=scalars))


def modules_of(name: str, group: Arrays) -> Iterator[nn.Module]:
    weights = part(group, "param/")
    kind = name.split("_")[0]
    if kind == "EquiLinear":
        yield EquiLinear(*linear_sizes(weights))
    elif kind == "EquiLayerNorm":
        yield EquiLayerNorm()
    elif kind == "GeometricBilinear":
        c_in, _, s_in, _ = linear_sizes(weights, "linear_left.")
        _, c_out, _, s_out = linear_sizes(weights, "linear_out.")
        yield GeometricBilinear(c_in, c_out, s_in, s_out)
    elif kind == "GeoMLP":
        places = sorted({int(key.split(".")[1]) for key in weights})[1:]
        c, _, s, _ = linear_sizes(weights, "layers.0.linear_left.")
        sizes = [linear_sizes(weights, f"layers.{at}.") for at in ("0.linear_out", *places)]
        yield GeoMLP([c, *(size[1] for size in sizes)], [s, *(size[3] for size in sizes)])
    elif kind == "SelfAttention":
        c, s = group["in/multivectors"].shape[-2], group["in/scalars"].shape[-1] if "in/scalars" in group else 0
        _, c_out, _, s_out = linear_sizes(weights, "out_linear.")
        yield SelfAttention(c, c_out, s, s_out, plan=attention_plan(weights, c))
    elif kind == "CrossAttention":
        c_q, _, s_q, _ = linear_sizes(weights, "q_linear.")
        c_k, _, s_k, _ = linear_sizes(weights, "k_linear.")
        _, c_out, _, s_out = linear_sizes(weights, "out_linear.")
        yield CrossAttention(c_q, c_k, c_out, s_q, s_k, s_out, plan=attention_plan(weights, c_k))
    elif kind == "GATrBlock":
        yield GATrBlock(block_plan(weights))
    elif kind in ("GATr", "AxialGATr"):
        yield from net_of({"GATr": GATr, "AxialGATr": AxialGATr}[kind], weights)
    else:
        raise AssertionError(f"unknown golden group {name}")


def call(name: str, module: nn.Module, inputs: Arrays) -> tuple[Tensor, Tensor | None]:
    if isinstance(module, CrossAttention):
        keys = ("multivectors_q", "multivectors_kv", "scalars_q", "scalars_kv")
        return module(*(inputs.get(key) for key in keys))
    own = [inputs["multivectors"], inputs.get("scalars")]
    if "reference_mv" in inputs:
        return module(*own, inputs["reference_mv"])
    return module(*own, reference="canonical") if "canonicalref" in name else module(*own)


def errors(name: str, group: Arrays, module: nn.Module, dtype: torch.dtype) -> dict[str, float]:
    """The greatest error of every output and gradient, relative to its greatest entry."""
    inputs = {key: x.to(dtype).requires_grad_() for key, x in part(group, "in/").items()}
    load_official(module.to(dtype), part(group, "param/"))
    outputs = [x for x in call(name, module, inputs) if x is not None]
    wanted = part(group, "out/")
    assert len(outputs) == len(wanted), (name, sorted(wanted))
    loss = torch.stack([x.square().sum() for x in outputs]).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()))
    pairs = {f"out/{key}": (outputs[int(key)], want) for key, want in wanted.items()}
    pairs |= {f"grad_in/{key}": (g, group[f"grad_in/{key}"]) for key, g in zip(inputs, grads, strict=True)}
    for key, (got, want) in pairs.items():
        assert got.shape == want.shape, (name, key, got.shape, want.shape)
    return {
        key: float((got.detach().double() - want).abs().max() / want.abs().max().clamp(min=1e-30))
        for key, (got, want) in pairs.items()
    }


def test_every_module(data: Path, dtype: torch.dtype) -> None:
    count = 0
    for name, group in groups(data):
        found = [errors(name, group, module, dtype) for module in modules_of(name, group)]
        best = min(found, key=lambda error: max(error.values()))
        if name.startswith("EquiLayerNorm") and dtype == torch.float32:
            del best["grad_in/scalars"]  # that of a number which does not change, rounding alone
        for key, error in best.items():
            strict = key.startswith("out/") and "GATr" in name
            assert error <= (TOLERANCE if strict else LOOSE)[dtype], (name, key, error)
        count += 1
    assert count


def attend(name: str, heads: list[tuple[Tensor, Tensor]], weights: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = heads
    if name == "pga_join":
        return join_attention(q, k, v)
    options = {
        "geometric": {"weights": weights},
        "geometric_masked": {"weights": weights, "mask": mask},
        "geometric_noweights": {},
        "sdp_no_distance": {"distance": False},
    }
    return geometric_attention(q, k, v, **options[name])


def test_attention(data: Path, dtype: torch.dtype) -> None:
    for arrays in files(data):
        group = part(arrays, "attn/")
        if not group:
            continue
        heads = [(group[f"{key}_mv"].to(dtype), group[f"{key}_s"].to(dtype)) for key in "qkv"]
        for name in sorted({key.split(".")[0] for key in group if key.endswith(".0")}):
            for k, got in enumerate(attend(name, heads, group["weights"].to(dtype), group["mask"])):
                close(got, group[f"{name}.{k}"], f"{name}.{k}", LOOSE[dtype])


def test_gates(data: Path, dtype: torch.dtype) -> None:
    for arrays in files(data):
        if "prim/gates" not in arrays:
            continue
        x, gates = arrays["prim/lin_x"].to(dtype), arrays["prim/gates"].to(dtype)
        for name, want in part(arrays, "prim/gated_").items():
            got = gate_by_scalar(x, gates, activation=name.replace("divide", "divided"))
            close(got, want, name, TOLERANCE[dtype])
        close(EquiLayerNorm()(x)[0], arrays["prim/layer_norm"], "layer_norm", TOLERANCE[dtype])


# --- state dicts ------------------------------------------------------------------------------------------------------


def test_names_are_forgiven() -> None:
    mlp, other = GeoMLP([2, 4, 2], [3, 6, 3]), GeoMLP([2, 4, 2], [3, 6, 3])
    given = {f"module.{name.replace('layers.2', 'layers.3')}": x for name, x in other.state_dict().items()}
    load_official(mlp, {**given, "module.pos_encoding.inv_freq": torch.ones(4)})
    assert all(bool((x == y).all()) for x, y in zip(mlp.parameters(), other.parameters(), strict=True))
    load_official(mlp.double(), given)
    assert mlp.layers[0].linear_left.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("weight"), "missing weight"),
        (lambda state: state.update(other=torch.ones(1)), "unknown other"),
        (lambda state: state.update(weight=torch.ones(3, 2, 8)), r"weight of shape \(3, 2, 8\) for \(3, 2, 9\)"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[Arrays], object], message: str) -> None:
    layer = EquiLinear(2, 3)
    before, state = layer.weight.clone(), dict(layer.state_dict())
    change(state)
    with pytest.raises(ShapeError, match=f"expected the entries of EquiLinear, got {message}"):
        load_official(layer, state)
    assert bool((layer.weight == before).all())
