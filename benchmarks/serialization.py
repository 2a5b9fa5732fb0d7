"""Codes of grid cells and the orders they give: geom, numpy-hilbert-curve, and torch as point transformers do it."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.code_peers import (
    BITS,
    Given,
    Operation,
    geom,
    hilbert_encode,
    morton_encode,
    numpy_hilbert,
    torch_bits,
    traverse_encode,
)
from benchmarks.given import choose, read_scans
from benchmarks.harness import Case, Contender
from benchmarks.part import Request, installed
from benchmarks.report import BEST_PEER

__all__ = ["NOTES", "REFERENCE", "cases", "draw", "inputs"]

REFERENCE = BEST_PEER
NOTES = [
    f"codes and decoding: of 1,000,000 uniform cells or as many as said, {BITS} bits an axis",
    "four orders: the case's scan in cells of 0.05 m; Morton, Hilbert and both with x and y exchanged; encoded, stably "
    "sorted, and the orders inverted",
    "torch: written from the definitions as Point Transformer V3 computes, Hilbert on unpacked bits, Morton by tables, "
    "four sorts",
    "wrong: codes, cells or places other than those of the definitions",
]
_EDGE = 0.05  # metres
_CURVES = ("traverse", "Morton", "Hilbert")  # what is measured on fewer cells too
_SHORT = 10_000  # cells up to which one call is too short for the clock
_LIBRARIES = [
    ("geom", ("geom", geom)),
    ("hilbert", ("numpy-hilbert-curve", numpy_hilbert)),
    ("torch", ("torch", torch_bits)),
]


def inputs(names: tuple[str, ...]) -> list[str]:
    """The scans of these names. Raises: GeomError for a name that is not there."""
    return choose(read_scans(), names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    scans = {name: torch.from_numpy(scan) for name, scan in read_scans().items()}
    chosen = inputs(request.inputs) or list(scans)[:1]
    found, missing = installed(_LIBRARIES)
    sizes = (500, 5_000) if request.quick else (10_000, 100_000, 1_000_000)

    def make() -> Iterator[Case]:
        for name in chosen:
            contenders = []
            for count in sizes[::-1]:
                given = draw(scans[name], count)
                truth = _truths(given)
                short = count <= _SHORT and not request.quick
                for library, start in found:
                    for method, operation in start(given, request.device).items():
                        if count == sizes[-1] or method in _CURVES:
                            title = method if count == sizes[-1] else f"{method}, {count:,}"
                            exact = partial(truth, method)
                            contenders.append(_contender(library, title, operation, exact, 20 if short else 1))
            yield Case(name, contenders, f"{len(scans[name]):,} points")

    return len(chosen), make(), missing


def draw(points: Tensor, count: int) -> Given:
    """`count` uniform cells and their codes, beside the points."""
    cells = torch.randint(1 << BITS, (count, 3), generator=torch.Generator().manual_seed(0))
    morton, hilbert, traverse = (form(cells, BITS) for form in (morton_encode, hilbert_encode, traverse_encode))
    return Given(cells, morton, hilbert, traverse, points, _EDGE)


def _truths(given: Given) -> Callable[[str], Tensor]:
    @cache
    def truth(method: str) -> Tensor:
        if method == "four orders":
            operation = torch_bits(given, "cpu")[method]
            return operation.read(operation.call())
        curve, _, back = method.partition(", ")
        return given.cells if back else getattr(given, curve.lower())

    return truth


def _contender(library: str, title: str, operation: Operation, truth: Callable[[], Tensor], calls: int) -> Contender:
    scores: dict[str, float] = {}

    def score(output: Any, seed: int) -> dict[str, float]:
        if not scores:  # every round gives the same
            scores["wrong"] = float((operation.read(output) != truth()).sum())
        return scores

    return Contender(library, title, lambda seed: operation.call, score, calls)
