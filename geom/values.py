"""Values: frozen dataclasses of tensors that move, index, save and load as one; and `Fit`, what every inverse returns."""

import dataclasses
import json
import os
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from typing_extensions import Self, dataclass_transform

from geom.errors import FileFormatError, ShapeError
from geom.files import write_atomically

__all__ = ["Fit", "Value", "replace", "value"]

T = TypeVar("T")
V = TypeVar("V")
_KNOWN: dict[str, type] = {}  # "geom.lie.Rigid" -> class, so that a nested value finds its class on load


class Value:
    """Methods that `@value` gives a class; inherit from it so that type checkers see them."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Every tensor through `Tensor.to(...)`; integer tensors keep their dtype. Differentiable."""
        device, dtype, blocking, _ = torch._C._nn._parse_to(*args, **kwargs)

        def move(x: object) -> object:
            if not isinstance(x, Tensor):
                return x
            return x.to(device, dtype if x.is_floating_point() else None, non_blocking=blocking)

        return pytree.tree_map(move, self)

    def __getitem__(self, index: Any) -> Self:
        """Index the batch dimensions, those that each field's annotation puts before its own (`"*b 4"`)."""

        def pick(x: Any, own: int | None) -> Any:
            if isinstance(x, Tensor) and own is not None:
                if x.ndim == own:
                    raise ShapeError(f"{type(self).__name__} has no batch dimension to index")
                return x[(*_as_tuple(index), *(slice(None),) * own)] if ... in _as_tuple(index) else x[index]
            return x[index] if hasattr(type(x), "__value__") else x

        own = _own_dims(type(self))
        return dataclasses.replace(self, **{k: pick(getattr(self, k), own.get(k)) for k in own})  # type: ignore[type-var]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write safetensors with the other fields as JSON in its header; a failed write leaves the old file."""
        from safetensors.torch import save

        tensors, plain = _flatten(self, "")
        meta = {"geom": json.dumps({"value": _name(type(self)), "fields": plain})}
        write_atomically(path, save({k: v.detach().contiguous() for k, v in tensors.items()}, metadata=meta))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. Raises: FileFormatError if it is not a saved value of this class."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                meta = json.loads((file.metadata() or {})["geom"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a mapping)
            found, fields = meta["value"], dict(meta["fields"])
            if found != _name(cls):
                raise FileFormatError(path, f"expected a saved {_name(cls)}, got {found}")
            return _unflatten(cls, tensors, fields, "")
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise FileFormatError(path, f"expected a saved {_name(cls)}, got {error!r}") from error


@dataclass_transform(frozen_default=True, eq_default=False)
def value(cls: type[T]) -> type[T]:
    """Make a class a value: a frozen dataclass and pytree with `.to`, `[i]`, `.save` and `.load`.

    Fields that hold tensors, values or None are leaves of the pytree; every other field (str, bool, int, float,
    tuple) is its static context. Differentiable through every leaf; works under `torch.func` and `torch.compile`.

    >>> from jaxtyping import Float
    >>> @value
    ... class Ball(Value):
    ...     centre: Float[Tensor, "*b 3"]
    ...     radius: Float[Tensor, "*b"]
    >>> Ball(torch.zeros(5, 3), torch.ones(5))[2].centre.shape
    torch.Size([3])
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    for name in ("to", "__getitem__", "save", "load"):
        if not hasattr(cls, name):
            setattr(cls, name, vars(Value)[name])
    cls.__value__ = True  # type: ignore[attr-defined]
    names = tuple(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]
    _KNOWN[_name(cls)] = cls

    def split(x: Any) -> tuple[list[Any], tuple[Any, ...]]:
        fields = [(name, getattr(x, name)) for name in names]
        dynamic = {name: f for name, f in fields if isinstance(f, Tensor) or hasattr(type(f), "__value__")}
        return list(dynamic.values()), (tuple(dynamic), tuple((n, f) for n, f in fields if n not in dynamic))

    def join(leaves: Any, context: tuple[Any, ...]) -> Any:
        new = object.__new__(cls)  # no __init__: transforms put placeholders here that no check would accept
        for name, field in (*zip(context[0], leaves, strict=True), *context[1]):
            object.__setattr__(new, name, field)
        return new

    pytree.register_pytree_node(cls, split, join, serialized_type_name=_name(cls))
    return cls


def replace(x: T, **changes: Any) -> T:
    """A copy of a value with some fields changed."""
    return dataclasses.replace(x, **changes)  # type: ignore[type-var]


def _name(cls: type) -> str:
    module = ".".join(p for p in cls.__module__.split(".") if not p.startswith("_"))
    parts = module.split(".")
    room = ".".join(parts[:2]) if parts[0] == "geom" else module
    return f"{room}.{cls.__qualname__}"


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _own_dims(cls: type) -> Mapping[str, int | None]:
    """How many dimensions of each field are its own: those after `*b` or `...` in its jaxtyping annotation."""
    result: dict[str, int | None] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        shapes = [d for d in map(_dim_string, (hints[field.name], *typing.get_args(hints[field.name]))) if d is not None]
        words = shapes[0].split() if shapes else []
        batched = bool(words) and (words[0].startswith("*") or words[0] == "...")
        result[field.name] = len(words) - 1 if batched else (0 if hints[field.name] is Tensor else None)
    return result


def _dim_string(hint: Any) -> str | None:
    return getattr(hint, "dim_str", None)


def _flatten(x: Any, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(x):
        item, key = getattr(x, field.name), prefix + field.name
        if isinstance(item, Tensor):
            tensors[key] = item
        elif hasattr(type(item), "__value__"):
            inner, rest = _flatten(item, key + ".")
            tensors.update(inner)
            plain[field.name] = {"value": _name(type(item)), "fields": rest}
        else:
            plain[field.name] = item
    return tensors, plain


def _unflatten(cls: Callable[..., T], tensors: Mapping[str, Tensor], plain: Mapping[str, Any], prefix: str) -> T:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        key, item = prefix + field.name, plain.get(field.name)
        if key in tensors:
            fields[field.name] = tensors[key]
        elif isinstance(item, dict) and "value" in item:
            fields[field.name] = _unflatten(_KNOWN[item["value"]], tensors, item["fields"], key + ".")
        else:
            fields[field.name] = tuple(plain[field.name]) if isinstance(item, list) else plain[field.name]
    return cls(**fields)


@value
class Fit(Value, Generic[V]):
    """What every inverse returns: the value found and how well.

    Fields: `value`; `cost` (...,) the final objective, 1/2 sum of rho(squared residual); `covariance` (..., n, n) of
    the value's tangent (order of `retract`), or None where the problem gives none; `converged` (...,) bool;
    `iterations` (...,) int64.
    """

    value: V
    cost: Tensor
    covariance: Tensor | None
    converged: Tensor
    iterations: Tensor
