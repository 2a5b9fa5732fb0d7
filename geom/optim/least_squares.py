"""Nonlinear least squares on any value with `retract`: Gauss-Newton and Levenberg-Marquardt, batched."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from geom.checks import describe
from geom.errors import ConvergenceWarning, ShapeError
from geom.optim.robust import Robust
from geom.values import Fit, batch_shape

__all__ = ["Problem", "Quadratic", "least_squares"]

V = TypeVar("V")
V_contra = TypeVar("V_contra", contravariant=True)
_DAMPING_MIN, _DAMPING_MAX = 1e-12, 1e12


class Quadratic(NamedTuple):
    """The objective near a value: cost (*b,), gradient (*b, n) and Gauss-Newton Hessian (*b, n, n) in its tangent."""

    cost: Tensor
    gradient: Tensor
    hessian: Tensor


@runtime_checkable
class Problem(Protocol[V_contra]):
    """An objective that brings its own derivatives. `linearize` may also renew what the objective holds fixed until
    the next call (correspondences, robust scales); `cost` is then that of the last call's choices."""

    def linearize(self, value: V_contra, /) -> Quadratic: ...

    def cost(self, value: V_contra, /) -> Tensor: ...


def least_squares(
    residual: Callable[[V], Tensor] | Problem[V],
    guess: V,
    *,
    robust: Robust | None = None,
    max_iterations: int = 50,
    tolerance: float | Tensor = 1e-10,
    damping: float = 1e-4,
) -> Fit[V]:
    """Minimise 1/2 sum_i rho(|r_i(x)|^2) over a value x, by Levenberg-Marquardt steps x <- x.retract(delta).

    (H + lambda diag H) delta = -g with H = J^T W J, g = J^T W r (More 1978); lambda is divided by ten when a step does
    not raise the cost and multiplied by ten when it does (the step is then undone). `damping=0` is Gauss-Newton: every
    step is taken. Coordinates the residual does not see stay where they are; of steps it cannot tell apart, the
    shortest is taken, each coordinate measured by its own curvature.

    Args:
        residual: value -> (*b, m) numbers or (*b, m, d) blocks of d, each block under one robust kernel; its Jacobian
            is taken by forward-mode differentiation. Or a `Problem`, which brings its own.
        guess: a value with `retract(delta (*b, n))` and `tangent_dim` n, batched over *b, or a tensor (*b, n), whose
            steps add. Every problem of the batch has its own damping and convergence.
        robust: kernel on the blocks; the weights are renewed at every step (IRLS). Not with a Problem.
        max_iterations: trial steps, at most.
        tolerance: a problem has converged when no component of its step is larger; a number or (n,), in the tangent's
            units, at least 8 times the rounding of 1. Or when the step promises to lower the cost by less than the
            cost's own rounding.
        damping: lambda at the start, or 0.
    Returns: Fit(value, cost (*b,), covariance (*b, n, n), converged (*b,), iterations (*b,) trial steps). The
        covariance is s^2 H^-1 with s^2 = 2 cost / (m d - n), in the tangent at the value found; None for a Problem.
        Where H is singular it is the pseudo-inverse on the directions seen, 0 elsewhere.
    Raises: ShapeError, also where the cost at the guess is not finite; warns ConvergenceWarning where the limit came
        first.

    >>> line = torch.linspace(0, 1, 20, dtype=torch.float64)
    >>> fit = least_squares(lambda p: p[0] * torch.exp(p[1] * line) - 2 * torch.exp(-line), torch.ones(2).double())
    >>> fit.value.round(decimals=6).tolist()
    [2.0, -1.0]

    Guarantees: not differentiable; deterministic; step tolerance as given
    """
    if robust is not None and not isinstance(robust, Robust):
        raise ShapeError(f"robust: expected a geom.optim.Robust or None, got {describe(robust)}")
    if not (isinstance(guess, Tensor) and guess.is_floating_point() and guess.ndim) and not hasattr(guess, "retract"):
        raise ShapeError(f"guess: expected a float tensor (..., n) or a value with retract, got {describe(guess)}")
    if damping < 0 or max_iterations < 1:
        raise ShapeError(f"expected damping >= 0 and max_iterations >= 1, got {damping} and {max_iterations}")
    if not isinstance(residual, Problem):
        problem: Any = _Residual(residual, robust, guess)
    elif robust is not None:
        raise ShapeError("robust: a Problem weighs its own residuals, got a kernel as well")
    else:
        problem = residual
    value: Any = guess
    now = problem.linearize(guess)
    if not bool(torch.isfinite(now.cost).all()):
        raise ShapeError(f"guess: expected a finite cost there, got {now.cost.flatten().tolist()[:8]}")
    batch = now.gradient.shape[:-1]
    rounding = torch.finfo(now.cost.dtype).eps
    least = max(_DAMPING_MIN, 16 * rounding)
    factor = torch.full(batch, max(float(damping), least), dtype=now.cost.dtype, device=now.cost.device)
    converged = torch.zeros(batch, dtype=torch.bool, device=now.cost.device)
    iterations = torch.zeros(batch, dtype=torch.int64, device=now.cost.device)
    limit = torch.as_tensor(tolerance, dtype=now.cost.dtype, device=now.cost.device).clamp(min=8 * rounding)
    for _ in range(max_iterations):
        step = _damped_step(now, factor) if damping else _newton_step(now)
        small = (step.abs() <= limit).all(-1) | (torch.linalg.vecdot(step, now.gradient) >= -rounding * now.cost)
        trial = _retract(value, step)
        cost = problem.cost(trial) if damping else None
        if cost is not None:
            better = (cost <= now.cost) & ~converged
            factor = torch.where(better, factor / 10, factor * 10).clamp(least, _DAMPING_MAX)
        else:
            better = step.isfinite().all(-1) & ~converged
        iterations = iterations + ~converged
        done = converged | small
        if bool(better.any()):
            value = _where(better, trial, value, batch)
            if not bool(done.all()):
                now = problem.linearize(value)
            elif cost is not None:
                now = now._replace(cost=torch.where(better, cost, now.cost))
            else:
                now = now._replace(cost=problem.cost(value))
        converged = done
        if bool(converged.all()):
            break
    else:
        stuck = int((~converged).sum())
        warnings.warn(
            f"least_squares: {stuck} of {max(1, converged.numel())} problems still moved after {max_iterations} steps",
            ConvergenceWarning,
            stacklevel=2,
        )
    covariance = problem.covariance(value) if isinstance(problem, _Residual) else None
    return Fit(value, now.cost, covariance, converged, iterations)


