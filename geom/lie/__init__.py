"""Lie groups: their exponential and logarithm maps, decompositions, measures and distributions, and the pose values."""

from geom.lie import distributions, haar, linear, procrustes, quaternion, se3, sim3, so3
from geom.lie.affine import Affine
from geom.lie.haar import HaarSample
from geom.lie.rigid import Rigid
from geom.lie.similarity import Sim3

__all__ = [
    "Rigid",
    "Sim3",
    "Affine",
    "quaternion",
    "so3",
    "se3",
    "sim3",
    "linear",
    "haar",
    "HaarSample",
    "distributions",
    "procrustes",
]
