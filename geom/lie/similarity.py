"""`Sim3`: rigid motions that also scale, as monocular maps and meshes without a unit need them."""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_shape, describe, readable
from geom.errors import ShapeError
from geom.lie import quaternion, sim3
from geom.lie._homogeneous import homogeneous
from geom.lie.rigid import Rigid
from geom.values import Value, value

__all__ = ["Sim3"]


@value
class Sim3(Value):
    """Similarities y = s R x + t, in any batch shape.

    Fields: `quat_wxyz` (..., 4) unit, real part first; `translation` (..., 3) in the unit of the target's points;
    `scale` (...) above 0. `A.compose(B)` (or `A @ B`) applies B first. Perturbations are on the right: `T.retract(xi)`
    is T exp(xi), xi = (v, omega, lambda) with the scale's logarithm last.

    >>> import torch
    >>> double = Sim3.from_matrix(torch.tensor([[0., -2, 0, 5], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]))
    >>> double.apply(torch.tensor([[1., 0, 0]])).round(decimals=6).tolist()
    [[5.0, 2.0, 0.0]]

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """

    quat_wxyz: Float[Tensor, "*b 4"]
    translation: Float[Tensor, "*b 3"]
    scale: Float[Tensor, "*b"]

    tangent_dim = 7

    def __post_init__(self) -> None:
        for name, own in (("quat_wxyz", 4), ("translation", 3)):
            x = getattr(self, name)
            if not isinstance(x, Tensor) or x.shape[-1:] != (own,):
                raise ShapeError(f"{name}: expected a tensor (..., {own}), got {describe(x)}")
        batch = self.translation.shape[:-1]
        if not isinstance(self.scale, Tensor) or self.scale.shape != batch:
            raise ShapeError(f"scale: expected a tensor {tuple(batch)} as the translation, got {describe(self.scale)}")

    @classmethod
    def identity(
        cls, *batch: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "Sim3":
        """The similarity that moves nothing, in the batch shape given."""
        one = Rigid.identity(*batch, dtype=dtype, device=device)
        return cls(one.quat_wxyz, one.translation, torch.ones(batch, dtype=dtype, device=device))

    @classmethod
    def from_rigid(cls, rigid: Rigid, scale: Float[Tensor, "*b"] | float = 1.0) -> "Sim3":
        """y = scale R x + t: the motion after a scaling about the origin. Raises: ShapeError unless scale > 0."""
        given = torch.as_tensor(scale, dtype=rigid.translation.dtype, device=rigid.translation.device)
        if readable(given) and not bool((given > 0).all()):
            raise ShapeError(f"scale: expected numbers above 0, got {float(given.detach().min())} among them")
        return cls(rigid.quat_wxyz, rigid.translation, given.expand(rigid.translation.shape[:-1]))

    @classmethod
    def from_matrix(cls, matrix: Float[Tensor, "*b 4 4"]) -> "Sim3":
        """Homogeneous matrix (..., 4, 4) with s R in its corner, column vectors; s = |s R|_F / sqrt(3).

        The norm is smooth and off by half a rounding, where the cube root of the determinant would be off by several
        and overflow at a third of the exponents.

        Raises: ShapeError for another shape, or a determinant that is not above 0 (a reflection, a projection).
        """
        check_shape(matrix, (4, 4), "matrix")
        linear = matrix[..., :3, :3]
        scale = torch.linalg.vector_norm(linear, dim=(-2, -1)) / 3**0.5
        rotation = linear / scale[..., None, None]
        if readable(matrix):
            bad = ~(torch.linalg.det(rotation.detach()) > 0)
            if bool(bad.any()):
                raise ShapeError(
                    f"matrix: expected determinants above 0, got 0 or less in {int(bad.sum())} of {bad.numel()}"
                )
        return cls(quaternion.from_matrix(rotation), matrix[..., :3, 3], scale)

    def to_matrix(self) -> Float[Tensor, "*b 4 4"]:
        """Homogeneous matrix (..., 4, 4) with s R in its corner, column vectors."""
        linear = self.scale[..., None, None] * quaternion.to_matrix(self.quat_wxyz)
        return homogeneous(linear, self.translation)

    def apply(self, points: Float[Tensor, "*c n 3"]) -> Float[Tensor, "*d n 3"]:
        """s R x + t for points (..., N, 3); the batches broadcast. Raises: ShapeError for another shape or dtype."""
        return sim3.apply(self.quat_wxyz, self.translation, self.scale, points)

    def compose(self, other: "Sim3") -> "Sim3":
        """self after other: (A.compose(B)).apply(x) = A.apply(B.apply(x))."""
        a, b = (self.quat_wxyz, self.translation, self.scale), (other.quat_wxyz, other.translation, other.scale)
        return Sim3(*sim3.compose(*a, *b))

    def __matmul__(self, other: "Sim3") -> "Sim3":
        return self.compose(other) if isinstance(other, Sim3) else NotImplemented

    def inverse(self) -> "Sim3":
        """The similarity that undoes this one."""
        return Sim3(*sim3.inverse(self.quat_wxyz, self.translation, self.scale))

    @classmethod
    def exp(cls, twist: Float[Tensor, "*b 7"]) -> "Sim3":
        """The similarity of a twist (v, omega, lambda) (..., 7): `sim3.exp`."""
        return cls(*sim3.exp(twist))

    def log(self) -> Float[Tensor, "*b 7"]:
        """The twist (v, omega, lambda) (..., 7) of least angle: `sim3.log`."""
        return sim3.log(self.quat_wxyz, self.translation, self.scale)

    def retract(self, twist: Float[Tensor, "*b 7"]) -> "Sim3":
        """self exp(twist), twist (v, omega, lambda) (..., 7); the quaternion is normalised again."""
        moved = self.compose(Sim3.exp(twist))
        length = torch.linalg.vector_norm(moved.quat_wxyz, dim=-1, keepdim=True)
        return Sim3(moved.quat_wxyz / length, moved.translation, moved.scale)

    def adjoint(self) -> Float[Tensor, "*b 7 7"]:
        """Ad_T, T exp(xi) = exp(Ad_T xi) T: `sim3.adjoint`."""
        return sim3.adjoint(self.quat_wxyz, self.translation, self.scale)

    def interpolate(self, other: "Sim3", t: Float[Tensor, "*c"] | float) -> "Sim3":
        """The spiral from self (t = 0) to other (t = 1): `sim3.interpolate`."""
        a, b = (self.quat_wxyz, self.translation, self.scale), (other.quat_wxyz, other.translation, other.scale)
        return Sim3(*sim3.interpolate(*a, *b, t))

    def mean(self, weights: Float[Tensor, "*c n"] | None = None) -> "Sim3":
        """The barycentre over the last batch dimension, weights (..., N): `sim3.mean`. Raises: ShapeError for none."""
        return Sim3(*sim3.mean(self.quat_wxyz, self.translation, self.scale, weights))
