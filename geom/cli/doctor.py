"""`geom doctor`."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

__all__ = ["doctor", "foreign_geoms"]


def doctor() -> int:
    """Say what is installed, what works, and what to do about what does not.

    Exit code 1 where something essential is broken: torch, Warp, or the reading of the package's own files.
    """
    broken = 0
    for check in (_versions, _devices, _kernels, _package, _drawing, _clashes):
        try:
            for label, text in check():
                print(f"{label:<12} {text}")
        except Exception as error:  # a doctor names what is ill instead of falling ill
            broken += 1
            print(f"BROKEN       {check.__name__.strip('_')}: {type(error).__name__}: {error}")
    return 1 if broken else 0


def foreign_geoms(path: list[str] | None = None) -> list[str]:
    """Other modules named `geom` on the import path (default sys.path), and other distributions that install one.

    The one that comes first on the path wins the name, so the order of installation can hide the other.
    """
    ours = Path(__file__).resolve().parents[1] / "__init__.py"
    found = []
    for entry in dict.fromkeys(os.path.abspath(p or ".") for p in (sys.path if path is None else path)):
        spec = PathFinder.find_spec("geom", [entry])
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve() != ours:
            found.append(spec.origin)
    if path is None:
        found += [f"distribution {d}" for d in set(packages_distributions().get("geom", [])) - {"geom-toolkit"}]
    return found


def _versions() -> Iterator[tuple[str, str]]:
    from geom.demo import versions

    for name, number in versions().items():
        yield name, number or "not installed (pip install 'geom-toolkit[all]')"
    yield "system", f"{platform.platform()}, Python at {sys.executable}"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    yield "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    if not torch.cuda.is_available():
        yield "CUDA", "no device" if torch.version.cuda else "this torch is built without it"
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield f"cuda:{i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _kernels() -> Iterator[tuple[str, str]]:
    from geom.kernels import bridge

    bridge.start()
    cache = Path(bridge.wp.config.kernel_cache_dir or "")
    cold = []
    for name in bridge.MODULES:
        module = bridge.wp.get_module(import_module(f"geom.kernels.{name}").__name__)
        if not (cache / module.get_module_identifier(block_dim=1)).is_dir():  # 1: the CPU's
            cold.append(name)
    state = f"not compiled yet: {', '.join(cold)} (run: geom warmup)" if cold else "all compiled"
    yield "kernels", f"{len(bridge.MODULES)} modules, {state}; cache in {cache}"


def _package() -> Iterator[tuple[str, str]]:
    from importlib.resources import files

    scans = sorted(file.name for file in files("geom.assets").iterdir() if file.name.endswith(".npz"))
    if not scans:
        raise FileNotFoundError("the package came without its assets; install it again")
    yield "geom", f"at {Path(__file__).resolve().parents[1]}, with {', '.join(scans)}"


def _drawing() -> Iterator[tuple[str, str]]:
    from geom.viz import probe

    found = probe()
    if found.works:
        yield "drawing", f"open3d draws without a display, {'in software' if found.software else 'on a GPU'}"
    else:
        yield "drawing", f"with our own engine; {found.reason}"


def _clashes() -> Iterator[tuple[str, str]]:
    others = foreign_geoms()
    if others:
        yield "NAME CLASH", f"another module is also named geom: {', '.join(others)}; remove it (pip uninstall geom)"
    else:
        yield "names", "no other module is named geom"
