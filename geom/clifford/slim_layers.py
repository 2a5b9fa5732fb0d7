"""Layers of slim networks: linear maps, norms, gates and attention's features of scalars, planes and points.

Scalars are z (N, Z), planes and points x (8, N, C), of components d, n, q, w as in `slim_products`; the first C scalars
are those of the channels. Kernels of `geom.kernels.slim_layers` run on plain tensors, and their torch twins elsewhere.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from geom.clifford.slim_products import differentiate
from geom.clifford.trilinear import run_kernels

__all__ = [
    "SlimLinear",
    "attention_features",
    "features_by_torch",
    "gate",
    "join_heads",
    "join_heads_by_torch",
    "normalise",
    "normalise_by_torch",
]

_FLOOR = 0.01


class SlimLinear(nn.Module):
    """Linear maps of scalars, planes and points each, and e0 times the scalars of channels, added to offsets of planes:
    all that commute with Pin(3, 0, 1), as a test finds.

    Args: scalars and channels, how many of each come and go; generator of the first weights; size of those, relative
        to 1 / sqrt(what comes).
    The call: z (N, Z_in) and x (8, N, C_in); the result is alike.

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
    """

    def __init__(
        self, scalars: tuple[int, int], channels: tuple[int, int], generator: torch.Generator | None, size: float = 1.0
    ) -> None:
        super().__init__()

        def uniform(count: int, inner: int) -> nn.Parameter:
            bound = size / math.sqrt(inner)
            return nn.Parameter(torch.empty(count, inner).uniform_(-bound, bound, generator=generator))

        self.scalars, self.offsets = uniform(scalars[1], scalars[0]), uniform(channels[1], channels[0])
        self.planes, self.points = uniform(channels[1], channels[0]), uniform(channels[1], channels[0])
        self.bias = nn.Parameter(torch.zeros(scalars[1]))

    def forward(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = (self.scalars, self.bias, self.offsets, self.planes, self.points)
        return _Mapped.apply(z, x, *weights) if run_kernels(z, x) else _map(z, x, *weights)


def _map(
    z: Tensor, x: Tensor, scalars: Tensor, bias: Tensor, offsets: Tensor, planes: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    y = linear(x[:4], planes)
    return linear(z, scalars, bias), torch.cat(
        [y[:1] + linear(z[:, : x.shape[-1]], offsets), y[1:], linear(x[4:], points)]
    )


class _Mapped(torch.autograd.Function):
    """`_map`, into and from memory in place."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, x: Tensor, scalars: Tensor, bias: Tensor, offsets: Tensor, planes: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, x, scalars, bias, offsets, planes, points)
        out = x.new_empty((*x.shape[:2], len(planes)))
        for k, weight in ((0, planes), (4, points)):
            torch.mm(x[k : k + 4].flatten(0, 1), weight.T, out=out[k : k + 4].flatten(0, 1))
        out[0].addmm_(z[:, : x.shape[-1]], offsets.T)
        return torch.addmm(bias, z, scalars.T), out

    @staticmethod
    def backward(ctx: Any, gz: Tensor, gx: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        z, x, scalars, _, offsets, planes, points = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate(_map, ctx.saved_tensors, (gz, gx), ctx.needs_input_grad)
        gx = gx.contiguous()
        into, first = x.new_empty(x.shape), gx[0]
        weights = []
        for k, weight in ((0, planes), (4, points)):
            grad = gx[k : k + 4].flatten(0, 1)
            torch.mm(grad, weight, out=into[k : k + 4].flatten(0, 1))
            weights.append(grad.T @ x[k : k + 4].flatten(0, 1))
        own, back = z[:, : x.shape[-1]], gz @ scalars
        back[:, : x.shape[-1]].addmm_(first, offsets)
        return back, into, gz.T @ z, gz.sum(0), first.T @ own, *weights


def normalise(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scalars by their layer norm; planes and points divided by the root of max(the mean square, 0.01) of their normals
    and of their weights over channels, which translations leave.

    Guarantees: differentiable (0); deterministic; 1e-15 f64, 6e-7 f32 of the greatest entry
    """
    return _Normalised.apply(z, x) if run_kernels(z, x) else normalise_by_torch(z, x)


def normalise_by_torch(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of `normalise`.

    Guarantees: differentiable (0); deterministic; 1e-15 f64, 6e-7 f32 of the greatest entry
    """
    scales = [y.square().sum(0).mean(-1, keepdim=True).clamp(min=_FLOOR).rsqrt() for y in (x[1:4], x[7:])]
    return layer_norm(z, z.shape[-1:]), torch.cat([x[:4] * scales[0], x[4:] * scales[1]])


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        from geom.kernels import slim_layers

        y, out, stats = slim_layers.normalise(z, x)
        ctx.save_for_backward(z, x, stats)
        return y, out

    @staticmethod
    def backward(ctx: Any, gz: Tensor, gx: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        z, x, stats = ctx.saved_tensors
        if torch.is_grad_enabled() or not run_kernels(gz, gx):
            return differentiate(normalise_by_torch, (z, x), (gz, gx), ctx.needs_input_grad)
        from geom.kernels import slim_layers

        return slim_layers.differentiate_norm(z, x, gz, gx, stats)


def gate(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """GELUs: the exact one of scalars, and the tanh form of those of channels, times their planes and points.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32
    """
    return gelu(z), x * gelu(z[:, : x.shape[-1]], approximate="tanh")


def attention_features(z: Tensor, x: Tensor, weights: Tensor, epsilon: float, few: int) -> tuple[Tensor, ...]:
    """Queries (N, H, D), keys and values (N, few, D), of z (N, (H + 2 few) inner) and x (8, N, (H + 2 few) c).

    Queries and keys are scalars, normals, and numbers whose sums of products are minus weights (H, c) times squares of
    distances, as of `geometric_attention`; values are scalars and all of x.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest term
    """
    if run_kernels(z, x, weights):
        return _Featured.apply(z, x, weights, epsilon, few)
    return features_by_torch(z, x, weights, epsilon, few)


def features_by_torch(z: Tensor, x: Tensor, weights: Tensor, epsilon: float, few: int) -> tuple[Tensor, ...]:
    """The twin of `attention_features`.

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest term
    """
    heads, c = weights.shape
    counts = (heads, few, few)
    zs = z.unflatten(-1, (heads + 2 * few, -1)).split(counts, -2)
    p, q, v = x.unflatten(-1, (heads + 2 * few, c)).movedim(0, -2).split(counts, -3)  # (N, heads, 8, c)
    (e, w), (f, u) = _weigh(p, epsilon), _weigh(q, epsilon)
    square, weights = e.square().sum(-2, keepdim=True), weights[:, None]
    one = [p[..., 1:4, :], square * weights, w.square() * weights, e * (w * weights)]
    two = [q[..., 1:4, :], -u.square(), -f.square().sum(-2, keepdim=True), 2 * f * u]
    return tuple(
        torch.cat([a, *(part.flatten(-2) for part in parts)], -1) for a, parts in zip(zs, (one, two, [v]), strict=True)
    )


def _weigh(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """q and w of points (..., 8, c) times w / (w^2 + epsilon)."""
    q, w = x[..., 4:7, :], x[..., 7:, :]
    scale = w / (w.square() + epsilon)
    return q * scale, w * scale


class _Featured(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, x: Tensor, weights: Tensor, epsilon: float, few: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        from geom.kernels import slim_layers

        ctx.save_for_backward(z, x, weights)
        ctx.rest = epsilon, few
        return slim_layers.features(z, x, weights, epsilon, few)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, x, weights = ctx.saved_tensors
        epsilon, few = ctx.rest
        if torch.is_grad_enabled() or not run_kernels(*grads):

            def twin(z: Tensor, x: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
                return features_by_torch(z, x, weights, epsilon, few)

            return *differentiate(twin, (z, x, weights), grads, ctx.needs_input_grad), None, None
        from geom.kernels import slim_layers

        a, b, c = grads
        return *slim_layers.differentiate_features(x, weights, epsilon, (a, b, c)), None, None


def join_heads(rows: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """What heads found, (N, H, inner + 8 c), as z (N, H inner) and x (8, N, H c).

    Guarantees: differentiable (any order); deterministic; exact
    """
    return _Joined.apply(rows, c) if run_kernels(rows) else join_heads_by_torch(rows, c)


def join_heads_by_torch(rows: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """The twin of `join_heads`.

    Guarantees: differentiable (any order); deterministic; exact
    """
    s, y = rows.split([rows.shape[-1] - 8 * c, 8 * c], -1)
    return s.flatten(-2), y.unflatten(-1, (8, c)).movedim(-2, 0).flatten(-2)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, c: int) -> tuple[Tensor, Tensor]:
        from geom.kernels import slim_layers

        ctx.heads = rows.shape[1]
        return slim_layers.join(rows, c)

    @staticmethod
    def backward(ctx: Any, gz: Tensor, gx: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        if torch.is_grad_enabled() or not run_kernels(gz, gx):
            parts = gz.unflatten(-1, (ctx.heads, -1)), gx.unflatten(-1, (ctx.heads, -1)).movedim(0, -2).flatten(-2)
            return torch.cat(parts, -1), None
        from geom.kernels import slim_layers

        return slim_layers.split(gz, gx, ctx.heads), None
