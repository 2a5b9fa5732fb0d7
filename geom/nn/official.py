"""Weights that others have trained."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from geom.errors import ShapeError

__all__ = ["load_official"]


def load_official(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    rename: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = dict,
) -> None:
    """Load a published state dict into a module of the same shape, whole or not at all.

    "module." of data-parallel training is taken off all names. Numbers take the dtype and device of `module`.

    Args: module, changed in place; state_dict; rename, from the published entries to the module's own.
    Raises: ShapeError, naming the entries that are missing, left over or of another shape.

    >>> one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> load_official(one, {f"module.{name}": x for name, x in other.state_dict().items()})
    >>> bool((one.weight == other.weight).all())
    True

    Guarantees: not differentiable; deterministic; exact
    """
    skip = len("module.") if state_dict and all(name.startswith("module.") for name in state_dict) else 0
    found, own = rename({name[skip:]: x for name, x in state_dict.items()}), module.state_dict()
    faults = [f"missing {name}" for name in own if name not in found]
    faults += [f"unknown {name}" for name in found if name not in own]
    faults += [
        f"{name} of shape {tuple(x.shape)} for {tuple(own[name].shape)}"
        for name, x in found.items()
        if name in own and x.shape != own[name].shape
    ]
    if faults:
        raise ShapeError(f"state_dict: expected the entries of {type(module).__name__}, got {'; '.join(faults[:8])}")
    with torch.no_grad():
        for name, x in found.items():
            own[name].copy_(x)
