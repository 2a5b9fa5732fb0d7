"""`SlimGATr`: symmetry of its parts and of the whole, what its linear maps are, what its products can say, kernels."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from geom.clifford.algebra import PGA
from geom.clifford.attention import AttentionPlan, geometric_attention
from geom.clifford.embedding import embed_direction, embed_plane, embed_point, extract_point
from geom.clifford.gatr import GATrPlan
from geom.clifford.slim import SlimGATr, from_slim, to_slim
from geom.clifford.slim_layers import (
    SlimLinear,
    attention_features,
    features_by_torch,
    join_heads,
    join_heads_by_torch,
    normalise,
    normalise_by_torch,
)
from geom.clifford.slim_products import multiply_slim, multiply_slim_by_torch
from geom.errors import ShapeError
from geom.testing import assert_equivariant, assert_gradients
from tests.clifford.drawn import draw, motions, seeded

PLAN = GATrPlan(4, 8, 2, AttentionPlan(2))
# components 1 | e0 e1 e2 e3 | e012 e013 e023 e123 of z and x, planes d, n, q, w
TO_PLANES = torch.zeros(9, 9, dtype=torch.float64)
for _row, (_place, _sign) in enumerate([(0, 1), (1, -1), (2, 1), (3, 1), (4, 1), (7, -1), (6, 1), (5, -1), (8, 1)]):
    TO_PLANES[_row, _place] = _sign


def turn(versor: Tensor, x: Tensor) -> Tensor:
    return to_slim(PGA.sandwich(versor, from_slim(x.double()))).to(x.dtype)


def into(x: Tensor) -> tuple[Tensor, Tensor]:
    """Slim multivectors (N, C, 9) as z (N, C) and x (8, N, C)."""
    y = (x @ TO_PLANES.T).movedim(-1, 0)
    return y[0], y[1:]


def out_of(z: Tensor, x: Tensor) -> Tensor:
    return torch.cat([z[None], x]).movedim(0, -1) @ TO_PLANES


def cloud(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Two channels: points, and planes through them."""
    x = draw(*shape, 3)
    return to_slim(torch.stack([embed_point(x), embed_plane(draw(*shape, 3, seed=1), x)], -2)).to(dtype)


# --- what is equivariant ----------------------------------------------------------------------------------------------


def test_there_are_four_linear_maps() -> None:
    # M with A M = M A for all versors A: the null space of those equations
    eye = torch.eye(9, dtype=torch.float64)
    actions = [turn(g, eye).T.contiguous() for g in motions(1.0)]
    rows = torch.cat([torch.kron(a, eye) - torch.kron(eye, a.T.contiguous()) for a in actions])
    values = torch.linalg.svdvals(rows)
    assert int((values < 1e-10).sum()) == 4
    layer = SlimLinear((1, 1), (1, 1), None).double()
    nn.init.zeros_(layer.bias)
    maps = []
    for name in ("scalars", "planes", "points", "offsets"):
        one = {key: torch.full_like(p, float(key == name)) for key, p in layer.named_parameters()}
        maps.append(out_of(*functional_call(layer, one, into(eye[:, None])))[:, 0].T.flatten())
    assert float((rows @ torch.stack(maps, 1)).abs().max()) < 1e-13
    assert int(torch.linalg.matrix_rank(torch.stack(maps))) == 4


