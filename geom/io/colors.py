"""Colours between files and tensors: 8 bits, 16 bits or floats in the file, float32 in [0, 1] in memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.io.bytes import Source

__all__ = ["eight_bits", "nearest_eight_bits", "unit_colors"]


def unit_colors(source: Source, raw: NDArray[Any]) -> NDArray[Any]:
    """Colours (N, 3) of any number type as float32 in [0, 1].

    uint8 is divided by 255 and uint16 by 65535. Other types hold [0, 1], or [0, 255] where a value exceeds 1.

    Raises: FileFormatError where a colour is not finite, below 0 or above 255.
    """
    if raw.dtype.kind == "u" and raw.dtype.itemsize <= 2:
        return raw.astype(np.float32) / np.float32(np.iinfo(raw.dtype).max)
    if raw.size and not (np.isfinite(raw).all() and raw.min() >= 0 and raw.max() <= 255):
        raise source.fail("colors: expected numbers in [0, 1] or [0, 255]")
    whole = raw.dtype.kind in "iu" or (raw.size > 0 and raw.max() > 1)
    return raw.astype(np.float32) / np.float32(255) if whole else raw.astype(np.float32)


def nearest_eight_bits(colors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest colours in 8 bits."""
    return np.rint(np.clip(colors, 0, 1) * np.float32(255)).astype(np.uint8)


def eight_bits(colors: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """The 8-bit colours that `unit_colors` turns into exactly these, or None where there are none."""
    small = nearest_eight_bits(colors)
    return small if np.array_equal(small.astype(np.float32) / np.float32(255), colors) else None
