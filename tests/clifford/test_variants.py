"""Networks of other algebras, without joins or distances, and with tracks: symmetry, and what differs."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from geom.clifford import conformal
from geom.clifford.algebra import CGA, EGA, PGA, STA, Algebra
from geom.clifford.attention import AttentionPlan, SelfAttention
from geom.clifford.bilinear import GeometricBilinear
from geom.clifford.embedding import embed_plane, embed_point
from geom.clifford.gates import GradeDropout
from geom.clifford.gatr import AxialGATr, GATr, GATrPlan
from geom.clifford.linear import EquiLinear
from geom.clifford.norm import EquiLayerNorm
from geom.errors import ShapeError
from geom.lie import quaternion
from geom.testing import assert_equivariant, assert_gradients
from tests.clifford.drawn import draw, seeded

PLAN = GATrPlan(4, 8, 2, AttentionPlan(2))
ALGEBRAS = {"E": EGA, "P": PGA, "C": CGA, "Lorentz": STA}
TRACKS = replace(PLAN, tracks={2: 3, 3: 2})


def versors(algebra: Algebra) -> list[Tensor]:
    """Products of 0 to 4 vectors of squares of both signs, where the algebra has both, none of them nearly null."""
    found = []
    for count in range(5):
        versor = algebra.embed(torch.ones(1, dtype=torch.float64), 0)
        for k in range(count):
            vector = draw(algebra.dimension, seed=10 * count + k)
            if algebra.q and algebra.p > 1:  # few boosts
                vector[-1] *= 0.3
            elif algebra.q:
                vector[0] *= 0.3 if k % 2 else 3
            mirror = algebra.embed(vector)
            mirror = mirror / algebra.norm(mirror)
            versor = algebra.geometric_product(mirror, versor)
        found.append(versor)
    return found


def check_symmetry(net: GATr, channels: int = 2, tolerance: float = 1e-10) -> None:
    algebra = net.plan.algebra
    x, s = 0.5 * draw(2, 5, channels, algebra.size), draw(2, 5, 3, seed=1)
    assert_equivariant(
        net,
        *(x, s),
        elements=versors(algebra),
        act_in=[algebra.sandwich, "invariant"],
        act_out=[algebra.sandwich, "invariant"],
        tolerance=tolerance,
    )


@pytest.mark.parametrize("name", ["E", "C", "Lorentz"])
def test_networks_of_other_algebras(name: str) -> None:
    algebra = ALGEBRAS[name]
    check_symmetry(GATr(2, 1, 3, 2, plan=replace(PLAN, algebra=algebra), generator=seeded()).double())


@pytest.mark.parametrize("join", [False, None])
@pytest.mark.parametrize("distance", [False, None])
def test_projective_networks(join: bool | None, distance: bool | None) -> None:
    plan = replace(PLAN, join=join, attention=AttentionPlan(2, distance=distance))
    net = GATr(2, 1, 3, 2, plan=plan, generator=seeded()).double()
    check_symmetry(net)
    names = [name for name, _ in net.named_parameters()]
    assert any("join" in name for name in names) == (join is None)
    assert any("log_weights" in name for name in names) == (distance is None)


def test_projective_networks_are_the_default() -> None:
    assert PLAN.joins and not replace(PLAN, algebra=EGA).joins
    names = list(GATr(2, 1, 3, 2, plan=PLAN).state_dict())
    assert (
        "blocks.0.attention.attention.log_weights" in names and "blocks.0.mlp.layers.0.linear_join_left.weight" in names
    )
    assert not any("products" in name or "tracks" in name for name in names)


def test_grids_of_other_algebras() -> None:
    net = AxialGATr(2, 1, plan=replace(PLAN, algebra=EGA), rotary=(True, False), generator=seeded()).double()
    x = draw(3, 4, 2, 8)
    elements = versors(EGA)
    assert_equivariant(
        lambda x: net(x)[0], x, elements=elements, act_in=EGA.sandwich, act_out=EGA.sandwich, tolerance=1e-10
    )


def test_distances_are_inner_products_of_conformal_points() -> None:
    """The motions of space are among those of `CGA`: distances alone count, and results move as points do."""
    net = GATr(1, 1, 0, 2, plan=replace(PLAN, algebra=CGA), generator=seeded()).double()
    points, away = draw(5, 3), draw(3, seed=1)
    quat = torch.nn.functional.normalize(draw(4, seed=2), dim=-1)
    y, s = net(conformal.embed_point(points)[:, None])
    z, t = net(conformal.embed_point(quaternion.rotate(quat.expand(5, 4), points) + away)[:, None])
    motion = conformal.embed_motion(quat, away)
    torch.testing.assert_close(t, s, rtol=0, atol=1e-11)
    torch.testing.assert_close(z, CGA.sandwich(motion, y), rtol=0, atol=1e-10)


def test_attention_of_other_algebras_is_its_formula() -> None:
    plan = AttentionPlan(1, increase=1)
    layer = SelfAttention(2, 2, plan=plan, algebra=STA, generator=seeded()).double()
    x = draw(5, 2, 16)
    found = [EquiLinear.forward(own, x)[0] for own in layer.qkv_module.children() if isinstance(own, EquiLinear)]
    logits = STA.inner_product(found[0][:, None], found[1][None]).sum(-1) / math.sqrt(2 * 16)
    values = torch.einsum("nm,mcb->ncb", logits.softmax(-1), found[2])
    torch.testing.assert_close(layer(x)[0], layer.out_linear(values)[0])


@pytest.mark.parametrize("algebra", [EGA, CGA, STA], ids=["E", "C", "Lorentz"])
def test_layers_of_other_algebras(algebra: Algebra, dtype: torch.dtype) -> None:
    x, s = draw(6, 3, algebra.size, dtype=dtype), draw(6, 5, seed=1, dtype=dtype)
    layer = EquiLinear(3, 4, 5, 2, algebra=algebra, generator=seeded()).to(dtype)
    want = torch.einsum("yxa,aij,...xj->...yi", layer.weight, algebra.linear_basis().to(dtype), x)
    assert layer.s2mvs is not None
    want[..., 0] += layer.s2mvs(s)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(layer(x, s)[0], want, rtol=0, atol=tolerance)
    y, _ = EquiLayerNorm(algebra=algebra)(x)
    squares = [algebra.norm(algebra.grade(y, k)).square() for k in range(algebra.dimension + 1)]
    torch.testing.assert_close(torch.stack(squares).sum(0).mean(-1), torch.ones(6, dtype=dtype))
    products = GeometricBilinear(3, 4, algebra=algebra, generator=seeded()).to(dtype)
    left, right = (own(x)[0] for own in (products.linear_left, products.linear_right))
    want = products.linear_out(algebra.geometric_product(left, right))[0]
    torch.testing.assert_close(products(x, None)[0], want, rtol=0, atol=100 * tolerance)
    dropped = GradeDropout(0.5, algebra=algebra, generator=seeded())(
        torch.ones(50, algebra.size, dtype=dtype).reshape(50, 1, -1)
    )[0]
    for k in range(algebra.dimension + 1):
        part = dropped[..., algebra.grade_slice(k)]
        assert bool((part == part[..., :1]).all())


# --- tracks -----------------------------------------------------------------------------------------------------------


def cloud(*shape: int) -> Tensor:
    x = draw(*shape, 3)
    return torch.stack([embed_point(x), embed_plane(draw(*shape, 3, seed=1), x)], -2)


@pytest.mark.parametrize("multi_query", [True, False])
def test_tracks_are_equivariant(multi_query: bool) -> None:
    plan = replace(TRACKS, attention=AttentionPlan(2, multi_query))
    check_symmetry(GATr(2, 1, 3, 2, plan=plan, generator=seeded()).double())


def test_tracks_change_the_result_and_have_gradients() -> None:
    net = GATr(2, 1, 3, 2, plan=TRACKS, generator=seeded()).double()
    x, s = cloud(6), draw(6, 3)
    y, t = net(x, s)
    (y.square().sum() + t.square().sum()).backward()
    own = {name: p.grad for name, p in net.named_parameters() if "products" in name or "tracks" in name}
    own = {name: g for name, g in own.items() if "blocks.0" not in name or name[-1] != "3"}  # none come yet
    assert own and all(
        g is not None and bool(g.abs().sum() > 0) for g in own.values()
    )  # of degree 3 block 0 makes the first
    for name, p in net.named_parameters():
        if name in own:
            before = p.detach().clone()
            with torch.no_grad():
                p.mul_(2)
                assert float((net(x, s)[0] - y).abs().max()) > 1e-9, name
                p.copy_(before)


def test_tracks_of_batches_clouds_and_masks() -> None:
    net = GATr(2, 1, 3, 2, plan=TRACKS, generator=seeded()).double()
    x, s = cloud(2, 5), draw(2, 5, 3)
    y, t = net(x, s)
    torch.testing.assert_close(net(x[1], s[1])[0], y[1])
    both = net(x.flatten(0, 1)[:8], s.flatten(0, 1)[:8], offsets=torch.tensor([0, 5, 8]))
    torch.testing.assert_close(both[0][:5], y[0])
    torch.testing.assert_close(both[1][5:], net(x[1, :3], s[1, :3])[1])
    assert net(x[:0], s[:0])[0].shape == (0, 5, 1, 16)
    mask = torch.ones(5, 5, dtype=torch.bool)
    torch.testing.assert_close(net(x, s, mask=mask)[1], t)
    reinserting = replace(TRACKS, reinsert_channels=(0,), dropout=0.1)
    more = GATr(2, 1, 3, 2, plan=reinserting, generator=seeded()).double().eval()
    check_symmetry(more)


def test_derivatives_of_tracks() -> None:
    net = GATr(1, 1, plan=GATrPlan(2, 2, 1, AttentionPlan(2, epsilon=0.1), tracks={2: 1, 3: 1}), generator=seeded())

    points = draw(2, 3, seed=1)

    def function(normals: Tensor) -> Tensor:
        own = points.to(normals)
        every = {name: p.detach().to(own) for name, p in net.named_parameters()}
        return functional_call(net, every, ((embed_plane(normals, own) + embed_point(own))[:, None],))[0][..., 2:5]

    assert_gradients(function, draw(2, 3), forward=False, vmap=False, difference_tolerance=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    for call, message in [
        (lambda: GATrPlan(algebra=EGA, join=True), "join: expected None or False"),
        (lambda: GATrPlan(algebra=EGA, attention=AttentionPlan(distance=True)), "distance: expected None or False"),
        (lambda: GATrPlan(algebra=Algebra(6)), "algebra: expected at most 5"),
        (lambda: GATrPlan(tracks={3: 2}), "tracks: expected channels of degree 2"),
        (lambda: GATrPlan(tracks={2: 2}, algebra=EGA), "tracks: expected joins"),
        (lambda: AxialGATr(2, 1, plan=TRACKS), "plan: expected no rotary positions"),
        (lambda: GATr(2, 1, plan=replace(TRACKS, attention=AttentionPlan(2, rotary=True))), "plan: expected no rotary"),
        (lambda: GATr(2, 1, plan=replace(PLAN, algebra=EGA))(torch.ones(5, 2, 16)), "multivectors: expected"),
        (lambda: GATr(2, 1, plan=replace(PLAN, join=False))(torch.ones(5, 2, 16), reference="canonical"), "reference:"),
        (lambda: GeometricBilinear(2, 2)(torch.ones(5, 2, 16), None), "reference: expected a tensor"),
        (
            lambda: GeometricBilinear(2, 2, algebra=EGA)(torch.ones(5, 2, 8), None, torch.ones(1, 16)),
            "reference: expec",
        ),
    ]:
        with pytest.raises(ShapeError, match=message):
            call()
