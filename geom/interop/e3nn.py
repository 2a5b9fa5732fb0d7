"""e3nn: quaternions (w, x, y, z), matrices and l = 1 irreps (x, y, z) are those of here; angles are R_y R_x R_y.

So `Irreps("1o").D_from_quaternion(q)` is `quaternion.to_matrix(q)`, and a vector needs no reordering. Gradients of
e3nn's own conversions to angles are NaN at the identity; these are finite.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_choice, check_shape, describe
from geom.clifford import EGA, PGA, Algebra
from geom.errors import ShapeError
from geom.lie import quaternion, so3

__all__ = ["from_e3nn", "irreps_to_multivectors", "multivectors_to_irreps", "to_e3nn"]


def to_e3nn(quat_wxyz: Float[Tensor, "*b 4"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """The angles (alpha, beta, gamma) that e3nn takes: R = R_y(alpha) R_x(beta) R_y(gamma).

    At beta = 0 and beta = pi only alpha + gamma or alpha - gamma is fixed; gamma is 0 there, as
    `so3.to_euler(R, "YXY")` has it.

    Args: quat_wxyz (..., 4), unit; float32 or float64.
    Returns: alpha, beta in [0, pi], gamma, each (...,), radians, for `Irreps.D_from_angles` and `o3.wigner_D`.
    Raises: ShapeError for another shape.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    alpha, beta, gamma = so3.to_euler(quaternion.to_matrix(check_shape(quat_wxyz, (4,), "quat_wxyz")), "YXY").unbind(-1)
    return alpha, beta, gamma


def from_e3nn(
    alpha: Float[Tensor, "*b"], beta: Float[Tensor, "*b"], gamma: Float[Tensor, "*b"]
) -> Float[Tensor, "*b 4"]:
    """The quaternion of e3nn's angles: the inverse of `to_e3nn`, with w >= 0.

    Args: alpha, beta, gamma, batch shapes that broadcast, radians, of one dtype.
    Returns: unit quaternion (..., 4), real part first, as e3nn has it too.

    >>> from_e3nn(torch.tensor(0.5), torch.tensor(0.0), torch.tensor(-0.5)).tolist()
    [1.0, 0.0, 0.0, 0.0]

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    return quaternion.from_matrix(so3.from_euler(torch.stack(torch.broadcast_tensors(alpha, beta, gamma), -1), "YXY"))


# --- multivectors -----------------------------------------------------------------------------------------------------

_WIDTHS = (1, 3, 3, 1)  # of 0e, 1o, 1e, 0o


def multivectors_to_irreps(
    multivectors: Float[Tensor, "*b channels blades"], algebra: Algebra = PGA
) -> Float[Tensor, "*b features"]:
    """C multivectors as features of e3nn, by grade: scalars 0e, vectors 1o, bivectors 1e, trivectors 0o.

    Of `EGA` they are of `Irreps(f"{C}x0e + {C}x1o + {C}x1e + {C}x0o")`, and x, y, z of 1e are the components yz, -xz,
    xy. Of `PGA` there are twice as many of each: C without e0, then C that e0 is a factor of (e0 as 0e, e0i as 1o, e0ij
    as 1e, e0123 as 0o), to which translations add of those without. (A point is -1 times the second 1e over the first
    0o.)

    `D_from_matrix` of a rotation or reflection R acts on them as `PGA.sandwich` of its versor on the multivectors.

    Args: multivectors (..., C, 16), or (..., C, 8) with algebra `EGA`.
    Returns: (..., 16 C) or (..., 8 C).
    Raises: ShapeError for another shape or algebra.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    places, signs = _places(algebra)
    if check_shape(multivectors, (algebra.size,), "multivectors").ndim < 2:
        raise ShapeError(f"multivectors: expected a tensor (..., C, {algebra.size}), got {describe(multivectors)}")
    ordered = multivectors[..., list(places)] * multivectors.new_tensor(signs)
    copies = 1 + algebra.r
    parts = ordered.split([copies * width for width in _WIDTHS], -1)
    turned = [x.unflatten(-1, (copies, -1)).transpose(-3, -2).flatten(-3) for x in parts]
    return torch.cat(turned, -1)


def irreps_to_multivectors(
    features: Float[Tensor, "*b features"], algebra: Algebra = PGA
) -> Float[Tensor, "*b channels blades"]:
    """Features of e3nn as multivectors: the inverse of `multivectors_to_irreps`.

    Args: features (..., 16 C), or (..., 8 C) with algebra `EGA`, of the irreps named there.
    Returns: (..., C, 16) or (..., C, 8).
    Raises: ShapeError for another shape or algebra.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """
    places, signs = _places(algebra)
    if not isinstance(features, Tensor) or features.ndim < 1 or features.shape[-1] % algebra.size:
        raise ShapeError(f"features: expected a tensor (..., {algebra.size} C), got {describe(features)}")
    copies, channels = 1 + algebra.r, features.shape[-1] // algebra.size
    parts = features.split([copies * channels * width for width in _WIDTHS], -1)
    turned = [
        x.unflatten(-1, (copies, channels, width)).transpose(-3, -2).flatten(-2)
        for x, width in zip(parts, _WIDTHS, strict=True)
    ]
    back = [places.index(i) for i in range(algebra.size)]
    return (torch.cat(turned, -1) * features.new_tensor(signs))[..., back]


@cache
def _places(algebra: Algebra) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The components in the order of 0e, 1o, 1e, 0o, each without and then with the null vector, and their signs."""
    check_choice(algebra, (EGA, PGA), "algebra")
    x, y, z = range(algebra.r, algebra.dimension)
    kinds = (((),), ((x,), (y,), (z,)), ((y, z), (x, z), (x, y)), ((x, y, z),))
    found = [
        (algebra.blades.index((*null, *blade)), -1 if blade == (x, z) else 1)
        for blades in kinds
        for null in ((), (0,))[: 1 + algebra.r]
        for blade in blades
    ]
    places, signs = zip(*found, strict=True)
    return places, signs
