"""Dual-quaternion skinning: each vertex moves by the mean of its bones' screw motions, which is a screw motion too."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.kernels.pointwise import fused
from geom.lie import quaternion, se3, so3
from geom.skinning.influences import blend, check_influences, deformer, flatten_poses

__all__ = ["dqs", "dqs_rigid"]

_LEAST = {torch.float32: 1e-18, torch.float64: 1e-150}  # squared length of a blend that holds a rotation


def dqs(
    vertices: Float[Tensor, "*a v 3"],
    weights: Float[Tensor, "v k"],
    bones: Float[Tensor, "*b j 3 4"],
    *,
    indices: Int64[Tensor, "v k"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*c v 3"]:
    """Dual-quaternion skinning in two phases: stretches blend linearly, then screw motions by their unit mean.

    Each bone is taken apart, T = [R S | t] with a rotation R and a symmetric S (polar decomposition). A vertex first
    goes to u = (I + sum_k w_k (S_k - I)) v, then by the motion of b / |b_0|, b = sum_k s_k w_k q_k with the dual
    quaternions q_k of [R_k | t_k] (Kavan et al. 2008, Eq. (4) and Sec. 4.2). The signs s_k turn each q_k to the side
    of the bone of the vertex's greatest weight, on ties of the lowest index. So |b_0| is at least that weight, and
    never zero for weights of sum 1: no blend is without a rotation. Volume is kept where LBS collapses.

    Signs, being steps, carry no derivative. A row of zeros leaves its vertex where it is.

    Args: as `lbs`; a vertex's indices should differ where their weights are above 0, since the greatest weight is
    looked for among them one by one. Bones may hold any linear part, mirrored and singular ones too (see
    `geom.lie.so3.project`).
    Returns: (..., V, 3), the batches of vertices and bones broadcast.
    Raises: ShapeError.

    >>> from geom.lie import so3
    >>> turn = so3.exp(torch.tensor([[0.0, 0, 0], [0, 0, 3.1]]))
    >>> bones = torch.cat([turn, torch.zeros(2, 3, 1)], -1)
    >>> middle = torch.tensor([[0.5, 0.5]])
    >>> dqs(torch.tensor([[1.0, 0, 0]]), middle, bones).norm()  # on the circle; by LBS near its centre
    tensor(1.0000)

    Guarantees: differentiable (0, pi); deterministic; 4e-15 f64, 2e-6 f32 of the lengths involved
    """
    check_influences(vertices, weights, bones, (3, 4), indices)
    return _deform(vertices, weights, _screws(bones), indices, backend)


@fused("screws.screws", [(3, 4)], [(16,)])
def _screws(bones: Float[Tensor, "*b 3 4"]) -> Float[Tensor, "*b 16"]:
    """What the kernels know of a bone: q (8), E = S - I (6), zeros (2)."""
    linear = bones[..., :3]
    rotation = so3.project(linear)
    motions = se3.to_dual_quaternion(quaternion.from_matrix(rotation), bones[..., 3])
    xx, xy, xz, yx, yy, yz, zx, zy, zz = (rotation.mT @ linear).flatten(-2).unbind(-1)
    zero = torch.zeros_like(xx)
    strain = [xx - 1, yy - 1, zz - 1, (xy + yx) / 2, (xz + zx) / 2, (yz + zy) / 2, zero, zero]
    return torch.cat([motions, torch.stack(strain, -1)], -1)


def dqs_rigid(
    vertices: Float[Tensor, "*a v 3"],
    weights: Float[Tensor, "v k"],
    motions: Float[Tensor, "*b j 8"],
    *,
    indices: Int64[Tensor, "v k"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*c v 3"]:
    """Dual-quaternion skinning by rigid motions that are dual quaternions already; as `dqs`, without its first phase.

    q and -q are the same motion: with any of them negated the result is the same to the last bit.

    Args: as `dqs`, with motions (..., J, 8) for bones, unit dual quaternions (`geom.lie.se3.to_dual_quaternion`).
    Returns: (..., V, 3), the batches of vertices and motions broadcast.
    Raises: ShapeError.

    Guarantees: differentiable (0, pi); deterministic; 2e-15 f64, 1e-6 f32 of the lengths involved
    """
    check_influences(vertices, weights, motions, (8,), indices, other="motions")
    real = motions[..., :4].detach()
    lead = real.gather(-1, (real != 0).to(torch.int8).argmax(-1, keepdim=True))  # one sign for q and -q, ties included
    rows = torch.nn.functional.pad(torch.where(lead < 0, -motions, motions), (0, 8))
    return _deform(vertices, weights, rows, indices, backend)


def _deform(vertices: Tensor, weights: Tensor, rows: Tensor, indices: Tensor | None, backend: str) -> Tensor:
    from geom.kernels import bridge

    batch, vertices, rows = flatten_poses(vertices, rows)
    run = _kernel if bridge.choose(backend, vertices, weights, rows) else _twin
    return run(vertices, weights, indices, rows).reshape(*batch, *vertices.shape[-2:])


def _twin(vertices: Tensor, weights: Tensor, indices: Tensor | None, rows: Tensor) -> Tensor:
    known, joints = weights.detach(), rows.shape[-2]
    bones = torch.arange(joints, device=weights.device) if indices is None else indices
    greatest = known == known.amax(-1, keepdim=True)
    pivot = torch.where(greatest, bones, joints).amin(-1).clamp(max=joints - 1)
    real = rows[..., :4].detach()
    near = real[..., pivot, :]
    cosine = near @ real.mT if indices is None else (real[..., indices, :] @ near[..., None])[..., 0]
    mean = blend(torch.where(cosine < 0, -weights, weights), rows[..., :8], indices)
    xx, yy, zz, xy, xz, yz = blend(weights, rows[..., 8:14], indices).unbind(-1)
    strain = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).unflatten(-1, (3, 3))
    u = vertices + (strain @ vertices[..., None])[..., 0]
    w, r, e, d = mean.split([1, 3, 1, 3], -1)
    square = w.square() + r.square().sum(-1, keepdim=True)
    none = square < _LEAST[rows.dtype]
    scale = torch.where(none, 0.0, 2 / torch.where(none, 1.0, square))
    r, u = torch.broadcast_tensors(r, u)
    h = torch.linalg.cross(r, u) + w * u + d
    return u + scale * (torch.linalg.cross(r, h) + w * d - e * r)


_kernel = deformer("dqs", _twin)
