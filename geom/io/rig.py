"""`Rig`: a hierarchy of nodes, the surfaces they carry or bend, and the animations that move them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from geom.checks import check_indices, check_points, check_positive, check_weights, describe, readable
from geom.errors import ShapeError
from geom.io.animation import Animation, Channel, Path, sample
from geom.lie import quaternion, so3
from geom.lie.kinematics import compose_affine, forward_kinematics, invert_affine
from geom.roots import safe_norm
from geom.values import Value, replace, value

__all__ = ["Pose", "Primitive", "Rig", "Skin", "decompose", "make_rig"]


@value
class Skin(Value):
    """Joints that bend a surface together.

    Fields: joints, their nodes; inverse_bind, from the surface's space to each joint's at rest; name; skeleton, the
        node that the file calls their root, which changes nothing.
    """

    joints: Int64[Tensor, " j"]
    inverse_bind: Float[Tensor, "j 3 4"]
    name: str = ""
    skeleton: int | None = None


@value
class Primitive(Value):
    """One surface of one node. Where a mesh stands at several nodes, each has a primitive of its own, of one memory.

    Fields: vertices, in the node's space, or in that of its skin's joints at rest; faces, none for points and lines;
        normals; uv and uv_1, texture coordinates; colors (V, 3 or 4), linear; indices and weights (V, K), the joints of
        `skin` that bend each vertex, rows of weights at least 0 with sum 1, both None where the node carries the
        surface rigidly; morphs and morph_normals (M, V, 3), what a weight of 1 adds; node; skin; mesh and index, its
        mesh and place in it; slot, where its morph weights begin in `Rig.morph`; material; name, of the mesh;
        morph_names.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int64[Tensor, "f 3"]
    node: int
    normals: Float[Tensor, "v 3"] | None = None
    uv: Float[Tensor, "v 2"] | None = None
    uv_1: Float[Tensor, "v 2"] | None = None
    colors: Float[Tensor, "v c"] | None = None
    indices: Int64[Tensor, "v k"] | None = None
    weights: Float[Tensor, "v k"] | None = None
    morphs: Float[Tensor, "m v 3"] | None = None
    morph_normals: Float[Tensor, "m v 3"] | None = None
    skin: int | None = None
    mesh: int = 0
    index: int = 0
    slot: int = 0
    material: int | None = None
    name: str = ""
    morph_names: tuple[str, ...] = ()


@value
class Pose(Value):
    """Where the nodes of a rig are, in any batch shape.

    Fields: world, from each node to the world; morph, weights of the morph targets, those of a primitive from its
        `slot` on; translation, quat_wxyz and scale, of each node in its parent, that `world` was made of.
    """

    world: Float[Tensor, "*b n 3 4"]
    morph: Float[Tensor, "*b w"]
    translation: Float[Tensor, "*b n 3"]
    quat_wxyz: Float[Tensor, "*b n 4"]
    scale: Float[Tensor, "*b n 3"]


