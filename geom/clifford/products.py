"""Bilinear products of multivectors: a kernel for each, and for derivatives of any order.

A product is slot 0 of the form F(a, b, c) = sum T_ijk a_i b_j c_k (see `trilinear`), and its adjoints slots 1 and 2.
The kernels run on plain float32 and float64 tensors and under torch.compile, and their torch twins under torch.func, in
forward-mode differentiation, and for other dtypes.
"""

from typing import Any

import torch
from torch import Tensor

from geom.checks import check_choice, check_same, check_shape, describe
from geom.clifford.trilinear import Trilinear, run_kernels
from geom.errors import ShapeError
from geom.kernels.blades import PGA, PRODUCTS, Signature, blades, terms

__all__ = ["align", "multiply", "multiply_by_torch", "multiply_planes", "multiply_planes_by_torch", "table"]

_LARGEST = 5  # basis vectors above which the unrolled kernels would take minutes to compile


def table(signature: Signature, product: str, slot: int = 0) -> Tensor:
    """T (B, B, B) int8 with out_i = sum T_ijk x_j y_k, B = 2^(p+q+r).

    Guarantees: not differentiable; deterministic; exact
    """
    size = len(blades(signature))
    i, j, k, sign = torch.tensor(terms(signature, product, slot)).unbind(1)
    dense = torch.zeros(size, size, size, dtype=torch.int8)
    dense[i, j, k] = sign.to(torch.int8)
    return dense


# --- (..., B) ---------------------------------------------------------------------------------------------------------


def multiply(signature: Signature, product: str, x: Tensor, y: Tensor, slot: int = 0) -> Tensor:
    """out_i = sum T_ijk x_j y_k of multivectors (..., B) whose batches broadcast.

    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest entry
    """
    return _PRODUCT(slot, *align(signature, x, y), signature, product)


def align(signature: Signature, x: Tensor, y: Tensor, names: str = "x and y") -> tuple[Tensor, Tensor]:
    """Two operands broadcast to one shape. Raises: ShapeError, with their names.

    Guarantees: differentiable (any order); deterministic; exact
    """
    for operand, name in zip((x, y), names.split(" and "), strict=True):
        check_shape(operand, (1 << sum(signature),), name)
    check_same(x, y, names)
    if x.shape == y.shape:
        return x, y
    try:
        shape = torch.broadcast_shapes(x.shape, y.shape)
    except RuntimeError:
        shapes = f"{tuple(x.shape[:-1])} and {tuple(y.shape[:-1])}"
        raise ShapeError(f"{names}: expected batches that broadcast, got {shapes}") from None
    return x.expand(shape), y.expand(shape)


def multiply_by_torch(signature: Signature, product: str, x: Tensor, y: Tensor, slot: int = 0) -> Tensor:
    """The twin of `multiply`: a sum over the dense table.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest entry
    """
    return torch.einsum("...j,...k,ijk->...i", x, y, table(signature, product, slot).to(x))


def _run(slot: int, x: Tensor, y: Tensor, signature: Signature, product: str) -> Tensor:
    if sum(signature) > _LARGEST:
        return multiply_by_torch(signature, product, x, y, slot)
    from geom.kernels import clifford

    return clifford.multiply(signature, product, slot, x, y)


def _both(x: Tensor, y: Tensor, grad: Tensor, signature: Signature, product: str) -> tuple[Tensor, Tensor]:
    if sum(signature) > _LARGEST:
        return _run(1, grad, y, signature, product), _run(2, grad, x, signature, product)
    from geom.kernels import clifford

    return clifford.differentiate(signature, product, x, y, grad)


_PRODUCT = Trilinear(
    "clifford_product",
    "int[] signature, str product",
    run=_run,
    twin=lambda slot, x, y, signature, product: multiply_by_torch(signature, product, x, y, slot),
    empty=lambda slot, x, y, signature, product: x.new_empty(x.shape),
    both=_both,
)


# --- (B, N, C) --------------------------------------------------------------------------------------------------------


def multiply_planes(
    factors: Tensor,
    reference: Tensor,
    *,
    products: tuple[str, ...] = ("geometric", "join"),
    signature: Signature = PGA,
) -> Tensor:
    """Several products at once, of planes (B, N, C), the layout of networks.

    Args: factors (B, N, 2 P h): the channels of the left and right factor of each of P products, h each; it may be a
    part of a wider tensor. reference (N,), which "join" is multiplied by.
    Returns: (B, N, P h). Factors and reference alone are saved for the gradients.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest entry
    """
    for product in products:
        check_choice(product, PRODUCTS, "products")
    size, pairs = 1 << sum(signature), 2 * len(products)
    if factors.ndim != 3 or factors.shape[0] != size or factors.shape[2] % pairs:
        raise ShapeError(f"factors: expected a tensor ({size}, N, {pairs} h), got {describe(factors)}")
    if reference.shape != factors.shape[1:2]:
        raise ShapeError(f"reference: expected a tensor ({factors.shape[1]},), got {describe(reference)}")
    check_same(factors, reference, "factors and reference")
    if not run_kernels(factors, reference):
        return multiply_planes_by_torch(factors, reference, products, signature)
    if torch.is_grad_enabled() and (factors.requires_grad or reference.requires_grad):
        return _Planes.apply(factors, reference, products, signature)
    return _run_planes(factors, reference, products, signature)


def multiply_planes_by_torch(
    factors: Tensor, reference: Tensor, products: tuple[str, ...], signature: Signature
) -> Tensor:
    """The twin of `multiply_planes`.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest entry
    """
    parts = factors.movedim(0, -1).chunk(2 * len(products), 1)
    found = []
    for product, x, y in zip(products, parts[::2], parts[1::2], strict=True):
        out = multiply(signature, product, x, y)
        found.append(out * reference[:, None, None] if product == "join" else out)
    return torch.cat(found, 1).movedim(-1, 0)


def _run_planes(factors: Tensor, reference: Tensor, products: tuple[str, ...], signature: Signature) -> Tensor:
    from geom.kernels import clifford

    return clifford.multiply_planes(signature, products, factors, reference.contiguous())


class _Planes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, factors: Tensor, reference: Tensor, products: tuple[str, ...], signature: Signature
    ) -> Tensor:
        ctx.save_for_backward(factors, reference)
        ctx.kind = products, signature
        return _run_planes(factors, reference, products, signature)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        factors, reference = ctx.saved_tensors
        products, signature = ctx.kind
        again = torch.is_grad_enabled()
        if not again and run_kernels(grad, factors, reference):
            from geom.kernels import clifford

            found = clifford.differentiate_planes(signature, products, factors, reference.contiguous(), grad)
        else:
            with torch.enable_grad():
                x, r = (z.view_as(z) if z.requires_grad else z.detach().requires_grad_() for z in (factors, reference))
                out = multiply_planes_by_torch(x, r, products, signature)
                found = torch.autograd.grad(out, (x, r), grad, create_graph=again, materialize_grads=True)
        return *(g if want else None for g, want in zip(found, ctx.needs_input_grad, strict=False)), None, None
