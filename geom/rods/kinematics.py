"""Discrete rod kinematics: directors carried along without twist, curvatures and twists (Bergou et al. 2008, 2010).

Edge k runs from vertex parent[k] to k, as in `Rod`; bend k lies between edge parent[k] and edge k. Entries that have no
edge or bend are zero.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.roots import safe_norm

__all__ = ["directors_without_twist", "edge_tangents", "natural_strain", "strains", "transport"]

_FOLD = 1e-6  # least 1 + cos of the angle between neighbouring edges: a fold by 180 degrees keeps finite curvature


def transport(
    vector: Float[Tensor, "*b 3"], source: Float[Tensor, "*b 3"], target: Float[Tensor, "*b 3"]
) -> Float[Tensor, "*b 3"]:
    """A vector perpendicular to the unit tangent `source`, turned with it to `target` by the least rotation:
    P v = v - (b . v) / (1 + a . b) (a + b). Where the tangents are opposed the denominator is kept at 1e-6.

    Guarantees: differentiable; deterministic; 1e-15 f64, 5e-7 f32
    """
    chi = (1 + (source * target).sum(-1, keepdim=True)).clamp(min=_FOLD)
    return vector - (target * vector).sum(-1, keepdim=True) / chi * (source + target)


def edge_tangents(positions: Float[Tensor, "*b n 3"], parent: Int64[Tensor, "n"]) -> Float[Tensor, "*b n 3"]:
    """Unit tangents of the edges; (1, 0, 0) for an edge without length, 0 at a root.

    Guarantees: differentiable; deterministic; 1e-15 f64, 5e-7 f32
    """
    has = (parent >= 0)[:, None]
    edge = torch.where(has, positions - positions[..., parent.clamp(min=0), :], 0.0)
    length = safe_norm(edge)[..., None]
    flat = torch.zeros_like(edge)
    flat[..., 0] = 1
    unit = edge / torch.where(length > 0, length, 1.0)
    return torch.where(has, torch.where(length > 0, unit, flat), 0.0)


def directors_without_twist(tangent: Float[Tensor, "*b n 3"], parent: Int64[Tensor, "n"]) -> Float[Tensor, "*b n 3"]:
    """First directors that no bend twists: one perpendicular to each root's edges, carried from edge to edge.

    The first is perpendicular to the coordinate axis the edge leans on least.

    Guarantees: differentiable; deterministic; 1e-15 f64, 5e-7 f32
    """
    rows: list[Tensor] = []
    for k, p in enumerate(parent.tolist()):
        t = tangent[..., k, :]
        if p < 0:
            rows.append(torch.zeros_like(t))
        elif int(parent[p]) < 0:
            axis = torch.nn.functional.one_hot(t.detach().abs().argmin(-1), 3).to(t)
            side = torch.linalg.cross(t, axis)
            rows.append(side / safe_norm(side)[..., None])
        else:
            rows.append(transport(rows[p], tangent[..., p, :], t))
    return torch.stack(rows, -2)


def strains(
    tangent: Float[Tensor, "*b n 3"], director: Float[Tensor, "*b n 3"], parent: Int64[Tensor, "n"]
) -> Float[Tensor, "*b n 3"]:
    """Two curvatures and the twist of each bend.

    With the curvature binormal kb = 2 t x t' / (1 + t . t') and directors m1, m2 = t x m1 averaged over the two edges,
    k1 = kb . m2, k2 = -kb . m1 (Bergou 2010, Eq. (7)); the twist is the angle about t' from m1, carried over from t, to
    m1', in (-pi, pi].

    Guarantees: differentiable; deterministic; 2e-15 f64, 1e-6 f32
    """
    before = parent.clamp(min=0)
    bend = (parent >= 0) & (parent[before] >= 0)
    ta, tb, ma, mb = tangent[..., before, :], tangent, director[..., before, :], director
    chi = (1 + (ta * tb).sum(-1, keepdim=True)).clamp(min=_FOLD)
    kb = 2 * torch.linalg.cross(ta, tb) / chi
    na, nb = torch.linalg.cross(ta, ma), torch.linalg.cross(tb, mb)
    carried = transport(ma, ta, tb)
    sine, cosine = -(carried * nb).sum(-1), (carried * mb).sum(-1)
    none = ~bend
    twist = torch.atan2(torch.where(none, 0.0, sine), torch.where(none, 1.0, cosine))
    both = torch.stack([0.5 * (kb * (na + nb)).sum(-1), -0.5 * (kb * (ma + mb)).sum(-1), twist], -1)
    return torch.where(bend[:, None], both, 0.0)


def natural_strain(positions: Float[Tensor, "*b n 3"], parent: Int64[Tensor, "n"]) -> Float[Tensor, "*b n 3"]:
    """Strains of a shape whose directors no bend twists: what a rod has that is at rest in it.

    Guarantees: differentiable; deterministic; 2e-15 f64, 1e-6 f32
    """
    tangent = edge_tangents(positions, parent)
    return strains(tangent, directors_without_twist(tangent, parent), parent)
