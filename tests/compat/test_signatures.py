"""Parameter names, order and defaults, against a table written down from pytorch3d's public documentation.

https://pytorch3d.readthedocs.io/en/latest/modules/transforms.html and .../ops.html
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from geom.compat.pytorch3d import loss, ops, transforms

DOCUMENTED = {
    "transforms.rotation_conversions": {
        "axis_angle_to_matrix": "axis_angle, fast=False",
        "axis_angle_to_quaternion": "axis_angle",
        "euler_angles_to_matrix": "euler_angles, convention",
        "matrix_to_axis_angle": "matrix, fast=False",
        "matrix_to_euler_angles": "matrix, convention",
        "matrix_to_quaternion": "matrix",
        "matrix_to_rotation_6d": "matrix",
        "quaternion_apply": "quaternion, point",
        "quaternion_invert": "quaternion",
        "quaternion_multiply": "a, b",
        "quaternion_raw_multiply": "a, b",
        "quaternion_to_axis_angle": "quaternions",
        "quaternion_to_matrix": "quaternions",
        "random_quaternions": "n, dtype=None, device=None",
        "random_rotation": "dtype=None, device=None",
        "random_rotations": "n, dtype=None, device=None",
        "rotation_6d_to_matrix": "d6",
        "standardize_quaternion": "quaternions",
    },
    "transforms.so3": {
        "hat": "v",
        "hat_inv": "h",
        "so3_exp_map": "log_rot, eps=0.0001",
        "so3_exponential_map": "log_rot, eps=0.0001",
        "so3_log_map": "R, eps=0.0001, cos_bound=0.0001",
        "so3_relative_angle": "R1, R2, cos_angle=False, cos_bound=0.0001, eps=0.0001",
        "so3_rotation_angle": "R, eps=0.0001, cos_angle=False, cos_bound=0.0001",
    },
    "transforms.se3": {
        "se3_exp_map": "log_transform, eps=0.0001",
        "se3_log_map": "transform, eps=0.0001, cos_bound=0.0001",
    },
    "transforms.transform3d": {
        "Transform3d": "dtype=torch.float32, device='cpu', matrix=None",
        "Transform3d.compose": "self, *others",
        "Transform3d.get_matrix": "self",
        "Transform3d.get_se3_log": "self, eps=0.0001, cos_bound=0.0001",
        "Transform3d.inverse": "self, invert_composed=False",
        "Transform3d.stack": "self, *others",
        "Transform3d.transform_points": "self, points, eps=None",
        "Transform3d.transform_normals": "self, normals",
        # pytorch3d writes (*args, **kwargs) and hands them to the class of that name
        "Transform3d.translate": "self, x, y=None, z=None",
        "Transform3d.scale": "self, x, y=None, z=None",
        "Transform3d.rotate": "self, R, orthogonal_tol=1e-05",
        "Transform3d.rotate_axis_angle": "self, angle, axis='X', degrees=True",
        "Transform3d.clone": "self",
        "Transform3d.to": "self, device, copy=False, dtype=None",
        "Transform3d.cpu": "self",
        "Transform3d.cuda": "self",
        "Transform3d.__len__": "self",
        "Transform3d.__getitem__": "self, index",
        "Translate": "x, y=None, z=None, dtype=torch.float32, device=None",
        "Scale": "x, y=None, z=None, dtype=torch.float32, device=None",
        "Rotate": "R, dtype=torch.float32, device=None, orthogonal_tol=1e-05",
        "RotateAxisAngle": "angle, axis='X', degrees=True, dtype=torch.float32, device=None",
    },
    "ops.points_alignment": {
        "SimilarityTransform": "R, T, s",
        "ICPSolution": "converged, rmse, Xt, RTs, t_history",
        "corresponding_points_alignment": (
            "X, Y, weights=None, estimate_scale=False, allow_reflection=False, eps=1e-09"
        ),
        "iterative_closest_point": (
            "X, Y, init_transform=None, max_iterations=100, relative_rmse_thr=1e-06, estimate_scale=False, "
            "allow_reflection=False, verbose=False"
        ),
    },
    "ops.knn": {
        "KNN": "dists, idx, knn",
        "knn_points": (
            "p1, p2, lengths1=None, lengths2=None, norm=2, K=1, version=-1, return_nn=False, return_sorted=True"
        ),
        "knn_gather": "x, idx, lengths=None",
    },
    "ops.ball_query": {
        "ball_query": (
            "p1, p2, lengths1=None, lengths2=None, K=500, radius=0.2, return_nn=True, skip_points_outside_cube=False"
        ),
    },
    "ops.sample_farthest_points": {
        "sample_farthest_points": "points, lengths=None, K=50, random_start_point=False",
    },
    "ops.points_normals": dict.fromkeys(
        ("estimate_pointcloud_normals", "estimate_pointcloud_local_coord_frames"),
        "pointclouds, neighborhood_size=50, disambiguate_directions=True, use_symeig_workaround=True",
    ),
    "ops.laplacian_matrices": {"cot_laplacian": "verts, faces, eps=1e-12", "laplacian": "verts, edges"},
    "ops.sample_points_from_meshes": {
        "sample_points_from_meshes": "meshes, num_samples=10000, return_normals=False, return_textures=False",
    },
    "loss.chamfer": {
        "chamfer_distance": (
            "x, y, x_lengths=None, y_lengths=None, x_normals=None, y_normals=None, weights=None, "
            "batch_reduction='mean', point_reduction='mean', norm=2, single_directional=False, abs_cosine=True"
        ),
    },
    "loss.mesh": {
        "mesh_edge_loss": "meshes, target_length=0.0",
        "mesh_laplacian_smoothing": "meshes, method='uniform'",
        "mesh_normal_consistency": "meshes",
    },
}
ROWS = [(module, name, want) for module, rows in DOCUMENTED.items() for name, want in rows.items()]


def written(function: Callable[..., Any]) -> str:
    """Names and defaults of a signature, without annotations."""
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters if p.name != "_cls")


@pytest.mark.parametrize(("module", "name", "want"), ROWS, ids=[name for _, name, _ in ROWS])
def test_signature(module: str, name: str, want: str) -> None:
    thing = import_module(f"geom.compat.pytorch3d.{module}")
    for part in name.split("."):
        thing = getattr(thing, part)
    assert written(thing) == want


def test_every_public_name_is_in_the_table() -> None:
    functions = {name for _, name, _ in ROWS if "." not in name}
    assert functions == {*transforms.__all__, *ops.__all__, *loss.__all__}
    assert all(any(hasattr(room, name) for room in (transforms, ops, loss)) for name in functions)
    methods = {name for name, thing in vars(transforms.Transform3d).items() if inspect.isfunction(thing)}
    public = {name for name in methods if not name.startswith("_")} | {"__len__", "__getitem__"}
    assert public == {name.split(".")[1] for _, name, _ in ROWS if "." in name}
