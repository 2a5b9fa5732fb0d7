"""Parts that move rigidly, the joints between them and their tree, from the motion of points alone."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_positive, describe
from geom.errors import ShapeError
from geom.points import knn
from geom.skinning.clusters import cluster_rigidly, rigid_errors
from geom.skinning.decomposition import check_track
from geom.skinning.joints import joint_tree
from geom.values import Value, value

__all__ = ["Parts", "discover_parts"]

_NEIGHBORS = 12


@value
class Parts(Value):
    """Semi-rigid parts of N moving points over T frames.

    Fields: labels (N,), the part of each; rigidity (N,), 1 where a point moves with its part exactly, 1/2 where it is
        off by the tolerance (root mean square over the frames), falling to 0; motions (T, P, 3, 4), rigid, from the
        first frame to each; joints (P, 3) in the first frame, of each part with its parent, of a root its centroid;
        parent (P,), -1 at the root.
    """

    labels: Int64[Tensor, " n"]
    rigidity: Float[Tensor, " n"]
    motions: Float[Tensor, "t p 3 4"]
    joints: Float[Tensor, "p 3"]
    parent: Int64[Tensor, " p"]


def discover_parts(track: Float[Tensor, "t n 3"], *, parts: int | None = None, tolerance: float | None = None) -> Parts:
    """Parts, rigidity, joints and skeleton of tracked points, of a mesh's vertices or any others.

    Clusters are split while one is off its rigid motion by more than the tolerance, root mean square over its points
    and the frames, then points go where they fit best (vector quantisation, as `decompose_skinning` begins). The joint
    of two parts is the point that both carry to the same place, by least squares; the skeleton is the tree of least
    sum of their residuals and of the gaps between parts. Where motion leaves a joint open, along a hinge or between
    parts that do not move against each other, it is where the two come closest.

    Args:
        track: (T, N, 3) points over frames, any unit, float32 or float64. It is worked in float64. Without gaps: a
            point that is lost in some frames (NaN) is to be left out, or filled in.
        parts: how many at most; None: as many as the tolerance asks for, at most a sixth of the points.
        tolerance: in the track's unit; None: 1 % of the diagonal of the first frame's box.
    Returns: Parts. Each has three points or more, where there are as many.
    Raises: ShapeError: NaN or inf, shapes, numbers that are not positive.

    >>> door = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    >>> turn = torch.linspace(0, 1, 7)
    >>> x, y = door[:, 0] * turn.cos()[:, None], door[:, 0] * turn.sin()[:, None]
    >>> leaf = torch.stack([x, y, door[:, 2].expand(7, -1)], -1)
    >>> frame = (door * torch.tensor([-1.0, 0, 1])).expand(7, -1, -1)
    >>> found = discover_parts(torch.cat([leaf, frame], 1))
    >>> found.parent.tolist(), found.labels.bincount().tolist(), bool(found.joints[1, 0].abs() < 1e-4)
    ([-1, 0], [40, 40], True)

    Guarantees: not differentiable; deterministic
    """
    x = check_track(track).double()
    if parts is not None and (not isinstance(parts, int) or parts < 1):
        raise ShapeError(f"parts: expected a whole number of at least 1, got {describe(parts)}")
    rest = x[0] - x[0].mean(0)
    diagonal = float((rest.amax(0) - rest.amin(0)).norm())
    bound = 0.01 * (diagonal or 1.0) if tolerance is None else check_positive(tolerance, "tolerance")
    moved = x - x[0].mean(0)
    near = knn(rest, rest, min(_NEIGHBORS, len(rest))).index
    count = max(1, len(rest) // 6) if parts is None else parts
    split = bound if parts is None or tolerance is not None else 1e-9 * diagonal
    labels, motions = cluster_rigidly(moved, rest, near, count, tolerance=split)
    members = [(labels == p).nonzero()[:, 0] for p in range(motions.shape[1])]
    joints, parent = joint_tree(motions, rest, members)
    off = rigid_errors(moved, rest, motions).gather(1, labels[:, None])[:, 0]
    centre = x[0].mean(0)
    R = motions[..., :3]
    t = motions[..., 3] + centre - (R @ centre[:, None])[..., 0]
    return Parts(
        labels,
        (1 / (1 + off / bound**2)).to(track.dtype),
        torch.cat([R, t[..., None]], -1).to(track.dtype),
        (joints + centre).to(track.dtype),
        parent,
    )
