"""Every public name with its signature, against tests/api.txt: a change shows as a diff and is meant.

To accept one: `python -m tests.test_api --write`.
"""

import ast
import difflib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

SNAPSHOT = Path(__file__).with_name("api.txt")


@cache
def definitions(module: str) -> dict[str, ast.AST]:
    """Qualified name -> its definition in the source. The source is the same under any Python and any import hook."""
    found: dict[str, ast.AST] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.setdefault(prefix + node.name, node)  # the first of several: overloads
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.If | ast.Try):
                visit(node.body, prefix)
                visit(node.orelse, prefix)

    file = import_module(module).__file__
    assert file is not None, module
    visit(ast.parse(Path(file).read_text()).body, "")
    return found


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def describe_class(cls: type, node: ast.ClassDef) -> Iterator[str]:
    """Fields, constants and methods that the class's own body makes public, in its order."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id[0] != "_":
            default = f" = {ast.unparse(item.value)}" if item.value else ""
            yield f"    {item.target.id}: {ast.unparse(item.annotation)}{default}"
        elif isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id[0] != "_":
            yield f"    {ast.unparse(item)}"
        elif isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            public = item.name[0] != "_" or (
                item.name.endswith("__") and item.name not in ("__post_init__", "__reduce__")
            )
            if public:
                kinds = [ast.unparse(d) for d in item.decorator_list]
                yield "    " + "".join(f"@{kind} " for kind in kinds) + item.name + signature(item)


def describe(path: str, thing: Any) -> Iterator[str]:
    """The lines for one public name."""
    if isinstance(thing, ModuleType):
        yield from describe_module(thing)
        return
    plain = inspect.unwrap(thing) if callable(thing) else thing
    module, name = getattr(plain, "__module__", None), getattr(plain, "__qualname__", None)
    node = definitions(module).get(name) if module and name and module.startswith("geom") else None
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        decorators = "".join(f"@{ast.unparse(d)} " for d in node.decorator_list)
        yield f"{decorators}class {path}{f'({bases})' if bases else ''}"
        yield from describe_class(thing, node)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield f"{path}{signature(node)}"
    elif isinstance(thing, str | int | float | bool | tuple | None):
        yield f"{path} = {thing!r}"
    else:
        yield f"{path}: {type(thing).__name__}"


def describe_module(module: ModuleType) -> Iterator[str]:
    """The lines for what `__all__` names."""
    assert hasattr(module, "__all__"), f"{module.__name__} has no __all__: a room says what is public"
    for name in sorted(module.__all__):
        yield from describe(f"{module.__name__}.{name}", getattr(module, name))


def snapshot() -> str:
    return "\n".join(describe_module(import_module("geom"))) + "\n"


def test_public_names_are_those_of_the_snapshot() -> None:
    want, got = SNAPSHOT.read_text(), snapshot()
    diff = difflib.unified_diff(want.splitlines(), got.splitlines(), "tests/api.txt", "the source", lineterm="", n=0)
    assert want == got, "if this is meant, run: python -m tests.test_api --write\n" + "\n".join(diff)


def test_the_snapshot_sees_signatures_fields_and_submodules() -> None:
    lines = snapshot().splitlines()
    assert "geom.lie.quaternion.exp(rotvec: Float[Tensor, '*b 3']) -> Float[Tensor, '*b 4']" in lines
    assert "@value class geom.lie.Rigid(Value)" in lines
    assert "    quat_wxyz: Float[Tensor, '*b 4']" in lines
    assert any(line.startswith("    @classmethod identity(cls, *batch: int") for line in lines)


def test_public_names_have_docstrings() -> None:
    bare = []
    for room in import_module("geom").__all__:
        module = import_module(f"geom.{room}")
        things = {name: getattr(module, name) for name in module.__all__}
        bare += [f"geom.{room}.{k}" for k, v in things.items() if callable(v) and not inspect.getdoc(v)]
    assert not bare


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    SNAPSHOT.write_text(snapshot())
