"""Functions of u = theta^2 that are smooth at 0: Taylor series below u = 1, closed form above (double where)."""

from math import factorial

import torch
from torch import Tensor

_TERMS = range(9)
# cos(a) and sin(a)/a in a = theta/2, then (theta - sin theta)/theta^3, all in powers of u
_EXP = [
    [
        (-0.25) ** k / factorial(2 * k),
        (-0.25) ** k / factorial(2 * k + 1),
        (-1.0) ** k / factorial(2 * k + 3),
    ]
    for k in _TERMS
]
# (theta^2/2 + cos theta - 1)/theta^4 and (theta - (3 sin theta - theta cos theta)/2)/theta^5
_JACOBIAN = [[(-1.0) ** k / factorial(2 * k + 4), (-1.0) ** k * (k + 1) / factorial(2 * k + 5)] for k in _TERMS]
_COT = (1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000, 1 / 74724249600,
        3617 / 10670622842880000, 43867 / 5109094217170944000, 174611 / 802857662698291200000)  # fmt: skip


def _split(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether u is small; u where it is and 0 elsewhere; theta/2 where it is not and 1/2 elsewhere."""
    small = u < 1.0
    half = torch.where(small, torch.ones_like(u), u).sqrt() / 2
    return small, torch.where(small, u, torch.zeros_like(u)), half


def _horner(low: Tensor, table: list[list[float]]) -> Tensor:
    coefficients = torch.tensor(table, dtype=low.dtype, device=low.device).unbind(0)
    series = low * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        series = series * low + c
    return series


def exponential(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos(theta/2), sin(theta/2)/(theta/2) and (theta - sin theta)/theta^3, for u (..., 1)."""
    small, low, half = _split(u)
    cos, sin = half.cos(), half.sin()
    closed = torch.cat([cos, sin / half, (half - sin * cos) / (4 * half**3)], -1)
    cosine, sinc, cubic = torch.where(small, _horner(low, _EXP), closed).split(1, -1)
    return cosine, sinc, cubic


def jacobian(u: Tensor) -> tuple[Tensor, Tensor]:
    """(theta^2/2 + cos theta - 1)/theta^4 and (theta - (3 sin theta - theta cos theta)/2)/theta^5, for u (..., 1)."""
    small, low, half = _split(u)
    theta = 2 * half
    cos, sin = theta.cos(), theta.sin()
    fourth = (0.5 - (half.sin() / theta).square() * 2) / theta.square()
    fifth = (theta - (3 * sin - theta * cos) / 2) / theta**5
    fourth, fifth = torch.where(small, _horner(low, _JACOBIAN), torch.cat([fourth, fifth], -1)).split(1, -1)
    return fourth, fifth


def inverse_left(u: Tensor) -> Tensor:
    """(1 - (theta/2) cot(theta/2)) / theta^2, for theta in [0, 2 pi)."""
    small, low, half = _split(u)
    series = torch.full_like(u, _COT[-1])
    for c in _COT[-2::-1]:
        series = series * low + c
    return torch.where(small, series, (1 - half * half.cos() / half.sin()) / (4 * half.square()))
