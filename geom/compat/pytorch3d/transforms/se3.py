"""SE(3) with pytorch3d's names: logarithms (translation, rotation), 4x4 matrices for row vectors."""

from jaxtyping import Float
from torch import Tensor

from geom.checks import check_shape, readable
from geom.errors import ShapeError
from geom.lie import Rigid, se3

__all__ = ["se3_exp_map", "se3_log_map"]


def se3_exp_map(log_transform: Float[Tensor, "*b 6"], eps: float = 1e-4) -> Float[Tensor, "*b 4 4"]:
    """Twists (v, omega) to matrices for row vectors, the translation in the last row; `geom.lie.se3.exp` transposed.

    `eps` changes nothing: small angles are exact.

    Raises: ShapeError for another shape.

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    return Rigid(*se3.exp(check_shape(log_transform, (6,), "log_transform"))).to_matrix().mT


def se3_log_map(
    transform: Float[Tensor, "*b 4 4"], eps: float = 1e-4, cos_bound: float = 1e-4
) -> Float[Tensor, "*b 6"]:
    """Matrices for row vectors to the twists (v, omega) of least angle: the inverse of `se3_exp_map`.

    `eps` and `cos_bound` change nothing: small angles and those near pi are exact.

    Raises: ShapeError for another shape, or a last column that is not (0, 0, 0, 1).

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    if readable(check_shape(transform, (4, 4), "transform")) and bool((transform[..., :3, 3].abs() > 1e-8).any()):
        raise ShapeError("transform: expected a last column (0, 0, 0, 1), got another: is it for column vectors?")
    rigid = Rigid.from_matrix(transform.mT)
    return se3.log(rigid.quat_wxyz, rigid.translation)
