"""Geometry and equivariant learning on torch: import the rooms you need, `import geom` loads none of them."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geom import (
        checks,
        cli,
        clifford,
        compat,
        demo,
        errors,
        interop,
        io,
        lie,
        meshes,
        nn,
        optim,
        points,
        registration,
        rods,
        sequence,
        skinning,
        testing,
        train,
        values,
        viz,
    )

__all__ = [
    "checks",
    "cli",
    "clifford",
    "compat",
    "demo",
    "errors",
    "interop",
    "io",
    "lie",
    "meshes",
    "nn",
    "optim",
    "points",
    "registration",
    "rods",
    "sequence",
    "skinning",
    "testing",
    "train",
    "values",
    "viz",
]


def __getattr__(name: str) -> ModuleType | str:
    if name in __all__:
        return import_module(f"geom.{name}")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version  # 20 ms that most imports never need

        try:
            return version("geom-toolkit")
        except PackageNotFoundError:  # a source tree on the path, never installed
            return "0.1.0"
    raise AttributeError(f"module 'geom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
