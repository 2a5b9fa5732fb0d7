"""The kernels of local registration in torch: their oracle, and what runs on devices that have no kernel."""

import torch
from torch import Tensor

from geom.optim import Robust
from geom.points import knn
from geom.points.morton import cell_keys

__all__ = ["find_cells", "find_nearest", "normal_equations", "weights"]

A = 1 - 1e-3  # of C = I - A n n^T, the covariance of a point on a plane


def move(points: Tensor, poses: Tensor) -> Tensor:
    """Points (N, 3) under poses (P, 12): (P, N, 3)."""
    rotation, translation = poses[:, :9].reshape(-1, 3, 3).to(points), poses[:, None, 9:].to(points)
    return points @ rotation.mT + translation


def find_nearest(points: Tensor, poses: Tensor, target: Tensor, max_distance: float) -> Tensor:
    """Index of the nearest target point of each moved point, -1 beyond `max_distance`; (P N,) int32."""
    moved = move(points, poses).reshape(-1, 3)
    return knn(moved, target, 1, max_distance=max_distance, backend="torch").index[:, 0].int()


def find_cells(
    points: Tensor, poses: Tensor, means: Tensor, keys: Tensor, origin: Tensor, max_distance: float
) -> Tensor:
    """Place in `keys` (sorted) of the voxel that holds each moved point, -1 for none or a far mean; (P N,) int32."""
    moved = move(points, poses).reshape(-1, 3)
    one = torch.tensor([0, len(moved)], device=points.device)
    sizes = torch.full((1,), max_distance, dtype=points.dtype, device=points.device)
    key = cell_keys(moved, one, origin[None], sizes, backend="torch")
    place = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
    near = (means[place] - moved).square().sum(-1) <= max_distance**2
    inside = (moved >= origin).all(-1) & (keys[place] == key)
    return torch.where(inside & near, place, torch.full_like(place, -1)).int()


def weights(method: int, turned: Tensor, shape: Tensor) -> Tensor:
    """M (N, 3, 3) of e^T M e, from the source's normals in the target's frame and the target's shape at each match."""
    eye = torch.eye(3, dtype=shape.dtype, device=shape.device)

    def outer(n: Tensor) -> Tensor:
        return n[:, :, None] * n[:, None, :]

    if method == 1:
        return outer(shape)
    if method == 2:
        return torch.linalg.inv(2 * eye - A * (outer(shape) + outer(turned)))
    if method == 3:
        spread = shape[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
        return torch.linalg.inv(2 * eye - A * (spread + outer(turned)))
    return outer(turned) if method == 4 else eye.expand(len(shape), 3, 3)


def normal_equations(
    points: Tensor,
    normals: Tensor,
    matched: Tensor,
    shape: Tensor,
    found: Tensor,
    pose: Tensor,
    method: int,
    robust: str | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel's 30 sums (see `geom.kernels.registration`) at one pose (12,), `squares` (N,) and `scores` (N, 6)."""
    there = found >= 0
    place = found[there].long()
    x = move(points, pose[None])[0][there].double()
    e = matched[place].double() - x
    blank = x.new_zeros((len(x), 3))
    turned = normals[there].double() @ pose[:9].reshape(3, 3).T if len(normals) else blank
    m = weights(method, turned, shape[place].double() if len(shape) else blank)
    zero = torch.zeros_like(x[:, 0])
    skew = torch.stack([zero, -x[:, 2], x[:, 1], x[:, 2], zero, -x[:, 0], -x[:, 1], x[:, 0], zero], -1)
    jacobian = torch.cat([-torch.eye(3, dtype=x.dtype, device=x.device).expand_as(m), skew.reshape(-1, 3, 3)], -1)
    square = torch.einsum("ni,nij,nj->n", e, m, e)
    kernel = None if robust is None else Robust(robust, scale)
    weight = torch.ones_like(square) if kernel is None else kernel.weight(square)
    cost = 0.5 * (square if kernel is None else kernel.cost(square))
    gradient = weight[:, None] * torch.einsum("nik,nij,nj->nk", jacobian, m, e)
    hessian = torch.einsum("n,nik,nij,njl->kl", weight, jacobian, m, jacobian)
    row, column = torch.triu_indices(6, 6, device=x.device)
    ends = torch.stack([cost.sum(), e.square().sum(), torch.ones_like(cost).sum(), *cost.new_zeros(2)])
    squares = torch.full((len(points),), -1.0, dtype=x.dtype, device=x.device).masked_scatter(there, square)
    scores = torch.zeros((len(points), 6), dtype=x.dtype, device=x.device)
    scores[there] = gradient
    return torch.cat([hessian[row, column], gradient.sum(0), ends]), squares, scores
