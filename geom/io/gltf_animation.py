"""Animations of glTF 2.0 files: samplers and channels, each checked, as key frames of nodes."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geom.io.animation import Animation, Channel
from geom.io.gltf_document import Document, Json, integer, objects, shown

__all__ = ["read_animations"]

_PATHS = {"translation": ("VEC3",), "rotation": ("VEC4",), "scale": ("VEC3",), "weights": ("SCALAR",)}


def read_animations(document: Document, morphs: dict[int, int]) -> tuple[Animation, ...]:
    """Every animation of the file.

    Args: morphs, how many morph targets each node with some has.
    Raises: FileFormatError.
    """
    known: dict[tuple[Any, ...], Tensor] = {}
    return tuple(_animation(document, item, morphs, known) for item in document.lists["animations"])


def _animation(
    document: Document, item: Json, morphs: dict[int, int], known: dict[tuple[Any, ...], Tensor]
) -> Animation:
    source = document.source
    samplers = objects(source, item, "samplers")
    found: dict[tuple[int, str], Channel] = {}
    for channel in objects(source, item, "channels"):
        target = channel.get("target")
        if not isinstance(target, dict):
            raise source.fail("channel: expected a target")
        if "node" not in target or target.get("path") not in tuple(_PATHS):
            continue
        node, path = integer(source, target, "node", 0), target["path"]
        document.item("nodes", node)
        which = integer(source, channel, "sampler", 0)
        if which >= len(samplers):
            raise source.fail(f"sampler: expected an index below {len(samplers)}, got {which}")
        if path != "weights" or node in morphs:
            width = {"rotation": 4, "weights": morphs.get(node, 0)}.get(path, 3)
            found[node, path] = _channel(document, samplers[which], node, path, width, known)
    name = item.get("name", "")
    return Animation(tuple(found.values()), name if isinstance(name, str) else "")


def _channel(
    document: Document, sampler: Json, node: int, path: Any, width: int, known: dict[tuple[Any, ...], Tensor]
) -> Channel:
    source = document.source
    kind = sampler.get("interpolation", "LINEAR")
    if kind not in ("LINEAR", "STEP", "CUBICSPLINE"):
        raise source.fail(f"interpolation: expected LINEAR, STEP or CUBICSPLINE, got {shown(kind)}")
    places = [integer(source, sampler, name, 0) for name in ("input", "output")]
    key = ("times", places[0])
    if key not in known:
        times = _floats(document, places[0], ("SCALAR",))[:, 0]
        if not len(times) or (np.diff(times) < 0).any():
            raise source.fail("key frames: expected times that rise, at least one")
        known[key] = torch.from_numpy(times)
    frames = len(known[key])
    own = ("values", places[1], path, kind, frames, width)
    if own not in known:
        values = _floats(document, places[1], _PATHS[path])
        each = 3 if kind == "CUBICSPLINE" else 1
        expected = frames * each * width
        if values.size != expected:
            raise source.fail(f"{path}: expected {expected} numbers for {frames} key frames, got {values.size}")
        values = values.reshape((frames, 3, width) if each == 3 else (frames, width))
        if path == "rotation":
            values = np.roll(values, 1, -1)  # x y z w in the file
        known[own] = torch.from_numpy(np.ascontiguousarray(values))
    return Channel(known[key], known[own], node, path, kind)


def _floats(document: Document, accessor: int, widths: tuple[str, ...]) -> NDArray[np.float32]:
    source = document.source
    stored = document.accessor(accessor, widths)
    source.budget(8 * stored.size, "key frames")
    values = np.array(stored, np.float32)
    if not np.isfinite(values).all():
        raise source.fail("key frames: expected finite numbers, got NaN or inf")
    return values
