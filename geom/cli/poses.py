"""Poses from JSON files."""

import json
from pathlib import Path

import torch
from torch import Tensor

from geom.checks import check_rigid
from geom.errors import FileFormatError, ShapeError

__all__ = ["read_pose"]


def read_pose(path: Path) -> Tensor:
    """Read a pose (4, 4) float64: four rows of four numbers, or an object that has them as `T_target_source`.

    Raises: FileFormatError unless it is JSON of that form, finite, with last row (0, 0, 0, 1) and a rotation that is
    orthonormal to 1e-3 and no mirror; OSError as `open` would.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # a JSONDecodeError and a UnicodeDecodeError are ValueErrors
        raise FileFormatError(path, f"expected JSON, got {str(error) or 'too deep a nesting'}") from error
    if isinstance(found, dict):
        if "T_target_source" not in found:
            raise FileFormatError(path, "expected four rows of numbers or an object with T_target_source")
        found = found["T_target_source"]
    if not (isinstance(found, list) and len(found) == 4 and all(isinstance(r, list) and len(r) == 4 for r in found)):
        raise FileFormatError(path, "expected a pose of four rows of four numbers")
    if not all(type(x) in (int, float) and abs(x) < 1e300 for row in found for x in row):  # NaN fails too
        raise FileFormatError(path, "expected a pose of finite numbers")
    try:
        return check_rigid(torch.tensor(found, dtype=torch.float64), "pose")
    except ShapeError as error:
        raise FileFormatError(path, str(error)) from error
