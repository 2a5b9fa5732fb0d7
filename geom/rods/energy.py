"""Elastic energy of bending and twist, its forces in closed form, and the rolls of the directors that make it least.

    E = sum over bends of ((k - k0)^T diag(EI1, EI2) (k - k0) + GJ (tau - tau0)^2) / (2 l)        (Bergou 2010, Eq. (6))

with k the two curvatures, tau the twist, l the mean rest length of the two edges. All in O(n), over any batch.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.rods.kinematics import edge_tangents, strains
from geom.rods.rod import Rod

__all__ = ["bend_lengths", "bend_moduli", "elastic_energy", "elastic_forces", "relax_rolls", "stresses"]


def bend_lengths(rod: Rod) -> Tensor:
    """Mean rest length (*b, bends) of the two edges of each bend of `rod.tree.bends`, metres."""
    k = rod.tree.bends
    return 0.5 * (rod.length[..., k] + rod.length[..., rod.parent[k]])


def stresses(rod: Rod, strain: Tensor, before: Tensor | None = None, viscous: Tensor | None = None) -> Tensor:
    """dE/dstrain (*b, bends, 3), N m; with Kelvin-Voigt viscosity, of a strain that was `before` a step of
    viscosity / viscous seconds."""
    k = rod.tree.bends
    stretch = strain[..., k, :] - torch.cat([rod.curvature[..., k, :], rod.twist[..., k, None]], -1)
    if viscous is not None and before is not None:
        stretch = stretch + viscous[..., None, None] * (strain - before)[..., k, :]
    return bend_moduli(rod) * stretch


def bend_moduli(rod: Rod) -> Tensor:
    """EI1, EI2 and GJ over the length of each bend (*b, bends, 3), N m."""
    k = rod.tree.bends
    stiffness = torch.cat([rod.bend_stiffness[..., k, :], rod.twist_stiffness[..., k, None]], -1)
    return stiffness / bend_lengths(rod)[..., None]


def elastic_energy(rod: Rod, strain: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b"]:
    """Energy of bending and twist, joules, at strains of `geom.rods.strains`.

    >>> from geom.rods import make_rod, natural_strain
    >>> x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]]).double()
    >>> rod = make_rod(x, EI=0.5, GJ=1.0)  # a right angle: (2 tan 45)^2 EI / (2 l)
    >>> round(float(elastic_energy(rod, natural_strain(x, rod.parent))), 9)
    1.0

    Guarantees: differentiable; deterministic; 1e-14 f64, 1e-6 f32
    """
    k = rod.tree.bends
    stretch = strain[..., k, :] - torch.cat([rod.curvature[..., k, :], rod.twist[..., k, None]], -1)
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


def _roll_system(
    rod: Rod, tangent: Tensor, director: Tensor, stress: Tensor, moduli: Tensor, held: Tensor
) -> tuple[Tensor, Tensor]:
    """The energy's gradient (*b, n) and Hessian (*b, n, n) in the rolls; 0 and 1 for those that are held."""
    k: Int64[Tensor, "m"] = rod.tree.bends
    p = rod.parent[k]
    te, tf, me, mf = tangent[..., p, :], tangent[..., k, :], director[..., p, :], director[..., k, :]
    kb = 2 * torch.linalg.cross(te, tf) / (1 + (te * tf).sum(-1, keepdim=True)).clamp(min=1e-6)
    e1, f1 = -0.5 * (kb * me).sum(-1), -0.5 * (kb * mf).sum(-1)
    e2, f2 = -0.5 * (kb * torch.linalg.cross(te, me)).sum(-1), -0.5 * (kb * torch.linalg.cross(tf, mf)).sum(-1)
    w1, w2, w3 = stress.unbind(-1)
    b1, b2, b3 = moduli.unbind(-1)
    gradient = torch.zeros_like(director[..., 0])
    gradient = gradient.index_add(-1, p, w1 * e1 + w2 * e2 - w3).index_add(-1, k, w1 * f1 + w2 * f2 + w3)
    diagonal = torch.zeros_like(gradient).index_add(-1, p, b1 * e1**2 + b2 * e2**2 + b3 + w1 * e2 - w2 * e1)
    diagonal = diagonal.index_add(-1, k, b1 * f1**2 + b2 * f2**2 + b3 + w1 * f2 - w2 * f1)
    hessian = torch.diag_embed(diagonal)
    couple = b1 * e1 * f1 + b2 * e2 * f2 - b3
    hessian[..., k, p] += couple
    hessian[..., p, k] += couple
    still = held | (rod.parent < 0)
    eye = torch.eye(len(rod.parent), dtype=hessian.dtype, device=hessian.device)
    hessian = torch.where(still | still[:, None], eye, hessian)
    return torch.where(still, 0.0, gradient), hessian


