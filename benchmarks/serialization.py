"""Codes of grid cells and the orders they give, and how far those step: geom, numpy-hilbert-curve, and torch as point
transformers do it."""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from benchmarks.code_peers import (
    BITS,
    Given,
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
from benchmarks.rows import Library, contenders, untimed
from geom.points.serialization import grid_size_of
from geom.sequence.order_locality import CURVES, locality

__all__ = ["NOTES", "REFERENCE", "cases", "draw", "inputs"]

REFERENCE = BEST_PEER
NOTES = [
    f"codes and decoding: of 1,000,000 uniform cells or as many as said, {BITS} bits an axis; 10,000,000 are the same "
    "million ten times, and there Hilbert's peers are left out, which would take half a minute",
    "four orders: the case's scan in cells of 0.05 m; Morton, Hilbert and both with x and y exchanged; encoded, stably "
    "sorted, and the orders inverted",
    "torch: written from the definitions as Point Transformer V3 computes, Hilbert on unpacked bits, Morton by tables, "
    "four sorts",
    "wrong: codes, cells or places other than those of the definitions",
    "aims for 1,000,000: traverse 4 ms, Morton 6, Hilbert 13 and 340 times as fast as torch; four orders 20 ms",
    "steps: mean distance from point to point along an order, in cells of the edge said, or of three times the points' "
    "spacing; of 1,024 points uniform on the unit sphere, and of the first scan, metres. Points are mixed before: in a "
    "cell they keep their order, and a cloud that comes along a curve flatters keys that tell few cells apart. "
    "published: the keys of Point Cloud Mamba's released code, which are those of xzy too, and so on",
]
_EDGE = 0.05  # metres
_CURVES = ("traverse", "Morton", "Hilbert")  # what is measured of other numbers of cells too
_SHORT = 10_000  # cells up to which one call is too short for the clock
_STEPS = "steps"
_LIBRARIES = [
    ("geom", ("geom", geom)),
    ("hilbert", ("numpy-hilbert-curve", numpy_hilbert)),
    ("torch", ("torch", torch_bits)),
]


def inputs(names: tuple[str, ...]) -> list[str]:
    """The scans of these names, and the case that is not timed. Raises: GeomError for a name that is not there."""
    return choose([*read_scans(), _STEPS], names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    scans = {name: torch.from_numpy(scan) for name, scan in read_scans().items()}
    chosen = inputs(request.inputs) or [*list(scans)[:1], _STEPS]
    if request.clock != "cpu" and request.device == "cpu":  # they are the same with any number of threads
        chosen = [name for name in chosen if name != _STEPS]
    found, missing = installed(_LIBRARIES)
    most, *fewer = (5_000, 500, 50_000) if request.quick else (1_000_000, 10_000, 100_000, 10_000_000)

    def make() -> Iterator[Case]:
        for name in chosen:
            if name == _STEPS:
                yield Case(name, _steps(*next(iter(scans.items()))), timed=False)
                continue
            rows = []
            for count in (most, *fewer):
                given = draw(scans[name], count, most)
                libraries = [(library, start(given, request.device)) for library, start in found]
                if count != most:
                    libraries = [(library, _of(count, most, library, own)) for library, own in libraries]
                calls = 20 if count <= _SHORT and not request.quick else 1
                rows += contenders(libraries, _score, _truths(given), lambda method, calls=calls: calls)
            yield Case(name, rows, f"{len(scans[name]):,} points")

    return len(chosen), make(), missing


def _of(count: int, most: int, library: str, operations: Library) -> Library:
    """Of another number of cells the codes alone, and Hilbert's of more than `most` by geom alone."""
    slow = () if library == "geom" or count < most else ("Hilbert",)
    return {f"{x}, {count:,}": operations[x] for x in _CURVES if x in operations and x not in slow}


def draw(points: Tensor, count: int, most: int) -> Given:
    """`count` uniform cells, of which `most` are drawn and then repeated, and their codes, beside the points."""
    cells = torch.randint(1 << BITS, (min(count, most), 3), generator=torch.Generator().manual_seed(0))
    times = -(-count // most)
    forms = (morton_encode, hilbert_encode, traverse_encode)
    morton, hilbert, traverse = (form(cells, BITS).repeat(times) for form in forms)
    return Given(cells.repeat(times, 1), morton, hilbert, traverse, points, _EDGE)


def _truths(given: Given) -> Callable[[str], Tensor]:
    @cache
    def truth(method: str) -> Tensor:
        if method == "four orders":
            operation = torch_bits(given, "cpu")[method]
            return operation.read(operation.call())
        curve, _, rest = method.partition(", ")
        return given.cells if rest == "decode" else getattr(given, curve.lower())

    return truth


def _score(method: str, found: Tensor, truth: Tensor) -> dict[str, float]:
    return {"wrong": float((found.cpu() != truth).sum())}


def _steps(name: str, scan: Tensor) -> list[Contender]:
    """How far each order steps, of geom and as published; a row for each."""
    generator = torch.Generator().manual_seed(0)
    sphere = torch.nn.functional.normalize(torch.randn(1_024, 3, generator=generator), dim=1)
    mixed = scan[torch.randperm(len(scan), generator=generator)]
    published = [f"{order}-official" for order in ("xyz", "yxz", "zxy")]
    orders = (*CURVES, *published)

    @cache
    def measured() -> dict[str, Tensor]:
        """Mean steps (orders + 1,), the last of points as they come, by cloud and cell."""
        found = {}
        for title, points, edges in (("sphere", sphere, (0.02, 0.1)), (name, mixed, (_EDGE,))):
            random = points.double().diff(dim=0).norm(dim=1).mean()
            for edge in (*edges, grid_size_of(points)):
                means = locality(points, orders=orders, grid_size=edge).mean
                found[f"{title},_{edge:.2g}"] = torch.cat([means, random[None]])
        return found

    def row(k: int, order: str, library: str) -> Contender:
        return untimed(library, f"{order}:", lambda: {title: float(x[k]) for title, x in measured().items()})

    names = [(order.removesuffix("-official"), "published" if order in published else "geom") for order in orders]
    return [row(k, *pair) for k, pair in enumerate([*names, ("none", "torch.randperm")])]
