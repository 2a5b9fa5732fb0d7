"""`Rigid`: the one pose type of the house."""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_shape
from geom.lie import quaternion, se3
from geom.lie._homogeneous import homogeneous
from geom.roots import safe_norm
from geom.values import Value, value

__all__ = ["Rigid"]


@value
class Rigid(Value):
    """Rigid motions y = R x + t, in any batch shape.

    Fields: `quat_wxyz` (..., 4) unit, real part first; `translation` (..., 3) in the unit of the points.
    `A.compose(B)` (or `A @ B`) applies B first. Perturbations are on the right: `T.retract(xi)` is T exp(xi).

    >>> quarter = Rigid.from_matrix(torch.tensor([[0., -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    >>> quarter.apply(torch.tensor([[1., 0, 0]])).round(decimals=6).tolist()
    [[5.0, 1.0, 0.0]]

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """

    quat_wxyz: Float[Tensor, "*b 4"]
    translation: Float[Tensor, "*b 3"]

    tangent_dim = 6

    def __post_init__(self) -> None:
        check_shape(self.quat_wxyz, (4,), "quat_wxyz")
        check_shape(self.translation, (3,), "translation")

    @classmethod
    def identity(
        cls, *batch: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "Rigid":
        """The motion that moves nothing, in the batch shape given."""
        quat = torch.zeros(*batch, 4, dtype=dtype, device=device)
        quat[..., 0] = 1
        return cls(quat, torch.zeros(*batch, 3, dtype=dtype, device=device))

    @classmethod
    def from_matrix(cls, matrix: Float[Tensor, "*b 4 4"]) -> "Rigid":
        """Homogeneous matrix (..., 4, 4), column vectors. Raises: ShapeError for another shape."""
        check_shape(matrix, (4, 4), "matrix")
        return cls(quaternion.from_matrix(matrix[..., :3, :3]), matrix[..., :3, 3])

    def to_matrix(self) -> Float[Tensor, "*b 4 4"]:
        """Homogeneous matrix (..., 4, 4), column vectors."""
        return homogeneous(quaternion.to_matrix(self.quat_wxyz), self.translation)

    def apply(self, points: Float[Tensor, "*c n 3"]) -> Float[Tensor, "*d n 3"]:
        """R x + t for points (..., N, 3); the batches broadcast. Raises: ShapeError for another shape or dtype."""
        return se3.apply(self.quat_wxyz, self.translation, points)

    def compose(self, other: "Rigid") -> "Rigid":
        """self after other: (A.compose(B)).apply(x) = A.apply(B.apply(x))."""
        return Rigid(*se3.compose(self.quat_wxyz, self.translation, other.quat_wxyz, other.translation))

    def __matmul__(self, other: "Rigid") -> "Rigid":
        return self.compose(other) if isinstance(other, Rigid) else NotImplemented

    def inverse(self) -> "Rigid":
        """The motion that undoes this one."""
        return Rigid(*se3.inverse(self.quat_wxyz, self.translation))

    @classmethod
    def exp(cls, twist: Float[Tensor, "*b 6"]) -> "Rigid":
        """The motion of a twist (v, omega) (..., 6): `se3.exp`."""
        return cls(*se3.exp(twist))

    def log(self) -> Float[Tensor, "*b 6"]:
        """The twist (v, omega) (..., 6) of least angle: `se3.log`."""
        return se3.log(self.quat_wxyz, self.translation)

    def retract(self, twist: Float[Tensor, "*b 6"]) -> "Rigid":
        """self exp(twist), twist (v, omega) (..., 6); the quaternion is normalised again."""
        moved = self.compose(Rigid.exp(twist))
        length = torch.linalg.vector_norm(moved.quat_wxyz, dim=-1, keepdim=True)
        return Rigid(moved.quat_wxyz / length, moved.translation)

    def distance(self, other: "Rigid") -> tuple[Float[Tensor, "*d"], Float[Tensor, "*d"]]:
        """The angle between the rotations, in [0, pi] radians, and the distance between the translations.

        Gradients are 0 where they are the same.
        """
        angle = quaternion.geodesic_distance(self.quat_wxyz, other.quat_wxyz)
        return torch.broadcast_tensors(angle, safe_norm(self.translation - other.translation))

    def adjoint(self) -> Float[Tensor, "*b 6 6"]:
        """Ad_T, T exp(xi) = exp(Ad_T xi) T: `se3.adjoint`."""
        return se3.adjoint(self.quat_wxyz, self.translation)

    def interpolate(self, other: "Rigid", t: Float[Tensor, "*c"] | float) -> "Rigid":
        """The screw motion from self (t = 0) to other (t = 1): `se3.interpolate`."""
        return Rigid(*se3.interpolate(self.quat_wxyz, self.translation, other.quat_wxyz, other.translation, t))

    def mean(self, weights: Float[Tensor, "*c n"] | None = None) -> "Rigid":
        """The barycentre over the last batch dimension, weights (..., N): `se3.mean`."""
        return Rigid(*se3.mean(self.quat_wxyz, self.translation, weights))
