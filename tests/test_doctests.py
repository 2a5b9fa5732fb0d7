"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import geom
from geom.errors import MissingDependencyError

ROOT = Path(geom.__file__).parent


def module_names() -> list[str]:
    """Every module of the library but the kernels (Warp reads their source) and what runs when imported."""
    paths = [path.relative_to(ROOT.parent).with_suffix("") for path in sorted(ROOT.rglob("*.py"))]
    names = [".".join(p.parts[:-1] if p.name == "__init__" else p.parts) for p in paths if p.name != "__main__"]
    return [name for name in names if name.split(".")[1:2] not in (["kernels"], ["assets"])]


class Finder(doctest.DocTestFinder):
    """Finds functions behind the shape checks too: a wrapper's globals are those of the module that wrapped it."""

    def _from_module(self, module: ModuleType | None, object: Any) -> bool:
        return super()._from_module(module, inspect.unwrap(object) if inspect.isroutine(object) else object)  # type: ignore[misc]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in Finder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", module_names())
def test_examples_of(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except MissingDependencyError as missing:
        pytest.skip(str(missing))
    assert module.__file__ is not None
    found = examples(module)
    written = Path(module.__file__).read_text().count(">>> ")
    assert sum(len(test.examples) for test in found) == written, "an example stands where nothing runs it"
    for test in found:
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        report: list[str] = []
        runner.run(test, out=report.append)
        assert not runner.failures, "".join(report)


def test_a_wrong_example_is_reported() -> None:
    module = ModuleType("made_up")
    exec('def f():\n    """\n    >>> f()\n    1\n    """\n    return 2\nf.__module__ = "made_up"', module.__dict__)
    (test,) = examples(module)
    assert doctest.DocTestRunner().run(test, out=lambda _: None).failed == 1
