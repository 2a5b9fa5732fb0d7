"""A body learned from registrations: shapes, bone lengths and pose correctives of many people in many poses."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_points, check_positive, describe
from geom.errors import ShapeError
from geom.lie import quaternion
from geom.skinning.body import BodyModel, BodyState
from geom.skinning.body_fit import fit_body
from geom.skinning.corrective import Corrective, make_corrective
from geom.skinning.influences import blend
from geom.train import TrainConfig, train
from geom.values import Fit, replace

__all__ = ["fit_corrective", "learn_body", "unpose"]

_RIDGE = 1e-6  # pull to the body's own surface where a blend of bones has no inverse


def unpose(body: BodyModel, state: BodyState, vertices: Float[Tensor, "*b v 3"]) -> Float[Tensor, "*b v 3"]:
    """The surface at rest that linear blend skinning takes to `vertices`: each through its bones' blend, backwards.

    Args: body with method "lbs"; state, in which bones stand; vertices (..., V, 3), metres.
    Returns: (..., V, 3). Where bones blend to a singular matrix (a joint twisted by pi) the body's own surface counts.
    Raises: ShapeError for another method.

    Guarantees: differentiable; deterministic; 1e-6 of the offset f64, 1e-5 f32
    """
    if body.method != "lbs":
        raise ShapeError(f'body: expected one of method "lbs", got {body.method!r}')
    matrix = blend(body.weights, body.transforms(state)[0].flatten(-2), body.indices).unflatten(-1, (3, 4))
    linear, surface = matrix[..., :3], body.surface(state)
    missing = vertices - (linear @ surface[..., None])[..., 0] - matrix[..., 3]
    one = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    step = torch.linalg.solve(linear.mT @ linear + _RIDGE * one, linear.mT @ missing[..., None])
    return surface + step[..., 0]


class _Layers(torch.nn.Module):
    def __init__(self, corrective: Corrective) -> None:
        super().__init__()
        self.corrective = corrective
        self.hidden = torch.nn.Parameter(corrective.hidden.clone())
        self.output = torch.nn.Parameter(corrective.output.clone())

    def now(self) -> Corrective:
        return replace(self.corrective, hidden=self.hidden, output=self.output)


def fit_corrective(
    corrective: Corrective,
    rotations: Float[Tensor, "n j 3 3"],
    offsets: Float[Tensor, "n v 3"],
    *,
    config: TrainConfig,
    sparsity: float = 0.0,
) -> Corrective:
    """Train a corrective on offsets of the surface at rest, by Adam, with an L1 penalty on the output's weights.

        mean |corrective(R_n) - offset_n|^2 / mean |offset|^2 + sparsity mean |output| / rms(offset)

    Args: corrective, where to begin; rotations, relative to the parents; offsets, metres; config of the training;
        sparsity, 0 or more: joints that a vertex need not hear fade out.
    Returns: Corrective.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic
    """
    n, v = len(rotations), len(corrective.place)
    if offsets.shape != (n, v, 3) or not n or not sparsity >= 0:
        raise ShapeError(f"offsets: expected ({n}, {v}, 3) and sparsity of at least 0, got {describe(offsets)}")
    size = offsets.square().mean().sqrt()
    unit = torch.where(size > 0, size, torch.ones_like(size))  # trained in units of their size
    layers = _Layers(replace(corrective, output=corrective.output / unit))

    def loss(module: _Layers, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        error = module.now().apply(batch[0]) - batch[1]
        return error.square().mean() + sparsity * module.output.abs().mean()

    train(layers, list(zip(rotations, offsets / unit, strict=True)), loss, config=config, device=str(offsets.device))
    return replace(corrective, hidden=layers.hidden.detach(), output=unit * layers.output.detach())


def learn_body(
    body: BodyModel,
    registrations: Float[Tensor, "n v 3"],
    subjects: Int64[Tensor, " n"],
    *,
    shapes: int = 10,
    skeletons: int = 5,
    rounds: int = 2,
    sparsity: float = 1e-3,
    config: TrainConfig | None = None,
    generator: torch.Generator | None = None,
) -> Fit[BodyModel]:
    """Learn the bases and the corrective of a body from registered people, each in several poses.

    1. Poses and the logarithms of bone lengths, by `fit_body`; the lengths of a subject are the mean over its poses,
       and those of the mean subject become the body's own.
    2. Each subject's surface, the mean of its registrations unposed and without the corrective, and the corrective,
       trained on what is left of them (`fit_corrective`), in turns. Back to 1, `rounds` times.
    3. Principal components of the lengths, and of the surfaces, scaled to coefficients of unit variance.

    Bones that end in no joint keep their lengths; what they differ by is shape.

    Args:
        body: a template in the topology of the registrations, with joints and weights; its bases are replaced.
        registrations: metres. subjects: who each is, 0, 1, ..., each at least once; two or more poses each are best.
        shapes, skeletons: components, at most; there are no more than subjects less one.
        rounds: of 1 and 2. sparsity: of the corrective. config: of its training; None learns no corrective.
        generator: of the corrective's first weights.
    Returns: Fit(body, cost: half the sum of square errors of the registrations posed anew, None, converged, rounds).
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic (same generator state)
    """
    count = _people(body, registrations, subjects)
    check_positive(rounds, "rounds")
    dtype = body.template.dtype
    ends = torch.unique(body.parent[body.parent >= 0])  # bones that end in a joint
    basis = torch.zeros(len(ends), len(body.parent), 2, dtype=dtype, device=body.template.device)
    basis[torch.arange(len(ends)), ends, 0] = 1
    base = replace(body, shape_basis=body.shape_basis[:0], skeleton_basis=basis, corrective=None)
    groups = [(subjects == s).nonzero()[:, 0] for s in range(count)]
    corrective = None
    if config is not None:
        owner = body.weights.argmax(-1)
        owner = owner if body.indices is None else body.indices.gather(1, owner[:, None])[:, 0]
        corrective = make_corrective(body.parent, owner, dtype=dtype, generator=generator)
    offsets = registrations.new_zeros(count, len(body.template), 3)
    states = [_pose(base, registrations[g], offset) for g, offset in zip(groups, offsets, strict=True)]
    middle = replace(base.state(), skeleton=torch.stack([state.skeleton[0] for state in states]).mean(0))
    middling = base.apply(middle)
    base = replace(base, template=middling.vertices, joints=middling.joints)
    for _ in range(int(rounds)):
        states = [_pose(base, registrations[g], offset) for g, offset in zip(groups, offsets, strict=True)]
        posed = zip(states, groups, strict=True)
        surfaces = [unpose(base, state, registrations[g]) - base.template for state, g in posed]
        rotations = [quaternion.to_matrix(state.quat_wxyz) for state in states]
        if corrective is None or config is None:
            offsets = torch.stack([surface.mean(0) for surface in surfaces])
            continue
        for _ in range(2):  # what is a person's own, and what comes with the pose
            bent = [corrective.apply(turn) for turn in rotations]
            offsets = torch.stack([(x - y).mean(0) for x, y in zip(surfaces, bent, strict=True)])
            left = torch.cat([surface - offset for surface, offset in zip(surfaces, offsets, strict=True)])
            corrective = fit_corrective(corrective, torch.cat(rotations), left, config=config, sparsity=sparsity)
        base = replace(base, corrective=corrective)
    lengths = torch.stack([state.skeleton[0] for state in states])
    template = base.template + offsets.mean(0)
    shape_basis = _components(offsets - offsets.mean(0), shapes)
    skeleton_basis = torch.einsum("ke,ejd->kjd", _components(lengths, skeletons), basis)
    learned = replace(base, template=template, shape_basis=shape_basis, skeleton_basis=skeleton_basis)
    fits = [fit_body(learned, vertices=registrations[g]) for g in groups]
    missed = [learned.apply(fit.value).vertices - registrations[g] for fit, g in zip(fits, groups, strict=True)]
    cost = 0.5 * torch.cat(missed).square().sum()
    converged = torch.cat([fit.converged for fit in fits]).all()
    return Fit(learned, cost, None, converged, torch.tensor(int(rounds)))


def _pose(base: BodyModel, registrations: Tensor, offset: Tensor) -> BodyState:
    """Poses of one subject's registrations, with the bone lengths that are the mean over them."""
    own = replace(base, template=base.template + offset)
    state = fit_body(own, vertices=registrations).value
    mean = state.skeleton.mean(0).expand_as(state.skeleton)
    return fit_body(own, vertices=registrations, guess=replace(state, skeleton=mean), hold=("skeleton",)).value


