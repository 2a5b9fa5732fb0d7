"""`python -m benchmarks NAME [--quick] [--device cpu|cuda] [--out FILE]` and `python -m benchmarks table NAME FILE`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
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
    "points": "neighbours and Chamfer distance: geom, scipy, open3d and torch.cdist",
    "sampling": "farthest points and neighbours by size: geom, fpsample, scipy, open3d and torch",
    "serialization": "codes and orders along curves, bit by bit, and their steps: geom, numpy-hilbert-curve and torch",
    "scan": "selective scans, Mamba, PCM-Tiny, linear attention: geom, mambapy and torch's forms; memory and threads",
    "meshes": "geodesics, Laplacian, distance, samples: geom, libigl, potpourri3d, open3d and trimesh",
    "rods": "elastic rods: geom and PyElastica at equal physics, microseconds of a rod-step, errors on motion capture",
    "clifford": "geometric algebra: geom, GATr in dense form, lgatr and geometric-algebra-attention",
    "skinning": "linear and dual-quaternion skinning: geom, torch's forms and libigl",
    "rotations": "geom.lie, roma, pypose, scipy and pytorch3d's formulas",
}


@dataclass(frozen=True)
class Options:
    """Measure geom and its peers side by side: first CPU time on one thread, then wall time on all cores."""

    quick: bool = False
    """Few inputs, 3 rounds and 2 seeds, to see that it runs; the numbers mean little."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where geom runs; cuda measures wall time only, peers without CUDA on all CPU threads."""
    inputs: tuple[str, ...] = ()
    """Inputs by name; else those that the benchmark chooses."""
    out: Path | None = None
    """JSON file with every timing; else out/benchmarks/NAME.json."""


@dataclass(frozen=True)
class TableOptions:
    """Print the Markdown table of a benchmark's JSON, or write it into a README."""

    name: Positional[str]
    """Benchmark, as in the markers <!-- benchmark:NAME --> and <!-- /benchmark -->."""
    file: Positional[Path]
    """JSON file that the benchmark wrote."""
    readme: Path | None = None
    """File in which the text between the markers is replaced."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: the exit code: 0; 2 after one line on stderr for wrong names, files or data; 130 after Ctrl-C."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if name in ("-h", "--help"):
            print("usage: python -m benchmarks NAME [--help]\n       python -m benchmarks table NAME FILE [--help]\n")
            print("\n".join(f"{known:<20} {about}" for known, about in BENCHMARKS.items()))
        elif name == "table":
            write_table(tyro.cli(TableOptions, prog="python -m benchmarks table", args=rest))
        elif name in BENCHMARKS:
            run(name, tyro.cli(Options, prog=f"python -m benchmarks {name}", args=rest))
        else:
            raise GeomError(f"expected one of {', '.join(BENCHMARKS)} or table, got {name}")
    except SystemExit as stop:  # tyro: 0 after --help, 2 for arguments that do not parse
        return stop.code if isinstance(stop.code, int) else 2 * (stop.code is not None)
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    except (GeomError, OSError) as error:
        print(f"benchmarks: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run(name: str, options: Options) -> None:
    """Measure, save, and print the table. Raises: GeomError, OSError."""
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise GeomError("device: expected cpu, got cuda, and torch sees no CUDA device")
    benchmark, plan = find_benchmark(name), choose_plan(options.quick)
    benchmark.inputs(options.inputs)  # a wrong name is told before anything runs
    machine, commit = describe_machine(), git_commit()
    clocks = ("wall",) if options.device == "cuda" else ("cpu", "wall")
    report = Report(
        benchmark=name,
        reference=benchmark.REFERENCE,
        device=options.device,
        date=today(),
        commit=commit,
        machine=machine,
        versions=package_versions(),
        rounds=plan.rounds,
        seeds=plan.seeds,
        notes=benchmark.NOTES,
        parts=[run_part(Request(name, clock, options.device, options.quick, options.inputs)) for clock in clocks],
    )
    out = options.out or Path("out/benchmarks") / f"{name}.json"
    report.save(out)
    print(f"{text_tables(report)}\n\nevery timing: {out}")


def write_table(options: TableOptions) -> None:
    """Raises: GeomError, OSError."""
    report = Report.load(options.file)
    if report.benchmark != options.name:
        raise GeomError(f"{options.file}: expected a report of {options.name}, got one of {report.benchmark}")
    if options.readme is None:
        print(markdown_tables(report))
    else:
        update_readme(options.readme, report)


if __name__ == "__main__":
    sys.exit(main())
