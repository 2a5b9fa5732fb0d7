"""Point clouds."""

from geom.points.cloud import Points

__all__ = ["Points"]