def _damped_step(now: Quadratic, factor: Tensor) -> Tensor:
    """-(H + lambda diag H)^-1 g; a coordinate that H does not see gets no step.

    A singular H still has a step, since lambda never falls below rounding's own size, which no seen direction feels.
    """
    damped = now.hessian.clone()
    damped.diagonal(dim1=-2, dim2=-1).copy_(_curvature(damped) * (1 + factor[..., None]))
    return torch.linalg.solve(damped, -now.gradient)


def _newton_step(now: Quadratic) -> Tensor:
    return -(_inverse(now.hessian) @ now.gradient[..., None])[..., 0]


def _curvature(hessian: Tensor) -> Tensor:
    """The diagonal, with its largest entry in place of those that are only rounding; above 0."""
    diagonal, info = hessian.diagonal(dim1=-2, dim2=-1), torch.finfo(hessian.dtype)
    most = diagonal.amax(-1, keepdim=True).clamp(min=info.tiny)
    return torch.where(diagonal > (16 * info.eps) ** 2 * most, diagonal, most)


def _inverse(hessian: Tensor) -> Tensor:
    """Pseudo-inverse with each coordinate in the unit of its curvature: no choice of units hides a direction."""
    scale = _curvature(hessian).rsqrt()
    scales = scale[..., :, None] * scale[..., None, :]
    rounding = 16 * hessian.shape[-1] * torch.finfo(hessian.dtype).eps
    return scales * torch.linalg.pinv(torch.nan_to_num(hessian * scales), hermitian=True, rtol=rounding)


def _retract(value: Any, step: Tensor) -> Any:
    return value + step if isinstance(value, Tensor) else value.retract(step)


def _where(condition: Tensor, new: V, old: V, batch: torch.Size) -> V:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition.reshape(batch + (1,) * (a.ndim - len(batch))), a, b)

    return pytree.tree_map(pick, new, old)


class _Residual:
    """A residual function as a Problem: Jacobian by forward mode, robust weights, covariance."""

    def __init__(self, residual: Callable[[Any], Tensor], robust: Robust | None, guess: Any) -> None:
        self.residual, self.robust = residual, robust
        leaf = guess if isinstance(guess, Tensor) else pytree.tree_leaves(guess)[0]
        if isinstance(guess, Tensor):
            self.batch, self.n = guess.shape[:-1], guess.shape[-1]
        else:
            self.batch, self.n = batch_shape(guess), guess.tangent_dim
        self.zero = torch.zeros((*self.batch, self.n), dtype=leaf.dtype, device=leaf.device)

    def blocks(self, value: Any) -> Tensor:
        r = self.residual(value)
        if r.shape[: len(self.batch)] != self.batch or r.ndim - len(self.batch) not in (1, 2):
            want = ", ".join(map(str, (*self.batch, "m")))
            raise ShapeError(f"residual: expected ({want}[, d]), got {tuple(r.shape)}")
        return r[..., None] if r.ndim == len(self.batch) + 1 else r

    def parts(self, value: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        def column(basis: Tensor) -> Tensor:
            direction = (basis.expand_as(self.zero),)
            return torch.func.jvp(lambda d: self.blocks(_retract(value, d)), (self.zero,), direction)[1]

        r = self.blocks(value)
        basis = torch.eye(self.n, dtype=self.zero.dtype, device=self.zero.device)
        jacobian = torch.func.vmap(column)(basis).movedim(0, -1)  # (*b, m, d, n)
        square = r.square().sum(-1)
        weight = torch.ones_like(square) if self.robust is None else self.robust.weight(square)
        return r, jacobian, square, weight

    def linearize(self, value: Any) -> Quadratic:
        r, jacobian, square, weight = self.parts(value)
        weighted = jacobian * weight[..., None, None]
        gradient = torch.einsum("...mdn,...md->...n", weighted, r)
        return Quadratic(self.total(square), gradient, torch.einsum("...mdi,...mdj->...ij", weighted, jacobian))

    def total(self, square: Tensor) -> Tensor:
        return 0.5 * (square if self.robust is None else self.robust.cost(square)).sum(-1)

    def cost(self, value: Any) -> Tensor:
        return self.total(self.blocks(value).square().sum(-1))

    def covariance(self, value: Any) -> Tensor:
        r = self.blocks(value)
        now = self.linearize(value)
        freedom = max(1, r.shape[-1] * r.shape[-2] - self.n)
        return (2 * now.cost / freedom)[..., None, None] * _inverse(now.hessian)
