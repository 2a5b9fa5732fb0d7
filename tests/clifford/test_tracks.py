"""Tracks of degree 2 and 3: their components and couplings against e3nn, symmetry of the layers, derivatives."""

import pytest
import torch
from e3nn import o3
from torch import Tensor
from torch.func import functional_call

from geom.clifford.algebra import PGA
from geom.clifford.tracks import TrackHeads, TrackProducts, check_tracks, coupling, harmonics, normalise_tracks
from geom.errors import ShapeError
from geom.testing import assert_equivariant, assert_gradients
from tests.clifford.drawn import draw, motions, seeded

SIZES = {2: 3, 3: 2}


def turn(versor: Tensor, x: Tensor) -> Tensor:
    """Planes (16, ..., C)."""
    return PGA.sandwich(versor, x.movedim(0, -1)).movedim(-1, 0)


def turn_tracks(versor: Tensor, t: Tensor) -> Tensor:
    """Planes (2 l + 1, ..., C), as harmonics turn when a versor turns normals."""
    matrix = PGA.sandwich(versor, torch.eye(16, dtype=torch.float64)[2:5])[:, 2:5]
    v, degree = draw(20, 3, seed=9), len(t) // 2
    turned = torch.linalg.lstsq(harmonics(v, degree), harmonics(v @ matrix, degree)).solution
    return torch.einsum("ji,j...->i...", turned, t)


@pytest.mark.parametrize("degree", [2, 3])
def test_harmonics_are_those_of_e3nn(degree: int, dtype: torch.dtype) -> None:
    v = draw(4, 5, 3, dtype=dtype)
    want = o3.spherical_harmonics(degree, v, normalize=False, normalization="norm")
    torch.testing.assert_close(harmonics(v, degree), want)
    assert harmonics(torch.zeros(0, 3), degree).shape == (0, 2 * degree + 1)


@pytest.mark.parametrize("degrees", [(1, 1, 2), (1, 2, 1), (1, 2, 3), (2, 2, 0), (2, 2, 2), (2, 3, 3), (3, 3, 2)])
def test_couplings_are_those_of_e3nn(degrees: tuple[int, int, int]) -> None:
    found, want = coupling(*degrees), o3.wigner_3j(*degrees, dtype=torch.float64) * (2 * degrees[2] + 1) ** 0.5
    sign = 1 if (found * want).sum() > 0 else -1
    torch.testing.assert_close(found, sign * want, rtol=0, atol=1e-14)


def test_products_of_a_vector_are_its_harmonics() -> None:
    v = draw(3)
    square = torch.einsum("ijk,i,j->k", coupling(1, 1, 2), v, v)
    cube = torch.einsum("ijk,i,j->k", coupling(1, 2, 3), v, square)
    for found, degree in ((square, 2), (cube, 3)):
        want = harmonics(v, degree)
        torch.testing.assert_close(found / found.norm(), want / want.norm())


@pytest.mark.parametrize("begin", [False, True])
def test_products_are_equivariant(begin: bool) -> None:
    layer = TrackProducts(4, 5, SIZES, begin=begin, generator=seeded()).double()

    def function(x: Tensor, s: Tensor, two: Tensor, three: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        tracks = {} if begin else {2: two, 3: three}
        change, more, new = layer(x, s, tracks, reference[14, ..., 0].expand(6))
        return change, more, *new.values()

    inputs = draw(16, 6, 4), draw(6, 5, seed=1), draw(5, 6, 3, seed=2), draw(7, 6, 2, seed=3), draw(16, 1, 1, seed=4)
    assert_equivariant(
        function,
        *inputs,
        elements=motions(),
        act_in=[turn, "invariant", turn_tracks, turn_tracks, turn],
        act_out=[turn, "invariant", turn_tracks, turn_tracks],
        tolerance=1e-12,
    )
    sizes = [float(y.detach().abs().max()) for y in function(*inputs)]
    assert [size > 0.01 for size in sizes] == ([False, False, True, False] if begin else [True] * 4)


def test_attention_is_equivariant() -> None:
    layer = TrackHeads(SIZES, heads=2, few=1, increase=2, generator=seeded()).double()

    def function(two: Tensor, three: Tensor) -> tuple[Tensor, ...]:
        queries, keys, values = layer.split(normalise_tracks({2: two, 3: three}))
        weights = torch.einsum("nhd,md->hnm", queries, keys[:, 0]).softmax(-1)
        return weights, *layer.join(torch.einsum("hnm,md->nhd", weights, values[:, 0])).values()

    actions = [turn_tracks, turn_tracks]
    assert_equivariant(
        function,
        *(draw(5, 6, 3), draw(7, 6, 2, seed=1)),
        elements=motions(),
        act_in=actions,
        act_out=["invariant", *actions],
        tolerance=1e-12,
    )


def test_norm_has_size_one_or_a_floor(dtype: torch.dtype) -> None:
    t = {2: draw(5, 6, 3, dtype=dtype), 3: 1e-3 * draw(7, 6, 2, dtype=dtype)}
    found = normalise_tracks(t)
    torch.testing.assert_close(found[2].square().sum(0).mean(-1), torch.ones(6, dtype=dtype))
    torch.testing.assert_close(found[3], 10 * t[3])


def test_derivatives() -> None:
    layer = TrackProducts(1, 2, {2: 1, 3: 1}, generator=seeded())

    def function(x: Tensor, s: Tensor, two: Tensor, three: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        every = {name: p.detach().to(x.dtype) for name, p in layer.named_parameters()}
        change, more, new = functional_call(layer, every, (x, s, {2: two, 3: three}, weight))
        return change, more, *new.values()

    assert_gradients(function, draw(16, 1, 1), draw(1, 2), draw(5, 1, 1), draw(7, 1, 1), draw(1))


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    for call, message in [
        (lambda: check_tracks({3: 4}), "tracks: expected channels of degree 2"),
        (lambda: check_tracks({2: 4, 4: 1}), "tracks: expected one of 2, 3, got int 4"),
        (lambda: check_tracks({2: 0}), "tracks.2.: expected an integer of at least 1"),
        (lambda: harmonics(torch.ones(3), 1), "degree: expected one of 2, 3"),
        (lambda: harmonics(torch.ones(2), 2), "vector: expected a tensor"),
        (lambda: coupling(1, 1, 1), "a, b and c: expected a triangle"),
    ]:
        with pytest.raises(ShapeError, match=message):
            call()
