"""roma: unit quaternions (x, y, z, w), rotation matrices as here; its objects pair them with a translation."""

from importlib import import_module
from typing import Any

from geom.interop.layouts import quat_wxyz_to_xyzw, quat_xyzw_to_wxyz
from geom.interop.peers import PeerMissingError, refuse
from geom.lie import Rigid, quaternion

__all__ = ["from_roma", "to_roma"]


def to_roma(rigid: Rigid) -> Any:
    """A `Rigid` to a `roma.RigidUnitQuat`; the translation is shared, the quaternion reordered.

    roma's functions on plain tensors take `quat_wxyz_to_xyzw(q)`; rotation matrices and rotation vectors are the same
    in both libraries.

    Args: rigid, any batch shape.
    Returns: `roma.RigidUnitQuat`, same dtype and device.
    Raises: ShapeError for anything else; MissingDependencyError without roma.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    if not isinstance(rigid, Rigid):
        raise refuse(rigid, "a Rigid", "rigid")
    return _roma("to_roma").RigidUnitQuat(quat_wxyz_to_xyzw(rigid.quat_wxyz), rigid.translation)


def from_roma(value: Any) -> Rigid:
    """A `roma.RigidUnitQuat` or `roma.Rigid` to a `Rigid`: the inverse of `to_roma`.

    Args: value; its two parts may have batch shapes that broadcast.
    Returns: Rigid, same dtype and device; exact from quaternions, with w >= 0 and to rounding from matrices.
    Raises: ShapeError for anything else, scaled transforms included; MissingDependencyError without roma.

    Guarantees: differentiable; deterministic; 4e-16 f64, 3e-7 f32
    """
    roma = _roma("from_roma")
    if isinstance(value, roma.RigidUnitQuat):
        quat = quat_xyzw_to_wxyz(value.linear)
    elif isinstance(value, roma.Rigid) and value.linear.shape[-2:] == (3, 3):
        quat = quaternion.from_matrix(value.linear)
    else:
        raise refuse(value, "a roma.RigidUnitQuat or a roma.Rigid in three dimensions")
    shape = value.translation.shape[:-1]
    shape = shape if shape == quat.shape[:-1] else tuple(value.batch_shape)
    return Rigid(quat.expand(*shape, 4), value.translation.expand(*shape, 3))


def _roma(purpose: str) -> Any:
    try:
        return import_module("roma")
    except ImportError as error:
        raise PeerMissingError("roma", purpose=purpose, install="pip install roma") from error
