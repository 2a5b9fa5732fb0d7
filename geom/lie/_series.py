"""Functions of u = theta^2 that are smooth at 0: Taylor series below u = 1, closed form above (double where)."""

import torch
from torch import Tensor

# 1/k! with alternating signs, from cos, sin(a)/a and (a - sin a)/a^3, the first two of a = theta/2 and in powers of u
_HALF = tuple((-1.0) ** k / 4.0**k for k in range(10))
_FACTORIAL = [1.0]
for _k in range(1, 24):
    _FACTORIAL.append(_FACTORIAL[-1] * _k)
_EXP = [
    [_HALF[k] / _FACTORIAL[2 * k], _HALF[k] / _FACTORIAL[2 * k + 1], (-1.0) ** k / _FACTORIAL[2 * k + 3]]
    for k in range(9)
]
_COT = (1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000, 1 / 74724249600,
        3617 / 10670622842880000, 43867 / 5109094217170944000, 174611 / 802857662698291200000)  # fmt: skip


def exponential(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos(theta/2), sin(theta/2)/(theta/2) and (theta - sin theta)/theta^3, for u (..., 1)."""
    small = u < 1.0
    low = torch.where(small, u, torch.zeros_like(u))
    coefficients = torch.tensor(_EXP, dtype=u.dtype, device=u.device).unbind(0)
    series = low * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        series = series * low + c
    half = torch.where(small, torch.ones_like(u), u).sqrt() / 2
    cos, sin = half.cos(), half.sin()
    closed = torch.cat([cos, sin / half, (half - sin * cos) / (4 * half**3)], -1)
    cosine, sinc, cubic = torch.where(small, series, closed).split(1, -1)
    return cosine, sinc, cubic


def inverse_left(u: Tensor) -> Tensor:
    """(1 - (theta/2) cot(theta/2)) / theta^2, for theta in [0, 2 pi)."""
    small = u < 1.0
    low = torch.where(small, u, torch.zeros_like(u))
    series = torch.full_like(u, _COT[-1])
    for c in _COT[-2::-1]:
        series = series * low + c
    half = torch.where(small, torch.ones_like(u), u).sqrt() / 2
    return torch.where(small, series, (1 - half * half.cos() / half.sin()) / (4 * half.square()))
