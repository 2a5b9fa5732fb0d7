"""Smooth skinning decomposition as an alternation of its two halves, and how it gets out of poor minima.

`descend` alternates, and steps on along what the bones moved while that pays; a rest that is free it also straightens.
`thin` takes the bones away whose loss costs least. `reseed` adds bones where the error is greatest, and thins.
Everything is in units of the track's diagonal, about its centre.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from geom.skinning.bone_transforms import fit_bones, fit_labels, step_along
from geom.skinning.bone_weights import RIDGE, dense_weights, fit_weights, homogeneous
from geom.skinning.clusters import cluster_rigidly, rigid_errors
from geom.skinning.rest_pose import settle_points, turn_rests

__all__ = ["FLOOR", "Problem", "State", "begin", "descend", "reseed", "rmse", "thin"]

FLOOR = 1e-6  # of the diagonal: as good as exact
_BLOCK = 10  # alternations between looks at what they gained
_DEAR = 4  # alternations that one with a bend counts for, as it takes as long
_GAIN = 0.02  # of the error, that a block has to gain


class State(NamedTuple):
    """Rest (V, 3), weights and indices (V, K), transforms (T, J, 3, 4)."""

    rest: Tensor
    weights: Tensor
    indices: Tensor
    transforms: Tensor


@dataclass(frozen=True)
class Problem:
    """What is fitted, and what is not to move.

    Fields: track (T, V, 3); near (V, k), neighbours of each vertex; influences, K; free_rest, whether the rest is
        found too; held (V,) and locked (J,), vertices whose weights stay and bones that stay, or None; shares
        (V, k) of each of the neighbours in the weights that a vertex is pulled to, or None, and how hard, smoothness.
    """

    track: Tensor
    near: Tensor
    influences: int
    free_rest: bool
    held: Tensor | None = None
    locked: Tensor | None = None
    shares: Tensor | None = None
    smoothness: float = 0.0

    @property
    def rows(self) -> Tensor:
        """(3T, V), so scaled that squares sum to a mean over the frames."""
        return self.track.permute(0, 2, 1).reshape(-1, self.track.shape[1]) / len(self.track) ** 0.5


def _stack(transforms: Tensor) -> Tensor:
    """(3T, 4J), scaled as `Problem.rows`."""
    frames, bones = transforms.shape[:2]
    return transforms.permute(0, 2, 1, 3).reshape(3 * frames, 4 * bones) / frames**0.5


def _basis(state: State) -> Tensor:
    """(V, 4J): w_ij (u_i, 1)."""
    dense = dense_weights(state.weights, state.indices, state.transforms.shape[1])
    return (dense[:, :, None] * homogeneous(state.rest)[:, None]).flatten(1)


def _squares(rows: Tensor, state: State) -> Tensor:
    """(V,): squared error of each vertex, mean over the frames."""
    return (_stack(state.transforms) @ _basis(state).T - rows).square().sum(0)


def rmse(problem: Problem, state: State) -> float:
    """Root mean square distance over frames and vertices."""
    return float(_squares(problem.rows, state).mean().sqrt())


def begin(problem: Problem, rest: Tensor, bones: int) -> State:
    """Rigid clusters, each vertex all of its own."""
    labels, transforms = cluster_rigidly(problem.track, rest, problem.near, bones, tolerance=FLOOR)
    weights = rest.new_zeros(len(rest), problem.influences)
    weights[:, 0] = 1
    indices = torch.zeros_like(weights, dtype=torch.int64)
    indices[:, 0] = labels
    return State(rest, weights, indices, transforms)


def _alternate(problem: Problem, rows: Tensor, state: State) -> State:
    """Weights, then bones, then, where it is free, the rest."""
    rest, weights, indices, transforms = state
    frames, bones = transforms.shape[:2]
    stacked = _stack(transforms)
    gram, moment = stacked.T @ stacked, rows.T @ stacked
    aim, ridge = None, RIDGE
    if problem.shares is not None:
        aim = _smooth(dense_weights(weights, indices, bones), problem.near, problem.shares)
        ridge = problem.smoothness
    found, ids = fit_weights(gram, moment, rest, weights, indices, aim=aim, ridge=ridge)
    if problem.held is not None:
        found = torch.where(problem.held[:, None], weights, found)
        ids = torch.where(problem.held[:, None], indices, ids)
    state = State(rest, found, ids, transforms)
    basis = _basis(state)
    target = (rows @ basis).reshape(frames, 3, bones, 4).permute(0, 2, 1, 3) * frames**0.5
    state = state._replace(transforms=fit_bones(basis.T @ basis, target, transforms, locked=problem.locked))
    return state._replace(rest=_fit_rest(rows, state)) if problem.free_rest else state


def _fit_rest(rows: Tensor, state: State) -> Tensor:
    """Where each vertex rests at least error: its blend of transforms, inverted by least squares."""
    bones = state.transforms.shape[1]
    stacked = _stack(state.transforms)
    dense = dense_weights(state.weights, state.indices, bones)
    gram = (stacked.T @ stacked).reshape(bones, 4 * bones * 4)
    blend = (dense @ gram).reshape(-1, 4, bones, 4)
    blend = (blend * dense[:, None, :, None]).sum(2)
    pull = ((rows.T @ stacked).reshape(-1, bones, 4) * dense[..., None]).sum(1)
    # towards where it is, of what the motion leaves open
    N = blend[:, :3, :3] + 1e-9 * torch.eye(3, dtype=rows.dtype, device=rows.device)
    right = pull[:, :3] - blend[:, :3, 3] + 1e-9 * state.rest
    return torch.linalg.solve(N, right[..., None])[..., 0]


def _bend(problem: Problem, rows: Tensor, state: State, damping: float) -> State:
    """The rests of all bones turned against each other, and vertices with them."""
    stacked = _stack(state.transforms)
    rest, weights, transforms = turn_rests(
        stacked.T @ stacked, rows.T @ stacked, *state, damping=damping, held=problem.held, locked=problem.locked
    )
    state = State(rest, weights, state.indices, transforms)
    state = state._replace(rest=_fit_rest(rows, state))
    stacked = _stack(transforms)
    rest, weights = settle_points(
        stacked.T @ stacked, rows.T @ stacked, state.rest, weights, state.indices, held=problem.held
    )
    return state._replace(rest=rest, weights=weights)


def _smooth(dense: Tensor, near: Tensor, shares: Tensor, rounds: int = 8) -> Tensor:
    """One implicit step of diffusion over the neighbours, by Jacobi's iteration."""
    out = dense
    for _ in range(rounds):
        out = 0.5 * (dense + (shares[..., None] * out[near]).sum(1))
    return out


