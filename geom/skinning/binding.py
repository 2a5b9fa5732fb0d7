"""`bind`: a mesh and a skeleton to a rig, with weights found automatically."""

import torch
from torch import Tensor

from geom.checks import check_choice, check_points
from geom.errors import ShapeError
from geom.io.rig import Rig, make_rig
from geom.meshes.distance import winding_number
from geom.meshes.geometry import half_edges, unique_pairs
from geom.meshes.mesh import Mesh
from geom.skinning.diffusion import heat_weights
from geom.skinning.pruning import prune_weights
from geom.skinning.segments import nearest_on_segments
from geom.skinning.skeleton import Skeleton, rig_skeleton
from geom.skinning.solid_binding import solid_weights
from geom.skinning.voxel_binding import voxel_weights
from geom.values import replace

__all__ = ["BINDINGS", "bind"]

_LOOKS = 17  # places along a bone
BINDINGS = ("auto", "heat", "biharmonic", "voxel")


def bind(mesh: Mesh, skeleton: Skeleton | Rig, *, method: str = "auto", influences: int = 4) -> Rig:
    """A rig of a mesh that follows a skeleton, at rest as it is.

    | method | weights | for |
    |---|---|---|
    | "heat" | `heat_weights` | closed surfaces; the quickest, and local |
    | "biharmonic" | `solid_weights` | what encloses something; the smoothest |
    | "voxel" | `voxel_weights` | anything: open, torn, of many parts, vertices that stand twice |
    | "auto" | "heat" where each edge runs once each way, else "voxel" | |

    Vertices at one place are one to all methods, and have the same weights. A joint's weight is the sum of those of its
    bones, `Skeleton.bones`; to "voxel", with falloff 1, the nearest of them counts. The last bones of a chain end where
    they leave the mesh.

    Args:
        mesh: at least one face; in the space of the skeleton, metres. Its normals come along, its colours do not.
        skeleton: a `Skeleton`, or a rig whose joints are taken, `rig_skeleton`.
        influences: joints that a vertex may follow.

    Returns: Rig; see `make_rig`. Raises: ShapeError.

    >>> pole = Skeleton(torch.tensor([-1, 0]), torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 1]]), ("low", "high"))
    >>> corners = torch.tensor([[0., 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2]])
    >>> rig = bind(Mesh(corners, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])), pole)
    >>> rig.names, rig.primitives[0].indices[3].tolist()
    (('low', 'high', 'surface'), [1, 0])

    Guarantees: not differentiable; deterministic; as the method's
    """
    check_choice(method, BINDINGS, "method")
    check_points(mesh.vertices, "mesh.vertices", minimum=1)
    if not len(mesh.faces):
        raise ShapeError("mesh: expected at least one face, got none")
    if isinstance(skeleton, Rig):
        skeleton = rig_skeleton(skeleton)
    skeleton = skeleton.to(mesh.vertices)
    welded, which = _weld(mesh)
    if method == "auto":
        method = "heat" if _closed(welded.faces) else "voxel"
    segments, owner = skeleton.bones()
    segments = torch.where(torch.isin(owner, skeleton.parent)[:, None, None], segments, _inside(welded, segments))
    if method == "voxel":
        weights = voxel_weights(welded, segments, owner=owner, falloff=1.0)
    else:
        shares = (heat_weights if method == "heat" else solid_weights)(welded, segments)
        weights = shares.new_zeros(len(shares), len(skeleton.joints)).index_add(1, owner, shares)
    nearest = owner[nearest_on_segments(welded.vertices, segments)[0].argmin(1)]
    indices, weights = prune_weights(weights, influences=influences, fallback=nearest)
    rig = make_rig(
        mesh.vertices,
        mesh.faces,
        parent=skeleton.parent,
        joints=skeleton.joints,
        weights=weights[which],
        indices=indices[which],
        names=skeleton.names,
    )
    return replace(rig, primitives=(replace(rig.primitives[0], normals=mesh.normals),))


def _inside(mesh: Mesh, segments: Tensor) -> Tensor:
    """Segments from their start to where they leave the mesh."""
    share = torch.linspace(0, 1, _LOOKS).to(segments)[:, None]
    way = segments[:, :1] + share * (segments[:, 1:] - segments[:, :1])
    inside = winding_number(way.reshape(-1, 3), mesh).reshape(-1, _LOOKS) > 0.5
    last = inside.long().cumprod(1).sum(1).sub(1).clamp(min=0)
    stop = way.gather(1, last[:, None, None].expand(-1, 1, 3))
    return torch.cat([segments[:, :1], stop], 1)


def _weld(mesh: Mesh) -> tuple[Mesh, Tensor]:
    """The mesh with one vertex a place, without faces that name one twice, and which of them each vertex is."""
    places, which = torch.unique(mesh.vertices.detach(), dim=0, return_inverse=True)
    faces = which[mesh.faces]
    whole = (faces != faces.roll(1, 1)).all(1)
    return Mesh(places, faces[whole] if bool(whole.any()) else faces), which


def _closed(faces: Tensor) -> bool:
    """Whether each edge runs as often one way as the other, and no more than once."""
    pairs, _, times = unique_pairs(half_edges(faces))
    back = unique_pairs(half_edges(faces.flip(1)))[0]
    return bool((times == 1).all()) and torch.equal(pairs, back)
