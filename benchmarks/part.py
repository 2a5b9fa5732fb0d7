"""One thread setting in a process of its own: thread pools take their size from the environment they are born in.

`OMP_NUM_THREADS=1` alone leaves open3d's TBB pool at work on every core (its CPU time is then up to twice its wall
time), so the one-thread process is also held to one core.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from benchmarks.harness import PAUSE, Case, Plan, Series, measure
from benchmarks.report import ROOT, Part, cores, part_from_json
from geom.errors import GeomError

__all__ = [
    "Benchmark",
    "Request",
    "check_one_thread",
    "check_other_work",
    "choose_plan",
    "find_benchmark",
    "installed",
    "run_part",
]

Maker = TypeVar("Maker")
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_BUSY = 0.05  # part of the cores that other work may take before a note says so
_PARALLEL = 1.05  # CPU time over wall time above which a run was not on one thread


@dataclass(frozen=True)
class Request:
    """What a part measures: `clock` "cpu" is one thread on one core, "wall" all cores; `inputs` () means those that
    the benchmark chooses."""

    benchmark: str
    clock: str
    device: str
    quick: bool
    inputs: tuple[str, ...]


class Benchmark(Protocol):
    """What a module of a benchmark offers."""

    REFERENCE: str
    NOTES: list[str]

    def inputs(self, names: tuple[str, ...]) -> Sequence[Any]:
        """The inputs of these names. Raises: GeomError for a name that is not there."""
        ...

    def cases(self, request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
        """How many cases, the cases, and which packages are missing, one note each."""
        ...


def find_benchmark(name: str) -> Benchmark:
    return import_module(f"benchmarks.{name.replace('-', '_')}")  # type: ignore[return-value]


def installed(makers: Sequence[tuple[str, Maker]]) -> tuple[list[Maker], list[str]]:
    """What makes the contenders of packages that can be imported, and a note for each other one."""
    found, notes = [], []
    for package, maker in makers:
        try:
            import_module(package)
            found.append(maker)
        except (ImportError, OSError) as error:  # OSError: a shared library that is not there
            notes.append(f"{package}: left out, {error}")
    return found, list(dict.fromkeys(notes))


def choose_plan(quick: bool) -> Plan:
    return Plan(rounds=3, seeds=2) if quick else Plan(rounds=7, seeds=5)


def run_part(request: Request) -> Part:
    """Measure in a child process. Raises: GeomError where it fails."""
    environment = dict(os.environ)
    for name in _POOLS:
        environment[name] = "1" if request.clock == "cpu" else str(cores())
    if "GEOM_DATA" in environment:
        environment["GEOM_DATA"] = os.path.abspath(environment["GEOM_DATA"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        command = [sys.executable, "-m", "benchmarks.part", json.dumps(asdict(request)), str(out)]
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if code:
            raise GeomError(f"{request.benchmark}: the process that measures ended with exit code {code}")
        return part_from_json(json.loads(out.read_text()))


def _measure_here(request: Request) -> Part:
    threads = 1 if request.clock == "cpu" else cores()
    notes = []
    if request.clock == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch
    from tqdm import tqdm

    from geom.errors import ConvergenceWarning

    warnings.simplefilter("ignore", ConvergenceWarning)  # scored
    torch.set_num_threads(threads)
    plan = choose_plan(request.quick)
    count, cases, missing = find_benchmark(request.benchmark).cases(request, threads)
    notes += missing
    series = []
    pause = 0.0 if request.clock == "cpu" else PAUSE  # one thread leaves none behind that spins
    finish = torch.cuda.synchronize if request.device == "cuda" else lambda: None
    with tqdm(total=count, desc=f"{request.clock}, {threads} thread(s)", unit="case", disable=None) as bar:
        for case in cases:
            gc.freeze()  # what was imported and loaded is not searched again
            before = Usage.now()
            found, failed = measure(case, plan, finish=finish, pause=pause)
            busy = check_other_work(before, Usage.now(), os.cpu_count() or 1)
            if busy is not None:
                notes.append(f"{case.name} ({request.clock}, {threads} thread{'s' * (threads > 1)}): {busy}")
            series += found
            notes += failed
            if case.note:
                notes.append(f"{case.name}: {case.note}")
            bar.update()
    if request.clock == "cpu":
        notes += check_one_thread(series)
    return Part(request.clock, threads, torch.get_num_threads(), series, notes)


def check_one_thread(series: Sequence[Series]) -> list[str]:
    """A note for each series whose CPU time over wall time says that several threads ran."""
    notes = []
    for s in series:
        ratio = sum(x.cpu_ms for x in s.samples) / max(1e-9, sum(x.wall_ms for x in s.samples))
        if ratio > _PARALLEL:
            notes.append(f"{s.case}, {s.library} {s.method}: not on one thread, CPU time {ratio:.2f} of wall time")
    return notes


class Usage(NamedTuple):
    """Seconds so far: on the wall, of this process on all its threads, and of all processes on all cores."""

    wall: float
    own: float
    everyone: float

    @classmethod
    def now(cls) -> "Usage":
        everyone = 0.0
        if os.path.exists("/proc/stat"):  # user, nice, system, idle, iowait, irq, softirq, steal
            ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
            everyone = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        return cls(time.perf_counter(), time.process_time(), everyone)


def check_other_work(before: Usage, after: Usage, count: int) -> str | None:
    """A note where processes beside this one took much of `count` cores: its wall times then say little."""
    wall, own, everyone = (b - a for a, b in zip(before, after, strict=True))
    share = (everyone - own) / max(1e-9, wall * count)
    return f"other work took {share:.0%} of the machine's cores" if share > _BUSY else None


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    part = _measure_here(Request(**{**fields, "inputs": tuple(fields["inputs"])}))
    Path(sys.argv[2]).write_text(json.dumps(asdict(part)))
