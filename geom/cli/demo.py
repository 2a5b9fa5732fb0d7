"""`geom demo`."""

import time
from pathlib import Path

__all__ = ["demo"]


def demo(out: Path = Path("out/demo")) -> int:
    """Run the tour: the main jobs on real input, with pictures, numbers and a page to read.

    Real data come from the folder that GEOM_DATA names (default ../shared/data); without it, the tour shows what
    comes with the package.

    Args:
        out: Folder for the pictures, numbers.json and index.html; made where it is missing.
    """
    from geom.demo import data_folder, run
    from geom.errors import GeomError

    begin, data = time.perf_counter(), data_folder()
    results = run(out, data)
    print(f"{len(results)} jobs in {time.perf_counter() - begin:.1f} s, real data: {data or 'none'}")
    print(f"open {out / 'index.html'}")
    problems = [f"{result.name}: {result.numbers['problem']}" for result in results if "problem" in result.numbers]
    if problems:
        raise GeomError(f"{len(problems)} of {len(results)} jobs failed: {'; '.join(problems)}")
    return 0
