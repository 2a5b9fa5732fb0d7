"""Tables from a report: text for the terminal, Markdown for the README, rewritten between its markers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.harness import Series
from benchmarks.report import Part, Report
from geom.errors import FileFormatError
from geom.files import write_atomically

__all__ = ["markdown_tables", "rewrite_block", "text_tables", "update_readme"]

_END = "<!-- /benchmark -->"
_NONE = "-"
_BUSY = " **Other work ran on the machine at the same time: see the notes under the cases.**"


def text_tables(report: Report) -> str:
    """A table for each case: times, ratios to the reference, errors; then the notes."""
    lines = [_heading(report), f"ratios: to {report.reference} with the same method; above 1 is slower"]
    for case in _unique(s.case for part in report.parts for s in part.series):
        names = _unique(name for s in _of(report.parts, case=case) for name in s.samples[0].scores)
        rows = [["", *(x for part in report.parts for x in (_title(part), "ratio")), *names]]
        for method in _unique(s.method for s in _of(report.parts, case=case)):
            for library in _unique(s.library for s in _of(report.parts, case=case, method=method)):
                row = [f"{method} {library}"]
                for part in report.parts:
                    found = _pick(part, case, method, library)
                    ratio = _ratio(report, part, case, method, library)
                    row += [_NONE if found is None else f"{found.milliseconds(part.clock):.1f}"]
                    row += [_NONE if ratio is None else f"{ratio:.2f}"]
                scores = next(_iter_of(report.parts, case, method, library)).scores()
                rows.append([*row, *(_number(scores[name]) if name in scores else _NONE for name in names)])
        lines += ["", case, *_aligned(rows)]
    return "\n".join([*lines, "", *_notes(report)])


def markdown_tables(report: Report) -> str:
    """One row for each method and library over all cases; below it, folded, every case."""
    head = ["method", "library"]
    for part in report.parts:
        head.append(f"{_title(part).replace('ms', 'time')}, ratio to {report.reference}: mean (least to most)")
    names = _unique(name for s in _of(report.parts) for name in s.samples[0].scores)
    head += [f"{name.replace('_', ', ')}, median" for name in names]
    rows = [head]
    for method in _unique(s.method for s in _of(report.parts)):
        for library in _unique(s.library for s in _of(report.parts, method=method)):
            rows.append([method, library])
            for part in report.parts:
                every = (_ratio(report, part, s.case, method, library) for s in _of([part], method, library))
                ratios = [ratio for ratio in every if ratio is not None]
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0
                rows[-1].append(f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else _NONE)
            scores = [s.scores() for s in _of(report.parts[:1], method, library)]
            for name in names:
                values = [x[name] for x in scores if name in x]
                rows[-1].append(_number(median(values)) if values else _NONE)
    cases = len(_unique(s.case for s in _of(report.parts)))
    lines = [
        f"{_heading(report)} Times are medians of {report.rounds} interleaved rounds; a ratio's mean is the geometric "
        f"one over {cases} case{'s' * (cases > 1)}; above 1 is slower than {report.reference}."
        + _BUSY
        * any("other work took" in note for note in _notes(report)),
        "",
        *_piped(rows),
        "",
        "<details><summary>Every case: milliseconds, and median errors over the seeds</summary>",
        "",
        *_piped(_every_case(report)),
        "",
        *(f"- {note}" for note in _notes(report)),
        "",
        "</details>",
    ]
    return "\n".join(lines)


def rewrite_block(text: str, name: str, body: str) -> str:
    """`text` with `body` between the markers of benchmark `name`, and nothing else changed.

    Raises: ValueError where the markers do not stand there once, in order.
    """
    begin = f"<!-- benchmark:{name} -->"
    before, found, rest = text.partition(begin)
    old, ended, after = rest.partition(_END)
    if not found or not ended or begin in rest or "<!-- benchmark:" in old:
        raise ValueError(f"expected {begin} once, and {_END} after it")
    return f"{before}{begin}\n{body.strip()}\n{_END}{after}"


def update_readme(path: Path, report: Report) -> None:
    """Raises: FileFormatError where the markers are not there; the file is then unchanged."""
    try:
        with open(path, encoding="utf-8", newline="") as file:  # line ends outside the block stay what they are
            text = rewrite_block(file.read(), report.benchmark, markdown_tables(report))
    except ValueError as error:
        raise FileFormatError(path, str(error)) from error
    write_atomically(path, text)


def _every_case(report: Report) -> list[list[str]]:
    libraries = _unique(s.library for s in _of(report.parts))
    rows = [["case", "method", *(f"{library}, {_title(part)}" for part in report.parts for library in libraries)]]
    rows[0] += [f"{library}, error" for library in libraries]
    for case in _unique(s.case for s in _of(report.parts)):
        for method in _unique(s.method for s in _of(report.parts, case=case)):
            row = [case, method]
            for part in report.parts:
                found = [_pick(part, case, method, library) for library in libraries]
                row += [_NONE if s is None else f"{s.milliseconds(part.clock):.1f}" for s in found]
            for library in libraries:
                s = next(_iter_of(report.parts, case, method, library), None)
                scores = {} if s is None else s.scores()
                parts = [f"{_number(x)} {name.rpartition('_')[2]}" for name, x in scores.items()]
                row.append(", ".join(parts) or _NONE)
            rows.append(row)
    return rows


def _of(
    parts: Sequence[Part], method: str | None = None, library: str | None = None, *, case: str | None = None
) -> list[Series]:
    wanted = {"method": method, "library": library, "case": case}
    return [
        s
        for part in parts
        for s in part.series
        if all(value is None or getattr(s, key) == value for key, value in wanted.items())
    ]


def _iter_of(parts: Sequence[Part], case: str, method: str, library: str) -> Iterator[Series]:
    return iter(_of(parts, method, library, case=case))


def _pick(part: Part, case: str, method: str, library: str) -> Series | None:
    return next(_iter_of([part], case, method, library), None)


def _ratio(report: Report, part: Part, case: str, method: str, library: str) -> float | None:
    mine, other = (_pick(part, case, method, name) for name in (library, report.reference))
    if mine is None or other is None:
        return None
    return mine.milliseconds(part.clock) / other.milliseconds(part.clock)


def _title(part: Part) -> str:
    threads = "1 thread" if part.threads == 1 else f"{part.threads} threads"
    return f"{'CPU' if part.clock == 'cpu' else 'wall'} ms, {threads}"


def _heading(report: Report) -> str:
    machine, versions = report.machine, report.versions
    peers = ("small-gicp", "open3d", "scipy", "torch")
    return (
        f"{report.benchmark} on {report.device}: {machine['cpu']}, {machine['cores']} cores, {report.date[:10]}, "
        f"commit {report.commit}, " + ", ".join(f"{name} {versions[name]}" for name in peers if name in versions) + "."
    )


def _notes(report: Report) -> list[str]:
    return _unique([*report.notes, *(note for part in report.parts for note in part.notes)])


def _number(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _piped(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
