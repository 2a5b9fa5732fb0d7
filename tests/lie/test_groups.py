"""One contract for every group: the axioms over random elements, derivatives of exp and log at the singular points."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from geom.lie import Rigid, quaternion, se3, sim3, so3
from geom.lie.affine import Affine
from geom.lie.similarity import Sim3
from geom.testing import assert_gradients, assert_group_axioms
from geom.values import Value, value


@value
class Quaternion(Value):
    """The functions of `quaternion`, as a group."""

    quat_wxyz: Float[Tensor, "*b 4"]

    @classmethod
    def identity(cls, *, dtype: torch.dtype, device: torch.device) -> "Quaternion":
        return cls(torch.tensor([1.0, 0, 0, 0], dtype=dtype, device=device))

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> "Quaternion":
        return cls(quaternion.from_matrix(matrix))

    def to_matrix(self) -> Tensor:
        return quaternion.to_matrix(self.quat_wxyz)

    def apply(self, points: Tensor) -> Tensor:
        return quaternion.rotate(self.quat_wxyz[..., None, :], points)

    def compose(self, other: "Quaternion") -> "Quaternion":
        return Quaternion(quaternion.multiply(self.quat_wxyz, other.quat_wxyz))

    def inverse(self) -> "Quaternion":
        return Quaternion(quaternion.conjugate(self.quat_wxyz))

    @classmethod
    def exp(cls, rotvec: Tensor) -> "Quaternion":
        return cls(quaternion.exp(rotvec))

    def log(self) -> Tensor:
        return quaternion.log(self.quat_wxyz)

    def interpolate(self, other: "Quaternion", t: float) -> "Quaternion":
        return Quaternion(quaternion.slerp(self.quat_wxyz, other.quat_wxyz, t))


@value
class Rotation(Value):
    """The functions of `so3`, as a group."""

    matrix: Float[Tensor, "*b 3 3"]

    @classmethod
    def identity(cls, *, dtype: torch.dtype, device: torch.device) -> "Rotation":
        return cls(torch.eye(3, dtype=dtype, device=device))

    def to_matrix(self) -> Tensor:
        return self.matrix

    def apply(self, points: Tensor) -> Tensor:
        return points @ self.matrix.mT

    def compose(self, other: "Rotation") -> "Rotation":
        return Rotation(self.matrix @ other.matrix)

    def inverse(self) -> "Rotation":
        return Rotation(self.matrix.mT)

    @classmethod
    def exp(cls, rotvec: Tensor) -> "Rotation":
        return cls(so3.exp(rotvec))

    def log(self) -> Tensor:
        return so3.log(self.matrix)


# class, dimension of its tangent, roundings it may cost, of its points
GROUPS = {
    "quaternion": (Quaternion, 3, 16, 3),
    "so3": (Rotation, 3, 16, 3),
    "Rigid": (Rigid, 6, 16, 3),
    "Sim3": (Sim3, 7, 32, 3),
    "Affine in the plane": (Affine, 6, 64, 2),
    "Affine in space": (Affine, 12, 64, 3),
}


@pytest.mark.parametrize("name", GROUPS)
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31 - 1),
    spread=st.sampled_from([0.0, 1e-12, 1e-4, 0.3, 1.0, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_axioms(name: str, seed: int, spread: float, dtype: torch.dtype) -> None:
    cls, dimension, roundings, space = GROUPS[name]
    draw = torch.Generator().manual_seed(seed)
    elements = cls.exp(spread * torch.randn(6, dimension, generator=draw, dtype=torch.float64)).to(dtype)
    assert_group_axioms(
        elements,
        tolerance=roundings * torch.finfo(dtype).eps,
        identity=Affine.identity(n=space, dtype=dtype) if cls is Affine else None,
        points=torch.randn(5, space, generator=draw, dtype=torch.float64).to(dtype),
    )


# exp, log, and a tangent with |omega| = 1
TANGENTS = {
    "quaternion": (quaternion.exp, quaternion.log, [0.6, -0.48, 0.64]),
    "so3": (so3.exp, so3.log, [0.6, -0.48, 0.64]),
    "se3": (se3.exp, se3.log, [0.3, -1.2, 0.8, 0.6, -0.48, 0.64]),
    "sim3": (sim3.exp, sim3.log, [0.3, -1.2, 0.8, 0.6, -0.48, 0.64, -0.4]),
}


@pytest.mark.parametrize("angle", [0.0, 1.0, math.pi])
@pytest.mark.parametrize("name", TANGENTS)
def test_derivatives(name: str, angle: float) -> None:
    exp, log, direction = TANGENTS[name]
    tangent = angle * torch.tensor(direction, dtype=torch.float64)
    element = _at(exp, tangent)
    assert_gradients(exp, tangent)
    assert_gradients(log, *element, order=2 if angle < math.pi else 0)


@pytest.mark.parametrize("axis", [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.6, 0.8, 0]])
@pytest.mark.parametrize("name", TANGENTS)
def test_log_is_finite_at_exact_half_turns(name: str, axis: list[float]) -> None:
    """With components that are exactly zero, as rounded ones never are."""
    _, log, _ = TANGENTS[name]
    unit = torch.tensor(axis, dtype=torch.float64)
    quat = torch.cat([torch.zeros(1, dtype=torch.float64), unit])
    translation, scale = torch.ones(3, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    half_turn = 2 * torch.outer(unit, unit) - torch.eye(3, dtype=torch.float64)
    elements = {
        "quaternion": [quat],
        "so3": [half_turn],
        "se3": [quat, translation],
        "sim3": [quat, translation, scale],
    }
    assert_gradients(log, *elements[name], order=0)


@pytest.mark.parametrize("name", ["Affine in the plane", "Affine in space"])
def test_derivatives_of_affine_maps(name: str) -> None:
    """The identity has equal singular values, where a plain decomposition has no derivative."""
    _, dimension, _, _ = GROUPS[name]
    tangent = 0.3 * torch.randn(dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for point in (torch.zeros_like(tangent), tangent):
        assert_gradients(lambda xi: Affine.exp(xi).to_matrix(), point)
        assert_gradients(Affine.log, Affine.exp(point))


def _at(exp: Callable[[Tensor], Tensor | tuple[Tensor, ...]], tangent: Tensor) -> tuple[Tensor, ...]:
    element = exp(tangent)
    return element if isinstance(element, tuple) else (element,)
