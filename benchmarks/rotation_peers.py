"""The same operations in geom, roma, pypose, scipy and by pytorch3d's formulas, each on its own types and layouts.

pytorch3d has no wheel, so its way of computing is written here from the equations: sinc instead of thresholds, atan2 on
quaternions with the real part first, the best conditioned of four candidates, rows instead of columns for 6D and poses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Given", "Library", "Operation", "formulas", "geom", "pypose", "roma", "scipy", "textbook"]


class Given(NamedTuple):
    """n of each: quaternions (w, x, y, z), twists (v, omega), 6D by columns; poses (start, here) and (end, there)."""

    rotvec: Tensor
    start: Tensor
    end: Tensor
    t: Tensor
    matrix: Tensor
    vector: Tensor
    columns: Tensor
    angles: Tensor
    twist: Tensor
    here: Tensor
    there: Tensor

    def to(self, kind: Any) -> "Given":
        return Given(*(x.to(kind) for x in self))


class Operation(NamedTuple):
    """`call(*prepare(given))` is timed without `prepare`; `read` gives its result in geom's conventions.

    Poses are read as the upper three rows of their matrices.
    """

    prepare: Callable[[Given], tuple[Any, ...]]
    call: Callable[..., Any]
    read: Callable[[Any], Tensor] = torch.as_tensor


Library = dict[str, Operation]


def geom() -> Library:
    from geom.lie import quaternion, se3, so3

    pose = lambda g: (g.start, g.here)  # noqa: E731
    slerp = lambda t: Operation(lambda g: (g.start, g.end, t(g)), quaternion.slerp)  # noqa: E731
    return {
        "exp": Operation(lambda g: (g.rotvec,), quaternion.exp),
        "log": Operation(lambda g: (g.start,), quaternion.log),
        "compose": Operation(lambda g: (g.start, g.end), quaternion.multiply),
        "rotate": Operation(lambda g: (g.start, g.vector), quaternion.rotate),
        "slerp": slerp(lambda g: g.t),
        "slerp, one step": slerp(lambda g: 0.3),
        "quaternion to matrix": Operation(lambda g: (g.start,), quaternion.to_matrix),
        "matrix to quaternion": Operation(lambda g: (g.matrix,), quaternion.from_matrix),
        "vector to matrix": Operation(lambda g: (g.rotvec,), so3.exp),
        "matrix to vector": Operation(lambda g: (g.matrix,), so3.log),
        "distance": Operation(lambda g: (g.start, g.end), quaternion.geodesic_distance),
        "6D to matrix": Operation(lambda g: (g.columns,), so3.from_6d),
        "Euler to matrix": Operation(lambda g: (g.angles, "XYZ"), so3.from_euler),
        "matrix to Euler": Operation(lambda g: (g.matrix, "XYZ"), so3.to_euler),
        "SE(3) exp": Operation(lambda g: (g.twist,), se3.exp, _pose),
        "SE(3) log": Operation(pose, se3.log),
        "SE(3) compose": Operation(lambda g: (g.start, g.here, g.end, g.there), se3.compose, _pose),
        "SE(3) inverse": Operation(pose, se3.inverse, _pose),
        "SE(3) apply": Operation(lambda g: (*pose(g), g.vector[:, None]), se3.apply, lambda x: x[:, 0]),
        "gradient of log(exp)": _gradient(lambda v: quaternion.log(quaternion.exp(v))),
    }


def roma() -> Library:
    import roma

    def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        turn = roma.unitquat_to_rotvec(roma.quat_product(roma.quat_conjugation(a), b))
        return roma.quat_product(a, roma.rotvec_to_unitquat(t * turn))

    pose = lambda g: roma.RigidUnitQuat(_xyzw(g.start), g.here)  # noqa: E731
    other = lambda g: roma.RigidUnitQuat(_xyzw(g.end), g.there)  # noqa: E731
    read = lambda x: _pose((_wxyz(x.linear), x.translation))  # noqa: E731
    start = lambda g: (_xyzw(g.start),)  # noqa: E731
    both = lambda g: (_xyzw(g.start), _xyzw(g.end))  # noqa: E731
    return {
        "exp": Operation(lambda g: (g.rotvec,), roma.rotvec_to_unitquat, _wxyz),
        "log": Operation(start, roma.unitquat_to_rotvec),
        "compose": Operation(both, roma.quat_product, _wxyz),
        "rotate": Operation(
            lambda g: (_xyzw(g.start), g.vector), lambda q, x: roma.quat_action(q, x, is_normalized=True)
        ),
        "slerp": Operation(lambda g: (*both(g), g.t[:, None]), slerp, _wxyz),
        "slerp, one step": Operation(lambda g: (*both(g), g.t.new_tensor(0.3)), roma.unitquat_slerp, _wxyz),
        "quaternion to matrix": Operation(start, roma.unitquat_to_rotmat),
        "matrix to quaternion": Operation(lambda g: (g.matrix,), roma.rotmat_to_unitquat, _wxyz),
        "vector to matrix": Operation(lambda g: (g.rotvec,), roma.rotvec_to_rotmat),
        "matrix to vector": Operation(lambda g: (g.matrix,), roma.rotmat_to_rotvec),
        "distance": Operation(both, roma.unitquat_geodesic_distance),
        "6D to matrix": Operation(
            lambda g: (g.columns.unflatten(-1, (2, 3)).mT.contiguous(),), roma.special_gramschmidt
        ),
        "Euler to matrix": Operation(lambda g: ("XYZ", g.angles), roma.euler_to_rotmat),
        "matrix to Euler": Operation(lambda g: ("XYZ", g.matrix), roma.rotmat_to_euler),
        "SE(3) compose": Operation(lambda g: (pose(g), other(g)), lambda a, b: a.compose(b), read),
        "SE(3) inverse": Operation(lambda g: (pose(g),), lambda a: a.inverse(), read),
        "SE(3) apply": Operation(lambda g: (pose(g), g.vector), lambda a, x: a.apply(x)),
        "gradient of log(exp)": _gradient(lambda v: roma.unitquat_to_rotvec(roma.rotvec_to_unitquat(v))),
    }


def pypose() -> Library:
    import pypose as pp

    def slerp(a: Any, b: Any, t: Any) -> Any:
        return a @ ((a.Inv() @ b).Log() * t).Exp()

    start = lambda g: pp.SO3(_xyzw(g.start))  # noqa: E731
    end = lambda g: pp.SO3(_xyzw(g.end))  # noqa: E731
    pose = lambda g: pp.SE3(torch.cat([g.here, _xyzw(g.start)], -1))  # noqa: E731
    other = lambda g: pp.SE3(torch.cat([g.there, _xyzw(g.end)], -1))  # noqa: E731
    plain = lambda x: x.tensor()  # noqa: E731
    quat = lambda x: _wxyz(x.tensor())  # noqa: E731
    read = lambda x: x.matrix()[:, :3]  # noqa: E731
    # its Euler angles are R_z R_y R_x: those of the transposed matrix and of opposite sign are ours
    return {
        "exp": Operation(lambda g: (pp.so3(g.rotvec),), lambda v: v.Exp(), quat),
        "log": Operation(lambda g: (start(g),), lambda q: q.Log(), plain),
        "compose": Operation(lambda g: (start(g), end(g)), lambda a, b: a @ b, quat),
        "rotate": Operation(lambda g: (start(g), g.vector), lambda q, x: q.Act(x)),
        "slerp": Operation(lambda g: (start(g), end(g), g.t[:, None]), slerp, quat),
        "slerp, one step": Operation(lambda g: (start(g), end(g), 0.3), slerp, quat),
        "quaternion to matrix": Operation(lambda g: (start(g),), lambda q: q.matrix()),
        "matrix to quaternion": Operation(lambda g: (g.matrix,), lambda m: pp.mat2SO3(m, check=False), quat),
        "vector to matrix": Operation(lambda g: (pp.so3(g.rotvec),), lambda v: v.Exp().matrix()),
        "matrix to vector": Operation(lambda g: (g.matrix,), lambda m: pp.mat2SO3(m, check=False).Log(), plain),
        "distance": Operation(lambda g: (start(g), end(g)), lambda a, b: (a.Inv() @ b).Log().tensor().norm(dim=-1)),
        "Euler to matrix": Operation(
            lambda g: (-g.angles,), lambda x: pp.euler2SO3(x).matrix(), lambda m: m.transpose(-1, -2)
        ),
        "matrix to Euler": Operation(
            lambda g: (g.matrix.mT.contiguous(),), lambda m: pp.mat2SO3(m, check=False).euler(), torch.neg
        ),
        "SE(3) exp": Operation(lambda g: (pp.se3(g.twist),), lambda x: x.Exp(), read),
        "SE(3) log": Operation(lambda g: (pose(g),), lambda x: x.Log(), plain),
        "SE(3) compose": Operation(lambda g: (pose(g), other(g)), lambda a, b: a @ b, read),
        "SE(3) inverse": Operation(lambda g: (pose(g),), lambda a: a.Inv(), read),
        "SE(3) apply": Operation(lambda g: (pose(g), g.vector), lambda a, x: a.Act(x)),
        "gradient of log(exp)": _gradient(lambda v: pp.so3(v).Exp().Log()),
    }


def scipy() -> Library:
    """float64 whatever it is given: scipy knows nothing else."""
    from scipy.spatial.transform import RigidTransform, Rotation

    def array(x: Tensor) -> Any:
        return x.detach().cpu().numpy().astype(np.float64)

    def slerp(a: Any, b: Any, t: Any) -> Any:
        return a * Rotation.from_rotvec(t * (a.inv() * b).as_rotvec())

    start = lambda g: Rotation.from_quat(array(g.start), scalar_first=True)  # noqa: E731
    end = lambda g: Rotation.from_quat(array(g.end), scalar_first=True)  # noqa: E731
    pose = lambda g: RigidTransform.from_components(array(g.here), start(g))  # noqa: E731
    other = lambda g: RigidTransform.from_components(array(g.there), end(g))  # noqa: E731
    quat = lambda x: torch.from_numpy(x.as_quat(scalar_first=True))  # noqa: E731
    read = lambda x: torch.from_numpy(x.as_matrix()[:, :3])  # noqa: E731
    return {
        "exp": Operation(lambda g: (array(g.rotvec),), Rotation.from_rotvec, quat),
        "log": Operation(lambda g: (start(g),), Rotation.as_rotvec),
        "compose": Operation(lambda g: (start(g), end(g)), lambda a, b: a * b, quat),
        "rotate": Operation(lambda g: (start(g), array(g.vector)), Rotation.apply),
        "slerp": Operation(lambda g: (start(g), end(g), array(g.t)[:, None]), slerp, quat),
        "slerp, one step": Operation(lambda g: (start(g), end(g), 0.3), slerp, quat),
        "quaternion to matrix": Operation(lambda g: (start(g),), Rotation.as_matrix),
        "matrix to quaternion": Operation(lambda g: (array(g.matrix),), Rotation.from_matrix, quat),
        "vector to matrix": Operation(lambda g: (array(g.rotvec),), lambda v: Rotation.from_rotvec(v).as_matrix()),
        "matrix to vector": Operation(lambda g: (array(g.matrix),), lambda m: Rotation.from_matrix(m).as_rotvec()),
        "distance": Operation(lambda g: (start(g), end(g)), lambda a, b: (a.inv() * b).magnitude()),
        "Euler to matrix": Operation(lambda g: (array(g.angles),), lambda x: Rotation.from_euler("XYZ", x).as_matrix()),
        "matrix to Euler": Operation(lambda g: (array(g.matrix),), lambda m: Rotation.from_matrix(m).as_euler("XYZ")),
        # its exponential coordinates are (omega, v)
        "SE(3) exp": Operation(lambda g: (np.roll(array(g.twist), 3, -1),), RigidTransform.from_exp_coords, read),
        "SE(3) log": Operation(
            lambda g: (pose(g),), RigidTransform.as_exp_coords, lambda x: torch.from_numpy(np.roll(x, 3, -1))
        ),
        "SE(3) compose": Operation(lambda g: (pose(g), other(g)), lambda a, b: a * b, read),
        "SE(3) inverse": Operation(lambda g: (pose(g),), RigidTransform.inv, read),
        "SE(3) apply": Operation(lambda g: (pose(g), array(g.vector)), RigidTransform.apply),
    }


def formulas() -> Library:
    pose = lambda g: _row_pose(_matrix(g.start), g.here)  # noqa: E731
    other = lambda g: _row_pose(_matrix(g.end), g.there)  # noqa: E731
    read = lambda m: m[:, :, :3].mT  # noqa: E731

    def slerp(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
        return _product(a, _exp(t * _log(_positive(_product(_conjugate(a), b)))))

    return {
        "exp": Operation(lambda g: (g.rotvec,), _exp),
        "log": Operation(lambda g: (g.start,), _log),
        "compose": Operation(lambda g: (g.start, g.end), _product),
        "rotate": Operation(lambda g: (g.start, g.vector), _rotate),
        "slerp": Operation(lambda g: (g.start, g.end, g.t[:, None]), slerp),
        "slerp, one step": Operation(lambda g: (g.start, g.end, 0.3), slerp),
        "quaternion to matrix": Operation(lambda g: (g.start,), _matrix),
        "matrix to quaternion": Operation(lambda g: (g.matrix,), _quaternion),
        "vector to matrix": Operation(lambda g: (g.rotvec,), lambda v: _matrix(_exp(v))),
        "matrix to vector": Operation(lambda g: (g.matrix,), lambda m: _log(_quaternion(m))),
        "distance": Operation(
            lambda g: (g.start, g.end), lambda a, b: _log(_positive(_product(_conjugate(a), b))).norm(dim=-1)
        ),
        "6D to matrix": Operation(lambda g: (g.columns,), _gram_schmidt, lambda m: m.mT),
        "Euler to matrix": Operation(lambda g: (g.angles,), _from_euler),
        "matrix to Euler": Operation(lambda g: (g.matrix,), _to_euler),
        "SE(3) exp": Operation(lambda g: (g.twist,), _se3_exp, read),
        "SE(3) log": Operation(lambda g: (pose(g),), _se3_log),
        "SE(3) compose": Operation(lambda g: (pose(g), other(g)), lambda a, b: b @ a, read),
        "SE(3) inverse": Operation(lambda g: (pose(g),), torch.linalg.inv, read),
        "SE(3) apply": Operation(lambda g: (pose(g), g.vector), _move),
        "gradient of log(exp)": _gradient(lambda v: _log(_exp(v))),
    }


def textbook() -> Library:
    """The logarithm by trace and acos, for its errors only."""

    def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return _product(a, _exp(t * _acos_log(_matrix(_product(_conjugate(a), b)))))

    return {
        "vector to matrix": Operation(lambda g: (g.rotvec,), lambda v: _matrix(_exp(v))),
        "matrix to vector": Operation(lambda g: (g.matrix,), _acos_log),
        "slerp": Operation(lambda g: (g.start, g.end, g.t[:, None]), slerp),
    }


def _gradient(chain: Callable[[Tensor], Any]) -> Operation:
    """Forward and backward of sum(chain(rotvec)); below pi it is one everywhere."""
    return Operation(
        lambda g: (g.rotvec.clone().requires_grad_(),), lambda v: torch.autograd.grad(chain(v).sum(), v)[0]
    )


def _xyzw(quat: Tensor) -> Tensor:
    return quat.roll(-1, -1)


def _wxyz(quat: Tensor) -> Tensor:
    return quat.roll(1, -1)


def _pose(pose: tuple[Tensor, Tensor]) -> Tensor:
    quat, shift = (x.double() for x in pose)
    return torch.cat([_matrix(quat), shift[..., None]], -1)


def _exp(rotvec: Tensor) -> Tensor:
    angle = rotvec.norm(dim=-1, keepdim=True)
    return torch.cat([(angle / 2).cos(), rotvec * torch.sinc(angle / (2 * torch.pi)) / 2], -1)


def _log(quat: Tensor) -> Tensor:
    half = torch.atan2(quat[..., 1:].norm(dim=-1, keepdim=True), quat[..., :1])
    return 2 * quat[..., 1:] / torch.sinc(half / torch.pi)


def _acos_log(matrix: Tensor) -> Tensor:
    """acos((tr R - 1)/2) / (2 sin) vee(R - R^T): digits are lost near 0 and near pi."""
    angle = torch.acos(((matrix.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1) / 2).clamp(-1, 1))
    skew = matrix - matrix.mT
    vector = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)
    return angle / (2 * angle.sin()).clamp(min=torch.finfo(matrix.dtype).eps) * vector


def _product(a: Tensor, b: Tensor) -> Tensor:
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    w = aw * bw - ax * bx - ay * by - az * bz
    x = aw * bx + ax * bw + ay * bz - az * by
    y = aw * by - ax * bz + ay * bw + az * bx
    z = aw * bz + ax * by - ay * bx + az * bw
    return torch.stack([w, x, y, z], -1)


def _conjugate(quat: Tensor) -> Tensor:
    return quat * quat.new_tensor([1, -1, -1, -1])


def _positive(quat: Tensor) -> Tensor:
    return torch.where(quat[..., :1] < 0, -quat, quat)


def _rotate(quat: Tensor, vector: Tensor) -> Tensor:
    pure = torch.cat([torch.zeros_like(vector[..., :1]), vector], -1)
    return _product(_product(quat, pure), _conjugate(quat))[..., 1:]


def _matrix(quat: Tensor) -> Tensor:
    w, x, y, z = quat.unbind(-1)
    s = 2 / quat.square().sum(-1)
    xx, yy, zz, xy, xz, yz = s * x * x, s * y * y, s * z * z, s * x * y, s * x * z, s * y * z
    wx, wy, wz = s * w * x, s * w * y, s * w * z
    rows = [1 - yy - zz, xy - wz, xz + wy, xy + wz, 1 - xx - zz, yz - wx, xz - wy, yz + wx, 1 - xx - yy]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _quaternion(matrix: Tensor) -> Tensor:
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.flatten(-2).unbind(-1)
    squares = torch.stack([1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1)
    usable = squares > 0
    twice = torch.where(
        usable, torch.where(usable, squares, torch.ones_like(squares)).sqrt(), torch.zeros_like(squares)
    )
    w, x, y, z = squares.unbind(-1)
    wx, wy, wz, xy, xz, yz = m21 - m12, m02 - m20, m10 - m01, m01 + m10, m02 + m20, m12 + m21
    candidates = torch.stack([w, wx, wy, wz, wx, x, xy, xz, wy, xy, y, yz, wz, xz, yz, z], -1).unflatten(-1, (4, 4))
    candidates = candidates / (2 * twice[..., None].clamp(min=0.1))
    best = twice.argmax(-1)[..., None, None].expand(*twice.shape[:-1], 1, 4)
    return _positive(candidates.gather(-2, best).squeeze(-2))


def _gram_schmidt(rows: Tensor) -> Tensor:
    first = normalize(rows[..., :3], dim=-1)
    second = normalize(rows[..., 3:] - (first * rows[..., 3:]).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -2)


def _from_euler(angles: Tensor) -> Tensor:
    turns = []
    for k, angle in enumerate(angles.unbind(-1)):
        c, s, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
        rows = ([one, zero, zero, zero, c, -s, zero, s, c], [c, zero, s, zero, one, zero, -s, zero, c],
                [c, -s, zero, s, c, zero, zero, zero, one])  # fmt: skip
        turns.append(torch.stack(rows[k], -1).unflatten(-1, (3, 3)))
    return turns[0] @ turns[1] @ turns[2]


def _to_euler(matrix: Tensor) -> Tensor:
    first = torch.atan2(-matrix[..., 1, 2], matrix[..., 2, 2])
    last = torch.atan2(-matrix[..., 0, 1], matrix[..., 0, 0])
    return torch.stack([first, matrix[..., 0, 2].asin(), last], -1)


def _hat(vector: Tensor) -> Tensor:
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def _row_pose(matrix: Tensor, shift: Tensor) -> Tensor:
    """(4, 4) for row vectors: [[R^T, 0], [t, 1]]."""
    pose = matrix.new_zeros(*matrix.shape[:-2], 4, 4)
    pose[..., :3, :3], pose[..., 3, :3], pose[..., 3, 3] = matrix.mT, shift, 1
    return pose


def _jacobian(omega: Tensor) -> tuple[Tensor, Tensor]:
    """exp(hat(omega)) and V = I + (1 - cos)/theta^2 K + (theta - sin)/theta^3 K^2, the angle kept from 0."""
    angle = omega.square().sum(-1).clamp(min=1e-8).sqrt()[..., None, None]
    k = _hat(omega)
    square, eye = k @ k, torch.eye(3, dtype=omega.dtype, device=omega.device)
    versine = (1 - angle.cos()) / angle.square()
    rotation = eye + angle.sin() / angle * k + versine * square
    return rotation, eye + versine * k + (angle - angle.sin()) / angle**3 * square


def _se3_exp(twist: Tensor) -> Tensor:
    rotation, v = _jacobian(twist[..., 3:])
    return _row_pose(rotation, (v @ twist[..., :3, None]).squeeze(-1))


def _se3_log(pose: Tensor) -> Tensor:
    omega = _log(_quaternion(pose[..., :3, :3].mT))
    v = torch.linalg.solve(_jacobian(omega)[1], pose[..., 3, :3, None]).squeeze(-1)
    return torch.cat([v, omega], -1)


def _move(pose: Tensor, point: Tensor) -> Tensor:
    return (torch.cat([point, torch.ones_like(point[..., :1])], -1)[..., None, :] @ pose).squeeze(-2)[..., :3]
