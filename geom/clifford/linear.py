"""`EquiLinear`: linear layers of multivectors and scalars that commute with Pin(3, 0, 1)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from geom.checks import check_choice, check_shape, describe
from geom.clifford.algebra import PGA
from geom.clifford.linear_map import linear_planes
from geom.clifford.trilinear import run_kernels
from geom.errors import ShapeError

__all__ = ["EquiLinear", "apply_together", "check_size", "enter", "leave"]

# Inside networks components come first, (16, ..., C), so that each is a plane of memory: `enter` and `leave` turn
# multivectors (..., C, 16) into such planes and back.

INITS = {"default": (1.0, 0.0), "small": (0.1, 0.0), "unit_scalar": (0.1, 1.0), "almost_unit_scalar": (0.5, 1.0)}
_SPREAD = (
    1.0,
    4.0,
    6.0,
    2.0,
    0.5,
    0.5,
    1.5,
    1.5,
    0.5,
)  # variance of the weights of each map, that of the first being 1


def enter(multivectors: Tensor, name: str = "multivectors") -> Tensor:
    """Multivectors (..., C, 16) as planes (16, ..., C).

    Guarantees: differentiable (any order); deterministic; exact
    """
    if check_shape(multivectors, (PGA.size,), name).ndim < 2:
        raise ShapeError(f"{name}: expected a tensor (..., channels, 16), got {describe(multivectors)}")
    return multivectors.movedim(-1, 0).contiguous()


def leave(planes: Tensor) -> Tensor:
    """Planes (16, ..., C) as multivectors (..., C, 16).

    Guarantees: differentiable (any order); deterministic; exact
    """
    return planes.movedim(0, -1).contiguous()


def check_size(count: int, name: str, minimum: int = 1) -> int:
    """Return `count` if it is an integer of at least `minimum`. Raises: ShapeError.

    Guarantees: not differentiable; deterministic; exact
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < minimum:
        raise ShapeError(f"{name}: expected an integer of at least {minimum}, got {count!r}")
    return count


class EquiLinear(nn.Module):
    """The linear maps of multivectors and scalars that commute with Pin(3, 0, 1) (Brehmer et al., 2023, Eq. (4)).

        x'_y = sum_xa weight_yxa B_a x_x + (s2mvs s)_y 1        s' = s2s s + mvs2s <x>_0

    B_a are the nine maps of `PGA.linear_basis()`. Without scalars in, a bias on the scalar component.

    Args:
        in_channels, out_channels: of multivectors.
        in_scalars, out_scalars: 0 for none.
        init: of the weights. "default"; "small" is a tenth of it; "unit_scalar" and "almost_unit_scalar", a tenth and
            a half of it, give scalar components about 1.
        generator: draws them.

    The call: multivectors (..., C_in, 16) and scalars (..., S_in) or None, where they count as 0 and so does the bias
    that comes with them. The result: multivectors (..., C_out, 16), and scalars (..., S_out) or None.
    Raises: ShapeError.

    >>> x, s = EquiLinear(2, 3, 4, 5)(torch.randn(7, 2, 16), torch.randn(7, 4))
    >>> x.shape, s.shape
    (torch.Size([7, 3, 16]), torch.Size([7, 5]))

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_scalars: int = 0,
        out_scalars: int = 0,
        *,
        init: str = "default",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_choice(init, INITS, "init")
        self.in_channels, self.out_channels = (
            check_size(in_channels, "in_channels"),
            check_size(out_channels, "out_channels"),
        )
        self.in_scalars, self.out_scalars = (
            check_size(in_scalars, "in_scalars", 0),
            check_size(out_scalars, "out_scalars", 0),
        )
        size, shift = INITS[init]
        both = 2 if in_scalars else 1
        fan = in_channels + in_scalars

        def uniform(*shape: int) -> Tensor:
            return torch.empty(shape).uniform_(-1, 1, generator=generator)

        bound = torch.tensor([variance**0.5 for variance in _SPREAD]) * size / math.sqrt(in_channels)
        bound[0] /= math.sqrt(both)
        self.weight = nn.Parameter(bound * uniform(out_channels, in_channels, len(_SPREAD)))
        self.bias = None if in_scalars else nn.Parameter(torch.full((out_channels, 1), shift))
        small = 0.1 if init == "small" else 1.0
        self.s2mvs = self.mvs2s = self.s2s = None
        if in_scalars:
            self.s2mvs = _linear(
                size / math.sqrt(both * in_scalars) * uniform(out_channels, in_scalars),
                shift + uniform(out_channels) / math.sqrt(fan),
            )
        if out_scalars:
            self.mvs2s = _linear(
                small / math.sqrt(both * in_channels) * uniform(out_scalars, in_channels),
                small / math.sqrt(fan) * uniform(out_scalars),
            )
        if in_scalars and out_scalars:
            self.s2s = _linear(small / math.sqrt(both * in_scalars) * uniform(out_scalars, in_scalars), None)

    def forward(
        self, multivectors: Float[Tensor, "*b c_in 16"], scalars: Float[Tensor, "*b s_in"] | None = None
    ) -> tuple[Float[Tensor, "*b c_out 16"], Float[Tensor, "*b s_out"] | None]:
        x, s = self.planes(enter(multivectors), scalars)
        return leave(x), s

    def planes(self, x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer on planes (16, ..., C_in) and scalars (..., S_in).

        Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
        """
        return apply_together([self], x, s)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.in_scalars}, {self.out_scalars}"


