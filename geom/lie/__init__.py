"""Lie groups: rotations and rigid motions, their exponential and logarithm maps, and the pose value `Rigid`."""

from geom.lie import quaternion, se3, so3
from geom.lie.rigid import Rigid

__all__ = ["Rigid", "quaternion", "se3", "so3"]
