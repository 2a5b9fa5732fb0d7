"""`GATr` and `AxialGATr`: symmetry near and far from the origin, shapes, masks, reinserted channels, derivatives."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from geom.clifford.algebra import PGA
from geom.clifford.attention import AttentionPlan
from geom.clifford.embedding import embed_plane, embed_point
from geom.clifford.gatr import AxialGATr, GATr, GATrPlan
from geom.clifford.reference import centre_of, join_reference, translate
from geom.errors import ShapeError
from geom.testing import assert_equivariant, assert_gradients
from tests.clifford.drawn import draw, motions, mover, seeded

PLAN = GATrPlan(4, 8, 2, AttentionPlan(2))


def turn(versor: Tensor, x: Tensor) -> Tensor:
    return PGA.sandwich(versor, x.double()).to(x.dtype)


def points(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Two channels: points, and planes through them."""
    x = draw(*shape, 3)
    return torch.stack([embed_point(x), embed_plane(draw(*shape, 3, seed=1), x)], -2).to(dtype)


# --- symmetry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_symmetry(dtype: torch.dtype, shift: float) -> None:
    net = GATr(2, 1, 3, 2, plan=PLAN, generator=seeded()).to(dtype)
    assert_equivariant(
        net,
        *(points(2, 6, dtype=dtype), draw(2, 6, 3, dtype=dtype)),
        elements=motions(shift),
        act_in=[turn, "invariant"],
        act_out=[turn, "invariant"],
        tolerance={torch.float64: 1e-12, torch.float32: 1e-6}[dtype],
    )


@pytest.mark.parametrize("shift", [100.0, 1000.0])
def test_symmetry_far_away(dtype: torch.dtype, shift: float) -> None:
    # far numbers are rounded: the near ones are those that they came from after rounding
    net = GATr(2, 1, 3, 2, plan=PLAN, generator=seeded()).to(dtype)
    s = draw(2, 6, 3, dtype=dtype)
    for versor in motions(shift):
        far = turn(versor, points(2, 6, dtype=dtype))
        near = turn(PGA.reverse(versor), far.double()).to(dtype)
        (y, t), (x, r) = net(far, s), net(near, s)
        want = turn(versor, x.double())
        tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}[dtype]
        for got, expected in ((y.double(), want), (t, r)):
            error = (got - expected).abs().max() / expected.abs().max()
            assert float(error.detach()) <= tolerance


@pytest.mark.parametrize("shift", [10.0, 1000.0])
def test_scalars_do_not_change_but_for_the_rounding_of_the_input(dtype: torch.dtype, shift: float) -> None:
    net = GATr(1, 1, 0, 2, plan=PLAN, generator=seeded()).to(dtype)
    near = (64 * draw(6, 3)).round() / 64  # numbers that the shift leaves exact in float32
    x = [embed_point(near + move).to(dtype)[:, None] for move in (0, shift)]
    got = [net(y)[1] for y in x]
    assert float((got[0] - got[1]).detach().abs().max()) <= {torch.float64: 1e-13, torch.float32: 1e-6}[dtype] * float(
        got[0].detach().abs().max()
    )


def test_any_multivectors() -> None:
    net = GATr(3, 2, plan=PLAN, generator=seeded()).double()
    x = draw(2, 5, 3, 16)
    assert_equivariant(lambda x: net(x)[0], x, elements=motions(1.0), act_in=turn, act_out=turn, tolerance=1e-10)


def test_canonical_reference_is_for_proper_motions() -> None:
    net = GATr(2, 1, plan=PLAN, generator=seeded()).double()

    def function(x: Tensor) -> Tensor:
        return net(x, reference="canonical")[0]

    x = points(2, 5)
    assert_equivariant(function, x, elements=motions(1.0, False), act_in=turn, act_out=turn, tolerance=1e-11)
    with pytest.raises(AssertionError, match="error"):
        assert_equivariant(function, x, elements=motions(1.0), act_in=turn, act_out=turn, tolerance=1e-6)


def test_grids_are_equivariant() -> None:
    net = AxialGATr(2, 1, 3, 2, plan=PLAN, rotary=(True, False), generator=seeded()).double()
    assert_equivariant(
        net,
        *(points(2, 3, 4), draw(2, 3, 4, 3)),
        elements=motions(10.0),
        act_in=[turn, "invariant"],
        act_out=[turn, "invariant"],
        tolerance=1e-11,
    )


