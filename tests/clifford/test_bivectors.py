"""`Algebra.exp` and `Algebra.log`: against matrix exponentials and geom.lie, inverse to each other, singular points."""

import pytest
import torch
from torch import Tensor

from geom.clifford import embedding, products
from geom.clifford.algebra import CGA, EGA, PGA, STA, Algebra
from geom.errors import ShapeError
from geom.lie import quaternion, se3
from geom.testing import assert_equivariant, assert_gradients

EPS = {torch.float32: 4e-6, torch.float64: 1e-14}
ALGEBRAS = [
    Algebra(2),
    EGA,
    Algebra(1, 1, 1),
    PGA,
    STA,
    Algebra(4),
    Algebra(2, 0, 2),
    CGA,
    Algebra(3, 1, 1),
    Algebra(5),
]


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products by their torch twins, not to compile kernels for every algebra."""
    monkeypatch.setattr(products, "_LARGEST", 0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bivectors(algebra: Algebra, seed: int = 0) -> Tensor:
    """Of sizes that cross from each formula to the next, with single blades and pairs of equal ones."""
    parts = draw(14, len(algebra.blades[algebra.grade_slice(2)]), seed=seed)
    parts = parts * torch.logspace(-4, 0.3, 14, dtype=torch.float64)[:, None]
    parts[10, 1:] = 0
    parts[11, 1:-1], parts[11, -1] = 0, parts[11, 0]
    return algebra.embed(parts, 2)


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("algebra", ALGEBRAS, ids=lambda a: f"G{a.p}{a.q}{a.r}")
def test_exponentials_and_logarithms(algebra: Algebra, dtype: torch.dtype) -> None:
    b = bivectors(algebra).to(dtype)
    got = algebra.exp(b)
    left = torch.einsum("ijk,nj->nik", algebra.table("geometric").double(), b.double())
    want = torch.linalg.matrix_exp(left)[..., 0]
    sizes = want.abs().amax(-1, keepdim=True)
    assert got.dtype == dtype and float(((got - want).abs() / sizes).max()) <= EPS[dtype]
    # there and back: the least logarithm of M or -M
    log = algebra.log(got)
    positive = torch.where(want[:, :1] < 0, -want, want)
    assert float(((algebra.exp(log) - positive).abs() / sizes).max()) <= 4 * EPS[dtype]
    assert torch.equal(algebra.log(-got[want[:, 0].abs() > 1e-3]), log[want[:, 0].abs() > 1e-3])
    small = b[:9]
    torch.testing.assert_close(log[:9], small, rtol=EPS[dtype], atol=EPS[dtype])


@pytest.mark.usefixtures("twin")
def test_two_planes_turn_by_up_to_pi_in_all() -> None:
    """Commuting turns by 2 a and 2 b of G(4,0,0): log gives them back for a + b <= pi, also where a = b."""
    algebra = Algebra(4)
    for a, b in ((1.5, 1.5), (2.5, 0.5), (0.3, -2.8), (1e-3, 1e-3), (3.1, 0.0), (1.0, 2.14)):
        turn = algebra.embed(torch.tensor([a, 0, 0, 0, 0, b], dtype=torch.float64), 2)
        versor = algebra.exp(turn)
        log = algebra.log(versor)
        torch.testing.assert_close(algebra.exp(log).abs(), versor.abs(), rtol=0, atol=1e-13)
        if versor[0] > 0:
            torch.testing.assert_close(log, turn, rtol=0, atol=1e-12)
    everything = torch.eye(16, dtype=torch.float64)[15]
    assert not algebra.log(everything).any() and not CGA.log(torch.eye(32)[-3]).any()


def test_motors_are_those_of_se3(dtype: torch.dtype) -> None:
    twist = 2 * draw(20, 6).to(dtype)
    twist[:2] *= 1e-6
    twist[2], twist[3, 3:], twist[4, :3] = 0, 0, 0
    twist[5, 3:] *= torch.pi / twist[5, 3:].norm()
    bivector = embedding.embed_twist(twist)
    assert torch.equal(embedding.extract_twist(bivector), twist)
    quat, translation = se3.exp(twist)
    motor = embedding.embed_motion(quat, translation)
    assert float((PGA.exp(bivector) - motor).abs().max()) <= EPS[dtype]
    got = embedding.extract_twist(PGA.log(motor))
    assert float((got - se3.log(quat, translation)).abs().max()) <= 4 * EPS[dtype]
    rotor = EGA.embed(draw(3, seed=1).to(dtype), 2)
    half = torch.stack([-rotor[6], rotor[5], -rotor[4]])  # e12, e13, e23 of G(3,0,0) at 4, 5, 6
    turned = EGA.sandwich(EGA.exp(rotor), EGA.embed(torch.eye(3, dtype=dtype)))
    torch.testing.assert_close(EGA.extract(turned).mT, quaternion.to_matrix(quaternion.exp(2 * half)))


def test_half_turns() -> None:
    """Scalar 0: of both turns by pi the one of the sign given."""
    motor = embedding.embed_motion(torch.eye(4, dtype=torch.float64)[1:], draw(3, 3))
    motor = torch.cat([motor, -motor])
    log = PGA.log(motor)
    assert float((PGA.exp(log) - motor).abs().max()) <= 1e-14
    torch.testing.assert_close(embedding.extract_twist(log)[:, 3:].norm(dim=-1), torch.full((6,), torch.pi).double())


def test_boosts_compose() -> None:
    """Rapidities along one axis add, and a boost keeps products of four-vectors."""
    x, y = draw(2, 4)
    one, two = (STA.exp(STA.embed(torch.tensor([r / 2, 0, 0, 0, 0, 0]).double(), 2)) for r in (0.7, 1.1))
    both = STA.log(STA.geometric_product(one, two))
    torch.testing.assert_close(STA.extract(both, 2)[0], torch.tensor(0.9).double())
    boosted = [STA.sandwich(one, STA.embed(z)) for z in (x, y)]
    torch.testing.assert_close(STA.inner_product(*boosted), x[0] * y[0] - x[1:] @ y[1:])
    torch.testing.assert_close(
        STA.extract(STA.sandwich(one, STA.embed(torch.tensor([1.0, 0, 0, 0]).double())))[:2].abs(),
        torch.tensor([0.7, 0.7]).double().cosh().where(torch.tensor([True, False]), torch.tensor(0.7).double().sinh()),
    )


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("algebra", [PGA, STA, CGA], ids=["PGA", "STA", "CGA"])
def test_they_move_with_the_pin_group(algebra: Algebra) -> None:
    b = 0.3 * bivectors(algebra)
    elements = []
    for seed in range(3):
        v = algebra.embed(torch.eye(algebra.dimension).double()[-1] + 0.2 * draw(algebra.dimension, seed=seed))
        v = v / algebra.norm(v)
        elements += [v, algebra.geometric_product(v, algebra.exp(b[seed]))]
    for f, x in ((algebra.exp, b), (algebra.log, algebra.exp(b))):
        assert_equivariant(f, x, elements=elements, act_in=algebra.sandwich, act_out=algebra.sandwich, tolerance=1e-12)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("algebra", "parts"),
    [
        (PGA, [0.0, 0, 0, 0, 0, 0]),
        (PGA, [0.3, -0.2, 0.1, 0, torch.pi / 2, 0]),
        (STA, [0.5, 0, 0, 0.5, 0, 0]),  # B^2 = 0
        (Algebra(4), [1.0, 0, 0, 0, 0, 1]),  # in many ways the sum of two
    ],
    ids=["0", "pi", "null", "isoclinic"],
)
def test_gradients(algebra: Algebra, parts: list[float], twin: None) -> None:
    x = torch.tensor(parts, dtype=torch.float64)
    turn = torch.pi / 2 in parts  # where log jumps, as the scalar changes sign

    def there_and_back(x: Tensor) -> tuple[Tensor, Tensor]:
        versor = algebra.exp(algebra.embed(x, 2))
        return versor, algebra.extract(algebra.log(versor), 2)

    assert_gradients(there_and_back, x, order=0 if turn else 1, forward=not turn, vmap=not turn)
    assert_gradients(lambda x: algebra.exp(algebra.embed(x, 2)), x, forward=False, vmap=False)


@pytest.mark.usefixtures("unchecked")
def test_compile() -> None:
    assert_gradients(lambda b: PGA.log(PGA.exp(b)), draw(16), order=0, forward=False, vmap=False, compile=True)


def test_batches_and_empty_ones(dtype: torch.dtype) -> None:
    b = bivectors(PGA).to(dtype)
    for f in (PGA.exp, PGA.log):
        assert torch.equal(f(b.view(2, 7, 16))[1, 2], f(b[9])) and f(b[:0]).shape == (0, 16)
    assert torch.equal(PGA.exp(b + (1 - PGA.grade(torch.ones_like(b), 2))), PGA.exp(b))


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    for call in (
        lambda: PGA.exp(torch.zeros(8)),
        lambda: PGA.log(torch.zeros(3, 8)),
        lambda: Algebra(2, 2).exp(torch.zeros(16)),
        lambda: Algebra(6).log(torch.zeros(64)),
        lambda: Algebra(1).exp(torch.zeros(2)),
    ):
        with pytest.raises(ShapeError, match="expected"):
            call()
