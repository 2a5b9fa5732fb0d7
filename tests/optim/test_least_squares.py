"""Least squares: known minima, poses, batches, outliers, missing directions, covariance, and what it warns of."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geom.errors import ConvergenceWarning, ShapeError
from geom.lie import Rigid
from geom.optim import Problem, Quadratic, Robust, least_squares
from geom.points import knn
from geom.values import Fit

DAMPINGS = {"lm": 1e-4, "gn": 0.0}
each_method = pytest.mark.parametrize("damping", DAMPINGS.values(), ids=DAMPINGS)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rosenbrock(p: Tensor) -> Tensor:
    return torch.stack([10 * (p[..., 1] - p[..., 0] ** 2), 1 - p[..., 0]], -1)


def assert_fit(fit: Fit[Any], batch: tuple[int, ...], n: int) -> None:
    assert fit.cost.shape == fit.converged.shape == fit.iterations.shape == batch
    assert fit.converged.dtype == torch.bool and fit.iterations.dtype == torch.int64
    assert fit.covariance is not None and fit.covariance.shape == (*batch, n, n)
    assert fit.cost.isfinite().all() and fit.covariance.isfinite().all()


# --- known minima ----------------------------------------------------------------------------------------------------


@each_method
def test_rosenbrock(damping: float) -> None:
    guess = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [3.0, -4.0], [1.0, 1.0]], dtype=torch.float64)
    copy = guess.clone()
    fit = least_squares(rosenbrock, guess, damping=damping)
    assert_fit(fit, (4,), 2)
    assert fit.converged.all() and torch.equal(guess, copy)
    assert torch.allclose(fit.value, torch.ones(4, 2, dtype=torch.float64), atol=1e-9)
    assert (fit.cost < 1e-18).all() and fit.iterations[3] == 1 and (fit.iterations[:3] > 1).all()


def test_rosenbrock_in_float32() -> None:
    fit = least_squares(rosenbrock, torch.tensor([-1.2, 1.0]))
    assert fit.value.dtype == fit.cost.dtype == torch.float32 and bool(fit.converged)
    assert torch.allclose(fit.value, torch.ones(2), atol=1e-4)


def exponential(dtype: torch.dtype = torch.float64) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A noisy decay: its residual does not vanish at the minimum."""
    t = torch.linspace(0, 3, 60, dtype=dtype)
    y = 2 * torch.exp(-1.3 * t) + 0.5 + 0.05 * random(60, dtype=dtype)
    return lambda p: p[0] * torch.exp(p[1] * t) + p[2] - y, torch.tensor([1.0, -1.0, 0.0], dtype=dtype)


@each_method
def test_exponential_matches_scipy(damping: float) -> None:
    from scipy.optimize import curve_fit

    residual, guess = exponential()
    fit = least_squares(residual, guess, damping=damping)
    t = torch.linspace(0, 3, 60).double().numpy()
    y = -residual(torch.zeros(3).double()).numpy()
    want, covariance = curve_fit(lambda t, a, b, c: a * math.e ** (b * t) + c, t, y, p0=[1, -1, 0], ftol=1e-14)
    assert bool(fit.converged)
    assert torch.allclose(fit.value, torch.from_numpy(want), rtol=1e-6)
    assert fit.covariance is not None and torch.allclose(fit.covariance, torch.from_numpy(covariance), rtol=1e-4)
    gradient = torch.func.grad(lambda p: 0.5 * residual(p).square().sum())(fit.value)
    assert gradient.abs().max() < 1e-8


@each_method
def test_exponential_in_float32(damping: float) -> None:
    low, high = (least_squares(*exponential(d), damping=damping) for d in (torch.float32, torch.float64))
    assert bool(low.converged) and low.value.dtype == torch.float32
    assert torch.allclose(low.value.double(), high.value, atol=1e-4)


