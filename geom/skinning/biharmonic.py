"""Bounded biharmonic weights: of each handle the smoothest function in [0, 1] that is 1 there and 0 at others."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from geom.checks import check_indices, check_points, check_positive, describe
from geom.errors import ConvergenceWarning, ShapeError
from geom.meshes.factor import SYMMETRIC, SymmetricFactor, dissect
from geom.meshes.laplacian import cotangent_laplacian, vertex_areas
from geom.meshes.tetrahedra import volumes
from geom.skinning.volume import tetrahedral_laplacian, voronoi_volumes

__all__ = ["BiharmonicWeights", "biharmonic_weights"]

Array = NDArray[Any]
_PENALTY = 0.03  # of splitting, in medians of Q's diagonal
_RELAXATION = 1.6
_MEMORY = 8  # steps that the acceleration looks back
_SPLITS, _NEWTONS = 200, 40


class BiharmonicWeights(NamedTuple):
    """`weights` (V, J), rows of sum 1; `raw` (V, J), the minimisers before rows were divided by their sums, in [0, 1];
    `energy`, the sum over handles of 1/2 w^T Q w of these; `residual`, how far the worst is from a minimum."""

    weights: Tensor
    raw: Tensor
    energy: float
    residual: float


def biharmonic_weights(
    vertices: Float[Tensor, "v 3"],
    elements: Int64[Tensor, "n corners"],
    fixed: Int64[Tensor, " f"],
    values: Float[Tensor, "f j"],
    *,
    tolerance: float = 1e-6,
) -> BiharmonicWeights:
    """Bounded biharmonic weights on tetrahedra or on a surface.

    Of each handle j, on its own,

        min 1/2 w^T Q w,   0 <= w <= 1,   w = values[:, j] at `fixed`,   Q = L M^-1 L / s,

    with L the stiffness matrix of linear elements, M the lumped Voronoi volumes or areas, and s the mean of the
    diagonal over free vertices, which takes units out of the energy. Then each row is divided by its sum.

    1. Operator splitting with one factorisation for all handles, accelerated by Anderson's method.
    2. For what it leaves over, Newton steps on the vertices between the bounds, with a projected line search.

    Args:
        vertices: (V, 3), metres. elements: (N, 4) tetrahedra or (N, 3) faces, int64; every vertex in one.
        fixed: int64, at least one of each connected part, none twice. values: in [0, 1].
        tolerance: of the residual, the greatest |w - clip(w - g_i / min(1, Q_ii), 0, 1)| with g = Q w.

    Returns: BiharmonicWeights; computed in float64 on the CPU, weights in dtype and on the device of the vertices.
    Raises: ShapeError, also for an element without extent. Warns: ConvergenceWarning where the residual stays above.
    Jacobson, Baran, Popovic, Sorkine 2011, Eqs. (2)-(6).

    >>> x = torch.linspace(0, 1, 5)
    >>> strip = torch.cat([torch.stack([x, y + 0 * x, 0 * x], -1) for y in (0, 0.25)])
    >>> faces = torch.tensor([[k, k + 1, k + 6] for k in range(4)] + [[k, k + 6, k + 5] for k in range(4)])
    >>> found = biharmonic_weights(strip, faces, torch.tensor([0, 5, 4, 9]), torch.eye(2).repeat_interleave(2, 0))
    >>> bool((found.weights.sum(-1) - 1).abs().max() < 1e-6)
    True

    Guarantees: not differentiable; deterministic; 1e-6 f64 of the residual, 6e-8 f32 more of rounding
    """
    _check(vertices, elements, fixed, values)
    check_positive(tolerance, "tolerance")
    from scipy import sparse

    x = vertices.detach().double().cpu()
    stiffness, mass, order = _operators(x, elements.cpu())
    count, handles = len(x), values.shape[1]
    free = np.ones(count, dtype=bool)
    free[fixed.cpu().numpy()] = False
    _check_parts(stiffness, ~free)
    order = order[free[order]]
    held, given = fixed.cpu().numpy(), values.detach().double().cpu().numpy()
    Q: Any = sparse.csr_array(stiffness @ sparse.diags_array(1 / mass) @ stiffness)
    Q = Q / (Q.diagonal()[order].mean() if len(order) else 1.0)
    inner, pull = Q[order][:, order], Q[order][:, held] @ given
    solution, residual = np.zeros((len(order), handles)), np.zeros(handles)
    if len(order):
        start = _split(inner, pull, tolerance)
        for j in range(handles):
            solution[:, j], residual[j] = _newton(inner, pull[:, j], start[:, j], tolerance)
    worst = float(residual.max())
    if worst > tolerance:
        message = f"biharmonic_weights: expected a residual of at most {tolerance:g}, got {worst:.2g}"
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    raw = np.empty((count, handles))
    raw[held], raw[order] = given, solution
    energy = float(0.5 * np.sum(raw * (Q @ raw)))
    total = raw.sum(1, keepdims=True)
    weights = np.where(total > 0, raw / np.where(total > 0, total, 1), 1 / handles)

    def back(y: Array) -> Tensor:
        return torch.from_numpy(y).to(vertices)

    return BiharmonicWeights(back(weights), back(raw), energy, worst)


def _check(vertices: Tensor, elements: Tensor, fixed: Tensor, values: Tensor) -> None:
    check_points(vertices, "vertices", minimum=1)
    corners = elements.shape[-1] if isinstance(elements, Tensor) and elements.ndim == 2 else 0
    if corners not in (3, 4):
        raise ShapeError(f"elements: expected an int64 tensor (N, 3) or (N, 4), got {describe(elements)}")
    check_indices(elements, corners, len(vertices), "elements", "N")
    if not isinstance(fixed, Tensor) or fixed.ndim != 1:
        raise ShapeError(f"fixed: expected an int64 tensor (F,), got {describe(fixed)}")
    check_indices(fixed[:, None], 1, len(vertices), "fixed", "F")
    if len(fixed.unique()) != len(fixed):
        raise ShapeError("fixed: expected each vertex once, got one twice")
    if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(fixed) or not values.shape[1]:
        raise ShapeError(f"values: expected a float tensor ({len(fixed)}, J), J at least 1, got {describe(values)}")
    if not values.is_floating_point() or not bool(((values >= 0) & (values <= 1)).all()):
        raise ShapeError("values: expected floats in [0, 1], got others")
    unused = torch.ones_like(vertices[:, 0], dtype=torch.bool).index_fill(0, elements.flatten(), False)
    if bool(unused.any()):
        raise ShapeError(f"elements: expected every vertex in one, got {int(unused.sum())} of {len(vertices)} in none")


def _check_parts(stiffness: Any, held: Array) -> None:
    from scipy.sparse.csgraph import connected_components

    parts, label = connected_components(stiffness, directed=False)
    missing = parts - len(np.unique(label[held]))
    if missing:
        raise ShapeError(f"fixed: expected a vertex of each connected part, got none of {missing} of {parts} parts")


def _operators(x: Tensor, elements: Tensor) -> tuple[Any, Array, Array]:
    """Stiffness, masses, and an order of elimination."""
    from scipy import sparse
    from scipy.sparse.linalg import splu

    solid = elements.shape[1] == 4
    if solid and not bool((volumes(x, elements) != 0).all()):
        raise ShapeError("elements: expected tetrahedra of some volume, got one without")
    laplacian = tetrahedral_laplacian(x, elements) if solid else cotangent_laplacian(x, elements)
    mass = voronoi_volumes(x, elements) if solid else vertex_areas(x, elements, kind="voronoi")
    if not bool((mass > 0).all()):
        raise ShapeError("elements: expected some area around each vertex, got a vertex without")
    stiffness = sparse.csr_array((laplacian.values(), laplacian.indices().numpy()), laplacian.shape)
    if not solid:
        return stiffness, mass.numpy(), dissect(sparse.csr_array(stiffness @ stiffness), x.numpy())
    pattern = sparse.csc_array(stiffness @ stiffness) + 1e3 * sparse.eye_array(len(x), format="csc")
    order = splu(pattern, permc_spec="MMD_AT_PLUS_A", **SYMMETRIC).perm_c  # solids: fewer fill-ins than dissection
    return stiffness, mass.numpy(), np.argsort(order)


def _distance(w: Array, gradient: Array, diagonal: Array) -> Array:
    """How far columns of w are from a minimum: 0 where the gradient is, or points out of the bounds that w is at."""
    scale = np.minimum(diagonal, 1.0)[:, None]
    return np.abs(w - np.clip(w - gradient / scale, 0, 1)).max(0)


def _split(Q: Any, pull: Array, tolerance: float) -> Array:
    """Douglas-Rachford splitting of min 1/2 w^T Q w + pull^T w and the bounds, all handles (V, J) at once."""
    from scipy import sparse

    count, handles = pull.shape
    diagonal = Q.diagonal()
    penalty = _PENALTY * float(np.median(diagonal))
    factor = SymmetricFactor(Q + penalty * sparse.eye_array(count, format="csr"))
    v = np.zeros((handles, count))
    steps, moves = np.zeros((2, handles, _MEMORY, count))  # differences of successive steps, and of places
    before: tuple[Array, Array] | None = None
    for k in range(_SPLITS):
        z = np.clip(v, 0, 1)
        if k % 10 == 9 and _distance(z.T, Q @ z.T + pull, diagonal).max() <= tolerance:
            break
        step = _RELAXATION * (factor.solve((penalty * (2 * z - v)).T - pull).T - z)
        if before is not None:  # Anderson 1965: the combination of past steps that is nearest to 0
            slot = (k - 1) % _MEMORY
            moves[:, slot], steps[:, slot] = v - before[0], step - before[1]
            gram = steps @ steps.transpose(0, 2, 1)
            gram += (1e-10 * np.trace(gram, axis1=1, axis2=2) + 1e-300)[:, None, None] * np.eye(_MEMORY)
            share = np.linalg.solve(gram, steps @ step[:, :, None])
            before = (v, step)
            v = v + step - (share.transpose(0, 2, 1) @ (moves + steps))[:, 0]
        else:
            before = (v, step)
            v = v + step
    return np.clip(v, 0, 1).T


def _newton(Q: Any, pull: Array, w: Array, tolerance: float) -> tuple[Array, float]:
    """Two-metric projection (Bertsekas 1982): Newton's step where no bound holds, clipped; the energy never rises."""
    from scipy.sparse.linalg import splu

    diagonal = Q.diagonal()
    best, least = w, np.inf
    for _ in range(_NEWTONS):
        gradient = Q @ w + pull
        residual = float(_distance(w[:, None], gradient[:, None], diagonal)[0])
        settled = residual <= 0.1 * tolerance or least <= min(tolerance, residual)
        if residual < least:
            best, least = w, residual
        if settled:
            break
        free = np.flatnonzero(~(((w <= 0) & (gradient > 0)) | ((w >= 1) & (gradient < 0))))
        step = np.zeros_like(w)
        step[free] = splu(Q[free][:, free].tocsc(), permc_spec="NATURAL", **SYMMETRIC).solve(-gradient[free])
        w = _search(Q, w, gradient, step)
    return best, least


def _search(Q: Any, w: Array, gradient: Array, step: Array) -> Array:
    """The first of w + step, w + step / 2, ..., clipped, that lowers the energy; after ten halves the last."""
    there = w
    for k in range(10):
        there = np.clip(w + 0.5**k * step, 0, 1)
        moved = there - w
        if gradient @ moved + 0.5 * moved @ (Q @ moved) <= 1e-4 * (gradient @ moved):
            break
    return there
