"""Embeddings: against the golden ones, back again, and moved as what they embed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.clifford import embedding
from geom.clifford.algebra import PGA
from geom.errors import ShapeError
from geom.lie import Rigid, quaternion
from geom.testing import assert_equivariant, assert_gradients
from tests.clifford.drawn import draw

EPS = {torch.float32: 2e-6, torch.float64: 1e-14}


def turns(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return quaternion.random(count, generator=generator, dtype=torch.float64).to(dtype)


def assert_near(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    assert float((got - want).abs().max()) <= EPS[got.dtype] * max(1.0, float(want.abs().max()))


def same_rotation(a: Tensor, b: Tensor) -> None:
    assert_near(quaternion.to_matrix(a), quaternion.to_matrix(b))


def test_embeddings_are_the_golden_ones(data: Path) -> None:
    found = 0
    for path in sorted((data / "clifford").glob("*_golden_*.npz")):
        with np.load(path) as arrays:
            g = {key[4:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("emb/")}
        if not g:
            continue
        found += 1
        points, normals, quat_wxyz, lines = g["points"], g["normals"], g["quats_ijkw"].roll(1, -1), g["pluecker"]
        pairs = {
            "embed_point": embedding.embed_point(points),
            "embed_oriented_plane": embedding.embed_plane(normals, points),
            "embed_reflection": embedding.embed_plane(normals, points),
            "embed_translation": embedding.embed_translation(points),
            "embed_rotation": embedding.embed_rotation(quat_wxyz),
            "embed_pluecker_ray": embedding.embed_line(lines[:, :3], lines[:, 3:]),
            "embed_3d_object": embedding.embed_object(quat_wxyz, points),
            "extract_point": embedding.extract_point(g["mv"]),
            "extract_point_embedding_reg": embedding.point_regulariser(g["mv"])[:, None],
            "extract_rotation_norm": embedding.extract_rotation(g["mv"]).roll(-1, -1),
            "extract_oriented_plane": embedding.extract_plane(g["mv"])[0],
        }
        for key, got in pairs.items():
            torch.testing.assert_close(got, g[key], rtol=1e-6, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    if not found:
        pytest.skip("no goldens of embeddings")


def test_back_again(dtype: torch.dtype) -> None:
    x, y, quat = draw(2, 5, 3, dtype=dtype), draw(2, 5, 3, seed=1, dtype=dtype), turns(10, dtype=dtype).view(2, 5, 4)
    assert torch.equal(embedding.extract_point(embedding.embed_point(x)), x)
    assert torch.equal(embedding.extract_direction(embedding.embed_direction(x)), x)
    assert torch.equal(embedding.extract_scalar(embedding.embed_scalar(x)), x)
    assert torch.equal(embedding.extract_pseudoscalar(embedding.embed_pseudoscalar(x)), x)
    for got, want in zip(embedding.extract_line(embedding.embed_line(x, y)), (x, y), strict=True):
        assert torch.equal(got, want)
    normal, offset = embedding.extract_plane(embedding.embed_plane(x, y))
    assert torch.equal(normal, x)
    assert_near(offset, (x * y).sum(-1))
    same_rotation(embedding.extract_rotation(embedding.embed_rotation(quat)), quat)
    got, translation = embedding.extract_motion(-3 * embedding.embed_motion(quat, x))
    same_rotation(got, quat)
    assert_near(translation, x)
    got, position = embedding.extract_object(embedding.embed_object(quat, x))
    same_rotation(got, quat)
    assert_near(position, x)
    assert not embedding.point_regulariser(embedding.embed_point(x)).any()
    z = draw(2, 5, 3, seed=2, dtype=dtype)
    for got, want in zip(embedding.extract_two_vectors(embedding.embed_two_vectors(x, y, z)), (x, y, z), strict=True):
        assert torch.equal(got, want)


def test_half_turns_come_back() -> None:
    quat = torch.eye(4, dtype=torch.float64)
    got, _ = embedding.extract_object(embedding.embed_object(quat, draw(4, 3)))
    same_rotation(got, quat)


def test_what_is_embedded_moves_with_its_embedding(dtype: torch.dtype) -> None:
    """sandwich(motion, embed(x)) = embed(motion x), for each thing."""
    quat, t = turns(6, dtype=dtype), draw(6, 3, seed=3, dtype=dtype)
    motion, versor = Rigid(quat, t), embedding.embed_motion(quat, t)
    p, v, n = (draw(6, 3, seed=seed, dtype=dtype) for seed in (4, 5, 6))
    moved = motion.apply(p[:, None])[:, 0]
    turned, normal = quaternion.rotate(quat, v), quaternion.rotate(quat, n)
    own = turns(6, seed=9, dtype=dtype)
    after = motion.compose(Rigid(own, p))
    for before, want in (
        (embedding.embed_point(p), embedding.embed_point(moved)),
        (embedding.embed_direction(v), embedding.embed_direction(turned)),
        (embedding.embed_plane(n, p), embedding.embed_plane(normal, moved)),
        (
            embedding.embed_line(v, torch.linalg.cross(p, v)),
            embedding.embed_line(turned, torch.linalg.cross(moved, turned)),
        ),
        (embedding.embed_scalar(p[:, 0]), embedding.embed_scalar(p[:, 0])),
        (embedding.embed_pseudoscalar(p[:, 0]), embedding.embed_pseudoscalar(p[:, 0])),
    ):
        assert_near(PGA.sandwich(versor, before), want)
    assert_near(
        PGA.sandwich(versor[:, None], embedding.embed_object(own, p)),
        embedding.embed_object(after.quat_wxyz, after.translation),
    )
    two = embedding.embed_two_vectors(v, n, p)
    assert_near(PGA.sandwich(versor[:, None], two), embedding.embed_two_vectors(turned, normal, moved))
    assert_near(two[:, 3], embedding.embed_plane(torch.linalg.cross(v, n), p))
    product = PGA.geometric_product(versor, embedding.embed_motion(own, p))
    assert_near(product, embedding.embed_motion(after.quat_wxyz, after.translation))
    assert_near(versor, PGA.geometric_product(embedding.embed_translation(t), embedding.embed_rotation(quat)))


def test_reflections(dtype: torch.dtype) -> None:
    n, p, x, v = (draw(6, 3, seed=seed, dtype=dtype) for seed in range(4))
    n = n / n.norm(dim=-1, keepdim=True)
    mirror = embedding.embed_plane(n, p)

    def reflect(v: Tensor) -> Tensor:
        return v - 2 * (v * n).sum(-1, keepdim=True) * n

    image = p + reflect(x - p)
    got = PGA.sandwich(mirror, embedding.embed_point(x))
    assert_near(got, -embedding.embed_point(image))
    assert_near(embedding.extract_point(got), image)
    assert_near(PGA.sandwich(mirror, embedding.embed_direction(v)), -embedding.embed_direction(reflect(v)))
    assert_near(PGA.sandwich(mirror, embedding.embed_plane(v, x)), embedding.embed_plane(reflect(v), image))
    line = embedding.embed_line(v, torch.linalg.cross(x, v))
    assert_near(PGA.sandwich(mirror, line), -embedding.embed_line(reflect(v), torch.linalg.cross(image, reflect(v))))
    assert_near(PGA.sandwich(mirror, embedding.embed_pseudoscalar(x[:, 0])), -embedding.embed_pseudoscalar(x[:, 0]))


def test_joins_and_meets(dtype: torch.dtype) -> None:
    p, q, r = (draw(6, 3, seed=seed, dtype=dtype) for seed in range(3))
    line = PGA.join(embedding.embed_point(p), embedding.embed_point(q))
    assert_near(line, embedding.embed_line(q - p, torch.linalg.cross(p, q - p)))
    plane = PGA.join(line, embedding.embed_point(r))
    assert_near(plane, -embedding.embed_plane(torch.linalg.cross(q - p, r - p), p))
    planes = [embedding.embed_plane(draw(6, 3, seed=seed, dtype=dtype), p) for seed in (5, 6, 7)]
    meeting = PGA.outer_product(PGA.outer_product(planes[0], planes[1]), planes[2])
    torch.testing.assert_close(embedding.extract_point(meeting), p, rtol=1e-3, atol=1e-4)


def test_extraction_is_equivariant() -> None:
    """From any multivector under motions, as far as the docstrings promise."""
    x, motions = draw(5, 16), Rigid(turns(6), draw(6, 3, seed=1))
    elements = [motions[i] for i in range(6)]

    def act(g: Rigid, x: Tensor) -> Tensor:
        return PGA.sandwich(embedding.embed_motion(g.quat_wxyz, g.translation), x)

    for f, out in (
        (embedding.extract_point, "point"),
        (lambda x: embedding.extract_plane(x)[0], "vector"),
        (lambda x: embedding.extract_line(x)[0], "vector"),
        (embedding.extract_scalar, "invariant"),
        (embedding.point_regulariser, "invariant"),
    ):
        assert_equivariant(f, x, elements=elements, act_in=act, act_out=out, tolerance=1e-11)
    thing = embedding.embed_motion(turns(1)[0], draw(3))
    assert_equivariant(
        lambda x: Rigid(*embedding.extract_motion(x)),
        thing,
        elements=elements,
        act_in=lambda g, x: PGA.geometric_product(embedding.embed_motion(g.quat_wxyz, g.translation), x),
        act_out="pose",
        tolerance=1e-11,
    )


def test_points_far_away_and_no_motion() -> None:
    x = torch.zeros(3, 16, dtype=torch.float64)
    x[:, 13], x[:, 14] = -1, x.new_tensor([0.0, 1e-4, -1e-4])
    assert embedding.extract_point(x).tolist() == [[1000, 0, 0]] * 3
    near = embedding.extract_point(x, threshold=1e-5)[1:, 0]
    torch.testing.assert_close(near, near.new_tensor([1e4, -1e4]))
    quat, translation = embedding.extract_motion(torch.zeros(16))
    assert quat.tolist() == [1, 0, 0, 0] and translation.tolist() == [0, 0, 0]


@pytest.mark.usefixtures("unchecked")
def test_gradients() -> None:
    x, y, quat, any_ = draw(2, 3), draw(2, 3, seed=1), turns(2), draw(2, 16, seed=2)
    for f, inputs in (
        (embedding.embed_plane, (x, y)),
        (embedding.embed_line, (x, y)),
        (embedding.embed_point, (x,)),
        (embedding.embed_direction, (x,)),
        (embedding.embed_motion, (quat, x)),
        (embedding.embed_twist, (draw(2, 6),)),
        (embedding.extract_twist, (any_,)),
        (embedding.embed_two_vectors, (x, y, x)),
        (embedding.extract_point, (any_,)),
        (embedding.extract_rotation, (any_,)),
        (embedding.extract_motion, (any_,)),
        (embedding.extract_line, (any_,)),
        (embedding.extract_plane, (any_,)),
        (embedding.point_regulariser, (any_,)),
    ):
        assert_gradients(f, *inputs, compile=f in (embedding.embed_motion, embedding.extract_motion))
    assert_gradients(embedding.embed_object, quat, x)
    assert_gradients(embedding.extract_object, embedding.embed_object(quat, x) + 0.1 * draw(2, 4, 16), order=1)
    for f in (embedding.extract_point, embedding.extract_rotation, embedding.extract_motion):
        assert_gradients(f, torch.zeros(2, 16), order=0)


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    x, y = draw(5, 3), draw(5, 16)
    for call in (
        lambda: embedding.embed_point(y),
        lambda: embedding.embed_direction(x[:, :2]),
        lambda: embedding.embed_plane(x, x.float()),
        lambda: embedding.embed_plane(x, y),
        lambda: embedding.embed_line(x, y),
        lambda: embedding.embed_rotation(x),
        lambda: embedding.embed_motion(draw(5, 4), y),
        lambda: embedding.embed_object(x, x),
        lambda: embedding.extract_point(x),
        lambda: embedding.extract_motion(x),
        lambda: embedding.extract_rotation(x),
        lambda: embedding.extract_object(draw(5, 2, 16)),
        lambda: embedding.extract_object(draw(16)),
        lambda: embedding.embed_twist(x),
        lambda: embedding.extract_twist(x),
        lambda: embedding.embed_two_vectors(x, x, y),
        lambda: embedding.embed_two_vectors(x, x.float(), x),
        lambda: embedding.extract_two_vectors(draw(5, 2, 16)),
    ):
        with pytest.raises(ShapeError, match="expected"):
            call()