def test_damping_saves_what_gauss_newton_overshoots() -> None:
    def residual(x: Tensor) -> Tensor:  # Newton's steps on atan diverge from |x| > 1.39
        return torch.atan(x)

    guess = torch.tensor([2.0], dtype=torch.float64)
    damped = least_squares(residual, guess)
    assert bool(damped.converged) and damped.value.abs().max() < 1e-9
    with pytest.warns(ConvergenceWarning):
        every = least_squares(residual, guess, damping=0.0, max_iterations=4)
    assert every.value.abs().max() > 10


@each_method
def test_a_linear_problem_takes_one_step(damping: float) -> None:
    a, b = random(30, 4), random(30, seed=1)
    fit = least_squares(lambda x: a @ x - b, torch.zeros(4, dtype=torch.float64), damping=damping)
    want = torch.linalg.lstsq(a, b[:, None]).solution[:, 0]
    assert torch.allclose(fit.value, want, atol=1e-12)
    assert fit.iterations <= (2 if damping == 0 else 4)


# --- poses -----------------------------------------------------------------------------------------------------------


def poses(batch: int, reach: Tensor, dtype: torch.dtype = torch.float64) -> Rigid:
    twist = torch.nn.functional.normalize(random(batch, 6, seed=3), dim=-1) * reach[:, None].double()
    one = Rigid(torch.tensor([[1.0, 0, 0, 0]]).double().expand(batch, 4), torch.zeros(batch, 3).double())
    return one.retract(twist).to(dtype)


@each_method
def test_a_pose_from_points(damping: float, dtype: torch.dtype) -> None:
    truth, points = poses(1, torch.tensor([1.5]), dtype)[0], random(20, 3, dtype=dtype)
    seen = truth.apply(points)
    fit = least_squares(lambda pose: pose.apply(points) - seen, Rigid.identity(dtype=dtype), damping=damping)
    assert_fit(fit, (), 6)
    assert isinstance(fit.value, Rigid) and fit.value.quat_wxyz.dtype == dtype and bool(fit.converged)
    error = (fit.value.to_matrix() - truth.to_matrix()).abs().max()
    assert error < 20 * torch.finfo(dtype).eps


@each_method
def test_a_batch_of_poses_converges_one_by_one(damping: float) -> None:
    truth = poses(5, torch.tensor([0.0, 1e-6, 0.1, 1.0, 2.5]))
    points = random(5, 20, 3)
    seen = truth.apply(points) + 0.01 * random(5, 20, 3, seed=9)
    guess = poses(5, torch.zeros(5))
    batch = least_squares(lambda pose: pose.apply(points) - seen, guess, damping=damping)
    assert_fit(batch, (5,), 6)
    assert batch.converged.all() and batch.iterations[0] < batch.iterations[-1]
    for i in range(5):
        x, y = points[i], seen[i]
        alone = least_squares(lambda pose, x=x, y=y: pose.apply(x) - y, guess[i], damping=damping)
        assert alone.iterations == batch.iterations[i]
        assert torch.allclose(alone.value.to_matrix(), batch.value[i].to_matrix(), atol=1e-12)
        assert torch.allclose(alone.cost, batch.cost[i], rtol=1e-10)
        assert alone.covariance is not None and batch.covariance is not None
        assert torch.allclose(alone.covariance, batch.covariance[i], rtol=1e-8)


def test_neighbours_inside_a_residual() -> None:
    """Forward mode and vmap reach through `knn`: point-to-point registration in one line."""
    target = random(200, 3)
    source = poses(1, torch.tensor([0.1]))[0].apply(target[:80])
    fit = least_squares(lambda pose: knn(pose.apply(source), target, 1).distance[:, 0], Rigid.identity().to(source))
    assert (fit.value.apply(source) - target[:80]).abs().max() < 1e-9


# --- outliers --------------------------------------------------------------------------------------------------------


