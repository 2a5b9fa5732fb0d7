"""The multiplication tables of any geometric algebra, from its signature, in plain Python.

A signature (p, q, r) counts basis vectors of square +1, -1 and 0. Basis vectors are numbered null ones first, then
positive, then negative; blades are sorted tuples of them, by grade and lexicographic within. A product is a list of
terms (i, j, k, sign): out_i = sum of sign x_j y_k. Blades being monomials, any two of i, j, k determine the third.
"""

from functools import cache
from itertools import combinations

__all__ = ["PGA", "PRODUCTS", "blades", "complement_signs", "metric", "multiply_blades", "terms"]

Blade = tuple[int, ...]
Signature = tuple[int, int, int]
Terms = tuple[tuple[int, int, int, int], ...]

PGA = (3, 0, 1)
PRODUCTS = ("geometric", "outer", "join")


def metric(signature: Signature) -> Blade:
    """The squares of the basis vectors."""
    p, q, r = signature
    return (0,) * r + (1,) * p + (-1,) * q


@cache
def blades(signature: Signature) -> tuple[Blade, ...]:
    """All basis blades, in the order of the components."""
    n = sum(signature)
    return tuple(blade for grade in range(n + 1) for blade in combinations(range(n), grade))


def multiply_blades(a: Blade, b: Blade, squares: Blade) -> tuple[Blade, int]:
    """e_a e_b = sign e_c: each swap of unequal neighbours changes the sign, and equal ones become their square."""
    factors, sign = list(a), 1
    for vector in b:
        place = len(factors)
        while place and factors[place - 1] > vector:
            place -= 1
            sign = -sign
        if place and factors[place - 1] == vector:
            del factors[place - 1]
            sign *= squares[vector]
        else:
            factors.insert(place, vector)
    return tuple(factors), sign


@cache
def complement_signs(signature: Signature) -> tuple[int, ...]:
    """The signs f of dual(x)_i = f_i x_(last - i), by which e_J dual(e_J) is +1 times the pseudoscalar."""
    every = blades(signature)
    return tuple(multiply_blades(every[-1 - i], blade, every[-1])[1] for i, blade in enumerate(every))


@cache
def terms(signature: Signature, product: str, slot: int = 0) -> Terms:
    """The terms of a product, in the order of its results.

    With `slot` 1 or 2 those of its adjoints: of the form F(a, b, c) = sum sign a_i b_j c_k the product is dF/da of
    (b, c); slot 1 is dF/db of (a, c), and slot 2 is dF/dc of (a, b).
    """
    if slot:
        turned = terms(signature, product)
        turned = [(j, i, k, s) if slot == 1 else (k, i, j, s) for i, j, k, s in turned]
        return tuple(sorted(turned))
    every = blades(signature)
    where = {blade: i for i, blade in enumerate(every)}
    if product == "join":  # dual(dual(x) outer dual(y))
        f, last = complement_signs(signature), len(every) - 1
        outer = terms(signature, "outer")
        found = [(last - i, last - j, last - k, f[last - i] * f[j] * f[k] * s) for i, j, k, s in outer]
        return tuple(sorted(found))
    squares = metric(signature) if product == "geometric" else (0,) * sum(signature)
    found = []
    for j, a in enumerate(every):
        for k, b in enumerate(every):
            blade, sign = multiply_blades(a, b, squares)
            if sign:
                found.append((where[blade], j, k, sign))
    return tuple(sorted(found))