def apply_together(layers: Sequence[EquiLinear], x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Several layers of one input, as one with all of their channels and scalars one after the other.

    Args: layers of the same numbers of inputs; planes x (16, ..., C_in); s (..., S_in) or None.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
    """
    first = layers[0]
    if x.shape[-1] != first.in_channels:
        raise ShapeError(f"multivectors: expected {first.in_channels} channels, got {x.shape[-1]}")
    if s is not None and s.shape != (*x.shape[1:-1], first.in_scalars):
        raise ShapeError(f"scalars: expected shape {(*x.shape[1:-1], first.in_scalars)}, got {describe(s)}")
    weight = _joined([layer.weight for layer in layers])
    out = linear_planes(x.flatten(1, -2) if x.ndim > 2 else x[:, None], weight)
    if first.bias is not None:
        out = _shift(out, _joined([layer.bias for layer in layers])[:, 0])
    elif s is not None:
        out = _shift(out, _through([layer.s2mvs for layer in layers], s).reshape(-1, weight.shape[0]))
    out = out.reshape(*x.shape[:-1], weight.shape[0])
    into = [layer.mvs2s for layer in layers]
    if into[0] is None:
        return out, None
    t = _through(into, x[0])
    return out, t if s is None or not first.in_scalars else t + _through([layer.s2s for layer in layers], s)


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    found = [part for part in parts if part is not None]
    return found[0] if len(found) == 1 else torch.cat(found)


def _through(layers: Sequence[nn.Linear | None], x: Tensor) -> Tensor:
    found = [layer for layer in layers if layer is not None]
    bias = None if found[0].bias is None else _joined([layer.bias for layer in found])
    return linear(x, _joined([layer.weight for layer in found]), bias)


def _shift(planes: Tensor, shift: Tensor) -> Tensor:
    """planes with its scalar component shifted; the memory of `planes`, which nobody else has, is used again."""
    if not run_kernels(planes, shift):
        return torch.cat([planes[:1] + shift, planes[1:]])
    return _Shift.apply(planes, shift.expand(planes.shape[1:]))


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, planes: Tensor, shift: Tensor) -> Tensor:
        ctx.mark_dirty(planes)
        planes[0].add_(shift)
        return planes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return grad, grad[0]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer
