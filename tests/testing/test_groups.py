"""`assert_group_axioms` passes for groups and names the axiom that a broken class breaks."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import Rigid
from geom.testing import assert_group_axioms
from geom.values import Value, value


@value
class Scaling(Value):
    """x -> factor x: the smallest group with everything that can be broken."""

    factor: Float[Tensor, "*b"]

    @classmethod
    def identity(cls, *batch: int, dtype=None, device=None) -> "Scaling":
        return cls(torch.ones(batch, dtype=dtype, device=device))

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> "Scaling":
        return cls(matrix[..., 0, 0])

    def to_matrix(self) -> Tensor:
        return self.factor[..., None, None] * torch.eye(3, dtype=self.factor.dtype)

    def apply(self, points: Tensor) -> Tensor:
        return self.factor[..., None, None] * points

    def compose(self, other: "Scaling") -> "Scaling":
        return type(self)(self.factor * other.factor)

    def inverse(self) -> "Scaling":
        return type(self)(1 / self.factor)

    @classmethod
    def exp(cls, growth: Tensor) -> "Scaling":
        return cls(growth.squeeze(-1).exp())

    def log(self) -> Tensor:
        return self.factor.log()[..., None]

    def retract(self, growth: Tensor) -> "Scaling":
        return self.compose(type(self).exp(growth))

    def interpolate(self, other: "Scaling", t: float) -> "Scaling":
        return self.retract(t * self.inverse().compose(other).log())


def elements(cls: type[Scaling] = Scaling) -> Scaling:
    return cls(torch.tensor([0.5, 2.0, 1.25, 3.0], dtype=torch.float64))


def broken(**methods: Callable) -> type[Scaling]:
    return value(type("Broken", (Scaling,), {"__annotations__": {}, **methods}))


def random_rigid(count: int, dtype: torch.dtype) -> Rigid:
    draw = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Rigid.identity(count, dtype=torch.float64).retract(draw).to(dtype)


def test_groups_pass(dtype: torch.dtype) -> None:
    assert_group_axioms(elements().to(dtype), tolerance=8 * torch.finfo(dtype).eps)
    assert_group_axioms(random_rigid(20, dtype), tolerance=16 * torch.finfo(dtype).eps)


def test_a_group_without_matrices_passes() -> None:
    """Then the fields are compared, and only compose, inverse and an identity are needed."""

    @value
    class Shift(Value):
        by: Float[Tensor, "*b 2"]

        def compose(self, other: "Shift") -> "Shift":
            return Shift(self.by + other.by)

        def inverse(self) -> "Shift":
            return Shift(-self.by)

    zero = Shift(torch.zeros(2, dtype=torch.float64))
    assert_group_axioms(Shift(torch.randn(5, 2, dtype=torch.float64)), tolerance=1e-15, identity=zero)
    with pytest.raises(AssertionError, match="Shift: identity on the right"):
        assert_group_axioms(Shift(torch.ones(5, 2)), tolerance=1e-6, identity=Shift(torch.ones(2)))


FAULTS = {
    "associativity": {"compose": lambda a, b: type(a)((a.factor + b.factor) / 2)},
    "identity on the right": {"identity": classmethod(lambda cls, **_: cls(torch.tensor(1.5, dtype=torch.float64)))},
    "inverse on the right": {"inverse": lambda a: type(a)(2 - a.factor)},
    "broadcasting": {"compose": lambda a, b: type(a)(a.factor * (b.factor if a.factor.ndim < 2 else a.factor))},
    "action, (a b) x": {"apply": lambda a, x: a.factor[..., None, None] * x + 1},
    "action of the identity": {"apply": lambda a, x: 0 * a.factor[..., None, None] * x},
    "to_matrix of a product": {"to_matrix": lambda a: a.factor[..., None, None] + torch.eye(3, dtype=torch.float64)},
    "from_matrix": {"from_matrix": classmethod(lambda cls, m: cls(m[..., 0, 0].square()))},
    "exp(log a) = a": {"log": lambda a: 2 * a.factor.log()[..., None]},
    "log exp xi = xi": {"exp": classmethod(lambda cls, x: cls(torch.where(x.abs() > 0.2, x.exp(), 1 + x).squeeze(-1)))},
    "retract": {"retract": lambda a, x: type(a)(a.factor * (1 + x.squeeze(-1)))},
    "interpolate at 0": {"interpolate": lambda a, b, t: b},
    "interpolate at 1": {"interpolate": lambda a, b, t: a},
}


@pytest.mark.parametrize("axiom", FAULTS)
def test_each_broken_axiom_is_named(axiom: str) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_group_axioms(elements(broken(**FAULTS[axiom])), tolerance=1e-12)
    assert str(caught.value).startswith(f"Broken: {axiom}"), caught.value
    if axiom != "broadcasting":
        assert "relative error" in str(caught.value) and "tolerance 1e-12" in str(caught.value)


def test_nan_is_an_error() -> None:
    broken_inverse = broken(inverse=lambda a: type(a)(a.factor * float("nan")))
    with pytest.raises(AssertionError, match=r"inverse on the right, a a\^-1 = 1: relative error (nan|inf)"):
        assert_group_axioms(elements(broken_inverse), tolerance=1.0)


def test_the_worst_element_is_named() -> None:
    off = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"at element 2: Broken\(1.25\)"):
        assert_group_axioms(elements(broken(inverse=lambda a: type(a)(1 / a.factor + off))), tolerance=1e-12)


def test_wrong_shapes_and_dtypes_are_errors() -> None:
    with pytest.raises(AssertionError, match=r"expected torch.float64 of shape \(4, 3, 3\), got torch.float32"):
        assert_group_axioms(
            elements(broken(compose=lambda a, b: type(a)((a.factor * b.factor).float()))), tolerance=1.0
        )
    with pytest.raises(ShapeError, match="elements: expected a batch of at least 3, got 2"):
        assert_group_axioms(Scaling(torch.ones(2)), tolerance=1.0)


def test_errors_count_relative_to_the_factors() -> None:
    """A thousand times greater translations make a thousand times greater rounding errors, and that is no fault."""
    rigid = random_rigid(20, torch.float64)
    far = Rigid(rigid.quat_wxyz, 1e3 * rigid.translation)
    assert_group_axioms(far, tolerance=4e-15)
    with pytest.raises(AssertionError, match="Rigid"):
        assert_group_axioms(far, tolerance=1e-19)
