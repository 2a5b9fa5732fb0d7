"""Colours: a palette for things, a map for scalars."""

import numpy as np
import numpy.typing as npt

__all__ = ["PALETTE", "colormap"]

Floats = npt.NDArray[np.float32]

# Apart from each other for the colour-blind too, dark enough to be seen on white.
PALETTE: Floats = np.array(
    [
        [0.12, 0.42, 0.75],  # blue
        [0.93, 0.46, 0.12],  # orange
        [0.10, 0.60, 0.48],  # green
        [0.78, 0.25, 0.45],  # raspberry
        [0.46, 0.36, 0.72],  # violet
        [0.60, 0.46, 0.20],  # ochre
        [0.20, 0.66, 0.80],  # sky
        [0.35, 0.38, 0.43],  # slate
    ],
    dtype=np.float32,
)

# Viridis (van der Walt and Smith, CC0) at ten equal steps, ended before its palest yellow, which white swallows.
_VIRIDIS = np.array(
    [
        [0.267, 0.005, 0.329],
        [0.283, 0.131, 0.449],
        [0.262, 0.242, 0.521],
        [0.220, 0.343, 0.549],
        [0.177, 0.438, 0.558],
        [0.143, 0.523, 0.556],
        [0.120, 0.607, 0.540],
        [0.166, 0.691, 0.497],
        [0.320, 0.771, 0.411],
        [0.526, 0.833, 0.288],
        [0.762, 0.876, 0.137],
    ]
)


def colormap(values: npt.NDArray[np.float64], *, low: float, high: float) -> Floats:
    """Numbers (N,) as colours (N, 3): `low` and below dark violet, through green, `high` and above yellow.

    Where low = high every number takes the middle colour.
    """
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(len(values), 0.5)
    knots = np.linspace(0, 1, len(_VIRIDIS))
    return np.stack([np.interp(share, knots, _VIRIDIS[:, i]) for i in range(3)], -1).astype(np.float32)
