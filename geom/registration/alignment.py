"""The objective of local registration: match, then weigh; a `Problem` for `least_squares`."""

from typing import NamedTuple

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels import registration as kernels
from geom.lie import Rigid, quaternion, se3
from geom.optim import Quadratic
from geom.optim.robust import KERNELS
from geom.points.voxels import cell_mean, voxels
from geom.registration import twin
from geom.registration.cloud import Cloud
from geom.registration.uncertainty import DEGENERATE, held_motions

__all__ = ["METHODS", "Alignment", "Sums"]

METHODS = ("point", "plane", "gicp", "vgicp")
SOURCE_PLANE = 4  # the kernel's fifth method
_CHUNK = 128
_PROBES = 500  # points that tell how matches follow the pose
_ROW = (0, 6, 11, 15, 18, 20)  # where the diagonal stands in the upper triangle, row by row
_FULL = torch.tensor([[_ROW[min(i, j)] + abs(i - j) for j in range(6)] for i in range(6)])
_TUNING = {"huber": 1.345, "cauchy": 2.385, "gm": 2.385}  # residuals' deviations (Zhang 1997, Table 1; gm as cauchy)


class Sums(NamedTuple):
    """Sums over the matches: `hessian` (6, 6) and `gradient` (6,) of a right perturbation, `cost`, `square` of the
    distances, `matches` in number; and `scores` (N, 6), each point's share of the gradient, where asked for."""

    hessian: Tensor
    gradient: Tensor
    cost: Tensor
    square: Tensor
    matches: Tensor
    scores: Tensor


