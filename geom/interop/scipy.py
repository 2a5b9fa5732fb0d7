"""scipy.spatial.transform: `Rotation` holds quaternions (x, y, z, w), `RigidTransform` 4x4 matrices, both float64."""

from typing import Any

import torch
from torch import Tensor

from geom.interop.layouts import checked_rigid, quat_wxyz_to_xyzw, quat_xyzw_to_wxyz
from geom.interop.peers import PeerMissingError, as_float64, refuse
from geom.lie import Rigid

__all__ = ["from_scipy", "to_scipy"]


def to_scipy(value: Rigid | Tensor) -> Any:
    """Quaternions to a scipy `Rotation`, a `Rigid` to a `RigidTransform` (scipy 1.16 or later).

    Args: value, quat_wxyz (..., 4) unit, or a Rigid; any batch shape that scipy takes (before 1.17: one or none).
    Returns: `scipy.spatial.transform.Rotation` or `RigidTransform`, float64, on the CPU, detached.
    Raises: ShapeError for anything else; MissingDependencyError where scipy has no RigidTransform.
    Notes: scipy normalises quaternions once more, which moves them by rounding at most.

    >>> to_scipy(torch.tensor([1., 0, 0, 0])).as_quat().tolist()
    [0.0, 0.0, 0.0, 1.0]

    Guarantees: not differentiable; deterministic; 4e-16 f64, 4e-16 f32
    """
    from scipy.spatial import transform

    if isinstance(value, Rigid):
        if not hasattr(transform, "RigidTransform"):
            raise PeerMissingError("scipy 1.16", purpose="to_scipy of a Rigid", install="pip install 'scipy>=1.16'")
        return transform.RigidTransform.from_components(as_float64(value.translation), to_scipy(value.quat_wxyz))
    if isinstance(value, Tensor) and value.shape[-1:] == (4,):
        return transform.Rotation.from_quat(as_float64(quat_wxyz_to_xyzw(value)))
    raise refuse(value, "a Rigid or quaternions (..., 4)")


def from_scipy(value: Any) -> Rigid | Tensor:
    """A scipy `Rotation` to quaternions, a `RigidTransform` to a `Rigid`: the inverse of `to_scipy`.

    Args: value, `scipy.spatial.transform.Rotation` or `RigidTransform`.
    Returns: quat_wxyz (..., 4) with scipy's sign, bit for bit, or a Rigid with w >= 0 (it comes from scipy's matrix);
    float64.
    Raises: ShapeError for anything else.

    Guarantees: not differentiable; deterministic; 1e-15 f64, 1e-15 f32
    """
    from scipy.spatial import transform

    if isinstance(value, transform.Rotation):
        return quat_xyzw_to_wxyz(torch.as_tensor(value.as_quat()))
    if hasattr(transform, "RigidTransform") and isinstance(value, transform.RigidTransform):
        return checked_rigid(torch.as_tensor(value.as_matrix()), "value")
    raise refuse(value, "a scipy Rotation or RigidTransform")
