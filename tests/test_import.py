"""`import geom` is light: rooms load when they are asked for."""

import subprocess
import sys

import pytest

import geom

HEAVY = ["torch", "numpy", "scipy", "jaxtyping", "warp", "e3nn", "trimesh", "open3d", "matplotlib"]


def loaded_after(statement: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter holds after a statement."""
    script = f"import sys\n{statement}\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(out.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    assert loaded_after("import geom; geom.__version__; dir(geom)") == set()


def test_the_check_itself_sees_torch() -> None:
    assert "torch" in loaded_after("import geom; geom.lie")


def test_matter_needs_no_door() -> None:
    assert loaded_after("from geom import lie, points, meshes, values") <= {
        "torch",
        "numpy",
        "jaxtyping",
        "scipy",
        "warp",
    }


@pytest.mark.parametrize("room", geom.__all__)
def test_rooms_resolve(room: str) -> None:
    module = getattr(geom, room)
    assert module.__name__ == f"geom.{room}" and module.__doc__, "a room says in a docstring what it is for"


def test_an_unknown_room_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'geom' has no attribute 'kernals'"):
        geom.kernals  # noqa: B018
    assert not hasattr(geom, "__path_to_nowhere__")


def test_dir_lists_the_rooms_and_the_version() -> None:
    assert set(dir(geom)) == {*geom.__all__, "__version__"}
    assert geom.__version__.count(".") == 2


def test_type_checkers_see_every_room() -> None:
    """The names under TYPE_CHECKING are those of `__all__`: one list for people, one for tools."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(geom.__file__).read_text())
    seen = [
        a.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for a in node.names
        if node.module == "geom"
    ]
    assert seen == geom.__all__