def test_each_kernel_changes_the_result() -> None:
    line = torch.linspace(-1, 1, 50).double()
    y = 3 * line + 1 + 0.02 * random(50)
    y[::7] += 20
    truth = torch.tensor([3.0, 1.0]).double()

    def fit(robust: Robust | None) -> Fit[Tensor]:
        return least_squares(lambda p: p[0] * line + p[1] - y, truth + 0.3, robust=robust, max_iterations=200)

    errors = {
        str(k): (fit(Robust(k, 0.1) if k else None).value - truth).norm() for k in (None, "huber", "cauchy", "gm")
    }
    assert errors["None"] > 1 and errors["huber"] < 0.1 and errors["cauchy"] < 0.02 and errors["gm"] < 0.02
    assert len({float(e) for e in errors.values()}) == 4
    narrow, wide = (fit(Robust("huber", scale)).value for scale in (0.1, 1e6))
    assert torch.allclose(wide, fit(None).value, atol=1e-9) and not torch.allclose(narrow, wide, atol=0.1)


@pytest.mark.parametrize("kind", ["huber", "cauchy"])
def test_a_robust_minimum_is_one(kind: str) -> None:
    """The value found has no slope in the robust cost, and `cost` is that cost."""
    kernel, y = Robust(kind, 0.5), torch.cat([random(30, 2), 8 + random(5, 2, seed=1)])
    fit = least_squares(lambda p: p - y, torch.zeros(2).double(), robust=kernel, max_iterations=200)

    def cost(p: Tensor) -> Tensor:
        return 0.5 * kernel.cost((p - y).square().sum(-1)).sum()

    assert torch.allclose(fit.cost, cost(fit.value)) and torch.func.grad(cost)(fit.value).abs().max() < 1e-7
    numbers = least_squares(
        lambda p: (p - y).flatten(), torch.zeros(2).double(), robust=kernel, max_iterations=200
    )  # each number by itself under the kernel: another estimate
    assert not torch.allclose(numbers.value, fit.value, atol=1e-3)


# --- directions not seen ---------------------------------------------------------------------------------------------


@each_method
def test_a_coordinate_not_seen_stays(damping: float, dtype: torch.dtype) -> None:
    guess = torch.tensor([0.3, -7.25, 2.0], dtype=dtype)
    fit = least_squares(lambda p: torch.stack([p[0] - 1, p[2] ** 2 - 9, p[0] * p[2] - 3]), guess, damping=damping)
    assert bool(fit.converged) and fit.value[1] == guess[1]
    assert torch.allclose(fit.value[[0, 2]], torch.tensor([1.0, 3.0], dtype=dtype), atol=1e-5)
    assert fit.covariance is not None and not fit.covariance[1].any() and not fit.covariance[:, 1].any()
    assert fit.covariance.isfinite().all()


@each_method
def test_a_combination_not_seen_stays(damping: float) -> None:
    t = torch.linspace(0.1, 1, 20).double()
    guess = torch.tensor([1.0, 5.0], dtype=torch.float64)
    fit = least_squares(lambda p: p.sum() * t - torch.sin(3 * t), guess, damping=damping)
    assert bool(fit.converged) and abs(float(fit.value.diff() - guess.diff())) < 1e-9
    assert fit.covariance is not None and fit.covariance.isfinite().all()
    assert torch.linalg.matrix_rank(fit.covariance, atol=1e-12) == 1


@each_method
def test_a_residual_of_nothing(damping: float) -> None:
    guess = torch.tensor([1.0, 2.0], dtype=torch.float64)
    fit = least_squares(lambda p: 0 * p.sum() + torch.ones(3).double(), guess, damping=damping)
    assert bool(fit.converged) and torch.equal(fit.value, guess) and fit.cost == 1.5


