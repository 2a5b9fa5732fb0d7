"""`geom register`."""

import json
import math
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from geom.cli.outputs import Contents, check_outputs, write_outputs
from geom.errors import ConvergenceWarning, FileFormatError

if TYPE_CHECKING:
    from torch import Tensor

    from geom.registration import Registration

__all__ = ["register"]


def register(
    source: Positional[Path],
    target: Positional[Path],
    /,
    *,
    method: Literal["gicp", "vgicp", "plane", "point"] = "gicp",
    init: Path | None = None,
    voxel_size: float | None = None,
    max_distance: float | None = None,
    max_iterations: int = 30,
    robust: Literal["huber", "cauchy", "gm"] | None = None,
    out: Path | None = None,
    picture: Path | None = None,
) -> int:
    """Find the pose that lays one point cloud onto another: target ~ R source + t.

    Iterative closest points from a start that is roughly right. Prints the pose with its standard deviations.

    Args:
        source: Cloud to move (ply, pcd, npz, npy, bin, xyz ...).
        target: Cloud to move it onto.
        method: What is made small: distances between local surfaces (gicp, vgicp), to planes, or to points.
        init: Pose to start from, a JSON file: four rows of four numbers, or an earlier --out; else the identity.
        voxel_size: Edge of the cells the clouds are thinned to first, metres; else from the clouds.
        max_distance: Farthest a point may be from its partner, metres; else from the clouds.
        max_iterations: Most iterations.
        robust: Loss that gives wrong partners less weight (gm: Geman-McClure); else squares.
        out: File for the pose, its covariance (v, omega; metres, radians) and how well it fits, as JSON.
        picture: File for a picture of the clouds before and after, as PNG.
    """
    check_outputs((out, picture), inputs=filter(None, (source, target, init)))
    import torch

    from geom.cli.poses import read_pose
    from geom.lie import Rigid
    from geom.registration import icp

    start = None if init is None else Rigid.from_matrix(read_pose(init))
    clouds = [_cloud(path) for path in (source, target)]
    dtype = torch.promote_types(*(cloud.dtype for cloud in clouds))
    clouds = [cloud.to(dtype) for cloud in clouds]
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told below
        found = icp(
            *clouds,
            init=start,
            method=method,
            max_distance=max_distance,
            voxel_size=voxel_size,
            max_iterations=max_iterations,
            robust=robust,
        )
    record = _record(found, time.perf_counter() - begin)
    contents: Contents = {}
    if out is not None:
        contents[out] = _to_json(record)
    if picture is not None:
        from geom.demo.pictures import before_after

        before = Rigid.identity(dtype=torch.float64) if start is None else start
        contents[picture] = before_after(*clouds, before=before, after=found.value)
    print(_report(record))
    write_outputs(contents)
    return 0


def _cloud(path: Path) -> "Tensor":
    from geom.io import load
    from geom.points import Points

    found = load(path)
    if not isinstance(found, Points):
        raise FileFormatError(path, "expected a point cloud, got a mesh; sample points from it first")
    if len(found) != 1:
        raise FileFormatError(path, f"expected one cloud, got a batch of {len(found)}")
    return found.positions


def _record(found: "Registration", seconds: float) -> dict[str, Any]:
    """The registration as JSON data; numbers that are not finite become null."""

    def plain(x: Any) -> Any:
        if isinstance(x, list):
            return [plain(item) for item in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    tensors = ("T_target_source", "information", "covariance", "rmse", "overlap", "converged", "iterations")
    return {
        **{name: plain(getattr(found, name).tolist()) for name in (*tensors, "degenerate_directions")},
        "voxel_size": plain(found.voxel_size),
        "max_distance": plain(found.max_distance),
        "method": found.method,
        "seconds": round(seconds, 4),
    }


def _to_json(record: dict[str, Any]) -> str:
    """One key a line, one row of a matrix a line."""

    def rows(x: Any) -> str:
        if isinstance(x, list) and x and isinstance(x[0], list):
            return "[\n" + ",\n".join(f"  {rows(row)}" for row in x) + "\n ]"
        return json.dumps(x, allow_nan=False)

    return "{\n" + ",\n".join(f" {json.dumps(name)}: {rows(x)}" for name, x in record.items()) + "\n}\n"


def _report(record: dict[str, Any]) -> str:
    T = record["T_target_source"]
    cosine = (T[0][0] + T[1][1] + T[2][2] - 1) / 2
    sine = math.hypot(T[2][1] - T[1][2], T[0][2] - T[2][0], T[1][0] - T[0][1]) / 2
    deviations = [math.nan if row[i] is None else math.sqrt(row[i]) for i, row in enumerate(record["covariance"])]
    degrees = [math.degrees(x) for x in deviations[3:]]
    free = len(record["degenerate_directions"])
    return "\n".join(
        [
            "T_target_source",
            *("  " + " ".join(f"{x:13.8f}" for x in row) for row in T),
            f"rotation       {math.degrees(math.atan2(sine, cosine)):.4f} deg",
            f"translation    {_triple([row[3] for row in T[:3]])} m",
            f"std. deviation {_triple(deviations[:3], '.2g')} m, {_triple(degrees, '.2g')} deg, along and about the "
            "source's axes",
            f"rmse           {record['rmse']:.4g} m over {record['overlap']:.1%} of the source",
            f"settings       {record['method']}, voxels of {record['voxel_size']:.4g} m, partners within "
            f"{record['max_distance']:.4g} m",
            f"{'converged' if record['converged'] else 'NOT CONVERGED'} after {record['iterations']} iterations, "
            f"{record['seconds']:.2f} s" + (f"; {free} of 6 directions are not held by the data" if free else ""),
        ]
    )


def _triple(numbers: list[float], form: str = ".4f") -> str:
    return f"({', '.join(format(x, form) for x in numbers)})"
