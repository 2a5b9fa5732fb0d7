"""Kernels written as one C++ snippet each, for float32 and float64, from one template.

The snippet sees its arguments by name (arrays as `name.data`), the item's index as `i`, and the scalar type as `REAL`.
It compiles for the CPU (vectorised for this machine) and for CUDA alike.
"""

import linecache
import os
import sys
from collections.abc import Callable
from functools import cache

import torch
import warp as wp

__all__ = ["DTYPES", "native_kernel", "start"]

DTYPES = {torch.float32: wp.float32, torch.float64: wp.float64}


@cache
def start() -> None:
    """Initialise Warp without its banner, and without its native library's word on stderr that there is no CUDA."""
    wp.config.log_level = wp.LOG_WARNING
    sys.stderr.flush()
    kept, quiet = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    try:
        wp.init()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(quiet)


def native_kernel(module: str, name: str, signature: str, snippet: str) -> dict[torch.dtype, wp.Kernel]:
    """One kernel for each dtype, or one for all where neither signature nor snippet names the scalar type.

    `signature`: "points: real[], offsets: int64[], k: int32", in the order of launch.
    """
    if "REAL" not in snippet and "real" not in signature:
        return dict.fromkeys(DTYPES, _build(module, name, signature, snippet))
    return {dtype: _build(module, name, signature, snippet, real) for dtype, real in DTYPES.items()}


def _build(module: str, name: str, signature: str, snippet: str, real: type | None = None) -> wp.Kernel:
    start()
    if real is not None:
        name, snippet = f"{name}_{real.__name__}", snippet.replace("REAL", f"wp::{real.__name__}")
    parts = [part.split(":") for part in signature.replace(" ", "").split(",")]
    arguments = dict(parts)
    if len(arguments) != len(parts):
        raise ValueError(f"{name}: an argument is named twice in {signature}")
    scalars = {"real": real, "float64": wp.float64, "int32": wp.int32, "int64": wp.int64}

    def hint(text: str) -> object:
        scalar = scalars[text.removesuffix("[]")]
        return wp.array(dtype=scalar) if text.endswith("[]") else scalar

    hints = {key: hint(text) for key, text in arguments.items()}
    names = ", ".join(arguments)
    stub = _define(module, f"{name}_item", f"(i, {names}): ...\n", {})
    stub.__annotations__ = {"i": wp.int32, **hints}
    native = wp.func_native(snippet)(stub)
    body = f"(first, {names}):\n    native(first + wp.tid(), {names})\n"
    entry = _define(module, name, body, {"native": native, "wp": wp})
    entry.__annotations__ = {"first": wp.int32, **hints}
    return wp.Kernel(entry, module=wp.get_module(module), options={"enable_backward": False})


def _define(module: str, name: str, rest: str, scope: dict[str, object]) -> Callable[..., None]:
    """`def name rest`, with its source where Warp, which compiles functions from their source, will look for it."""
    source, path = f"def {name}{rest}", f"<{module}.{name}>"
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    scope["__name__"] = module
    exec(compile(source, path, "exec"), scope)
    return scope[name]  # type: ignore[return-value]
