"""Unit quaternions (w, x, y, z), Hamilton: the rotations under `Rigid`. q and -q are the same rotation."""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.kernels.pointwise import fused
from geom.lie import _series
from geom.roots import safe_norm

__all__ = [
    "exp",
    "log",
    "multiply",
    "conjugate",
    "rotate",
    "slerp",
    "to_matrix",
    "from_matrix",
    "geodesic_distance",
    "random",
]


@fused("rotations.exp", [(3,)], [(4,)])
def exp(rotvec: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4"]:
    """Rotation vector (radians) to quaternion: (cos(theta/2), sin(theta/2) axis).

    Beyond 1e7 (float32) or 1e9 radians a turn is less than the vector's rounding: the result is then a rotation about
    the right axis, by no angle in particular.

    Args: rotvec (..., 3), any length; float16 to float64.
    Returns: unit quaternion (..., 4).

    >>> exp(torch.tensor([0.0, 0.0, torch.pi], dtype=torch.float64)).round(decimals=6).tolist()
    [0.0, 0.0, 0.0, 1.0]

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    most = 1e7 if rotvec.dtype == torch.float32 else 1e9
    rotvec = rotvec * (most / rotvec.detach().abs().amax(-1, keepdim=True).clamp(min=most))
    cos, sinc, _ = _series.exponential(rotvec.square().sum(-1, keepdim=True))
    return torch.cat([cos, 0.5 * sinc * rotvec], -1)


@fused("rotations.log", [(4,)], [(3,)])
def log(quat_wxyz: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3"]:
    """Quaternion to the rotation vector of least angle, in [0, pi] radians: the inverse of `exp`.

    At angle pi both axes are right; the one along (x, y, z) of the sign given is returned.

    Args: quat_wxyz (..., 4), unit.
    Returns: rotation vector (..., 3).

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    q = torch.where(quat_wxyz[..., :1] < 0, -quat_wxyz, quat_wxyz)
    w, xyz = q[..., :1], q[..., 1:]
    square = xyz.square().sum(-1, keepdim=True)
    small = square < 1e-8 * w.square()
    sine = torch.where(small, torch.ones_like(square), square).sqrt()
    ratio = torch.where(small, square, torch.zeros_like(square)) / torch.where(small, w, torch.ones_like(w)).square()
    near = 2 * (1 - ratio / 3) / torch.where(small, w, torch.ones_like(w))
    far = 2 * torch.atan2(sine, torch.where(small, torch.ones_like(w), w)) / sine
    return torch.where(small, near, far) * xyz


@fused("rotations.multiply", [(4,), (4,)], [(4,)])
def multiply(a: Float[Tensor, "*b 4"], b: Float[Tensor, "*c 4"]) -> Float[Tensor, "*d 4"]:
    """Hamilton product a b: rotate by b first, then by a. Batches broadcast.

    The vector part of q* q is zero to the last bit.

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    aw, av, bw, bv = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    av, bv = torch.broadcast_tensors(av, bv)
    real = aw * bw - (av * bv).sum(-1, keepdim=True)
    return torch.cat([real, aw * bv + bw * av + torch.linalg.cross(av, bv)], -1)


def conjugate(quat_wxyz: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """(w, -x, -y, -z): the inverse of a unit quaternion.

    Guarantees: differentiable (0, pi); deterministic; exact f64, exact f32
    """
    return torch.cat([quat_wxyz[..., :1], -quat_wxyz[..., 1:]], -1)


@fused("rotations.rotate", [(4,), (3,)], [(3,)])
def rotate(quat_wxyz: Float[Tensor, "*b 4"], vector: Float[Tensor, "*c 3"]) -> Float[Tensor, "*d 3"]:
    """q (0, v) q*: rotate vectors (..., 3); batches broadcast.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32 of the vector's length
    """
    w, (xyz, vector) = quat_wxyz[..., :1], torch.broadcast_tensors(quat_wxyz[..., 1:], vector)
    twice = 2 * torch.linalg.cross(xyz, vector)
    return vector + w * twice + torch.linalg.cross(xyz, twice)


def slerp(
    start: Float[Tensor, "*b 4"], end: Float[Tensor, "*c 4"], t: Float[Tensor, "*d"] | float
) -> Float[Tensor, "*e 4"]:
    """The shorter way from one rotation to another at constant angular velocity: start exp(t log(start* end)).

    At t = 0 and 1 exactly `start` and `end` (or -end, the same rotation); other t, below 0 or above 1 too, go on along
    the same great circle. Where both ways are equally long (angle pi) the one along the vector part of start* end.

    Args: start, end (..., 4), unit; t (...), of their batch or broadcasting with it, or a number.
    Returns: unit quaternion (..., 4).

    >>> x = torch.tensor([[1.0, 0, 0, 0], [0.0, 1, 0, 0]], dtype=torch.float64)
    >>> slerp(x[0], x[1], 0.5).round(decimals=4).tolist()
    [0.7071, 0.7071, 0.0, 0.0]

    Guarantees: differentiable (0, pi); deterministic; 3e-15 f64, 1e-6 f32
    """
    step = t[..., None].to(start) if isinstance(t, Tensor) else start.new_full((1,), t)
    return _slerp(start, end, step)


@fused("rotations.slerp", [(4,), (4,), (1,)], [(4,)])
def _slerp(start: Float[Tensor, "*b 4"], end: Float[Tensor, "*c 4"], t: Float[Tensor, "*d 1"]) -> Float[Tensor, "*e 4"]:
    turn = multiply(conjugate(start), end)
    moved = multiply(start, exp(t * log(turn)))
    near = torch.where(turn[..., :1] < 0, -end, end)
    # exact at the end in value, and in its derivatives what it is just before
    return moved + torch.where(t == 1, near - moved, torch.zeros_like(moved)).detach()


@fused("rotations.to_matrix", [(4,)], [(3, 3)])
def to_matrix(quat_wxyz: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3 3"]:
    """Quaternion to rotation matrix (..., 3, 3) for column vectors: of its direction, so that R is one to rounding.

    A quaternion of zeros gives the identity, with zero gradient.

    Guarantees: differentiable (0, pi); deterministic; 2e-16 f64, 1e-7 f32
    """
    square = quat_wxyz.square().sum(-1, keepdim=True)
    unit = quat_wxyz / torch.where(square > 0, square, torch.ones_like(square)).sqrt()
    axes = torch.eye(3, dtype=quat_wxyz.dtype, device=quat_wxyz.device)
    return rotate(unit[..., None, :], axes).mT


@fused("rotations.from_matrix", [(3, 3)], [(4,)])
def from_matrix(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 4"]:
    """Rotation matrix to unit quaternion with w >= 0: the best conditioned row of 4 q q^T, normalised.

    The matrix is taken to be a rotation; one that is off by rounding gives a unit quaternion off by as much.

    Guarantees: differentiable (0, pi); deterministic; 4e-16 f64, 3e-7 f32
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.flatten(-2).unbind(-1)
    w, x, y, z = 1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22
    wx, wy, wz, xy, xz, yz = m21 - m12, m02 - m20, m10 - m01, m01 + m10, m02 + m20, m12 + m21
    outer = torch.stack([w, wx, wy, wz, wx, x, xy, xz, wy, xy, y, yz, wz, xz, yz, z], -1).unflatten(-1, (4, 4))
    best = torch.stack([w, x, y, z], -1).argmax(-1)
    row = torch.take_along_dim(outer, best[..., None, None], -2).squeeze(-2)
    quat = row / torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    return torch.where(quat[..., :1] < 0, -quat, quat)


@fused("rotations.distance", [(4,), (4,)], [()])
def geodesic_distance(a: Float[Tensor, "*b 4"], b: Float[Tensor, "*c 4"]) -> Float[Tensor, "*d"]:
    """The angle between two rotations, in [0, pi] radians: |log(a* b)|. Batches broadcast.

    The gradient is 0 where the rotations are the same, and one-sided at angle pi.

    Guarantees: differentiable (0, pi); deterministic; 1e-15 f64, 6e-7 f32
    """
    return safe_norm(log(multiply(conjugate(a), b)))


def random(
    *batch: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*b 4"]:
    """Uniformly distributed rotations (Haar measure), in the batch shape given, of either sign.

    Guarantees: not differentiable; deterministic under a seed; unit to 4e-16 f64, 3e-7 f32
    """
    normal = torch.randn(*batch, 4, generator=generator, dtype=dtype, device=device)
    return normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
