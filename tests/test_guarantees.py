"""Every public function on tensors says, in one line that tools can read, what it guarantees."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest

ROOMS = [
    *["lie", "points", "meshes", "optim", "nn", "train"],
    *["registration", "rods", "skinning", "sequence", "clifford", "interop", "compat", "testing"],
]
PARTS = r"(not )?differentiable\b.*; deterministic\b.*"


def functions(module: ModuleType) -> Iterator[tuple[str, str]]:
    """(name, docstring) of all that `module` makes public, submodules included."""
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            yield from functions(thing)
        elif inspect.isfunction(thing):
            yield f"{module.__name__}.{name}", inspect.getdoc(thing) or ""


@pytest.mark.parametrize("room", ROOMS)
def test_every_function_says_what_it_guarantees(room: str) -> None:
    found = dict(functions(import_module(f"geom.{room}")))
    lines = {name: re.findall(r"^Guarantees: (.*)$", doc, re.M) for name, doc in found.items()}
    assert found
    assert not [name for name, line in lines.items() if len(line) != 1 or not re.match(PARTS, line[0])]
