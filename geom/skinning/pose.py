"""A rig in a pose: morph targets, then the skin, in the world."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_choice, describe
from geom.errors import ShapeError
from geom.io.rig import Pose, Primitive, Rig
from geom.skinning.dual_quaternion import dqs
from geom.skinning.hybrid import hybrid
from geom.skinning.linear import lbs, skin_normals
from geom.values import replace

__all__ = ["bake", "deform"]


def deform(
    rig: Rig,
    pose: Pose,
    *,
    method: Literal["lbs", "dqs", "hybrid"] = "lbs",
    blend: float = 0.5,
) -> tuple[Float[Tensor, "..."], ...]:
    """The vertices of every primitive of a rig in the world, (*b, V, 3) each, for each pose of the batch.

    v' = skin(v + sum_m w_m morph_m): by its joints where the primitive has a skin, and the transform of its own node
    then changes nothing; else by the world transform of its node.

    Args:
        pose: of this rig, any batch shape, as `rig.pose` or `rig.pose_from` give it.
        method: how joints share a vertex: matrices ("lbs"), dual quaternions ("dqs"), or a blend of the two.
        blend: of "hybrid", how much of it is linear, 0 to 1; `hybrid` itself takes a number for each vertex.
    Returns: one tensor a primitive, in its dtype.
    Raises: ShapeError where the pose is not one of this rig's.

    Guarantees: differentiable; deterministic; 1e-15 f64, 5e-7 f32 of the largest term
    """
    check_choice(method, ("lbs", "dqs", "hybrid"), "method")
    nodes, slots = len(rig.names), rig.morph.shape[-1]
    if pose.world.shape[-3] != nodes or pose.morph.shape[-1] != slots:
        raise ShapeError(
            f"pose: expected one of {nodes} nodes and {slots} morph weights, got {describe(pose.world)} and "
            f"{describe(pose.morph)}"
        )
    bones = [rig.bones(pose, skin) for skin in range(len(rig.skins))]
    found = []
    for primitive in rig.primitives:
        x = _morphed(primitive, pose)
        if primitive.weights is None or primitive.skin is None:
            world = pose.world[..., primitive.node, :, :].to(x.dtype)
            found.append(x @ world[..., :3].mT + world[..., None, :, 3])
            continue
        moves = bones[primitive.skin].to(x.dtype)
        if method == "lbs":
            found.append(lbs(x, primitive.weights, moves, indices=primitive.indices))
        elif method == "dqs":
            found.append(dqs(x, primitive.weights, moves, indices=primitive.indices))
        else:
            found.append(hybrid(x, primitive.weights, moves, blend=blend, indices=primitive.indices))
    return tuple(found)


def bake(rig: Rig, pose: Pose, *, method: Literal["lbs", "dqs", "hybrid"] = "lbs") -> Rig:
    """The rig frozen in one pose: the same surfaces with their materials, in the world, each at a node of its own.

    Joints, morph targets and animations are gone. Normals go with the linear blend's cofactors. What a node mirrors has
    its faces turned, so that they stay counter-clockwise.

    Args: pose, of this rig, without a batch; method, as in `deform`.
    Raises: ShapeError where the pose is not one of this rig's, or has a batch.

    Guarantees: differentiable; deterministic; 1e-15 f64, 1e-6 f32
    """
    if pose.world.ndim != 3:
        raise ShapeError(f"pose: expected one pose, got a batch of {tuple(pose.world.shape[:-3])}")
    shown = _shown(rig)
    kept = []
    for primitive, vertices in zip(rig.primitives, deform(rig, pose, method=method), strict=True):
        if primitive.node not in shown:
            continue
        normals, faces = primitive.normals, primitive.faces
        if normals is not None:
            if primitive.morph_normals is not None:
                normals = normals + torch.tensordot(_shares(primitive, pose), primitive.morph_normals, 1)
            if primitive.weights is None or primitive.skin is None:
                bones, weights, indices = pose.world[primitive.node][None], torch.ones_like(normals[:, :1]), None
            else:
                bones, weights, indices = rig.bones(pose, primitive.skin), primitive.weights, primitive.indices
            normals = skin_normals(normals, weights, bones.to(normals.dtype), indices=indices)
        if primitive.weights is None and bool(torch.linalg.det(pose.world[primitive.node, :, :3].detach()) < 0):
            faces, normals = faces.flip(-1), None if normals is None else -normals
        still = {"indices": None, "weights": None, "morphs": None, "morph_normals": None, "skin": None, "slot": 0}
        place = {"node": len(kept), "mesh": len(kept), "index": 0, "morph_names": ()}
        kept.append(replace(primitive, vertices=vertices, faces=faces, normals=normals, **still, **place))
    n, like = len(kept), rig.translation
    return Rig(
        torch.full_like(rig.parent[:1], -1).repeat(n),
        like.new_zeros(n, 3),
        torch.eye(1, 4).to(like).repeat(n, 1),
        like.new_ones(n, 3),
        like.new_zeros(0),
        tuple(p.name for p in kept),
        primitives=tuple(kept),
        scene=tuple(range(n)),
        look=rig.look,
        images=rig.images,
    )


def _shown(rig: Rig) -> set[int]:
    """The nodes at and below the roots of the scene; all where it names none."""
    below = dict(enumerate(rig.parent.tolist()))
    shown = set(rig.scene or below)
    for node in below:
        path = [node]
        while path[-1] not in shown and below[path[-1]] >= 0:
            path.append(below[path[-1]])
        if path[-1] in shown:
            shown |= set(path)
    return shown


def _shares(primitive: Primitive, pose: Pose) -> Tensor:
    """The weights (*b, M) of a primitive's morph targets."""
    count = 0 if primitive.morphs is None else len(primitive.morphs)
    return pose.morph[..., primitive.slot : primitive.slot + count].to(primitive.vertices.dtype)


def _morphed(primitive: Primitive, pose: Pose) -> Tensor:
    """Vertices (V, 3), or (*b, V, 3) where there are morph targets."""
    if primitive.morphs is None:
        return primitive.vertices
    return primitive.vertices + torch.tensordot(_shares(primitive, pose), primitive.morphs, 1)