def descend(
    problem: Problem, state: State, steps: int, *, enough: float = 0.0, bend: bool = True
) -> tuple[State, float, int]:
    """Alternations while they pay, at most `steps`: the state, its error, and how many there were.

    Each begins a little further along the last one's motion, more so from step to step; a step that made the error
    greater is taken back. Where the rest is free, half of them begin with its bend, unless `bend` is
    false.
    """
    rows = problem.rows
    error, size, damping = float(_squares(rows, state).mean().sqrt()), 0.0, 1e-3
    before, looked, done, turn = state, error, 0, 0
    while done < steps and error > enough:
        bends = bend and problem.free_rest and turn % _BLOCK < _BLOCK // 2
        turn, done = turn + 1, done + (_DEAR if bends else 1)
        trial = state
        if bends:
            trial, size = _bend(problem, rows, state, damping), 0.0
        elif size > 0:
            dense = dense_weights(state.weights, state.indices, state.transforms.shape[1])
            pivots = dense.T @ state.rest / dense.sum(0).clamp(min=1e-9)[:, None]
            moved = step_along(state.transforms, before.transforms, pivots, size)
            trial = state._replace(transforms=moved, rest=state.rest + size * (state.rest - before.rest))
        trial = _alternate(problem, rows, trial)
        now = float(_squares(rows, trial).mean().sqrt())
        if bends:
            damping = max(0.2 * damping, 1e-9) if now <= error else 8 * damping
            if now <= error:
                before, state, error = trial, trial, now
        elif now <= error or size == 0:
            before, state, error = state, trial, now
            size = 0.0 if problem.shares is not None else min(1.3 * size + 0.3, 20.0)
        else:
            size = 0.3 * size if size > 0.5 else 0.0
        if turn % _BLOCK == 0:
            if error > (1 - _GAIN) * looked:
                break
            looked = error
    return state, error, min(done, steps)


