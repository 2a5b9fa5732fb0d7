"""`Points`: a cloud, or several in one ragged batch."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import Self

from geom.checks import check_field, check_offsets, check_points, describe
from geom.errors import ShapeError
from geom.values import Value, value

__all__ = ["Points", "as_points", "bounds", "offsets_of", "one_of"]


@value
class Points(Value):
    """Points with what a sensor or a file gives for each of them.

    Fields: `positions` (N, 3) float32 or float64, metres; `normals` (N, 3) same dtype or None; `colors` (N, 3) float32
    in [0, 1] or None; `intensities` (N,) float32 or None; `offsets` (B+1,) int64, the bounds of B clouds in one batch,
    or None for one cloud. `points[i]` is cloud i of the batch; `len(points)` is B.

    Raises: ShapeError where a field has the wrong shape or dtype. Finite coordinates are the algorithms' check.

    >>> two = Points(torch.rand(5, 3), offsets=torch.tensor([0, 2, 5]))
    >>> len(two), two[1].positions.shape
    (2, torch.Size([3, 3]))
    """

    positions: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"] | None = None
    colors: Float[Tensor, "n 3"] | None = None
    intensities: Float[Tensor, " n"] | None = None
    offsets: Int64[Tensor, " b_plus_1"] | None = None

    def __post_init__(self) -> None:
        count = check_points(self.positions, "positions", finite=False).shape[0]
        for name, shape in (("normals", (count, 3)), ("colors", (count, 3)), ("intensities", (count,))):
            check_field(getattr(self, name), shape, name)
        if self.offsets is not None:
            check_offsets(self.offsets, count, device=self.positions.device)

    def __len__(self) -> int:
        return 1 if self.offsets is None else self.offsets.numel() - 1

    def __getitem__(self, index: int) -> Self:
        return one_of(self, index)


def one_of(batch: Any, index: int) -> Any:
    """Cloud `index` of a value whose fields have a row an item, and `offsets` or None. Raises: IndexError."""
    if not -len(batch) <= index < len(batch):
        raise IndexError(f"cloud {index} of {len(batch)}")
    if batch.offsets is None:
        return batch
    start, stop = batch.offsets[index % len(batch) :][:2].tolist()
    fields = (f.name for f in dataclasses.fields(batch) if f.name != "offsets")
    parts = {name: getattr(batch, name) for name in fields}
    own = {name: None if x is None else x[start:stop] for name, x in parts.items()}
    return dataclasses.replace(batch, offsets=None, **own)


def as_points(x: "Points | Tensor", name: str = "points", *, offsets: Tensor | None = None, minimum: int = 0) -> Points:
    """`x` as Points of finite coordinates, at least `minimum` in each cloud; a tensor (N, 3) may bring `offsets`.

    Raises: ShapeError for anything else, a mesh included, saying what came.
    """
    if isinstance(x, Tensor):
        x = Points(check_points(x, name, finite=False), offsets=offsets)
    elif not isinstance(x, Points):
        raise ShapeError(f"{name}: expected Points or a tensor (N, 3), got {describe(x)}")
    elif offsets is not None:
        raise ShapeError(f"{name}: expected Points, which bring their offsets, or offsets with a tensor, got both")
    check_points(x.positions, name)
    sizes = x.positions.shape[:1] if x.offsets is None else x.offsets.diff().tolist()
    if min(sizes, default=minimum) < minimum:
        raise ShapeError(f"{name}: expected at least {minimum} points, got {min(sizes)}")
    return x


def bounds(cloud: Points) -> Tensor:
    """The cloud's offsets (B+1,) int64, contiguous and on its device, also where it is a single one."""
    if cloud.offsets is not None:
        return cloud.offsets.to(cloud.positions.device).contiguous()
    return torch.tensor([0, len(cloud.positions)], device=cloud.positions.device)


def offsets_of(sizes: Tensor) -> Tensor:
    """The offsets (B+1,) of clouds of these sizes (B,) int64."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