@value
class Rig(Value):
    """A character: N nodes in a forest, skins over them, surfaces, animations.

    A node's transform in its parent is x -> R(quat_wxyz) diag(scale) basis x + translation, world = parent's world
    after it. The skeleton is float64 as `load_rig` reads it, the surfaces are of the dtype asked for.

    Fields: parent, the node above each, -1 at a root, any order; translation, quat_wxyz, scale, at rest; morph, weights
        of morph targets at rest, those of all nodes one after the other; names, of the nodes; skins; primitives, by
        node and index; animations; basis, the linear part of nodes that a file gives as a matrix, the identity
        elsewhere, None where there are none; scene, the roots that are shown; look, JSON with the materials, textures
        and samplers of the file, and images as [start, length, MIME type] in `images`; images, their bytes.
    """

    parent: Int64[Tensor, " n"]
    translation: Float[Tensor, "n 3"]
    quat_wxyz: Float[Tensor, "n 4"]
    scale: Float[Tensor, "n 3"]
    morph: Float[Tensor, " w"]
    names: tuple[str, ...]
    skins: tuple[Skin, ...] = ()
    primitives: tuple[Primitive, ...] = ()
    animations: tuple[Animation, ...] = ()
    basis: Float[Tensor, "n 3 3"] | None = None
    scene: tuple[int, ...] = ()
    look: str = ""
    images: UInt8[Tensor, " bytes"] | None = None

    def __post_init__(self) -> None:
        n = len(self.names)
        for name, own in (
            ("parent", ()),
            ("translation", (3,)),
            ("quat_wxyz", (4,)),
            ("scale", (3,)),
            ("basis", (3, 3)),
        ):
            x = getattr(self, name)
            if x is not None and (not isinstance(x, Tensor) or x.shape != (n, *own)):
                raise ShapeError(f"{name}: expected a tensor {(n, *own)}, one row a name, got {describe(x)}")

    def pose(self, *, animation: int | str | None = None, time: float | Tensor = 0.0) -> Pose:
        """The rig at some times of an animation, or at rest where `animation` is None.

        Args: animation, its index or name; time, seconds, a number or a float tensor of any shape, which becomes the
            batch; before the first key frame and after the last the motion stands still.
        Returns: computed in float64, in the dtype of the skeleton.
        Raises: ShapeError where there is no such animation, or a time is NaN.

        Guarantees: differentiable (in time, key frames and rest; not at key frames); deterministic; 2e-15 f64, 1e-7 f32
        """
        at = torch.as_tensor(time, dtype=torch.float64, device=self.parent.device)
        if readable(at) and bool(at.isnan().any()):
            raise ShapeError("time: expected seconds, got NaN")
        played = Animation(()) if animation is None else self._find(animation)
        return self.pose_from(**self._sampled(played, at))

    def pose_from(
        self,
        *,
        translation: Float[Tensor, "*b n 3"] | None = None,
        quat_wxyz: Float[Tensor, "*b n 4"] | None = None,
        scale: Float[Tensor, "*b n 3"] | None = None,
        morph: Float[Tensor, "*b w"] | None = None,
    ) -> Pose:
        """The rig with its nodes set by hand, each in its parent; what is None is at rest. Batches broadcast.

        Args: quat_wxyz, of any length above 0; the rest as in `Pose`.
        Raises: ShapeError for another shape, or batches that do not broadcast.

        >>> rig = make_rig(torch.eye(3), torch.tensor([[0, 1, 2]]), parent=torch.tensor([-1]),
        ...                joints=torch.zeros(1, 3), weights=torch.ones(3, 1))
        >>> turned = rig.quat_wxyz.clone()
        >>> turned[0] = torch.tensor([0.0, 0, 0, 1])
        >>> rig.pose_from(quat_wxyz=turned).world[0, 0].tolist()
        [-1.0, 0.0, 0.0, 0.0]

        Guarantees: differentiable; deterministic; 2e-15 f64, 1e-7 f32
        """
        given = {"translation": translation, "quat_wxyz": quat_wxyz, "scale": scale, "morph": morph}
        parts = {}
        for name, x in given.items():
            rest = getattr(self, name)
            if x is not None and (not isinstance(x, Tensor) or x.shape[max(0, x.ndim - rest.ndim) :] != rest.shape):
                raise ShapeError(
                    f"{name}: expected a tensor (..., {', '.join(map(str, rest.shape))}), got {describe(x)}"
                )
            parts[name] = (rest if x is None else x).double()
        batches = [x.shape[: x.ndim - getattr(self, n).ndim] for n, x in parts.items()]
        try:
            batch = torch.broadcast_shapes(*batches)
        except RuntimeError as error:
            raise ShapeError(
                f"expected batches that broadcast, got {', '.join(map(str, map(tuple, batches)))}"
            ) from error
        parts = {n: x.expand(*batch, *getattr(self, n).shape) for n, x in parts.items()}
        t, q, s = parts["translation"], parts["quat_wxyz"], parts["scale"]
        linear = quaternion.to_matrix(q) * s[..., None, :]
        if self.basis is not None:
            linear = linear @ self.basis.double()
        world = forward_kinematics(self.parent, torch.cat([linear, t[..., None]], -1))
        dtype = self.translation.dtype
        return Pose(world.to(dtype), **{n: x.to(dtype) for n, x in parts.items()})

    def bones(self, pose: Pose, skin: int = 0) -> Float[Tensor, "*b j 3 4"]:
        """What each joint of a skin does to the surface: its world transform after its inverse bind matrix.

        Raises: ShapeError where there is no such skin.

        Guarantees: differentiable; deterministic; 2e-15 f64, 1e-6 f32
        """
        if not 0 <= skin < len(self.skins):
            raise ShapeError(f"skin: expected an index below {len(self.skins)}, got {skin}")
        found = self.skins[skin]
        return compose_affine(pose.world[..., found.joints, :, :], found.inverse_bind.to(pose.world))

    def record(self, pose: Pose, *, times: Float[Tensor, " k"], name: str = "") -> "Rig":
        """The rig with one animation more, which goes through these poses on straight lines.

        Args: pose, batch (k,), of this rig; times (k,), seconds, rising.
        Raises: ShapeError where they do not fit.

        Guarantees: differentiable; deterministic; exact f64, exact f32
        """
        if pose.world.shape[:-2] != (*times.shape, len(self.names)) or times.ndim != 1 or not len(times):
            raise ShapeError(
                f"pose: expected {tuple(times.shape)} poses of {len(self.names)} nodes, got {tuple(pose.world.shape)}"
            )
        if readable(times) and not bool((times[1:] > times[:-1]).all()):
            raise ShapeError("times: expected to rise")
        channels = []
        for node in range(len(self.names)):
            moved: tuple[tuple[Path, Tensor, Tensor], ...] = (
                ("translation", pose.translation, self.translation),
                ("rotation", pose.quat_wxyz, self.quat_wxyz),
                ("scale", pose.scale, self.scale),
            )
            for path, x, rest in moved:
                if not readable(x) or x.requires_grad or bool((x[:, node] != rest[node]).any()):
                    channels.append(Channel(times, x[:, node], node, path))
        for node, (start, end) in self.morph_slots().items():
            channels.append(Channel(times, pose.morph[:, start:end], node, "weights"))
        return replace(self, animations=(*self.animations, Animation(tuple(channels), name)))

    def morph_slots(self) -> dict[int, tuple[int, int]]:
        """For each node with morph targets, where its weights begin in `morph` and where they end."""
        found: dict[int, tuple[int, int]] = {}
        for p in self.primitives:
            if p.morphs is not None:
                found[p.node] = (p.slot, max(found.get(p.node, (0, 0))[1], p.slot + len(p.morphs)))
        return found

    def _find(self, animation: int | str) -> Animation:
        names = [a.name for a in self.animations]
        if isinstance(animation, str) and animation in names:
            return self.animations[names.index(animation)]
        if isinstance(animation, int) and not isinstance(animation, bool) and 0 <= animation < len(names):
            return self.animations[animation]
        raise ShapeError(f"animation: expected an index below {len(names)} or one of {names[:20]}, got {animation!r}")

    def _sampled(self, animation: Animation, time: Tensor) -> dict[str, Tensor]:
        """The animated of translation, quat_wxyz, scale and morph, at `time` (*b)."""
        slots = self.morph_slots()
        names = {"translation": "translation", "rotation": "quat_wxyz", "scale": "scale", "weights": "morph"}
        rest = {name: getattr(self, name).double() for name in names.values()}
        found = {name: x.expand(*time.shape, *x.shape) for name, x in rest.items()}
        for path, nodes, values in sample(animation.channels, time):
            name, places, dim = names[path], nodes, -2
            if path == "weights":
                places = [slots[n][0] + i for n in nodes for i in range(values.shape[-1])]
                values, dim = values.flatten(-2), -1
            found[name] = found[name].index_copy(dim, torch.tensor(places, device=values.device), values)
        return found