def test_products_are_equivariant() -> None:
    weight = draw(5, seed=3)

    def function(x: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        z, y = into(x)
        z, y = multiply_slim(z[:, : y.shape[-1] // 2].contiguous(), y, reference[:, 0, 8])
        return out_of(z, y).split(y.shape[-1] // 2, 1)

    x = draw(5, 8, 9)
    reference = x.new_zeros(5, 1, 9)
    reference[:, 0, 8] = weight
    assert_equivariant(function, x, reference, elements=motions(1.0), act_in=turn, act_out=turn, tolerance=1e-12)


def test_products_are_those_of_the_algebra() -> None:
    x = draw(5, 2, 9)
    z, y = into(x)
    found = out_of(*(t[..., :1] for t in multiply_slim(z, torch.cat([y, 0 * y], -1), torch.ones(5).double())))
    left, right = from_slim(x).unbind(1)
    want = to_slim(PGA.geometric_product(left, right))
    meeting = PGA.outer_product(PGA.grade(right, 1), PGA.grade(left, 1))
    want = want + to_slim(PGA.geometric_product(torch.eye(16, dtype=torch.float64)[1].expand(5, 16), meeting))
    want[..., 0] += 2 * left[..., 14] * right[..., 14]  # w w', where the geometric product has - w w'
    torch.testing.assert_close(found[:, 0], want, rtol=0, atol=1e-13)


def test_products_say_cross_products_and_planes() -> None:
    a, b, p = draw(3), draw(3, seed=1), draw(3, seed=2)
    none = torch.zeros(3, dtype=torch.float64)

    def products(*factors: Tensor) -> tuple[Tensor, ...]:
        x = to_slim(torch.stack(factors))[None]
        z, y = into(x)
        z, y = multiply_slim(z[:, :2].contiguous(), y, torch.ones(1, dtype=torch.float64))
        return from_slim(out_of(z, y)[0]).unbind()

    zero = torch.zeros(16, dtype=torch.float64)
    across, _ = products(embed_plane(a, none), embed_plane(b, p), zero, zero)
    torch.testing.assert_close(across, embed_direction(torch.linalg.cross(a, b)) + (a @ b) * torch.eye(16)[0].double())
    _, plane = products(zero, zero, embed_point(p), embed_direction(a))  # through p, across a; and the way there
    torch.testing.assert_close(plane, embed_plane(a, p) + embed_direction(a))
    _, far = products(zero, zero, embed_plane(a, b), embed_point(p))
    torch.testing.assert_close(far[0], a @ (p - b))


def test_logits_are_those_of_geometric_attention() -> None:
    heads, few, c = 3, 1, 2
    x, s, weights = draw(6, (heads + 2) * c, 9), draw(6, heads + 2, 4, seed=1), draw(heads, c, seed=2).exp()
    z, y = into(x)
    z = torch.cat([z.unflatten(-1, (-1, c)), s], -1).flatten(1)
    q, k, v = attention_features(z, y, weights, 0.1, few)
    multivectors = from_slim(x).unflatten(1, (-1, c)).movedim(1, 0)
    pairs = list(zip(multivectors.split((heads, 1, 1)), s.movedim(1, 0).split((heads, 1, 1)), strict=True))
    _, want = geometric_attention(pairs[0], pairs[1], pairs[2], weights=weights[:, None], epsilon=0.1)
    logits = torch.einsum("nhd,md->hnm", q, k[:, 0]) / (12 * c + 4) ** 0.5
    torch.testing.assert_close(logits.softmax(-1) @ v[:, 0, c : c + 4], want)


@pytest.mark.parametrize(("shift", "tolerance"), [(10.0, 1e-6), (1000.0, 2e-6)])
def test_symmetry(dtype: torch.dtype, shift: float, tolerance: float) -> None:
    net = SlimGATr(2, 1, 3, 2, plan=PLAN, generator=seeded()).to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else tolerance
    s = draw(2, 6, 3, dtype=dtype)
    for versor in motions(shift):
        far = turn(versor, cloud(2, 6, dtype=dtype))
        near = turn(PGA.reverse(versor), far.double()).to(dtype)  # what it came from, after rounding
        (y, t), (x, r) = net(far, s), net(near, s)
        for got, want in ((y.double(), turn(versor, x.double())), (t, r)):
            assert float(((got - want).abs().max() / want.abs().max()).detach()) <= tolerance


def test_many_heads_canonical_references_and_permutations() -> None:
    net = SlimGATr(2, 1, 3, 2, plan=replace(PLAN, attention=AttentionPlan(2, False)), generator=seeded()).double()
    acts = {"act_in": [turn, "invariant"], "act_out": [turn, "invariant"], "tolerance": 1e-11}
    x, s = cloud(6), draw(6, 3)
    assert_equivariant(net, x, s, elements=motions(1.0), **acts)
    fixed = lambda x, s: net(x, s, reference="canonical")  # noqa: E731
    assert_equivariant(fixed, x, s, elements=motions(1.0)[::2], **acts)
    with pytest.raises(AssertionError, match="error"):
        assert_equivariant(fixed, x, s, elements=motions(1.0), **acts)
    flipped = net(x.flip(0), s.flip(0))
    torch.testing.assert_close(flipped[0].flip(0), net(x, s)[0])


# --- shapes, kernels, derivatives -------------------------------------------------------------------------------------


def test_batches_clouds_and_masks() -> None:
    net = SlimGATr(2, 1, 3, 2, plan=PLAN, generator=seeded()).double()
    x, s = cloud(2, 6), draw(2, 6, 3)
    y = net(x, s)[0]
    torch.testing.assert_close(net(x[1], s[1])[0], y[1])
    assert net(x[:0], s[:0])[0].shape == (0, 6, 1, 9)
    both = net(x.flatten(0, 1)[:10], s.flatten(0, 1)[:10], offsets=torch.tensor([0, 6, 10]))
    torch.testing.assert_close(both[0][:6], y[0])
    torch.testing.assert_close(both[1][6:], net(x[1, :4], s[1, :4])[1])
    reference = x.new_ones(1, 1, 9)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).bool()
    masked = net(x[0], s[0], mask=blocks, reference=reference)
    torch.testing.assert_close(masked[1][:2], net(x[0, :2], s[0, :2], reference=reference)[1])
    assert SlimGATr(2, 1, plan=PLAN).double()(x)[1] is None


def test_components_come_and_go() -> None:
    x, p = draw(4, 9), draw(4, 3)
    assert torch.equal(to_slim(from_slim(x)), x)
    assert torch.equal(from_slim(to_slim(embed_point(p))), embed_point(p))
    torch.testing.assert_close(extract_point(from_slim(to_slim(embed_point(p)))), p)


PAIRS: dict[str, tuple[Callable[..., tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]], list[tuple[int, ...]]]] = {
    "products": (multiply_slim, multiply_slim_by_torch, [(5, 38), (8, 5, 76), (5,)]),
    "norm": (normalise, normalise_by_torch, [(5, 7), (8, 5, 3)]),
    "features": (
        lambda z, x, w: attention_features(z, x, w, 0.1, 1),
        lambda z, x, w: features_by_torch(z, x, w, 0.1, 1),
        [(5, 30), (8, 5, 10), (3, 2)],
    ),
    "heads": (lambda x: join_heads(x, 2), lambda x: join_heads_by_torch(x, 2), [(5, 3, 19)]),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_kernels_are_their_twins(name: str, scale: float, dtype: torch.dtype) -> None:
    function, twin, shapes = PAIRS[name]
    inputs = [(scale * draw(*shape, seed=k, dtype=dtype)).requires_grad_() for k, shape in enumerate(shapes)]
    found, want = function(*inputs), twin(*inputs)
    along = [draw(*y.shape, seed=k, dtype=dtype) for k, y in enumerate(want)]
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-5}[dtype]
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    grads = (torch.autograd.grad(y, inputs, along, materialize_grads=True) for y in (found, want))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max() + 1))