class Alignment:
    """Sum of rho(e^T M e)/2 over matches e = q - T p, M by method (see `geom.kernels.registration`).

    `linearize` matches every source point anew: with the nearest target point (point, plane, gicp) or the voxel it
    falls into (vgicp), within `max_distance`; with a robust kernel its scale follows the residuals' median.
    A motion that the surfaces leave open takes no part.
    """

    def __init__(
        self,
        source: Cloud,
        target: Cloud,
        method: str,
        max_distance: float,
        robust: str | None,
        *,
        backend: str = "auto",
    ) -> None:
        points = source.points
        self.source, self.target, self.method, self.robust = source, target, METHODS.index(method), robust
        self.max_distance, self.square_scale, self.memory = max_distance, 1.0, 0
        self.warp = bridge.choose(backend, points)
        self.count, self.device, self.dtype = len(points), points.device, points.dtype
        self.match = torch.full((self.count,), -1, dtype=torch.int32, device=self.device)
        self.found = torch.empty_like(self.match)
        self.squares = torch.empty(self.count, dtype=torch.float64, device=self.device)  # weighted, -1 without a match
        self.cells: tuple[Tensor, int, Tensor] | None = None
        self.sliding: bool | None = None  # whether the surfaces leave a motion open
        none = points.new_zeros((0, 3))
        self.planes = none if target.normals is None else target.normals
        if method == "vgicp":
            normals = self.planes
            cells = voxels(target.points, target.tree.offsets, max_distance)
            outer = (normals[:, :, None] * normals[:, None, :]).flatten(1)[:, [0, 1, 2, 4, 5, 8]]
            means = cell_mean(torch.cat([target.points, outer], -1), cells)
            self.matched, self.shape = means[:, :3].contiguous(), means[:, 3:].contiguous()
            self.cells = (cells.keys, len(cells.keys), cells.origin[0].contiguous())
            self.last = torch.empty(self.count, dtype=torch.int64, device=self.device)
        else:
            self.matched = target.points
            self.shape = self.planes
            self.last, self.slack = torch.empty_like(points), points.new_empty(self.count)
        self.normals = none if source.normals is None else source.normals

    def linearize(self, value: Rigid) -> Quadratic:
        pose = self.pose(value)
        self.find(pose)
        if self.robust is not None:
            self._sum(pose, 1, self.found, 0, None, self.squares, pose.new_empty(0))
            squares = self.squares
            spread = 1.4826 * float(squares[squares >= 0].sqrt().median()) if bool((squares >= 0).any()) else 1.0
            self.square_scale = max(_TUNING[self.robust] * spread, 1e-9 * self.max_distance) ** 2
        total = self.sums(pose)
        gradient, hessian = total.gradient, total.hessian
        if self.sliding is not False:  # not known yet, or known to slide
            share, unit = self.motions(pose)
            free = share < DEGENERATE
            self.sliding = bool(free.any())
            if self.sliding:  # no step along what the surfaces leave open (Zhang et al. 2016), nor a pull from there
                dual = torch.linalg.inv(unit)
                held = unit[:, ~free] @ dual[~free]
                rest = dual[free].T @ dual[free] * (hessian.trace() / dual.square().sum())
                gradient, hessian = held.T @ gradient, held.T @ hessian @ held + rest
        return Quadratic(total.cost, gradient, hessian)

    def cost(self, value: Rigid) -> Tensor:
        pose = self.pose(value)
        return self._sum(pose, 1, self.found, 0, None, self.squares, pose.new_empty(0))[0, 27]

    def pose(self, value: Rigid) -> Tensor:
        """The kernels' form of a pose: R row by row, then t; (..., 12) float64."""
        rotation = quaternion.to_matrix(value.quat_wxyz).flatten(-2)
        return torch.cat([rotation, value.translation], -1).to(self.device)

    def find(self, pose: Tensor) -> None:
        """Match every source point at one pose: `self.found` (N,), -1 for none."""
        self._find(pose, 1, self.memory, self.found)
        self.memory = 1

    def sums(self, pose: Tensor, *, scores: bool = False) -> Sums:
        """Sums at a pose for the matches as they are."""
        rows = pose.new_empty((self.count if scores else 0, 6))
        total = self._sum(pose, 1, self.found, 2 if scores else 1, None, self.squares, rows)[0]
        turn = _to_right(pose)
        return Sums(_form(total, turn), turn.T @ total[21:27], total[27], total[28], total[29], rows.cpu() @ turn)

    def motions(self, pose: Tensor, *, every: int | None = None) -> tuple[Tensor, Tensor]:
        """`held_motions` at a pose, by default from some 500 of the points."""
        stride = max(1, self.count // _PROBES) if every is None else every
        none, found = pose.new_empty(0), self.found[::stride].contiguous()
        plane = SOURCE_PLANE if self.cells is not None else METHODS.index("plane")
        normal, whole = (self._sum(pose, stride, found, 1, m, none, none)[0] for m in (plane, METHODS.index("point")))
        turn = _to_right(pose)
        return held_motions(_form(normal, turn), _form(whole, turn), int(whole[29]), self.source.radius)

    def curvature(self, value: Rigid, step: Tensor) -> tuple[Tensor, Tensor]:
        """How the gradient really changes with the pose, matches changing with it, beside H: both (6, 6).

        Central differences over +-step (6,) on some 500 of the points. Where noise rivals the points' spacing the
        matches follow the pose, and the objective is flatter than the H of held matches says.
        """
        stride = max(1, self.count // _PROBES)
        count = -(-self.count // stride)
        moves = torch.cat([torch.zeros_like(step)[None], torch.diag(step), -torch.diag(step)])
        poses = self.pose(Rigid(value.quat_wxyz.expand(13, 4), value.translation.expand(13, 3)).retract(moves))
        found = torch.empty(13 * count, dtype=torch.int32, device=self.device)
        self._find(poses, stride, 2, found)
        none = poses.new_empty(0)
        total = self._sum(poses, stride, found, 1, None, none, none)
        turn = _to_right(poses[0])
        gradient = total[:, 21:27] @ turn
        return ((gradient[1:7] - gradient[7:]) / (2 * step[:, None])).T, _form(total[0], turn)

    def _find(self, poses: Tensor, stride: int, memory: int, found: Tensor) -> None:
        points, limit, items = self.source.points, self.max_distance**2, len(found)
        if not self.warp:
            part, flat = points[::stride], poses.reshape(-1, 12)
            if self.cells is None:
                found.copy_(twin.find_nearest(part, flat, self.matched, self.max_distance))
            else:
                keys, _, origin = self.cells
                found.copy_(twin.find_cells(part, flat, self.matched, keys, origin, self.max_distance))
            return
        start = (points, poses, -(-self.count // stride), stride, self.matched)
        if self.cells is not None:
            args = (*start, *self.cells, 1 / self.max_distance, limit, memory, self.match, self.last, found)
            kernel = kernels.find_cells
        else:
            args = (*start, *self.target.tree.arrays(), limit, memory, self.match, self.last, self.slack, found)
            kernel = kernels.associate
        bridge.launch(kernel[self.dtype], items, *args, device=self.device, grain=2048)

    def _sum(
        self,
        poses: Tensor,
        stride: int,
        found: Tensor,
        derivatives: int,
        method: int | None,
        squares: Tensor,
        scores: Tensor,
    ) -> Tensor:
        """The kernel's sums for each pose, (P, 32) float64 on the CPU, of a left perturbation exp(xi') T."""
        count = -(-self.count // stride)
        chunks = -(-count // _CHUNK)
        shape = self.planes if method == METHODS.index("plane") else self.shape
        kind = None if method is not None else self.robust
        method = self.method if method is None else method
        if not self.warp:
            normals = self.normals[::stride]
            part = (self.source.points[::stride], normals, self.matched, shape)
            rows = []
            for pose, own in zip(poses.reshape(-1, 12), found.reshape(-1, count), strict=True):
                sums, s, g = twin.normal_equations(*part, own, pose, method, kind, self.square_scale**0.5)
                rows.append(sums)
                if derivatives != 1:
                    squares.copy_(s)
                if derivatives == 2:
                    scores.copy_(g)
            return torch.stack(rows).cpu()
        rows = torch.empty((poses.numel() // 12, chunks, kernels.SUMS), dtype=torch.float64, device=self.device)
        robust = 0 if kind is None else 1 + KERNELS.index(kind)
        args = (self.source.points, self.normals, self.matched, shape, found, poses, count, stride, _CHUNK)
        args = (*args, method, robust, self.square_scale, derivatives)
        kernel = kernels.normal_equations[self.dtype]
        items = rows.shape[0] * chunks
        bridge.launch(kernel, items, *args, rows, squares, scores, device=self.device, grain=2048 // _CHUNK)
        return rows.sum(1).cpu()


def _to_right(pose: Tensor) -> Tensor:
    """Ad_T (6, 6): a right perturbation T exp(xi) is the left one exp(Ad_T xi) T of the kernel's sums."""
    pose = pose.cpu()
    return se3.adjoint(quaternion.from_matrix(pose[:9].reshape(3, 3)), pose[9:])


def _form(total: Tensor, turn: Tensor) -> Tensor:
    """H (6, 6) of a right perturbation from the upper triangle in the kernel's sums."""
    return turn.T @ total[_FULL] @ turn
