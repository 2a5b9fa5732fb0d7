"""SE(3) as (quaternion, translation), twists (v, omega) with translation first, as Sophus and manif order them."""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.lie import _series, quaternion

__all__ = ["exp", "log"]


def exp(twist: Float[Tensor, "*b 6"]) -> tuple[Float[Tensor, "*b 4"], Float[Tensor, "*b 3"]]:
    """Twist (v, omega) to (quat_wxyz, translation): t = V(omega) v with V = I + s2 W + s3 W^2.

    s2 = (1 - cos theta)/theta^2, s3 = (theta - sin theta)/theta^3, W = omega x (Sola et al. 2018, Eq. (174)).

    Args: twist (..., 6); v in the unit of the translation, omega in radians.
    Returns: unit quaternion (..., 4), translation (..., 3).

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    v, omega = twist[..., :3], twist[..., 3:]
    cos, sinc, cubic = _series.exponential(omega.square().sum(-1, keepdim=True))
    wv = torch.linalg.cross(omega, v)
    # (1 - cos theta)/theta^2 is sinc(theta/2)^2 / 2
    translation = v + 0.5 * sinc.square() * wv + cubic * torch.linalg.cross(omega, wv)
    return torch.cat([cos, 0.5 * sinc * omega], -1), translation


def log(quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 6"]:
    """(quat_wxyz, translation) to the twist (v, omega) of least angle: v = (I - W/2 + eta W^2) t.

    eta = (1 - (theta/2) cot(theta/2))/theta^2. At angle pi the axis is the one `quaternion.log` returns.

    Args: quat_wxyz (..., 4), unit; translation (..., 3).
    Returns: twist (..., 6).

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32
    """
    omega = quaternion.log(quat_wxyz)
    wt = torch.linalg.cross(omega, translation)
    eta = _series.inverse_left(omega.square().sum(-1, keepdim=True))
    return torch.cat([translation - 0.5 * wt + eta * torch.linalg.cross(omega, wt), omega], -1)
