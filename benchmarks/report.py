"""What a benchmark leaves behind: every single timing, and on what machine, with which versions, from which commit."""

import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness import Sample, Series
from geom.errors import FileFormatError
from geom.files import write_atomically

__all__ = ["BEST_PEER", "ROOT", "Part", "Report", "cores", "describe_machine", "git_commit", "package_versions"]

ROOT = Path(__file__).resolve().parents[1]
BEST_PEER = "the best peer"  # a `reference`: for each method the fastest library but geom, by its least time
_SCHEMA = 1


@dataclass(frozen=True)
class Part:
    """All series of one thread setting; `clock` ("cpu" or "wall") is the one its table shows."""

    clock: str
    threads: int
    torch_threads: int
    series: list[Series]
    notes: list[str]


@dataclass(frozen=True)
class Report:
    """A whole benchmark; ratios are to the library `reference` or to `BEST_PEER`, method by method."""

    benchmark: str
    reference: str
    device: str
    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    rounds: int
    seeds: int
    notes: list[str]
    parts: list[Part]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Raises: FileFormatError where the file is no report of this schema."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.pop("schema") != _SCHEMA:
                raise ValueError("another schema")
            return cls(**{**fields, "parts": [part_from_json(part) for part in fields["parts"]]})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FileFormatError(path, f"expected a benchmark's JSON of schema {_SCHEMA}: {error}") from error


def part_from_json(fields: dict[str, Any]) -> Part:
    """The inverse of `dataclasses.asdict` for a Part."""
    series = [Series(**{**s, "samples": [Sample(**x) for x in s["samples"]]}) for s in fields["series"]]
    return Part(**{**fields, "series": series})


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return {
        "cpu": names[0].strip() if names else platform.processor() or "unknown",
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def package_versions() -> dict[str, str]:
    """Of Python, of geom, and of every package that geom's own requirements name and that is here."""
    named = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in metadata.requires("geom-toolkit") or []]
    found = {"python": platform.python_version()}
    for name in sorted({"geom-toolkit", *named}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """Short hash of the checkout, and whether the library's sources differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "geom", "kernels", "benchmarks")
        return git("rev-parse", "--short", "HEAD") + (" with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def today() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
