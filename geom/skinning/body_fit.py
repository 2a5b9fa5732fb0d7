"""A body's numbers from what is seen of it: key-points, a registration with the body's vertices, or a scan."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_choice, check_positive, describe
from geom.errors import ShapeError
from geom.kernels.bridge import small_operations
from geom.lie import quaternion
from geom.lie.procrustes import kabsch
from geom.meshes.distance import SurfaceTree
from geom.meshes.geometry import face_normals
from geom.meshes.mesh import Mesh
from geom.optim import Quadratic, least_squares
from geom.skinning.body import BodyModel, BodyState
from geom.skinning.smpl import SmplModel
from geom.values import Fit, replace

__all__ = ["align_bones", "fit_body"]

Body = BodyModel | SmplModel
_PARTS = ("translation", "pose", "shape", "skeleton")  # in the order of the tangent
_SLIDE = 0.1  # how much a scan's distance along the surface counts against that across it


def fit_body(
    body: Body,
    *,
    keypoints: Float[Tensor, "*b j 3"] | None = None,
    vertices: Float[Tensor, "*b v 3"] | None = None,
    scan: Float[Tensor, "*b n 3"] | None = None,
    weights: Float[Tensor, "*b j"] | None = None,
    guess: BodyState | None = None,
    hold: Sequence[str] = (),
    prior: float = 1e-3,
    max_iterations: int = 100,
) -> Fit[BodyState]:
    """The shape, bone lengths and pose of a body that is seen, by least squares over all of them at once.

        sum_j w_j |joint_j - keypoint_j|^2 + J mean_i |x_i - vertex_i|^2 + J mean_n d(scan_n)^2
            + prior^2 (|shape|^2 + |skeleton|^2)

    First the bones are turned one by one, from the root on, to where their children and their flesh are (`align_bones`,
    closed form); then Levenberg-Marquardt steps. d is the distance to the body's surface, in which closest points are
    found anew at each step and count a tenth along the surface, so that it may slide. A turn that nothing shows, such
    as that of a hand without key-points, stays as the guess has it; on a scan alone, what is nearly round may settle in
    another turn about its own axis. In float64 throughout.

    Args:
        body: `BodyModel` or `SmplModel`.
        keypoints: places of the joints, metres; NaN where one is not seen.
        vertices: the body's own vertices, metres; NaN where one is not seen.
        scan: points on the body, in any order; it needs key-points or a guess within some 10 cm.
        weights: of the key-points, at least 0; 1 if None.
        guess: begins there, without the turning of bones; the body at rest if None.
        hold: of "translation", "pose", "shape" and "skeleton", what stays as the guess has it.
        prior: metres that a coefficient of 1 costs; shape and bones of a unit of variance, errors of 1 mm at J places.
    Returns: Fit(state, cost of half the sum above, None, converged, iterations), in the dtype of the body.
    Raises: ShapeError: nothing to fit to, shapes and batches that differ, negative weights, inf. Warns
        ConvergenceWarning where the limit came first.

    Guarantees: not differentiable; deterministic; 1e-9 metres f64, 1e-5 f32, where the body can be exact and prior is 0
    """
    targets = [x for x in (keypoints, vertices, scan) if x is not None]
    if not targets:
        raise ShapeError("fit_body: expected keypoints, vertices or a scan, got none")
    if not 0 <= prior < float("inf"):
        raise ShapeError(f"prior: expected a finite number of at least 0, got {prior}")
    check_positive(max_iterations, "max_iterations")
    joints, count, batch = len(body.parent), len(body.template), targets[0].shape[:-2]
    for x, own, name in ((keypoints, joints, "keypoints"), (vertices, count, "vertices"), (scan, None, "scan")):
        if x is not None and (x.ndim < 2 or x.shape != (*batch, own or x.shape[-2], 3) or bool(x.isinf().any())):
            wanted = ", ".join(map(str, (*batch, own or "N", 3)))
            raise ShapeError(f"{name}: expected finite ({wanted}), NaN where it is not seen, got {describe(x)}")
    if scan is not None and (bool(scan.isnan().any()) or not scan.shape[-2]):
        raise ShapeError("scan: expected at least one point, all of them finite, got none or NaN")
    counted = weights is None or (keypoints is not None and weights.shape == keypoints.shape[:-1])
    if not counted or (weights is not None and not bool((weights >= 0).all())):
        raise ShapeError(f"weights: expected one for each key-point, at least 0, got {describe(weights)}")
    dtype, double = body.template.dtype, torch.float64
    precise = _dense(body)
    seen = _seen(keypoints, weights), _seen(vertices, None)
    if guess is None:
        start = align_bones(precise, precise.state(*batch), keypoints=seen[0], vertices=seen[1])
        if keypoints is None and vertices is None and scan is not None:
            away = scan.to(double).mean(-2) - precise.apply(start).vertices.mean(-2)
            start = replace(start, translation=start.translation + away)
    else:
        start, own = guess.to(double), precise.state(*batch)
        for name in ("shape", "skeleton", "quat_wxyz", "translation"):
            if getattr(start, name).shape != getattr(own, name).shape:
                wanted = tuple(getattr(own, name).shape)
                raise ShapeError(f"guess.{name}: expected {wanted}, got {describe(getattr(guess, name))}")
    for part in hold:
        check_choice(part, _PARTS, "hold")
    problem = _Targets(precise, *seen, None if scan is None else scan.to(double), prior, hold)
    # with noise, limbs are nearly round, and their closest points slide on for long
    close = [1e-4] * 3 + [3e-3] * 3 * joints + [3e-2] * (start.tangent_dim - 3 - 3 * joints)
    tolerance = 1e-6 if scan is None else torch.tensor(close)
    with small_operations():
        fit = least_squares(problem, start, max_iterations=max_iterations, tolerance=tolerance)
    return Fit(fit.value.to(dtype), fit.cost.to(dtype), None, fit.converged, fit.iterations)


def align_bones(
    body: Body,
    state: BodyState,
    *,
    keypoints: tuple[Tensor, Tensor] | None = None,
    vertices: tuple[Tensor, Tensor] | None = None,
) -> BodyState:
    """The state with each joint turned, from the root on, so that children and flesh come closest to where they are.

    Each joint's rotation in the world is that of `kabsch` between the bone, turned as the one before it is, and what
    is seen of it: so a turn that nothing shows is none. Closed form; a guess for `fit_body`, and exact where bones do
    not share their flesh.

    Args: body, state with the shape and bones to use; keypoints and vertices, places and weights, ((..., J, 3),
        (..., J)) and ((..., V, 3), (..., V)).
    Returns: state with `quat_wxyz` and `translation` changed.

    Guarantees: not differentiable; deterministic; 1e-9 f64, 1e-3 f32
    """
    still = body.state(*state.shape.shape[:-1])
    rest = replace(state, quat_wxyz=still.quat_wxyz, translation=still.translation)
    bones, joints = body.transforms(rest)
    surface = body.surface(rest)
    parent = body.parent.tolist()
    world: dict[int, Tensor] = {-1: torch.eye(3, dtype=joints.dtype, device=joints.device)}
    local = list(rest.quat_wxyz.unbind(-2))
    translation = rest.translation
    waiting = list(range(len(parent)))
    while waiting:
        j = next(k for k in waiting if parent[k] in world)
        waiting.remove(j)
        source, target, weight = [], [], []
        if keypoints is not None:
            ends = [j, *(c for c, p in enumerate(parent) if p == j)]
            source.append(joints[..., ends, :])
            target.append(keypoints[0][..., ends, :])
            weight.append(keypoints[1][..., ends])
        if vertices is not None:
            own = (body.weights[:, j] > 0.05).nonzero()[:, 0]
            flesh = (bones[..., j, None, :, :3] @ surface[..., own, :, None])[..., 0] + bones[..., j, None, :, 3]
            source.append(flesh)
            target.append(vertices[0][..., own, :])
            weight.append(vertices[1][..., own] * body.weights[own, j])
        before = world[parent[j]]
        world[j] = before
        if source and sum(x.shape[-2] for x in source):
            given = torch.cat(source, -2)
            fit = kabsch(given @ before.mT, torch.cat(target, -2), weights=torch.cat(weight, -1))
            world[j] = fit.rotation @ before
            if parent[j] < 0 and bool((torch.cat(weight, -1) > 0).any()):
                place = (world[j] @ joints[..., j, :, None])[..., 0] + fit.translation
                translation = place - joints[..., j, :]
        local[j] = quaternion.from_matrix(before.mT @ world[j])
    return replace(state, quat_wxyz=torch.stack(local, -2), translation=translation)


def _seen(target: Tensor | None, weights: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Places, 0 where they are missing, and weights (...), 0 there too; float64."""
    if target is None:
        return None
    there = ~target.isnan().any(-1)
    weight = there.double() if weights is None else there * weights.double()
    return torch.where(there[..., None], target.double(), 0.0), weight


