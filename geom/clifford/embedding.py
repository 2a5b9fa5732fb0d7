"""Geometry as multivectors of G(3,0,1), and back: points, directions, lines, planes, motions, objects.

An even versor M, `embed_motion`, acts on all of them as `PGA.sandwich(M, x)`: the embedding of what is moved is the
moved embedding. A plane with unit normal is an odd versor, the reflection in it. It turns points, directions and lines
into -1 times the embedding of their mirror images, which extraction of points divides out.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_same, check_shape
from geom.clifford.algebra import PGA
from geom.lie import quaternion, so3
from geom.roots import safe_sqrt

__all__ = [
    "embed_direction",
    "embed_line",
    "embed_motion",
    "embed_object",
    "embed_plane",
    "embed_point",
    "embed_pseudoscalar",
    "embed_rotation",
    "embed_scalar",
    "embed_translation",
    "embed_twist",
    "embed_two_vectors",
    "extract_direction",
    "extract_line",
    "extract_motion",
    "extract_object",
    "extract_plane",
    "extract_point",
    "extract_pseudoscalar",
    "extract_rotation",
    "extract_scalar",
    "extract_twist",
    "extract_two_vectors",
    "point_regulariser",
]


def embed_scalar(scalar: Float[Tensor, "*b"]) -> Float[Tensor, "*b 16"]:
    """Numbers (...) as scalars, component 0.

    Guarantees: differentiable; deterministic; exact
    """
    return _place({0: scalar})


def extract_scalar(multivector: Float[Tensor, "*b 16"]) -> Float[Tensor, "*b"]:
    """Component 0.

    Guarantees: differentiable; deterministic; exact
    """
    return _check(multivector)[..., 0]


def embed_pseudoscalar(pseudoscalar: Float[Tensor, "*b"]) -> Float[Tensor, "*b 16"]:
    """Numbers (...) that change sign under reflections, component e0123.

    Guarantees: differentiable; deterministic; exact
    """
    return _place({15: pseudoscalar})


def extract_pseudoscalar(multivector: Float[Tensor, "*b 16"]) -> Float[Tensor, "*b"]:
    """Component e0123.

    Guarantees: differentiable; deterministic; exact
    """
    return _check(multivector)[..., 15]


def embed_point(point: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 16"]:
    """Points (x, y, z) as e123 - x e023 + y e013 - z e012, where the planes through them meet.

    >>> embed_point(torch.tensor([1.0, 2.0, 3.0]))[11:15].tolist()
    [-3.0, 2.0, -1.0, 1.0]

    Guarantees: differentiable; deterministic; exact
    """
    x, y, z = _vector(point, "point")
    return _place({11: -z, 12: y, 13: -x, 14: torch.ones_like(x)})


def extract_point(multivector: Float[Tensor, "*b 16"], *, threshold: float = 1e-3) -> Float[Tensor, "*b 3"]:
    """The point of a trivector: its components e023, e013, e012 over that of e123, its weight.

    A weight within the threshold of 0 becomes +threshold, as in GATr: points far away stay finite, and those of a small
    negative weight change sign.

    Guarantees: differentiable (but where the weight passes the threshold); deterministic; 2e-16 f64, 1e-7 f32
    """
    weight = _check(multivector)[..., 14]
    weight = torch.where(weight.abs() > threshold, weight, torch.full_like(weight, threshold))
    return extract_direction(multivector) / weight[..., None]


def point_regulariser(multivector: Float[Tensor, "*b 16"]) -> Float[Tensor, "*b"]:
    """|e123| - 1, by which a trivector's weight misses that of an embedded point; GATr trains with its square.

    Guarantees: differentiable (0); deterministic; 2e-16 f64, 1e-7 f32
    """
    return _check(multivector)[..., 14].abs() - 1


def embed_direction(direction: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 16"]:
    """Directions, or differences of points, as points at infinity: translations leave them.

    Guarantees: differentiable; deterministic; exact
    """
    x, y, z = _vector(direction, "direction")
    return _place({11: -z, 12: y, 13: -x})


def extract_direction(multivector: Float[Tensor, "*b 16"]) -> Float[Tensor, "*b 3"]:
    """The components of a point at infinity; of other trivectors not equivariant to translation.

    Guarantees: differentiable; deterministic; exact
    """
    _check(multivector)
    return torch.stack([-multivector[..., 13], multivector[..., 12], -multivector[..., 11]], -1)


def embed_line(direction: Float[Tensor, "*b 3"], moment: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 16"]:
    """Lines in Pluecker coordinates: direction v, and moment o x v of any point o on the line.

    It is join(embed_point(o), embed_point(o + v)).

    Guarantees: differentiable; deterministic; exact
    """
    (x, y, z), (a, b, c) = _vector(direction, "direction"), _vector(moment, "moment")
    check_same(direction, moment, "direction and moment")
    return _place({5: a, 6: b, 7: c, 8: z, 9: -y, 10: x})


def extract_line(multivector: Float[Tensor, "*b 16"]) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b 3"]]:
    """Direction and moment (..., 3) of a bivector.

    Guarantees: differentiable; deterministic; exact
    """
    z, y, x = _check(multivector)[..., 8:11].unbind(-1)
    return torch.stack([x, -y, z], -1), multivector[..., 5:8]


def embed_plane(normal: Float[Tensor, "*b 3"], point: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 16"]:
    """Planes with a normal n, unit or not, through a point p: n1 e1 + n2 e2 + n3 e3 - (n . p) e0.

    With a unit normal this is also the reflection in the plane, for `PGA.sandwich`.

    >>> mirror = embed_plane(torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, 1]))
    >>> extract_point(PGA.sandwich(mirror, embed_point(torch.tensor([3.0, 4, 5])))).tolist()
    [3.0, 4.0, -3.0]

    Guarantees: differentiable; deterministic; 2e-16 f64, 1e-7 f32 of |n| |p|
    """
    x, y, z = _vector(normal, "normal")
    check_same(normal, check_shape(point, (3,), "point"), "normal and point")
    return _place({1: -(normal * point).sum(-1), 2: x, 3: y, 4: z})


def extract_plane(multivector: Float[Tensor, "*b 16"]) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b"]]:
    """Normal n (..., 3) and offset d (...) of the plane n . x = d.

    The normal is the one vector that can be read from a multivector linearly and unmoved by translations.

    Guarantees: differentiable; deterministic; exact
    """
    _check(multivector)
    return multivector[..., 2:5], -multivector[..., 1]


def embed_translation(translation: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 16"]:
    """The versor 1 - e0 t / 2 of a translation.

    Guarantees: differentiable; deterministic; exact
    """
    x, y, z = _vector(translation, "translation")
    return _place({0: torch.ones_like(x), 5: -x / 2, 6: -y / 2, 7: -z / 2})


def embed_rotation(quat_wxyz: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 16"]:
    """The versor w - z e12 + y e13 - x e23 of a unit quaternion.

    Guarantees: differentiable; deterministic; exact
    """
    w, x, y, z = check_shape(quat_wxyz, (4,), "quat_wxyz").unbind(-1)
    return _place({0: w, 8: -z, 9: y, 10: -x})


def extract_rotation(multivector: Float[Tensor, "*b 16"]) -> Float[Tensor, "*b 4"]:
    """The unit quaternion wxyz along the components that `embed_rotation` fills; (1, 0, 0, 0) where all are 0.

    Guarantees: differentiable (0); deterministic; 4e-16 f64, 3e-7 f32
    """
    _check(multivector)
    quat = torch.stack([multivector[..., 0], *(s * multivector[..., i] for i, s in ((10, -1), (9, 1), (8, -1)))], -1)
    square = quat.square().sum(-1, keepdim=True)
    none = square == 0
    unit = quat / torch.where(none, torch.ones_like(square), safe_sqrt(square))
    return torch.where(none, quat.new_tensor([1, 0, 0, 0]), unit)


def embed_motion(quat_wxyz: Float[Tensor, "*b 4"], translation: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 16"]:
    """The versor T R of the rigid motion R x + t, as of `Rigid`: products of versors are those of composed motions.

    Guarantees: differentiable; deterministic; 2e-16 f64, 1e-7 f32 of |t|
    """
    return PGA.geometric_product(embed_translation(translation), embed_rotation(quat_wxyz))


def extract_motion(multivector: Float[Tensor, "*b 16"]) -> tuple[Float[Tensor, "*b 4"], Float[Tensor, "*b 3"]]:
    """Unit quaternion wxyz and translation of an even versor, unit or not: M = |M| T R, so T = M R^-1 / |M|.

    It moves with the motion on the left of M, as M does. Of what is no versor, the nearest rotation and a translation
    all the same; where the components without e0 are 0, no rotation, and that of M itself.

    Guarantees: differentiable (0); deterministic; 2e-15 f64, 1e-6 f32 of 1 and |t|
    """
    quat = extract_rotation(multivector)
    alone = PGA.geometric_product(multivector, PGA.reverse(embed_rotation(quat)))
    size = alone[..., :1]
    return quat, -2 * alone[..., 5:8] / torch.where(size == 0, torch.ones_like(size), size)


def embed_twist(twist: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 16"]:
    """Twists (v, omega) as bivectors: `PGA.exp` of them is `embed_motion` of `se3.exp`.

    Guarantees: differentiable; deterministic; exact
    """
    a, b, c, x, y, z = (0.5 * check_shape(twist, (6,), "twist")).unbind(-1)
    return _place({5: -a, 6: -b, 7: -c, 8: -z, 9: y, 10: -x})


def extract_twist(multivector: Float[Tensor, "*b 16"]) -> Float[Tensor, "*b 6"]:
    """The twist (v, omega) of a bivector: of `PGA.log` of a motion's versor it is that of `se3.log`.

    Guarantees: differentiable; deterministic; exact
    """
    a, b, c, z, y, x = (-2 * _check(multivector)[..., 5:11]).unbind(-1)
    return torch.stack([a, b, c, x, -y, z], -1)


def embed_object(quat_wxyz: Float[Tensor, "*b 4"], position: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4 16"]:
    """A thing with an orientation as 4 multivectors: planes through it across its three axes, and its position.

    Guarantees: differentiable; deterministic; 5e-16 f64, 3e-7 f32 of |position|
    """
    normals = quaternion.to_matrix(check_shape(quat_wxyz, (4,), "quat_wxyz")).mT
    planes = embed_plane(normals, check_shape(position, (3,), "position")[..., None, :].expand_as(normals))
    return torch.cat([planes, embed_point(position)[..., None, :]], -2)


def extract_object(multivectors: Float[Tensor, "*b k 16"]) -> tuple[Float[Tensor, "*b 4"], Float[Tensor, "*b 3"]]:
    """Unit quaternion wxyz and position of an object, from its three planes: where they meet, and the rotation nearest
    to their normals.

    Args: multivectors (..., K, 16), K at least 3, of which the first three are read.
    Returns: quat_wxyz (..., 4), for any angle (GATr's 1 + sum v_i e_i is 0 at half turns); position (..., 3).
    Raises: ShapeError.

    Guarantees: differentiable (where only one rotation is nearest); deterministic; 2e-15 f64, 1e-6 f32 of |position|
    """
    first, second, third = _first_three(multivectors)
    normals = multivectors[..., :3, 2:5].mT
    meeting = PGA.outer_product(PGA.outer_product(first, second), third)
    return quaternion.from_matrix(so3.project(normals)), extract_point(meeting)


def embed_two_vectors(
    first: Float[Tensor, "*b 3"], second: Float[Tensor, "*b 3"], position: Float[Tensor, "*b 3"]
) -> Float[Tensor, "*b 4 16"]:
    """A thing at p with two vectors a and b, such as a gripper's: point p, and planes through it across a, b and a x b.

    Raises: ShapeError for other shapes, dtypes or devices than each other's.

    Guarantees: differentiable; deterministic; 5e-16 f64, 3e-7 f32 of |a| |b| |p|
    """
    for x, name in ((first, "first"), (second, "second"), (position, "position")):
        check_shape(x, (3,), name)
        check_same(x, position, f"{name} and position")
    normals = torch.stack([first, second, torch.linalg.cross(first, second)], -2)
    planes = embed_plane(normals, position[..., None, :].expand_as(normals))
    return torch.cat([embed_point(position)[..., None, :], planes], -2)


def extract_two_vectors(
    multivectors: Float[Tensor, "*b k 16"],
) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b 3"], Float[Tensor, "*b 3"]]:
    """Vectors a and b, and the position (...,  3), from the first three of `embed_two_vectors`' multivectors.

    `so3.from_6d` of (a, b) is the rotation that they span.

    Args: multivectors (..., K, 16), K at least 3.
    Raises: ShapeError.

    Guarantees: differentiable (as `extract_point`); deterministic; 2e-16 f64, 1e-7 f32
    """
    point, first, second = _first_three(multivectors)
    return extract_plane(first)[0], extract_plane(second)[0], extract_point(point)


def _first_three(multivectors: Tensor) -> tuple[Tensor, ...]:
    if _check(multivectors).ndim < 2 or multivectors.shape[-2] < 3:
        check_shape(multivectors, (3, 16), "multivectors")
    return multivectors[..., :3, :].unbind(-2)


def _vector(x: Tensor, name: str) -> tuple[Tensor, ...]:
    return check_shape(x, (3,), name).unbind(-1)


def _check(multivector: Tensor) -> Tensor:
    return check_shape(multivector, (PGA.size,), "multivector")


def _place(components: dict[int, Tensor]) -> Tensor:
    """The multivector with these components, and 0 in all others."""
    zero = torch.zeros_like(next(iter(components.values())))
    return torch.stack([components.get(i, zero) for i in range(PGA.size)], -1)
