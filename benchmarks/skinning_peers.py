"""Skinned vertices in geom, in the forms that are written in torch, and by libigl's matrix of blended vertices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import Library, Operation

__all__ = ["Given", "geom", "libigl", "torch_bag", "torch_dense", "torch_gather"]

Array = NDArray[np.float32]
GRADIENT = "with gradient"


class Given(NamedTuple):
    """Vertices (V, 3), weights (V, K) and indices (V, K), the same weights dense (V, J), rigid bones (J, 3, 4) and
    their dual quaternions (J, 8), and what the result's gradient is (V, 3).

    Operations are read as a list of the vertices (V, 3), or of the gradients of weights and bones.
    """

    vertices: Array
    weights: Array
    indices: NDArray[np.int64]
    dense: Array
    bones: Array
    motions: Array
    grad: Array


def geom(given: Given, device: str) -> Library:
    from geom.skinning.dual_quaternion import dqs
    from geom.skinning.linear import lbs

    vertices, weights, indices, dense, bones, _, grad = _tensors(given, device)
    return {
        **_operations("LBS", lambda w, b: lbs(vertices, w, b, indices=indices), weights, bones, grad),
        **_operations("LBS, dense weights", lambda w, b: lbs(vertices, w, b), dense, bones, grad),
        **_operations("DQS", lambda w, b: dqs(vertices, w, b, indices=indices), weights, bones, grad),
        **_operations("DQS, dense weights", lambda w, b: dqs(vertices, w, b), dense, bones, grad),
    }


def torch_gather(given: Given, device: str) -> Library:
    """Every vertex's bones side by side, (V, K, 12) or (V, K, 8) numbers."""
    import torch

    vertices, weights, indices, _, bones, motions, grad = _tensors(given, device)

    def matrices(w: Any, b: Any) -> Any:
        return _apply((w[..., None] * b.flatten(1)[indices]).sum(1), vertices)

    def screws(w: Any, q: Any) -> Any:
        each = q[indices]
        pivot = each[torch.arange(len(each)), w.argmax(1)]
        sign = torch.where((each[..., :4] * pivot[:, None, :4]).sum(-1) < 0, -w, w)
        return _screw((sign[..., None] * each).sum(1), vertices)

    return {
        **_operations("LBS", matrices, weights, bones, grad),
        **_operations("DQS", screws, weights, motions, grad),
    }


def torch_dense(given: Given, device: str) -> Library:
    """A matrix product with the weights of every bone, (V, J)."""
    vertices, _, _, dense, bones, motions, grad = _tensors(given, device)

    def matrices(w: Any, b: Any) -> Any:
        return _apply(w @ b.flatten(1), vertices)

    def screws(w: Any, q: Any) -> Any:
        real = q[:, :4]
        return _screw((w * (real[w.argmax(1)] @ real.T).sign()) @ q, vertices)

    return {
        **_operations("LBS", matrices, dense, bones, grad),
        **_operations("LBS, dense weights", matrices, dense, bones, grad),
        **_operations("DQS, dense weights", screws, dense, motions, grad),
    }


def torch_bag(given: Given, device: str) -> Library:
    """embedding_bag, which sums weighted rows without writing them out."""
    from torch.nn.functional import embedding_bag

    vertices, weights, indices, _, bones, _, grad = _tensors(given, device)

    def matrices(w: Any, b: Any) -> Any:
        return _apply(embedding_bag(indices, b.flatten(1), per_sample_weights=w, mode="sum"), vertices)

    return _operations("LBS", matrices, weights, bones, grad)


def libigl(given: Given, device: str) -> Library:
    """Its matrix (V, 4 J) of weighted vertices, made ahead, times the bones."""
    import igl

    matrix = igl.lbs_matrix(given.vertices.astype(np.float64), given.dense.astype(np.float64))
    bones = given.bones.astype(np.float64)

    def call() -> NDArray[np.float64]:
        return matrix @ bones.transpose(0, 2, 1).reshape(-1, 3)

    return {"LBS": Operation(call, lambda found: [found]), "LBS, dense weights": Operation(call, lambda found: [found])}


def _tensors(given: Given, device: str) -> list[Any]:
    import torch

    return [torch.from_numpy(x).to(device) for x in given]


def _operations(name: str, deform: Callable[[Any, Any], Any], weights: Any, bones: Any, grad: Any) -> Library:
    """`deform` alone, and with the gradients of weights and bones."""
    import torch

    w, b = weights.clone().requires_grad_(), bones.clone().requires_grad_()
    return {
        name: Operation(lambda: deform(weights, bones), lambda found: [_numbers(found)]),
        f"{name}, {GRADIENT}": Operation(
            lambda: torch.autograd.grad(deform(w, b), (w, b), grad), lambda found: [_numbers(x) for x in found]
        ),
    }


def _numbers(x: Any) -> NDArray[np.float64]:
    return x.detach().double().cpu().numpy()


def _apply(rows: Any, x: Any) -> Any:
    """Matrices (V, 12), rows first, on vertices."""
    matrix = rows.view(-1, 3, 4)
    return (matrix[..., :3] * x[:, None]).sum(-1) + matrix[..., 3]


def _screw(b: Any, x: Any) -> Any:
    """Blended dual quaternions (V, 8) on vertices (Kavan et al. 2008, Alg. 1)."""
    import torch

    b = b / b[:, :4].norm(dim=1, keepdim=True)
    w, r, e, d = b[:, :1], b[:, 1:4], b[:, 4:5], b[:, 5:]
    inner = torch.linalg.cross(r, torch.linalg.cross(r, x) + w * x)
    return x + 2 * (inner + w * d - e * r + torch.linalg.cross(r, d))