def test_points_on_a_line_leave_the_turn_about_it() -> None:
    points = torch.tensor([[-1.0, 0, 0], [1, 0, 0], [2, 0, 0]]).double()
    truth = poses(1, torch.tensor([0.4]))[0]
    seen = truth.apply(points)
    fit = least_squares(lambda pose: pose.apply(points) - seen, Rigid.identity(dtype=torch.float64))
    assert bool(fit.converged) and (fit.value.apply(points) - seen).abs().max() < 1e-9
    assert fit.covariance is not None and fit.covariance.abs().max() < 1e-20


def test_units_do_not_hide_a_direction() -> None:
    """A parameter in micrometres beside one in megapascals: both have a variance."""
    a, y = random(40, 2), random(40, seed=1)
    units = torch.tensor([1e-6, 1e6]).double()
    plain = least_squares(lambda p: a @ p - y, torch.zeros(2).double(), damping=0.0)
    scaled = least_squares(lambda p: a @ (p / units) - y, torch.zeros(2).double(), damping=0.0, tolerance=1e-15)
    assert plain.covariance is not None and scaled.covariance is not None
    assert torch.allclose(scaled.value / units, plain.value, rtol=1e-9)
    assert torch.allclose(scaled.covariance / (units[:, None] * units), plain.covariance, rtol=1e-9)


# --- covariance ------------------------------------------------------------------------------------------------------


def test_covariance_of_linear_regression_is_the_textbooks() -> None:
    a, y = random(50, 3), random(50, seed=1)
    fit = least_squares(lambda p: a @ p - y, torch.zeros(3).double())
    r = a @ fit.value - y
    want = (r @ r) / (50 - 3) * torch.linalg.inv(a.mT @ a)
    assert fit.covariance is not None and torch.allclose(fit.covariance, want, rtol=1e-10)
    blocks = least_squares(lambda p: (a @ p - y).reshape(25, 2), torch.zeros(3).double())
    assert blocks.covariance is not None and torch.allclose(blocks.covariance, want, rtol=1e-10)


def test_covariance_of_a_pose_by_monte_carlo() -> None:
    trials, points = 400, random(30, 3) * torch.tensor([2, 1, 0.5])
    truth = poses(1, torch.tensor([0.8]))[0]
    seen = truth.apply(points) + 0.02 * random(trials, 30, 3, seed=5)
    start = Rigid(truth.quat_wxyz.expand(trials, 4), truth.translation.expand(trials, 3))
    fit = least_squares(lambda pose: pose.apply(points.expand(trials, 30, 3)) - seen, start)
    off = truth.inverse().to_matrix() @ fit.value.to_matrix()
    turn = torch.stack([off[:, 2, 1], off[:, 0, 2], off[:, 1, 0]], -1)
    found = torch.cat([off[:, :3, 3], turn], -1)  # small: its own logarithm to first order
    assert fit.covariance is not None
    ratio = found.square().mean(0) / fit.covariance.diagonal(dim1=-2, dim2=-1).mean(0)
    assert ((ratio > 0.75) & (ratio < 1.3)).all(), ratio


# --- a Problem -------------------------------------------------------------------------------------------------------


class Circle:
    """Distance of points to a circle of radius 1 about p, with derivatives by hand; counts its calls."""

    def __init__(self, points: Tensor) -> None:
        self.points, self.calls = points, [0, 0]

    def linearize(self, value: Tensor, /) -> Quadratic:
        self.calls[0] += 1
        gap = value - self.points
        length = gap.norm(dim=-1, keepdim=True)
        r, jacobian = length[:, 0] - 1, gap / length
        return Quadratic(0.5 * r @ r, jacobian.mT @ r, jacobian.mT @ jacobian)

    def cost(self, value: Tensor, /) -> Tensor:
        self.calls[1] += 1
        return 0.5 * ((value - self.points).norm(dim=-1) - 1).square().sum()


