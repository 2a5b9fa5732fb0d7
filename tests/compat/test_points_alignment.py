"""Alignment of points and ICP: known motions, weights, padding, reflections, open rotations, a slow reference."""

import logging
import warnings

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from geom.compat.pytorch3d.ops import (
    ICPSolution,
    SimilarityTransform,
    corresponding_points_alignment,
    iterative_closest_point,
)
from geom.compat.pytorch3d.transforms import axis_angle_to_matrix
from geom.errors import ShapeError

EPS = {torch.float32: 1e-6, torch.float64: 8e-15}  # what the docstrings guarantee


class Pointclouds:
    """The part of pytorch3d's Pointclouds that is asked: padded with zeros."""

    def __init__(self, points: list[Tensor]) -> None:
        self.points = points

    def points_padded(self) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(self.points, batch_first=True)

    def num_points_per_cloud(self) -> Tensor:
        return torch.tensor([len(x) for x in self.points])

    def update_padded(self, new_points_padded: Tensor) -> "Pointclouds":
        return Pointclouds([x[: len(p)] for x, p in zip(new_points_padded, self.points, strict=True)])


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def motion(n: int, dtype: torch.dtype = torch.float64, *, turn: float = 1.0) -> SimilarityTransform:
    R = axis_angle_to_matrix(turn * draw(n, 3, dtype=dtype, seed=7))
    return SimilarityTransform(R, draw(n, 3, dtype=dtype, seed=8), 0.5 + draw(n, dtype=dtype, seed=9).abs())


def move(x: Tensor, by: SimilarityTransform) -> Tensor:
    return by.s[:, None, None] * x @ by.R + by.T[:, None]


def off(a: SimilarityTransform, b: SimilarityTransform) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


# --- corresponding points --------------------------------------------------------------------------------------------


def test_known_motions_are_found(dtype: torch.dtype) -> None:
    x, by = draw(4, 20, 3, dtype=dtype), motion(4, dtype)
    found = corresponding_points_alignment(x, move(x, by), estimate_scale=True)
    assert isinstance(found, SimilarityTransform) and off(found, by) < 8 * EPS[dtype]
    rigid = by._replace(s=torch.ones_like(by.s))
    assert off(corresponding_points_alignment(x, move(x, rigid)), rigid) < 8 * EPS[dtype]
    assert corresponding_points_alignment(x[:0], x[:0]).R.shape == (0, 3, 3)


def test_it_is_the_least_squares_solution() -> None:
    x, y = draw(1, 20, 3), draw(1, 20, 3, seed=1)
    for scaled in (False, True):
        best = corresponding_points_alignment(x, y, estimate_scale=scaled)
        cost = (move(x, best) - y).square().sum()
        for k in range(40):
            nudge = 1e-3 * draw(7, seed=k)
            other = SimilarityTransform(
                best.R @ axis_angle_to_matrix(nudge[None, :3]), best.T + nudge[3:6], best.s + scaled * nudge[6]
            )
            assert (move(x, other) - y).square().sum() > cost


def test_weights_are_squared_in_the_covariance_as_in_pytorch3d() -> None:
    x, y, w = draw(2, 30, 3), draw(2, 30, 3, seed=1), draw(2, 30, seed=2).abs()
    R, T, s = corresponding_points_alignment(x, y, w, estimate_scale=True)
    mx, my = ((w[..., None] * p).sum(1, keepdim=True) / w.sum(1)[:, None, None] for p in (x, y))
    u, d, vh = np.linalg.svd((((x - mx) * w[..., None] ** 2).mT @ (y - my)).numpy())
    sign = np.ones((2, 3))
    sign[:, 2] = np.linalg.det(u @ vh)
    assert np.abs(R.numpy() - u * sign[:, None] @ vh).max() < 1e-13
    want = (sign * d).sum(1) / (((x - mx) * w[..., None]) ** 2).sum((1, 2)).numpy()
    assert np.abs(s.numpy() - want).max() < 1e-14
    assert (T - (my - s[:, None, None] * mx @ R)[:, 0]).abs().max() < 1e-14
    mask = (torch.arange(30) < 12).double().expand(2, 30)
    part = corresponding_points_alignment(x[:, :12], y[:, :12])
    assert off(corresponding_points_alignment(x, y, mask), part) < 1e-13
    as_list = corresponding_points_alignment(x, y, list(w))
    assert off(as_list, corresponding_points_alignment(x, y, w)) == 0


