"""`python -m benchmarks NAME [--quick] [--device cpu|cuda] [--out FILE]` and `python -m benchmarks table NAME FILE`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from benchmarks.part import Request, choose_plan, find_benchmark, run_part
from benchmarks.report import Report, describe_machine, git_commit, package_versions, today
from benchmarks.tables import markdown_tables, text_tables, update_readme
from geom.errors import GeomError

BENCHMARKS = {
    "registration-local": "geom.icp, small_gicp and open3d from perturbed labels",
    "neighbors": "neighbours, voxel grids and normals: geom, scipy, small_gicp and open3d",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: the exit code: 0, or 2 after one line on stderr for wrong arguments, files or data."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: python -m benchmarks NAME [--help]\n       python -m benchmarks table NAME FILE.json [--help]\n")
        print("\n".join(f"{known:<20} {about}" for known, about in BENCHMARKS.items()))
        return 0
    try:
        if name == "table":
            _cli(table, "table", arguments[1:])
        elif name in BENCHMARKS:
            report = _cli(lambda: Options, name, arguments[1:])
            run(name, report)
        else:
            raise GeomError(f"expected one of {', '.join(BENCHMARKS)} or table, got {name}")
    except SystemExit as stop:  # tyro: 0 after --help, 2 for arguments that do not parse
        return stop.code if isinstance(stop.code, int) else 2
    except (GeomError, OSError) as error:
        print(f"benchmarks: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
