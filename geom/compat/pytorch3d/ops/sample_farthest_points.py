"""`pytorch3d.ops.sample_farthest_points`, in padded batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from geom.checks import describe
from geom.compat.pytorch3d.padding import gather, padded, ragged
from geom.errors import ShapeError
from geom.points.cloud import offsets_of
from geom.points.sampling import brute_force, farthest_point_sample

__all__ = ["sample_farthest_points"]


def sample_farthest_points(
    points: Tensor,
    lengths: Tensor | None = None,
    K: int | Sequence[int] | Tensor = 50,
    random_start_point: bool = False,
) -> tuple[Tensor, Tensor]:
    """K points of each cloud: its first one, then again and again the one farthest from all before.

    Args: points (N, P, D) float32 or float64; lengths (N,) int64, how much of each cloud is not padding; K, for all or
    for each cloud; random_start_point, whether to begin at a random point, drawn by torch's own generator.
    Returns: the points (N, max K, D), 0 where a cloud has fewer than K, gradients flow to `points`; their indices
    (N, max K) int64, -1 there.
    Raises: ShapeError.

    Guarantees: differentiable (the points chosen held); deterministic; exact f64, exact f32
    """
    batch = padded(points, lengths)
    sizes = batch.sizes()
    if isinstance(K, int):
        want = torch.full_like(sizes, K)
    else:
        want = torch.as_tensor(K, device=sizes.device).long()
        if want.shape != sizes.shape:
            raise ShapeError(f"K: expected an integer or {len(sizes)} of them, got {describe(K)}")
    if len(want) and int(want.min()) < 0:
        raise ShapeError(f"K: expected at least 0, got {want.tolist()[:8]}")
    count = torch.minimum(want, sizes)
    flat, offsets = ragged(batch)
    if points.shape[2] == 3:
        found = farthest_point_sample(flat, count, offsets=offsets, random_start=random_start_point)
    else:
        draw = (torch.rand(len(sizes), dtype=torch.float64).to(points.device) * sizes).long()
        starts = offsets[:-1] + (draw if random_start_point else 0)
        found = brute_force(flat.detach(), offsets, starts, offsets_of(count))
    index = found.new_full((len(sizes), max(want.tolist(), default=0)), -1)
    chosen = torch.arange(index.shape[1], device=index.device) < count[:, None]
    index[chosen] = found - torch.repeat_interleave(offsets[:-1], count)
    return gather(points, index), index
