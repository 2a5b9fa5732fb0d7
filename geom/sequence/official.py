"""Weights of Point Cloud Mamba that others have trained."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.sequence.decoders import PointCloudMambaSegmenter
from geom.sequence.point_cloud_mamba import PointCloudMamba

__all__ = ["load_official"]

_NAMES = {"z": "morton", "z-trans": "morton-transposed", "hilbert-trans": "hilbert-transposed"}
_PROMPTS = "encoder.order_prompt.weight"


def load_official(
    module: PointCloudMamba | PointCloudMambaSegmenter,
    state_dict: Mapping[str, Tensor],
    *,
    prompt_orders: Sequence[str] | None = None,
) -> None:
    """Load a state dict of the published Point Cloud Mamba into a network of its shape, whose names it has.

    "module." of data-parallel training is taken off, and numbers take the dtype and device of `module`. For the results
    of the published code the plan wants `official_orders`, a `grid_size` of 0.02 (0.04 for S3DIS) and, for scenes,
    `official_windows`. Which prompts belong to which order the file does not say: the published code asks a set, whose
    order changes from process to process. `prompt_orders` tells it where it is known.

    Args:
        module: changed in place.
        state_dict: of BaseCls, BasePartSeg or BaseSeg.
        prompt_orders: each of the plan's orders once, as their prompts stand in the file, by our names or the published
            ones ("z" is "morton", "z-trans" "morton-transposed"); as they first appear in the plan if not given.

    Raises: ShapeError, naming the entries that are missing, left over or of another shape.

    Guarantees: not differentiable; deterministic; exact
    """
    skip = len("module.") if state_dict and all(name.startswith("module.") for name in state_dict) else 0
    found, own = {name[skip:]: x for name, x in state_dict.items()}, module.state_dict()
    faults = [f"missing {name}" for name in own if name not in found]
    faults += [f"unknown {name}" for name in found if name not in own]
    faults += [
        f"{name} of shape {tuple(x.shape)} for {tuple(own[name].shape)}"
        for name, x in found.items()
        if name in own and x.shape != own[name].shape
    ]
    if faults:
        raise ShapeError(f"state_dict: expected the entries of {type(module).__name__}, got {'; '.join(faults[:8])}")
    plan = module.encoder.plan
    if prompt_orders is not None and plan.prompts:
        rows = [_NAMES.get(name, name) for name in prompt_orders]
        if sorted(rows) != sorted(plan.unique_orders):
            raise ShapeError(f"prompt_orders: expected each of {plan.unique_orders} once, got {tuple(prompt_orders)}")
        prompts = found[_PROMPTS].unflatten(0, (len(rows), plan.prompts))
        found[_PROMPTS] = prompts[[rows.index(name) for name in plan.unique_orders]].flatten(0, 1)
    with torch.no_grad():
        for name, x in found.items():
            own[name].copy_(x)
