"""What deformers share: checks of weights and bones, blended rows, and kernels as differentiable operators."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geom.checks import FLOATS, check_same, describe, readable
from geom.errors import ShapeError

__all__ = ["blend", "check_influences", "deformer", "flatten_poses"]

Twin = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


def blend(weights: Tensor, rows: Tensor, indices: Tensor | None) -> Tensor:
    """sum_k w_k x_k (..., V, C) of the bones' rows (..., J, C); weights (V, K), or (..., V, K), each pose its own."""
    if indices is None:
        return weights @ rows
    return (weights[..., None] * rows[..., indices, :]).sum(-2)


def check_influences(
    vertices: object,
    weights: object,
    bones: object,
    own: tuple[int, ...],
    indices: object,
    name: str = "vertices",
    other: str = "bones",
) -> None:
    """Raise ShapeError unless these are vertices (..., V, 3), weights, bones (..., J, *own) and indices that match."""
    if not isinstance(vertices, Tensor) or vertices.dtype not in FLOATS or vertices.ndim < 2 or vertices.shape[-1] != 3:
        raise ShapeError(f"{name}: expected a float32 or float64 tensor (..., V, 3), got {describe(vertices)}")
    if not isinstance(bones, Tensor) or bones.ndim <= len(own) or bones.shape[bones.ndim - len(own) :] != own:
        raise ShapeError(f"{other}: expected a tensor (..., J, {', '.join(map(str, own))}), got {describe(bones)}")
    count, joints = vertices.shape[-2], bones.shape[-1 - len(own)]
    if not isinstance(weights, Tensor) or weights.ndim != 2 or weights.shape[0] != count or not weights.shape[1]:
        raise ShapeError(f"weights: expected a tensor ({count}, K), K >= 1, got {describe(weights)}")
    check_same(weights, vertices, f"weights and {name}")
    check_same(bones, vertices, f"{other} and {name}")
    if indices is None:
        if weights.shape[1] != joints:
            raise ShapeError(f"weights: expected ({count}, {joints}), one for each bone, got {describe(weights)}")
        return
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.shape != weights.shape:
        raise ShapeError(f"indices: expected an int64 tensor {tuple(weights.shape)}, got {describe(indices)}")
    if readable(indices) and indices.numel():
        least, most = (int(x) for x in torch.aminmax(indices))
        if least < 0 or most >= joints:
            raise ShapeError(f"indices: expected bones in [0, {joints}), got {least} to {most}")


def flatten_poses(vertices: Tensor, rows: Tensor) -> tuple[torch.Size, Tensor, Tensor]:
    """The batch of poses, vertices (1 or B, V, 3) and rows (B, J, C), of (..., V, 3) and (..., J, C) that broadcast."""
    try:
        batch = torch.broadcast_shapes(vertices.shape[:-2], rows.shape[:-2])
    except RuntimeError:
        raise ShapeError(
            f"vertices and bones: expected batches that broadcast, got {tuple(vertices.shape[:-2])} and "
            f"{tuple(rows.shape[:-2])}"
        ) from None
    rows = rows.expand(*batch, *rows.shape[-2:]).reshape(batch.numel(), *rows.shape[-2:])
    if vertices.ndim == 2:
        return batch, vertices[None], rows
    return batch, vertices.expand(*batch, *vertices.shape[-2:]).reshape(batch.numel(), *vertices.shape[-2:]), rows


def deformer(name: str, twin: Twin) -> Any:
    """The kernel `name` of `geom.kernels.skinning`, with its adjoint, as an operator of the twin's signature:

    vertices (1 or B, V, 3), weights (V, K), indices (V, K) or None, rows (B, J, 16) -> (B, V, 3). Derivatives of
    derivatives are the twin's.
    """

    def forward(vertices: Tensor, weights: Tensor, indices: Tensor | None, rows: Tensor) -> Tensor:
        from geom.kernels import skinning

        return skinning.deform(name, vertices, weights, indices, rows)

    def back(
        grad: Tensor, vertices: Tensor, weights: Tensor, indices: Tensor | None, rows: Tensor, wanted: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        from geom.kernels import skinning

        return skinning.deform_adjoint(name, grad, vertices, weights, indices, rows, wanted)

    schema = "Tensor vertices, Tensor weights, Tensor? indices, Tensor rows"
    run = torch.library.custom_op(f"geom::{name}", forward, mutates_args=(), schema=f"({schema}) -> Tensor")
    adjoint = torch.library.custom_op(
        f"geom::{name}_adjoint",
        back,
        mutates_args=(),
        schema=f"(Tensor grad, {schema}, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    )

    @run.register_fake
    def _(vertices: Tensor, weights: Tensor, indices: Tensor | None, rows: Tensor) -> Tensor:
        return vertices.new_empty((rows.shape[0], *vertices.shape[1:]))

    @adjoint.register_fake
    def _(
        grad: Tensor, vertices: Tensor, weights: Tensor, indices: Tensor | None, rows: Tensor, wanted: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = [x.new_empty(x.shape if want else 0) for x, want in zip((vertices, weights, rows), wanted, strict=True)]
        return grads[0], grads[1], grads[2]

    def keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        vertices, weights, indices, rows = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
        if torch.is_grad_enabled():
            operands = [x.view_as(x) for x in (vertices, weights, rows)]
            chosen = [x for x, want in zip(operands, wanted, strict=True) if want]
            result = twin(operands[0], operands[1], indices, operands[2])
            found = iter(torch.autograd.grad(result, chosen, grad, create_graph=True))
            grads = [next(found) if want else None for want in wanted]
        else:
            found = adjoint(grad, vertices, weights, indices, rows, wanted)
            grads = [x if want else None for x, want in zip(found, wanted, strict=True)]
        return grads[0], grads[1], None, grads[2]

    run.register_autograd(backward, setup_context=keep)
    return run
