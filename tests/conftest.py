"""What every test shares: shape checks on the library's annotations, data, dtypes, devices.

The rooms in `CHECKED` are imported through jaxtyping's hook, so each annotated shape is checked on each call and a
wrong one raises `jaxtyping.TypeCheckError`. Two kinds of test switch that off with
`@pytest.mark.usefixtures("unchecked")`, for one test or, as `pytestmark`, for a file: those that hand a function wrong
input to see the library's own `ShapeError`, and those that call `torch.compile(fullgraph=True)`, which cannot trace the
checks. `JAXTYPING_DISABLE=1` switches all off.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import beartype
import hypothesis
import jaxtyping
import pytest

# `kernels` never: Warp reads the source. The ground, readers and doors take anything and check it themselves.
CHECKED = (
    "lie points meshes optim nn train elastic flow registration rods mpm skinning sequence clifford groupconv "
    "equivariant protein"
)
# an int is good where a float is asked for; `Self` means something to beartype only where it decorates the whole class
TYPECHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, "
    "hint_overrides=beartype.FrozenDict({__import__('typing_extensions').Self: object})))"
)
jaxtyping.install_import_hook([f"geom.{room}" for room in CHECKED.split()], TYPECHECKER)

import torch  # noqa: E402 (the hook stands before anything that imports geom)

from geom import values  # noqa: E402

# `values` is not hooked, because torch.compile traces its pytree maps; the one value it defines is
jaxtyping.jaxtyped(values.Fit, typechecker=beartype.beartype)

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("geom", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("geom")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if getattr(config.option, "numprocesses", None):  # pytest -n: one thread too for what workers load and start
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For pytest -n auto: the cores this process may use, and at most 8, as a worker takes 1 GB and more."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def subclasses(cls: type) -> Iterator[type]:
    """All of them that the library defines."""
    for child in cls.__subclasses__():
        yield from subclasses(child)
        if child.__module__.startswith("geom."):
            yield child


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test without shape checks: user-input validation, torch.compile."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    # what torch.compile cannot trace, disabled or not: wrapping a function inside a function, a value's wrapped method
    monkeypatch.setattr(jaxtyping, "jaxtyped", lambda **_: lambda function: function)
    for cls in values._KNOWN.values():
        for name, method in [(k, v) for k, v in vars(cls).items() if inspect.isfunction(v)]:
            monkeypatch.setattr(cls, name, inspect.unwrap(method))
    for cls in subclasses(torch.autograd.Function):
        for name, method in [(k, v) for k, v in vars(cls).items() if isinstance(v, staticmethod)]:
            monkeypatch.setattr(cls, name, staticmethod(inspect.unwrap(method.__func__)))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real inputs and golden outputs; see DESIGN.md, "Data in tests and benchmarks"."""
    folder = Path(os.environ.get("GEOM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no data: GEOM_DATA is not set to a folder and ../shared/data is not there")
    return folder


@pytest.fixture(params=[torch.float32, torch.float64], ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both dtypes of the library, one after the other."""
    return request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's thread count; the old one comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
