"""Run every chapter's jobs, and leave `numbers.json` and `index.html` beside the pictures."""

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from geom.errors import GeomError
from geom.files import write_atomically

__all__ = ["Chapter", "Result", "data_folder", "run", "versions"]


class Result(NamedTuple):
    """What one job leaves: `numbers`, plain JSON data; `words`, what the reader sees; names of files in the folder, and
    what stands under the picture, from left to right."""

    name: str
    numbers: dict[str, Any]
    words: str
    picture: str | None = None
    scene: str | None = None  # an interactive page
    captions: tuple[str, ...] = ("before", "after")


class Chapter(NamedTuple):
    """One subject: an opening, jobs by name (each takes the output folder), and a table of the numbers they return.

    `columns`: heading -> format string over a job's numbers, e.g. {"error": "{error_deg:.3f}°"}; a job without the
    number leaves the cell empty.
    """

    name: str
    title: str
    text: str
    columns: dict[str, str]
    jobs: Sequence[tuple[str, Callable[[Path], Result]]]


def chapters(data: Path | None) -> list[Chapter]:
    """Every chapter of the tour, for the real data in `data` where there are any."""
    from geom.demo import cables, characters, registration

    return [room.chapter(data) for room in (registration, cables, characters)]


def data_folder() -> Path | None:
    """The folder of real data: GEOM_DATA, by default ../shared/data; None where it is not there."""
    folder = Path(os.environ.get("GEOM_DATA", Path("..") / "shared" / "data"))
    return folder if folder.is_dir() else None


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("geom-toolkit", "torch", "warp-lang", "numpy", "open3d"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def run(out: str | os.PathLike[str], data: str | os.PathLike[str] | None = None) -> list[Result]:
    """Run the tour and write it into the folder `out`, which is made where it is missing.

    Args: out, for pictures, interactive scenes, `numbers.json` and `index.html`; data, the folder of real data (the
    layout of `GEOM_DATA`), or None for what comes with the package alone.
    Returns: the results in order. Where nothing can be drawn, numbers and page come without pictures; a job that fails
    on its data has `problem` as its only number.
    Raises: OSError where `out` cannot be written.

    Deterministic, but for the times; a progress bar on a terminal.
    """
    from tqdm import tqdm

    from geom.demo.page import render_page

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tour = chapters(None if data is None else Path(data))
    results: list[list[Result]] = []
    with tqdm(total=sum(len(c.jobs) for c in tour), disable=not sys.stderr.isatty(), unit="job", leave=False) as bar:
        for chapter in tour:
            results.append([])
            for name, job in chapter.jobs:
                bar.set_description(f"{chapter.name}: {name}")
                try:
                    results[-1].append(job(out))
                except GeomError as error:  # one bad file is no reason to lose the rest
                    results[-1].append(Result(name, {"problem": str(error)}, f"Failed. {error}"))
                bar.update()
    made = versions()
    numbers = {c.name: {r.name: r.numbers for r in done} for c, done in zip(tour, results, strict=True)}
    write_atomically(out / "numbers.json", json.dumps({"versions": made, **numbers}, indent=1, allow_nan=False) + "\n")
    write_atomically(out / "index.html", render_page(tour, results, made))
    return [result for done in results for result in done]
