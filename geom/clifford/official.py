"""Weights that others have trained."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from geom.errors import ShapeError

__all__ = ["load_official"]

_LAYER = re.compile(r"(^|.*\.)layers\.(\d+)\.")


def load_official(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of the published GATr code into the layer or net of this room that it belongs to.

    `module` must have the shape of the published one. Names agree but for these: "module." of data-parallel training
    before all of them; frequencies of rotary positions, which are no parameters here; the places of the layers in
    an MLP with dropout, whose order counts. Numbers take the dtype and device of `module`.

    Raises: ShapeError, naming the entries that are missing, left over or of another shape.

    >>> from geom.clifford.linear import EquiLinear
    >>> one, other = EquiLinear(2, 3, 4, 5), EquiLinear(2, 3, 4, 5)
    >>> load_official(one, {f"module.{name}": x for name, x in other.state_dict().items()})
    >>> bool((one.weight == other.weight).all())
    True

    Guarantees: not differentiable; deterministic; exact
    """
    names = [name for name in state_dict if not name.endswith("pos_encoding.inv_freq")]
    skip = len("module.") if names and all(name.startswith("module.") for name in names) else 0
    found = _count_layers({name[skip:]: state_dict[name] for name in names})
    own = module.state_dict()
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


def _count_layers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The linear layers of each MLP at 0, 2, 4 and so on, gates being between them."""
    places: dict[str, set[int]] = {}
    for name in state_dict:
        if match := _LAYER.match(name):
            places.setdefault(match[1], set()).add(int(match[2]))

    def rename(name: str) -> str:
        match = _LAYER.match(name)
        if not match:
            return name
        place = 2 * sorted(places[match[1]]).index(int(match[2]))
        return f"{match[1]}layers.{place}.{name[match.end() :]}"

    return {rename(name): x for name, x in state_dict.items()}
