"""Tables from a report: text for the terminal, Markdown for the README, rewritten between its markers."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.harness import Series
from benchmarks.report import BEST_PEER, Part, Report
from geom.errors import FileFormatError
from geom.files import write_atomically

__all__ = ["markdown_tables", "rewrite_block", "text_tables", "update_readme"]

_END = "<!-- /benchmark -->"
_NONE = "-"
_BUSY = " **Other work ran on the machine at the same time: see the notes under the cases.**"


def text_tables(report: Report) -> str:
    """A table for each case: times, ratios to the reference, errors; then the notes."""
    best = report.reference == BEST_PEER
    lines = [_heading(report), f"ratios: to {report.reference} with the same method; above 1 is slower"]
    lines += ["times: the least of the rounds, and their median"] * best
    for case in _unique(s.case for part in report.parts for s in part.series):
        names = _unique(name for s in _of(report.parts, case=case) for name in s.samples[0].scores)
        head = ("median", "ratio") if best else ("ratio",)
        rows = [["", *(x for part in report.parts for x in (_title(part), *head)), *names]]
        for method in _unique(s.method for s in _of(report.parts, case=case)):
            for library in _unique(s.library for s in _of(report.parts, case=case, method=method)):
                row = [f"{method} {library}"]
                for part in report.parts:
                    found = _pick(part, case, method, library)
                    ratio = _ratio(report, part, case, method, library)
                    row += [_NONE if found is None else _milliseconds(_time(report, part, found))]
                    row += [_NONE if found is None else _milliseconds(found.milliseconds(part.clock))] * best
                    row += [_said(ratio)]
                scores = next(_iter_of(report.parts, case, method, library)).scores()
                rows.append([*row, *(_number(scores[name]) if name in scores else _NONE for name in names)])
        lines += ["", case, *_aligned(rows)]
    return "\n".join([*lines, "", *_notes(report)])


def markdown_tables(report: Report) -> str:
    """A table that fits the README, and below it, folded, the notes and, against one reference, every case."""
    cases = _unique(s.case for s in _of(report.parts) if _is_timed(s))
    if report.reference == BEST_PEER:
        said = (
            f"{_title(report.parts[0])}, the least of {report.rounds} interleaved rounds; times and errors are of case "
            f"{', '.join(cases[-1:])}; a ratio is geom to the best peer (bold): above 1 geom is slower."
        )
        rows, summary, every = _against_the_best(report), "What is measured, and how", []
    else:
        said = (
            f"Times are medians of {report.rounds} interleaved rounds; a ratio's mean is the geometric one over "
            f"{len(cases)} case{'s' * (len(cases) > 1)}; above 1 is slower than {report.reference}."
        )
        rows, summary = _against_one(report), "Every case: milliseconds, and median errors over the seeds"
        every = [*_piped(_every_case(report)), ""]
    busy = _BUSY * any("other work took" in note for note in _notes(report))
    lines = [
        f"{_heading(report)} {said}{busy}",
        "",
        *(line for table in (rows, *_untimed(report)) if len(table) > 1 for line in [*_piped(table), ""]),
        f"<details><summary>{summary}</summary>",
        "",
        *every,
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


def _against_one(report: Report) -> list[list[str]]:
    """A row for each method and library, over all cases."""
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
    return rows


def _against_the_best(report: Report) -> list[list[str]]:
    """A row for each method: milliseconds of the last case, geom's ratio in each case, geom's and the peer's error."""
    first, *others = report.parts
    timed = [s for s in first.series if _is_timed(s)]
    names, libraries = _unique(s.case for s in timed), _unique(s.library for s in timed)
    columns = [(first, name) for name in names] + [(part, name) for part in others for name in names[-1:]]
    titles = [f"ratio, {name}" + f", {_title(part)}".replace(" ms", "") * (part is not first) for part, name in columns]
    rows = [["", *(f"{library}, ms" for library in libraries), *titles, "error, geom", "error, best peer"]]
    for method in _unique(s.method for s in timed):
        found = {library: _pick(first, names[-1], method, library) for library in libraries}
        best = _reference(report, first, names[-1], method)
        times = [_NONE if s is None else _milliseconds(_time(report, first, s)) for s in found.values()]
        times = [f"**{x}**" if s is not None and s is best else x for x, s in zip(times, found.values(), strict=True)]
        ratios = [_ratio(report, part, name, method, "geom") for part, name in columns]
        errors = [_NONE if s is None else ", ".join(map(_number, s.scores().values())) for s in (found["geom"], best)]
        rows.append([method, *times, *map(_said, ratios), *errors])
    return rows


def _untimed(report: Report) -> Iterator[list[list[str]]]:
    """A table of each case that is there for its scores only, a row for each library."""
    for case in _unique(s.case for s in _of(report.parts) if not _is_timed(s)):
        found = [(f"{s.method} {s.library}", s.scores()) for s in _of(report.parts, case=case)]
        names = _unique(name for _, scores in found for name in scores)
        rows = [[who, *(_number(scores[x]) if x in scores else _NONE for x in names)] for who, scores in found]
        yield [["", *(name.replace("_", " ") for name in names)], *rows]


def _every_case(report: Report) -> list[list[str]]:
    libraries = _unique(s.library for s in _of(report.parts))
    rows = [["case", "method", *(f"{library}, {_title(part)}" for part in report.parts for library in libraries)]]
    rows[0] += [f"{library}, error" for library in libraries]
    for case in _unique(s.case for s in _of(report.parts)):
        for method in _unique(s.method for s in _of(report.parts, case=case)):
            row = [case, method]
            for part in report.parts:
                found = [_pick(part, case, method, library) for library in libraries]
                row += [_NONE if s is None else _milliseconds(_time(report, part, s)) for s in found]
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
    mine, other = _pick(part, case, method, library), _reference(report, part, case, method)
    if mine is None or other is None or not _is_timed(mine):
        return None
    return _time(report, part, mine) / _time(report, part, other)


def _said(ratio: float | None) -> str:
    return _NONE if ratio is None else f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _reference(report: Report, part: Part, case: str, method: str) -> Series | None:
    if report.reference != BEST_PEER:
        return _pick(part, case, method, report.reference)
    peers = [s for s in _of([part], method, case=case) if s.library != "geom"]
    return min(peers, key=lambda s: _time(report, part, s), default=None)


def _time(report: Report, part: Part, series: Series) -> float:
    """Where every round does the same work, which is where the best peer is the reference, the rest is disturbance."""
    return series.least(part.clock) if report.reference == BEST_PEER else series.milliseconds(part.clock)


def _milliseconds(time: float) -> str:
    return _NONE if time == 0 else f"{time:.1f}" if time >= 1 else f"{time:.2g}"


def _is_timed(series: Series) -> bool:
    return series.samples[0].wall_ms > 0


def _title(part: Part) -> str:
    threads = "1 thread" if part.threads == 1 else f"{part.threads} threads"
    return f"{'CPU' if part.clock == 'cpu' else 'wall'} ms, {threads}"


def _heading(report: Report) -> str:
    machine, versions = report.machine, report.versions
    peers = [re.split(r"[. ]", s.library)[0].replace("_", "-") for s in _of(report.parts)]
    return (
        f"{report.benchmark} on {report.device}: {machine['cpu']}, {machine['cores']} cores, {report.date[:10]}, "
        f"commit {report.commit}, "
        + ", ".join(f"{name} {versions[name]}" for name in _unique([*peers, "torch"]) if name in versions)
        + "."
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
