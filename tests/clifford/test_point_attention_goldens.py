"""Every group of point-attention goldens in GEOM_DATA, whatever configurations they are of."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geom.clifford.algebra import EGA
from geom.clifford.momentum_norm import MomentumLayerNorm, MomentumNorm
from geom.clifford.point_attention import PointAttention
from geom.clifford.point_products import TupleProducts

TOLERANCE = 1e-9  # of the greatest entry, or of 1
MOMENTUM = float(np.float32(0.99))  # what the published norms hold


def close(got: Tensor, want: Tensor, name: str) -> None:
    assert got.shape == want.shape, (name, got.shape, want.shape)
    error = float((got.detach() - want).abs().max()) if want.numel() else 0.0
    assert error <= TOLERANCE * max(1.0, float(want.abs().max())), (name, error)


def layer_group(key: str, arrays: dict[str, Any]) -> bool:
    """Whether a key is that of a layer's arguments: `NAME/config`, beside its points `NAME/r`."""
    return key.endswith("/config") and f"{key.removesuffix('config')}r" in arrays


def files(data: Path) -> list[dict[str, Tensor | str]]:
    """The arrays of each file that has such groups; skips without one."""
    found = []
    for path in sorted((data / "clifford").glob("*_golden_*.npz")):
        with np.load(path) as file:
            arrays = {k: str(file[k]) if file[k].dtype.kind == "U" else torch.from_numpy(file[k]) for k in file.files}
        if any(key.startswith(("alg/", "mom/")) or layer_group(key, arrays) for key in arrays):
            found.append(arrays)
    if not found:
        pytest.skip("no goldens of point attention in the clifford folder of GEOM_DATA")
    return found


def layer_of(config: dict[str, Any], weights: dict[str, Tensor], chunk: int = 10**9) -> PointAttention:
    """The layer that the published constructor's arguments mean, with its weights."""
    given = dict(config)
    kind, channels = given.pop("cls"), given.pop("n_dim")
    names = {"rank": "rank", "invariant_mode": "invariants", "covariant_mode": "covariants", "linear_mode": "linear"}
    names |= {"include_normalized_products": "normalized", "linear_terms": "linear_terms"}
    products = {ours: given.pop(theirs) for theirs, ours in names.items() if theirs in given}
    names = {"reduce": "reduce", "merge_fun": "merge", "join_fun": "join", "convex_covariants": "convex"}
    options = {ours: given.pop(theirs) for theirs, ours in names.items() if theirs in given}
    assert not given, f"unknown arguments {given}"
    several = "both" if kind.startswith("Tied") else "covariant"
    width = weights["value_net.0.weight"].shape[0]
    layer = PointAttention(
        channels,
        TupleProducts(multivector="Multivector" in kind, **products),
        output="invariant" if kind in ("VectorAttention", "MultivectorAttention") else several,
        labelled=kind.startswith("Labeled"),
        net=lambda inner, outer: nn.Sequential(nn.Linear(inner, width), nn.SiLU(), nn.Linear(width, outer)),
        chunk=chunk,
        **options,
    ).double()
    if layer.products.rank == 1:  # the published layers have these even so, and do not use them
        weights = {name: x for name, x in weights.items() if name != "linear_kernels"}
    layer.load_state_dict(weights)
    return layer


def test_layers(data: Path) -> None:
    count = 0
    for arrays in files(data):
        for key in [key for key in arrays if layer_group(key, arrays)]:
            name = key.removesuffix("/config")
            group = {k.removeprefix(f"{name}/"): x for k, x in arrays.items() if k.startswith(f"{name}/")}
            weights = {k.removeprefix("param/"): x for k, x in group.items() if k.startswith("param/")}
            for chunk in (10**9, 1):
                layer = layer_of(ast.literal_eval(str(arrays[key])), weights, chunk)
                check_outputs(layer, group, name)
            count += 1
    assert count


def check_outputs(layer: PointAttention, group: dict[str, Any], name: str) -> None:
    r, v, labels = group["r"], group["v"], group.get("label")
    calls = {"out": {}, "out_weighted": {"weights": group.get("w")}, "out_masked": {"mask": group.get("mask")}}
    for call, options in calls.items():
        wanted = [x for key, x in sorted(group.items()) if key == call or key.startswith(f"{call}.")]
        if not wanted:
            continue
        got = layer(r, v, labels, **options)
        for i, (x, y) in enumerate(zip(got if isinstance(got, tuple) else (got,), wanted, strict=True)):
            close(x, y, f"{name}/{call}.{i}")
    if "attention" in group:
        close(layer.attention(r, v, labels)[..., None], group["attention"], f"{name}/attention")


def test_algebra(data: Path) -> None:
    pairs, triples, count = TupleProducts(rank=2), TupleProducts(rank=3), 0
    whole = TupleProducts(rank=1, multivector=True)
    e123 = torch.eye(8, dtype=torch.float64)[7]
    for arrays in files(data):
        known = {key.removeprefix("alg/"): x for key, x in arrays.items() if key.startswith("alg/")}
        if not known:
            continue
        a, b, c, m, n = (known.pop(name)[:, None] for name in "abcmn")
        ab = pairs.lengthen(a, b)
        abc = triples.lengthen(ab, c)
        even, odd = (torch.zeros(len(a), 8, dtype=torch.float64) for _ in range(2))
        even[:, [0, 4, 5, 6]], odd[:, [1, 2, 3, 7]] = ab.flatten(1), abc.flatten(1)
        found = {
            "vecvec_ab": ab,
            "vecvec_inv": pairs.invariants_of([ab], []),
            "vecvec_cov": pairs.covariants_of([ab, a], [])[0],
            "bivecvec_abc": abc,
            "bivecvec_inv": triples.invariants_of([abc], []),
            "bivecvec_cov": triples.covariants_of([abc, ab, a], [])[0],
            "trivecvec_abca": triples.lengthen(abc, a),
            "bivec_dual": -EGA.geometric_product(e123, even)[:, [1, 2, 3, 7]],
            "trivec_dual": EGA.geometric_product(e123, odd)[:, [0, 4, 5, 6]],
            "mvec_dual": EGA.geometric_product(e123, m),
            "mvecmvec": whole.lengthen(m, n),
            "mvec_inv": whole.invariants_of([m], []),
        }
        for name in known.keys() & found.keys():
            close(found[name].reshape(known[name].shape), known[name], name)
            count += 1
    assert count


def test_momentum_norms(data: Path) -> None:
    count = 0
    for arrays in files(data):
        if "mom/x" not in arrays:
            continue
        x = arrays["mom/x"]
        each, whole = (
            MomentumNorm(x.shape[-1], momentum=MOMENTUM).double(),
            MomentumLayerNorm(momentum=MOMENTUM).double(),
        )
        close(each(x), arrays["mom/MomentumNormalization_step1"], "MomentumNormalization")
        close(whole(x), arrays["mom/MomentumLayerNormalization_step1"], "MomentumLayerNormalization")
        for name, got in (("mu", each.mu), ("sigma", each.sigma), ("norm", whole.norm)):
            close(got, arrays[f"mom/{name}"], name)
        count += 1
    assert count
