"""`Transform3d`: batches of 4x4 matrices for row vectors, (y, 1) = (x, 1) M, composed from the left to the right."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import describe
from geom.compat.pytorch3d.transforms.se3 import se3_log_map
from geom.errors import ShapeError
from geom.lie import so3

__all__ = ["Rotate", "RotateAxisAngle", "Scale", "Transform3d", "Translate"]

Device = torch.device | str
Number = float | Tensor


class Transform3d:
    """N transformations of points that are rows, as one object: the last row of each matrix is the translation.

    `a.compose(b)` applies a first, then b: the other way round than `Rigid.compose`. Batches of one broadcast.

    Args: dtype and device of the identity that stands where no matrix is given; matrix (4, 4) or (N, 4, 4).
    Raises: ShapeError for another shape.

    >>> turned = Transform3d().rotate_axis_angle(90, "Z").translate(1.0, 0.0, 0.0)
    >>> turned.transform_points(torch.tensor([[1.0, 0.0, 0.0]])).round(decimals=4).tolist()
    [[1.0, 1.0, 0.0]]

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """

    def __init__(
        self, dtype: torch.dtype = torch.float32, device: Device = "cpu", matrix: Float[Tensor, "*n 4 4"] | None = None
    ) -> None:
        if matrix is None:
            matrix = torch.eye(4, dtype=dtype, device=device)
        elif not isinstance(matrix, Tensor) or matrix.ndim not in (2, 3) or matrix.shape[-2:] != (4, 4):
            raise ShapeError(f"matrix: expected a tensor (4, 4) or (N, 4, 4), got {describe(matrix)}")
        # first to be applied first; each with its inverse where that is known without inverting
        self._parts: tuple[tuple[Tensor, Tensor | None], ...] = ((matrix.reshape(-1, 4, 4), None),)

    @property
    def dtype(self) -> torch.dtype:
        """That of the matrices."""
        return self._parts[0][0].dtype

    @property
    def device(self) -> torch.device:
        """That of the matrices."""
        return self._parts[0][0].device

    def __len__(self) -> int:
        return max({len(part) for part, _ in self._parts} - {1}, default=1)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Transform3d":
        """Those of the batch that `index` picks; an integer picks a batch of one."""
        return Transform3d(matrix=self.get_matrix()[[index] if isinstance(index, int) else index])

    def get_matrix(self) -> Float[Tensor, "n 4 4"]:
        """The matrices of the whole, first part leftmost. Raises: ShapeError where batches do not broadcast."""
        result = self._parts[0][0].clone()
        for part, _ in self._parts[1:]:
            result = _multiply(result, part)
        return result

    def get_se3_log(self, eps: float = 1e-4, cos_bound: float = 1e-4) -> Float[Tensor, "n 6"]:
        """Their logarithms (translation, rotation); see `se3_log_map`."""
        return se3_log_map(self.get_matrix(), eps, cos_bound)

    def compose(self, *others: "Transform3d") -> "Transform3d":
        """self first, then the others in their order. Raises: ShapeError for anything else than a Transform3d."""
        for other in others:
            if not isinstance(other, Transform3d):
                raise ShapeError(f"others: expected Transform3d objects, got {describe(other)}")
        return _joined([part for t in (self, *others) for part in t._parts])

    def inverse(self, invert_composed: bool = False) -> "Transform3d":
        """The transforms that undo these.

        Args: invert_composed, whether to invert the matrix of the whole, not the parts one by one, which is exact for
        translations and rotations.
        Raises: torch.linalg.LinAlgError for a singular matrix.
        """
        if invert_composed:
            return Transform3d(matrix=torch.linalg.inv(self.get_matrix()))
        return _joined([(torch.linalg.inv(m) if back is None else back, m) for m, back in reversed(self._parts)])

    def stack(self, *others: "Transform3d") -> "Transform3d":
        """One batch of self's transforms and then all the others'."""
        return Transform3d(matrix=torch.cat([t.get_matrix() for t in (self, *others)]))

    def transform_points(self, points: Float[Tensor, "*m p 3"], eps: float | None = None) -> Float[Tensor, "*n p 3"]:
        """(x, 1) M, divided by its last coordinate.

        Args: points (P, 3) or (M, P, 3); M and N equal, or one of them 1; eps, the least magnitude of the last
        coordinate to divide by, its sign kept.
        Returns: (N, P, 3), or (P, 3) for N = 1 and points without a batch; the dtype of the points.
        Raises: ShapeError for another shape.
        """
        x = torch.cat([_rows(points, "points"), torch.ones_like(points[..., :1])], -1)
        x = _multiply(x if x.ndim == 3 else x[None], self.get_matrix())
        last = x[..., 3:]
        if eps is not None:
            last = torch.where(last < 0, -1.0, 1.0).to(last) * last.abs().clamp(min=eps)
        return _unbatched(x[..., :3] / last, points)

    def transform_normals(self, normals: Float[Tensor, "*m p 3"]) -> Float[Tensor, "*n p 3"]:
        """Normals by the inverse transpose of the linear part, n A^-T; their length is not kept at 1.

        Args: normals (P, 3) or (M, P, 3), as in `transform_points`.
        Raises: ShapeError for another shape; torch.linalg.LinAlgError for a singular matrix.
        """
        n, linear = _rows(normals, "normals"), self.get_matrix()[:, :3, :3]
        return _unbatched(_multiply(n if n.ndim == 3 else n[None], torch.linalg.inv(linear).mT), normals)

    def translate(self, x: Number, y: Number | None = None, z: Number | None = None) -> "Transform3d":
        """Followed by `Translate(x, y, z)`."""
        return self.compose(Translate(x, y, z, dtype=self.dtype, device=self.device))

    def scale(self, x: Number, y: Number | None = None, z: Number | None = None) -> "Transform3d":
        """Followed by `Scale(x, y, z)`."""
        return self.compose(Scale(x, y, z, dtype=self.dtype, device=self.device))

    def rotate(self, R: Float[Tensor, "*n 3 3"], orthogonal_tol: float = 1e-5) -> "Transform3d":
        """Followed by `Rotate(R)`."""
        return self.compose(Rotate(R, dtype=self.dtype, device=self.device, orthogonal_tol=orthogonal_tol))

    def rotate_axis_angle(self, angle: Number, axis: str = "X", degrees: bool = True) -> "Transform3d":
        """Followed by `RotateAxisAngle(angle, axis, degrees)`."""
        return self.compose(RotateAxisAngle(angle, axis, degrees, dtype=self.dtype, device=self.device))

    def clone(self) -> "Transform3d":
        """The same with tensors of its own."""
        return _joined([(m.clone(), None if back is None else back.clone()) for m, back in self._parts])

    def to(self, device: Device, copy: bool = False, dtype: torch.dtype | None = None) -> "Transform3d":
        """On this device and of this dtype: self where it is so already, unless a copy is asked for."""
        device, dtype = torch.empty(0, device=device).device, self.dtype if dtype is None else dtype
        if not copy and (self.device, self.dtype) == (device, dtype):
            return self
        moved = [[x if x is None else x.to(device, dtype, copy=copy) for x in part] for part in self._parts]
        return _joined([(m, back) for m, back in moved if m is not None])

    def cpu(self) -> "Transform3d":
        """On the CPU."""
        return self.to("cpu")

    def cuda(self) -> "Transform3d":
        """On the current CUDA device."""
        return self.to("cuda")

    def _set(self, matrix: Tensor, inverse: Tensor) -> None:
        self._parts = ((matrix, inverse),)


class Translate(Transform3d):
    """Translations, y = x + t.

    Args: x, a tensor (N, 3), or x, y, z, numbers or tensors (N,), which broadcast.
    Raises: ShapeError for anything else.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """

    def __init__(
        self,
        x: Number,
        y: Number | None = None,
        z: Number | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device | None = None,
    ) -> None:
        t = _vectors(x, y, z, dtype, device)
        self._set(_translation(t), _translation(-t))


class Scale(Transform3d):
    """Scalings along the axes, y = s x.

    Args: x, a number or a tensor (N,), the same along all axes; x, a tensor (N, 3); or x, y, z, which broadcast.
    Raises: ShapeError for anything else.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """

    def __init__(
        self,
        x: Number,
        y: Number | None = None,
        z: Number | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device | None = None,
    ) -> None:
        if y is None and z is None and not (isinstance(x, Tensor) and x.ndim == 2):
            y = z = x
        s = _vectors(x, y, z, dtype, device)
        super().__init__(matrix=torch.diag_embed(torch.nn.functional.pad(s, (0, 1), value=1.0)))


class Rotate(Transform3d):
    """Rotations of row vectors, y = x R: R is the transpose of the matrix for column vectors.

    Args: R (3, 3) or (N, 3, 3); orthogonal_tol is taken and changes nothing: pytorch3d reads it in a debug mode only.
    Raises: ShapeError for another shape.

    Guarantees: differentiable; deterministic; exact f64, exact f32
    """

    def __init__(
        self,
        R: Float[Tensor, "*n 3 3"],
        dtype: torch.dtype = torch.float32,
        device: Device | None = None,
        orthogonal_tol: float = 1e-5,
    ) -> None:
        if not isinstance(R, Tensor) or R.ndim not in (2, 3) or R.shape[-2:] != (3, 3):
            raise ShapeError(f"R: expected a tensor (3, 3) or (N, 3, 3), got {describe(R)}")
        R = R.to(device, dtype).reshape(-1, 3, 3)
        self._set(_linear(R), _linear(R.mT))


class RotateAxisAngle(Rotate):
    """Rotations about a coordinate axis, anticlockwise as seen from its tip.

    Args: angle, a number or a tensor (N,), in degrees unless `degrees` is False; axis "X", "Y" or "Z", small or not.
    Raises: ShapeError for anything else.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """

    def __init__(
        self,
        angle: Number,
        axis: str = "X",
        degrees: bool = True,
        dtype: torch.dtype = torch.float32,
        device: Device | None = None,
    ) -> None:
        if not isinstance(axis, str) or axis.upper() not in ("X", "Y", "Z"):
            raise ShapeError(f"axis: expected 'X', 'Y' or 'Z', got {describe(axis)}")
        turn = _numbers(angle, dtype, device, "angle") * (math.pi / 180 if degrees else 1)
        direction = torch.eye(3, dtype=dtype, device=turn.device)["XYZ".index(axis.upper())]
        super().__init__(so3.exp(turn[:, None] * direction).mT, dtype=dtype)


def _joined(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Transform3d:
    made = Transform3d()
    made._parts = tuple(parts)
    return made


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """a b of two batches, in the wider of their dtypes, the result in that of a."""
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ShapeError(f"batches: expected equal sizes, or one of them 1, got {len(a)} and {len(b)}")
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return (a.to(wide) @ b.to(wide)).to(a.dtype)


def _rows(x: object, name: str) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim not in (2, 3) or x.shape[-1] != 3:
        raise ShapeError(f"{name}: expected a tensor (P, 3) or (N, P, 3), got {describe(x)}")
    return x


def _unbatched(moved: Tensor, given: Tensor) -> Tensor:
    return moved[0] if len(moved) == 1 and given.ndim == 2 else moved


def _numbers(x: object, dtype: torch.dtype, device: Device | None, name: str) -> Tensor:
    """A number or a tensor (N,) as a tensor (N,)."""
    try:
        found = torch.as_tensor(x, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"{name}: expected a number or a tensor (N,), got {describe(x)}") from error
    if found.ndim > 1:
        raise ShapeError(f"{name}: expected a number or a tensor (N,), got {describe(x)}")
    return found.reshape(-1)


def _vectors(x: object, y: object, z: object, dtype: torch.dtype, device: Device | None) -> Tensor:
    """A tensor (N, 3), or three coordinates that broadcast to one."""
    if isinstance(x, Tensor) and x.ndim == 2:
        if x.shape[1] != 3 or y is not None or z is not None:
            raise ShapeError(f"x: expected a tensor (N, 3) without y and z, or (N,), got {describe(x)}")
        return x.to(device, dtype)
    device = x.device if device is None and isinstance(x, Tensor) else device
    parts = [_numbers(c, dtype, device, name) for c, name in ((x, "x"), (y, "y"), (z, "z"))]
    sizes = [len(c) for c in parts]
    if any(n not in (1, max(sizes)) for n in sizes):
        raise ShapeError(f"x, y, z: expected sizes that broadcast, got {sizes}")
    return torch.stack(torch.broadcast_tensors(*parts), -1)


def _linear(matrix: Tensor) -> Tensor:
    """4x4 with this in its corner."""
    last = torch.eye(4, dtype=matrix.dtype, device=matrix.device)[3:].expand(len(matrix), 1, 4)
    return torch.cat([torch.nn.functional.pad(matrix, (0, 1)), last], -2)


def _translation(vector: Tensor) -> Tensor:
    """4x4 with this in its last row."""
    top = torch.eye(4, dtype=vector.dtype, device=vector.device)[:3].expand(len(vector), 3, 4)
    return torch.cat([top, torch.nn.functional.pad(vector, (0, 1), value=1.0)[:, None]], -2)
