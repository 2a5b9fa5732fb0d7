"""Bones and weights from motion: smooth skinning decomposition with rigid bones (Le and Deng 2012), with locks.

min  1/2 sum_t sum_i |sum_j w_ij (R_tj u_i + t_tj) - x_ti|^2,   w >= 0, sum_j w_ij = 1, at most K of them not 0
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from geom.checks import check_indices, check_points, check_positive, check_weights, describe
from geom.errors import ShapeError
from geom.io.rig import Rig, make_rig
from geom.points import knn
from geom.skinning.alternation import FLOOR, Problem, State, begin, descend, reseed, rmse, thin
from geom.skinning.joints import joint_tree
from geom.skinning.linear import lbs
from geom.values import Fit, Value, value

__all__ = ["Decomposition", "check_track", "decompose_skinning", "refine_skinning", "solve_skinning"]

_SPARE = {True: 1.5, False: 2.0}  # clusters at first, over the bones asked for, by whether the rest is free
_NEIGHBORS = 12
_MOST = 16  # influences


@value
class Decomposition(Value):
    """A track as linear blend skinning: rest (V, 3), weights and indices (V, K), transforms (T, J, 3, 4), all rigid."""

    rest: Float[Tensor, "v 3"]
    weights: Float[Tensor, "v k"]
    indices: Int64[Tensor, "v k"]
    transforms: Float[Tensor, "t j 3 4"]

    def track(self) -> Float[Tensor, "t v 3"]:
        """The vertices, frame by frame."""
        return lbs(self.rest, self.weights, self.transforms, indices=self.indices)

    def rig(self, *, faces: Int64[Tensor, "f 3"] | None = None, rate: float = 30.0) -> Rig:
        """A rig whose animation is the track, `rate` frames a second; its joints stand where bones turn about each
        other (`discover_parts`), which leaves the motion as it is."""
        dense = torch.zeros_like(self.weights[:, :1]).repeat(1, self.transforms.shape[1])
        dense = dense.scatter_add(1, self.indices, self.weights)
        most = dense.amax(0)
        members = [((dense[:, j] >= 0.5 * most[j]) & (dense[:, j] > 0)).nonzero()[:, 0] for j in range(len(most))]
        joints, parent = joint_tree(self.transforms, self.rest, members)
        R = self.transforms[..., :3]
        place = (R @ joints[:, :, None])[..., 0] + self.transforms[..., 3]
        faces = self.indices.new_empty(0, 3) if faces is None else faces
        return make_rig(
            self.rest,
            faces,
            parent=parent,
            joints=joints,
            weights=self.weights,
            indices=self.indices,
            motion=torch.cat([R, place[..., None]], -1),
            rate=rate,
        )


def solve_skinning(
    track: Float[Tensor, "t v 3"],
    *,
    bones: int,
    rest: Float[Tensor, "v 3"] | None = None,
    faces: Int64[Tensor, "f 3"] | None = None,
    influences: int = 4,
    tolerance: float | None = None,
    rate: float = 30.0,
) -> Fit[Rig]:
    """A rig whose animation is a mesh sequence: `decompose_skinning`, then joints and a tree (`Decomposition.rig`).

    Args: track, bones, rest, influences, tolerance: as `decompose_skinning`; faces (F, 3) int64, of the rig's surface;
    rate, frames a second. To lock weights or bones, or to start from known ones: `refine_skinning(...).value.rig()`.
    Returns: Fit[Rig]: `geom.skinning.save_rig` writes it as glTF; cost, converged, iterations of the decomposition.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; weights sum to 1 within 3e-16 f64, 2e-7 f32
    """
    if faces is not None:
        check_indices(faces, 3, check_track(track).shape[1], "faces", "F")
    check_positive(rate, "rate")
    fit = decompose_skinning(track, bones=bones, rest=rest, influences=influences, tolerance=tolerance)
    return Fit(fit.value.rig(faces=faces, rate=rate), fit.cost, None, fit.converged, fit.iterations)


def decompose_skinning(
    track: Float[Tensor, "t v 3"],
    *,
    bones: int,
    rest: Float[Tensor, "v 3"] | None = None,
    influences: int = 4,
    tolerance: float | None = None,
    smoothness: float = 0.0,
    iterations: int = 300,
) -> Fit[Decomposition]:
    """Bones, weights and, unless it is given, the rest shape of a mesh sequence, without a guess.

    More rigid clusters than bones are asked for become bones; weights (all vertices at once, by active
    sets) and transforms (all frames at once) alternate; bones go whose loss costs least; where the error stands still,
    bones are tried where it is greatest. A local minimum all the same: of sequences that skinning made, with their
    rest and number of bones, the error measured was 1e-6 of the diagonal, without the rest 1e-5 to 4e-3.

    Args:
        track: (T, V, 3) vertices over frames, any unit, float32 or float64, finite. It is worked in float64.
        bones: how many at most; fewer where fewer rigid clusters reproduce the track.
        rest: (V, 3) the shape that bones deform; None: found too, from the first frame on.
        influences: K, bones of a vertex at most, 1 to 16.
        tolerance: greatest root mean square error, in the track's unit: once it is met, bones go while it still is, so
            that no other could be spared. None: as small an error, with `bones` bones, as `iterations` allow.
        smoothness: pull of each vertex's weights to its 12 neighbours', which count less the more their distances
            change; 1e-4 smooths noise away, 0 reproduces best.
        iterations: alternations at most, those of the start not counted; those that straighten a free rest count four.
    Returns: Fit[Decomposition]: cost 1/2 sum |error|^2, root mean square sqrt(2 cost / (T V)); converged: `tolerance`
        met, or 1e-6 of the diagonal, or nothing that was tried gained any more.
    Raises: ShapeError.
    Le and Deng, "Smooth Skinning Decomposition with Rigid Bones" (2012).

    >>> turn = torch.linspace(0, 1, 9)[:, None]
    >>> s = torch.linspace(0.1, 1, 10)
    >>> arm = torch.stack([s * turn.cos(), s * turn.sin(), 0 * s * turn], -1)
    >>> fit = decompose_skinning(torch.cat([arm, -s[:, None] * torch.ones(9, 1, 3)], 1), bones=2)
    >>> fit.value.transforms.shape[1], bool(fit.cost < 1e-8)
    (2, True)

    Guarantees: not differentiable; deterministic; weights sum to 1 within 3e-16 f64, 2e-7 f32
    """
    track = check_track(track)
    if not isinstance(bones, int) or bones < 1:
        raise ShapeError(f"bones: expected a whole number of at least 1, got {describe(bones)}")
    if not isinstance(influences, int) or not 1 <= influences <= _MOST:
        raise ShapeError(f"influences: expected a whole number from 1 to {_MOST}, got {describe(influences)}")
    enough = None if tolerance is None else check_positive(tolerance, "tolerance")
    if rest is not None and check_points(rest, "rest").shape != track.shape[1:]:
        raise ShapeError(f"rest: expected shape {tuple(track.shape[1:])}, got {tuple(rest.shape)}")
    frame = _Frame(track, track[0] if rest is None else rest)
    problem = frame.problem(track, influences, free_rest=rest is None, smoothness=smoothness)
    goal = FLOOR if enough is None else enough / frame.scale
    state = begin(problem, frame.inwards(frame.rest), math.ceil(_SPARE[rest is None] * bones))
    state, error, _ = descend(problem, state, 8, enough=goal, bend=False)
    state = thin(problem, state, bones)
    state, error, used, settled = _search(problem, state, bones, iterations, goal)
    if enough is not None:
        while error <= goal and state.transforms.shape[1] > 1:
            fewer, fit, n = descend(problem, thin(problem, state, state.transforms.shape[1] - 1), 60, enough=goal)
            used += n
            if fit > goal:
                break
            state, error = fewer, fit
    return frame.fit(state, error, error <= goal or (settled and enough is None), used, track)


def refine_skinning(
    track: Float[Tensor, "t v 3"],
    guess: Decomposition,
    *,
    lock_weights: Bool[Tensor, " v"] | None = None,
    lock_bones: Bool[Tensor, " j"] | None = None,
    free_rest: bool = False,
    smoothness: float = 0.0,
    iterations: int = 100,
) -> Fit[Decomposition]:
    """The nearest local minimum to a guess: alternations alone, and what is locked comes back as it was, bit for bit.

    Args:
        track: (T, V, 3), as in `decompose_skinning`, of the guess's dtype.
        guess: of as many vertices and frames; K of its weights is the bound; its transforms are to be rigid.
        lock_weights: vertices whose weights stay. lock_bones: bones that stay in all frames.
        free_rest: whether the rest shape is found too. smoothness, iterations: as in `decompose_skinning`.
    Returns: Fit[Decomposition], of no greater cost where smoothness is 0; converged: ten more would gain less than 2 %.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; what is locked, bit for bit
    """
    track = check_track(track)
    frames, vertices = track.shape[:2]
    bones, width = guess.transforms.shape[1], guess.weights.shape[1]
    if guess.rest.shape != track.shape[1:] or len(guess.transforms) != frames or guess.rest.dtype != track.dtype:
        raise ShapeError(
            f"guess: expected {frames} frames of {vertices} vertices in {track.dtype}, got {len(guess.transforms)} of "
            f"{len(guess.rest)} in {guess.rest.dtype}"
        )
    check_indices(guess.indices, width, bones, "guess.indices", "V")
    check_weights(guess.weights, "guess.weights")
    if not 1 <= width <= _MOST:
        raise ShapeError(f"guess: expected 1 to {_MOST} weights a vertex, got {width}")
    for lock, size, name in ((lock_weights, vertices, "lock_weights"), (lock_bones, bones, "lock_bones")):
        if lock is not None and (lock.shape != (size,) or lock.dtype != torch.bool):
            raise ShapeError(f"{name}: expected a bool tensor ({size},), got {describe(lock)}")
    frame = _Frame(track, guess.rest)
    problem = frame.problem(track, width, free_rest, smoothness, held=lock_weights, locked=lock_bones)
    weights = guess.weights.double()
    state = State(
        frame.inwards(guess.rest),
        weights / weights.sum(1, keepdim=True),
        guess.indices,
        frame.motion_inwards(guess.transforms),
    )
    state, error, used = descend(problem, state, iterations, enough=FLOOR)
    fit = frame.fit(state, error, error <= FLOOR or used < iterations, used, track)
    found = fit.value
    none = torch.zeros((), dtype=torch.bool, device=track.device)
    held = (none if lock_weights is None else lock_weights)[..., None]
    locked = (none if lock_bones is None else lock_bones)[..., None, None]
    back = Decomposition(
        found.rest if free_rest else guess.rest,
        torch.where(held, guess.weights, found.weights),
        torch.where(held, guess.indices, found.indices),
        torch.where(locked, guess.transforms, found.transforms),
    )
    return Fit(back, fit.cost, None, fit.converged, fit.iterations)


def check_track(track: Tensor) -> Tensor:
    """Raises: ShapeError unless it is (T, V, 3), T and V at least 1, float32 or float64, finite."""
    if not isinstance(track, Tensor) or track.ndim != 3 or 0 in track.shape:
        raise ShapeError(f"track: expected a float tensor (T, V, 3) of at least one point, got {describe(track)}")
    check_points(track.reshape(-1, track.shape[-1]), "track")
    return track.detach()


def _search(problem: Problem, state: State, bones: int, steps: int, goal: float) -> tuple[State, float, int, bool]:
    """Descends, and moves bones where that gains, until nothing does: state, error, steps, whether it ended so."""
    error, used, failures = rmse(problem, state), 0, 0
    while True:
        state, error, n = descend(problem, state, steps - used, enough=goal)
        used += n
        while error > goal and used < steps and failures < 5:
            other = reseed(problem, state, bones, extra=2 + 2 * (failures % 2))
            other, now, n = descend(problem, other, min(30, steps - used), enough=goal)
            used += n + 10
            if now < 0.99 * error:
                state, error, failures = other, now, 0
                break
            failures += 1
        else:
            return state, error, min(used, steps), failures == 5 or error <= goal


class _Frame:
    """The unit of the work: the diagonal of the rest's box, about its centre, in float64."""

    def __init__(self, track: Tensor, rest: Tensor) -> None:
        self.rest, self.dtype = rest.detach(), track.dtype
        box = self.rest.double()
        self.centre = box.mean(0)
        moved = (track[0].double() - track.double().mean((0, 1))).norm(dim=-1).max()
        size = float((box.amax(0) - box.amin(0)).norm())
        self.scale = size or float(moved) or 1.0

    def inwards(self, x: Tensor) -> Tensor:
        return (x.double() - self.centre) / self.scale

    def motion_inwards(self, transforms: Tensor) -> Tensor:
        M = transforms.double()
        t = M[..., 3] + (M[..., :3] @ self.centre[:, None])[..., 0]
        return torch.cat([M[..., :3], self.inwards(t)[..., None]], -1)

    def problem(
        self,
        track: Tensor,
        influences: int,
        free_rest: bool,
        smoothness: float,
        held: Tensor | None = None,
        locked: Tensor | None = None,
    ) -> Problem:
        if not 0 <= smoothness < math.inf:
            raise ShapeError(f"smoothness: expected a finite number of at least 0, got {describe(smoothness)}")
        x, u = self.inwards(track), self.inwards(self.rest)
        near = knn(u, u, min(_NEIGHBORS, len(u))).index
        shares = None if smoothness == 0 else _shares(x, near)
        return Problem(x, near, influences, free_rest, held, locked, shares, smoothness)

    def fit(self, state: State, error: float, converged: bool, used: int, track: Tensor) -> Fit[Decomposition]:
        """The state in the units of the track."""
        R = state.transforms[..., :3]
        t = self.scale * state.transforms[..., 3] + self.centre - (R @ self.centre[:, None])[..., 0]
        transforms = torch.cat([R, t[..., None]], -1).to(self.dtype)
        rest = (self.scale * state.rest + self.centre).to(self.dtype)
        cost = 0.5 * (error * self.scale) ** 2 * track.shape[0] * track.shape[1]
        return Fit(
            Decomposition(rest, state.weights.to(self.dtype), state.indices, transforms),
            track.new_tensor(cost),
            None,
            torch.tensor(converged, device=track.device),
            torch.tensor(used, device=track.device),
        )


def _shares(track: Tensor, near: Tensor) -> Tensor:
    """(V, k): shares of the neighbours, of sum 1, by 1 / (change of distance + 1e-3)."""
    first, second = torch.zeros_like(near, dtype=track.dtype), torch.zeros_like(near, dtype=track.dtype)
    for x in track:
        far = (x[near] - x[:, None]).norm(dim=-1)
        first, second = first + far, second + far.square()
    spread = (second / len(track) - (first / len(track)).square()).clamp(min=0).sqrt()
    share = 1 / (spread + 1e-3)
    return share / share.sum(1, keepdim=True)
