"""`Affine`: invertible affine maps that keep orientation, of the plane and of space."""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_weights, describe, readable
from geom.errors import ShapeError
from geom.lie import linear
from geom.lie._homogeneous import homogeneous
from geom.values import Value, value

__all__ = ["Affine"]

_MEAN_ITERATIONS = 12


@value
class Affine(Value):
    """Affine maps y = A x + t with det A > 0, in any batch shape, of points in n = 2 or 3 dimensions.

    Fields: `matrix` (..., n, n); `translation` (..., n) in the unit of the points. `A.compose(B)` (or `A @ B`) applies
    B first. The tangent (v, xi), translation first, of dimension n + n^2, is that of the chart (v, `linear.exp(xi)`),
    which reaches every map, and not of the group's exponential: `exp`, `log`, `retract`, `interpolate` and `mean` are
    those of the chart. Chart and exponential agree to first order at the identity.

    >>> shear = Affine(torch.tensor([[1., 2], [0, 1]]), torch.tensor([5., 0]))
    >>> shear.apply(torch.tensor([[1., 1]])).tolist()
    [[8.0, 1.0]]

    Guarantees: differentiable (equal singular values); deterministic; 1e-15 f64, 6e-7 f32 of |A| |x| + |t|
    """

    matrix: Float[Tensor, "*b n n"]
    translation: Float[Tensor, "*b n"]

    def __post_init__(self) -> None:
        a, t = self.matrix, self.translation
        if not isinstance(a, Tensor) or a.shape[-2:] not in ((2, 2), (3, 3)):
            raise ShapeError(f"matrix: expected a tensor (..., 2, 2) or (..., 3, 3), got {describe(a)}")
        if not isinstance(t, Tensor) or t.shape[-1:] != a.shape[-1:]:
            raise ShapeError(f"translation: expected a tensor (..., {a.shape[-1]}), got {describe(t)}")

    @property
    def tangent_dim(self) -> int:
        """n + n^2: 6 in the plane, 12 in space."""
        n = self.matrix.shape[-1]
        return n + n * n

    @classmethod
    def identity(
        cls, *batch: int, n: int = 3, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "Affine":
        """The map of n dimensions that moves nothing, in the batch shape given."""
        one = torch.eye(n, dtype=dtype, device=device).repeat(*batch, 1, 1)
        return cls(one, torch.zeros(*batch, n, dtype=dtype, device=device))

    @classmethod
    def from_matrix(cls, matrix: Float[Tensor, "*b m m"]) -> "Affine":
        """Homogeneous matrix (..., n+1, n+1), column vectors, last row (0, ..., 0, 1).

        Raises: ShapeError for another shape, or where det A <= 0 (looked at outside torch.compile and torch.func).
        """
        if not isinstance(matrix, Tensor) or matrix.shape[-2:] not in ((3, 3), (4, 4)):
            raise ShapeError(f"matrix: expected a tensor (..., 3, 3) or (..., 4, 4), got {describe(matrix)}")
        own = matrix[..., :-1, :-1]
        if readable(own) and not bool((torch.linalg.det(own.detach().double()) > 0).all()):
            raise ShapeError("matrix: expected determinants above 0, got a reflection or a singular matrix")
        return cls(own, matrix[..., :-1, -1])

    def to_matrix(self) -> Float[Tensor, "*b m m"]:
        """Homogeneous matrix (..., n+1, n+1), column vectors."""
        return homogeneous(self.matrix, self.translation)

    def apply(self, points: Float[Tensor, "*c k n"]) -> Float[Tensor, "*d k n"]:
        """A x + t for points (..., K, n); the batches broadcast. Raises: ShapeError for another shape or dtype."""
        n, dtype = self.matrix.shape[-1], self.matrix.dtype
        if points.ndim < 2 or points.shape[-1] != n or points.dtype != dtype:
            raise ShapeError(f"points: expected {dtype} of shape (..., K, {n}), got {describe(points)}")
        return points @ self.matrix.mT + self.translation[..., None, :]

    def compose(self, other: "Affine") -> "Affine":
        """self after other: (A.compose(B)).apply(x) = A.apply(B.apply(x))."""
        moved = (self.matrix @ other.translation[..., None]).squeeze(-1)
        return Affine(self.matrix @ other.matrix, moved + self.translation)

    def __matmul__(self, other: "Affine") -> "Affine":
        return self.compose(other) if isinstance(other, Affine) else NotImplemented

    def inverse(self) -> "Affine":
        """The map that undoes this one, to rounding times the condition number of A."""
        back = torch.linalg.inv(self.matrix)
        return Affine(back, -(back @ self.translation[..., None]).squeeze(-1))

    @classmethod
    def exp(cls, tangent: Float[Tensor, "*b d"]) -> "Affine":
        """The chart: tangent (v, xi) (..., n + n^2) to translation v, matrix `linear.exp(xi)`.

        Raises: ShapeError unless d is 6 or 12.
        """
        if not isinstance(tangent, Tensor) or tangent.shape[-1:] not in ((6,), (12,)):
            raise ShapeError(f"tangent: expected a tensor (..., 6) or (..., 12), got {describe(tangent)}")
        n = 2 if tangent.shape[-1] == 6 else 3
        return cls(linear.exp(tangent[..., n:]), tangent[..., :n])

    def log(self) -> Float[Tensor, "*b d"]:
        """The chart's inverse: (t, `linear.log(A)`). Raises: ShapeError where det A <= 0, as `linear.log` does."""
        return torch.cat([self.translation, linear.log(self.matrix)], -1)

    def retract(self, tangent: Float[Tensor, "*b d"]) -> "Affine":
        """self after exp(tangent), tangent (..., n + n^2)."""
        return self.compose(Affine.exp(tangent))

    def interpolate(self, other: "Affine", t: Float[Tensor, "*c"] | float) -> "Affine":
        """self exp(t log(self^-1 other)): self at t = 0, other at t = 1, to rounding. t (...) broadcasts.

        The path moves with both maps when they are moved from the left.
        """
        step = self.inverse().compose(other).log()
        return self.retract((t[..., None] if isinstance(t, Tensor) else t) * step)

    def mean(self, weights: Float[Tensor, "*b"] | None = None) -> "Affine":
        """The mean over the last batch dimension, (..., K) to (...): where sum_i w_i log(mean^-1 A_i) = 0.

        Its translation is the weighted mean of the translations; its matrix comes by
        mean <- mean exp(sum_i w_i log(mean^-1 A_i)), a fixed 12 times from the element of greatest weight, with
        derivatives through all of them: converged to 1e-12 where every log(mean^-1 A_i) has a matrix part of norm below
        0.5. It moves with the maps when they are moved from the left.

        Args: weights (..., K), at least 0, not all 0; None for equal ones. Only their ratios count.
        Raises: ShapeError without a batch dimension, for K = 0, or for other weights.
        """
        batch = self.matrix.shape[:-2]
        if not batch or not batch[-1]:
            raise ShapeError(f"mean: expected a batch (..., K) with K >= 1, got {tuple(batch)}")
        given = self.matrix.new_ones(batch) if weights is None else weights
        if given.shape != batch:
            raise ShapeError(f"weights: expected a tensor {tuple(batch)}, got {describe(given)}")
        check_weights(given)
        share = (given / given.sum(-1, keepdim=True))[..., None]
        best = share.detach().argmax(-2, keepdim=True)
        middle = torch.take_along_dim(self.matrix, best[..., None], -3)
        for _ in range(_MEAN_ITERATIONS):
            step = (share * linear.log(torch.linalg.solve(middle, self.matrix))).sum(-2, keepdim=True)
            middle = middle @ linear.exp(step)
        return Affine(middle.squeeze(-3), (share * self.translation).sum(-2))
