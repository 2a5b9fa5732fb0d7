"""`BodyModel`: a body whose surface, bone lengths and pose are three things (ATLAS, MHR), and `BodyState`, its numbers.

Shape moves the surface and no joint; the skeleton's coefficients lengthen and widen bones, and change no offset of the
surface at rest; the pose turns joints, and its correctives stand on the surface at rest.
"""

from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import FLOATS, check_choice, check_indices, check_points, check_same, describe
from geom.errors import ShapeError
from geom.lie import quaternion
from geom.lie.kinematics import forward_kinematics
from geom.roots import safe_norm
from geom.skinning.corrective import Corrective
from geom.skinning.dual_quaternion import dqs
from geom.skinning.linear import lbs
from geom.values import Value, value

__all__ = ["BodyModel", "BodyState", "PosedBody", "body_state", "make_body", "synthetic_human"]

_DEFORMERS = {"lbs": lbs, "dqs": dqs}


@value
class BodyState(Value):
    """The numbers of one body, or of a batch of them.

    Fields: shape (..., S), coefficients of the surface; skeleton (..., K), of the bones; quat_wxyz (..., J, 4), each
        joint's rotation relative to the joint before it, the identity at rest; translation (..., 3), of the root.
    The tangent is (translation, a rotation vector in each joint's frame, shape, skeleton).
    """

    shape: Float[Tensor, "*b s"]
    skeleton: Float[Tensor, "*b k"]
    quat_wxyz: Float[Tensor, "*b j 4"]
    translation: Float[Tensor, "*b 3"]

    @property
    def tangent_dim(self) -> int:
        """3 + 3 J + S + K."""
        return 3 + 3 * self.quat_wxyz.shape[-2] + self.shape.shape[-1] + self.skeleton.shape[-1]

    def retract(self, tangent: Float[Tensor, "*b n"]) -> "BodyState":
        """Shape, skeleton and translation by addition, rotations R exp(delta)."""
        sizes = [3, 3 * self.quat_wxyz.shape[-2], self.shape.shape[-1], self.skeleton.shape[-1]]
        move, turn, shape, skeleton = tangent.split(sizes, -1)
        step = quaternion.exp(turn.unflatten(-1, (sizes[1] // 3, 3)))
        turned = quaternion.multiply(self.quat_wxyz, step)
        return BodyState(self.shape + shape, self.skeleton + skeleton, turned, self.translation + move)


class PosedBody(NamedTuple):
    """`vertices` (..., V, 3) and `joints` (..., J, 3), metres; `bones` (..., J, 3, 4), which take points of the surface
    at rest to where their joint carries them."""

    vertices: Tensor
    joints: Tensor
    bones: Tensor


@value
class BodyModel(Value):
    """A body of V vertices and J joints.

        surface = template + shape shape_basis + corrective(R)                          shape: the surface alone
        S_j = across_j (I - u_j u_j^T) + along_j u_j u_j^T,   (along, across)_j = exp(skeleton skeleton_basis)_j
        world_j = world_parent [R_j | S_parent (x_j - x_parent)],   bone_j = world_j S_j (. - x_j)
        vertices = skin(surface, weights, bones)

    so a bone's stretch S_j acts on its own flesh and the place of its children, and is not handed on to them. Faces of
    an expression are columns of the shape basis like any other (MHR's B_f).

    Fields: template (V, 3), metres; faces (F, 3); parent (J,), -1 for a root; joints (J, 3), their places x_j at rest;
        axis (J, 3), the unit vector u_j along each bone at rest; shape_basis (S, V, 3), metres, for coefficients of
        unit variance; skeleton_basis (K, J, 2), logarithms of each bone's stretch along and across its axis; weights
        and indices as in `geom.skinning.lbs`; corrective or None; names of the joints, or (); method "lbs" or "dqs".
    """

    template: Float[Tensor, "v 3"]
    faces: Int64[Tensor, "f 3"]
    parent: Int64[Tensor, " j"]
    joints: Float[Tensor, "j 3"]
    axis: Float[Tensor, "j 3"]
    shape_basis: Float[Tensor, "s v 3"]
    skeleton_basis: Float[Tensor, "k j 2"]
    weights: Float[Tensor, "v w"]
    indices: Int64[Tensor, "v w"] | None
    corrective: Corrective | None
    names: tuple[str, ...]
    method: str

    def state(self, *batch: int) -> BodyState:
        """The state at rest, of mean shape and mean bones, in the batch shape given."""
        return body_state(self.template, batch, len(self.shape_basis), len(self.skeleton_basis), len(self.parent))

    def surface(self, state: BodyState) -> Float[Tensor, "*b v 3"]:
        """The surface at rest with its offsets (..., V, 3): template, shape and pose corrective; no bone acts on it."""
        offsets = torch.einsum("...s,svc->...vc", state.shape, self.shape_basis)
        if self.corrective is not None:
            offsets = offsets + self.corrective.apply(quaternion.to_matrix(state.quat_wxyz))
        return self.template + offsets

    def apply(self, state: BodyState) -> PosedBody:
        """The posed body: vertices, joints and bone transforms. Raises: ShapeError where sizes are another body's.

        Joints do not depend on the shape, to the bit.
        """
        sizes = (state.shape.shape[-1], state.skeleton.shape[-1], state.quat_wxyz.shape[-2])
        own = (len(self.shape_basis), len(self.skeleton_basis), len(self.parent))
        if sizes != own:
            raise ShapeError(f"state: expected numbers of shapes, skeletons and joints {own}, got {sizes}")
        bones, joints = self.transforms(state)
        deform = _DEFORMERS[self.method]
        return PosedBody(deform(self.surface(state), self.weights, bones, indices=self.indices), joints, bones)

    def transforms(self, state: BodyState) -> tuple[Float[Tensor, "*b j 3 4"], Float[Tensor, "*b j 3"]]:
        """Bones (..., J, 3, 4) and joints (..., J, 3): all of `apply` that needs no surface."""
        # 1. stretches S (..., J, 3, 3)
        along, across = torch.einsum("...k,kjd->...jd", state.skeleton, self.skeleton_basis).exp().unbind(-1)
        outer = self.axis[:, :, None] * self.axis[:, None, :]
        one = torch.eye(3, dtype=outer.dtype, device=outer.device)
        stretch = across[..., None, None] * one + (along - across)[..., None, None] * outer
        # 2. each joint in the frame of the one before (..., J, 3, 4)
        root, before = self.parent < 0, self.parent.clamp(min=0)
        apart = torch.where(root[:, None], 0.0, self.joints - self.joints[before])
        offset = (stretch[..., before, :, :] @ apart[..., None])[..., 0]
        offset = torch.where(root[:, None], self.joints + state.translation[..., None, :], offset)
        local = torch.cat([quaternion.to_matrix(state.quat_wxyz), offset[..., None]], -1)
        # 3. in the world (..., J, 3, 4)
        world = forward_kinematics(self.parent, local)
        linear = world[..., :3] @ stretch
        moved = world[..., 3] - (linear @ self.joints[..., None])[..., 0]
        return torch.cat([linear, moved[..., None]], -1), world[..., 3]


def body_state(like: Tensor, batch: Sequence[int], shapes: int, skeletons: int, joints: int) -> BodyState:
    """The state at rest of a body of these sizes, dtype and device of `like`."""
    zero = like.new_zeros((*batch, max(shapes, skeletons, 3)))
    still = like.new_zeros((*batch, joints, 4))
    still[..., 0] = 1
    return BodyState(zero[..., :shapes], zero[..., :skeletons], still, zero[..., :3])


def make_body(
    template: Float[Tensor, "v 3"],
    faces: Int64[Tensor, "f 3"],
    *,
    parent: Int64[Tensor, " j"],
    joints: Float[Tensor, "j 3"],
    weights: Float[Tensor, "v w"],
    indices: Int64[Tensor, "v w"] | None = None,
    shape_basis: Float[Tensor, "s v 3"] | None = None,
    skeleton_basis: Float[Tensor, "k j 2"] | None = None,
    corrective: Corrective | None = None,
    names: Sequence[str] = (),
    method: str = "lbs",
) -> BodyModel:
    """A body from its parts, checked; the axis of a bone points to the mean of its children, or on from its parent.

    Args: as the fields of `BodyModel`. A basis of None is empty; weights have rows of sum 1.
    Raises: ShapeError: shapes, dtypes, indices or parents that do not fit together, rows of weights not of sum 1.

    >>> stick = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 2, 0]])
    >>> body = make_body(stick, torch.tensor([[0, 1, 2]]), parent=torch.tensor([-1, 0]), joints=stick[:2],
    ...     weights=torch.tensor([[1.0, 0], [0, 1], [0, 1]]), skeleton_basis=torch.tensor([[[1.0, 0], [0, 0]]]))
    >>> taller = BodyState(torch.zeros(0), torch.tensor([2.0]).log(), body.state().quat_wxyz, torch.zeros(3))
    >>> body.apply(taller).joints[1].tolist()  # the first bone is e^log(2) times as long
    [0.0, 2.0, 0.0]

    Guarantees: differentiable; deterministic; 1e-15 f64, 5e-7 f32 of the extent
    """
    check_points(template, "template", minimum=1)
    check_points(joints, "joints", minimum=1)
    v, j = len(template), len(joints)
    check_indices(faces, 3, v, "faces", "F")
    check_choice(method, _DEFORMERS, "method")
    if parent.shape != (j,) or parent.dtype != torch.int64 or not bool(((parent >= -1) & (parent < j)).all()):
        raise ShapeError(f"parent: expected int64 ({j},), joints or -1 for a root, got {describe(parent)}")
    shape_basis = template.new_zeros(0, v, 3) if shape_basis is None else shape_basis
    skeleton_basis = template.new_zeros(0, j, 2) if skeleton_basis is None else skeleton_basis
    for x, own, name in ((shape_basis, (v, 3), "shape_basis"), (skeleton_basis, (j, 2), "skeleton_basis")):
        if x.ndim != 3 or x.shape[1:] != own:
            raise ShapeError(f"{name}: expected a tensor (n, {own[0]}, {own[1]}), got {describe(x)}")
        check_same(template, x, f"template and {name}")
    check_same(template, joints, "template and joints")
    check_same(template, weights, "template and weights")
    if weights.ndim != 2 or len(weights) != v or (indices is None and weights.shape[1] != j):
        raise ShapeError(f"weights: expected ({v}, {j}), or ({v}, w) with indices, got {describe(weights)}")
    if bool((weights < 0).any()) or not bool(((weights.sum(-1) - 1).abs() <= 1e-4).all()):
        raise ShapeError("weights: expected rows of numbers of at least 0 and of sum 1")
    if indices is not None:
        check_indices(indices, weights.shape[1], j, "indices", "V")
    if corrective is not None and (len(corrective.near), len(corrective.place)) != (j, v):
        got = (len(corrective.near), len(corrective.place))
        raise ShapeError(f"corrective: expected one of {j} joints and {v} vertices, got {got}")
    if names and len(names) != j:
        raise ShapeError(f"names: expected one for each of {j} joints, got {len(names)}")
    axis = _axes(parent, joints)
    return BodyModel(
        template,
        faces,
        parent,
        joints,
        axis,
        shape_basis,
        skeleton_basis,
        weights,
        indices,
        corrective,
        tuple(names),
        method,
    )


def synthetic_human(*, dtype: torch.dtype = torch.float32) -> BodyModel:
    """A person of 2,402 vertices and 22 joints that nobody was measured for, made by assets/bodies/make_body.py.

    T-pose, y up, z ahead, left is +x, metres; joints have SMPL's names and order, without hands. Six shapes (girth,
    belly, chest, hips, limbs, head), five bone coefficients (stature, legs, arms, trunk, breadth), and a corrective
    that makes linear skinning keep volume at bent elbows and knees as dual quaternions do.

    Args: dtype, float32 or float64.

    >>> synthetic_human().names[:3]
    ('pelvis', 'left_hip', 'right_hip')

    Guarantees: not differentiable; deterministic
    """
    check_choice(dtype, FLOATS, "dtype")
    with as_file(files("geom.assets") / "bodies" / "human.safetensors") as path:
        return BodyModel.load(path).to(dtype)


def _axes(parent: Tensor, joints: Tensor) -> Tensor:
    """Unit vectors (J, 3) along the bones; 0, so that the bone has no length of its own, where nothing says where."""
    before = parent.clamp(min=0)
    apart = torch.where((parent >= 0)[:, None], joints - joints[before], 0.0)
    ahead = torch.zeros_like(joints).index_add(0, before, apart)
    leaf = torch.ones_like(parent).index_fill(0, before[parent >= 0], 0).bool()
    ahead = torch.where(leaf[:, None], apart, ahead)
    size = safe_norm(ahead)[:, None]
    return ahead / torch.where(size > 0, size, torch.ones_like(size))
