"""Functions of u = theta^2 that are smooth at 0: Taylor series below u = 1, closed form above (double where)."""

from collections.abc import Callable

import torch
from torch import Tensor


def _smooth(u: Tensor, coefficients: tuple[float, ...], closed: Callable[[Tensor], Tensor]) -> Tensor:
    small = u < 1.0
    low = torch.where(small, u, torch.zeros_like(u))
    series = torch.full_like(u, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        series = series * low + c
    return torch.where(small, series, closed(torch.where(small, torch.ones_like(u), u).sqrt()))


def _alternating(start: int, step: int = 2, terms: int = 9) -> tuple[float, ...]:
    """1/start!, -1/(start+2)!, 1/(start+4)!, ..."""
    out, factorial = [], 1.0
    for k in range(1, start + 1):
        factorial *= k
    for i in range(terms):
        out.append((-1.0) ** i / factorial)
        for k in range(start + step * i + 1, start + step * (i + 1) + 1):
            factorial *= k
    return tuple(out)


_COS, _SINC, _CUBIC = (_alternating(k) for k in (0, 1, 3))
_COT = (1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000, 1 / 74724249600,
        3617 / 10670622842880000, 43867 / 5109094217170944000, 174611 / 802857662698291200000)  # fmt: skip


def cos(u: Tensor) -> Tensor:
    """cos(theta)."""
    return _smooth(u, _COS, torch.cos)


def sinc(u: Tensor) -> Tensor:
    """sin(theta) / theta."""
    return _smooth(u, _SINC, lambda a: a.sin() / a)


def cubic(u: Tensor) -> Tensor:
    """(theta - sin(theta)) / theta^3."""
    return _smooth(u, _CUBIC, lambda a: (a - a.sin()) / a**3)


def inverse_left(u: Tensor) -> Tensor:
    """(1 - (theta/2) cot(theta/2)) / theta^2, for theta in [0, 2 pi)."""
    return _smooth(u, _COT, lambda a: (1 - a / 2 * (a / 2).cos() / (a / 2).sin()) / a.square())
