"""Second derivatives of the elastic energy, one small symmetric block a bend, in closed form.

The coordinates are positions, with directors carried along by the least rotation, and rolls of the directors: those in
which `geom.rods.elastic_forces` is the first derivative. Formulas: Bergou et al., "Discrete viscous threads" (2010),
appendix.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from geom.rods.energy import _length, bend_moduli, stresses
from geom.rods.kinematics import edge_tangents
from geom.rods.rod import Rod

__all__ = ["dense_hessian", "elastic_hessian"]


def elastic_hessian(
    rod: Rod,
    positions: Float[Tensor, "*b n 3"],
    director: Float[Tensor, "*b n 3"],
    strain: Float[Tensor, "*b n 3"],
    *,
    before: Float[Tensor, "*b n 3"] | None = None,
    viscous: Float[Tensor, "*b"] | None = None,
) -> Float[Tensor, "*b m 11 11"]:
    """Hessian blocks of the energy of bending and twist, one for each bend of `rod.tree.bends`.

        H = sum over strains of  modulus (grad strain) (grad strain)^T + stress (hess strain)

    Rows and columns of a block: the positions of the vertex before the last, of the last, and of the bend's own vertex
    (9 numbers, N/m), then the rolls of the bend's first and second edge. Moved positions carry directors along; where
    energy has a moment on a roll, carrying them depends on the path in second order, and the symmetric part is given.

    Args: positions, metres; director, unit, perpendicular to the edges; strain, theirs; before, viscous as in
        `stresses`.

    >>> from geom.rods import make_rod
    >>> x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]).double()
    >>> rod = make_rod(x, EI=1.0, GJ=1.0)
    >>> m = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 1, 0]]).double()
    >>> block = elastic_hessian(rod, x, m, torch.zeros_like(x))[0]
    >>> block[1::3, 1::3][:3, :3].tolist()  # EI / l^3 (1, -2, 1)^T (1, -2, 1) across the rod
    [[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]

    Guarantees: differentiable; deterministic; 1e-13 f64 of the largest, 1e-5 f32
    """
    k = rod.tree.bends
    p = rod.parent[k]
    e, f = positions[..., p, :] - positions[..., rod.parent[p], :], positions[..., k, :] - positions[..., p, :]
    tangent = edge_tangents(positions, rod.parent)
    te, tf, me, mf = tangent[..., p, :], tangent[..., k, :], director[..., p, :], director[..., k, :]
    ne, nf = torch.linalg.cross(te, me), torch.linalg.cross(tf, mf)
    le, lf = _length(e), _length(f)
    chi = (1 + (te * tf).sum(-1, keepdim=True)).clamp(min=1e-6)
    kb, tt = 2 * torch.linalg.cross(te, tf) / chi, (te + tf) / chi
    moduli = bend_moduli(rod)
    if viscous is not None:
        moduli = moduli * (1 + viscous[..., None, None])
    stress = stresses(rod, strain, before, viscous)
    eye = torch.eye(3, dtype=e.dtype, device=e.device)
    cubes = le[..., None], lf[..., None], chi[..., None]

    def curvature(me: Tensor, mf: Tensor, ne: Tensor, nf: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (8,) and Hessian (8, 8) of kb . (ne + nf) / 2 in e, f and the two rolls."""
        m2 = (ne + nf) / chi
        size = 0.5 * chi * (kb * m2).sum(-1, keepdim=True)
        cf, ce = torch.linalg.cross(tf, m2), torch.linalg.cross(te, m2)
        roll = -0.5 * torch.cat([(kb * me).sum(-1, keepdim=True), (kb * mf).sum(-1, keepdim=True)], -1)
        gradient = torch.cat([(cf - size * tt) / le, -(ce + size * tt) / lf, roll], -1)
        a, b, c, s = *cubes, size[..., None]
        twice = 2 * s * _outer(tt, tt)
        ee = (twice - _both(cf, tt) - s / c * (eye - _outer(te, te)) + _both(kb, ne) / 4) / a**2
        ff = (twice + _both(ce, tt) - s / c * (eye - _outer(tf, tf)) + _both(kb, nf) / 4) / b**2
        ef = (twice - s / c * (eye + _outer(te, tf)) - _outer(cf, tt) + _outer(tt, ce) - _skew(m2)) / (a * b)
        rows = [-roll[..., :1] * tt - torch.linalg.cross(tf, me) / chi, -roll[..., 1:] * tt]
        rows[1] = rows[1] - torch.linalg.cross(tf, mf) / chi
        er = torch.stack(rows, -1) / a
        rows = [-roll[..., :1] * tt + torch.linalg.cross(te, me) / chi, -roll[..., 1:] * tt]
        rows[1] = rows[1] + torch.linalg.cross(te, mf) / chi
        fr = torch.stack(rows, -1) / b
        rr = torch.diag_embed(-0.5 * torch.stack([(kb * ne).sum(-1), (kb * nf).sum(-1)], -1))
        return gradient, _blocks(ee, ef, ff, er, fr, rr)

    a, b, c = cubes
    first, h1 = curvature(me, mf, ne, nf)
    second, h2 = curvature(ne, nf, -me, -mf)
    one = torch.ones_like(le)
    third = torch.cat([kb / (2 * le), kb / (2 * lf), -one, one], -1)
    ee, ff = -_both(kb, te + tt) / (4 * a**2), -_both(kb, tf + tt) / (4 * b**2)
    ef = (2 / c * _skew(te) - _outer(kb, tt)) / (2 * a * b)
    none = e.new_zeros(*e.shape, 2)
    h3 = _blocks(ee, ef, ff, none, none, torch.zeros_like(h1[..., 6:, 6:]))
    h = sum(stress[..., j, None, None] * y for j, y in enumerate((h1, h2, h3)))
    for j, g in enumerate((first, second, third)):
        h = h + moduli[..., j, None, None] * _outer(g, g)
    chain = _chain(e)
    return chain.mT @ h @ chain


def dense_hessian(rod: Rod, blocks: Float[Tensor, "*b m 11 11"]) -> Float[Tensor, "*b s s"]:
    """All blocks summed into one matrix over (positions (3 n), rolls (n)), for small rods, eigenvalues and tests.

    Guarantees: differentiable; deterministic; exact sums
    """
    k = rod.tree.bends
    n = len(rod.parent)
    p = rod.parent[k]
    a = rod.parent[p]
    xyz = torch.arange(3, device=k.device)
    place = torch.cat([3 * v[:, None] + xyz for v in (a, p, k)] + [3 * n + p[:, None], 3 * n + k[:, None]], -1)
    flat = place[:, :, None] * (4 * n) + place[:, None, :]
    out = blocks.new_zeros(*blocks.shape[:-3], 16 * n * n)
    return out.index_add(-1, flat.reshape(-1), blocks.flatten(-3)).unflatten(-1, (4 * n, 4 * n))


def _chain(like: Tensor) -> Tensor:
    """(8, 11): derivative of the two edges and rolls in the three positions and the rolls."""
    out = like.new_zeros(8, 11)
    rows = torch.arange(6, device=like.device)
    out[rows, rows] = -1
    out[rows, rows + 3] = 1
    out[6, 9] = out[7, 10] = 1
    return out


def _blocks(ee: Tensor, ef: Tensor, ff: Tensor, er: Tensor, fr: Tensor, rr: Tensor) -> Tensor:
    rows = [torch.cat([ee, ef, er], -1), torch.cat([ef.mT, ff, fr], -1), torch.cat([er.mT, fr.mT, rr], -1)]
    return torch.cat(rows, -2)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


def _both(a: Tensor, b: Tensor) -> Tensor:
    return _outer(a, b) + _outer(b, a)


def _skew(a: Tensor) -> Tensor:
    """Matrix of a x."""
    x, y, z = a.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))
