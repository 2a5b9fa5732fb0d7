"""The half of smooth skinning decomposition that finds transforms: rigid motions of all bones, for each frame alone.

    min_{R_j, t_j}  1/2 sum_i |sum_j w_ij (R_j u_i + t_j) - x_i|^2

bone after bone, each exactly (Le and Deng 2012, Sec. 4.2): with C = sum_i b_i b_i^T, b_i = (w_ij (u_i, 1))_j, and
Y = sum_i x_i b_i^T, bone j meets Q = Y_j - sum_{k != j} M_k C_kj, t_j = (q - R_j p) / m with p, m of C_jj, and R_j is
the rotation of greatest tr(R^T (Q - q p^T / m)).
"""

import torch
from torch import Tensor

from geom.lie import so3

__all__ = ["fit_bones", "fit_labels", "step_along"]

LIGHT = 1e-9  # squared weights of fewer vertices than that do not move a bone


def fit_bones(
    covariance: Tensor,
    moment: Tensor,
    transforms: Tensor,
    *,
    locked: Tensor | None = None,
    sweeps: int = 4,
    backend: str = "auto",
) -> Tensor:
    """Transforms (T, J, 3, 4) of no more cost than those given, rotations by rotations.

    Args: covariance C (4J, 4J); moment Y and transforms (T, J, 3, 4); locked (J,) bool, bones that stay.
    """
    from geom.kernels import bone_fitting, bridge

    frames, bones = transforms.shape[:2]
    locked = torch.zeros(bones, dtype=torch.bool, device=transforms.device) if locked is None else locked
    out = transforms.clone(memory_format=torch.contiguous_format)
    if bridge.choose(backend, out):
        arguments = (covariance.contiguous(), moment.contiguous(), locked.to(torch.int32), bones, sweeps, out)
        bridge.launch(bone_fitting.fit_bones[out.dtype], frames, *arguments, device=out.device, grain=8)
        return out
    blocks = covariance.reshape(bones, 4, bones, 4)
    for _ in range(sweeps):
        for j in (~locked).nonzero()[:, 0].tolist():
            mass = blocks[j, 3, j, 3]
            if mass <= LIGHT:
                continue
            others = torch.arange(bones, device=out.device) != j
            Q = moment[:, j] - torch.einsum("tkcb,kba->tca", out[:, others], blocks[others, :, j])
            p = blocks[j, :3, j, 3] / mass
            R = so3.project(Q[..., :3] - Q[..., 3:] * p)
            out[:, j] = torch.cat([R, Q[..., 3:] / mass - R @ p[:, None]], -1)
    return out


def fit_labels(track: Tensor, rest: Tensor, labels: Tensor, count: int) -> Tensor:
    """The rigid motion (T, count, 3, 4) of the points of each label, from `rest` (V, 3) to `track` (T, V, 3).

    Where points leave a turn open, it is the one nearest to none; a label without points stays.
    """
    one = torch.nn.functional.one_hot(labels, count).to(rest.dtype)
    size = one.sum(0).clamp(min=1)[:, None]
    p = one.T @ rest / size
    flat = track.permute(0, 2, 1).reshape(-1, len(rest))
    q = (flat @ one).reshape(len(track), 3, count).mT / size
    spread = (one[:, :, None] * (rest - p[labels])[:, None]).flatten(1)
    C = (flat @ spread).reshape(len(track), 3, count, 3).permute(0, 2, 1, 3)
    R = so3.project(C)
    t = q - (R @ p[..., None])[..., 0]
    t = torch.where((one.sum(0) > 0)[:, None], t, 0.0)
    return torch.cat([R, t[..., None]], -1)


def step_along(transforms: Tensor, before: Tensor, pivots: Tensor, size: float) -> Tensor:
    """Transforms moved on by `size` of what they moved since `before`, to first order, about the pivots (J, 3)."""
    R, old = transforms[..., :3], before[..., :3]
    turn = R @ old.mT
    further = so3.exp(0.5 * size * so3.vee(turn - turn.mT)) @ R
    place, began = ((x[..., :3] @ pivots[..., None])[..., 0] + x[..., 3] for x in (transforms, before))
    t = place + size * (place - began) - (further @ pivots[..., None])[..., 0]
    return torch.cat([further, t[..., None]], -1)