def test_permutations() -> None:
    net = GATr(2, 1, 3, 2, plan=PLAN, generator=seeded()).double()
    orders = [torch.arange(6).flip(0), torch.arange(6).roll(2)]
    act = lambda order, x: x[order]  # noqa: E731
    assert_equivariant(net, points(6), draw(6, 3), elements=orders, act_in=act, act_out=act, tolerance=1e-12)


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_batches_are_optional_and_samples_apart() -> None:
    net = GATr(2, 1, 3, 2, plan=PLAN, generator=seeded()).double()
    x, s = points(2, 3, 6), draw(2, 3, 6, 3)
    y, t = net(x, s)
    for a in range(2):
        for b in range(3):
            own = net(x[a, b], s[a, b])
            torch.testing.assert_close(own[0], y[a, b])
            torch.testing.assert_close(own[1], t[a, b])
    assert net(x[0, 0, :1], s[0, 0, :1])[0].shape == (1, 1, 16)
    assert net(x[:0], s[:0])[0].shape == (0, 3, 6, 1, 16)
    apart = x.transpose(0, 1)
    torch.testing.assert_close(net(apart, s.transpose(0, 1))[0].transpose(0, 1), y)


def test_grids() -> None:
    net = AxialGATr(2, 1, 3, 2, plan=replace(PLAN, blocks=3), generator=seeded()).double()
    x, s = points(2, 3, 4), draw(2, 3, 4, 3)
    y, t = net(x, s)
    own = net(x[1], s[1])
    torch.testing.assert_close(own[0], y[1])
    torch.testing.assert_close(own[1], t[1])
    first = AxialGATr(2, 1, 3, 2, plan=replace(PLAN, blocks=1), generator=seeded()).double()
    moved = x.clone()
    moved[:, 0, 1, 0, :5] += 1  # no trivector: reference and centre stay
    change = (first(moved, s)[0] - first(x, s)[0]).abs().amax((0, -1, -2)) > 1e-9
    assert bool(change[0].all()) and not bool(change[1:].any())  # along j alone
    with_places = AxialGATr(2, 1, 3, 2, plan=PLAN, rotary=(False, True), generator=seeded()).double()
    assert with_places.blocks[0].attention.plan.rotary and not with_places.blocks[1].attention.plan.rotary


def test_masks_and_positions_in_grids(dtype: torch.dtype) -> None:
    net = AxialGATr(2, 1, 3, 2, plan=replace(PLAN, blocks=3), rotary=(True, True), generator=seeded()).to(dtype)
    x, s, reference = points(2, 5, 4, dtype=dtype), draw(2, 5, 4, 3, dtype=dtype), draw(1, 1, 1, 16, dtype=dtype)
    along_i = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).bool()
    along_j = torch.block_diag(torch.ones(1, 1), torch.ones(3, 3)).bool()
    y, t = net(x, s, masks=(along_i, along_j), reference=reference)
    for i in (slice(0, 2), slice(2, 5)):
        for j in (slice(0, 1), slice(1, 4)):
            own = net(x[:, i, j], s[:, i, j], reference=reference)  # positions are relative
            for got, want in ((y[:, i, j], own[0]), (t[:, i, j], own[1])):
                torch.testing.assert_close(got, want, rtol=0, atol={torch.float32: 2e-5, torch.float64: 1e-12}[dtype])
    assert float((net(x, s, reference=reference)[1] - t).detach().abs().max()) > 1e-6


def test_masks() -> None:
    net = GATr(2, 1, 3, 2, plan=PLAN, generator=seeded()).double()
    x, s, reference = points(6), draw(6, 3), draw(1, 1, 16)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).bool()
    y, t = net(x, s, mask=blocks, reference=reference)
    for part in (slice(0, 2), slice(2, 6)):
        own = net(x[part], s[part], reference=reference)
        torch.testing.assert_close(own[0], y[part])
        torch.testing.assert_close(own[1], t[part])
    added = torch.where(blocks, 0.0, -math.inf).double()
    torch.testing.assert_close(net(x, s, mask=added, reference=reference)[0], y)
    y, _ = net(x, s, mask=torch.zeros(6, 6, dtype=torch.bool))
    assert bool(torch.isfinite(y).all())


def test_reinserted_channels_change_the_result() -> None:
    x, s = points(6), draw(6, 3)
    for name in ("reinsert_channels", "reinsert_scalars"):
        for index in (0, 1):
            net = GATr(2, 1, 3, 2, plan=replace(PLAN, **{name: (index,)}), generator=seeded()).double()
            y = net(x, s)[0]
            other = GATr(2, 1, 3, 2, plan=replace(PLAN, **{name: (1 - index,)}), generator=seeded()).double()
            assert float((other(x, s)[0] - y).detach().abs().max()) > 1e-7, (name, index)


