"""The house stands in one order: each room imports only rooms before it, read from the source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

GROUND = ["errors", "checks", "files", "roots", "values"]
SUBJECTS = ["registration", "rods", "mpm", "skinning", "sequence", "clifford", "groupconv", "equivariant", "protein"]
ROOMS = [
    *GROUND,
    "kernels",
    *["lie", "points", "meshes", "io"],
    *["optim", "nn", "train", "elastic", "flow"],
    *SUBJECTS,
    *["interop", "compat", "testing", "viz", "demo", "cli"],
]
BETWEEN_SUBJECTS = {("skinning", "mpm")}

# what is not the standard library, and the rooms that may import it; ... is all of them
PACKAGES: dict[str, Any] = {
    **dict.fromkeys(["torch", "numpy", "scipy", "jaxtyping", "typing_extensions", "safetensors", "tqdm"], ...),
    "warp": ["kernels"],
    "e3nn": ["equivariant", "interop"],
    "trimesh": ["io", "meshes", "interop"],
    "fast_simplification": ["meshes"],
    "pxr": ["io"],
    "open3d": ["viz", "interop"],
    "matplotlib": ["viz"],
    "PIL": ["viz"],
    "accelerate": ["train"],
    "tyro": ["cli"],
    "pytorch3d": ["interop", "compat"],
    "roma": ["interop"],
    "pypose": ["interop"],
}

NAMES_OF_NOTHING = {"utils", "helpers", "common", "misc", "core", "contrib", "experimental"}
LONGEST = 500
LONGER: dict[str, str] = {}  # path: why this one is better whole


def module_of(path: Path, root: Path = ROOT) -> str:
    """Dotted name of a file, with kernels/ seen where it is imported from."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = ("geom", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Dotted names that a source imports anywhere in it, save under `if TYPE_CHECKING`."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            children = node.orelse
        else:
            children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                folder = here[: len(here) - node.level + is_package]
                base = ".".join([*folder, base] if base else folder)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))
        for child in children:
            yield from visit(child)

    yield from visit(ast.parse(source))


def faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Every import of `source` that the order of the rooms or the table of packages forbids."""
    found = []
    room = module.split(".")[1] if "." in module else ""  # geom/__init__.py is no room: nothing but the lazy rooms
    room = {"__main__": "cli"}.get(room, room)
    if room and room not in ROOMS:
        return [f"{module}: {room!r} is no room; rooms stand in tests/test_floors.py"]
    for name in imports(source, module, is_package=is_package):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package == "geom" and other in ("", "__version__"):
            continue
        if package == "geom" and other not in ROOMS:
            found.append(f"{module}: {name} is in no room")
        elif package == "geom" and room and other != room:
            if ROOMS.index(other) > ROOMS.index(room):
                found.append(f"{module}: imports {name}, and {other} stands after {room}")
            elif {room, other} <= set(SUBJECTS) and (room, other) not in BETWEEN_SUBJECTS:
                found.append(f"{module}: imports {name}, and no subject imports another")
        elif package == "geom" and not room:
            found.append(f"{module}: imports {name}, and `import geom` must load no room")
        elif package == "kernels":
            found.append(f"{module}: imports {name}; its name is geom.{name}")
        elif package != "geom" and package not in sys.stdlib_module_names:
            allowed = PACKAGES.get(package, [])
            if allowed is not ... and room not in allowed:
                found.append(f"{module}: imports {name}, allowed in {', '.join(allowed) or 'no room'}")
    return found


def sources(*folders: str) -> list[Path]:
    """Python files under the folders of the repository, each once (geom/kernels and geom/assets are links)."""
    linked = (ROOT / "geom" / "kernels", ROOT / "geom" / "assets")
    files = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in files if "__pycache__" not in path.parts and not set(linked) & set(path.parents)]


LIBRARY = sources("geom", "kernels")
EVERY = [*LIBRARY, *sources("tests", "examples", "benchmarks", "assets")]


def test_files_are_found() -> None:
    names = {module_of(path) for path in LIBRARY}
    assert {"geom", "geom.errors", "geom.lie", "geom.lie.rigid"} <= names
    assert len(names) == len(LIBRARY)


@pytest.mark.parametrize("path", LIBRARY, ids=module_of)
def test_imports_only_what_stands_before(path: Path) -> None:
    found = faults(path.read_text(), module_of(path), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_nothing_imports_kernels_at_top_level() -> None:
    for path in EVERY:
        names = imports(path.read_text(), module_of(path), is_package=path.name == "__init__.py")
        assert not [name for name in names if name.split(".")[0] == "kernels"], path


def test_names_say_something() -> None:
    folders = [folder for path in EVERY for folder in path.relative_to(ROOT).parents]
    stems = {path.relative_to(ROOT): path.stem for path in EVERY} | {folder: folder.name for folder in folders}
    assert not [str(path) for path, stem in stems.items() if stem.strip("_") in NAMES_OF_NOTHING]
    assert not (ROOT / "kernels" / "__init__.py").exists(), "a package named kernels would shadow the one on PyPI"


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in EVERY}
    long = {path: n for path, n in lengths.items() if n > LONGEST}
    assert set(long) <= set(LONGER), f"over {LONGEST} lines: {long}; split them, or give the reason in LONGER"
    assert set(LONGER) <= set(long), "LONGER names files that are short now"


def test_each_room_is_listed_once() -> None:
    assert len(ROOMS) == len(set(ROOMS))


# --- the rules above must be able to fail ----------------------------------------------------------------------------

WRONG = {
    "from geom.registration import icp": "registration stands after lie",
    "from geom import optim": "optim stands after lie",
    "import geom.viz as v": "viz stands after lie",
    "from ..io import read_points": "io stands after lie",
    "from .. import io": "io stands after lie",
    "def late():\n    from geom.meshes import Mesh": "meshes stands after lie",
    "from importlib import import_module\nimport_module('geom.cli')": "cli stands after lie",
    "from geom.stuff import x": "geom.stuff.x is in no room",
    "import warp as wp": "imports warp, allowed in kernels",
    "from e3nn import o3": "allowed in equivariant, interop",
    "import PIL.Image": "imports PIL.Image, allowed in viz",
    "import pandas": "allowed in no room",
    "import kernels.bridge": "its name is geom.kernels.bridge",
    "from kernels import bridge": "its name is geom.kernels.bridge",
    "if TYPE_CHECKING:\n    pass\nelse:\n    import geom.viz": "viz stands after lie",
}


@pytest.mark.parametrize("source", WRONG, ids=[source.splitlines()[-1].strip() for source in WRONG])
def test_a_wrong_import_is_reported(source: str) -> None:
    found = faults(source, "geom.lie.so3")
    assert len(found) == 1 and WRONG[source] in found[0], found


@pytest.mark.parametrize(
    "source",
    [
        "import os, torch, numpy as np\nfrom jaxtyping import Float",
        "from geom import lie, values",
        "from geom.kernels.bridge import call",
        "from . import quaternion\nfrom .se3 import exp\nfrom ..values import value",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from geom.viz import show\n    import warp",
    ],
)
def test_a_right_import_is_not(source: str) -> None:
    assert faults(source, "geom.lie.so3") == []
    assert faults(source.replace("from .", "from ."), "geom.lie", is_package=True) == []


def test_subjects_know_only_the_tools() -> None:
    assert faults("import geom.mpm", "geom.skinning.solve") == []
    assert "no subject imports another" in faults("import geom.rods", "geom.mpm.step")[0]
    assert "no subject imports another" in faults("import geom.mpm", "geom.groupconv.lift")[0]


def test_an_unknown_room_is_reported() -> None:
    assert "is no room" in faults("", "geom.stuff.x")[0]
    assert "must load no room" in faults("from geom import lie", "geom", is_package=True)[0]
