"""The half of smooth skinning decomposition that finds weights: least squares over few bones, for each vertex alone.

    min_w  1/2 sum_t |sum_j w_j T_tj (u, 1) - x_t|^2 + ridge / 2 |w - aim|^2,   w >= 0, sum w = 1, at most K not 0

with A_jk = (u, 1)^T G_jk (u, 1), G_jk = sum_t T_tj^T T_tk, which does not grow with the number of frames. Without the
bound on K it is convex; that problem is solved first, by an active set, and bones then leave, the cheapest first.
"""

import torch
from torch import Tensor

__all__ = ["dense_weights", "fit_weights", "homogeneous"]

RIDGE = 1e-10  # towards the weights before: of bones that move alike, those stay
_PAIRS = ((0, 1, 2, 3, 0, 0, 0, 1, 1, 2), (0, 1, 2, 3, 1, 2, 3, 2, 3, 3))  # the ten products of (u, 1)
_CHUNK = 1 << 22  # numbers of scratch at once


def homogeneous(rest: Tensor) -> Tensor:
    """(V, 4): the points with a last coordinate of 1."""
    return torch.cat([rest, torch.ones_like(rest[:, :1])], -1)


def dense_weights(weights: Tensor, indices: Tensor, bones: int) -> Tensor:
    """(V, J) of (V, K)."""
    return weights.new_zeros(len(weights), bones).scatter_add_(1, indices, weights)


def fit_weights(
    gram: Tensor,
    moment: Tensor,
    rest: Tensor,
    weights: Tensor,
    indices: Tensor,
    *,
    aim: Tensor | None = None,
    ridge: float = RIDGE,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Weights (V, K) and indices (V, K) of no more cost than those given.

    Args: gram (4J, 4J) of the transforms; moment (V, 4J), sum_t T_tj^T x_t; rest (V, 3); weights and indices (V, K),
        rows of sum 1; aim (V, J), where `ridge` pulls to, by default the weights given.
    """
    from geom.kernels import bone_fitting, bridge

    bones, width = len(gram) // 4, weights.shape[1]
    wide = max(min(bones, bone_fitting.WIDEST), width)
    a, b = (torch.tensor(p, device=rest.device) for p in _PAIRS)
    blocks = gram.reshape(bones, 4, bones, 4).permute(0, 2, 1, 3)
    both = (blocks + blocks.mT)[..., a, b]
    both[..., :4] *= 0.5
    h = homogeneous(rest)
    monomials = (h[:, a] * h[:, b]).contiguous()
    aim = dense_weights(weights, indices, bones) if aim is None else aim
    line = torch.einsum("vja,va->vj", moment.reshape(len(rest), bones, 4), h) + ridge * aim
    weights, indices = weights.clone(), indices.clone()
    kernel = bridge.choose(backend, line)
    size = bones * (bone_fitting.WIDEST + 1 if kernel else bones)
    step = max(1, _CHUNK // size)
    for begin in range(0, len(rest), step):
        rows = slice(begin, begin + step)
        h, b, w, k = monomials[rows], line[rows], weights[rows], indices[rows]
        if kernel:
            scratch = h.new_empty(len(h) * size)
            arguments = (both, h, b, ridge, bones, width, wide, scratch, k, w)
            bridge.launch(bone_fitting.fit_weights[line.dtype], len(h), *arguments, device=h.device, grain=64)
        else:
            A = torch.einsum("jka,va->vjk", both, h) + ridge * torch.eye(bones, dtype=h.dtype, device=h.device)
            found = _Supports(A, b).best(dense_weights(w, k, bones), width, wide)
            top, ids = found.topk(min(width, bones), 1)
            weights[rows], indices[rows] = 0.0, 0
            weights[rows, : top.shape[1]], indices[rows, : top.shape[1]] = top, torch.where(top > 0, ids, 0)
    return weights / weights.sum(1, keepdim=True), indices


class _Supports:
    """The kernel's twin: all vertices at once, supports as masks (V, J) of dense weights."""

    def __init__(self, A: Tensor, b: Tensor) -> None:
        self.A, self.b = A, b

    def settle(self, w: Tensor, on: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Least squares on the support: weights, support, multiplier, and the room of each weight to change in."""
        eye = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
        while True:
            H = torch.where(on[:, :, None] & on[:, None], self.A, eye)
            floor = 1e-13 * H.diagonal(dim1=1, dim2=2)
            inverse = torch.linalg.inv(H + torch.diag_embed(floor)) * (on[:, :, None] & on[:, None])
            z = inverse.sum(-1)
            x = (inverse @ (self.b * on)[..., None])[..., 0]
            level = (1 - x.sum(-1)) / z.sum(-1)
            x = x + level[:, None] * z
            bad = on & (x < 0)
            t = torch.where(bad, w / torch.where(bad, w - x, 1.0), torch.inf)
            step, at = t.min(-1)
            stuck = bad.any(-1)
            if not bool(stuck.any()):
                return x, on, level, inverse.diagonal(dim1=1, dim2=2) - z * z / z.sum(-1, keepdim=True)
            w = w + torch.where(stuck, step, 1.0)[:, None] * (x - w)
            on = on & ~(stuck[:, None] & (torch.arange(w.shape[1], device=w.device) == at[:, None]))
            w = torch.where(on, w.clamp(min=0), 0.0)

    def grow(self, w: Tensor, on: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Bones come in, steepest first, while there are fewer than `most`."""
        w, on, level, room = self.settle(w, on)
        scale = self.A.diagonal(dim1=1, dim2=2).amax(-1)
        for _ in range(3 * most):
            slope = (self.A @ w[..., None])[..., 0] - self.b - level[:, None]
            steepest, best = torch.where(on, 0.0, slope).min(-1)
            come = (steepest < -1e-13 * scale) & (on.sum(-1) < most)
            if not bool(come.any()):
                break
            on = on | (come[:, None] & (torch.arange(w.shape[1], device=w.device) == best[:, None]))
            w, on, level, room = self.settle(w, on)
        return w, on, room

    def shrink(self, w: Tensor, on: Tensor, room: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Bones go, the one that costs least first, until `width` are left."""
        while bool((on.sum(-1) > width).any()):
            loss = torch.where(on, w * w / room.clamp(min=1e-300), torch.inf)
            out = (on.sum(-1) > width)[:, None] & (
                torch.arange(w.shape[1], device=w.device) == loss.argmin(-1)[:, None]
            )
            w, on = torch.where(out, 0.0, w), on & ~out
            w, on, _, room = self.settle(w / w.sum(-1, keepdim=True), on)
        return w, on

    def best(self, w: Tensor, width: int, wide: int) -> Tensor:
        first, on, _ = self.grow(w, w > 0, width)
        second, on = self.shrink(*self.grow(first, on, wide), width)
        second = self.grow(second, on, width)[0]
        cost = [(0.5 * (x[:, None] @ self.A @ x[..., None])[:, 0, 0] - (self.b * x).sum(-1)) for x in (first, second)]
        return torch.where((cost[1] < cost[0])[:, None], second, first)
