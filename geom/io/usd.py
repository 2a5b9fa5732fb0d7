"""Meshes of USD files (.usd, .usda, .usdc, .usdz) through `pxr`, in a process whose crash leaves ours standing."""

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geom.errors import MissingDependencyError
from geom.io.bytes import Source
from geom.io.faces import fan
from geom.io.geometry import Geometry
from geom.io.instances import Instance, join

__all__ = ["read_usd"]

_MAGIC = {".usda": (b"#usda",), ".usdc": (b"PXR-USDC",), ".usdz": (b"PK\x03\x04",)}
_SECONDS = 60.0
_START = "import sys, runpy; sys.path[:] = sys.argv.pop(1).split('\\n'); sys.argv[:] = sys.argv[1:]; "
_START += "runpy.run_path(sys.argv[0], run_name='__main__')"


def read_usd(source: Source) -> Geometry:
    """Read all meshes of a USD stage as one, in world coordinates, at the earliest time of the stage.

    Meshes follow each other in the order of the stage. Normals and displayColor are kept where they are given per
    vertex (one constant colour counts). Units stay those of the stage (metersPerUnit is not applied), as does its up
    axis. Other layers that the stage references are opened by USD itself.

    Raises: FileFormatError; MissingDependencyError without pxr.
    """
    suffix = os.path.splitext(source.path)[1].lower()
    if not source.data.startswith(_MAGIC.get(suffix, tuple(m for group in _MAGIC.values() for m in group))):
        raise source.fail(f"expected the first bytes of a {suffix} file", 0)
    if importlib.util.find_spec("pxr") is None:
        raise MissingDependencyError("usd-core", extra="mesh", purpose="reading USD files")
    arrays = _arrays_of_stage(source)
    parts = []
    for i in range(sum(name.startswith("matrix") for name in arrays)):
        lengths, indices = arrays[f"counts{i}"], arrays[f"indices{i}"]
        if (lengths < 0).any() or lengths.sum() != len(indices):
            raise source.fail(f"mesh {i}: faceVertexCounts do not add up to its {len(indices)} faceVertexIndices")
        faces = fan(source, indices, lengths)
        faces = faces[:, ::-1] if arrays[f"left{i}"] else faces
        extras = (arrays.get(f"{kind}{i}") for kind in ("normals", "colors"))
        parts.append(Instance(arrays[f"matrix{i}"], arrays[f"points{i}"], faces, *extras))
    return join(source, parts)


def _arrays_of_stage(source: Source) -> dict[str, NDArray[Any]]:
    """Run `usd_stage` on the file. Raises: FileFormatError where it fails, crashes or takes too long."""
    script = Path(__file__).with_name("usd_stage.py")
    memory = (4 << 30) + 20 * len(source.data)  # address space: the threads of pxr reserve far more than they use
    seconds = _SECONDS + len(source.data) / 1e6
    command = [
        sys.executable,
        "-I",
        "-c",
        _START,
        "\n".join(sys.path),
        str(script),
        os.path.abspath(source.path),
        str(memory),
    ]
    environment = {**os.environ, "PXR_WORK_THREAD_LIMIT": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, env=environment, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise source.fail(f"pxr did not open it within {seconds:.0f} s") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise source.fail(f"pxr cannot open it: {lines[-1][:200]}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}