@each_method
def test_a_problem_brings_its_own_derivatives(damping: float) -> None:
    angle = torch.linspace(0, 5, 20).double()
    points = torch.stack([angle.cos(), angle.sin()], -1) + torch.tensor([3.0, 4.0]) + 0.01 * random(20, 2)
    problem, guess = Circle(points), torch.tensor([2.5, 3.8], dtype=torch.float64)
    assert isinstance(problem, Problem)
    fit = least_squares(problem, guess, damping=damping)
    same = least_squares(lambda p: (p - points).norm(dim=-1) - 1, guess, damping=damping)
    assert fit.covariance is None and bool(fit.converged) and fit.iterations == same.iterations
    assert torch.allclose(fit.value, same.value, atol=1e-10) and torch.allclose(fit.cost, same.cost)
    steps = int(fit.iterations)
    assert problem.calls[0] <= steps and problem.calls[1] == (steps if damping else 1)


# --- options, warnings, errors ---------------------------------------------------------------------------------------


def test_the_iteration_limit_warns() -> None:
    guess = torch.tensor([[-1.2, 1.0], [1.0, 1.0]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="1 of 2 problems still moved after 3 steps"):
        fit = least_squares(rosenbrock, guess, max_iterations=3)
    assert fit.converged.tolist() == [False, True] and fit.iterations.tolist() == [3, 1]
    assert fit.cost[0] < 0.5 * rosenbrock(guess[0]).square().sum() and fit.value.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert least_squares(rosenbrock, guess).converged.all()


def test_tolerance_is_that_of_the_step() -> None:
    residual, guess = exponential()
    rough, fine = (least_squares(residual, guess, tolerance=t) for t in (0.1, 1e-10))
    assert rough.iterations < fine.iterations and not torch.equal(rough.value, fine.value)
    each = least_squares(residual, guess, tolerance=torch.tensor([0.1, 0.1, 1e-10]).double())
    assert rough.iterations < each.iterations <= fine.iterations


def test_a_step_into_nowhere_is_undone() -> None:
    """The first Newton step on log lands below 0, where there is no number: damping comes back, and finds 1."""
    fit = least_squares(torch.log, torch.tensor([5.0], dtype=torch.float64))
    assert bool(fit.converged) and torch.allclose(fit.value, torch.ones(1).double())
    with pytest.warns(ConvergenceWarning):
        lost = least_squares(torch.log, torch.tensor([5.0], dtype=torch.float64), damping=0.0)
    assert not bool(lost.converged) and lost.value.isfinite().all()


ONE = torch.ones(2, dtype=torch.float64)
WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "scalar": ((lambda p: p.sum(), ONE), {}, r"residual: expected \(m\[, d\]\), got \(\)"),
    "deep": ((lambda p: p[None, None], ONE), {}, r"residual: expected \(m\[, d\]\), got \(1, 1, 2\)"),
    "batch": ((lambda p: p[:1], ONE.expand(3, 2)), {}, r"residual: expected \(3, m\[, d\]\), got \(1, 2\)"),
    "nan": ((lambda p: p / 0 - p / 0, ONE), {}, r"guess: expected a finite cost there, got \[nan\]"),
    "robust_name": (
        (lambda p: p, ONE),
        {"robust": "huber"},
        r"robust: expected a geom\.optim\.Robust or None, got str",
    ),
    "guess_int": (
        (lambda p: p, ONE.long()),
        {},
        r"guess: expected a float tensor \(\.\.\., n\) or a value with retract",
    ),
    "guess_list": ((lambda p: p, [1.0, 1.0]), {}, r"guess: expected a float tensor .* got a list"),
    "robust": ((Circle(ONE[None] * 2), ONE), {"robust": Robust("huber")}, "robust: a Problem weighs its own residuals"),
    "damping": (
        (lambda p: p, ONE),
        {"damping": -1.0},
        "expected damping >= 0 and max_iterations >= 1, got -1.0 and 50",
    ),
    "iterations": ((lambda p: p, ONE), {"max_iterations": 0}, "max_iterations >= 1, got 0.0001 and 0"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_errors(case: str) -> None:
    arguments, options, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        least_squares(*arguments, **options)
