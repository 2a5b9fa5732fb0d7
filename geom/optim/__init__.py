"""Solvers: nonlinear least squares on values, robust kernels."""

from geom.optim.least_squares import Problem, Quadratic, least_squares
from geom.optim.robust import Robust

__all__ = ["Problem", "Quadratic", "Robust", "least_squares"]