def test_derivatives() -> None:
    net = SlimGATr(1, 1, 1, 1, plan=GATrPlan(2, 3, 1, AttentionPlan(2, epsilon=0.1)), generator=seeded())

    def function(points: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        every = {name: p.detach().to(s.dtype) for name, p in net.named_parameters()}
        return functional_call(net, every, (to_slim(embed_point(points[:, None])), s))

    assert_gradients(function, draw(2, 3), draw(2, 1), difference_tolerance=1e-5)


def test_weights_have_gradients() -> None:
    net = SlimGATr(2, 1, 3, 2, plan=PLAN, generator=seeded()).double()
    y, t = net(cloud(6) + 1, draw(6, 3))
    (y.square().sum() + t.square().sum()).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]


@pytest.mark.usefixtures("unchecked")
def test_compiles() -> None:
    net = SlimGATr(2, 1, 3, 2, plan=replace(PLAN, blocks=1), generator=seeded()).double()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(cloud(5), draw(5, 3)), net(cloud(5), draw(5, 3)))


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    net = SlimGATr(2, 1, 3, plan=PLAN)
    for call, message in [
        (lambda: to_slim(torch.ones(9)), "multivectors: expected"),
        (lambda: from_slim(torch.ones(16)), "slim: expected"),
        (lambda: net(torch.ones(5, 2, 16)), "slim: expected a tensor"),
        (lambda: net(torch.ones(5, 2, 9)), "scalars: expected shape"),
        (lambda: SlimGATr(2, 1, plan=PLAN)(torch.ones(5, 2, 9), torch.ones(5, 1)), "scalars: expected None"),
        (lambda: SlimGATr(2, 1, plan=replace(PLAN, dropout=0.1)), "plan: expected channels, scalars, blocks"),
        (lambda: SlimGATr(2, 1, plan=replace(PLAN, tracks={2: 3})), "plan: expected channels, scalars, blocks"),
        (
            lambda: SlimGATr(2, 1, plan=replace(PLAN, attention=AttentionPlan(2, rotary=True))),
            "plan: expected channels",
        ),
        (lambda: SlimGATr(0, 1), "in_channels: expected an integer"),
    ]:
        with pytest.raises(ShapeError, match=message):
            call()