def test_number_of_parameters_is_that_of_the_n_body_model() -> None:
    net = GATr(1, 1, 1, 1, plan=GATrPlan())
    assert sum(p.numel() for p in net.parameters()) == 2_209_058


# --- centres and references -------------------------------------------------------------------------------------------


def test_centre_is_that_of_points() -> None:
    x = points(2, 6)
    want = draw(2, 6, 3).mean(1)
    torch.testing.assert_close(centre_of(x)[:, 0, 0], want)
    torch.testing.assert_close(centre_of(-x)[:, 0, 0], want)
    assert bool((centre_of(x[..., 1:, :]) == 0).all())  # planes alone
    torch.testing.assert_close(centre_of(x, axes=2)[0, 0, 0], want.mean(0))


def test_references() -> None:
    x = points(2, 3, 4)
    torch.testing.assert_close(join_reference(x)[1, 2, 0, 0], x[1, 2].mean((0, 1)))
    torch.testing.assert_close(join_reference(x, axes=2)[1, 0, 0, 0], x[1].mean((0, 1, 2)))
    assert join_reference(x, "canonical").flatten().tolist() == [0.0] * 14 + [1.0, 1.0]


def test_translation_is_the_sandwich() -> None:
    x, t = draw(5, 16), draw(5, 3)
    want = torch.stack([PGA.sandwich(mover(b), a) for a, b in zip(x, t, strict=True)])
    torch.testing.assert_close(translate(x, t), want)


# --- derivatives ------------------------------------------------------------------------------------------------------


def test_derivatives() -> None:
    net = GATr(1, 1, 1, 1, plan=GATrPlan(2, 4, 1, AttentionPlan(2, epsilon=0.1)), generator=seeded())

    def function(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        every = {name: p.detach().to(x.dtype) for name, p in net.named_parameters()}
        return functional_call(net, every, (x[:, None], s))

    assert_gradients(function, embed_point(draw(2, 3)), draw(2, 1), difference_tolerance=1e-5)


def test_centre_has_no_part_in_gradients() -> None:
    net = GATr(2, 1, plan=PLAN, generator=seeded()).double()
    grads = []
    for shift in (0.0, 5.0):
        x = points(6)
        away = torch.tensor([shift, -shift, 1], dtype=torch.float64)
        local = x.requires_grad_()
        out = translate(net(translate(local, away))[0], -away)
        grads.append(torch.autograd.grad(out.square().sum(), local)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("unchecked")
def test_compiles() -> None:
    net = GATr(2, 1, 3, 2, plan=replace(PLAN, blocks=1), generator=seeded()).double()
    args = points(5), draw(5, 3)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), net(*args))


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    net = GATr(2, 1, 3, plan=PLAN)
    for call, message in [
        (lambda: net(torch.ones(2, 16)), "multivectors: expected a tensor"),
        (lambda: net(torch.ones(5, 3, 16)), r"multivectors: expected a tensor \(..., n, 2, 16\)"),
        (lambda: net(torch.ones(5, 2, 16), torch.ones(4, 3)), "scalars: expected shape"),
        (lambda: net(torch.ones(5, 2, 16), reference="mean"), "kind: expected one of"),
        (lambda: net(torch.ones(5, 2, 16), reference=torch.ones(3, 1, 16)), "reference: expected to broadcast"),
        (lambda: net(torch.ones(5, 2, 16), offsets=torch.tensor([0, 4])), "offsets: expected to rise"),
        (lambda: net(torch.ones(5, 5, 2, 16), offsets=torch.tensor([0, 5])), "offsets: expected to come with"),
        (lambda: GATr(2, 1, plan=replace(PLAN, reinsert_channels=(2,))), "reinsert_channels: expected indices"),
        (lambda: AxialGATr(2, 1, plan=replace(PLAN, reinsert_channels=(0,))), "plan: expected no rotary"),
        (lambda: AxialGATr(2, 1)(torch.ones(5, 2, 16)), r"multivectors: expected a tensor \(..., i, j, 2, 16\)"),
        (lambda: AxialGATr(2, 1)(torch.ones(5, 4, 2, 16), offsets=torch.tensor([0, 5])), "offsets: expected None"),
        (lambda: GATrPlan(channels=0), "channels: expected an integer"),
    ]:
        with pytest.raises(ShapeError, match=message):
            call()
