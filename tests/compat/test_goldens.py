"""Every number of pytorch3d's golden outputs for rotations, transforms and alignment, from its inputs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.compat.pytorch3d import ops, transforms
from geom.compat.pytorch3d.transforms import Rotate, Translate


def load(data: Path, name: str) -> dict[str, Tensor]:
    path = data / "pytorch3d" / name
    if not path.is_file():
        pytest.skip(f"no {name} in the data folder")
    return {k: torch.from_numpy(v) for k, v in np.load(path).items() if v.dtype.kind != "U"}


def check(golden: dict[str, Tensor], made: dict[str, Tensor], inputs: set[str], tolerance: float) -> None:
    """Each key is either an input or reproduced."""
    assert made.keys() | inputs == golden.keys()
    off = {k: float((v - golden[k]).abs().max()) for k, v in made.items()}
    assert all(made[k].shape == golden[k].shape and made[k].dtype == golden[k].dtype for k in made)
    assert max(off.values()) < tolerance, off


def test_rotations(data: Path) -> None:
    z = load(data, "p3d_rotations_wxyz.npz")
    axis_angle, quat, matrix = z["axis_angle"], z["quat"], z["matrix"]
    half, logs = len(z["q_mul"]), len(z["so3_log"])
    made = {
        "quat": transforms.axis_angle_to_quaternion(axis_angle),
        "matrix": transforms.axis_angle_to_matrix(axis_angle),
        "matrix_from_quat": transforms.quaternion_to_matrix(quat),
        "quat_from_matrix": transforms.matrix_to_quaternion(matrix),
        "axis_angle_from_quat": transforms.quaternion_to_axis_angle(quat),
        "axis_angle_from_matrix": transforms.matrix_to_axis_angle(matrix),
        "rot6d": transforms.matrix_to_rotation_6d(matrix),
        "matrix_from_6d": transforms.rotation_6d_to_matrix(z["rot6d"]),
        "q_mul": transforms.quaternion_multiply(quat[:half], quat[half : 2 * half]),
        "q_apply": transforms.quaternion_apply(quat, torch.ones(3, dtype=quat.dtype)),
        "q_inv": transforms.quaternion_invert(quat),
        "so3_exp": transforms.so3_exp_map(axis_angle),
        "so3_log": transforms.so3_log_map(matrix[:logs]),
        "se3_exp_rowvec": transforms.se3_exp_map(z["se3_log_in"]),
        "se3_log": transforms.se3_log_map(z["se3_exp_rowvec"]),
    }
    for order in ("XYZ", "ZYX"):  # angles of pi and -pi are one: what a matrix of signed zeros gives is left open
        angles, want = transforms.matrix_to_euler_angles(matrix, order), z[f"euler_{order}"]
        turns = torch.round((angles - want) / (2 * math.pi))
        assert ((turns == 0) | (angles.abs() > math.pi - 1e-12)).all()
        made[f"euler_{order}"] = angles - 2 * math.pi * turns
        assert (transforms.euler_angles_to_matrix(want, order) - matrix).abs().max() < 1e-12
    check(z, made, {"axis_angle", "se3_log_in"}, 1e-12)


def test_transforms(data: Path) -> None:
    z = load(data, "p3d_transform3d_rowvec.npz")
    moved, turned = Translate(z["translate_matrix"][:, 3, :3]), Rotate(z["rotate_R"])
    both = moved.compose(turned)
    made = {
        "translate_matrix": moved.get_matrix(),
        "rotate_matrix": turned.get_matrix(),
        "compose_t1_then_t2": both.get_matrix(),
        "out": both.transform_points(z["points"]),
        "normals_out": both.transform_normals(z["points"]),
        "inverse": both.inverse().get_matrix(),
    }
    check(z, made, {"rotate_R", "points"}, 1e-6)
    assert (both.inverse(invert_composed=True).get_matrix() - z["inverse"]).abs().max() < 1e-6


def test_alignment(data: Path) -> None:
    z = load(data, "p3d_alignment.npz")
    made = {}
    for scale in (False, True):
        for reflection in (False, True):
            for weighted in (False, True):
                w = z["weights"] if weighted else None
                found = ops.corresponding_points_alignment(z["X"], z["Y"], w, scale, reflection)
                suffix = f"scale{scale}_refl{reflection}_w{weighted}"
                made |= {f"{name}_{suffix}": x for name, x in found._asdict().items()}
    check(z, made, {"X", "Y", "R_true", "T_true", "s_true", "weights"}, 1e-5)
    exact = z["s_true"][:, None, None] * z["X"] @ z["R_true"] + z["T_true"][:, None]
    R, T, s = ops.corresponding_points_alignment(z["X"], exact, estimate_scale=True)
    assert (R - z["R_true"]).abs().max() < 1e-5 and (T - z["T_true"]).abs().max() < 1e-5
    assert (s - z["s_true"]).abs().max() < 1e-5