def test_padding_takes_no_part(dtype: torch.dtype) -> None:
    clouds = [draw(n, 3, dtype=dtype, seed=n) for n in (8, 20, 5)]
    by = motion(3, dtype)
    moved = [move(x[None], SimilarityTransform(*(p[i : i + 1] for p in by)))[0] for i, x in enumerate(clouds)]
    found = corresponding_points_alignment(Pointclouds(clouds), Pointclouds(moved), estimate_scale=True)
    assert off(found, by) < 16 * EPS[dtype]
    weights = [torch.ones(n, dtype=dtype) for n in (8, 20, 5)]
    again = corresponding_points_alignment(Pointclouds(clouds), Pointclouds(moved), weights, estimate_scale=True)
    assert off(again, found) == 0


def test_reflections_are_found_where_allowed(dtype: torch.dtype) -> None:
    x, by = draw(4, 20, 3, dtype=dtype), motion(4, dtype)
    mirrored = by._replace(R=-by.R)
    y = move(x, mirrored)
    assert (
        off(corresponding_points_alignment(x, y, estimate_scale=True, allow_reflection=True), mirrored) < 8 * EPS[dtype]
    )
    proper = corresponding_points_alignment(x, y)
    assert (torch.linalg.det(proper.R) - 1).abs().max() < 8 * EPS[dtype]
    direct = corresponding_points_alignment(x, move(x, by), estimate_scale=True, allow_reflection=True)
    assert off(direct, by) < 8 * EPS[dtype]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_points_that_leave_the_rotation_open(rank: int, dtype: torch.dtype) -> None:
    x = draw(3, 20, 3, dtype=dtype)
    x[..., rank:] = 0
    by = motion(3, dtype)
    x, y = x.requires_grad_(), move(x.detach(), by._replace(s=torch.ones_like(by.s))).requires_grad_()
    for scaled in (False, True):
        found = corresponding_points_alignment(x, y, estimate_scale=scaled)
        assert (found.R @ found.R.mT - torch.eye(3, dtype=dtype)).abs().max() < 8 * EPS[dtype]
        assert all(torch.isfinite(p).all() for p in found)
        if not scaled or rank:
            assert (move(x, found) - y).abs().max() < 16 * EPS[dtype]
        grads = torch.autograd.grad(sum((p * draw(*p.shape, dtype=dtype)).sum() for p in found), (x, y))
        assert all(torch.isfinite(g).all() for g in grads)


def test_gradients_of_an_alignment() -> None:
    x, y, w = draw(2, 6, 3), draw(2, 6, 3, seed=1), draw(2, 6, seed=2).abs()
    inputs = [p.requires_grad_() for p in (x, y, w)]
    for reflection in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, y, w, mirror=reflection: tuple(corresponding_points_alignment(x, y, w, True, mirror)), inputs
        )
    exact = move(x, motion(2)).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: corresponding_points_alignment(x, y).R, (exact,))
    assert torch.autograd.gradgradcheck(lambda y: corresponding_points_alignment(x, y).R, (exact,))


def test_half_is_taken_and_kept() -> None:
    x = draw(2, 10, 3)
    found = corresponding_points_alignment(x.half(), move(x, motion(2)).half())
    assert found.R.dtype == torch.float16 and (found.R.double() - motion(2).R).abs().max() < 0.01