def make_rig(
    vertices: Float[Tensor, "v 3"],
    faces: Int64[Tensor, "f 3"],
    *,
    parent: Int64[Tensor, " j"],
    joints: Float[Tensor, "j 3"] | Float[Tensor, "j 3 4"],
    weights: Float[Tensor, "v k"],
    indices: Int64[Tensor, "v k"] | None = None,
    names: Sequence[str] | None = None,
    motion: Float[Tensor, "t j 3 4"] | None = None,
    rate: float = 30.0,
) -> Rig:
    """A rig of one skinned surface: nodes 0 to J-1 are the joints, node J carries the surface.

    Args:
        vertices: at rest, metres, float32 or float64. faces: int64.
        parent: the joint above each, -1 at a root, any order.
        joints: at rest, their positions in the world, or their transforms to it (J, 3, 4).
        weights: of each vertex, at least 0; rows are normalised; (V, J), or (V, K) beside `indices`. Of a dense row
            the joints with a weight are kept, in falling order.
        indices: which joints, in [0, J).
        names: of the joints; else "joint 0", "joint 1", ...
        motion: of each joint in the world, frame by frame: an animation at `rate` frames a second. Each local
            transform is to be a rotation with scales along its axes, to 1e-4.
    Raises: ShapeError for another shape, indices out of range, a cycle, weights below 0 or a row of zeros, a motion
        with shear.

    >>> rig = make_rig(torch.eye(3), torch.tensor([[0, 1, 2]]), parent=torch.tensor([-1, 0]),
    ...                joints=torch.tensor([[0.0, 0, 0], [0, 0, 1]]), weights=torch.tensor([[1.0, 0], [1, 0], [1, 1]]))
    >>> rig.names, rig.primitives[0].weights.tolist()
    (('joint 0', 'joint 1', 'surface'), [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])

    Guarantees: differentiable (vertices, joints, weights, motion); deterministic; 1e-15 f64, 3e-7 f32
    """
    check_points(vertices, "vertices")
    check_indices(faces, 3, len(vertices), "faces", "F")
    if not isinstance(joints, Tensor) or joints.shape[1:] not in ((3,), (3, 4)) or not joints.is_floating_point():
        raise ShapeError(f"joints: expected a float tensor (J, 3) or (J, 3, 4), got {describe(joints)}")
    count = len(joints)
    if not isinstance(parent, Tensor) or parent.shape != (count,) or parent.dtype != torch.int64:
        raise ShapeError(f"parent: expected an int64 tensor ({count},), got {describe(parent)}")
    if names is not None and len(names) != count:
        raise ShapeError(f"names: expected {count}, got {len(names)}")
    chosen, shares = _sparse(weights, indices, len(vertices), count)
    world = (
        joints if joints.ndim == 3 else torch.cat([torch.eye(3).to(joints).expand(count, 3, 3), joints[..., None]], -1)
    )
    world = world.double()
    if readable(world) and not bool((torch.linalg.det(world[..., :3].detach()).abs() > 0).all()):
        raise ShapeError("joints: expected transforms that can be inverted, got a singular one, or NaN")
    local = _to_parent(parent, world)
    world = forward_kinematics(parent, local)  # refuses what is no forest
    t, q, s, sheared = decompose(local)
    basis = None
    if sheared:
        q, s = torch.eye(1, 4).to(q).repeat(count, 1), torch.ones_like(s)
        basis = torch.cat([local[..., :3], torch.eye(3).to(local)[None]]).to(joints.dtype)

    def padded(x: Tensor, row: list[float]) -> Tensor:
        return torch.cat([x, x.new_tensor([row])]).to(joints.dtype)

    bind = Skin(torch.arange(count, device=joints.device), invert_affine(world).to(joints.dtype))
    surface = Primitive(vertices, faces, count, indices=chosen, weights=shares.to(vertices.dtype), skin=0)
    rig = Rig(
        torch.cat([parent, parent.new_tensor([-1])]),
        padded(t, [0.0, 0, 0]),
        padded(q, [1.0, 0, 0, 0]),
        padded(s, [1.0, 1, 1]),
        joints.new_zeros(0),
        (*(f"joint {j}" for j in range(count)), "surface") if names is None else (*names, "surface"),
        skins=(bind,),
        primitives=(surface,),
        basis=basis,
        scene=(*(j for j, p in enumerate(parent.tolist()) if p < 0), count),
    )
    if motion is None:
        return rig
    if not isinstance(motion, Tensor) or motion.ndim != 4 or motion.shape[1:] != (count, 3, 4) or not len(motion):
        raise ShapeError(f"motion: expected a float tensor (T, {count}, 3, 4), got {describe(motion)}")
    if sheared:
        raise ShapeError("joints: expected rest transforms without shear beside a motion")
    t, q, s, sheared = decompose(_to_parent(parent, motion.double()))
    if sheared:
        raise ShapeError("motion: expected rotations with scales along their axes, got shear")
    frames = len(motion)
    still = [x[-1:].double().expand(frames, 1, -1) for x in (rig.translation, rig.quat_wxyz, rig.scale)]
    t, q, s = (torch.cat(pair, 1) for pair in zip((t, q, s), still, strict=True))
    times = torch.arange(frames, dtype=torch.float64, device=joints.device) / check_positive(rate, "rate")
    return rig.record(rig.pose_from(translation=t, quat_wxyz=q, scale=s), times=times.to(joints.dtype), name="motion")


