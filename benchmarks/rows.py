"""Rows of a table: what several libraries do alike, in contenders whose results are judged once.

Every round of such a row does the same work, so its first result stands for all. `contenders` makes them of operations,
each on a library's own types; `Row` of functions of tensors, forward alone and with gradients, right by float64.
"""

import time
from collections.abc import Callable, Container, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import Case, Contender, least

__all__ = [
    "Library",
    "Operation",
    "Row",
    "Work",
    "by_threads",
    "case_of",
    "contenders",
    "draw",
    "error_of",
    "judged",
    "untimed",
]

Work = Callable[[], Sequence[Tensor]]
Scores = dict[str, float]


# --- operations -------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """`call()` is timed; `read` makes of its result what is judged."""

    call: Callable[[], Any]
    read: Callable[[Any], Any] = lambda found: found


Library = dict[str, Operation]


def judged(judge: Callable[[Any], Scores]) -> Callable[[Any, int], Scores]:
    """A contender's `score`: what `judge` says of the first output."""
    said: list[Scores] = []

    def score(output: Any, seed: int) -> Scores:
        if not said:
            said.append(judge(output))
        return said[0]

    return score


def contenders(
    libraries: Iterable[tuple[str, Library]],
    score: Callable[[str, Any, Any], Scores],
    truth: Callable[[str], Any],
    calls: Callable[[str], int] = lambda method: 1,
) -> list[Contender]:
    """One for each library's operation; `score` is given its method, what was read, and the method's truth."""

    def contender(library: str, method: str, operation: Operation) -> Contender:
        judge = judged(lambda output: score(method, operation.read(output), truth(method)))
        return Contender(library, method, lambda seed: operation.call, judge, calls(method))

    return [contender(name, *item) for name, operations in libraries for item in operations.items()]


def untimed(library: str, method: str, work: Callable[[], Scores]) -> Contender:
    """`work` gives the scores themselves."""
    return Contender(library, method, lambda seed: work, lambda output, seed: output)


def by_threads(run: Callable[[int], Any], threads: int, rounds: int = 15) -> Scores:
    """Wall time of `run(threads)` on one thread of torch and on all, in turn, within one process: the least of each."""

    def on(count: int) -> Callable[[], Any]:
        def work() -> None:
            torch.set_num_threads(count)
            run(count)

        return work

    one, every = (1e3 * seconds for seconds, _ in least([on(1), on(threads)], rounds, clock=time.perf_counter))
    return {"wall_ms_on_1": one, f"wall_ms_on_{threads}": every, "times_as_fast": one / every}


# --- functions of tensors ---------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What libraries do: `build(library, dtype)` gives what computes tensors, and what to differentiate them in.

    `exact`: whose float64 is right, "" for none. geom works `calls` times a run, the others a tenth of it. `together`:
    errors are of the greatest number there is, where that of a gradient may be rounding alone. `gradients`: forward
    alone (False), with gradients (True).
    """

    method: str
    libraries: Sequence[str]
    build: Callable[[str, torch.dtype], tuple[Work, Sequence[Tensor]]]
    exact: str
    calls: int = 1
    together: bool = False
    gradients: Sequence[bool] = (False, True)

    def work(self, library: str, dtype: torch.dtype, gradient: bool) -> Work:
        """Forward, or the results and the gradients for given ones of them."""
        forward, leaves = self.build(library, dtype)

        def alone() -> Sequence[Tensor]:
            with torch.no_grad():
                return forward()

        def both() -> Sequence[Tensor]:
            out = forward()
            return [*(x.detach() for x in out), *torch.autograd.grad(out, leaves, given)]

        if not gradient:
            return alone
        for leaf in leaves:
            leaf.requires_grad_()
        found = alone()
        given = [torch.empty_like(x).copy_(draw(9 + k, *x.shape, like=x)) for k, x in enumerate(found)]  # strides too
        return both

    def contenders(self, libraries: Sequence[str], gradient: bool, quick: bool) -> list[Contender]:
        """Of these libraries; nothing is made before it runs."""

        @cache
        def right() -> Sequence[Tensor]:
            return self.work(self.exact, torch.float64, gradient)()

        def judge(output: Sequence[Tensor]) -> Scores:
            return {"error_rel": error_of(output, right(), together=self.together)} if self.exact else {}

        def contender(library: str) -> Contender:
            work = cache(lambda: self.work(library, torch.float32, gradient))
            calls = 1 if quick else self.calls if library == "geom" else -(-self.calls // 10)
            method = self.method + ", with gradient" * gradient
            return Contender(library, method, lambda seed: work(), judged(judge), calls)

        return [contender(library) for library in libraries]


def case_of(name: str, rows: Iterable[Row], absent: Container[str], quick: bool) -> Case:
    """All rows in one case, without the libraries that are `absent`."""
    found = []
    for row in rows:
        here = [library for library in row.libraries if library not in absent]
        found += [x for gradient in row.gradients for x in row.contenders(here, gradient, quick)]
    return Case(name, found)


def error_of(found: Sequence[Tensor], right: Sequence[Tensor], *, together: bool = False) -> float:
    """The largest difference, of the greatest number of the same tensor, or `together` of all."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, right, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        shapes = [[tuple(x.shape) for x in tensors] for tensors in zip(*pairs, strict=True)]
        raise ValueError(f"expected shapes {shapes[1]}, got {shapes[0]}")
    errors, greatest = ([float(x.abs().max()) for x in y] for y in ([a - b for a, b in pairs], [b for _, b in pairs]))
    if together:
        return max(errors) / max(greatest)
    return max(error / size for error, size in zip(errors, greatest, strict=True))


def draw(seed: int, *shape: int, like: Tensor, form: Callable[[Tensor], Tensor] = torch.Tensor.contiguous) -> Tensor:
    """`form` of normal numbers, rounded to float32 in every dtype, so that errors are not those of the operands."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return form(numbers).float().to(like)
