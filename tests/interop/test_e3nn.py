"""e3nn: quaternions and l = 1 irreps are ours as they are; angles there and back, singular ones included."""

import math

import pytest
import torch
from e3nn import o3

from geom.clifford import CGA, EGA, PGA, STA, Algebra, embedding
from geom.errors import ShapeError
from geom.interop import from_e3nn, irreps_to_multivectors, multivectors_to_irreps, to_e3nn
from geom.lie import quaternion


@pytest.fixture
def turns() -> torch.Tensor:
    """Rotations (31, 4) float64, beta = 0 and beta = pi among them."""
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, torch.eye(4, dtype=torch.float64), torch.tensor([[1.0, 0, 2, 0], [0, 3, 0, 1], [1, 1e-9, 0, 0]])])
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def test_quaternions_and_vectors_need_no_conversion(turns: torch.Tensor) -> None:
    R = quaternion.to_matrix(turns)
    assert (o3.quaternion_to_matrix(turns[:24]) - R[:24]).abs().max() < 1e-14
    angles = o3.quaternion_to_angles(turns[:24])
    assert (o3.Irreps("1o").D_from_angles(*angles) - R[:24]).abs().max() < 2e-6  # e3nn's tables are float32


def test_angles_there(turns: torch.Tensor, dtype: torch.dtype) -> None:
    R = quaternion.to_matrix(turns)
    alpha, beta, gamma = to_e3nn(turns.to(dtype))
    assert alpha.dtype == dtype and (beta >= 0).all() and (beta <= math.pi + 1e-6).all()
    there = o3.angles_to_matrix(alpha.double(), beta.double(), gamma.double())
    assert (there - R).abs().max() < (1e-14 if dtype == torch.float64 else 2e-6)
    D = o3.Irreps("1o").D_from_angles(alpha.double(), beta.double(), gamma.double())
    assert (D - R).abs().max() < 2e-6


def test_angles_are_those_of_e3nn(turns: torch.Tensor) -> None:
    want = torch.stack(o3.quaternion_to_angles(turns[:24]), -1)
    off = torch.stack(to_e3nn(turns[:24]), -1) - want
    assert torch.remainder(off + 1, 2 * math.pi).sub(1).abs().max() < 1e-12  # a turn more is the same angle


def test_angles_back(turns: torch.Tensor) -> None:
    back = from_e3nn(*to_e3nn(turns))
    assert (quaternion.to_matrix(back) - quaternion.to_matrix(turns)).abs().max() < 2e-15 and (back[:, 0] >= 0).all()
    alpha, beta, gamma = (torch.linspace(-2, 3, 7, dtype=torch.float64) + i for i in range(3))
    want = o3.angles_to_quaternion(alpha, beta, gamma)
    got = from_e3nn(alpha, beta, gamma)
    assert ((got * want).sum(-1).abs() - 1).abs().max() < 1e-14
    assert from_e3nn(alpha[:, None], beta, gamma).shape == (7, 7, 4)


def test_gradients_are_finite_where_those_of_e3nn_are_not(dtype: torch.dtype) -> None:
    q = torch.eye(4, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(torch.stack(to_e3nn(q)).sum(), q)
    assert torch.isfinite(grad).all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"quat_wxyz: expected a tensor \(..., 4\)"):
        to_e3nn(torch.zeros(3))


@pytest.mark.parametrize("algebra", [EGA, PGA], ids=["EGA", "PGA"])
def test_multivectors_turn_as_irreps(algebra: Algebra, dtype: torch.dtype) -> None:
    """Under rotations and reflections about the origin; with translations the parts with e0 take from those without."""
    seed = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, algebra.size, generator=seed, dtype=dtype)
    features = multivectors_to_irreps(x, algebra)
    count = 3 * (1 + algebra.r)
    irreps = o3.Irreps(f"{count}x0e + {count}x1o + {count}x1e + {count}x0o")
    assert features.dtype == dtype and features.shape == (2, irreps.dim)
    assert torch.equal(irreps_to_multivectors(features, algebra), x)
    versor, matrix = torch.eye(algebra.size, dtype=dtype)[0], torch.eye(3, dtype=dtype)
    for _ in range(3):  # one, two and three reflections
        n = torch.nn.functional.normalize(torch.randn(3, generator=seed, dtype=dtype), dim=0)
        mirror = torch.nn.functional.pad(n, (1 + algebra.r, algebra.size - 4 - algebra.r))
        versor = algebra.geometric_product(mirror, versor)
        matrix = (torch.eye(3, dtype=dtype) - 2 * torch.outer(n, n)) @ matrix
        want = features @ irreps.D_from_matrix(matrix).to(dtype).mT
        torch.testing.assert_close(
            multivectors_to_irreps(algebra.sandwich(versor, x), algebra), want, rtol=1e-5, atol=1e-5
        )


def test_a_point_as_irreps() -> None:
    point = torch.tensor([1.0, 2, 3])
    features = multivectors_to_irreps(embedding.embed_point(point)[None])
    of_zero, of_one = features[11:14], features[14]  # 2x0e + 2x1o + 2x1e + 2x0o: the second 1e, the first 0o
    assert torch.equal(-of_one * of_zero, point)


@pytest.mark.usefixtures("unchecked")
def test_wrong_multivectors() -> None:
    for call in (
        lambda: multivectors_to_irreps(torch.zeros(16)),
        lambda: multivectors_to_irreps(torch.zeros(2, 8)),
        lambda: multivectors_to_irreps(torch.zeros(2, 16), STA),
        lambda: irreps_to_multivectors(torch.zeros(24)),
        lambda: irreps_to_multivectors(torch.zeros(16), CGA),
    ):
        with pytest.raises(ShapeError, match="expected"):
            call()