def relax_rolls(
    rod: Rod,
    positions: Float[Tensor, "*b n 3"],
    director: Float[Tensor, "*b n 3"],
    strain: Float[Tensor, "*b n 3"],
    *,
    before: Float[Tensor, "*b n 3"] | None = None,
    viscous: Float[Tensor, "*b"] | None = None,
    held: Tensor,
    rounds: int = 20,
) -> tuple[Tensor, Tensor]:
    """Directors rolled about their edges until the energy is least, and their strains (*b, n, 3) each.

    Newton's method on a tridiagonal (tree) system, then one step more that carries the derivative of the solution
    (implicit function theorem). The twist of `strain` says on which turn the twist is: it stays continuous.

    Args: positions; director, made perpendicular to the edges; strain, the last known; before, viscous as in
        `stresses`; held (n,) bool, edges that keep their roll; rounds, at most.
    Returns: director, strain.

    Guarantees: differentiable; deterministic; gradient in the rolls below 1e-13 of the stiffness f64, 1e-6 f32
    """
    tangent = edge_tangents(positions, rod.parent)
    director = director - (director * tangent).sum(-1, keepdim=True) * tangent
    length = director.square().sum(-1, keepdim=True)
    director = director / torch.where(length > 0, length, 1.0).sqrt()
    moduli = bend_moduli(rod)
    if viscous is not None:
        moduli = moduli * (1 + viscous[..., None, None])

    def measure(m: Tensor, near: Tensor) -> Tensor:
        s = strains(tangent, m, rod.parent)
        turns = 2 * torch.pi * ((near[..., 2] - s[..., 2]) / (2 * torch.pi)).round().detach()
        return torch.cat([s[..., :2], (s[..., 2] + turns)[..., None]], -1)

    def newton(m: Tensor, s: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        g, h = _roll_system(rod, tangent, m, stresses(rod, s, before, viscous), moduli, held)
        h = h.detach()
        floor = 1e-9 if h.dtype == torch.float64 else 1e-4
        values, vectors = torch.linalg.eigh(h)
        inverse = torch.where(values.abs() > floor * values.amax(-1, keepdim=True), 1 / values.abs(), 0.0)
        roll = -(vectors @ (inverse * (vectors.mT @ g[..., None])[..., 0])[..., None])[..., 0]
        if not keep:
            roll = roll * (0.5 / roll.abs().amax(-1, keepdim=True).clamp(min=0.5))
        turned = roll.cos()[..., None] * m + roll.sin()[..., None] * torch.linalg.cross(tangent, m)
        # the twist turns with the rolls, so the turn it is on is known
        expected = s[..., 2] + torch.where(rod.parent >= 0, roll - roll[..., rod.parent.clamp(min=0)], 0.0)
        return turned, measure(turned, torch.stack([expected] * 3, -1))

    with torch.no_grad():
        m, s = director, measure(director, strain)
        for _ in range(rounds):
            g, h = _roll_system(rod, tangent, m, stresses(rod, s, before, viscous), moduli, held)
            scale = torch.finfo(g.dtype).eps * h.abs().amax()
            if bool(g.abs().amax() <= 16 * scale):
                break
            m, s = newton(m, s, False)
        cosine = (director * m).sum(-1, keepdim=True)
        sine = (torch.linalg.cross(tangent, director) * m).sum(-1, keepdim=True)
        angle = torch.atan2(sine, cosine)
        last = s
    m = angle.cos() * director + angle.sin() * torch.linalg.cross(tangent, director)
    return newton(m, measure(m, last), True)
