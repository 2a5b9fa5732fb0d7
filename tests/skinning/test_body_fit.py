"""Fitting: a body that is known is found again from key-points, vertices and scans of it."""

from functools import cache

import pytest
import torch

from geom.errors import ConvergenceWarning, ShapeError
from geom.lie import quaternion
from geom.meshes import Mesh, sample_surface
from geom.skinning.body import BodyModel, BodyState, synthetic_human
from geom.skinning.body_fit import align_bones, fit_body
from geom.values import replace


@cache
def human() -> BodyModel:
    return synthetic_human()


def somebody(seed: int = 1, *batch: int) -> BodyState:
    """Turned as a whole, joints by some 15 degrees an axis, coefficients of 0.7."""
    still = human().state(*batch)
    tangent = torch.randn(*batch, still.tangent_dim, generator=torch.Generator().manual_seed(seed))
    scale = torch.cat([torch.full((3,), 1.0), torch.full((3,), 0.5), torch.full((63,), 0.25), torch.full((11,), 0.7)])
    return still.retract(tangent * scale)


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm(dim=-1).max())


def test_from_vertices():
    posed = human().apply(somebody(1))
    fit = fit_body(human(), vertices=posed.vertices, prior=1e-4)
    again = human().apply(fit.value)
    assert fit.converged and fit.iterations < 15
    assert worst(again.vertices, posed.vertices) < 1e-5 and worst(again.joints, posed.joints) < 1e-5
    assert (fit.value.shape - somebody(1).shape).abs().max() < 0.01


def test_from_keypoints_batched():
    posed = human().apply(somebody(2, 3))
    fit = fit_body(human(), keypoints=posed.joints, prior=1e-4)
    assert fit.converged.all() and fit.cost.shape == (3,)
    assert worst(human().apply(fit.value).joints, posed.joints) < 1e-4
    assert not fit.value.shape.any()  # the surface is not seen


def test_missing_keypoints_and_weights():
    posed = human().apply(somebody(3))
    gone = torch.tensor([k for k, name in enumerate(human().names) if name in ("left_wrist", "head")])
    keypoints = posed.joints.clone()
    keypoints[gone] = torch.nan
    wrong = keypoints.clone()
    wrong[5] += 0.1
    weights = torch.ones(22)
    weights[5] = 0
    for given, counted in ((keypoints, None), (wrong, weights)):
        fit = fit_body(human(), keypoints=given, weights=counted, prior=1e-4)
        seen = ~given.isnan().any(-1) & (torch.ones(22) if counted is None else counted).bool()
        assert worst(human().apply(fit.value).joints[seen], posed.joints[seen]) < 1e-4
        assert fit.value.quat_wxyz.isfinite().all()
    assert worst(human().apply(fit_body(human(), keypoints=wrong).value).joints[seen], posed.joints[seen]) > 1e-3


def test_from_a_scan():
    posed = human().apply(somebody(1))
    generator = torch.Generator().manual_seed(0)
    scan = sample_surface(Mesh(posed.vertices, human().faces), 4000, generator=generator).points
    rough = posed.joints + 0.01 * torch.randn(posed.joints.shape, generator=generator)
    fit = fit_body(human(), scan=scan, keypoints=rough, weights=torch.full((22,), 1e-3), prior=1e-4)
    again = human().apply(fit.value)
    assert fit.converged
    assert (again.vertices - posed.vertices).norm(dim=-1).mean() < 3e-4
    assert worst(again.vertices, posed.vertices) < 1e-3 and worst(again.joints, posed.joints) < 2e-3


def test_a_scan_alone_is_moved_into_place():
    posed = human().apply(human().state().retract(torch.cat([torch.tensor([2.0, -1, 3]), torch.zeros(77)])))
    scan = sample_surface(Mesh(posed.vertices, human().faces), 2000, generator=torch.Generator().manual_seed(0)).points
    fit = fit_body(human(), scan=scan, hold=("shape", "skeleton"))
    assert worst(human().apply(fit.value).vertices, posed.vertices) < 1e-3


def test_what_is_held_stays():
    state = somebody(4)
    posed = human().apply(state)
    for part, name in (("shape", "shape"), ("skeleton", "skeleton"), ("pose", "quat_wxyz"), ("translation",) * 2):
        guess = somebody(5)
        with pytest.warns(ConvergenceWarning):
            fit = fit_body(human(), vertices=posed.vertices, guess=guess, hold=(part,), max_iterations=3)
        for other in ("shape", "skeleton", "quat_wxyz", "translation"):
            same = torch.equal(getattr(fit.value, other), getattr(guess, other))
            assert same == (other == name)


def test_the_prior_pulls_to_the_mean():
    posed = human().apply(somebody(1))
    near, far = (fit_body(human(), keypoints=posed.joints, prior=p).value.skeleton.norm() for p in (1e-3, 1.0))
    assert far < 0.1 * near


def test_alignment_is_exact_for_a_rigid_body_and_for_its_parts():
    body = human().to(torch.float64)
    hard = torch.nn.functional.one_hot(body.indices.gather(1, body.weights.argmax(-1, keepdim=True))[:, 0], 22)
    body = replace(body, weights=hard.double(), indices=None, corrective=None)
    state = somebody(6).to(torch.float64)
    posed = body.apply(state)
    seen = posed.vertices, torch.ones(len(posed.vertices)).double()
    found = align_bones(body, replace(state, quat_wxyz=body.state().quat_wxyz), vertices=seen)
    assert quaternion.geodesic_distance(found.quat_wxyz, state.quat_wxyz).max() < 1e-7  # each owns some flesh
    assert worst(body.apply(found).vertices, posed.vertices) < 1e-7


def test_a_body_of_dual_quaternions():
    body = replace(human(), method="dqs", corrective=None)
    posed = body.apply(somebody(1))
    again = body.apply(fit_body(body, vertices=posed.vertices, prior=1e-4).value)
    assert worst(again.vertices, posed.vertices) < 1e-5


def test_float64_stays():
    body = human().to(torch.float64)
    posed = body.apply(somebody(1).to(torch.float64))
    fit = fit_body(body, vertices=posed.vertices, prior=0.0)
    assert fit.value.shape.dtype == torch.float64
    assert worst(body.apply(fit.value).vertices, posed.vertices) < 1e-9


@pytest.mark.usefixtures("unchecked")
def test_wrong_input():
    body, joints = human(), human().joints
    for given, message in (
        ({}, "expected keypoints, vertices or a scan"),
        ({"keypoints": joints[:4]}, "keypoints: expected finite"),
        ({"keypoints": joints, "vertices": body.template[None]}, "vertices: expected finite"),
        ({"keypoints": joints / 0}, "keypoints: expected finite"),
        ({"scan": joints * torch.nan}, "scan: expected at least one point"),
        ({"keypoints": joints, "weights": -torch.ones(22)}, "weights: expected"),
        ({"vertices": body.template, "weights": torch.ones(22)}, "weights: expected"),
        ({"keypoints": joints, "guess": human().state(2)}, "guess.shape: expected"),
        ({"keypoints": joints, "hold": ("bones",)}, "hold: expected one of"),
        ({"keypoints": joints, "prior": -1.0}, "prior: expected"),
    ):
        with pytest.raises(ShapeError, match=message):
            fit_body(body, **given)
