"""`Mesh`: triangles over shared vertices."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_points, describe
from geom.errors import ShapeError
from geom.values import Value, value

__all__ = ["Mesh"]


@value
class Mesh(Value):
    """A triangle mesh.

    Fields: `vertices` (V, 3) float32 or float64, metres; `faces` (F, 3) int64, counter-clockwise seen from outside,
    each index in [0, V); `normals` (V, 3) same dtype or None; `colors` (V, 3) float32 in [0, 1] or None.

    Raises: ShapeError where a field has the wrong shape or dtype, or a face names a vertex that is not there.

    >>> Mesh(torch.rand(3, 3), torch.tensor([[0, 1, 2]])).faces.shape
    torch.Size([1, 3])
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int64[Tensor, "f 3"]
    normals: Float[Tensor, "v 3"] | None = None
    colors: Float[Tensor, "v 3"] | None = None

    def __post_init__(self) -> None:
        count = check_points(self.vertices, "vertices", finite=False).shape[0]
        faces = self.faces
        if not isinstance(faces, Tensor) or faces.dtype != torch.int64 or faces.ndim != 2 or faces.shape[1] != 3:
            raise ShapeError(f"faces: expected an int64 tensor (F, 3), got {describe(faces)}")
        if faces.numel() and (int(faces.min()) < 0 or int(faces.max()) >= count):
            raise ShapeError(f"faces: expected indices in [0, {count}), got {int(faces.min())} to {int(faces.max())}")
        for name in ("normals", "colors"):
            field = getattr(self, name)
            if field is not None and not (
                isinstance(field, Tensor) and field.is_floating_point() and field.shape == (count, 3)
            ):
                raise ShapeError(f"{name}: expected a float tensor {(count, 3)}, got {describe(field)}")
