"""The motion of one rig on another whose joints have the same names."""

from collections.abc import Mapping

import torch
from torch import Tensor

from geom.checks import describe
from geom.errors import ShapeError
from geom.io.rig import Pose, Rig
from geom.lie import quaternion, so3
from geom.lie.kinematics import forward_kinematics

__all__ = ["retarget"]


def retarget(source: Rig, target: Rig, pose: Pose, *, names: Mapping[str, str] | None = None) -> Pose:
    """Poses of one rig for another, joint by joint by name, both taken to rest in the same attitude.

    Each joint turns in the world as its namesake does: with Q and Q0 the source's world rotations in the pose and at
    rest, the target's is Q Q0^T P0, P0 its own at rest; so bones may have axes of their own. A joint moves in its
    parent by what its namesake moves, in world directions at rest, times the ratio of the two skeletons: the root mean
    square distances of the joints in common from their mean. Its scale is multiplied by its namesake's against rest.
    Morph weights go by their names. What has no namesake keeps its rest in its parent.

    Args:
        source: the rig that `pose` is of. target: the rig to move.
        pose: any batch shape.
        names: from names of source nodes to those of target nodes; else equal names, without regard to case or to what
            stands before the last ":".
    Returns: a pose of `target`, of the same batch. `target.record` makes an animation of several.
    Raises: ShapeError where the pose is not the source's, a name is unknown, or nothing has a namesake.

    Guarantees: differentiable; deterministic; 1e-15 f64, 3e-7 f32 onto the rig itself
    """
    if pose.world.shape[-3] != len(source.names):
        raise ShapeError(f"pose: expected one of {len(source.names)} nodes, got {describe(pose.world)}")
    pairs = _pairs(source.names, target.names, names)
    rest, aim = source.pose(), target.pose()
    P0 = _turns(target, aim.quat_wxyz)
    turn = _turns(source, pose.quat_wxyz) @ _turns(source, rest.quat_wxyz).mT
    follows = _follows(target.parent.tolist(), pairs)
    turn = torch.cat([turn, torch.eye(3).to(turn).expand(*turn.shape[:-3], 1, 3, 3)], -3)[..., follows, :, :]

    mine = torch.tensor(list(pairs), device=target.parent.device)
    theirs = torch.tensor(list(pairs.values()), device=source.parent.device)
    above = target.parent[mine].clamp(min=0)
    root = (target.parent[mine] < 0)[:, None, None]
    before = torch.where(root, torch.eye(3).to(turn), turn[..., above, :, :] @ P0[above])
    local = before.mT @ turn[..., mine, :, :] @ P0[mine]
    basis = None if target.basis is None else _proper(target.basis)[mine]
    quat = quaternion.from_matrix(local if basis is None else local @ basis.mT)

    shift = (pose.translation - rest.translation).double()[..., theirs, :, None]
    moved = _linear(source, theirs) @ shift * _ratio(rest.world[theirs], aim.world[mine])
    t = aim.translation.double()[mine] + (torch.linalg.pinv(_linear(target, mine)) @ moved)[..., 0]
    scale0 = rest.scale.double()[theirs]
    stretch = pose.scale.double()[..., theirs, :] / torch.where(scale0 == 0, 1.0, scale0)
    s = aim.scale.double()[mine] * torch.where(scale0 == 0, 1.0, stretch)

    def put(x: Tensor, new: Tensor) -> Tensor:
        return x.double().expand(*new.shape[:-2], *x.shape).index_copy(-2, mine, new)

    return target.pose_from(
        translation=put(aim.translation, t),
        quat_wxyz=put(aim.quat_wxyz, quat),
        scale=put(aim.scale, s),
        morph=_morph(source, target, pose),
    )


def _pairs(source: tuple[str, ...], target: tuple[str, ...], names: Mapping[str, str] | None) -> dict[int, int]:
    """For each target node with a namesake, the source's node. Of several nodes of one name the first counts."""
    if names is not None:
        for wanted, known, of in ((names.keys(), source, "source"), (names.values(), target, "target")):
            if not set(wanted) <= set(known):
                raise ShapeError(f"names: expected nodes of the {of}, got {sorted(set(wanted) - set(known))[:9]}")
        return {target.index(b): source.index(a) for a, b in names.items()}
    plain = [[name.rpartition(":")[2].lower() for name in every] for every in (source, target)]
    first = {name: i for i, name in reversed(list(enumerate(plain[0]))) if name}
    taken: dict[str, int] = {}
    for i, name in enumerate(plain[1]):
        if name in first:
            taken.setdefault(name, i)
    if not taken:
        raise ShapeError(f"names: expected some in common, got {source[:9]} and {target[:9]}")
    return {i: first[name] for name, i in taken.items()}


def _follows(parent: list[int], pairs: dict[int, int]) -> list[int]:
    """For each target node the source node whose turn it takes: its namesake, else that of the nearest node above it
    with one, else -1."""
    found: dict[int, int] = {-1: -1, **pairs}
    for node in range(len(parent)):
        path = [node]
        while path[-1] not in found:
            path.append(parent[path[-1]])
        found |= dict.fromkeys(path, found[path[-1]])
    return [found[node] for node in range(len(parent))]


def _turns(rig: Rig, quat_wxyz: Tensor) -> Tensor:
    """World rotations (*b, n, 3, 3) without scales and shear, float64."""
    local = quaternion.to_matrix(quat_wxyz.double())
    if rig.basis is not None:
        local = local @ _proper(rig.basis)
    still = torch.cat([local, torch.zeros_like(local[..., :1])], -1)
    return forward_kinematics(rig.parent, still)[..., :3]


def _proper(basis: Tensor) -> Tensor:
    return so3.project(basis.double())


def _linear(rig: Rig, nodes: Tensor) -> Tensor:
    """From each node's parent to the world at rest, (k, 3, 3) float64; the identity at a root."""
    above = rig.parent[nodes]
    linear = rig.pose().world.double()[above.clamp(min=0), :, :3]
    return torch.where((above >= 0)[:, None, None], linear, torch.eye(3).to(linear))


def _ratio(theirs: Tensor, mine: Tensor) -> Tensor:
    """How much larger the target's skeleton is, over the joints in common; 1 where the source's is a point."""
    size = [((x := w[:, :, 3].double()) - x.mean(0)).square().sum().sqrt() for w in (theirs, mine)]
    return torch.where(size[0] > 0, size[1] / torch.where(size[0] > 0, size[0], 1.0), 1.0)


def _morph(source: Rig, target: Rig, pose: Pose) -> Tensor:
    slots = {name: p.slot + i for p in source.primitives for i, name in enumerate(p.morph_names)}
    pairs = {p.slot + i: slots[n] for p in target.primitives for i, n in enumerate(p.morph_names) if n in slots}
    rest = target.morph.double().expand(*pose.morph.shape[:-1], -1)
    if not pairs:
        return rest
    place = torch.tensor(list(pairs), device=rest.device)
    return rest.index_copy(-1, place, pose.morph.double()[..., list(pairs.values())])
