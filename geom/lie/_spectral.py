"""Smooth functions of a matrix through its singular or eigenvectors, with derivatives exact where values meet.

The decomposition is one of the detached matrix, made in float64 for either dtype. What is left, E = M - M.detach(), is
zero and carries the derivatives; the function's expansion to second order in E goes into the result. Its coefficients
are divided differences, plain numbers that are finite for equal values (Daleckii and Krein 1965; Higham 2008, Theorem
3.11), so first and second derivatives are exact, in forward and reverse mode, under vmap and torch.compile. Third ones
are not carried.
"""

from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

_TRIPLES: dict[int, list[tuple[int, ...]]] = {n: list(combinations_with_replacement(range(n), 3)) for n in (2, 3)}
_ORDER = {  # of each i, k, j among them
    n: [t.index(tuple(sorted(ikj))) for ikj in product(range(n), repeat=3)] for n, t in _TRIPLES.items()
}
Table = tuple[Tensor, Tensor, Tensor]  # f[a] (..., n), f[a, b] (..., n, n), f[a, b, c] (..., n, n, n)


def singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, s falling, V^T of the detached matrix, and the shift U^T E V."""
    u, s, vh = (x.to(matrix.dtype) for x in torch.linalg.svd(matrix.detach().double()))
    return u, s, vh, u.mT @ (matrix - matrix.detach()) @ vh.mT


def symmetric(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors V and eigenvalues, rising, of the detached symmetric part, and the shift V^T E V."""
    even = (matrix + matrix.mT) / 2
    values, vectors = (x.to(matrix.dtype) for x in torch.linalg.eigh(even.detach().double()))
    return vectors, values, vectors.mT @ (even - even.detach()) @ vectors


def expand(table: Table, shift: Tensor) -> Tensor:
    """f(diag(values) + shift) to second order: f_i + f_ij E_ij + sum_k f_ikj E_ik E_kj."""
    value, first, second = table
    twice = second * shift[..., :, :, None] * shift[..., None, :, :]
    return torch.diag_embed(value) + first * shift + twice.sum(-2)


def rotate(frame: Tensor, matrix: Tensor) -> Tensor:
    """frame matrix frame^T, symmetric to the last bit."""
    turned = frame @ matrix @ frame.mT
    return (turned + turned.mT) / 2


def polar(s: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Left polar factors (P, R) of diag(s) + shift to second order; P Omega + Omega P = A - A^T gives the turn."""
    sums = s[..., :, None] + s[..., None, :]
    x = torch.diag_embed(s) + shift
    first = (shift - shift.mT) / sums
    one = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    rotation = one + first + first @ first / 2
    rest = x @ rotation.mT
    rotation = rotation + ((rest - rest.mT) / sums) @ rotation
    positive = x @ rotation.mT
    return (positive + positive.mT) / 2, rotation


def exp_table(x: Tensor) -> Table:
    """exp, of sorted values."""
    return x.exp(), _exp_pair(x[..., :, None], x[..., None, :]), _exp_triples(x)


def log_table(x: Tensor) -> Table:
    """log, of sorted positive values: the divided differences of an inverse function from those of exp."""
    _, pair, triple = exp_table(x.log())
    first = 1 / pair
    return x.log(), first, -first[..., :, None, :] * first[..., :, :, None] * first[..., None, :, :] * triple


def sqrt_table(x: Tensor) -> Table:
    """Square root, of positive values."""
    r = x.sqrt()
    pair = 1 / (r[..., :, None] + r[..., None, :])
    return r, pair, -pair[..., :, None, :] * pair[..., :, :, None] * pair[..., None, :, :]


def inverse_sqrt_table(x: Tensor) -> Table:
    """1/sqrt, of positive values: from those of sqrt by f[a, b] = -1/(ra rb (ra + rb)) and its like."""
    r, pair, triple = sqrt_table(x)
    i, k, j = r[..., :, None, None], r[..., None, :, None], r[..., None, None, :]
    return 1 / r, -pair / (r[..., :, None] * r[..., None, :]), -triple * (i + k + j) / (i * k * j)


def _exp_pair(a: Tensor, b: Tensor) -> Tensor:
    """(e^a - e^b)/(a - b) = e^((a+b)/2) sinh(z)/z, z = (a - b)/2."""
    z = (a - b) / 2
    zero = z == 0
    return ((a + b) / 2).exp() * torch.where(zero, 1, z.sinh() / torch.where(zero, 1, z))


def _exp_triples(x: Tensor) -> Tensor:
    """exp[a, b, c] of all triples of sorted values: by difference, or by series about the mean where all are near."""
    n = x.shape[-1]
    a, b, c = (x[..., [triple[i] for triple in _TRIPLES[n]]] for i in range(3))
    near = (a - c).abs() < 1
    far = (_exp_pair(a, b) - _exp_pair(b, c)) / torch.where(near, 1, a - c)
    mean = (a + b + c) / 3
    a, b, c = a - mean, b - mean, c - mean
    e2, e3 = a * b + b * c + c * a, a * b * c
    # sum of h_k/(k+2)!, h_k = -e2 h_(k-2) + e3 h_(k-3) the complete symmetric polynomials; |a|, |b|, |c| < 1
    h = [torch.ones_like(a), torch.zeros_like(a), -e2]
    series, factorial = h[0] / 2 + h[2] / 24, 24.0
    for k in range(3, 14):
        h = [h[1], h[2], e3 * h[0] - e2 * h[1]]
        factorial *= k + 2
        series = series + h[2] / factorial
    unique = torch.where(near, mean.exp() * series, far)
    return unique[..., _ORDER[n]].unflatten(-1, (n, n, n))
