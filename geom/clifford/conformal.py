"""Points, spheres, planes and motions as multivectors of `CGA`, G(4,1,0), and back: Dorst et al. 2007, chapter 13.

e0, e1, e2 are the axes; e3 of square +1 and e4 of square -1 make the origin o = (e4 - e3) / 2 and infinity
i = e3 + e4, with o o = i i = 0 and <o, i> = -1. All that is round or flat is a vector s:

| thing | vector | <s, s> | <s, point x> |
|---|---|---|---|
| point p | o + p + p^2 / 2 i | 0 | -|x - p|^2 / 2 |
| sphere of centre c, radius r | point c - r^2 / 2 i | r^2 | (r^2 - |x - c|^2) / 2 |
| plane n . x = d | n + d i | n^2 | n . x - d |

Spheres and planes are also the inversions and reflections in them, for `CGA.sandwich`: odd versors. A vector and its
multiples are the same thing, so that extraction divides by the weight, its component of o.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_same, check_shape, describe
from geom.clifford import embedding
from geom.clifford.algebra import CGA
from geom.errors import ShapeError

__all__ = [
    "embed_motion",
    "embed_plane",
    "embed_point",
    "embed_sphere",
    "extract_motion",
    "extract_plane",
    "extract_point",
    "extract_sphere",
]

# where the components of a motion's versor in `PGA` go: X e0 becomes X e3 + X e4 for a blade X of odd grade
_MOTOR = {
    0: ((),),
    **{5 + axis: ((axis, 3), (axis, 4)) for axis in range(3)},
    8: ((0, 1),),
    9: ((0, 2),),
    10: ((1, 2),),
    15: ((0, 1, 2, 3), (0, 1, 2, 4)),
}


def embed_point(point: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 32"]:
    """Points p as null vectors o + p + p^2 / 2 i: products of two say how far apart they are.

    The difference of the components e4 and e3 is 1, and lost to rounding where |p|^2 is above 2e7 (float32) or 1e16.

    >>> a, b = embed_point(torch.tensor([[1.0, 0, 0], [1.0, 2, 0]]))
    >>> CGA.inner_product(a, b).item()
    -2.0

    Guarantees: differentiable; deterministic; 2e-16 f64, 1e-7 f32 of 1 and |p|^2
    """
    return embed_sphere(point, torch.zeros_like(check_shape(point, (3,), "point")[..., 0]))


def extract_point(multivector: Float[Tensor, "*b 32"], *, threshold: float = 1e-6) -> Float[Tensor, "*b 3"]:
    """The point, or the centre, of a vector: its components e0, e1, e2 over its weight.

    A weight within the threshold of 0, as that of a plane, becomes +threshold: what lies far away stays finite.

    Guarantees: differentiable (off the threshold); deterministic; 1e-15 f64, 6e-7 f32 of 1 and |p|^2
    """
    return extract_sphere(multivector, threshold=threshold)[0]


def embed_sphere(center: Float[Tensor, "*b 3"], squared_radius: Float[Tensor, "*b"]) -> Float[Tensor, "*b 32"]:
    """Spheres of centre c and squared radius r^2, below 0 for imaginary ones, as c + o + (c^2 - r^2) / 2 i.

    Raises: ShapeError for other shapes, dtypes or devices than each other's.

    Guarantees: differentiable; deterministic; 2e-16 f64, 1e-7 f32 of 1, |c|^2 and r^2
    """
    check_same(check_shape(center, (3,), "center"), squared_radius, "center and squared_radius")
    _check_batch(squared_radius, center, "squared_radius")
    half = (center.square().sum(-1) - squared_radius) / 2
    return CGA.embed(torch.cat([center, torch.stack([half - 0.5, half + 0.5], -1)], -1))


def extract_sphere(
    multivector: Float[Tensor, "*b 32"], *, threshold: float = 1e-6
) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b"]]:
    """Centre (..., 3) and squared radius (...) of a vector of any weight, as `extract_point`.

    Guarantees: differentiable (off the threshold); deterministic; 1e-15 f64, 6e-7 f32 of 1 and |c|^2
    """
    vector = CGA.extract(multivector)
    weight = vector[..., 4] - vector[..., 3]
    weight = torch.where(weight.abs() > threshold, weight, torch.full_like(weight, threshold))
    center, ends = vector[..., :3] / weight[..., None], (vector[..., 3] + vector[..., 4]) / weight
    return center, center.square().sum(-1) - ends


def embed_plane(normal: Float[Tensor, "*b 3"], offset: Float[Tensor, "*b"]) -> Float[Tensor, "*b 32"]:
    """Planes n . x = d, of normals n, unit or not, as n + d i.

    Raises: ShapeError for other shapes, dtypes or devices than each other's.

    Guarantees: differentiable; deterministic; exact
    """
    check_same(check_shape(normal, (3,), "normal"), offset, "normal and offset")
    _check_batch(offset, normal, "offset")
    return CGA.embed(torch.cat([normal, torch.stack([offset, offset], -1)], -1))


def extract_plane(multivector: Float[Tensor, "*b 32"]) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b"]]:
    """Normal n (..., 3) and offset d (...) of a vector of weight 0: the components e0, e1, e2, and of i.

    Guarantees: differentiable; deterministic; 2e-16 f64, 1e-7 f32 of d
    """
    vector = CGA.extract(multivector)
    return vector[..., :3], (vector[..., 3] + vector[..., 4]) / 2


def embed_motion(quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 32"]:
    """The versor T R of the rigid motion R x + t: that of `PGA`, with -i for its null vector.

    Guarantees: differentiable; deterministic; 2e-16 f64, 1e-7 f32 of |t|
    """
    motor = embedding.embed_motion(quat_wxyz, translation).unbind(-1)
    placed = {CGA.blades.index(blade): motor[i] for i, found in _MOTOR.items() for blade in found}
    zero = torch.zeros_like(motor[0])
    return torch.stack([placed.get(i, zero) for i in range(CGA.size)], -1)


def extract_motion(multivector: Float[Tensor, "*b 32"]) -> tuple[Float[Tensor, "*b 4"], Float[Tensor, "*b 3"]]:
    """Unit quaternion wxyz and translation of a motion's versor, unit or not, as `embedding.extract_motion`.

    Guarantees: differentiable (0); deterministic; 2e-15 f64, 1e-6 f32 of 1 and |t|
    """
    check_shape(multivector, (CGA.size,), "multivector")
    read = {i: multivector[..., CGA.blades.index(found[0])] for i, found in _MOTOR.items()}
    zero = torch.zeros_like(multivector[..., 0])
    return embedding.extract_motion(torch.stack([read.get(i, zero) for i in range(16)], -1))


def _check_batch(x: Tensor, like: Tensor, name: str) -> None:
    if x.shape != like.shape[:-1]:
        raise ShapeError(f"{name}: expected a tensor of shape {tuple(like.shape[:-1])}, got {describe(x)}")
