"""Convolution of sparse voxels over a `KernelMap`, with derivatives of any order."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_same, describe
from geom.errors import ShapeError
from geom.nn.kernel_map import KernelMap

__all__ = ["sparse_conv"]


def sparse_conv(
    features: Float[Tensor, "n c_in"],
    weight: Float[Tensor, "k c_in c_out"],
    kernel_map: KernelMap,
    *,
    bias: Float[Tensor, " c_out"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "m c_out"]:
    """Convolution over the voxels that are there: y_o = sum_k x_{n(k, o)} W_k + b, absent neighbours left out.

    As torch.nn.functional.conv3d, a correlation: what a dense convolution gives where absent voxels are 0. Element k is
    (k_x K_y + k_y) K_z + k_z: a dense weight (C_out, C_in, K_x, K_y, K_z) becomes `w.permute(2, 3, 4, 1, 0).reshape(K,
    C_in, C_out)`, and one of spconv (C_out, k, k, k, C_in), whose grids have columns (z, y, x),
    `w.permute(3, 2, 1, 4, 0).reshape(K, C_in, C_out)`, or with (1, 2, 3, 4, 0) where `grid` keeps those columns.

    On the CPU a kernel takes the outputs block by block, and gathers the inputs of each element into tiles of a matrix
    product; "auto" on CUDA takes torch's products, one for each element. Gradients are such convolutions too, over the
    transposed map, and so are theirs: nothing is added in an order that threads decide.

    Args: features (N, C_in) of the map's source, float32 or float64; weight (K, C_in, C_out); kernel_map; bias (C_out,)
    or None, all of one dtype and device; backend "auto", "warp" or "torch".
    Returns: (M, C_out), of the map's target.
    Raises: ShapeError.

    >>> from geom.nn import Voxels, submanifold_map
    >>> row = Voxels(torch.tensor([[0, 0, 0], [0, 0, 1]]), torch.tensor([[1.0], [10.0]]))
    >>> along = submanifold_map(row, kernel_size=(1, 1, 3))
    >>> sparse_conv(row.features, torch.tensor([1.0, 2, 3]).reshape(3, 1, 1), along).flatten().tolist()
    [32.0, 21.0]

    Guarantees: differentiable; deterministic; 1e-15 f64, 4e-7 f32 of the greatest output
    """
    from geom.kernels import bridge

    _check(features, weight, kernel_map, bias)
    if bridge.choose(backend, features, weight):
        out = _convolve(features, weight, kernel_map.neighbors, kernel_map.transposed)
        return out if bias is None else out.add_(bias)
    out = _convolve_by_torch(features, weight, kernel_map.neighbors)
    return out if bias is None else out + bias


def _convolve_by_torch(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    padded = torch.cat([features, features.new_zeros((1, features.shape[1]))])  # entry -1 is a row of zeros
    out = features.new_zeros((table.shape[1], weight.shape[2]))
    for w, rows in zip(weight.unbind(), table.long().unbind(), strict=True):
        out = out + padded[rows] @ w
    return out


def _weigh_by_torch(features: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    padded = torch.cat([features, features.new_zeros((1, features.shape[1]))])
    return torch.stack([padded[rows].mT @ grad for rows in table.long().unbind()])


# The form T(x, W, y) = sum_ko y_o . (x_n(k, o) W_k) is linear in each argument. Its derivative in y is the convolution,
# that in x the convolution of y over the transposed map with transposed weights, and that in W the sum of outer
# products: two operations, closed under differentiation.


@torch.library.custom_op(
    "geom::sparse_convolve",
    mutates_args=(),
    schema="(Tensor features, Tensor weight, Tensor table, Tensor transposed) -> Tensor",
)
def _convolve(features: Tensor, weight: Tensor, table: Tensor, transposed: Tensor) -> Tensor:
    if features.device.type != "cpu":
        return _convolve_by_torch(features, weight, table)
    from geom.kernels import sparse

    return sparse.convolve(features, weight, table)


@_convolve.register_fake
def _(features: Tensor, weight: Tensor, table: Tensor, transposed: Tensor) -> Tensor:
    return features.new_empty((table.shape[1], weight.shape[2]))


@torch.library.custom_op(
    "geom::sparse_weigh",
    mutates_args=(),
    schema="(Tensor features, Tensor grad, Tensor table, Tensor transposed) -> Tensor",
)
def _weigh(features: Tensor, grad: Tensor, table: Tensor, transposed: Tensor) -> Tensor:
    if features.device.type != "cpu":
        return _weigh_by_torch(features, grad, table)
    from geom.kernels import sparse

    return sparse.weigh(features, grad, table)


@_weigh.register_fake
def _(features: Tensor, grad: Tensor, table: Tensor, transposed: Tensor) -> Tensor:
    return features.new_empty((table.shape[0], features.shape[1], grad.shape[1]))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _convolve_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, weight, table, transposed = ctx.saved_tensors
    return (
        _convolve(grad, weight.mT, transposed, table) if ctx.needs_input_grad[0] else None,
        _weigh(features, grad, table, transposed) if ctx.needs_input_grad[1] else None,
        None,
        None,
    )


def _weigh_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, output, table, transposed = ctx.saved_tensors
    return (
        _convolve(output, grad.mT, transposed, table) if ctx.needs_input_grad[0] else None,
        _convolve(features, grad, table, transposed) if ctx.needs_input_grad[1] else None,
        None,
        None,
    )


_convolve.register_autograd(_convolve_backward, setup_context=_keep)
_weigh.register_autograd(_weigh_backward, setup_context=_keep)


def _check(features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None) -> None:
    elements, count = kernel_map.transposed.shape
    if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[0] != count:
        raise ShapeError(
            f"features: expected a tensor ({count}, C_in), a row for each source voxel, got {describe(features)}"
        )
    if not isinstance(weight, Tensor) or weight.ndim != 3 or weight.shape[:2] != (elements, features.shape[1]):
        raise ShapeError(f"weight: expected a tensor ({elements}, {features.shape[1]}, C_out), got {describe(weight)}")
    check_same(weight, features, "weight and features")
    if bias is not None:
        if not isinstance(bias, Tensor) or bias.shape != weight.shape[2:]:
            raise ShapeError(f"bias: expected a tensor ({weight.shape[2]},), got {describe(bias)}")
        check_same(bias, features, "bias and features")
