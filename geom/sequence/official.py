"""Weights of Point Cloud Mamba that others have trained."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from geom import nn
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
    plan = module.encoder.plan
    rows = [_NAMES.get(name, name) for name in prompt_orders or plan.unique_orders]
    if sorted(rows) != sorted(plan.unique_orders):
        raise ShapeError(f"prompt_orders: expected each of {plan.unique_orders} once, got {tuple(prompt_orders or ())}")

    def sort_prompts(found: dict[str, Tensor]) -> dict[str, Tensor]:
        own, prompts = module.state_dict().get(_PROMPTS), found.get(_PROMPTS)
        if own is not None and prompts is not None and own.shape == prompts.shape:
            each = prompts.unflatten(0, (len(rows), plan.prompts))
            found[_PROMPTS] = each[[rows.index(name) for name in plan.unique_orders]].flatten(0, 1)
        return found

    nn.load_official(module, state_dict, rename=sort_prompts)