def _to_parent(parent: Tensor, world: Tensor) -> Tensor:
    """World transforms (*b, j, 3, 4) to those in the parent."""
    above = world[..., parent.clamp(min=0), :, :]
    return torch.where((parent >= 0)[:, None, None], compose_affine(invert_affine(above), world), world)


def decompose(affine: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
    """[R diag(s) | t] (..., 3, 4): t, R's quaternion, s, of which the first is negative in a mirror, and whether the
    columns are off the right angle by 1e-4, so that this is not all."""
    linear = affine[..., :3]
    s = safe_norm(linear.mT)
    mirror = torch.where(torch.linalg.det(linear.detach()) < 0, -1.0, 1.0)
    s = torch.cat([s[..., :1] * mirror[..., None], s[..., 1:]], -1)
    axes = linear / torch.where(s == 0, 1.0, s)[..., None, :]
    R = so3.project(axes)
    return affine[..., 3], quaternion.from_matrix(R), s, bool(((axes - R).detach().abs() > 1e-4).any())


def _sparse(weights: Tensor, indices: Tensor | None, count: int, joints: int) -> tuple[Tensor, Tensor]:
    """Indices (V, K) and weights (V, K) of rows with sum 1, made in float64."""
    columns = joints if indices is None else indices.shape[-1]
    if not isinstance(weights, Tensor) or weights.shape != (count, columns) or not weights.is_floating_point():
        raise ShapeError(f"weights: expected a float tensor ({count}, {columns}), got {describe(weights)}")
    check_weights(weights)
    if indices is None:
        most = int((weights > 0).sum(1).max()) if count else 1
        chosen = torch.sort(weights.detach(), dim=1, descending=True, stable=True).indices[:, :most]
        weights = weights.gather(1, chosen)
    else:
        check_indices(indices, columns, joints, "indices", "V")
        chosen = indices
    exact = weights.double()
    return chosen, exact / exact.sum(1, keepdim=True)
