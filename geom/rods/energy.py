"""Elastic energy of bending and twist, and its forces in closed form.

    E = sum over bends of ((k - k0)^T diag(EI1, EI2) (k - k0) + GJ (tau - tau0)^2) / (2 l)        (Bergou 2010, Eq. (6))

with k the two curvatures, tau the twist, l the mean rest length of the two edges. All in O(n), over any batch.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.rods.kinematics import edge_tangents
from geom.rods.rod import Rod

__all__ = ["bend_lengths", "bend_moduli", "bend_strains", "elastic_energy", "elastic_forces", "stresses"]


def bend_lengths(rod: Rod) -> Tensor:
    """Mean rest length (*b, bends) of the two edges of each bend of `rod.tree.bends`, metres."""
    k = rod.tree.bends
    return 0.5 * (rod.length[..., k] + rod.length[..., rod.parent[k]])


def stresses(rod: Rod, strain: Tensor, before: Tensor | None = None, viscous: Tensor | None = None) -> Tensor:
    """dE/dstrain (*b, bends, 3), N m; with Kelvin-Voigt viscosity, of a strain that was `before` a step of
    viscosity / viscous seconds."""
    stretch = strain[..., rod.tree.bends, :] - bend_strains(rod)
    if viscous is not None and before is not None:
        stretch = stretch + viscous[..., None, None] * (strain - before)[..., rod.tree.bends, :]
    return bend_moduli(rod) * stretch


def bend_moduli(rod: Rod) -> Tensor:
    """EI1, EI2 and GJ over the length of each bend (*b, bends, 3), N m."""
    k = rod.tree.bends
    stiffness = torch.cat([rod.bend_stiffness[..., k, :], rod.twist_stiffness[..., k, None]], -1)
    return stiffness / bend_lengths(rod)[..., None]


def bend_strains(rod: Rod) -> Tensor:
    """The two curvatures and the twist of each bend at rest (*b, bends, 3)."""
    k = rod.tree.bends
    return torch.cat([rod.curvature[..., k, :], rod.twist[..., k, None]], -1)


def elastic_energy(rod: Rod, strain: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b"]:
    """Energy of bending and twist, joules, at strains of `geom.rods.strains`.

    >>> from geom.rods import make_rod, natural_strain
    >>> x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]]).double()
    >>> rod = make_rod(x, EI=0.5, GJ=1.0)  # a right angle: (2 tan 45)^2 EI / (2 l)
    >>> round(float(elastic_energy(rod, natural_strain(x, rod.parent))), 9)
    1.0

    Guarantees: differentiable; deterministic; 1e-14 f64, 1e-6 f32
    """
    stretch = strain[..., rod.tree.bends, :] - bend_strains(rod)
    return 0.5 * (bend_moduli(rod) * stretch.square()).sum((-2, -1))


def elastic_forces(
    rod: Rod,
    positions: Float[Tensor, "*b n 3"],
    director: Float[Tensor, "*b n 3"],
    stress: Float[Tensor, "*b m 3"],
) -> Float[Tensor, "*b n 3"]:
    """-dE/dx (*b, n, 3), newtons, with directors carried along: `stress` (bends, 3) times the strains' derivatives,
    in closed form (Bergou 2010, Eqs. (9)-(11)).

    Guarantees: differentiable; deterministic; 1e-13 f64 of the largest, 1e-5 f32
    """
    k = rod.tree.bends
    p = rod.parent[k]
    a = rod.parent[p]
    e, f = positions[..., p, :] - positions[..., a, :], positions[..., k, :] - positions[..., p, :]
    tangent = edge_tangents(positions, rod.parent)
    te, tf, me, mf = tangent[..., p, :], tangent[..., k, :], director[..., p, :], director[..., k, :]
    chi = (1 + (te * tf).sum(-1, keepdim=True)).clamp(min=1e-6)
    kb = 2 * torch.linalg.cross(te, tf) / chi
    tt, m1 = (te + tf) / chi, (me + mf) / chi
    m2 = (torch.linalg.cross(te, me) + torch.linalg.cross(tf, mf)) / chi
    k1, k2 = 0.5 * chi * (kb * m2).sum(-1, keepdim=True), -0.5 * chi * (kb * m1).sum(-1, keepdim=True)
    w1, w2, w3 = stress.split(1, -1)
    ge = w1 * (torch.linalg.cross(tf, m2) - k1 * tt) - w2 * (torch.linalg.cross(tf, m1) + k2 * tt) + 0.5 * w3 * kb
    gf = -w1 * (torch.linalg.cross(te, m2) + k1 * tt) + w2 * (torch.linalg.cross(te, m1) - k2 * tt) + 0.5 * w3 * kb
    ge, gf = ge / _length(e), gf / _length(f)
    out = torch.zeros_like(positions)
    return out.index_add(-2, a, ge).index_add(-2, p, gf - ge).index_add(-2, k, -gf)


def _length(edge: Tensor) -> Tensor:
    square = edge.square().sum(-1, keepdim=True)
    return torch.where(square > 0, square, 1.0).sqrt()
