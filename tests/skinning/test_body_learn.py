"""Learning: from registrations of people that are known to their shapes, bones and correctives."""

import pytest
import torch

from geom.errors import ShapeError
from geom.lie import quaternion
from geom.skinning.body import BodyModel, BodyState, make_body
from geom.skinning.body_fit import fit_body
from geom.skinning.body_learn import fit_corrective, learn_body, unpose
from geom.skinning.corrective import make_corrective
from geom.train import TrainConfig
from geom.values import replace

PARENT = torch.tensor([-1, 0, 1, 0])


def true_body() -> BodyModel:
    """Three bones in a row and one beside them, tubes of 240 vertices; two shapes, one length, a corrective."""
    generator = torch.Generator().manual_seed(0)
    joints = torch.tensor([[0.0, 0, 0], [0, 0.4, 0], [0, 0.75, 0], [0.2, 0, 0]]).double()
    ends = torch.tensor([[0.0, 0.4, 0], [0, 0.75, 0], [0, 0.95, 0], [0.5, 0, 0]]).double()
    t = torch.rand(4, 60, 1, generator=generator).double()
    around = torch.nn.functional.normalize(torch.randn(4, 60, 3, generator=generator).double(), dim=-1)
    vertices = (joints[:, None] + t * (ends - joints)[:, None] + 0.06 * around).reshape(-1, 3)
    segment = vertices[:, None] - joints
    along = ends - joints
    share = ((segment * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
    weights = torch.softmax(-((segment - share[..., None] * along).norm(dim=-1)) / 0.02, -1)
    fields = torch.stack([(7 * vertices[:, 1] + 3 * vertices[:, 0]).sin(), (9 * vertices[:, 1] - 1).cos()])
    corrective = make_corrective(PARENT, weights.argmax(-1), width=4, dtype=torch.float64, generator=generator)
    wave = 0.004 * torch.randn(corrective.output.shape, dtype=torch.float64, generator=generator)
    basis = torch.zeros(1, 4, 2).double()
    basis[0, :2, 0] = torch.tensor([0.08, 0.05])
    return make_body(
        vertices,
        torch.zeros(0, 3, dtype=torch.int64),
        parent=PARENT,
        joints=joints,
        weights=weights,
        shape_basis=0.008 * fields[..., None] * around.reshape(-1, 3),
        skeleton_basis=basis,
        corrective=replace(corrective, output=wave),
    )


def people(body: BodyModel, count: int, poses: int, seed: int) -> tuple[BodyState, torch.Tensor]:
    """`count` people in `poses` poses each, and who is who."""
    generator = torch.Generator().manual_seed(seed)
    subjects = torch.arange(count).repeat_interleave(poses)
    shape = torch.randn(count, len(body.shape_basis), generator=generator).double()[subjects]
    skeleton = torch.randn(count, len(body.skeleton_basis), generator=generator).double()[subjects]
    turn = 0.5 * torch.randn(len(subjects), 4, 3, generator=generator).double()
    still = body.state(len(subjects))
    return replace(still, shape=shape, skeleton=skeleton, quat_wxyz=quaternion.exp(turn)), subjects


def rms(x: torch.Tensor) -> float:
    return float(x.square().sum(-1).mean().sqrt())


def test_unpose_undoes_the_pose(dtype):
    body = true_body().to(dtype)
    state, _ = people(body.to(torch.float64), 3, 2, 1)
    state = state.to(dtype)
    surface = unpose(body, state, body.apply(state).vertices)
    assert (surface - body.surface(state)).abs().max() < (1e-12 if dtype == torch.float64 else 1e-5)
    moved = unpose(body, state, body.apply(state).vertices + 0.01)  # of what is not the body's own, nearly all
    again = replace(body, template=moved[0], shape_basis=0 * body.shape_basis, corrective=None)
    assert (again.apply(state[0]).vertices - body.apply(state[0]).vertices - 0.01).abs().max() < 1e-5


def test_a_corrective_is_learned():
    """What another corrective does, in poses not seen; and L1 makes it smaller."""
    body = true_body()
    state, _ = people(body, 96, 1, 2)
    rotations = quaternion.to_matrix(state.quat_wxyz)
    assert body.corrective is not None
    offsets = body.corrective.apply(rotations)
    start = make_corrective(
        PARENT, body.weights.argmax(-1), width=12, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    config = TrainConfig(steps=200, batch=16, rate=2e-2)
    learned = fit_corrective(start, rotations[:64], offsets[:64], config=config)
    left = rms(learned.apply(rotations[64:]) - offsets[64:]) / rms(offsets[64:])
    assert left < 0.2
    sparse = fit_corrective(start, rotations[:64], offsets[:64], config=config, sparsity=1.0)
    assert sparse.output.abs().mean() < 0.7 * learned.output.abs().mean()
    still = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    assert not learned.apply(still).any()


def test_a_body_is_learned():
    """Its shapes span the true ones, and people it has not seen are fitted closely."""
    body = true_body()
    state, subjects = people(body, 6, 4, 3)
    registrations = body.apply(state).vertices
    blank = replace(body, shape_basis=body.shape_basis[:0], skeleton_basis=body.skeleton_basis[:0], corrective=None)
    config = TrainConfig(steps=60, batch=16, rate=1e-2)
    generator = torch.Generator().manual_seed(0)
    fit = learn_body(
        blank, registrations, subjects, shapes=4, skeletons=2, rounds=1, config=config, generator=generator
    )
    learned = fit.value
    assert fit.converged and learned.shape_basis.shape == (4, 240, 3) and learned.corrective is not None

    # the true shapes within the span of those found: the sine of the largest angle between them
    found = torch.linalg.qr(learned.shape_basis.flatten(1).mT).Q
    true = torch.linalg.qr(body.shape_basis.flatten(1).mT).Q
    assert torch.linalg.matrix_norm(true - found @ (found.mT @ true), 2) < 0.35

    other, _ = people(body, 6, 1, 4)
    unseen = body.apply(other).vertices
    with_all = rms(learned.apply(fit_body(learned, vertices=unseen).value).vertices - unseen)
    with_none = rms(blank.apply(fit_body(blank, vertices=unseen).value).vertices - unseen)
    assert with_all < 0.3 * with_none


def test_bone_lengths_are_learned():
    """Two bones that grow together, from people in poses without correctives."""
    body = replace(true_body(), corrective=None)
    state, subjects = people(body, 4, 2, 5)
    blank = replace(body, shape_basis=body.shape_basis[:0], skeleton_basis=body.skeleton_basis[:0])
    learned = learn_body(blank, body.apply(state).vertices, subjects, shapes=9, skeletons=1, rounds=1).value
    assert learned.corrective is None and learned.shape_basis.shape[0] <= 3  # one less than people
    cosine = torch.cosine_similarity(learned.skeleton_basis.flatten(), body.skeleton_basis.flatten(), dim=0)
    assert cosine.abs() > 0.98


@pytest.mark.usefixtures("unchecked")
def test_wrong_input():
    body = true_body()
    state, subjects = people(body, 2, 2, 3)
    registrations = body.apply(state).vertices
    with pytest.raises(ShapeError, match="registrations: expected"):
        learn_body(body, registrations[:, :9], subjects)
    with pytest.raises(ShapeError, match="subjects: expected"):
        learn_body(body, registrations, 2 * subjects)
    with pytest.raises(ShapeError, match="registrations: expected finite"):
        learn_body(body, registrations * torch.nan, subjects)
    with pytest.raises(ShapeError, match='method "lbs"'):
        unpose(replace(body, method="dqs"), state, registrations)
    assert body.corrective is not None
    with pytest.raises(ShapeError, match="offsets: expected"):
        rotations = quaternion.to_matrix(state.quat_wxyz)
        fit_corrective(body.corrective, rotations, registrations[:, :9], config=TrainConfig(steps=1))
