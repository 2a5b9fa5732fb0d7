"""`geom serialize`."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from geom.cli.outputs import check_outputs, write_outputs
from geom.errors import FileFormatError, ShapeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from geom.points import Points

__all__ = ["serialize"]

_SUFFIXES = (".npz", ".ply", ".pcd", ".xyz", ".npy", ".bin")
_DRAWN = 20_000  # points of a curve in a picture, beyond which every second or third is drawn


def serialize(
    cloud: Positional[Path],
    /,
    *,
    order: tuple[str, ...] = ("hilbert",),
    grid_size: float | None = None,
    out: Path | None = None,
    picture: Path | None = None,
) -> int:
    """Sort a cloud along a curve through space, and say how far it is from point to point.

    Orders: hilbert, morton, and the traverses xyz, xzy, yxz, yzx, zxy, zyx (first letter fastest), each of which walks
    through the cells of a grid; hilbert-transposed and morton-transposed exchange x and y.

    Args:
        cloud: Points, or a mesh's vertices (ply, pcd, npz, bin, obj ...).
        order: Which curve; of several, the first sorts what is written, and all are compared.
        grid_size: Edge of a cell, in the unit of the points; three times their spacing if not given.
        out: File for the points in their new order, with all they came with (ply, pcd, xyz, npy, bin); in an npz also
            `order`, the place each had before, `inverse` and `code`, a row for each curve, and the cells' `edge`.
        picture: File for a picture of the points and the curve from violet to yellow, as PNG.
    """
    check_outputs((out, picture), inputs=(cloud,))
    if out is not None and out.suffix.lower() not in _SUFFIXES:
        raise FileFormatError(out, f"unknown suffix {out.suffix!r}: expected one of {', '.join(_SUFFIXES)}")
    if not order:
        raise ShapeError("order: expected at least one name, got none")
    from geom.files import write_atomically
    from geom.io import load_points, save_points
    from geom.points import serialize as sort
    from geom.sequence.order_locality import locality

    points = load_points(cloud)
    if len(points) != 1:
        raise ShapeError(f"{cloud.name}: expected one cloud, got a batch of {len(points)}")
    report = locality(points, orders=order, grid_size=grid_size)
    row = sort(points, order=order, grid_size=report.grid_size)
    print(f"{len(points.positions)} points\n{report}")
    ordered = _take(points, row.order[0])
    if out is not None and out.suffix.lower() == ".npz":
        fields = {"order": row.order, "inverse": row.inverse, "code": row.code}
        write_atomically(out, _archive(ordered, fields, report.grid_size))
        print(f"wrote {out}")
    elif out is not None:
        save_points(ordered, out)
        print(f"wrote {out}")
    if picture is not None:
        write_outputs({picture: _picture(ordered.positions)})
    return 0


def _take(points: "Points", rows: "Tensor") -> "Points":
    from dataclasses import fields, replace

    found = {f.name: getattr(points, f.name) for f in fields(points) if f.name != "offsets"}
    return replace(points, offsets=None, **{name: x[rows] for name, x in found.items() if x is not None})


def _archive(points: "Points", orders: "dict[str, Tensor]", edge: float) -> bytes:
    from dataclasses import fields

    import numpy as np

    found = {f.name: getattr(points, f.name) for f in fields(points)} | orders
    arrays = {name: x.numpy() for name, x in found.items() if x is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **{"edge": np.float64(edge), **arrays})
    return buffer.getvalue()


def _picture(positions: "Tensor") -> "npt.NDArray[np.uint8]":
    """The curve through the points in their order, from the front right above."""
    import torch

    from geom.viz import Lines, View, render
    from geom.viz.colors import colormap

    if len(positions) < 2:
        raise ShapeError(f"picture: expected at least 2 points, got {len(positions)}")
    ends = positions[:: 1 + len(positions) // _DRAWN].float()
    place = torch.arange(len(ends))
    colors = torch.from_numpy(colormap(place.double().numpy(), low=0, high=len(ends)))
    line = Lines(ends, torch.stack([place[:-1], place[1:]], -1), 0.2 + 0.8 * colors)
    return render(line, view=View(size=(900, 700), background=(0.06, 0.07, 0.10)))
