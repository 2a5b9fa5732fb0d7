"""Linear blend skinning: each vertex moves by the weighted mean of its bones' matrices; normals go with the surface."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_shape
from geom.meshes.geometry import unit
from geom.skinning.influences import blend, check_influences, deformer, flatten_poses

__all__ = ["lbs", "skin_normals"]


def lbs(
    vertices: Float[Tensor, "*a v 3"],
    weights: Float[Tensor, "v k"],
    bones: Float[Tensor, "*b j 3 4"],
    *,
    indices: Int64[Tensor, "v k"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*c v 3"]:
    """Linear blend skinning: v' = M (v, 1), M = sum_k w_k T_k over the bones of each vertex.

    One kernel blends and moves; its adjoint sums what bones get over blocks of vertices, in float64 over blocks, so
    that no bits hang on the number of threads. Derivatives of derivatives are the torch twin's.

    Args: vertices (V, 3) at rest, or (..., V, 3), each pose its own; weights (V, J), or (V, K) for the bones that
    `indices` name, rows of sum 1 (not checked: a vertex is scaled by the sum); bones (..., J, 3, 4), the top rows of
    posed_world @ inverse_bind, any affine maps; indices (V, K) int64 in [0, J); backend "auto", "warp" or "torch".
    Returns: (..., V, 3), the batches of vertices and bones broadcast.
    Raises: ShapeError.
    Magnenat-Thalmann, Laperriere & Thalmann 1988.

    >>> bones = torch.eye(3, 4).repeat(2, 1, 1)
    >>> bones[1, 2, 3] = 1.0  # the second bone goes up by 1
    >>> lbs(torch.zeros(2, 3), torch.tensor([[1.0, 0.0], [0.5, 0.5]]), bones)[:, 2].tolist()
    [0.0, 0.5]

    Guarantees: differentiable; deterministic; 1e-15 f64, 4e-7 f32 of the lengths involved
    """
    from geom.kernels import bridge

    check_influences(vertices, weights, bones, (3, 4), indices)
    rows = torch.nn.functional.pad(bones.mT, (0, 1)).flatten(-2)  # the columns of [A | t], each filled up to four
    batch, vertices, rows = flatten_poses(vertices, rows)
    run = _kernel if bridge.choose(backend, vertices, weights, rows) else _twin
    return run(vertices, weights, indices, rows).reshape(*batch, *vertices.shape[-2:])


def _twin(vertices: Tensor, weights: Tensor, indices: Tensor | None, rows: Tensor) -> Tensor:
    x, y, z, t = blend(weights, rows, indices).unflatten(-1, (4, 4))[..., :3].unbind(-2)
    return x * vertices[..., :1] + y * vertices[..., 1:2] + z * vertices[..., 2:] + t


_kernel = deformer("lbs", _twin)


def skin_normals(
    normals: Float[Tensor, "*a v 3"],
    weights: Float[Tensor, "v k"],
    bones: Float[Tensor, "*b j 3 4"],
    *,
    indices: Int64[Tensor, "v k"] | None = None,
) -> Float[Tensor, "*c v 3"]:
    """Normals of a surface that `lbs` moves: cof(M) n to unit length, M = sum_k w_k A_k, cof(M) = det(M) M^-T.

    What vectors of area become under M, exact for any M, singular and mirrored ones included; the change of the
    weights along the surface is left out. A normal that the cofactor maps to zero gives zero, with zero gradient.

    Args: as `lbs`, with normals of the rest shape, of any length, for vertices.
    Returns: (..., V, 3), of length 1 or 0.
    Raises: ShapeError.

    >>> flat = torch.diag(torch.tensor([1.0, 1.0, 0.5]))  # half the height: normals rise
    >>> bones = torch.cat([flat, torch.zeros(3, 1)], -1)[None]
    >>> skin_normals(torch.tensor([[0.6, 0.0, 0.4]]), torch.ones(1, 1), bones)
    tensor([[0.6000, 0.0000, 0.8000]])

    Guarantees: differentiable; deterministic; 1e-15 f64, 5e-7 f32 times the condition number of M
    """
    check_influences(normals, weights, check_shape(bones, (3, 4), "bones"), (3, 4), indices, "normals")
    columns = bones[..., :3].mT.flatten(-2)
    batch, normals, columns = flatten_poses(normals, columns)
    a, b, c = blend(weights, columns, indices).unflatten(-1, (3, 3)).unbind(-2)
    x, y, z = (torch.linalg.cross(p, q) for p, q in ((b, c), (c, a), (a, b)))
    return unit(x * normals[..., :1] + y * normals[..., 1:2] + z * normals[..., 2:]).reshape(
        *batch, *normals.shape[-2:]
    )
