"""Point-cloud registration: local methods, and what a registration returns."""

from geom.registration.icp import icp
from geom.registration.result import Registration

__all__ = ["Registration", "icp"]
