import copy
import pickle
from pathlib import Path

import pytest

from geom import errors
from geom.errors import ConvergenceWarning, FileFormatError, GeomError, MissingDependencyError, ShapeError


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(ShapeError, ValueError), (FileFormatError, ValueError), (MissingDependencyError, ImportError)],
)
def test_each_is_ours_and_the_builtin_it_refines(error: type, builtin: type) -> None:
    assert issubclass(error, GeomError) and issubclass(error, builtin)


def test_the_warning_is_not_an_error() -> None:
    assert issubclass(ConvergenceWarning, UserWarning) and not issubclass(ConvergenceWarning, GeomError)


def test_all_names_every_class() -> None:
    classes = {k for k, v in vars(errors).items() if isinstance(v, type) and v.__module__ == "geom.errors"}
    assert classes == set(errors.__all__)


def test_file_error_names_path_place_and_reason() -> None:
    error = FileFormatError(Path("scan.ply"), "expected 3 numbers, got 2", offset=120)
    assert str(error) == "scan.ply at byte 120: expected 3 numbers, got 2"
    assert (error.path, error.offset, error.reason) == ("scan.ply", 120, "expected 3 numbers, got 2")
    assert str(FileFormatError("scan.ply", "empty")) == "scan.ply: empty"
    assert str(FileFormatError("scan.ply", "bad magic", offset=0)) == "scan.ply at byte 0: bad magic"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_errors_cross_processes(again) -> None:
    error = again(FileFormatError("scan.ply", "short", offset=7))
    assert (error.path, error.reason, error.offset, str(error)) == ("scan.ply", "short", 7, "scan.ply at byte 7: short")
    missing = again(MissingDependencyError("open3d", extra="viz", purpose="the viewer"))
    assert str(missing) == "the viewer needs open3d: pip install 'geom-toolkit[viz]'"
