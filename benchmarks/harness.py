"""Interleaved measuring: every contender runs once a round, so what else the machine does strikes them alike."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

__all__ = ["PAUSE", "Case", "Contender", "Moment", "Plan", "Sample", "Series", "least", "measure", "now"]

PAUSE = 0.01  # seconds in which the worker threads of the contender before stop spinning


class Contender(NamedTuple):
    """One library's way of doing `method`.

    `start(seed)` prepares an input in the library's own types and returns the work that is timed; `score(output, seed)`
    says, untimed, how good its output was: numbers by name, the unit last in the name ("rotation_deg"). What takes less
    than the clock can tell is worked `calls` times a run.
    """

    library: str
    method: str
    start: Callable[[int], Callable[[], Any]]
    score: Callable[[Any, int], dict[str, float]]
    calls: int = 1


class Case(NamedTuple):
    """One input, all contenders, and what a reader must know of it. Not `timed`: one run each, for its scores."""

    name: str
    contenders: Sequence[Contender]
    note: str = ""
    timed: bool = True


class Plan(NamedTuple):
    """`rounds` measured after a warm-up round, with seeds 0, 1 ... `seeds` - 1 in turn."""

    rounds: int
    seeds: int


class Moment(NamedTuple):
    """Seconds: of the process on all its threads, and on the wall."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Sample:
    """One run, milliseconds a call; 0 where the case is not timed."""

    seed: int
    cpu_ms: float
    wall_ms: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Series:
    """All timed runs of one contender on one case, round by round."""

    case: str
    library: str
    method: str
    samples: list[Sample]

    def milliseconds(self, clock: str) -> float:
        """Median over the rounds; clock "cpu" or "wall"."""
        return median(getattr(sample, f"{clock}_ms") for sample in self.samples)

    def least(self, clock: str) -> float:
        """Of the rounds; clock "cpu" or "wall"."""
        return min(getattr(sample, f"{clock}_ms") for sample in self.samples)

    def scores(self) -> dict[str, float]:
        """Medians over the seeds, each seed counted once, at its first run."""
        first = {sample.seed: sample.scores for sample in reversed(self.samples)}
        return {name: median(scores[name] for scores in first.values()) for name in self.samples[0].scores}


def now() -> Moment:
    return Moment(time.process_time(), time.perf_counter())


def measure(
    case: Case,
    plan: Plan,
    *,
    clock: Callable[[], Moment] = now,
    finish: Callable[[], None] = lambda: None,
    pause: float = PAUSE,
) -> tuple[list[Series], list[str]]:
    """Run a warm-up round and then `plan.rounds` measured ones, each begun with another contender.

    Args: clock, read before and after the work; finish, timed with the work (waiting for a GPU); pause, seconds before
        each run.
    Returns: a series for each contender, in the case's order, and a note for each one that raised and was left out.
    """
    samples: dict[int, list[Sample]] = {i: [] for i in range(len(case.contenders))}
    notes = []
    if not case.timed:
        plan, clock = Plan(1, 1), lambda: Moment(0.0, 0.0)
    for number in range(-1 if case.timed else 0, plan.rounds):
        seed = max(number, 0) % plan.seeds
        order = list(samples)
        turn = (number + 1) % max(1, len(order))
        gc.collect()
        for i in order[turn:] + order[:turn]:
            contender = case.contenders[i]
            try:
                sample = _run(contender, seed, clock, finish, pause)
            except Exception as error:  # a peer may raise anything; the others are still worth measuring
                notes.append(f"{case.name}, {contender.library} {contender.method}: left out, it raised {error!r}")
                del samples[i]
                continue
            if number >= 0:
                samples[i].append(sample)
    series = [Series(case.name, case.contenders[i].library, case.contenders[i].method, s) for i, s in samples.items()]
    return series, notes


def least(
    works: Sequence[Callable[[], Any]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.process_time,
    finish: Callable[[], None] = lambda: None,
) -> list[tuple[float, Any]]:
    """Seconds of the quickest run of each work, and what its last one gave; in every round one after the other.

    Args: as for `measure`.
    """
    found: list[tuple[float, Any]] = [(float("inf"), None)] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            time.sleep(PAUSE)
            begin = clock()
            output = work()
            finish()
            found[i] = min(found[i][0], clock() - begin), output
    return found


def _run(
    contender: Contender, seed: int, clock: Callable[[], Moment], finish: Callable[[], None], pause: float
) -> Sample:
    work = contender.start(seed)
    finish()
    time.sleep(pause)
    gc.disable()
    try:
        begin = clock()
        for _ in range(contender.calls - 1):
            work()
        output = work()
        finish()
        end = clock()
    finally:
        gc.enable()
    scale = 1e3 / contender.calls
    return Sample(seed, scale * (end.cpu - begin.cpu), scale * (end.wall - begin.wall), contender.score(output, seed))
