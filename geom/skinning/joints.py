"""Where rigid parts turn about each other, and the tree that this makes of them."""

import torch
from torch import Tensor

__all__ = ["joint_tree"]

_SAMPLE = 200  # points of a part that stand for it
_PULL = 1e-5  # towards the place of contact, of what the motion leaves open: a hinge's axis, parts at rest


def joint_tree(transforms: Tensor, rest: Tensor, members: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Joints (P, 3) at rest, each of a part with its parent, and parents (P,), -1 for the part with most members.

    The joint of parts a and b is the point p of least mean |T_a p - T_b p|^2 over the frames. The tree is the one of
    least sum of those errors (roots of the means) and of the gaps between the parts. The root's joint is its centroid.

    Args: transforms (T, P, 3, 4), rigid; rest (N, 3); members, the points of each part.
    """
    count = transforms.shape[1]
    R, t = transforms[..., :3], transforms[..., 3]
    some = [m[:: max(1, len(m) // _SAMPLE)] for m in members]
    joints = rest.new_zeros(count, count, 3)
    score = rest.new_zeros(count, count)
    eye = torch.eye(3, dtype=rest.dtype, device=rest.device)
    for a in range(count):
        turn, slide = R[:, a, None] - R, t[:, a, None] - t
        N = torch.einsum("tpca,tpcb->pab", turn, turn) / len(R)
        right = -torch.einsum("tpca,tpc->pa", turn, slide) / len(R)
        contact, gap = torch.zeros_like(right), torch.zeros_like(right[:, 0])
        for b in range(count):
            if len(some[a]) and len(some[b]):
                far = torch.cdist(rest[some[a]], rest[some[b]])
                at = int(far.argmin())
                i, j = divmod(at, far.shape[1])
                contact[b], gap[b] = 0.5 * (rest[some[a][i]] + rest[some[b][j]]), far[i, j]
        p = torch.linalg.solve(N + _PULL * eye, (right + _PULL * contact)[..., None])[..., 0]
        off = (turn @ p[..., None])[..., 0] + slide
        joints[a], score[a] = p, off.square().sum(-1).mean(0).sqrt() + gap
    root = max(range(count), key=lambda j: len(members[j]))
    centre = rest[members[root]].mean(0) if len(members[root]) else rest.mean(0)
    places, parent = [centre] * count, [-1] * count
    near = {j: (float(score[root, j]), root) for j in range(count) if j != root}
    while near:  # Prim's algorithm
        j = min(near, key=lambda k: near[k])
        parent[j] = near.pop(j)[1]
        places[j] = joints[parent[j], j]
        for k in near:
            near[k] = min(near[k], (float(score[j, k]), j))
    return torch.stack(places), torch.tensor(parent, device=rest.device)
