"""Values: frozen dataclasses of tensors that move, index, save and load as one; `Fit`, what every inverse returns."""

import dataclasses
import enum
import json
import os
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, jaxtyped
from torch import Tensor
from torch.utils import _pytree as pytree
from typing_extensions import Self, dataclass_transform

from geom.checks import describe
from geom.errors import FileFormatError, ShapeError
from geom.files import write_atomically

__all__ = ["Fit", "Value", "batch_shape", "replace", "value"]

T = TypeVar("T")
V = TypeVar("V")
_KNOWN: dict[str, type] = {}  # "geom.lie.Rigid" -> class, so that a nested value finds its class on load
_PLAIN = (
    str,
    bytes,
    bool,
    int,
    float,
    complex,
    tuple,
    list,
    dict,
    type(None),
    enum.Enum,
    torch.dtype,
    torch.device,
)


class Value:
    """Methods that `@value` gives a class; inherit from it so that type checkers see them."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Every tensor through `Tensor.to(...)`; integer and bool tensors keep their dtype. Differentiable."""

        def move(x: object) -> object:
            if not isinstance(x, Tensor):
                return x
            return x.to(*args, **kwargs) if x.is_floating_point() else x.to(x.new_empty(0).to(*args, **kwargs).device)

        return pytree.tree_map(move, self)

    def __getitem__(self, index: Any) -> Self:
        """Index the batch dimensions, those that each field's annotation puts before its own (`"*b 4"`).

        Fields without a batch stay as they are. Raises: ShapeError where there is no batch dimension to index.
        """
        full = index if isinstance(index, tuple) else (index,)
        full = full if any(i is ... for i in full) else (*full, ...)
        removes = any(i is not None and i is not ... for i in full)
        picked: dict[str, Any] = {}
        for name, static, _, own in _fields(type(self)):
            x = getattr(self, name)
            if hasattr(type(x), "__value__"):
                picked[name] = x[index]
            elif isinstance(x, tuple) and not static:
                picked[name] = tuple(item[index] for item in x)
            elif isinstance(x, Tensor) and own is not None:
                if x.ndim == own and removes:
                    raise ShapeError(f"{type(self).__name__}: expected a batch dimension to index, got none")
                picked[name] = x[(*full, *(slice(None),) * own)]
        if not picked:
            raise ShapeError(f"{type(self).__name__}: expected a batch dimension to index, got a class without one")
        return replace(self, **picked)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write safetensors with the other fields as JSON in its header; a failed write leaves the old file."""
        from safetensors.torch import save

        tensors, plain = _flatten(self, "")
        meta = {"geom": json.dumps({"value": _name(type(self)), "fields": plain})}
        # a copy each: safetensors refuses fields that share their memory
        data = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        write_atomically(path, save(data, metadata=meta))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, on the CPU.

        Raises: FileFormatError if it is not a saved value of this class; OSError as `open` would.
        """
        from safetensors import SafetensorError, safe_open

        with open(path, "rb"):  # its own error for a missing file or a folder
            pass
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                meta = json.loads((file.metadata() or {})["geom"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a mapping)
            if meta["value"] != _name(cls):
                raise ValueError(f"a saved {meta['value']}")
            with jaxtyped("context"):  # the batch shape is one over all fields
                return _unflatten(cls, tensors, meta["fields"], "")
        except (SafetensorError, ImportError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = str(error) if type(error) is ValueError else repr(error)
            raise FileFormatError(path, f"expected a saved {_name(cls)}, got {reason}") from error


@dataclass_transform(frozen_default=True, eq_default=False)
def value(cls: type[T]) -> type[T]:
    """Make a class a value: a frozen dataclass and pytree with `.to`, `[i]`, `.save` and `.load`.

    Fields annotated with plain data (str, bool, int, float, tuples of them, ...) are the pytree's static context, and
    so is a field that is None; all others (tensors, values, tuples of values) are its leaves. Differentiable through
    every leaf; works under `torch.func` and `torch.compile`.

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
    fields = _describe_fields(cls)
    cls.__value__ = fields  # type: ignore[attr-defined]
    _KNOWN[_name(cls)] = cls

    def split(x: Any) -> tuple[list[Any], tuple[Any, ...]]:
        every = {f.name: getattr(x, f.name) for f in fields}
        # by annotation, not by content: transforms flatten a value whose leaves are placeholders
        names = tuple(f.name for f in fields if not f.static and every[f.name] is not None)
        rest = tuple((name, item) for name, item in every.items() if name not in names)
        return [every[name] for name in names], (names, rest)

    def join(leaves: Any, context: tuple[Any, ...]) -> Any:
        new = object.__new__(cls)  # no __init__: transforms put placeholders here that no check would accept
        for name, field in (*zip(context[0], leaves, strict=True), *context[1]):
            object.__setattr__(new, name, field)
        return new

    pytree.register_pytree_node(cls, split, join, serialized_type_name=_name(cls))
    return cls


def replace(x: T, /, **changes: Any) -> T:
    """A copy of a value with some fields changed."""
    return dataclasses.replace(x, **changes)  # type: ignore[type-var]


def batch_shape(x: Any) -> torch.Size:
    """The batch shape of a value, read off its first batched field; () where it has none."""
    for field in _fields(type(x)):
        item = getattr(x, field.name)
        if isinstance(item, Tensor) and field.own is not None:
            return item.shape[: item.ndim - field.own]
    return torch.Size()


class _Field(NamedTuple):
    name: str
    static: bool  # plain data by its annotation
    shapes: tuple[type, ...]  # the jaxtyping annotations in its union
    own: int | None  # dimensions of its own, after the batch: 1 for "*b 4" or "... 4"; None without a batch


def _fields(cls: type) -> tuple[_Field, ...]:
    return cls.__value__


def _describe_fields(cls: type) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(cls, localns={cls.__name__: cls})
    result = []
    for name in (f.name for f in dataclasses.fields(cls)):
        members = (hints[name], *typing.get_args(hints[name]))
        shapes = tuple(m for m in members if hasattr(m, "dim_str"))
        words = shapes[0].dim_str.split() if shapes else ["*b"] if Tensor in members else []
        batched = bool(words) and (words[0].startswith("*") or words[0] == "...")
        result.append(_Field(name, _is_plain(hints[name]), shapes, len(words) - 1 if batched else None))
    return tuple(result)


def _is_plain(hint: Any) -> bool:
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is not None:
        return origin is typing.Literal or all(map(_is_plain, members))
    return hint is ... or (isinstance(hint, type) and issubclass(hint, _PLAIN))


def _name(cls: type) -> str:
    """The public path: "geom.lie.Rigid" for the class in geom/lie/rigid.py."""
    parts = cls.__module__.split(".")
    return ".".join([*(parts[:2] if parts[0] == "geom" else parts), cls.__qualname__])


def _find(name: str) -> Callable[..., Any]:
    if name not in _KNOWN and name.startswith("geom."):  # only ours: a file must not choose what is imported
        import_module(".".join(name.split(".")[:2]))
    return _KNOWN[name]


def _flatten(x: Any, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for field in _fields(type(x)):
        item, key = getattr(x, field.name), prefix + field.name
        if isinstance(item, Tensor):
            tensors[key] = item
        elif hasattr(type(item), "__value__"):
            plain[field.name] = _flatten_into(tensors, item, key + ".")
        elif isinstance(item, tuple) and not field.static:
            plain[field.name] = [_flatten_into(tensors, one, f"{key}.{i}.") for i, one in enumerate(item)]
        else:
            plain[field.name] = item
    return tensors, plain


def _flatten_into(tensors: dict[str, Tensor], x: Any, prefix: str) -> dict[str, Any]:
    inner, plain = _flatten(x, prefix)
    tensors.update(inner)
    return {"value": _name(type(x)), "fields": plain}


def _unflatten(cls: Any, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], prefix: str) -> Any:
    fields: dict[str, Any] = {}
    for name, static, shapes, _ in _fields(cls):
        key = prefix + name
        if key in tensors:
            fields[name] = tensors[key]
            if shapes and not isinstance(tensors[key], shapes):
                raise ValueError(f"{key}, {describe(tensors[key])}")
        elif isinstance(plain[name], dict):
            fields[name] = _unflatten(_find(plain[name]["value"]), tensors, plain[name]["fields"], key + ".")
        elif isinstance(plain[name], list) and not static:
            fields[name] = tuple(_unflatten_one(x, tensors, f"{key}.{i}.") for i, x in enumerate(plain[name]))
        else:
            fields[name] = _as_tuples(plain[name])
    return cls(**fields)


def _unflatten_one(x: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> Any:
    with jaxtyped("context"):  # the sizes of one of several values bind no other's
        return _unflatten(_find(x["value"]), tensors, x["fields"], prefix)


def _as_tuples(x: Any) -> Any:
    return tuple(map(_as_tuples, x)) if isinstance(x, list) else x


@value
class Fit(Value, Generic[V]):
    """What every inverse returns: the value found and how well.

    Fields: `value`; `cost` (...,) the final objective, 1/2 sum of rho(squared residual); `covariance` (..., n, n) of
    the value's tangent (order of `retract`), or None where the problem gives none; `converged` (...,) bool;
    `iterations` (...,) int64.
    """

    value: V
    cost: Float[Tensor, "*b"]
    covariance: Float[Tensor, "*b n n"] | None
    converged: Bool[Tensor, "*b"]
    iterations: Int64[Tensor, "*b"]
