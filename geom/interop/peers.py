"""The error of a library that is not there, and the arrays that most of them speak."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geom.checks import describe
from geom.errors import MissingDependencyError, ShapeError

__all__ = ["PeerMissingError", "as_float64", "refuse", "to_colors"]


class PeerMissingError(MissingDependencyError):
    """A library to convert to is absent or too old; the message holds the line that installs it."""

    def __init__(self, package: str, *, purpose: str, install: str) -> None:
        self._words = {"package": package, "purpose": purpose, "install": install}
        ImportError.__init__(self, f"{purpose} needs {package}: {install}")

    def __reduce__(self) -> tuple[partial[Any], tuple[()]]:  # keyword-only arguments do not pickle
        return partial(PeerMissingError, **self._words), ()


def as_float64(x: Tensor) -> NDArray[np.float64]:
    """The numbers of a tensor, exactly, in an array of its own."""
    return np.array(x.detach().cpu().contiguous().numpy(), dtype=np.float64)


def to_colors(x: Any) -> Tensor:
    """Colours as values here hold them: float32 (N, 3) in [0, 1]."""
    return torch.from_numpy(np.array(x, dtype=np.float32))


def refuse(x: object, expected: str, name: str = "value") -> ShapeError:
    """The error for a thing that has no counterpart."""
    return ShapeError(f"{name}: expected {expected}, got {describe(x)}")
