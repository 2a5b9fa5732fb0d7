"""Runs in a process of its own: opens a USD stage with pxr and writes its meshes as .npz to standard output.

A broken file can end or stall the process that pxr runs in, so that `geom.io.usd` starts this file as a script, with
the path of the stage and a limit on memory (bytes). It imports nothing of geom.
"""

# pyright: reportAttributeAccessIssue=false
# (pxr has no types)

import io
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def main(path: str, memory: int) -> None:
    """Write meshes as arrays `{kind}{number}`: points, counts, indices, left, matrix; normals, colors if there are."""
    out = os.dup(1)
    os.dup2(2, 1)  # what pxr prints is not data
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ImportError, ValueError, OSError):  # no such limit on this system
        pass
    from pxr import Tf, Usd, UsdGeom

    try:
        stage = Usd.Stage.Open(path)
        time = Usd.TimeCode.EarliestTime()
        cache, arrays = UsdGeom.XformCache(time), {}
        walk = Usd.PrimRange(stage.GetPseudoRoot(), Usd.TraverseInstanceProxies(Usd.PrimDefaultPredicate))
        meshes = (UsdGeom.Mesh(prim) for prim in walk if prim.IsA(UsdGeom.Mesh))
        for number, mesh in enumerate(meshes):
            for name, array in _arrays(UsdGeom, mesh, time).items():
                arrays[f"{name}{number}"] = array
            arrays[f"matrix{number}"] = np.array(cache.GetLocalToWorldTransform(mesh.GetPrim())).T
    except (Tf.ErrorException, RuntimeError) as error:
        sys.exit(f"USD: {str(error).strip().splitlines()[-1][:200] if str(error).strip() else 'no stage'}")
    file = io.BytesIO()
    np.savez(file, **arrays)
    with os.fdopen(out, "wb") as pipe:
        pipe.write(file.getvalue())


def _arrays(geometry: Any, mesh: Any, time: Any) -> dict[str, NDArray[Any]]:
    """Points, polygons and what each vertex has; corners turned where the mesh is left-handed."""
    empty = np.empty((0, 3), np.float32)
    points = np.array(mesh.GetPointsAttr().Get(time) or empty, np.float32).reshape(-1, 3)
    counts = np.array(mesh.GetFaceVertexCountsAttr().Get(time) or (), np.int64)
    found = {"points": points, "counts": counts}
    found["indices"] = np.array(mesh.GetFaceVertexIndicesAttr().Get(time) or (), np.int64)
    found["left"] = np.array(mesh.GetOrientationAttr().Get(time) == geometry.Tokens.leftHanded)
    normals, per = mesh.GetNormalsAttr().Get(time), mesh.GetNormalsInterpolation()
    if normals and per in (geometry.Tokens.vertex, geometry.Tokens.varying):
        found["normals"] = np.array(normals, np.float32)
    primvar = mesh.GetDisplayColorPrimvar()
    colors, per = primvar.ComputeFlattened(time), primvar.GetInterpolation()
    if colors and per in (geometry.Tokens.vertex, geometry.Tokens.varying):
        found["colors"] = np.array(colors, np.float32)
    elif colors and per == geometry.Tokens.constant and len(colors) == 1:
        found["colors"] = np.repeat(np.array(colors, np.float32), len(points), axis=0)
    return found


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
