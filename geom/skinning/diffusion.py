"""Heat weights: each bone's share of the heat that the nearest bones give a surface."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_positive
from geom.errors import ShapeError
from geom.meshes.distance import SurfaceTree
from geom.meshes.factor import SymmetricFactor
from geom.meshes.laplacian import cotangent_laplacian, vertex_areas
from geom.meshes.mesh import Mesh
from geom.skinning.segments import check_segments, nearest_on_segments

__all__ = ["heat_weights"]

_LOOKS = 8  # places on the way from a vertex to a bone that must be inside
_TIE = 1e-4  # bones share a vertex whose distances differ by no more than this share
_SKIN = 1e-3  # how far outside is still inside, as a share of the extent
_CLOSEST = 1e-4  # least distance from a bone, as a share of the extent


def heat_weights(mesh: Mesh, segments: Float[Tensor, "j 2 3"], *, strength: float = 1.0) -> Float[Tensor, "v j"]:
    """Weights as the temperatures of a surface that each bone in turn keeps at 1 where it is the nearest in sight:

        (L + A H) w_j = A H p_j,   H_ii = strength / d_i^2,

    L the cotangent Laplacian, A the vertices' areas, d_i the distance to the nearest bone that vertex i sees through
    the inside of the surface, p_ij = 1/k for its k nearest bones in sight, else 0. A vertex that sees none, and each
    of a surface without inside, has the nearest.

    Args:
        mesh: (V, 3), metres; faces counter-clockwise seen from outside; holes do little harm.
        segments: the ends of each bone, dtype and device of the mesh; may have length 0.
        strength: 1 in Eq. (1); 0.22 makes weights smoother.

    Returns: (V, J), at least 0, rows of sum 1; computed in float64.
    Raises: ShapeError.
    Baran & Popovic 2007, Sec. 4, Eq. (1).

    Guarantees: not differentiable; deterministic on the CPU; 1e-12 f64, 1e-7 f32
    """
    check_segments(mesh.vertices, segments)
    check_positive(strength, "strength")
    if not len(mesh.faces):
        raise ShapeError("mesh: expected at least one face, got none")
    x, ends = mesh.vertices.detach().double(), segments.detach().double()
    nearest, distance = _in_sight(Mesh(x, mesh.faces), ends)
    least = _CLOSEST * float((x.amax(0) - x.amin(0)).norm()) or 1.0
    area = vertex_areas(x, mesh.faces)
    area = area.clamp(min=1e-12 * float(area.mean()) or 1.0)  # a vertex without area still has its own bones
    heat = area * strength / distance.clamp(min=least).square()
    from scipy import sparse

    L = cotangent_laplacian(x, mesh.faces).cpu()
    stiffness = sparse.csr_array((L.values(), L.indices().numpy()), L.shape)
    places = x.cpu().numpy()
    factor = SymmetricFactor(stiffness + sparse.diags_array(heat.cpu().numpy()), places)
    found = torch.from_numpy(factor.solve((heat[:, None] * nearest).cpu().numpy().astype(np.float64)))
    found = found.clamp(min=0)  # obtuse faces let some temperatures fall below
    return (found / found.sum(1, keepdim=True)).to(mesh.vertices)


def _in_sight(mesh: Mesh, segments: Tensor) -> tuple[Tensor, Tensor]:
    """(V, J), shares of the nearest bones that vertices see from the inside, and the distances to them (V,)."""
    x = mesh.vertices
    distance, share = nearest_on_segments(x, segments)
    least, nearest = distance.sort(dim=1, stable=True)
    tree = SurfaceTree.build(mesh)
    skin = _SKIN * float((x.amax(0) - x.amin(0)).norm())
    along = torch.linspace(0.1, 0.95, _LOOKS, dtype=x.dtype, device=x.device)[:, None]
    chosen = torch.zeros_like(distance)
    reach = torch.full_like(distance[:, 0], torch.inf)
    searching = torch.arange(len(x), device=x.device)
    for k in range(len(segments)):
        bone = nearest[searching, k]
        searching, bone = (y[least[searching, k] <= (1 + _TIE) * reach[searching]] for y in (searching, bone))
        if not len(searching):
            break
        ends = segments[bone]
        target = ends[:, 0] + share[searching, bone][:, None] * (ends[:, 1] - ends[:, 0])
        way = x[searching][:, None] + along * (target - x[searching])[:, None]
        way = way.reshape(-1, 3)
        inside = tree.winding_number(way) > 0.5
        inside[~inside] = tree.closest(way[~inside]).distance <= skin  # on the surface winding numbers say nothing
        seen = inside.reshape(-1, _LOOKS).all(1)
        chosen[searching[seen], bone[seen]] = 1.0
        reach[searching[seen]] = torch.minimum(reach[searching[seen]], least[searching[seen], k])
    blind = reach == torch.inf
    chosen = torch.where(blind[:, None], (distance <= (1 + _TIE) * least[:, :1]).to(x.dtype), chosen)
    return chosen / chosen.sum(1, keepdim=True), torch.where(blind, least[:, 0], reach)
