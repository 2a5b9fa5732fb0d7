"""`SmplModel`: a body in the form of SMPL, from a file that the user brings. Nothing of SMPL itself is in this library.

Shape moves the surface, and the joints are regressed from it (Loper et al. 2015, Eqs. (2) to (10)), so that shape and
skeleton are not apart, as they are in `geom.skinning.BodyModel`.
"""

import os
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from geom.checks import FLOATS, check_choice
from geom.errors import ShapeError
from geom.io.arrays import read_arrays
from geom.io.bytes import Source, open_source
from geom.lie import quaternion
from geom.lie.kinematics import forward_kinematics
from geom.skinning.body import BodyState, PosedBody, body_state
from geom.skinning.linear import lbs
from geom.values import Value, value

__all__ = ["SmplModel", "load_smpl"]

_KEYS = ("v_template", "f", "weights", "kintree_table", "J_regressor", "shapedirs", "posedirs")


@value
class SmplModel(Value):
    """A body whose joints follow its shape: V vertices, J joints, S shapes.

        shaped = template + shape shape_basis,   joints = joint_regressor shaped
        surface = shaped + vec(R_1 - I, ..., R_{J-1} - I) pose_basis
        world_j = world_parent [R_j | joint_j - joint_parent],   vertices = lbs(surface, weights, world_j (. - joint_j))

    Fields: template (V, 3), metres; faces (F, 3); parent (J,), -1 for the root, which is joint 0; joint_regressor
        (J, V); shape_basis (S, V, 3); pose_basis (9 (J - 1), V, 3), for R - I row by row; weights (V, J).
    States are those of `BodyModel`, with no coefficient of the skeleton.
    """

    template: Float[Tensor, "v 3"]
    faces: Int64[Tensor, "f 3"]
    parent: Int64[Tensor, " j"]
    joint_regressor: Float[Tensor, "j v"]
    shape_basis: Float[Tensor, "s v 3"]
    pose_basis: Float[Tensor, "p v 3"]
    weights: Float[Tensor, "v j"]

    @property
    def indices(self) -> None:
        """None: the weights are dense."""
        return None

    def state(self, *batch: int) -> BodyState:
        """The state at rest, of mean shape, in the batch shape given."""
        return body_state(self.template, batch, len(self.shape_basis), 0, len(self.parent))

    def surface(self, state: BodyState) -> Float[Tensor, "*b v 3"]:
        """The surface at rest with its offsets (..., V, 3): template, shape, and those of the pose."""
        rotations = quaternion.to_matrix(state.quat_wxyz[..., 1:, :])
        one = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
        feature = (rotations - one).flatten(-3)
        return self._shaped(state) + torch.einsum("...p,pvc->...vc", feature, self.pose_basis)

    def apply(self, state: BodyState) -> PosedBody:
        """The posed body: vertices, joints and bone transforms. Raises: ShapeError where sizes are another body's."""
        sizes = (state.shape.shape[-1], state.quat_wxyz.shape[-2])
        if sizes != (len(self.shape_basis), len(self.parent)):
            own = (len(self.shape_basis), len(self.parent))
            raise ShapeError(f"state: expected numbers of shapes and joints {own}, got {sizes}")
        bones, joints = self.transforms(state)
        return PosedBody(lbs(self.surface(state), self.weights, bones), joints, bones)

    def transforms(self, state: BodyState) -> tuple[Float[Tensor, "*b j 3 4"], Float[Tensor, "*b j 3"]]:
        """Bones (..., J, 3, 4) and joints (..., J, 3): all of `apply` that needs no posed surface."""
        # 1. joints at rest (..., J, 3), and each in the frame of the one before (..., J, 3, 4)
        joints = self.joint_regressor @ self._shaped(state)
        root = (self.parent < 0)[:, None]
        apart = joints - joints[..., self.parent.clamp(min=0), :]
        offset = torch.where(root, joints + state.translation[..., None, :], apart)
        local = torch.cat([quaternion.to_matrix(state.quat_wxyz), offset[..., None]], -1)
        # 2. in the world (..., J, 3, 4), and from the surface at rest to there
        world = forward_kinematics(self.parent, local)
        moved = world[..., 3] - (world[..., :3] @ joints[..., None])[..., 0]
        return torch.cat([world[..., :3], moved[..., None]], -1), world[..., 3]

    def _shaped(self, state: BodyState) -> Tensor:
        return self.template + torch.einsum("...s,svc->...vc", state.shape, self.shape_basis)


def load_smpl(path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> SmplModel:
    """Read a body model in the form of SMPL (SMPL, SMPL-H, SMPL-X) from a .npz of plain arrays; nothing is unpickled.

    Arrays: v_template (V, 3), f (F, 3), weights (V, J), kintree_table (2, J) whose first row holds parents, of any
    number for joint 0, J_regressor (J, V) dense, shapedirs (V, 3, S), posedirs (V, 3, 9 (J - 1)). Others are not read.
    Weights are divided by their sums.

    Args: path. dtype: float32 or float64, of the model.
    Raises: FileFormatError: no such archive, an array that is missing, pickled (of dtype object: make it plain once
        where the model's own software runs, as the message says), of another shape, not finite or out of range.

    Guarantees: not differentiable; deterministic; exact f64, exact f32
    """
    check_choice(dtype, FLOATS, "dtype")
    source = open_source(path)
    arrays = read_arrays(source, _KEYS)
    missing = [name for name in _KEYS if name not in arrays]
    if missing:
        raise source.fail(f"expected the arrays {', '.join(_KEYS)}; {missing[0]} is missing")
    numbers = {name: _plain(source, name, arrays[name]) for name in _KEYS}
    v, j, s = (len(numbers["v_template"]), numbers["kintree_table"].shape[-1], numbers["shapedirs"].shape[-1])
    shapes = {
        "v_template": (v, 3),
        "f": (len(numbers["f"]), 3),
        "weights": (v, j),
        "kintree_table": (2, j),
        "J_regressor": (j, v),
        "shapedirs": (v, 3, s),
        "posedirs": (v, 3, 9 * (j - 1)),
    }
    for name, shape in shapes.items():
        if numbers[name].shape != shape or (name != "shapedirs" and not v * j):
            raise source.fail(f"{name}: expected shape {shape}, got {numbers[name].shape}")
    faces, weights = numbers["f"], numbers["weights"]
    if faces.size and (faces.min() < 0 or faces.max() >= v):
        raise source.fail(f"f: expected vertices in [0, {v}), got {faces.min():g} to {faces.max():g}")
    total = weights.sum(-1, keepdims=True)
    if (weights < 0).any() or (total <= 0).any():
        raise source.fail("weights: expected numbers of at least 0 in rows with a sum above 0")
    parent = numbers["kintree_table"][0].copy()
    parent[0] = -1
    if not all(parent[k] in range(k) for k in range(1, j)):
        raise source.fail("kintree_table: expected each joint after its parent in the first row")

    def real(x: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(dtype)

    return SmplModel(
        real(numbers["v_template"]),
        torch.from_numpy(faces.astype(np.int64)),
        torch.from_numpy(parent.astype(np.int64)),
        real(numbers["J_regressor"]),
        real(numbers["shapedirs"].transpose(2, 0, 1)),
        real(numbers["posedirs"].transpose(2, 0, 1)),
        real(weights / total),
    )


def _plain(source: Source, name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    """Finite numbers as float64, in which indices too are exact."""
    if not array.ndim or not np.isfinite(array).all():
        raise source.fail(f"{name}: expected an array of finite numbers, got shape {array.shape}, NaN or inf")
    return array.astype(np.float64)
