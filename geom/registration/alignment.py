"""The objective of local registration: match, then weigh; a `Problem` for `least_squares`."""

from typing import NamedTuple

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels import registration as kernels
from geom.lie import Rigid, quaternion
from geom.optim import Quadratic
from geom.optim.robust import KERNELS
from geom.points.voxels import cell_mean, voxels
from geom.registration.cloud import Cloud
from geom.registration.uncertainty import twist_adjoint

__all__ = ["METHODS", "Alignment", "Sums"]

METHODS = ("point", "plane", "gicp", "vgicp")
SOURCE_PLANE = 4  # the kernel's fifth method
_CHUNK = 128
_TUNING = {"huber": 1.345, "cauchy": 2.385, "gm": 2.385}  # over the residuals' standard deviation (Zhang 1997, Table 1)


class Sums(NamedTuple):
    """Sums over the matches: `hessian` (6, 6) and `gradient` (6,) of a right perturbation, `cost`, `square` of the
    distances, `count`; and by point `squares` (N,) of the weighted residuals (-1: no match) and `scores` (N, 6)."""

    hessian: Tensor
    gradient: Tensor
    cost: Tensor
    square: Tensor
    count: Tensor
    squares: Tensor
    scores: Tensor


class Alignment:
    """Sum of rho(e^T M e)/2 over matches e = q - T p, M by method (see `geom.kernels.registration`).

    `linearize` matches every source point anew: with the nearest target point (point, plane, gicp) or the voxel it falls
    into (vgicp), within `max_distance`; with a robust kernel its scale follows the residuals' median.
    """

    def __init__(self, source: Cloud, target: Cloud, method: str, max_distance: float, robust: str | None) -> None:
        points = source.points
        self.source, self.target, self.method, self.robust = source, target, METHODS.index(method), robust
        self.max_distance, self.square_scale, self.fresh = max_distance, 1.0, 1
        self.count, self.device, self.dtype = len(points), points.device, points.dtype
        self.match = torch.full((self.count,), -1, dtype=torch.int32, device=self.device)
        self.none = points.new_zeros((0, 3))
        if method == "vgicp":
            normals = target.normals if target.normals is not None else self.none
            cells = voxels(target.points, target.tree.offsets, max_distance)
            outer = (normals[:, :, None] * normals[:, None, :]).flatten(1)[:, [0, 1, 2, 4, 5, 8]]
            means = cell_mean(torch.cat([target.points, outer], -1), cells)
            self.matched, self.shape = means[:, :3].contiguous(), means[:, 3:].contiguous()
            self.keys, self.origin = cells.keys, cells.origin[0].contiguous()
            self.last = torch.empty(self.count, dtype=torch.int64, device=self.device)
        else:
            self.matched = target.points
            self.shape = target.normals if target.normals is not None else self.none
            self.last, self.slack = torch.empty_like(points), points.new_empty(self.count)
        self.normals = source.normals if source.normals is not None else self.none

    def linearize(self, value: Rigid) -> Quadratic:
        pose = self.pose(value)
        self.find(pose)
        if self.robust is not None:
            squares = self.sums(pose, derivatives=0).squares
            spread = 1.4826 * float(squares[squares >= 0].sqrt().median()) if bool((squares >= 0).any()) else 1.0
            self.square_scale = max(_TUNING[self.robust] * spread, 1e-9 * self.max_distance) ** 2
        total = self.sums(pose, derivatives=1)
        return Quadratic(total.cost, total.gradient, total.hessian)

    def cost(self, value: Rigid) -> Tensor:
        return self.sums(self.pose(value), derivatives=0).cost

    def pose(self, value: Rigid) -> Tensor:
        """The kernels' form of a pose: R row by row, then t; (12,) float64."""
        return torch.cat([quaternion.to_matrix(value.quat_wxyz).flatten(), value.translation]).to(self.device)

    def find(self, pose: Tensor) -> None:
        points, limit, fresh = self.source.points, self.max_distance**2, self.fresh
        self.fresh = 0
        if METHODS[self.method] == "vgicp":
            args = (points, pose, self.matched, self.keys, len(self.keys), self.origin, 1 / self.max_distance)
            kernel, memory = kernels.find_cells, (self.match, self.last)
        else:
            args = (points, pose, self.matched, *self.target.tree.arrays())
            kernel, memory = kernels.associate, (self.match, self.last, self.slack)
        bridge.launch(kernel[self.dtype], self.count, *args, limit, fresh, *memory, device=self.device, grain=2048)

    def sums(self, pose: Tensor, *, derivatives: int, method: int | None = None, robust: str | None = "own") -> Sums:
        """Sums at a pose for the matches as they are; derivatives 0 (cost, squares), 1 (H and g) or 2 (scores too)."""
        robust = self.robust if robust == "own" else robust
        chunks = -(-self.count // _CHUNK)
        rows = torch.empty((chunks, kernels.SUMS), dtype=torch.float64, device=self.device)
        squares = rows.new_empty(self.count if derivatives != 1 else 0)
        scores = rows.new_empty((self.count if derivatives == 2 else 0, 6))
        shape = self.target.normals if method == METHODS.index("plane") else self.shape
        args = (self.source.points, self.normals, self.matched, shape, self.match, pose, self.count, _CHUNK)
        args = (*args, self.method if method is None else method, 0 if robust is None else 1 + KERNELS.index(robust))
        args = (*args, self.square_scale, derivatives, rows, squares, scores)
        kernel = kernels.normal_equations[self.dtype]
        bridge.launch(kernel, chunks, *args, device=self.device, grain=2048 // _CHUNK)
        return _to_right(rows.sum(0).cpu(), squares, scores, pose.cpu())


_ROW = (0, 6, 11, 15, 18, 20)  # where the diagonal stands in the upper triangle, row by row
_FULL = torch.tensor([[_ROW[min(i, j)] + abs(i - j) for j in range(6)] for i in range(6)])


def _to_right(total: Tensor, squares: Tensor, scores: Tensor, pose: Tensor) -> Sums:
    """From a left perturbation exp(xi') T to a right one T exp(xi): xi' = Ad_T xi."""
    turn = twist_adjoint(pose[:9].reshape(3, 3), pose[9:])
    right = (turn.T @ total[_FULL] @ turn, turn.T @ total[21:27])
    return Sums(*right, total[27], total[28], total[29], squares, scores.cpu() @ turn)
