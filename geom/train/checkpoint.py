"""Checkpoints: nested dicts of tensors and plain data in one safetensors file, the plain part as JSON in its header."""

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geom.checks import describe
from geom.errors import FileFormatError, ShapeError
from geom.files import write_atomically

__all__ = ["load_checkpoint", "load_weights", "save_checkpoint"]


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state: the whole file or nothing. No pickle.

    Args:
        path: of a safetensors file; a failed write leaves the old one.
        state: dicts, lists and tuples, nested at will, of tensors, numbers, strings, bools and None.

    Raises: ShapeError for anything else in it; OSError as `open` would.

    >>> from tempfile import TemporaryDirectory
    >>> layer = torch.nn.Linear(2, 1)
    >>> with TemporaryDirectory() as folder:
    ...     save_checkpoint(f"{folder}/a.safetensors", {"step": 7, "module": layer.state_dict()})
    ...     load_checkpoint(f"{folder}/a.safetensors")["step"]
    7

    Guarantees: not differentiable; deterministic; exact.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    plain = _pack(dict(state), "", tensors)
    write_atomically(path, save(tensors, metadata={"geom": json.dumps({"checkpoint": plain})}))


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU.

    Args:
        path: of the file.

    Returns:
        the state; every tensor, number and key as it was.

    Raises: FileFormatError if it is not such a file; OSError as `open` would.

    Guarantees: not differentiable; deterministic; exact.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # its own error for a missing file or a folder
        pass
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            plain = json.loads((file.metadata() or {})["geom"])["checkpoint"]
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a mapping)
        state = _unpack(plain, tensors)
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__}")
        return state
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise FileFormatError(path, f"expected a saved checkpoint, got {error!r}") from error


def load_weights(module: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Put the weights of a checkpoint that `train` wrote into a module: the averaged ones, where there are such.

    Args:
        module: of the same structure as the one that was trained; changed in place, on its device.
        path: `last.safetensors` or `best.safetensors` in the folder of the training.

    Raises: FileFormatError if it is no checkpoint of a training; ShapeError if the module does not fit.

    Guarantees: not differentiable; deterministic; exact.
    """
    state = load_checkpoint(path)
    if not {"module", "average"} <= set(state):
        raise FileFormatError(path, f"expected a checkpoint of a training, got one of {', '.join(map(str, state))}")
    put(module, state["module"])
    with torch.no_grad():
        for name, parameter in module.named_parameters() if state["average"] else ():
            parameter.copy_(state["average"][name])


def put(module: torch.nn.Module, tensors: dict[str, Any]) -> None:
    """Load a state dict. Raises: ShapeError if it is not of this module."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ShapeError(f"module: expected the structure of the checkpoint, got {error}") from error


def _pack(x: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`x` as JSON can hold it: tensors out into `tensors`, and dicts as pairs, whose keys may be integers."""
    if isinstance(x, Tensor):
        while name in tensors or name == "__metadata__":  # {"a.b": x, "a": {"b": y}}; and safetensors' own word
            name += "'"
        # a copy each: safetensors refuses tensors that share their memory
        tensors[name] = x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(x, dict):
        return {"dict": [[k, _pack(v, f"{name}.{k}" if name else str(k), tensors)] for k, v in x.items()]}
    if isinstance(x, (list, tuple)):
        return {"list" if isinstance(x, list) else "tuple": [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(x)]}
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    raise ShapeError(f"{name}: expected tensors and plain data in a checkpoint, got {describe(x)}")


def _unpack(x: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(x, dict):
        return x
    ((kind, content),) = x.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in content}
    return {"list": list, "tuple": tuple}[kind](_unpack(v, tensors) for v in content)
