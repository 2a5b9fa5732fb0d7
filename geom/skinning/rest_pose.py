"""The bend of a rest shape that is found together with its bones: each bone's rest turned and moved, vertices along.

    min_{S, u, w}  1/2 sum_t sum_i |sum_j w_ij T_tj S_j (u_i, 1) - x_ti|^2,   S_j rigid

A rest in which bones are bent otherwise than they should be hardly changes by turns of weights, bones and rest, for
each of them would have to go along with the others, in all frames. This is one Gauss-Newton step for all of them, the
vertices' unknowns eliminated: 6 J equations are left, and neither they nor the sums grow with the number of frames.
"""

import torch
from torch import Tensor

from geom.lie import so3
from geom.skinning.bone_weights import dense_weights, homogeneous

__all__ = ["settle_points", "turn_rests"]

_MOST = 0.7  # radians that a bone's rest may turn in one step
_ROUNDS = 3
_CHUNK = 1 << 22  # numbers of scratch at once


def turn_rests(
    gram: Tensor,
    moment: Tensor,
    rest: Tensor,
    weights: Tensor,
    indices: Tensor,
    transforms: Tensor,
    *,
    damping: float,
    held: Tensor | None = None,
    locked: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rest (V, 3), weights (V, K) on the same bones, transforms (T, J, 3, 4); their cost may be greater than before.

    Args: gram (4J, 4J) of the transforms; moment (V, 4J), sum_t T_tj^T x_t; damping, relative, of all unknowns;
        held (V,), vertices whose weights stay; locked (J,), bones that stay.
    """
    bones, width = transforms.shape[1], weights.shape[1]
    inner, outer = 3 + width, 6 * width
    blocks = gram.reshape(bones, 4, bones, 4).permute(0, 2, 1, 3)
    mass = dense_weights(weights, indices, bones).square()
    pivots = mass.T @ rest / mass.sum(0).clamp(min=1e-9)[:, None]
    matrix, diagonal = rest.new_zeros(bones**2, 6, 6), rest.new_zeros(bones**2, 6, 6)
    right = rest.new_zeros(bones, 6)
    parts = []
    step = max(1, _CHUNK // (outer + inner) ** 2)
    for begin in range(0, len(rest), step):
        rows = slice(begin, begin + step)
        w, ids, u = weights[rows], indices[rows], rest[rows]
        free = w > 0 if held is None else (w > 0) & ~held[rows, None]
        S = blocks[ids[:, :, None], ids[:, None]].permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)  # (v, 4K, 4K)
        J = _columns(w, u, u[:, None] - pivots[ids], free)
        y = (w[..., None] * homogeneous(u)[:, None]).flatten(1)
        pull = moment[rows].reshape(-1, bones, 4).gather(1, ids[..., None].expand(-1, -1, 4)).flatten(1)
        H = J.mT @ (S @ J)
        slope = (J.mT @ ((S @ y[..., None]) - pull[..., None]))[..., 0]
        inverse = _inverse(H[:, outer:, outer:], free, damping)
        cross, own = H[:, :outer, outer:], H[:, :outer, :outer]
        less = (cross @ inverse @ slope[:, outer:, None])[..., 0]
        pairs = (ids[:, :, None] * bones + ids[:, None]).flatten()
        for out, block in ((matrix, own - cross @ inverse @ cross.mT), (diagonal, own)):
            out.index_add_(0, pairs, block.reshape(-1, width, 6, width, 6).transpose(2, 3).reshape(-1, 6, 6))
        right.index_add_(0, ids.flatten(), (slope[:, :outer] - less).reshape(-1, 6))
        parts.append((inverse, cross, slope[:, outer:]))

    def joined(x: Tensor) -> Tensor:
        return x.reshape(bones, bones, 6, 6).transpose(1, 2).reshape(6 * bones, 6 * bones)

    A = joined(matrix)
    floor = damping * A.diagonal().clamp(min=0) + 1e-9 * joined(diagonal).diagonal() + 1e-12
    go = torch.ones_like(right) if locked is None else (~locked)[:, None].to(right).expand(-1, 6)
    A = A * go.flatten() * go.reshape(-1, 1) + torch.diag(floor)
    x = -torch.linalg.solve(A, (go * right).flatten()).reshape(bones, 6)
    x = x * (_MOST / x[:, :3].norm(dim=1).max().clamp(min=_MOST))
    moves = []
    for (inverse, cross, slope), ids in zip(parts, indices.split(step), strict=True):
        moves.append(-(inverse @ (slope[..., None] + cross.mT @ x[ids].reshape(-1, outer, 1)))[..., 0])
    q = torch.cat(moves)
    share = (weights + q[:, 3:]).clamp(min=0)
    if held is not None:
        share = torch.where(held[:, None], weights, share)
    turn = so3.exp(x[:, :3])
    shift = pivots + x[:, 3:] - (turn @ pivots[..., None])[..., 0]
    R = transforms[..., :3]
    t = transforms[..., 3] + (R @ shift[..., None])[..., 0]
    return rest + q[:, :3], share / share.sum(1, keepdim=True), torch.cat([R @ turn, t[..., None]], -1)


def settle_points(
    gram: Tensor, moment: Tensor, rest: Tensor, weights: Tensor, indices: Tensor, *, held: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rest (V, 3) and weights (V, K) on the same bones, of each vertex together, of no more cost than those given."""
    bones, width = len(gram) // 4, weights.shape[1]
    blocks = gram.reshape(bones, 4, bones, 4).permute(0, 2, 1, 3)
    found = []
    step = max(1, _CHUNK // (4 * width) ** 2)
    for begin in range(0, len(rest), step):
        rows = slice(begin, begin + step)
        w, ids, u = weights[rows], indices[rows], rest[rows]
        lock = torch.zeros_like(w[:, :1], dtype=torch.bool) if held is None else held[rows, None]
        S = blocks[ids[:, :, None], ids[:, None]].permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
        pull = moment[rows].reshape(-1, bones, 4).gather(1, ids[..., None].expand(-1, -1, 4)).flatten(1)
        cost = torch.full_like(w[:, 0], torch.inf)
        damping, slope, N, free = 1e-3 * torch.ones_like(w[:, :1]), u, u, lock
        best_w, best_u = w, u
        for trial in range(_ROUNDS + 1):
            y = (w[..., None] * homogeneous(u)[:, None]).flatten(1)
            Sy = (S @ y[..., None])[..., 0]
            now = (y * (Sy - 2 * pull)).sum(1)
            better = now < cost
            best_w, best_u = torch.where(better[:, None], w, best_w), torch.where(better[:, None], u, best_u)
            if trial == _ROUNDS:
                break
            J = _columns(w, u, u[:, None].expand(-1, width, -1), (w > 0) & ~lock)[..., 6 * width :]
            here, there = J.mT @ (S @ J), (J.mT @ (Sy - pull)[..., None])[..., 0]
            on = (w > 0) & ~lock
            if trial == 0:
                N, slope, free = here, there, on
            N = torch.where(better[:, None, None], here, N)
            slope, free = torch.where(better[:, None], there, slope), torch.where(better[:, None], on, free)
            damping = torch.where(better[:, None], 0.1 * damping, 10 * damping)
            cost = torch.minimum(now, cost)
            q = -(_inverse(N, free, damping) @ slope[..., None])[..., 0]
            share = (best_w + q[:, 3:]).clamp(min=0)
            w, u = torch.where(lock, best_w, share / share.sum(1, keepdim=True)), best_u + q[:, :3]
        found.append((best_u, best_w))
    u, w = (torch.cat(x) for x in zip(*found, strict=True))
    return u, w


def _columns(w: Tensor, u: Tensor, arms: Tensor, free: Tensor) -> Tensor:
    """(v, 4K, 6K + 3 + K): changes of w_k S_k (u, 1), for each k, with twists of S, with u and with w."""
    width, eye = w.shape[1], torch.eye(3, dtype=w.dtype, device=w.device)
    solid = torch.cat([-so3.hat(arms), eye.expand(*arms.shape[:2], 3, 3)], -1) * w[..., None, None]
    J = w.new_zeros(len(w), width, 4, 6 * width + 3 + width)
    for k in range(width):
        J[:, k, :3, 6 * k : 6 * k + 6] = solid[:, k]
        J[:, k, :, 6 * width + 3 + k] = homogeneous(u) * free[:, k, None]
    J[:, :, :3, 6 * width : 6 * width + 3] = w[..., None, None] * eye
    return J.flatten(1, 2)


def _inverse(N: Tensor, free: Tensor, damping: float | Tensor) -> Tensor:
    """Of the vertices' own equations (v, 3 + K), damped, where weights that are free change by 0 together."""
    on = torch.cat([torch.ones_like(free[:, :1]).expand(-1, 3), free], 1)
    diagonal = torch.where(on, damping * N.diagonal(dim1=1, dim2=2) + 1e-9, 1.0)
    inverse = torch.linalg.inv(N + torch.diag_embed(diagonal))
    one = torch.cat([torch.zeros_like(free[:, :1]).expand(-1, 3), free], 1).to(N.dtype)
    z = (inverse @ one[..., None])[..., 0]
    inverse = inverse - z[:, :, None] * z[:, None] / (z * one).sum(-1).clamp(min=1e-300)[:, None, None]
    return inverse * (on[:, :, None] & on[:, None])