def test_eps_bounds_the_scale() -> None:
    x = 1e-6 * draw(1, 10, 3)
    y = 1e6 * x
    assert abs(float(corresponding_points_alignment(x, y, estimate_scale=True, eps=1e-30).s) / 1e6 - 1) < 1e-12
    assert float(corresponding_points_alignment(x, y, estimate_scale=True).s) < 1e4


def test_few_points_are_warned_of() -> None:
    x = draw(1, 3, 3)
    with pytest.warns(UserWarning, match="fewer than four points"):
        corresponding_points_alignment(x, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corresponding_points_alignment(draw(1, 4, 3), draw(1, 4, 3))


@pytest.mark.parametrize(
    ("y", "weights", "words"),
    [
        (torch.zeros(2, 5, 3), None, "X, Y: expected clouds of equal sizes"),
        (torch.zeros(2, 6, 3, dtype=torch.float64), None, "X and Y: expected one dtype"),
        (torch.zeros(2, 6, 2), None, "Y: expected points in three dimensions"),
        (torch.zeros(6, 3), None, r"Y: expected a float tensor \(N, P, D\)"),
        (torch.zeros(2, 6, 3, dtype=torch.int64), None, "Y: expected a float tensor"),
        ([[1.0]], None, "Y: expected .* got a list"),
        (Pointclouds([torch.zeros(6, 3), torch.zeros(4, 3)]), None, r"got .*\[6, 6\], \[6, 4\]"),
        (torch.zeros(2, 6, 3), torch.zeros(2, 5), r"weights: expected a tensor \(2, 6\)"),
        (torch.zeros(2, 6, 3), [torch.zeros(6)], r"weights: expected tensors of sizes \[6, 6\]"),
        (torch.zeros(2, 6, 3), 1.0, "weights: expected a tensor"),
    ],
)
def test_wrong_input_is_a_value_error(y: object, weights: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        corresponding_points_alignment(torch.zeros(2, 6, 3), y, weights)  # type: ignore[arg-type]


# --- iterative closest points ----------------------------------------------------------------------------------------


def reference_icp(x: np.ndarray, y: np.ndarray, scaled: bool, steps: int) -> list[np.ndarray]:
    """One cloud, by KD-tree and SVD: the transforms [s R; T] after each step."""
    found, moved, tree = [], x, cKDTree(y)
    for _ in range(steps):
        z = y[tree.query(moved)[1]]
        a, b = x - x.mean(0), z - z.mean(0)
        u, d, vh = np.linalg.svd(a.T @ b)
        e = np.array([1, 1, np.linalg.det(u @ vh)])
        s = (e * d).sum() / (a**2).sum() if scaled else 1.0
        R = u * e @ vh
        T = z.mean(0) - s * x.mean(0) @ R
        found.append(np.vstack([s * R, T]))
        moved = s * x @ R + T
    return found


@pytest.mark.parametrize("scaled", [False, True])
def test_icp_takes_the_steps_of_a_slow_reference(scaled: bool) -> None:
    y = draw(3, 200, 3)
    x = move(y[:, :150], motion(3, turn=0.2)._replace(s=torch.ones(3, dtype=torch.float64)))
    got = iterative_closest_point(x, y, estimate_scale=scaled)
    assert isinstance(got, ICPSolution) and got.converged and 2 < len(got.t_history) < 100
    for i in range(3):
        want = reference_icp(x[i].numpy(), y[i].numpy(), scaled, len(got.t_history))
        for step, there in zip(got.t_history, want, strict=True):
            here = torch.cat([step.s[i] * step.R[i], step.T[i][None]])
            assert np.abs(here.numpy() - there).max() < 1e-12
    assert off(got.RTs, got.t_history[-1]) == 0
    assert torch.equal(got.Xt, move(x, got.RTs))
    nearest = torch.cdist(got.Xt, y).amin(-1)
    assert got.rmse is not None and (got.rmse - nearest.square().mean(-1).sqrt()).abs().max() < 1e-6


def test_icp_undoes_a_small_motion(dtype: torch.dtype) -> None:
    y = draw(2, 300, 3, dtype=dtype)
    by = motion(2, dtype, turn=0.05)
    by = by._replace(T=0.05 * by.T, s=torch.ones_like(by.s))
    got = iterative_closest_point(move(y, by), y)
    assert got.converged and (got.Xt - y).abs().max() < 64 * EPS[dtype]
    assert (got.RTs.R - by.R.mT).abs().max() < 64 * EPS[dtype]


def test_padding_takes_no_part_in_icp() -> None:
    sizes, sizes_y = (40, 90, 12), (80, 50, 99)
    clouds = [draw(n, 3, seed=n) for n in sizes]
    targets = [draw(n, 3, seed=n) for n in sizes_y]
    for other in (targets, [draw(n, 3, seed=n + 1) for n in sizes]):  # the same sizes too, where pytorch3d counts it
        together = iterative_closest_point(
            Pointclouds(clouds), Pointclouds(other), max_iterations=5, relative_rmse_thr=-9
        )
        assert not together.converged and isinstance(together.Xt, Pointclouds)
        for i, (x, y) in enumerate(zip(clouds, other, strict=True)):
            alone = iterative_closest_point(x[None], y[None], max_iterations=5, relative_rmse_thr=-9)
            assert len(alone.t_history) == 5
            assert off(alone.RTs, SimilarityTransform(*(p[i : i + 1] for p in together.RTs))) < 1e-12
            assert (together.Xt.points[i] - alone.Xt[0]).abs().max() < 1e-12


def test_icp_starts_where_it_is_told() -> None:
    y = draw(2, 100, 3)
    by = motion(2)._replace(s=torch.ones(2, dtype=torch.float64))
    x = move(y, by)
    back = SimilarityTransform(by.R.mT, -(by.T[:, None] @ by.R.mT)[:, 0], by.s)
    got = iterative_closest_point(x, y, init_transform=back)
    assert got.converged and (got.Xt - y).abs().max() < 1e-13
    assert (iterative_closest_point(x, y).Xt - y).abs().max() > 0.1
    none = iterative_closest_point(x, y, back, max_iterations=0)
    assert none.rmse is None and none.t_history == [] and not none.converged and off(none.RTs, back) == 0
    assert (none.Xt - y).abs().max() < 1e-13


def test_icp_reports_through_logging(caplog: pytest.LogCaptureFixture) -> None:
    x = draw(1, 20, 3)
    with caplog.at_level(logging.INFO):
        iterative_closest_point(x, x)
        assert not caplog.records
        got = iterative_closest_point(x, x + 0.01, verbose=True)
    assert len(caplog.records) == len(got.t_history) + 1 and "converged in" in caplog.text


def test_gradients_pass_through_the_last_alignment() -> None:
    x, y = draw(1, 12, 3), draw(1, 15, 3, seed=1)
    inputs = [x.requires_grad_(), y.requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, y: iterative_closest_point(x, y, max_iterations=2).Xt, inputs)
    same = iterative_closest_point(x, x)  # rmse is 0 there
    assert same.rmse is not None and all(torch.isfinite(g).all() for g in torch.autograd.grad(same.rmse.sum(), x))


def test_wrong_input_to_icp_is_a_value_error() -> None:
    x = draw(2, 10, 3)
    one = SimilarityTransform(torch.eye(3).expand(2, 3, 3), torch.zeros(2, 3), torch.ones(2))
    with pytest.raises(ValueError, match="expected equally many clouds, got 2 and 1"):
        iterative_closest_point(x, x[:1])
    with pytest.raises(ShapeError, match="at least one point in each cloud"):
        iterative_closest_point(x, x[:, :0])
    for start in (one._replace(s=torch.ones(3)), (1, 2, 3), torch.eye(4), one[:2]):
        with pytest.raises(ValueError, match=r"init_transform: expected \(R, T, s\) of shapes \(2, 3, 3\)"):
            iterative_closest_point(x, x, start)  # type: ignore[arg-type]
    assert iterative_closest_point(x, x, one).converged
