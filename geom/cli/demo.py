"""`geom demo`."""

import time
from pathlib import Path

__all__ = ["demo"]


def demo(out: Path = Path("out/demo")) -> int:
    """Run the tour: the main jobs on real input, with pictures, numbers and a page to read.

    Real scans come from the folder that GEOM_DATA names (default ../shared/data); without it, the tour shows the scans
    that come with the package.

    Args:
        out: Folder for the pictures, numbers.json and index.html; made where it is missing.
    """
    from geom.demo import data_folder, run

    begin = time.perf_counter()
    results = run(out, data_folder())
    print(f"{len(results)} jobs in {time.perf_counter() - begin:.1f} s; open {out / 'index.html'}")
    return 0
