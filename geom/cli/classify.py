"""`geom classify`."""

import json
from pathlib import Path

from tyro.conf import Positional

from geom.cli.outputs import check_outputs, write_outputs
from geom.errors import ShapeError

__all__ = ["classify"]


def classify(cloud: Positional[Path], /, *, out: Path | None = None, seed: int = 0) -> int:
    """Name the shape of a cloud: chair, monitor, ball, cylinder, cone or ring, with probabilities.

    Any other shape gets one of these names all the same.

    Args:
        cloud: Points of one shape, or a mesh, whose surface is sampled; z up, in any unit (ply, pcd, npz, obj, glb
            ...).
        out: File for the probabilities, as JSON.
        seed: Of the points that are drawn.
    """
    check_outputs((out,), inputs=(cloud,))
    import torch

    from geom.io import load
    from geom.meshes import Mesh, sample_surface
    from geom.points import Points
    from geom.sequence.classification import classify as name_shape

    loaded = load(cloud)
    if isinstance(loaded, Mesh) and len(loaded.faces):
        loaded = Points(sample_surface(loaded, 4096, generator=torch.Generator().manual_seed(seed)).points)
    elif isinstance(loaded, Mesh):
        loaded = Points(loaded.vertices)
    if len(loaded) != 1:
        raise ShapeError(f"{cloud.name}: expected one cloud, got a batch of {len(loaded)}")
    found = name_shape(loaded, seed=seed)
    for name, probability in found.items():
        print(f"{name:10} {probability:.3f}")
    if out is not None:
        report = {"file": cloud.name, "probabilities": {name: round(p, 6) for name, p in found.items()}}
        write_outputs({out: json.dumps(report, indent=2) + "\n"})
    return 0
