"""Linear and dual-quaternion skinning mixed vertex by vertex, over a graph of nodes on the surface (DreamMesh4D)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import FLOATS, check_indices, describe
from geom.errors import ShapeError
from geom.meshes import HeatGeodesics, Mesh
from geom.skinning.dual_quaternion import dqs
from geom.skinning.influences import blend as blend_rows
from geom.skinning.linear import lbs

__all__ = ["graph_weights", "hybrid", "hybrid_blend"]


def hybrid(
    vertices: Float[Tensor, "*a v 3"],
    weights: Float[Tensor, "v k"],
    bones: Float[Tensor, "*b j 3 4"],
    *,
    blend: Float[Tensor, "*c v"] | float,
    strain: Float[Tensor, "*d j 6"] | None = None,
    indices: Int64[Tensor, "v k"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*e v 3"]:
    """eta x_lbs + (1 - eta) x_dqs: linear blending where eta is 1, dual quaternions where it is 0, both exactly.

    DreamMesh4D stretches what it blends linearly, not what its dual quaternions turn: `strain` holds for each bone the
    entries (xx, yy, zz, xy, xz, yz) of E, and x_lbs is moved by [A (I + E) | t]. What the bones hold of stretch
    themselves acts in both. Unlike the published code, quaternions of opposite signs are turned to one side (`dqs`).

    Args: vertices, weights, bones, indices and backend as `lbs`; blend eta, a number or (..., V), usually in [0, 1]:
    see `hybrid_blend`; strain (..., J, 6) or None.
    Returns: (..., V, 3), all batches broadcast.
    Raises: ShapeError.
    Li et al. 2024, DreamMesh4D, Sec. 3.2.

    >>> from geom.lie import so3
    >>> turn = so3.exp(torch.tensor([[0.0, 0, 0], [0, 0, torch.pi / 2]]))
    >>> bones = torch.cat([turn, torch.zeros(2, 3, 1)], -1)
    >>> x, w = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.5, 0.5]])
    >>> [round(float(hybrid(x, w, bones, blend=eta).norm()), 4) for eta in (1.0, 0.5, 0.0)]
    [0.7071, 0.8536, 1.0]

    Guarantees: differentiable (0, pi); deterministic; 4e-15 f64, 2e-6 f32 of the lengths involved
    """
    screwed = dqs(vertices, weights, bones, indices=indices, backend=backend)
    if strain is not None:
        if not isinstance(strain, Tensor) or strain.ndim < 2 or strain.shape[-2:] != (bones.shape[-3], 6):
            raise ShapeError(f"strain: expected a tensor (..., {bones.shape[-3]}, 6), got {describe(strain)}")
        xx, yy, zz, xy, xz, yz = strain.unbind(-1)
        stretch = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).unflatten(-1, (3, 3))
        linear = bones[..., :3] + bones[..., :3] @ stretch
        bones = torch.cat([linear, bones[..., 3:].expand(*linear.shape[:-1], 1)], -1)
    blended = lbs(vertices, weights, bones, indices=indices, backend=backend)
    if isinstance(blend, Tensor):
        if not blend.ndim or blend.shape[-1] != vertices.shape[-2]:
            raise ShapeError(f"blend: expected a number or a tensor (..., {len(weights)}), got {describe(blend)}")
        blend = blend[..., None]
    return blend * blended + (1 - blend) * screwed


def hybrid_blend(
    weights: Float[Tensor, "v k"],
    scores: Float[Tensor, "*b j"],
    *,
    indices: Int64[Tensor, "v k"] | None = None,
    floor: float = 0.4,
) -> Float[Tensor, "*b v"]:
    """The share of linear blending at each vertex from scores of the bones: eta = min(1, sum_k w_k o_k + floor).

    Args: weights and indices as `lbs`; scores o (..., J), in [0, 1] (a sigmoid's); floor, the least share: 0.4 in
    DreamMesh4D's code, 0 to let scores of 0 mean dual quaternions alone.
    Returns: (..., V).
    Raises: ShapeError.

    >>> hybrid_blend(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, 0.2], [0.6, 1.0]])).tolist()
    [[0.5], [1.0]]

    Guarantees: differentiable (one-sided where the least cuts off); deterministic; 2e-16 f64, 1e-7 f32
    """
    joints = scores.shape[-1] if isinstance(scores, Tensor) and scores.ndim else None
    if joints is None or scores.dtype != weights.dtype:
        raise ShapeError(f"scores: expected a tensor (..., J) of {weights.dtype}, got {describe(scores)}")
    if indices is not None:
        check_indices(indices, weights.shape[-1], joints, "indices", "V")
    elif weights.shape[-1] != joints:
        raise ShapeError(f"scores: expected a tensor (..., {weights.shape[-1]}), got {describe(scores)}")
    return (blend_rows(weights, scores[..., None], indices)[..., 0] + floor).clamp(max=1)


def graph_weights(
    mesh: Mesh, nodes: Int64[Tensor, " n"], *, neighbors: int = 4
) -> tuple[Int64[Tensor, "v k"], Float[Tensor, "v k"]]:
    """Weights of a deformation graph: each vertex follows the K nodes that are nearest along the surface.

    w_k = (1 - d_k / d_{K+1})^2, then divided by their sum, with the straight distances d_1 <= ... <= d_{K+1} to the
    K + 1 nodes nearest along the surface (Sumner et al. 2007, Eq. (11); geodesic choice as DreamMesh4D). Where a
    component has but K or fewer nodes, those share it, up to twice the distance of their farthest; where it has none,
    the nearest in space count. Equal distances get equal weights.

    Args: mesh, vertices (V, 3); nodes (N,) int64, the vertices that are nodes, N > K; neighbors K >= 1.
    Returns: indices (V, K) into `nodes`, and weights (V, K), the greatest first, rows of sum 1.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; weights to 2e-15 f64, 1e-6 f32 of the choice of neighbours
    """
    if not isinstance(nodes, Tensor) or nodes.ndim != 1:
        raise ShapeError(f"nodes: expected an int64 tensor (N,), got {describe(nodes)}")
    check_indices(nodes[:, None], 1, len(mesh.vertices), "nodes", "N")
    if not isinstance(neighbors, int) or not 1 <= neighbors < len(nodes):
        raise ShapeError(f"neighbors: expected an integer from 1 to {len(nodes) - 1}, got {describe(neighbors)}")
    x = mesh.vertices.detach()
    if x.dtype not in FLOATS:
        raise ShapeError(f"mesh: expected vertices of float32 or float64, got {describe(x)}")
    along = HeatGeodesics(mesh).distance(nodes[:, None]).T  # (V, N)
    straight = torch.cdist(x, x[nodes], compute_mode="donot_use_mm_for_euclid_dist")
    reached = along.isfinite()
    beyond = 2 * torch.where(reached, along, 0.0).max() + straight
    chosen = torch.where(reached, along, beyond).sort(dim=-1, stable=True).indices[:, : neighbors + 1]
    reached = reached.gather(1, chosen)
    reached = reached | ~reached.any(-1, keepdim=True)
    distance, order = torch.where(reached, straight.gather(1, chosen), float("inf")).sort(dim=-1, stable=True)
    counted = distance.isfinite()
    farthest = torch.where(counted, distance, 0.0).amax(-1, keepdim=True)
    reach = torch.where(counted.all(-1, keepdim=True), farthest, 2 * farthest)
    share = (1 - distance[:, :-1] / torch.where(reach > 0, reach, 1.0)).clamp(min=0).square()
    total = share.sum(-1, keepdim=True)
    share = torch.where(total > 0, share, counted[:, :-1].to(x.dtype))
    return chosen.gather(1, order)[:, :-1], share / share.sum(-1, keepdim=True)
