"""Weights that others have trained."""

import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn import Module

from geom import nn

__all__ = ["load_official"]

_LAYER = re.compile(r"(^|.*\.)layers\.(\d+)\.")


def load_official(module: Module, state_dict: Mapping[str, Tensor]) -> None:
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
    nn.load_official(module, state_dict, rename=_rename)


def _rename(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """No frequencies, and the linear layers of each MLP at 0, 2, 4 and so on, gates being between them."""
    state_dict = {name: x for name, x in state_dict.items() if not name.endswith("pos_encoding.inv_freq")}
    places: dict[str, set[int]] = {}
    for name in state_dict:
        if match := _LAYER.match(name):
            places.setdefault(match[1], set()).add(int(match[2]))

    def count(name: str) -> str:
        match = _LAYER.match(name)
        if not match:
            return name
        place = 2 * sorted(places[match[1]]).index(int(match[2]))
        return f"{match[1]}layers.{place}.{name[match.end() :]}"

    return {count(name): x for name, x in state_dict.items()}
