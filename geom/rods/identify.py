"""`identify`: the parameters of a rod from how it was seen to move, the inverse of `rollout`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from geom.checks import check_positive, describe
from geom.errors import ShapeError
from geom.rods.dynamics import State, rollout, start
from geom.rods.rod import Rod
from geom.values import Fit, replace, value

__all__ = [
    "FREE",
    "Begun",
    "Clips",
    "Identification",
    "begin",
    "between",
    "check_clips",
    "fill_gaps",
    "grips",
    "identify",
    "predict",
    "track_errors",
]

# what `identify` can free: the field of Rod, and by how many orders of magnitude the search may leave the guess
FREE = {
    "EI": ("bend_stiffness", 1.0),
    "GJ": ("twist_stiffness", 1.0),
    "EA": ("stretch_stiffness", 1.0),
    "mass": ("mass", 0.0),
    "drag": ("drag", 0.7),
    "quadratic_drag": ("quadratic_drag", 0.7),
    "internal_damping": ("internal_damping", 0.7),
    "viscosity": ("viscosity", 0.7),
    "curvature": ("curvature", 0.0),
    "twist": ("twist", 0.0),
}
_FIELDS = tuple(f.name for f in dataclasses.fields(Rod) if f.name != "parent")
_ADDED = ("curvature", "twist")  # these move by sums, the others by factors
_BY_ROD = ("EI", "GJ", "mass")  # one factor a rod, and one a junction


class Clips(NamedTuple):
    """Motion capture of one rod held in one way: track (clips, t, n, 3), metres, NaN where a marker was lost; clamped
    vertices; held edges, None for all between clamped vertices; the clips held out (clips,), None for none."""

    track: Tensor
    clamped: Sequence[int]
    held: Sequence[int] | None = None
    held_out: Tensor | None = None


@value
class Identification(Fit[Rod]):
    """A `Fit` of a rod: error (clips,), each clip's mean absolute error in metres; held_out (clips,), those that were
    not fitted; parameters, how many numbers were."""

    error: Float[Tensor, "clips"]
    held_out: Bool[Tensor, "clips"]
    parameters: int


def fill_gaps(track: Float[Tensor, "clips t n 3"]) -> Float[Tensor, "clips t n 3"]:
    """NaN, where motion capture lost a marker, filled between the last sight and the next, and held at the ends.

    Raises: ShapeError for a marker that a clip never shows.
    """
    if bool(track.isfinite().all()):
        return track
    clips, frames, n, _ = track.shape
    x = track.permute(0, 2, 1, 3).reshape(-1, frames, 3)
    seen = x.isfinite().all(-1)
    if not bool(seen.any(1).all()):
        lost = int((~seen.any(1)).nonzero()[0])
        raise ShapeError(
            f"track: expected every vertex in some frame, got none of vertex {lost % n} in clip {lost // n}"
        )
    time = torch.arange(frames, device=track.device)
    before = torch.where(seen, time, -1).cummax(1).values
    after = torch.where(seen, time, frames).flip(1).cummin(1).values.flip(1)
    before, after = torch.where(before < 0, after, before), torch.where(after >= frames, before, after)
    part = ((time - before) / (after - before).clamp(min=1)).to(track.dtype)[..., None]
    a, b = (x.gather(1, i[..., None].expand(-1, -1, 3)) for i in (before, after))
    return (a + part * (b - a)).reshape(clips, n, frames, 3).permute(0, 2, 1, 3)


def predict(
    rod: Rod,
    track: Float[Tensor, "clips t n 3"],
    *,
    clamped: Sequence[int],
    held: Sequence[int] | None = None,
    dt: float = 0.01,
    substeps: int = 4,
) -> Float[Tensor, "clips t n 3"]:
    """The motion of a rod from the first two frames of each clip and the path of its clamped vertices alone.

    It starts in frame 1 with velocity (x1 - x0) / dt; frames 0 and 1 are copied. Gaps (NaN) are filled, see
    `fill_gaps`.

    Args:
        rod: as `identify` finds it. track: metres, at least 3 frames dt seconds apart.
        clamped: vertices whose path is given, negative ones from the end. One within a rod, without a neighbour, is a
            grip that does not turn: it keeps the direction of the edge before it.
        held: edges that do not roll in their grips; all between clamped vertices if None.
        dt: seconds between frames. substeps: of each frame, grips moving evenly.
    Returns: positions as the track's.
    Raises: ShapeError.

    Guarantees: differentiable in the rod, as `rollout`; deterministic; float32 and float64
    """
    begun = begin(rod, track, clamped, held, dt, substeps)
    targets = between(begun.path, substeps)
    moved = rollout(rod, begun.state, clamped=begun.vertices, targets=targets, held=begun.edges, dt=dt / substeps)
    return torch.cat([begun.frames, moved.position[:, substeps - 1 :: substeps]], 1)


class Begun(NamedTuple):
    """What a prediction begins with: frames 0 and 1 (clips, 2, n, 3), the state in frame 1, clamped vertices and their
    path (clips, t - 1, k, 3) from there on, and held edges."""

    frames: Tensor
    state: State
    vertices: list[int]
    path: Tensor
    edges: list[int]


def begin(
    rod: Rod, track: Tensor, clamped: Sequence[int], held: Sequence[int] | None, dt: float, substeps: int
) -> Begun:
    """From the arguments of `predict`. Raises: ShapeError."""
    check_clips(rod, track, dt, substeps)
    track = fill_gaps(track)
    vertices, edges, led = grips(rod, track, clamped, held)
    state = start(rod, track[:, 1], (track[:, 1] - track[:, 0]) / dt, clamped=vertices)
    return Begun(track[:, :2], state, vertices, led[:, 1:, vertices], edges)


def check_clips(rod: Rod, track: Tensor, dt: float, substeps: int) -> None:
    if track.ndim != 4 or track.shape[1] < 3 or track.shape[2:] != (len(rod.parent), 3):
        raise ShapeError(f"track: expected (clips, t > 2, {len(rod.parent)}, 3), got {describe(track)}")
    check_positive(dt, "dt")
    check_positive(substeps, "substeps")


def grips(
    rod: Rod, track: Float[Tensor, "clips t n 3"], clamped: Sequence[int], held: Sequence[int] | None
) -> tuple[list[int], list[int], Float[Tensor, "clips t n 3"]]:
    """Clamped vertices, none negative; held edges, where None all between clamped vertices; and the track that leads
    them. A grip on one vertex within a rod keeps the direction that the edge before it has in frame 1: the vertex
    before is clamped too, and led along with it."""
    parent = rod.parent.tolist()
    vertices = [v % len(parent) for v in clamped]
    near = {p for k, p in enumerate(parent) if k in vertices} | {k for k, p in enumerate(parent) if p in vertices}
    alone = [v for v in vertices if v not in near and parent[v] >= 0 and v in parent]
    led = track.clone() if alone else track
    for v in alone:
        led[:, 1:, parent[v]] = track[:, 1:, v] + (track[:, 1:2, parent[v]] - track[:, 1:2, v])
    vertices += [parent[v] for v in alone]
    if held is None:
        held = [k for k, p in enumerate(parent) if k in vertices and p in vertices]
    return vertices, list(held), led


def between(path: Float[Tensor, "b t k 3"], substeps: int) -> Float[Tensor, "b s k 3"]:
    """Targets after each substep of the frames after the first, moving evenly."""
    part = torch.arange(1, substeps + 1, device=path.device).to(path.dtype)[:, None, None] / substeps
    return (path[:, :-1, None] + part * path.diff(dim=1)[:, :, None]).flatten(1, 2)


def track_errors(
    predicted: Float[Tensor, "clips t n 3"], track: Float[Tensor, "clips t n 3"]
) -> Float[Tensor, "clips"]:
    """DEFORM's score of each clip, metres: |predicted - track| averaged over vertices and coordinates, summed over the
    frames from the third, divided by the number of all. Coordinates that are NaN in the track do not count.

    Guarantees: differentiable; deterministic; 1e-6 f32
    """
    seen = track[:, 2:].isfinite()
    off = torch.where(seen, predicted[:, 2:] - torch.where(seen, track[:, 2:], 0.0), 0.0).abs()
    each = off.sum((2, 3)) / seen.sum((2, 3)).clamp(min=1)
    return each.sum(1) / track.shape[1]


def identify(
    track: Float[Tensor, "clips t n 3"],
    guess: Rod | Sequence[Rod],
    *,
    clamped: Sequence[int],
    held: Sequence[int] | None = None,
    dt: float = 0.01,
    substeps: int = 4,
    free: Sequence[str] = ("EI", "GJ", "drag", "quadratic_drag", "viscosity", "curvature"),
    held_out: Bool[Tensor, "clips"] | None = None,
    more: Sequence[Clips] = (),
    starts: int = 32,
    iterations: int = 200,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Identification:
    """Rod parameters that predict the clips best: least mean absolute error of `predict`, by gradient descent.

    First `starts` guesses, log-uniform around the one given, are tried on a few clips; the best goes on with Adam on
    the gradient of the whole rollout (its adjoint), the step length falling as a cosine.

    Args:
        track: motion capture, metres; NaN where a marker was lost, which counts for nothing.
        guess: in each field a number of the right order (what is 0 and moves by a factor stays 0); lengths and masses
            as measured. Of several guesses each is followed for a quarter of the iterations; the best goes on.
        clamped, held, dt, substeps: as in `predict`.
        free: of `FREE`: "EI", "GJ", "mass" (one factor for each rod and each junction), "EA", "drag",
            "quadratic_drag", "internal_damping", "viscosity" (one factor), "curvature", "twist" (by bend).
        held_out: clips that are not fitted, only scored.
        more: clips of the same rod clamped elsewhere; each set counts by its mean, their clips follow in the result.
        starts, iterations: of the search and of the descent. generator: of the guesses; progress: a bar on a terminal.
    Returns: the rod, its mean error over the fitted clips (the mean of the sets' means) as cost, and each clip's.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic on the CPU for one generator; float32 and float64
    """
    if not isinstance(guess, Rod):
        first = {"clamped": clamped, "held": held, "dt": dt, "substeps": substeps, "free": free, "held_out": held_out}
        rest = {**first, "more": more, "generator": generator, "progress": progress}
        tried = [identify(track, g, starts=starts, iterations=max(1, iterations // 4), **rest) for g in guess]
        if not tried:
            raise ShapeError("guess: expected a rod or several, got none")
        best_guess = min(tried, key=lambda found: float(found.cost)).value
        return identify(track, best_guess, starts=1, iterations=iterations, **rest)
    unknown = [name for name in free if name not in FREE]
    if unknown or not free:
        raise ShapeError(f"free: expected names of {', '.join(FREE)}, got {unknown or 'none'}")
    sets = [Clips(track, clamped, held, held_out), *more]
    out = [_held_out(clips) for clips in sets]
    fitted = [clips._replace(track=clips.track[~o]) for clips, o in zip(sets, out, strict=True)]
    model = _Model(guess, free)

    def errors(rod: Rod, clips: Clips) -> Tensor:
        how = {"clamped": clips.clamped, "held": clips.held, "dt": dt, "substeps": substeps}
        return track_errors(predict(rod, clips.track, **how), clips.track)

    def slope(vector: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the sets' mean errors, and its gradient."""
        rod = model.rod(vector)
        cost = torch.stack([errors(rod, clips).mean() for clips in fitted]).mean()
        return cost.detach(), torch.autograd.grad(cost, vector)[0]

    def leads_on(vector: Tensor) -> bool:  # where the motion is unstable the slope, in metres, overflows
        return 0 < float(slope(vector.clone().requires_grad_())[1].norm()) < 1

    found = _search(model, fitted, errors, starts, generator) if starts > 1 else [model.zeros()]
    vector = next(filter(leads_on, found), found[0]).requires_grad_()
    optimizer = torch.optim.Adam([{"params": [vector], "lr": 1.0}], betas=(0.9, 0.95))
    best, best_vector = math.inf, vector.detach().clone()
    for i in (bar := tqdm(range(iterations), desc="identify", disable=None if progress else True)):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 + math.cos(math.pi * i / iterations))
        cost, gradient = slope(vector)
        score = float(cost)
        if score < best:
            best, best_vector = score, vector.detach().clone()
        gradient = torch.where(gradient.isfinite().all(), gradient, 0.0)
        size = float(gradient.norm())
        vector.grad = gradient if size <= 1 else gradient / size  # near a snap it may be enormous
        optimizer.step()
        bar.set_postfix_str(f"{100 * score:.3f} cm")
    with torch.no_grad():
        rod = model.rod(vector.detach())
        if float(torch.stack([errors(rod, clips).mean() for clips in fitted]).mean()) >= best:
            rod = model.rod(best_vector)
        error = [errors(rod, clips) for clips in sets]
    mean = torch.stack([e[~o].mean() for e, o in zip(error, out, strict=True)]).mean()
    done = torch.tensor(bool(mean <= best * (1 + 1e-3)), device=track.device)
    return Identification(rod, mean, None, done, torch.tensor(iterations), torch.cat(error), torch.cat(out), model.size)