def _without(problem: Problem, rows: Tensor, state: State, bone: int, vertices: Tensor) -> State:
    """The weights of these vertices without a bone: shared among their others, or the whole of the nearest."""
    bones = state.transforms.shape[1]
    keep = [j for j in range(bones) if j != bone]
    transforms = state.transforms[:, keep]
    dense = dense_weights(state.weights[vertices], state.indices[vertices], bones)[:, keep]
    left = dense.sum(1, keepdim=True)
    dense = dense / left.clamp(min=1e-6)
    alone = (left[:, 0] <= 1e-6).nonzero()[:, 0]
    if len(alone):
        nearest = rigid_errors(problem.track[:, vertices[alone]], state.rest[vertices[alone]], transforms).argmin(1)
        dense[alone] = torch.nn.functional.one_hot(nearest, bones - 1).to(dense.dtype)
    width = state.weights.shape[1]
    top, ids = dense.topk(min(width, bones - 1), 1)
    pad = (0, width - top.shape[1])
    return State(state.rest[vertices], torch.nn.functional.pad(top, pad), torch.nn.functional.pad(ids, pad), transforms)


def thin(problem: Problem, state: State, bones: int, *, steps: int = 3) -> State:
    """Bones go until there are `bones`, each time the one without which weights fit best; `steps` follow each."""
    rows, everyone = problem.rows, torch.arange(len(state.rest), device=state.rest.device)
    while state.transforms.shape[1] > bones:
        stacked = _stack(state.transforms)
        gram, moment = stacked.T @ stacked, rows.T @ stacked
        error = _squares(rows, state)
        dense = dense_weights(state.weights, state.indices, state.transforms.shape[1])
        losses = []
        for j in range(state.transforms.shape[1]):
            vertices = (dense[:, j] > 0).nonzero()[:, 0]
            columns = torch.arange(len(gram), device=gram.device) // 4 != j
            some = _without(problem, rows, state, j, vertices)
            pull = moment[vertices][:, columns]
            less = gram[columns][:, columns]
            weights, indices = fit_weights(less, pull, some.rest, some.weights, some.indices)
            basis = _basis(some._replace(weights=weights, indices=indices))
            fit = ((basis @ less) * basis).sum(1) - 2 * (basis * pull).sum(1) + rows[:, vertices].square().sum(0)
            losses.append(float((fit - error[vertices]).sum()))
        state = _without(problem, rows, state, losses.index(min(losses)), everyone)
        for _ in range(steps):
            state = _alternate(problem, rows, state)
    return state


def reseed(problem: Problem, state: State, bones: int, *, extra: int) -> State:
    """`bones` bones again, after some came where the error was greatest, to `extra` too many."""
    rows, count = problem.rows, bones + extra - state.transforms.shape[1]
    around = _squares(rows, state)[problem.near].mean(1)
    for _ in range(count):
        seed = int(around.argmax())
        other = torch.ones_like(problem.near[:, 0])
        other[problem.near[seed]] = 0
        bone = fit_labels(problem.track, state.rest, other, 2)[:, :1]
        explained = rigid_errors(problem.track, state.rest, bone)[:, 0][problem.near].mean(1) < around
        around = torch.where(explained | (other == 0), 0.0, around)
        state = state._replace(transforms=torch.cat([state.transforms, bone], 1))
    for _ in range(6):
        state = _alternate(problem, rows, state)
    return thin(problem, state, bones)
