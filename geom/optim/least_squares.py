"""Nonlinear least squares on any value with `retract`: Gauss-Newton and Levenberg-Marquardt, batched."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from geom.errors import ConvergenceWarning, ShapeError
from geom.optim.robust import Robust
from geom.values import Fit, batch_shape

__all__ = ["Problem", "Quadratic", "least_squares"]

V = TypeVar("V")
_DAMPING_MIN, _DAMPING_MAX = 1e-12, 1e12


class Quadratic(NamedTuple):
    """The objective near a value: cost (*b,), gradient (*b, n) and Gauss-Newton Hessian (*b, n, n) in its tangent."""

    cost: Tensor
    gradient: Tensor
    hessian: Tensor


@runtime_checkable
class Problem(Protocol[V]):
    """An objective that brings its own derivatives. `linearize` may also renew what the objective holds fixed until
    the next call (correspondences, robust scales); `cost` is then that of the last call's choices."""

    def linearize(self, value: V) -> Quadratic: ...

    def cost(self, value: V) -> Tensor: ...


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

    (H + lambda diag H) delta = -g with H = J^T W J, g = J^T W r (More 1978); lambda is divided by ten when a step lowers
    the cost and multiplied by ten when it does not (the step is then undone). `damping=0` is Gauss-Newton: every step
    is taken. Directions the residual does not see stay where they are.

    Args:
        residual: value -> (*b, m) numbers or (*b, m, d) blocks of d, each block under one robust kernel; its Jacobian is
            taken by forward-mode differentiation. Or a `Problem`, which brings its own.
        guess: a value with `retract(delta (*b, n))` and `tangent_dim` n, batched over *b, or a tensor (*b, n), whose
            steps add. Every problem of the batch has its own damping and convergence.
        robust: kernel on the blocks; the weights are renewed at every step (IRLS). Not with a Problem.
        max_iterations: trial steps, at most.
        tolerance: a problem has converged when no component of its step is larger; a number or (n,), in the tangent's
            units.
        damping: lambda at the start, or 0.
    Returns: Fit(value, cost (*b,), covariance (*b, n, n), converged (*b,), iterations (*b,) trial steps). The covariance
        is s^2 H^-1 with s^2 = 2 cost / (m d - n), in the tangent at the value found; None for a Problem. Where H is
        singular it is the pseudo-inverse on the directions seen.
    Raises: ShapeError; warns ConvergenceWarning where the limit came first.

    >>> line = torch.linspace(0, 1, 20, dtype=torch.float64)
    >>> fit = least_squares(lambda p: p[0] * torch.exp(p[1] * line) - 2 * torch.exp(-line), torch.ones(2).double())
    >>> fit.value.round(decimals=6).tolist()
    [2.0, -1.0]

    Guarantees: not differentiable; deterministic; step tolerance as given
    """
    if not isinstance(residual, Problem):
        problem: Any = _Residual(residual, robust, guess)
    elif robust is not None:
        raise ShapeError("robust: a Problem weighs its own residuals, got a kernel as well")
    else:
        problem = residual
    value, now = guess, problem.linearize(guess)
    batch, n = now.gradient.shape[:-1], now.gradient.shape[-1]
    factor = torch.full(batch, float(damping), dtype=now.cost.dtype, device=now.cost.device)
    converged = torch.zeros(batch, dtype=torch.bool, device=now.cost.device)
    iterations = torch.zeros(batch, dtype=torch.int64, device=now.cost.device)
    limit = torch.as_tensor(tolerance, dtype=now.cost.dtype, device=now.cost.device)
    for _ in range(max_iterations):
        step = _solve(now, factor)
        small = (step.abs() <= limit).all(-1)
        trial = _retract(value, step)
        if damping:
            cost = problem.cost(trial)
            better = (cost <= now.cost) & ~converged
            factor = torch.where(better, factor / 10, factor * 10).clamp(_DAMPING_MIN, _DAMPING_MAX)
        else:
            better = ~converged
        iterations = iterations + ~converged
        done = converged | small
        if bool(better.any()):
            value = _where(better, trial, value, batch)
            if not bool(done.all()):
                now = problem.linearize(value)
            elif damping:
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


def _solve(now: Quadratic, factor: Tensor) -> Tensor:
    """-(H + lambda diag H)^-1 g; a direction that H does not see gets no step.

    A singular H still has a step: rounding's own size stays on the diagonal, which no seen direction feels.
    """
    diagonal = now.hessian.diagonal(dim1=-2, dim2=-1)
    seen = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal))
    ridge = factor.clamp(min=16 * torch.finfo(seen.dtype).eps)[..., None] * seen + (seen - diagonal)
    return torch.linalg.solve(now.hessian + torch.diag_embed(ridge), -now.gradient)


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
            raise ShapeError(f"residual: expected ({', '.join(map(str, (*self.batch, 'm')))}[, d]), got {tuple(r.shape)}")
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
        return (2 * now.cost / freedom)[..., None, None] * torch.linalg.pinv(now.hessian, hermitian=True)