def _held_out(clips: Clips) -> Tensor:
    """Raises: ShapeError where that leaves nothing to fit."""
    count = clips.track.shape[0]
    if clips.held_out is None:
        return torch.zeros(count, dtype=torch.bool, device=clips.track.device)
    if clips.held_out.shape != (count,) or bool(clips.held_out.all()):
        raise ShapeError(f"held_out: expected some of {count} clips left to fit, got {clips.held_out.tolist()}")
    return clips.held_out


class _Model:
    """Between a vector of numbers of order one and a rod: factors are exp(scale x), sums scale x."""

    def __init__(self, guess: Rod, free: Sequence[str]) -> None:
        self.guess, self.free = guess, list(free)
        parent = guess.parent
        index = torch.arange(len(parent), device=parent.device)
        leaves = (parent >= 0) & (parent != index - 1)  # the first edge of each branch
        chain = torch.cumsum((parent < 0) | leaves, 0) - 1
        self.rods = chain
        self.joints = torch.where(leaves, chain.max() + torch.cumsum(leaves, 0), chain)
        self.parts: list[tuple[str, slice, float, tuple[int, ...]]] = []
        self.size = 0
        bends = len(guess.tree.bends)
        for name in self.free:
            shape = {"curvature": (bends, 2), "twist": (bends,)}.get(name)
            if shape is None:
                shape = (int((self.rods if name == "mass" else self.joints).max()) + 1,) if name in _BY_ROD else ()
            count = math.prod(shape)
            self.parts.append((name, slice(self.size, self.size + count), 0.02 if name in _ADDED else 0.1, shape))
            self.size += count

    def zeros(self) -> Tensor:
        return torch.zeros(self.size, dtype=self.guess.mass.dtype, device=self.guess.mass.device)

    def rod(self, vector: Tensor) -> Rod:
        """The rod of a vector (*b, size)."""
        changed: dict[str, Tensor] = {}
        batch = vector.shape[:-1]
        for name, part, scale, shape in self.parts:
            field = FREE[name][0]
            old = getattr(self.guess, field)
            x = scale * vector[..., part].reshape((*batch, *shape))
            if name in _ADDED:
                full = torch.zeros(*batch, *old.shape, dtype=x.dtype, device=x.device)
                changed[field] = old + full.index_copy(len(batch), self.guess.tree.bends, x)
            elif name in _BY_ROD:
                factor = x.exp()[..., self.rods if name == "mass" else self.joints]
                changed[field] = old * (factor[..., None] if name == "EI" else factor)
            else:
                factor = x.exp()
                changed[field] = old * (factor[..., None] if old.ndim else factor)
        if batch:  # every field of a batch of rods has the batch
            for field in _FIELDS:
                old: Tensor = getattr(self.guess, field)
                x, own = changed.get(field, old), old.ndim
                changed[field] = x.expand(*batch, *x.shape[x.ndim - own :])
        return replace(self.guess, **changed)


def _search(
    model: _Model,
    sets: Sequence[Clips],
    errors: Callable[[Rod, Clips], Tensor],
    starts: int,
    generator: torch.Generator | None,
) -> list[Tensor]:
    """The best of several starting vectors on every so manieth clip, all in one batch, the best first."""
    vectors = model.zeros().repeat(starts, 1)
    for name, part, scale, _ in model.parts:
        wide = FREE[name][1] * math.log(10) / scale
        noise = torch.rand(starts, part.stop - part.start, generator=generator, dtype=torch.float64)
        vectors[:, part] = (wide * (2 * noise - 1)).to(vectors)
    vectors[0] = 0
    error = vectors.new_zeros(starts)
    for clips in sets:
        some = clips.track[:: max(1, len(clips.track) // 6)]
        rods = model.rod(vectors.repeat_interleave(len(some), 0))
        with torch.no_grad():
            seen = clips._replace(track=some.repeat(starts, 1, 1, 1))
            error += errors(rods, seen).reshape(starts, len(some)).mean(1)
    order = torch.where(error.isfinite(), error, math.inf).argsort()
    return [vectors[i].clone() for i in order[:8].tolist()]
