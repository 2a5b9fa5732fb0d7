"""What open3d runs: geometries from arrays, and one picture in a process of its own (see `filament`).

The process gets this file's text, so it imports open3d and numpy only and starts without torch.
"""

import sys
from typing import Any

import numpy as np


def geometry(kind: str, positions: Any, colors: Any, index: Any = None, normals: Any = None) -> tuple[Any, str]:
    """An open3d geometry and the name of the shader that draws it: lit where a mesh has normals."""
    import open3d as o3d

    vectors, places = o3d.utility.Vector3dVector, o3d.utility.Vector3dVector(np.asarray(positions, np.float64))
    if kind == "points":
        cloud = o3d.geometry.PointCloud(places)
        cloud.colors = vectors(np.asarray(colors, np.float64))
        return cloud, "defaultUnlit"
    if kind == "lines":
        lines = o3d.geometry.LineSet(places, o3d.utility.Vector2iVector(index))
        lines.colors = vectors(np.asarray(colors[index].mean(1), np.float64))  # open3d has one colour for a segment
        return lines, "unlitLine"
    both = np.concatenate([index, index[:, ::-1]]) if normals is None else index  # open3d draws front faces only
    mesh = o3d.geometry.TriangleMesh(places, o3d.utility.Vector3iVector(both))
    mesh.vertex_colors = vectors(np.asarray(colors, np.float64))
    # Without texture coordinates the shader reads whatever lies there, and llvmpipe's filter may loop for ever on it;
    # where they are equal, open3d merges the vertices that stand in one place, and with them the creases.
    own = both.ravel() / len(positions)
    mesh.triangle_uvs = o3d.utility.Vector2dVector(np.stack([own, 0 * own], -1))
    if normals is not None:
        mesh.vertex_normals = vectors(np.asarray(normals, np.float64))
    return mesh, "defaultUnlit" if normals is None else "defaultLit"


def draw(job: Any) -> tuple[Any, Any]:
    """The picture (H, W, 3) uint8 and its depths (H, W) float32, inf where nothing was drawn."""
    import open3d as o3d

    rendering = o3d.visualization.rendering
    width, height = job["size"].tolist()
    renderer = rendering.OffscreenRenderer(width, height)
    stage = renderer.scene
    stage.view.set_post_processing(False)  # its tone mapping would tint the white
    # nothing here is lit or smoothed by open3d, yet on a CPU that takes most of its time
    stage.set_lighting(stage.LightingProfile.NO_SHADOWS, [0.0, 0.0, -1.0])
    stage.scene.enable_sun_light(False)
    stage.scene.enable_indirect_light(False)
    stage.view.set_shadowing(False)
    stage.view.set_sample_count(1)
    stage.view.set_antialiasing(False)
    stage.set_background([*job["background"].tolist(), 1.0])
    for i, kind in enumerate(job["kinds"].tolist()):
        shape, shader = geometry(kind, job[f"positions{i}"], job[f"colors{i}"], job.get(f"index{i}"))
        material = rendering.MaterialRecord()
        material.shader = shader
        material.point_size, material.line_width = job["point_size"].item(), job["line_width"].item()
        stage.add_geometry(str(i), shape, material)
    near, far = job["range"].tolist()
    lens = rendering.Camera.FovType.Vertical
    stage.camera.set_projection(job["fov_degrees"].item(), width / height, near, far, lens)
    stage.camera.look_at(job["target"], job["eye"], job["up"])
    image = np.asarray(renderer.render_to_image()).copy()
    return image, np.asarray(renderer.render_to_depth_image(True)).copy()


if __name__ == "__main__":
    with np.load(sys.argv[1]) as file:
        picture, depths = draw(dict(file))
    np.savez(sys.argv[2], image=picture, depth=depths)
