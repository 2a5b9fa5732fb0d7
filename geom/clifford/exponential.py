"""Bivectors to versors and back, in closed form, where B^2 of a bivector B is a sum s + W that commutes with B.

W = B ^ B is of grade 4 and, in up to 5 dimensions, W^2 = w is a number. exp(B) = C(B^2) + B D(B^2) with the entire
functions C(x) = cosh sqrt(x) and D(x) = sinh(sqrt(x)) / sqrt(x), and an analytic f at s + W is f0 + f1 W with

    f0 = (f(x) + f(y)) / 2,  f1 = (f(x) - f(y)) / (x - y),  x, y = s +- sqrt(w),

which loses digits where w is small. There B is the sum of two commuting ones whose squares are numbers, the roots of
m^2 - s m + w / 4 (Roelfs & De Keninck 2021, "Graded symmetry groups: plane and simple", section 6), and exp(B) is the
product of two exponentials; that loses digits where the roots are close. Both are small only near s = w = 0, where
power series hold. The logarithm is R_2 g(R_0 + R_4) of a versor's grades, g(cosh u) = u / sinh u, in the same ways.
"""

from math import factorial

import torch
from torch import Tensor

__all__ = ["cosine_and_sine", "inverse_sine"]

_COSH = [1 / factorial(2 * k) for k in range(10)]
_SINH = [1 / factorial(2 * k + 1) for k in range(10)]
# u / sinh(u) in powers of t = (1 - cosh u) / 2, for |t| up to 1/16
_INVERSE = [4**k * factorial(k) ** 2 / factorial(2 * k + 1) for k in range(14)]


def cosine_and_sine(s: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(c0, c1, d0, d1) with C(s + W) = c0 + c1 W and D(s + W) = d0 + d1 W, for W^2 = w at most s^2."""
    near = (s.abs() < 0.5) & (w.abs() < 0.25)
    series = [
        *_power_series(_COSH, _keep(near, s), _keep(near, w)),
        *_power_series(_SINH, _keep(near, s), _keep(near, w)),
    ]
    s, w = _keep(~near, s, -1.0), _keep(~near, w)
    apart = s.square() - w
    values = w > apart
    root = torch.where(values, w, apart).sqrt()
    # of the two roots the greater first, and the other from their product
    great = (s + torch.where(s < 0, -root, root)) / 2
    x = torch.where(values, s + root, great)
    y = torch.where(values, s - root, w / torch.where(values, torch.ones_like(s), 4 * great))
    (cx, cy), (dx, dy) = _cosh_and_sinhc(torch.stack([x, y]))
    over = 1 / (x - y)
    by_values = ((cx + cy) / 2, (cx - cy) * over, (dx + dy) / 2, (dx - dy) * over)
    by_factors = (cx * cy, dx * dy / 2, (x * dx * cy - y * dy * cx) * over, (dy * cx - dx * cy) * over / 2)
    far = (torch.where(values, a, b) for a, b in zip(by_values, by_factors, strict=True))
    c0, c1, d0, d1 = (torch.where(near, a, b) for a, b in zip(series, far, strict=True))
    return c0, c1, d0, d1


def inverse_sine(c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """(g0, g1) with g(c + W) = g0 + g1 W, for W^2 = w and c >= 0; finite for all."""
    near = ((1 - c).abs() < 1 / 16) & (w.abs() < 1 / 256)
    series = _power_series(_INVERSE, _keep(near, (1 - c) / 2), _keep(near, w / 4))
    c, w = _keep(~near, c), _keep(~near, w)
    apart = ((1 - c).square() - w) * ((1 + c).square() - w)  # (x^2 - y^2)^2 of the factors' cosines x and y, c = x y
    values = w > apart
    root = torch.where(values, w, apart).clamp(min=torch.finfo(c.dtype).tiny).sqrt()
    great = ((1 + c.square() - w + _keep(~values, root)) / 2).clamp(min=torch.finfo(c.dtype).eps).sqrt()
    x, y = torch.where(values, c + root, great), torch.where(values, c - root, c / great)
    gx, gy = _angle_over_sine(torch.stack([x, y]))
    by_values = ((gx + gy) / 2, (gx - gy) / (2 * root))
    by_factors = ((gx * y * (x.square() - 1) - gy * x * (y.square() - 1)) / root, (gy * y - gx * x) / root)
    far = (torch.where(values, a, b) for a, b in zip(by_values, by_factors, strict=True))
    g0, g1 = (torch.where(near, a, b) for a, b in zip((series[0], -series[1] / 2), far, strict=True))
    return g0, g1


def _keep(where: Tensor, x: Tensor, other: float = 0.0) -> Tensor:
    return torch.where(where, x, torch.full_like(x, other))


def _power_series(coefficients: list[float], s: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """sum_k a_k (s + W)^k = f0 + f1 W, by Horner's rule."""
    f0, f1 = torch.full_like(s, coefficients[-1]), torch.zeros_like(s)
    for a in coefficients[-2::-1]:
        f0, f1 = f0 * s + f1 * w + a, f0 + f1 * s
    return f0, f1


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    f = torch.full_like(x, coefficients[-1])
    for a in coefficients[-2::-1]:
        f = f * x + a
    return f


def _cosh_and_sinhc(x: Tensor) -> tuple[Tensor, Tensor]:
    """C and D of numbers of either sign."""
    near, positive = x.abs() < 1, x > 0
    low = _keep(near, x)
    root = _keep(~near, x.abs(), 1.0).sqrt()
    high = _keep(positive, root, 1.0)  # not to overflow where it is not read
    c, d = torch.where(positive, high.cosh(), root.cos()), torch.where(positive, high.sinh(), root.sin()) / root
    return torch.where(near, _polynomial(_COSH, low), c), torch.where(near, _polynomial(_SINH, low), d)


def _angle_over_sine(x: Tensor) -> Tensor:
    """g of numbers above -1: u / sin u for x = cos u, u / sinh u for x = cosh u."""
    near, hyperbolic = (1 - x).abs() < 1 / 8, x > 1
    series = _polynomial(_INVERSE, _keep(near, (1 - x) / 2))
    x = _keep(~near, x)
    sine = ((1 - x) * (1 + x)).abs().clamp(min=torch.finfo(x.dtype).eps).sqrt()
    angle = torch.where(hyperbolic, sine.asinh(), torch.atan2(sine, x))
    return torch.where(near, series, angle / sine)
