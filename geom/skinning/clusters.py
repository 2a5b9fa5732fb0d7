"""Points of a track in clusters that move rigidly: vector quantisation that starts from one cluster and splits
(Linde, Buzo and Gray 1980; Le and Deng 2012, Sec. 4.1)."""

import torch
from torch import Tensor

from geom.skinning.bone_transforms import fit_labels
from geom.skinning.bone_weights import homogeneous

__all__ = ["cluster_rigidly", "rigid_errors"]

_SMALLEST = 3  # points of a cluster: fewer leave its turn open


def rigid_errors(track: Tensor, rest: Tensor, transforms: Tensor) -> Tensor:
    """(V, J): squared distance of each point to where each motion carries it, mean over the frames."""
    frames, bones = transforms.shape[:2]
    stacked = transforms.permute(0, 2, 1, 3).reshape(3 * frames, bones, 4)
    flat = track.permute(0, 2, 1).reshape(3 * frames, -1)
    h = homogeneous(rest)
    gram = torch.einsum("rja,rjb->jab", stacked, stacked)
    there = torch.einsum("va,jab,vb->vj", h, gram, h)
    along = torch.einsum("vja,va->vj", (flat.T @ stacked.flatten(1)).reshape(-1, bones, 4), h)
    return (there - 2 * along + flat.square().sum(0)[:, None]).clamp(min=0) / frames


def cluster_rigidly(
    track: Tensor, rest: Tensor, near: Tensor, count: int, *, tolerance: float, rounds: int = 10
) -> tuple[Tensor, Tensor]:
    """Labels (V,) and the motion (T, n, 3, 4) of each, n at most `count`.

    Each round of splits parts at most all clusters, the worst first, at the neighbourhood of the point that is far from
    the cluster's centre and from where the cluster carries it. Clusters whose root mean square error is at most
    `tolerance` are left whole, and so are those of fewer than six points.

    Args: track (T, V, 3); rest (V, 3); near (V, k), each point's neighbours.
    """
    labels = torch.zeros(len(rest), dtype=torch.int64, device=rest.device)
    n, most, failures = 1, 0, 0
    while True:
        transforms = fit_labels(track, rest, labels, n)
        error = rigid_errors(track, rest, transforms)
        for _ in range(rounds if n > 1 else 0):
            found = error.argmin(1)
            keep = torch.bincount(found, minlength=n) >= min(_SMALLEST, len(rest))
            found, n = error[:, keep].argmin(1), int(keep.sum())
            same = bool(keep.all()) and bool((found == labels).all())
            labels = found
            if same:
                break
            transforms = fit_labels(track, rest, labels, n)
            error = rigid_errors(track, rest, transforms)
        failures = 0 if n > most else failures + 1
        most = max(n, most)
        own = error.gather(1, labels[:, None])[:, 0]
        total = torch.zeros(n, dtype=own.dtype, device=own.device).index_add_(0, labels, own)
        size = torch.bincount(labels, minlength=n)
        part = (total > tolerance**2 * size) & (size >= 2 * _SMALLEST)
        worst = [j for j in total.argsort(descending=True).tolist() if bool(part[j])][: count - n]
        if not worst or failures == 2:  # what was split fell back
            return labels, transforms
        before = labels.clone()
        for j in worst:
            members = (before == j).nonzero()[:, 0]
            far = (rest[members] - rest[members].mean(0)).norm(dim=-1)
            off = own[members].sqrt()
            seed = members[((off - off.min()) * (far - far.min())).argmax()]
            patch = near[seed][before[near[seed]] == j]
            labels[patch] = n
            labels[seed] = n
            n += 1
