"""Products of the slim algebra: scalars, planes and points of G(3,0,1), without lines and pseudoscalars.

Inside networks a channel is a scalar s, a plane (d, n) of normal n and offset d, n . x = d, and a point (q, w) of
weight w at q / w, a direction where w is 0: planes of memory x (8, N, C), in the order d, n, q, w, and z (N, C) of s.
A reflection turns n into R n and s into s, but q into -R q and w into -w; a translation t adds n . t to d and w t to q.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from geom.clifford.trilinear import run_kernels

__all__ = ["differentiate", "multiply_slim", "multiply_slim_by_torch"]


def multiply_slim(z: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two products of channels, each of which is equivariant to E(3), mirrors included.

    Of a left channel (s, d, n, q, w) and a right one, with a stroke, the first is the part of the geometric product
    that stays in the slim algebra, with w w' for - w w', and e0 ^ n' ^ n, the direction in which two planes meet:

        s s' + n . n' + w w',    s (d', n') + s' (d, n),    s (q', w') + s' (q, w) + (n x n', 0).

    The second takes r, the weight of a reference, to be even under reflections. With e = w q' - w' q, the way from one
    point to the other, and m = n' + e, it is how far points are from planes, the plane with the normal m through the
    left point, and directions:

        r (n . q' - d w' + n' . q - d' w),    r (q . m, w m),    (r e + w n', 0).

    Args: z (N, 2 h), the scalars of the left and right channels of the first; x (8, N, 4 h), the left and right ones of
    the first, and those of the second, h each; weight r (N,).
    Returns: z (N, 2 h) and x (8, N, 2 h), the first products and then the second. The arguments alone are saved for
    the gradients.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest term
    """
    if not run_kernels(z, x, weight):
        return multiply_slim_by_torch(z, x, weight)
    return _Multiplied.apply(z, x, weight)


def multiply_slim_by_torch(z: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of `multiply_slim`.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest term
    """
    s, t = z.chunk(2, -1)
    (d, n, q, w), (d2, n2, q2, w2), (f, k, p, v), (f2, k2, p2, v2) = (
        (y[0], y[1:4], y[4:7], y[7]) for y in x.chunk(4, -1)
    )
    r = weight[:, None]
    first = s * t + (n * n2).sum(0) + w * w2
    cross = n.roll(-1, 0) * n2.roll(1, 0) - n.roll(1, 0) * n2.roll(-1, 0)
    meet = torch.cat([(s * d2 + t * d)[None], s * n2 + t * n, s * q2 + t * q + cross, (s * w2 + t * w)[None]])
    way = v * p2 - v2 * p
    normal = k2 + way
    second = r * ((k * p2).sum(0) - f * v2 + (k2 * p).sum(0) - f2 * v)
    join = torch.cat([r * (p * normal).sum(0)[None], r * v * normal, r * way + v * k2, torch.zeros_like(v)[None]])
    return torch.cat([first, second], -1), torch.cat([meet, join], -1)


def differentiate(
    twin: Callable[..., Any], inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of a function in torch, which are differentiable themselves where that is asked for.

    Guarantees: differentiable (any order); deterministic; as the function
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [y.view_as(y) if y.requires_grad else y.detach().requires_grad_() for y in inputs]
        found = torch.autograd.grad(twin(*own), own, grads, create_graph=again, materialize_grads=True)
    return tuple(g if want else None for g, want in zip(found, wanted, strict=False))


class _Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        from geom.kernels import slim

        ctx.save_for_backward(z, x, weight)
        return slim.multiply(z, x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled() or not run_kernels(*grads, *saved):
            return differentiate(multiply_slim_by_torch, saved, grads, ctx.needs_input_grad)
        from geom.kernels import slim

        return slim.differentiate(*saved, *grads)