def _dense(body: Body) -> Any:
    """The body in float64 with dense weights, whose derivatives along many directions are one product of matrices."""
    precise: Any = body.to(torch.float64)
    if body.indices is None:
        return precise
    full = precise.weights.new_zeros(len(body.template), len(body.parent))
    return replace(precise, weights=full.scatter_add(1, body.indices, precise.weights), indices=None)


class _Targets:
    """The sum of squares of `fit_body` as a `geom.optim.Problem`, whose closest points are those of `linearize`."""

    def __init__(
        self,
        body: Any,
        keypoints: tuple[Tensor, Tensor] | None,
        vertices: tuple[Tensor, Tensor] | None,
        scan: Tensor | None,
        prior: float,
        hold: Sequence[str],
    ) -> None:
        self.body, self.keypoints, self.vertices, self.scan = body, keypoints, vertices, scan
        self.prior, self.hold = prior, hold
        self.close: tuple[Tensor, Tensor, Tensor] | None = None  # corners (..., N, 3), barycentric, normals

    def residual(self, state: BodyState) -> Tensor:
        """(..., m), so that half its square is the cost."""
        joints = len(self.body.parent)
        whole = self.vertices is not None or self.scan is not None
        x, places, _ = self.body.apply(state) if whole else (None, self.body.transforms(state)[1], None)
        parts = [self.prior * torch.cat([state.shape, state.skeleton], -1)]
        if self.keypoints is not None:
            target, weight = self.keypoints
            parts.append((weight.sqrt()[..., None] * (places - target)).flatten(-2))
        if x is not None and self.vertices is not None:
            target, weight = self.vertices
            share = (joints * weight / weight.sum(-1, keepdim=True).clamp(min=1)).sqrt()
            parts.append((share[..., None] * (x - target)).flatten(-2))
        if x is not None and self.close is not None and self.scan is not None:
            corners, barycentric, normal = self.close
            taken = torch.take_along_dim(x, corners.flatten(-2)[..., None], -2).unflatten(-2, corners.shape[-2:])
            apart = (barycentric[..., None] * taken).sum(-2) - self.scan
            across = (normal * apart).sum(-1, keepdim=True) * normal
            counts = (joints / self.scan.shape[-2]) ** 0.5
            parts.append(counts * (_SLIDE * apart + (1 - _SLIDE) * across).flatten(-2))
        return torch.cat(parts, -1)

    def linearize(self, state: BodyState) -> Quadratic:
        if self.scan is not None:
            self.close = self._closest(self.body.apply(state).vertices, self.scan)
        r = self.residual(state)
        zero = r.new_zeros((*state.translation.shape[:-1], state.tangent_dim))

        def column(basis: Tensor) -> Tensor:
            along = (basis.expand_as(zero),)
            return torch.func.jvp(lambda d: self.residual(state.retract(d)), (zero,), along)[1]

        basis = torch.eye(state.tangent_dim, dtype=r.dtype, device=r.device)
        jacobian = torch.func.vmap(column)(basis).movedim(0, -1)  # (..., m, n)
        sizes = (3, 3 * state.quat_wxyz.shape[-2], state.shape.shape[-1], state.skeleton.shape[-1])
        free = [basis.new_full((size,), part not in self.hold) for part, size in zip(_PARTS, sizes, strict=True)]
        jacobian = jacobian * torch.cat(free)  # what a residual does not see stays where it is
        return Quadratic(0.5 * r.square().sum(-1), (r[..., None, :] @ jacobian)[..., 0, :], jacobian.mT @ jacobian)

    def cost(self, state: BodyState) -> Tensor:
        return 0.5 * self.residual(state).square().sum(-1)

    def _closest(self, vertices: Tensor, scan: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        corners, barycentric, normals = [], [], []
        clouds = scan.reshape(-1, *scan.shape[-2:])
        for x, points in zip(vertices.reshape(-1, *vertices.shape[-2:]), clouds, strict=True):
            found = SurfaceTree.build(Mesh(x, self.body.faces)).closest(points)
            corners.append(self.body.faces[found.faces])
            barycentric.append(found.barycentric)
            normals.append(face_normals(x, self.body.faces)[found.faces])
        shape = scan.shape[:-1]
        return tuple(torch.stack(x).reshape(*shape, 3) for x in (corners, barycentric, normals))  # type: ignore[return-value]
