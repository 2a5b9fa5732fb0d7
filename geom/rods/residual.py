"""`Residual`: what identified physics leaves unexplained, learned by a graph network over rods and junctions."""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import normalize, silu
from typing_extensions import Self

from geom.checks import check_positive, describe
from geom.errors import FileFormatError, ShapeError
from geom.kernels.bridge import small_operations
from geom.rods.dynamics import GRAVITY, State, check_reach, clamps, start
from geom.rods.identify import Clips, begin, between, check_clips, fill_gaps, grips
from geom.rods.launch import Clamps, Rollout, tables
from geom.rods.rod import Rod
from geom.train import Cosine, TrainConfig, load_checkpoint, load_weights, save_checkpoint, stack, train
from geom.values import replace

__all__ = ["TRAINING", "Residual", "fit_residual", "predict_with", "rollout_with"]

TRAINING = TrainConfig(
    steps=3000,
    batch=45,
    rate=2e-3,
    schedule=Cosine(warmup=20),
    weight_decay=1e-2,
    clip=1.0,
    average=0.99,
    checkpoint_every=50,
    validate_every=50,
)
_VECTORS = 6  # world vectors that each vertex reads in its own frame


class Residual(torch.nn.Module):
    """An acceleration of every vertex, from the state of the rod.

    Each vertex reads gravity, velocities and places in the frame (tangent, director, binormal) of the edge that ends in
    it (a root: of its first edge), beside strain, rate of strain and a learned code of its own; then vertices exchange
    messages with the vertex before, those after and the mean of their tree:

        h <- h + silu(W [h, h_before, mean h_after, mean h] + b)
        acceleration = limit R tanh(W h),    R the frame

    So it turns with the rod, about any axis if gravity turns too, is the same anywhere in space, and knows left from
    right. The last layer starts at zero: before training, this is the physics.

    Args:
        parent: the vertex before each, as in `Rod`.
        width: of the layers. rounds: of messages. code: numbers of each vertex's own.
        limit: largest acceleration along each axis of a frame, m/s^2. hold: frames for which one stays as it is.
        generator: of the first weights.
    """

    parent: Tensor
    frame: Tensor
    root: Tensor
    mixing: Tensor

    def __init__(
        self,
        parent: Int64[Tensor, "n"],
        *,
        width: int = 32,
        rounds: int = 2,
        code: int = 8,
        limit: float = 10.0,
        hold: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if parent.ndim != 1 or not len(parent) or parent.is_floating_point():
            raise ShapeError(f"parent: expected the vertex before each (n,), got {describe(parent)}")
        for name, x in (("width", width), ("rounds", rounds), ("code", code), ("limit", limit), ("hold", hold)):
            check_positive(x, name)
        n = len(parent)
        self.limit, self.hold = limit, hold
        self.plan = {"width": width, "rounds": rounds, "code": code, "limit": limit, "hold": hold}
        for name, x in zip(("frame", "root", "mixing"), _topology(parent), strict=True):
            self.register_buffer(name, x, persistent=False)
        self.register_buffer("parent", parent.clone(), persistent=False)

        def normal(*shape: int) -> torch.nn.Parameter:
            scale = shape[-2] ** -0.5
            return torch.nn.Parameter(scale * torch.randn(*shape, generator=generator, dtype=torch.float64).float())

        def zeros(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.zeros(shape))

        self.code = normal(n, 1, code)
        self.first = normal(3 * _VECTORS + 6 + code, width)
        self.messages = normal(rounds, 4 * width, width)
        self.offsets = zeros(rounds + 1, width)
        self.last = zeros(width, 3)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and shape as safetensors; a failed write leaves the old file."""
        save_checkpoint(path, {"residual": self.plan, "parent": self.parent, "module": self.state_dict()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, on the CPU. Raises: FileFormatError if it is something else; OSError as `open`."""
        state = load_checkpoint(path)
        try:
            residual = cls(state["parent"], **state["residual"])
            residual.load_state_dict(state["module"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise FileFormatError(path, f"expected a saved residual, got {error!r}") from error
        return residual

    def forward(self, state: State, dt: float = 0.01) -> Float[Tensor, "*b n 3"]:
        """Acceleration of every vertex, m/s^2; dt seconds lie between the state's strains.

        Guarantees: differentiable; deterministic; 1e-12 f64, 1e-4 f32
        """
        batch, n = state.position.shape[:-2], state.position.shape[-2]
        before = state.strain if state.strain_before is None else state.strain_before
        fields = (state.position, state.velocity, state.director, state.strain, before)
        # vertices first: (n, B, .), so that messages are one product of matrices
        x, v, director, strain, before = (y.reshape(-1, n, 3).transpose(0, 1) for y in fields)
        tangent = normalize(x[self.frame] - x[self.parent[self.frame]], dim=-1)
        first = director[self.frame]
        first = normalize(first - (first * tangent).sum(-1, keepdim=True) * tangent, dim=-1)
        axes = torch.stack([tangent, first, torch.linalg.cross(tangent, first)], -2)
        mixing = self.mixing.to(x)
        both = torch.cat([x, v], -1)
        away = (mixing[2 * n :] @ both.reshape(n, -1)).reshape(both.shape) - both
        up = torch.zeros_like(x)
        up[..., 2] = 1
        vectors = [up, v, v - v[self.parent.clamp(min=0)], 3 * (x - x[self.root]), 3 * away[..., :3], away[..., 3:]]
        local = (torch.stack(vectors, -2)[..., None, :] * axes[..., None, :, :]).sum(-1).flatten(-2)
        rate = (strain - before.detach()) * (0.1 / dt)
        learned = [self.first, self.messages, self.offsets, self.last, self.code]
        into, messages, offsets, out, code = (w.to(x) for w in learned)
        h = torch.cat([local, strain, rate, code.expand(-1, x.shape[1], -1)], -1)
        h = silu(h @ into + offsets[0])
        for w, b in zip(messages, offsets[1:], strict=True):
            near = (mixing @ h.reshape(n, -1)).reshape(3, *h.shape)
            h = h + silu(torch.cat([h, *near], -1) @ w + b)
        bounded = self.limit * torch.tanh(h @ out)
        return (bounded[..., None] * axes).sum(-2).transpose(0, 1).reshape(*batch, n, 3)


def _topology(parent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each vertex the edge of its frame and its root; (3 n, n) means over the vertex before, those after and all
    of the tree."""
    up = parent.tolist()
    n = len(up)
    frame, root = torch.arange(n), torch.arange(n)
    mixing = torch.zeros(3, n, n, dtype=torch.float64)
    for k in range(n):
        if up[k] >= 0:
            root[k] = root[up[k]]
            mixing[0, k, up[k]] = mixing[1, up[k], k] = 1
            if up[up[k]] < 0 and frame[up[k]] == up[k]:
                frame[up[k]] = k
    mixing[2] = (root[:, None] == root).double()
    mixing = mixing / mixing.sum(-1, keepdim=True).clamp(min=1)
    return frame.to(parent.device), root.to(parent.device), mixing.reshape(3 * n, n).to(parent.device)


def rollout_with(
    rod: Rod,
    residual: Residual,
    state: State,
    *,
    clamped: Sequence[int],
    path: Float[Tensor, "b frames k 3"],
    held: Sequence[int] = (),
    dt: float = 0.01,
    substeps: int = 1,
    bound: float | None = None,
) -> Float[Tensor, "b t n 3"]:
    """`rollout` of a rod that is pushed by the residual at the state that each few frames begin with.

    The residual's reading of free directors and of strains hands no derivative back; all else does.

    Args:
        rod, state, clamped, held: as for `rollout`; one batch dimension.
        path: of the clamped vertices, metres, from where they are in `state`, frames of dt seconds; they move evenly
            between frames, in `substeps`.
        bound: of the derivative that each rod hands back in time, longer ones are shortened to it; see `fit_residual`.
    Returns: positions in each frame after the first, metres.
    Raises: ShapeError as `rollout`.

    Guarantees: differentiable, as `rollout`; deterministic; float32 and float64
    """
    fixed = clamps(rod, clamped, held)
    check_reach(rod, fixed, path)
    rows: list[Tensor] = []
    step = dt / substeps
    advance = _stepper(rod, fixed, step)
    with small_operations():
        for goal in between(path, substeps).split(residual.hold * substeps, 1):
            if bound is not None:
                state = _bounded(state, bound)
            x, state = advance(state, goal, rod.mass[..., None] * residual(state, step))
            rows.append(x[:, substeps::substeps])
    return torch.cat(rows, 1)


def _stepper(rod: Rod, fixed: Clamps, step: float) -> Callable[[State, Tensor, Tensor | None], tuple[Tensor, State]]:
    """(state, targets (b, t, k, 3), force (b, n, 3)) -> positions (b, t + 1, n, 3) from the state's on, state; what
    `rollout` does, less its checks and its reading of the rod."""
    table, rates = tables(rod, GRAVITY)
    tree = rod.tree

    def advance(state: State, goal: Tensor, force: Tensor | None) -> tuple[Tensor, State]:
        count = goal.shape[1]
        before = state.strain if state.strain_before is None else state.strain_before
        fields = (state.position, state.velocity, state.director, state.strain, before)
        push = table.new_empty(0) if force is None else force[:, None].expand(-1, count, -1, -1).contiguous()
        x, *rest = Rollout.apply(
            *(y.contiguous() for y in fields), table, rates, goal.contiguous(), push, tree, fixed, (count, 1, step)
        )
        return x, State(x[:, -1], *rest)

    return advance


def _bounded(state: State, bound: float) -> State:
    """The state itself; going back, the derivative of each rod in all of it is shortened to a length, a velocity
    counting as the way of a tenth of a second."""
    before = state.strain if state.strain_before is None else state.strain_before
    x, v, director, before = _Bounded.apply(bound, state.position, state.velocity, state.director, before)
    return State(x, v, director, state.strain, before)


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bound: float, *fields: Tensor) -> tuple[Tensor, ...]:
        ctx.bound = bound
        return tuple(y.view_as(y) for y in fields)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grads = tuple(g.nan_to_num(0.0, 0.0, 0.0) for g in grads)
        x, v, *_ = grads
        size = torch.sqrt(x.square().sum((1, 2), keepdim=True) + 100 * v.square().sum((1, 2), keepdim=True))
        shorter = (ctx.bound / size.clamp(min=1e-30)).clamp(max=1)
        return None, *(shorter * g for g in grads)


def predict_with(
    rod: Rod,
    residual: Residual,
    track: Float[Tensor, "clips t n 3"],
    *,
    clamped: Sequence[int],
    held: Sequence[int] | None = None,
    dt: float = 0.01,
    substeps: int = 4,
) -> Float[Tensor, "clips t n 3"]:
    """`predict` with a residual; arguments as there.

    Raises: ShapeError.

    Guarantees: differentiable in rod and residual, as `rollout`; deterministic; float32 and float64
    """
    _check_topology(rod, residual)
    begun = begin(rod, track, clamped, held, dt, substeps)
    moved = rollout_with(
        rod,
        residual,
        begun.state,
        clamped=begun.vertices,
        path=begun.path,
        held=begun.edges,
        dt=dt,
        substeps=substeps,
    )
    return torch.cat([begun.frames, moved], 1)


def _check_topology(rod: Rod, residual: Residual) -> None:
    if residual.parent.tolist() != rod.parent.tolist():
        raise ShapeError(f"residual: expected one of the rod's topology, got {residual.parent.tolist()}")


def fit_residual(
    rod: Rod,
    track: Float[Tensor, "clips t n 3"],
    *,
    clamped: Sequence[int],
    held: Sequence[int] | None = None,
    dt: float = 0.01,
    substeps: int = 4,
    horizon: int = 60,
    held_out: Bool[Tensor, "clips"] | None = None,
    more: Sequence[Clips] = (),
    config: TrainConfig = TRAINING,
    out: str | os.PathLike[str] | None = None,
) -> Residual:
    """A residual that makes `predict_with` of a known rod best, by descent on windows of the clips.

    Each step takes `config.batch` clips and of each a window of `horizon` frames, begins it with the state seen there
    (rolls carried through the clip from its first frame) and goes down the mean absolute error of the positions after,
    in cm. The derivative that goes back in time is bounded, for each clip, by what its frames would have together were
    the dynamics neutral: so a window with a snap does not outweigh all others.

    Args:
        rod: of `identify`. track, clamped, held, dt, substeps: as for `predict`.
        held_out: clips never trained on; the weights are those of the step (every `config.validate_every`) that
            predicts them best from their first frames on. The last if None.
        more: clips of the same rod clamped elsewhere, as for `identify`.
        config, out: as for `geom.train.train`: a run that was killed goes on from the folder `out`.
    Returns: the residual.
    Raises: ShapeError; GeomError as `train`.

    Guarantees: not differentiable; deterministic on the CPU for one seed
    """
    residual = Residual(rod.parent, generator=torch.Generator().manual_seed(config.seed))
    sets = [Clips(track, clamped, held, held_out), *more]
    seen = [_seen(rod, clips, dt, substeps) for clips in sets]
    fitted = [(k, i) for k, clips in enumerate(seen) for i, out in enumerate(clips.held_out) if not out]
    spared = [(k, i) for k, clips in enumerate(seen) for i, out in enumerate(clips.held_out) if out]
    frames = min(clips.full.shape[1] for clips in seen)
    if not fitted or not 0 < horizon < frames - 1:
        raise ShapeError(f"horizon: expected 1 to {frames - 2} frames of some clips, got {horizon} of {len(fitted)}")

    class Windows:  # (set, clip, first frame, frames after it)
        def __init__(self, clips: list[tuple[int, int]], length: int) -> None:
            self.clips, self.length = clips, length

        def __len__(self) -> int:
            return len(self.clips)

        def __getitem__(self, index: int) -> tuple[int, int, int, int]:
            k, clip = self.clips[index]
            last = seen[k].full.shape[1] - 1 - self.length
            return k, clip, int(torch.randint(last, ())) + 1, self.length

    def collate(items: list[tuple[int, int, int, int]]) -> list[tuple[int, State, Tensor, Tensor]]:
        """Of each set in the batch its index, states, positions, and which of them were seen."""
        groups = []
        for k in sorted({item[0] for item in items}):
            rows = torch.tensor([item[1:] for item in items if item[0] == k])
            clip, first, length = rows.unbind(1)
            window = first[:, None] + torch.arange(int(length[0]) + 1)
            true = sets[k].track[clip[:, None], window[:, 1:]].isfinite()
            groups.append((k, seen[k].states[clip, first - 1], seen[k].full[clip[:, None], window], true))
        return groups

    def loss(module: Residual, batch: list[tuple[int, State, Tensor, Tensor]], generator: torch.Generator) -> Tensor:
        count = sum(len(truth) for _, _, truth, _ in batch)
        total = torch.zeros(())
        for k, state, truth, true in batch:
            moved = rollout_with(
                rod,
                module,
                state,
                clamped=seen[k].vertices,
                path=truth[:, :, seen[k].vertices],
                held=seen[k].edges,
                dt=dt,
                substeps=substeps,
                bound=100 / (count * (3 * truth.shape[2]) ** 0.5),
            )
            off = torch.where(true, moved - truth[:, 1:], 0.0).abs().mean()
            total = total + 100 * len(truth) / count * off
        return total

    windows = Windows(fitted, horizon)
    whole = Windows(spared, frames - 2) if spared else None
    with tempfile.TemporaryDirectory() as folder:
        place = folder if out is None else out
        train(residual, windows, loss, config=config, out=place, validation=whole, collate=collate, device=track.device)
        if spared:
            load_weights(residual, os.path.join(place, "best.safetensors"))
    return residual


class _Seen(NamedTuple):
    """Clips without gaps, their states (clips, t - 1) from the second frame on, how they are held, those held out."""

    full: Tensor
    states: State
    vertices: list[int]
    edges: list[int]
    held_out: list[bool]


def _seen(rod: Rod, clips: Clips, dt: float, substeps: int) -> _Seen:
    check_clips(rod, clips.track, dt, substeps)
    vertices, edges, _ = grips(rod, clips.track, clips.clamped, clips.held)
    full = fill_gaps(clips.track)
    out = [False] * len(full) if clips.held_out is None else clips.held_out.tolist()
    if len(out) != len(full):
        raise ShapeError(f"held_out: expected {len(full)} clips, got {len(out)}")
    return _Seen(full, _seen_states(rod, full, vertices, edges, dt, substeps), vertices, edges, out)


def _seen_states(rod: Rod, track: Tensor, vertices: list[int], edges: list[int], dt: float, substeps: int) -> State:
    """States (clips, t - 1) in the frames from the second: lengths of the rod, rolls carried along since then."""
    seen = start(rod, track[:, 1:], track.diff(dim=1) / dt, clamped=vertices)
    state = replace(seen[:, 0], strain_before=seen.strain[:, 0])
    advance = _stepper(rod, clamps(rod, range(len(rod.parent)), edges), dt / substeps)
    rows = [state]
    for t in range(track.shape[1] - 2):
        _, state = advance(state, between(seen.position[:, t : t + 2], substeps), None)
        rows.append(state)
    stacked = stack(rows)  # frames first
    strain, before, director = (y.transpose(0, 1) for y in (stacked.strain, stacked.strain_before, stacked.director))
    return State(seen.position, seen.velocity, director, strain, before)
