"""pypose: LieTensors SO3 (x, y, z, w), SE3 (translation, x, y, z, w), Sim3 (translation, x, y, z, w, scale)."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from geom.checks import describe
from geom.errors import ShapeError
from geom.interop.layouts import quat_wxyz_to_xyzw, quat_xyzw_to_wxyz
from geom.interop.peers import PeerMissingError, refuse
from geom.lie import Rigid
from geom.lie.similarity import Sim3

__all__ = ["from_pypose", "to_pypose"]


def to_pypose(value: Rigid | Sim3 | Tensor) -> Any:
    """Quaternions to `pypose.SO3`, a `Rigid` to `pypose.SE3`, a `Sim3` to `pypose.Sim3`.

    Twists need no conversion: both libraries write (v, omega) and (v, omega, lambda). pypose's gradients are tangent
    vectors, not those of the components: what flows back from a LieTensor follows its convention, not torch's.

    Args: value, quat_wxyz (..., 4) unit, a Rigid or a Sim3; any batch shape.
    Returns: LieTensor (..., 4), (..., 7) or (..., 8), same dtype and device.
    Raises: ShapeError for anything else; MissingDependencyError without pypose.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    if isinstance(value, Rigid):
        return _pypose("to_pypose").SE3(torch.cat([value.translation, quat_wxyz_to_xyzw(value.quat_wxyz)], -1))
    if isinstance(value, Sim3):
        parts = [value.translation, quat_wxyz_to_xyzw(value.quat_wxyz), value.scale[..., None]]
        return _pypose("to_pypose").Sim3(torch.cat(parts, -1))
    if not isinstance(value, Tensor) or value.shape[-1:] != (4,):
        raise refuse(value, "a Rigid, a Sim3 or quaternions (..., 4)")
    return _pypose("to_pypose").SO3(quat_wxyz_to_xyzw(value))


def from_pypose(value: Any) -> Rigid | Sim3 | Tensor:
    """A pypose SO3, SE3 or Sim3 LieTensor to quaternions, a `Rigid` or a `Sim3`: the inverse of `to_pypose`.

    Args: value, LieTensor, any batch shape.
    Returns: quat_wxyz (..., 4), a Rigid or a Sim3; same dtype and device.
    Raises: ShapeError for anything else; MissingDependencyError without pypose.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    pypose = _pypose("from_pypose")
    ltype = value.ltype if isinstance(value, pypose.LieTensor) else None
    if ltype not in (pypose.SO3_type, pypose.SE3_type, pypose.Sim3_type):
        got = describe(value) if ltype is None else f"a {type(ltype).__name__}"
        raise ShapeError(f"value: expected a pypose SO3, SE3 or Sim3, got {got}")
    x = value.tensor()
    if ltype == pypose.SO3_type:
        return quat_xyzw_to_wxyz(x)
    quat, translation = quat_xyzw_to_wxyz(x[..., 3:7]), x[..., :3]
    return Rigid(quat, translation) if ltype == pypose.SE3_type else Sim3(quat, translation, x[..., 7])


def _pypose(purpose: str) -> Any:
    try:
        return import_module("pypose")
    except ImportError as error:
        raise PeerMissingError("pypose", purpose=purpose, install="pip install pypose") from error
