"""Checks of user input at the public boundary: one line each, and one sentence when they fail."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from geom.errors import ShapeError

__all__ = [
    "check_choice",
    "check_field",
    "check_indices",
    "check_integer",
    "check_offsets",
    "check_points",
    "check_positive",
    "check_rigid",
    "check_same",
    "check_shape",
    "check_weights",
    "describe",
    "readable",
]

FLOATS = (torch.float32, torch.float64)


def describe(x: object) -> str:
    """What came, in the words of an error message."""
    if isinstance(x, Tensor):
        return f"a {str(x.dtype).removeprefix('torch.')} tensor of shape {tuple(x.shape)}"
    return f"{type(x).__name__} {x!r}" if isinstance(x, (int, float, str, bool)) else f"a {type(x).__name__}"


def readable(x: Tensor) -> bool:
    """Whether numbers can be looked at: not while torch.compile traces, nor under torch.func transforms."""
    return not (torch.compiler.is_compiling() or is_functorch_wrapped_tensor(x))


def check_points(x: object, name: str = "points", *, minimum: int = 0, finite: bool = True) -> Tensor:
    """Return `x` if it is a float32 or float64 tensor (N, 3) of finite numbers with N >= minimum.

    Numbers go unchecked while torch.compile traces and under torch.func transforms, here and in `check_offsets`.

    Raises: ShapeError, saying what came.
    """
    if not isinstance(x, Tensor) or x.dtype not in FLOATS or x.ndim != 2 or x.shape[1] != 3:
        raise ShapeError(f"{name}: expected a float32 or float64 tensor (N, 3), got {describe(x)}")
    if x.shape[0] < minimum:
        raise ShapeError(f"{name}: expected at least {minimum} points, got {x.shape[0]}")
    # a finite sum has finite terms, at a quarter of the cost; one that overflowed is looked at again
    if finite and readable(x) and not bool(torch.isfinite(x.detach().sum())) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x).all(-1)).sum())
        raise ShapeError(f"{name}: expected finite coordinates, got NaN or inf in {bad} of {x.shape[0]} points")
    return x


def check_offsets(offsets: Tensor | None, count: int, name: str = "offsets", *, device: torch.device) -> Tensor:
    """Return int64 offsets (B+1,), first 0, last `count`, never falling; None means one cloud.

    Raises: ShapeError.
    """
    if offsets is None:
        return torch.tensor([0, count], dtype=torch.int64, device=device)
    if not isinstance(offsets, Tensor) or offsets.dtype != torch.int64 or offsets.ndim != 1 or not offsets.numel():
        raise ShapeError(f"{name}: expected an int64 tensor (B+1,), got {describe(offsets)}")
    if readable(offsets) and (
        int(offsets[0]) != 0 or int(offsets[-1]) != count or bool((offsets[1:] < offsets[:-1]).any())
    ):
        raise ShapeError(f"{name}: expected to rise from 0 to {count}, got {offsets.tolist()[:8]}")
    return offsets.to(device)


def check_positive(x: float, name: str) -> float:
    """Return float(x) if it is a finite number above zero. Raises: ShapeError."""
    try:
        value = float(x)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements, in older torch
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ShapeError(f"{name}: expected a finite number above 0, got {describe(x)}")
    return value


def check_integer(x: object, name: str, minimum: int = 1) -> int:
    """Return `x` if it is an int, no bool, of at least `minimum`. Raises: ShapeError."""
    if isinstance(x, bool) or not isinstance(x, int) or x < minimum:
        raise ShapeError(f"{name}: expected an integer of at least {minimum}, got {x!r}")
    return x


def check_rigid(matrix: object, name: str) -> Tensor:
    """Return `matrix` if it is one (..., 4, 4) of rigid motions, column vectors: a rotation to 1e-3, and (0, 0, 0, 1).

    Rotations typed with four digits pass, and those that have drifted; what is farther off holds a scale or a shear.

    Raises: ShapeError, also for NaN in the rotation.
    """
    motion = check_shape(matrix, (4, 4), name)
    if readable(motion):
        known = motion.detach()
        if not bool(((known[..., 3, :] - known.new_tensor([0, 0, 0, 1])).abs() <= 1e-6).all()):
            raise ShapeError(f"{name}: expected a rigid motion, got a projective matrix: a last row not (0, 0, 0, 1)")
        R = known[..., :3, :3]
        off = (R.mT @ R - torch.eye(3, dtype=R.dtype, device=R.device)).abs()
        if not bool((off <= 1e-3).all()) or not bool((torch.linalg.det(R) > 0).all()):
            raise ShapeError(f"{name}: expected a rigid motion, got a matrix that scales, shears or mirrors, or NaN")
    return motion


def check_choice(x: object, choices: Iterable[object], name: str) -> None:
    """Raise ShapeError unless `x` is one of `choices`."""
    options = list(choices)
    if x not in options:
        raise ShapeError(f"{name}: expected one of {', '.join(map(repr, options))}, got {describe(x)}")


def check_same(a: Tensor, b: Tensor, names: str) -> None:
    """Raise ShapeError unless both tensors share dtype and device."""
    if a.dtype != b.dtype or a.device != b.device:
        raise ShapeError(
            f"{names}: expected one dtype and device, got {a.dtype} on {a.device} and {b.dtype} on {b.device}"
        )


def check_shape(x: object, own: tuple[int, ...], name: str) -> Tensor:
    """Return `x` if it is a tensor (..., *own). Raises: ShapeError."""
    if not isinstance(x, Tensor) or x.shape[max(0, x.ndim - len(own)) :] != own:
        raise ShapeError(f"{name}: expected a tensor (..., {', '.join(map(str, own))}), got {describe(x)}")
    return x


def check_weights(x: Tensor, name: str = "weights") -> Tensor:
    """Return `x` (..., N) if none is negative and each set has a sum above zero. Raises: ShapeError."""
    if readable(x) and not bool(((x >= 0).all(-1) & (x.sum(-1) > 0)).all()):
        raise ShapeError(f"{name}: expected numbers of at least 0 and not all 0, got {x.flatten().tolist()[:8]}")
    return x


def check_field(x: object, shape: tuple[int, ...], name: str) -> None:
    """Raise ShapeError unless `x` is None or a float tensor of this shape."""
    if x is not None and not (isinstance(x, Tensor) and x.is_floating_point() and x.shape == shape):
        raise ShapeError(f"{name}: expected a float tensor {shape}, got {describe(x)}")


def check_indices(x: object, width: int, count: int, name: str, letter: str) -> None:
    """Raise ShapeError unless `x` is an int64 tensor (`letter`, width) of indices in [0, count)."""
    if not isinstance(x, Tensor) or x.dtype != torch.int64 or x.ndim != 2 or x.shape[1] != width:
        raise ShapeError(f"{name}: expected an int64 tensor ({letter}, {width}), got {describe(x)}")
    if x.numel() and (int(x.min()) < 0 or int(x.max()) >= count):
        raise ShapeError(f"{name}: expected indices in [0, {count}), got {int(x.min())} to {int(x.max())}")
