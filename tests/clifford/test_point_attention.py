"""Point attention against loops over tuples, its symmetries, derivatives, memory, and wrong input."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from geom.clifford.algebra import EGA
from geom.clifford.momentum_norm import MomentumNorm
from geom.clifford.point_attention import PointAttention, perceptron
from geom.clifford.point_products import TupleProducts
from geom.errors import ShapeError
from geom.testing import assert_equivariant, assert_gradients

E123 = torch.eye(8, dtype=torch.float64)[7]
MODES = st.sampled_from(["single", "partial", "full"])
MIXES = st.sampled_from(["mean", "concat"])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make(*args: Any, dtype: torch.dtype = torch.float64, **options: Any) -> PointAttention:
    torch.manual_seed(3)
    layer = PointAttention(*args, **options).to(dtype)
    for weight in layer.parameters():
        weight.data.add_(0.3 * torch.randn_like(weight))
    return layer


def call(layer: PointAttention, *args: Any, **options: Any) -> tuple[Tensor, ...]:
    result = layer(*args, **options)
    return result if isinstance(result, tuple) else (result,)


# --- by loops ---------------------------------------------------------------------------------------------------------


def norm(x: Tensor, grade: int) -> Tensor:
    return x[[i for i, k in enumerate(EGA.grades) if k == grade]].norm()


def by_loops(
    layer: PointAttention, r: Tensor, v: Tensor, labels: Tensor | None, weights: Tensor, mask: Tensor
) -> list[Tensor]:
    """What the layer gives for one cloud, tuple by tuple, all products being those of `EGA`."""
    p, k, n = layer.products, layer.products.rank, len(r)
    points = r if p.multivector else torch.cat([r.new_zeros(n, 1), r, r.new_zeros(n, 4)], -1)
    grades_of = lambda length: range(4) if p.multivector else range(length % 2, min(length, 3) + 1, 2)  # noqa: E731

    def product(tuple_: tuple[int, ...], place: tuple[int, int]) -> Tensor:
        whole = points[tuple_[place[0]]]
        for i in tuple_[place[0] + 1 : sum(place)]:
            whole = EGA.geometric_product(whole, points[i])
        return whole

    def every(tuple_: tuple[int, ...], mode: str) -> list[tuple[int, Tensor]]:
        if mode == "single":
            places = [(0, k)]
        else:
            places = [(a, m) for a in range(k if mode == "full" else 1) for m in range(k - a, 0, -1)]
        return [(m, product(tuple_, (a, m))) for a, m in places]

    def normalized(found: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
        return found + [(m, x / x.norm().clamp(min=1e-7)) for m, x in found if p.normalized]

    def linear(tuple_: tuple[int, ...]) -> list[tuple[int, Tensor]]:
        found = []
        for gates in layer.linear_kernels if layer.linear_kernels is not None else ():
            total = torch.zeros(8, dtype=r.dtype)
            for (m, x), gate in zip(every(tuple_, p.linear), gates.softmax(-1)[:, :, 1], strict=True):
                dual = EGA.geometric_product(E123.to(x), x)
                if p.multivector:
                    total = total + (gate[0] - gate[1]) * x + (gate[2] - gate[3]) * dual
                else:
                    side = x if (m - k) % 2 == 0 else dual if k % 2 == 0 else -dual
                    total = total + (gate[0] - gate[1]) * side
            found.append((k, total))
        return found

    def invariants(m: int, x: Tensor) -> list[Tensor]:
        return [x[0] if g == 0 else x[7] if g == 3 else norm(x, g) for g in grades_of(m)]

    def covariant(m: int, x: Tensor) -> Tensor:
        if p.multivector:
            return x
        return x[1:4] if m % 2 else -EGA.geometric_product(E123.to(x), x)[1:4]

    def score_and_values(tuple_: tuple[int, ...], label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        more = linear(tuple_)
        known = [(m, x) for m, x in normalized(every(tuple_, p.invariants))] + [(3 if k % 2 else 2, x) for _, x in more]
        q = torch.stack([y for m, x in known for y in invariants(m, x)])
        own = [v[i] for i in tuple_]
        mixes = layer.merge_kernels
        merged = sum(own) / k if mixes is None else sum(x @ w for x, w in zip(own, mixes, strict=True))
        parts = [layer.value_net(q), merged] if label is None else [label, layer.value_net(q), merged]
        joins = layer.join_kernels
        z = sum(parts) / len(parts) if joins is None else sum(x @ w for x, w in zip(parts, joins, strict=True))
        score = layer.score_net(z)[0] if bool(mask[list(tuple_)].all()) else torch.tensor(-1e9, dtype=r.dtype)
        cov = torch.zeros(p.size, dtype=r.dtype)
        if layer.scale_net is not None:
            found = [covariant(m, x) for m, x in [*normalized(every(tuple_, p.covariants)), *more]]
            alpha = torch.ones(1, dtype=r.dtype) if layer.vector_kernels is None else layer.vector_kernels
            if layer.convex and layer.vector_kernels is not None:
                alpha = torch.cat([alpha, alpha.new_zeros(1)]).softmax(0)[:-1]
            cov = layer.scale_net(z) * sum(a * c for a, c in zip(alpha, found, strict=True))
        return score, z, cov

    def reduced(tuples: list[tuple[int, ...]], label: Tensor | None) -> tuple[Tensor, Tensor]:
        scores, zs, covs = (torch.stack(x) for x in zip(*(score_and_values(t, label) for t in tuples), strict=True))
        share = scores.softmax(0) * torch.stack([weights[list(t)].prod() ** (1 / k) for t in tuples])
        return share @ covs, share @ zs

    tuples = list(itertools.product(range(n), repeat=k))
    sets = [tuples] if layer.reduce else [[t for t in tuples if t[0] == i] for i in range(n)]
    each = [[reduced(some, label) for some in sets] for label in (labels if labels is not None else [None])]
    found = [torch.stack([torch.stack([x[j] for x in row]) for row in each]) for j in range(2)]
    found = [x[:, 0] if layer.reduce else x for x in found]
    found = found if layer.labelled else [x[0] for x in found]
    return {"invariant": found[1:], "covariant": found[:1], "both": found}[layer.output]


@settings(max_examples=40)
@given(
    products=st.builds(
        TupleProducts,
        rank=st.integers(1, 4),
        multivector=st.booleans(),
        invariants=MODES,
        covariants=MODES,
        normalized=st.booleans(),
        linear_terms=st.integers(0, 2),
        linear=MODES,
    ),
    options=st.fixed_dictionaries(
        {
            "output": st.sampled_from(["invariant", "covariant", "both"]),
            "reduce": st.booleans(),
            "merge": MIXES,
            "join": MIXES,
            "labelled": st.booleans(),
            "convex": st.booleans(),
            "chunk": st.sampled_from([1, 10**6]),
        }
    ),
    weighted=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_is_what_loops_over_tuples_give(
    products: TupleProducts, options: dict[str, Any], weighted: bool, masked: bool, seed: int
) -> None:
    layer, n = make(3, products, net=lambda a, b: nn.Linear(a, b), **options), 2 if products.rank > 2 else 3
    r, v = random(1, n, products.size, seed=seed), random(1, n, 3, seed=seed + 1)
    labels = random(1, 2, 3, seed=seed + 2) if layer.labelled else None
    weights = random(1, n, seed=seed + 3).square() if weighted else torch.ones(1, n, dtype=r.dtype)
    mask = torch.arange(n)[None] < n - masked
    got = call(layer, r, v, labels, weights=weights if weighted else None, mask=mask if masked else None)
    wanted = by_loops(layer, r[0], v[0], labels[0] if labels is not None else None, weights[0], mask[0])
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x[0], y, rtol=1e-11, atol=1e-11)


# --- symmetries -------------------------------------------------------------------------------------------------------


def rotors(count: int = 6, reflect: bool = False) -> list[Tensor]:
    """Products of two unit vectors, or of one."""
    u = torch.nn.functional.normalize(random(2, count, 3, seed=9), dim=-1)
    u = torch.nn.functional.pad(u, (1, 4))
    return list(u[0] if reflect else EGA.geometric_product(u[0], u[1]))


def turn(u: Tensor, x: Tensor) -> Tensor:
    x = x if x.shape[-1] == 8 else torch.nn.functional.pad(x, (1, 4))
    return EGA.sandwich(u.to(x), x)


def turn_vector(u: Tensor, x: Tensor) -> Tensor:
    return turn(u, x)[..., 1:4]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("multivector", [False, True])
def test_rotations_move_covariants_and_leave_invariants(rank: int, multivector: bool, dtype: torch.dtype) -> None:
    products = TupleProducts(rank, multivector, "full", "full", normalized=True, linear_terms=1)
    layer = make(6, products, output="both", reduce=False, dtype=dtype)
    r, v = random(2, 5, products.size, dtype=dtype), random(2, 5, 6, seed=1, dtype=dtype)
    act = turn if multivector else turn_vector
    assert_equivariant(
        layer,
        r,
        v,
        elements=rotors(),
        act_in=[act, "invariant"],
        act_out=[act, "invariant"],
        tolerance=1e-12 if dtype == torch.float64 else 2e-5,
    )


def test_reflections_are_seen_by_trivectors_alone() -> None:
    r, v = random(5, 3), random(5, 6, seed=1)
    options: dict[str, Any] = {"elements": rotors(reflect=True), "act_in": [turn_vector, "invariant"]}
    assert_equivariant(make(6), r, v, act_out="invariant", tolerance=1e-12, **options)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(
            make(6, TupleProducts(3), merge="concat"), r, v, act_out="invariant", tolerance=1e-12, **options
        )


def test_the_order_of_points_and_of_labels_is_kept() -> None:
    layer = make(4, output="covariant", labelled=True, reduce=False)
    r, v, labels = random(5, 3), random(5, 4, seed=1), random(2, 4, seed=2)
    orders = [torch.tensor([3, 1, 4, 0, 2]), torch.tensor([1, 2, 0, 4, 3])]
    first, second = (lambda g, x: x[g]), (lambda g, x: x[:, g])
    assert_equivariant(
        layer, r, v, labels, elements=orders, act_in=[first, first, "invariant"], act_out=second, tolerance=1e-12
    )
    torch.testing.assert_close(layer(r, v, labels.flip(0)), layer(r, v, labels).flip(0))


# --- derivatives ------------------------------------------------------------------------------------------------------


def scattered(kind: str) -> Tensor:
    r = random(3, 3)
    if kind == "coincident":
        r[1] = r[0]
    elif kind == "origin":
        r[1] = 0
    elif kind == "collinear":
        r[1] = -2 * r[0]
    return r


def of_any_dtype(layer: PointAttention) -> Any:
    def function(*inputs: Tensor) -> Any:
        weights = {name: x.detach().to(inputs[0]) for name, x in layer.named_parameters()}
        return torch.func.functional_call(layer, weights, inputs)

    return function


@pytest.mark.parametrize("kind", ["random", "coincident", "origin", "collinear"])
def test_derivatives(kind: str) -> None:
    layer = make(2, TupleProducts(2, invariants="full", covariants="full"), output="both", net=smooth)
    smooth_there = kind == "random"
    assert_gradients(
        of_any_dtype(layer), scattered(kind), random(3, 2, seed=1), order=2 if smooth_there else 0, vmap=smooth_there
    )


def smooth(inner: int, outer: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inner, 3), nn.Tanh(), nn.Linear(3, outer))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_transforms_of_every_part(chunk: int) -> None:
    products = TupleProducts(3, True, "full", "full", normalized=True, linear_terms=1)
    layer = make(2, products, output="both", merge="concat", join="concat", reduce=False, net=smooth, chunk=chunk)
    r, v = random(2, 8), random(2, 2, seed=1)
    assert_gradients(of_any_dtype(layer), r, v, order=0, compile=chunk > 1)


def test_the_bivector_of_a_point_with_itself_has_no_noise() -> None:
    products = TupleProducts(2)
    r = random(50, 3, dtype=torch.float32).requires_grad_()
    q = torch.cat([products.invariants_of([products.lengthen(x[None, None], x[None, None])], []) for x in r])
    assert bool((q[..., 1] == 0).all())


def test_weights_of_zero_have_finite_derivatives() -> None:
    layer, w = make(4, TupleProducts(3)), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    (layer(random(3, 3), random(3, 4, seed=1), weights=w)).square().sum().backward()
    assert w.grad is not None and bool(w.grad.isfinite().all()) and bool(w.grad[1:].abs().min() > 0)


# --- memory -----------------------------------------------------------------------------------------------------------


def saved(function: Any) -> int:
    """Bytes that autograd keeps, each tensor once."""
    sizes: dict[tuple[int, tuple[int, ...]], int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.data_ptr(), tuple(x.shape)] = x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        function()
    return sum(sizes.values())


def test_what_is_kept_of_triples_does_not_grow_with_their_number() -> None:
    r, v = random(8, 32, 3, dtype=torch.float32), random(8, 32, 32, dtype=torch.float32).requires_grad_()
    layer = make(32, TupleProducts(3), reduce=False, dtype=torch.float32)
    assert saved(lambda: layer(r, v)) < 10e6
    layer.chunk = 10**9
    assert saved(lambda: layer(r[:1], v[:1])) > 30e6  # what it would be


@pytest.mark.parametrize("reduce", [False, True])
def test_parts_change_no_derivative(reduce: bool) -> None:
    layer = make(4, TupleProducts(3, invariants="full"), output="both", reduce=reduce, merge="concat")
    v, mask = random(2, 7, 4, seed=1), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3:] = False

    def derivatives(chunk: int) -> list[Tensor]:
        layer.chunk = chunk
        r = random(2, 7, 3).requires_grad_()
        outputs = layer(r, v, mask=mask)
        energy = sum(x.square().sum() for x in outputs)
        (force,) = torch.autograd.grad(energy, r, create_graph=True)
        weights = [w for name, w in layer.named_parameters() if name != "score_net.2.bias"]  # which changes nothing
        found = [*outputs, force, *torch.autograd.grad(force.square().sum(), [r, *weights])]
        return [x.detach() for x in found]

    for x, y in zip(derivatives(2 * 2 * 7 * 7), derivatives(10**6), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10 * float(y.abs().max()))


def test_a_net_with_buffers_sees_the_whole_batch_once_while_it_trains() -> None:
    calls = []

    class Seen(MomentumNorm):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x.numel())
            return super().forward(x)

    layer = make(4, net=lambda a, b: nn.Sequential(nn.Linear(a, b), Seen(b)), chunk=1, dtype=torch.float32)
    r, v = random(6, 3, dtype=torch.float32), random(6, 4, dtype=torch.float32).requires_grad_()
    layer(r, v).sum().backward()
    assert calls == [36 * 4, 36]
    layer.eval()
    layer(r, v).sum().backward()
    assert len(calls) > 4


# --- masks, labels, shapes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", [False, True])
def test_masked_points_are_not_there(reduce: bool, dtype: torch.dtype) -> None:
    layer = make(4, TupleProducts(3), output="both", reduce=reduce, dtype=dtype)
    r, v = random(6, 3, dtype=dtype), random(6, 4, seed=1, dtype=dtype)
    mask = torch.arange(6) < 4
    for got, want in zip(layer(r, v, mask=mask), layer(r[:4], v[:4]), strict=True):
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(got if reduce else got[:4], want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 10**6])
def test_where_all_are_masked_all_share_alike(chunk: int, dtype: torch.dtype) -> None:
    layer = make(4, chunk=chunk, dtype=dtype)
    r, v = random(5, 3, dtype=dtype).requires_grad_(), random(5, 4, seed=1, dtype=dtype)
    none = torch.zeros(5, dtype=torch.bool)
    assert bool(((layer.attention(r, v, mask=none) - 1 / 25).abs() < 1e-7).all())
    layer(r, v, mask=none).sum().backward()
    assert r.grad is not None and bool(r.grad.isfinite().all())


def test_attention_sums_to_one() -> None:
    r, v, labels = random(2, 4, 3), random(2, 4, 5, seed=1), random(2, 3, 5, seed=2)
    for reduce, axes in ((True, (-1, -2)), (False, (-1,))):
        layer = make(5, output="covariant", reduce=reduce, labelled=True)
        found = layer.attention(r, v, labels)
        assert found.shape == (2, 3, 4, 4)
        torch.testing.assert_close(found.sum(axes), torch.ones_like(found.sum(axes)))


def test_batches(dtype: torch.dtype) -> None:
    layer = make(4, TupleProducts(3), output="both", reduce=False, dtype=dtype)
    r, v = random(2, 3, 5, 3, dtype=dtype), random(2, 3, 5, 4, seed=1, dtype=dtype)
    whole = layer(r, v)
    assert [x.shape for x in whole] == [(2, 3, 5, 3), (2, 3, 5, 4)] and whole[0].dtype == dtype
    for got, want in zip(layer(r[1, 2], v[1, 2]), whole, strict=True):
        torch.testing.assert_close(got, want[1, 2])
    assert [x.shape for x in layer(r[:0], v[:0])] == [(0, 3, 5, 3), (0, 3, 5, 4)]
    assert layer(r[..., :1, :], v[..., :1, :])[1].shape == (2, 3, 1, 4)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    r, v = random(4, 3), random(4, 5)
    layer, labelled = make(5), make(5, labelled=True)
    for message, wrong in {
        "points: expected a tensor": lambda: layer(r[:, :2], v),
        "points: expected .* n of at least 1": lambda: layer(r[:0], v[:0]),
        "points and values: expected one dtype": lambda: layer(r, v.float()),
        "values: expected a tensor": lambda: layer(r, v[:3]),
        "labels: expected None": lambda: layer(r, v, v),
        "labels: expected labels": lambda: labelled(r, v),
        "labels: expected a tensor": lambda: labelled(r, v, v[:, :3]),
        "weights: expected a tensor": lambda: layer(r, v, weights=r),
        "weights: expected numbers": lambda: layer(r, v, weights=-torch.ones(4).double()),
        "mask: expected a tensor": lambda: layer(r, v, mask=torch.ones(3, dtype=torch.bool)),
        "mask: expected a bool": lambda: layer(r, v, mask=torch.ones(4)),
        "rank: expected": lambda: TupleProducts(0),
        "linear_terms: expected": lambda: TupleProducts(linear_terms=-1),
        "invariants: expected one of": lambda: TupleProducts(invariants="some"),
        "merge: expected one of": lambda: PointAttention(4, merge="sum"),
        "output: expected one of": lambda: PointAttention(4, output="all"),
        "channels: expected an integer": lambda: PointAttention(0),
        "chunk: expected an integer": lambda: PointAttention(4, chunk=0),
    }.items():
        with pytest.raises(ShapeError, match=message):
            wrong()


def test_the_nets_are_as_wide_as_said() -> None:
    first = perceptron(3, 5)[0]
    assert isinstance(first, nn.Linear) and first.out_features == 10
    assert [TupleProducts(k, invariants="full").invariant_count for k in (1, 2, 3, 4)] == [1, 4, 9, 16]
    assert [TupleProducts(k, True, "full").invariant_count for k in (1, 2, 3)] == [4, 12, 24]
    assert [TupleProducts(k, invariants="partial").invariant_count for k in (1, 2, 3)] == [1, 3, 5]
    assert TupleProducts(3, covariants="full", normalized=True).covariant_count == 12
