"""The earth mover's distance: the least work that carries one cloud onto another, exact or by Sinkhorn."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geom.checks import check_choice, check_integer, check_positive
from geom.errors import ShapeError
from geom.points.cloud import Points
from geom.points.metrics import cloud_pair
from geom.roots import safe_sqrt

__all__ = ["Transport", "earth_movers"]

_LARGEST = 4096  # pairs of an exact assignment: some seconds, and 128 MiB of costs


class Transport(NamedTuple):
    """`distance` () or (B,), and `marginal_error`: the mass that Sinkhorn's plan had in the wrong places, of 1."""

    distance: Tensor
    marginal_error: Tensor


def earth_movers(
    x: Points | Tensor,
    y: Points | Tensor,
    *,
    method: str = "sinkhorn",
    squared: bool = False,
    epsilon: float = 0.01,
    iterations: int = 100,
    x_offsets: Tensor | None = None,
    y_offsets: Tensor | None = None,
) -> Transport:
    """The earth mover's distance between clouds of equal mass, shared evenly among the points of each.

    min_P sum_ij P_ij c_ij with P >= 0, rows of sum 1/|X|, columns of sum 1/|Y|; c = |x_i - y_j|, or its square. For
    clouds of one size that is the mean over the best matching.

    "exact" is scipy's assignment (clouds of different sizes: of their points, repeated until equally many). "sinkhorn"
    regularises by entropy (Cuturi 2013), in the log domain: weights epsilon_t c_max, epsilon_t falling geometrically
    from 1 to `epsilon` over the first half of the iterations and staying there; the plan is then rounded to the exact
    marginals (Altschuler et al. 2017, Algorithm 2), so the distance is never below the exact one, by rounding apart;
    above it by at most c_max (epsilon log min(|X|, |Y|) + 4 marginal_error). Both hold all |X| |Y| costs at once.

    Args: x (N, 3) and y (M, 3), tensors or Points, of one dtype and device; method "sinkhorn" or "exact"; squared,
    whether costs are squared distances; epsilon, relative to the largest cost, and iterations, of "sinkhorn"; offsets
    (B+1,) of the ragged batches, cloud b of x against cloud b of y.
    Returns: Transport(distance, marginal_error), () or (B,) for batches; the unit of the points, or its square; error 0
    for "exact". The plan is held in the gradient (the envelope theorem): exact for "exact" where the best plan is
    unique, and for "sinkhorn" what the plan found says; 0 between coincident points.
    Raises: ShapeError, also for a cloud of no points, and for "exact" where the assignment is of more than 4,096 pairs.

    >>> a, b = torch.tensor([[0., 0, 0], [1, 0, 0]]), torch.tensor([[1., 0, 0], [0, 0, 2]])
    >>> float(earth_movers(a, b, method="exact").distance)
    1.0

    Guarantees: differentiable (coincident points); deterministic; 1e-15 f64, 1e-6 f32
    """
    check_choice(method, ("sinkhorn", "exact"), "method")
    check_positive(epsilon, "epsilon")
    check_integer(iterations, "iterations")
    a, b = cloud_pair(x, y, x_offsets, y_offsets)
    edges = [[0, len(c.positions)] if c.offsets is None else c.offsets.tolist() for c in (a, b)]
    found = []
    for start, stop, begin, end in zip(edges[0][:-1], edges[0][1:], edges[1][:-1], edges[1][1:], strict=True):
        cost = _costs(a.positions[start:stop], b.positions[begin:end], squared)
        if method == "exact":
            plan, error = _assignment(cost.detach()), cost.new_zeros(())
        else:
            plan, error = _sinkhorn(cost.detach(), epsilon, iterations)
        found.append(((plan * cost).sum(), error))
    if a.offsets is None:
        return Transport(*found[0])
    empty = a.positions.new_empty(0)
    return (
        Transport(*(torch.stack(column) for column in zip(*found, strict=True))) if found else Transport(empty, empty)
    )


def _costs(x: Tensor, y: Tensor, squared: bool) -> Tensor:
    gap = (x[:, None] - y).square().sum(-1)
    return gap if squared else safe_sqrt(gap)


def _assignment(cost: Tensor) -> Tensor:
    """The best plan (n, m), by an assignment of lcm(n, m) pairs: plans with even marginals are mixtures of those."""
    from scipy.optimize import linear_sum_assignment  # 0.2 s that `import geom.points` need not spend

    n, m = cost.shape
    pairs = math.lcm(n, m)
    if pairs > _LARGEST:
        raise ShapeError(
            f'x and y: expected at most {_LARGEST} pairs for "exact", got {pairs}, the common multiple of {n} and {m}'
        )
    repeated = cost.cpu().double().repeat_interleave(pairs // n, 0).repeat_interleave(pairs // m, 1)
    rows, columns = (torch.from_numpy(i) for i in linear_sum_assignment(repeated.numpy()))
    flat = rows // (pairs // n) * m + columns // (pairs // m)
    counts = torch.bincount(flat, minlength=n * m).reshape(n, m)
    return (counts.double() / pairs).to(cost)


def _sinkhorn(cost: Tensor, epsilon: float, iterations: int) -> tuple[Tensor, Tensor]:
    """A plan with the exact marginals, and how much of it had to be put right."""
    n, m = cost.shape
    top = cost.max()
    unit = cost / torch.where(top == 0, torch.ones_like(top), top)
    log_n, log_m = math.log(n), math.log(m)
    f, g, weight = torch.zeros_like(unit[:, 0]), torch.zeros_like(unit[0]), epsilon
    for step in range(iterations):
        weight = epsilon ** min(1.0, (step + 1) / max(1, iterations // 2))
        f = weight * (log_m - torch.logsumexp((g - unit) / weight, 1))
        g = weight * (log_n - torch.logsumexp((f[:, None] - unit) / weight, 0))
    plan = ((f[:, None] + g - unit) / weight).exp() / (n * m)
    error = (plan.sum(1) - 1 / n).abs().sum() + (plan.sum(0) - 1 / m).abs().sum()
    plan = plan * (1 / (n * plan.sum(1))).clamp(max=1)[:, None]
    plan = plan * (1 / (m * plan.sum(0))).clamp(max=1)
    short, lacking = (1 / n - plan.sum(1)).clamp(min=0), (1 / m - plan.sum(0)).clamp(min=0)
    missing = short.sum()
    return plan + short[:, None] * lacking / torch.where(missing == 0, torch.ones_like(missing), missing), error
