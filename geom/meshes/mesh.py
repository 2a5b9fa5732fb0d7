"""`Mesh`: triangles over shared vertices."""

from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_field, check_indices, check_points
from geom.values import Value, value

__all__ = ["Mesh"]


@value
class Mesh(Value):
    """A triangle mesh.

    Fields: `vertices` (V, 3) float32 or float64, metres; `faces` (F, 3) int64, counter-clockwise seen from outside,
    each index in [0, V); `normals` (V, 3) same dtype or None; `colors` (V, 3) float32 in [0, 1] or None.

    Raises: ShapeError where a field has the wrong shape or dtype, or a face names a vertex that is not there.

    >>> import torch
    >>> Mesh(torch.rand(3, 3), torch.tensor([[0, 1, 2]])).faces.shape
    torch.Size([1, 3])
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int64[Tensor, "f 3"]
    normals: Float[Tensor, "v 3"] | None = None
    colors: Float[Tensor, "v 3"] | None = None

    def __post_init__(self) -> None:
        count = check_points(self.vertices, "vertices", finite=False).shape[0]
        check_indices(self.faces, 3, count, "faces", "F")
        for name in ("normals", "colors"):
            check_field(getattr(self, name), (count, 3), name)
