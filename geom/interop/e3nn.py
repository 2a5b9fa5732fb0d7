"""e3nn: quaternions (w, x, y, z), matrices and l = 1 irreps (x, y, z) are those of here; angles are R_y R_x R_y.

So `Irreps("1o").D_from_quaternion(q)` is `quaternion.to_matrix(q)`, and a vector needs no reordering. Gradients of
e3nn's own conversions to angles are NaN at the identity; these are finite.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_shape
from geom.lie import quaternion, so3

__all__ = ["from_e3nn", "to_e3nn"]


def to_e3nn(quat_wxyz: Float[Tensor, "*b 4"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """The angles (alpha, beta, gamma) that e3nn takes: R = R_y(alpha) R_x(beta) R_y(gamma).

    At beta = 0 and beta = pi only alpha + gamma or alpha - gamma is fixed; gamma is 0 there, as
    `so3.to_euler(R, "YXY")` has it.

    Args: quat_wxyz (..., 4), unit; float32 or float64.
    Returns: alpha, beta in [0, pi], gamma, each (...,), radians, for `Irreps.D_from_angles` and `o3.wigner_D`.
    Raises: ShapeError for another shape.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    alpha, beta, gamma = so3.to_euler(quaternion.to_matrix(check_shape(quat_wxyz, (4,), "quat_wxyz")), "YXY").unbind(-1)
    return alpha, beta, gamma


def from_e3nn(
    alpha: Float[Tensor, "*b"], beta: Float[Tensor, "*b"], gamma: Float[Tensor, "*b"]
) -> Float[Tensor, "*b 4"]:
    """The quaternion of e3nn's angles: the inverse of `to_e3nn`, with w >= 0.

    Args: alpha, beta, gamma, batch shapes that broadcast, radians, of one dtype.
    Returns: unit quaternion (..., 4), real part first, as e3nn has it too.

    >>> from_e3nn(torch.tensor(0.5), torch.tensor(0.0), torch.tensor(-0.5)).tolist()
    [1.0, 0.0, 0.0, 0.0]

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    return quaternion.from_matrix(so3.from_euler(torch.stack(torch.broadcast_tensors(alpha, beta, gamma), -1), "YXY"))
