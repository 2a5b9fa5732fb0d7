"""Conformal points, spheres, planes, motions: back again, moved as what they embed, inversions, errors."""

import pytest
import torch
from torch import Tensor

from geom.clifford import conformal, products
from geom.clifford.algebra import CGA
from geom.errors import ShapeError
from geom.lie import quaternion, se3
from geom.testing import assert_gradients
from tests.clifford.drawn import draw

EPS = {torch.float32: 2e-5, torch.float64: 2e-14}


@pytest.fixture(autouse=True)
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products by their torch twins, not to compile kernels of 32 blades."""
    monkeypatch.setattr(products, "_LARGEST", 4)


def assert_near(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    assert float((got - want).abs().max()) <= EPS[got.dtype] * max(1.0, float(want.abs().max()))


def test_back_again_and_products(dtype: torch.dtype) -> None:
    p, x, square, offset = (draw(5, *shape, seed=i, dtype=dtype) for i, shape in enumerate(((3,), (3,), (), ())))
    point, sphere, plane = conformal.embed_point(p), conformal.embed_sphere(p, square), conformal.embed_plane(p, offset)
    assert_near(conformal.extract_point(-3 * point), p)
    for got, want in zip(conformal.extract_sphere(0.5 * sphere), (p, square), strict=True):
        assert_near(got, want)
    for got, want in zip(conformal.extract_plane(plane), (p, offset), strict=True):
        assert torch.equal(got, want)
    other, apart = conformal.embed_point(x), (x - p).square().sum(-1)
    assert_near(CGA.inner_product(point, other), -apart / 2)
    assert_near(CGA.inner_product(sphere, other), (square - apart) / 2)
    assert_near(CGA.inner_product(sphere, sphere), square)
    assert_near(CGA.inner_product(plane, other), (p * x).sum(-1) - offset)
    assert conformal.extract_point(plane).isfinite().all()


def test_what_is_embedded_moves_with_its_embedding(dtype: torch.dtype) -> None:
    q = quaternion.random(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    t, x, square = draw(5, 3, dtype=dtype), draw(5, 3, seed=1, dtype=dtype), draw(5, seed=2, dtype=dtype)
    versor, moved, turned = conformal.embed_motion(q, t), se3.apply(q, t, x[:, None])[:, 0], quaternion.rotate(q, x)
    assert_near(CGA.sandwich(versor, conformal.embed_sphere(x, square)), conformal.embed_sphere(moved, square))
    want = conformal.embed_plane(turned, square + (turned * t).sum(-1))
    assert_near(CGA.sandwich(versor, conformal.embed_plane(x, square)), want)
    quat, translation = conformal.extract_motion(-2 * versor)
    assert_near(quaternion.to_matrix(quat), quaternion.to_matrix(q))
    assert_near(translation, t)
    after = se3.compose(q, t, q.flip(0), x)
    assert_near(CGA.geometric_product(versor, conformal.embed_motion(q.flip(0), x)), conformal.embed_motion(*after))
    again = CGA.exp(CGA.log(versor))
    assert_near(again * torch.where(versor[:, :1] < 0, -1.0, 1.0).to(dtype), versor)


def test_inversions_and_reflections() -> None:
    x, c, n, offset = draw(5, 3), draw(5, 3, seed=1), draw(5, 3, seed=2), draw(5, seed=3)
    square = draw(5, seed=4).square() + 0.5
    away = x - c
    got = CGA.sandwich(conformal.embed_sphere(c, square), conformal.embed_point(x))
    assert_near(conformal.extract_point(got), c + away * (square / away.square().sum(-1))[:, None])
    got = CGA.sandwich(conformal.embed_plane(n, offset), conformal.embed_point(x))
    share = 2 * ((x * n).sum(-1) - offset) / n.square().sum(-1)
    assert_near(conformal.extract_point(got), x - share[:, None] * n)


@pytest.mark.usefixtures("unchecked")
def test_gradients() -> None:
    x, square, any_ = draw(1, 3), draw(1), draw(1, 32)
    for f, inputs in (
        (conformal.embed_sphere, (x, square)),
        (conformal.extract_sphere, (any_,)),
        (conformal.extract_plane, (any_,)),
    ):
        assert_gradients(f, *inputs, compile=f == conformal.embed_sphere)
    assert_gradients(lambda q, t: conformal.extract_motion(conformal.embed_motion(q, t)), draw(1, 4), x, order=1)
    for f in (conformal.extract_sphere, conformal.extract_motion):
        assert_gradients(f, torch.zeros(1, 32), order=0, forward=False, vmap=False)


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    x = draw(5, 3)
    for call in (
        lambda: conformal.embed_point(x[:, :2]),
        lambda: conformal.embed_sphere(x, x),
        lambda: conformal.embed_sphere(x, x[:, 0].float()),
        lambda: conformal.embed_plane(x, x[:2, 0]),
        lambda: conformal.embed_motion(x, x),
        lambda: conformal.extract_point(x),
        lambda: conformal.extract_motion(draw(16)),
    ):
        with pytest.raises(ShapeError, match="expected"):
            call()
