"""Warp's `wp.transform`: seven numbers, the position, then the quaternion (x, y, z, w)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geom.interop.layouts import quat_wxyz_to_xyzw, quat_xyzw_to_wxyz
from geom.interop.peers import refuse
from geom.lie import Rigid

__all__ = ["from_warp", "to_warp"]


def to_warp(rigid: Rigid) -> Float[Tensor, "*b 7"]:
    """A `Rigid` as `wp.from_torch(..., dtype=wp.transformf)` takes it (`wp.transformd` in float64).

    A copy, as the order of the quaternion differs; `wp.from_torch` shares the memory of the result.

    Args: rigid, batch shape (B,) or up to four dimensions, Warp's limit.
    Returns: (..., 7), contiguous: position, then quaternion (x, y, z, w); same dtype and device.
    Raises: ShapeError for anything else.

    >>> to_warp(Rigid.identity(2)).tolist()[0]
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    if not isinstance(rigid, Rigid):
        raise refuse(rigid, "a Rigid", "rigid")
    return torch.cat([rigid.translation, quat_wxyz_to_xyzw(rigid.quat_wxyz)], -1)


def from_warp(value: Any) -> Rigid:
    """A `wp.array` of transforms, or the tensor (..., 7) that `wp.to_torch` makes of it, to a `Rigid`.

    Args: value, read through DLPack, so that Warp need not be imported.
    Returns: Rigid of the array's shape; a copy, same dtype and device.
    Raises: ShapeError for anything else.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    x = torch.from_dlpack(value) if hasattr(value, "__dlpack__") and not isinstance(value, Tensor) else value
    if not isinstance(x, Tensor) or x.shape[-1:] != (7,) or not x.is_floating_point():
        raise refuse(x, "a wp.array of transforms or a float tensor (..., 7)")
    return Rigid(quat_xyzw_to_wxyz(x[..., 3:]), x[..., :3].clone())