def _components(rows: Tensor, most: int) -> Tensor:
    """Principal components (k, ...) of rows (n, ...) about 0, each as long as its standard deviation."""
    _, sigma, components = torch.linalg.svd(rows.flatten(1), full_matrices=False)
    k = min(most, max(1, len(rows) - 1), int((sigma > 1e-6 * sigma[:1].clamp(min=1e-12)).sum()))
    scale = sigma[:k] / max(1, len(rows) - 1) ** 0.5
    return (scale[:, None] * components[:k]).unflatten(1, rows.shape[1:])


def _people(body: BodyModel, registrations: Tensor, subjects: Tensor) -> int:
    n, v = len(registrations), len(body.template)
    if registrations.shape != (n, v, 3) or not n or registrations.dtype != body.template.dtype:
        raise ShapeError(f"registrations: expected {body.template.dtype} (N, {v}, 3), got {describe(registrations)}")
    check_points(registrations.flatten(0, 1), "registrations")
    count = int(subjects.max()) + 1 if subjects.numel() else 0
    if subjects.shape != (n,) or subjects.dtype != torch.int64 or set(subjects.tolist()) != set(range(count)):
        raise ShapeError(f"subjects: expected int64 ({n},), 0, 1, ... each at least once, got {describe(subjects)}")
    return count
