"""`EquiLinear`: linear layers of multivectors and scalars that commute with Pin(3, 0, 1)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from geom.checks import check_choice, check_integer, check_shape, describe
from geom.clifford.algebra import PGA, Algebra
from geom.clifford.linear_map import linear_planes, run_linear
from geom.clifford.planes import from_planes, to_planes
from geom.clifford.trilinear import run_kernels
from geom.errors import ShapeError

__all__ = ["EquiLinear", "apply_together", "check_join", "enter", "leave"]

# Inside networks components come first, (16, ..., C), so that each is a plane of memory: `enter` and `leave` turn
# multivectors (..., C, 16) into such planes and back.

INITS = {"default": (1.0, 0.0), "small": (0.1, 0.0), "unit_scalar": (0.1, 1.0), "almost_unit_scalar": (0.5, 1.0)}
# of `PGA`, as GATr has it
_SPREAD = (1.0, 4.0, 6.0, 2.0, 0.5, 0.5, 1.5, 1.5, 0.5)


def enter(multivectors: Tensor, name: str = "multivectors", algebra: Algebra = PGA) -> Tensor:
    """Multivectors (..., C, B) as planes (B, ..., C).

    Guarantees: differentiable (any order); deterministic; exact
    """
    if check_shape(multivectors, (algebra.size,), name).ndim < 2:
        raise ShapeError(f"{name}: expected a tensor (..., channels, {algebra.size}), got {describe(multivectors)}")
    return to_planes(multivectors)


def leave(planes: Tensor) -> Tensor:
    """Planes (B, ..., C) as multivectors (..., C, B).

    Guarantees: differentiable (any order); deterministic; exact
    """
    return from_planes(planes)


def _spread(algebra: Algebra) -> list[float]:
    """The variance of the weights of each map, that of the first being 1: components of one size in and out."""
    if algebra == PGA:
        return list(_SPREAD)
    n = algebra.dimension
    return [*(float(math.comb(n, k)) for k in range(n + 1)), *(math.comb(n - 1, k) / 2 for k in range(algebra.r * n))]


def check_join(wanted: bool | None, algebra: Algebra, name: str) -> bool:
    """Whether something that `PGA` alone has is wanted, None being wherever it is. Raises: ShapeError.

    Guarantees: not differentiable; deterministic; exact
    """
    if wanted and algebra != PGA:
        raise ShapeError(f"{name}: expected None or False for another algebra than PGA, got {wanted!r} and {algebra}")
    return algebra == PGA if wanted is None else wanted


class EquiLinear(nn.Module):
    """The linear maps of multivectors and scalars that commute with Pin(p, q, r) (Brehmer et al., 2023, Eq. (4)).

        x'_y = sum_xa weight_yxa B_a x_x + (s2mvs s)_y 1        s' = s2s s + mvs2s <x>_0

    B_a are the maps of `algebra.linear_basis()`, nine for `PGA`. Without scalars in, a bias on the scalar component.

    Args:
        in_channels, out_channels: of multivectors.
        in_scalars, out_scalars: 0 for none.
        init: of the weights. "default"; "small" is a tenth of it; "unit_scalar" and "almost_unit_scalar", a tenth and
            a half of it, give scalar components about 1.
        algebra: of the B blades of multivectors, with at most one null vector.
        generator: draws them.

    The call: multivectors (..., C_in, B) and scalars (..., S_in) or None, where they count as 0 and so does the bias
    that comes with them. The result: multivectors (..., C_out, B), and scalars (..., S_out) or None.
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
        algebra: Algebra = PGA,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_choice(init, INITS, "init")
        self.algebra = algebra
        self.in_channels, self.out_channels = (
            check_integer(in_channels, "in_channels"),
            check_integer(out_channels, "out_channels"),
        )
        self.in_scalars, self.out_scalars = (
            check_integer(in_scalars, "in_scalars", 0),
            check_integer(out_scalars, "out_scalars", 0),
        )
        size, shift = INITS[init]
        both = 2 if in_scalars else 1
        fan = in_channels + in_scalars

        def uniform(*shape: int) -> Tensor:
            return torch.empty(shape).uniform_(-1, 1, generator=generator)

        spread = _spread(algebra)
        bound = torch.tensor([variance**0.5 for variance in spread]) * size / math.sqrt(in_channels)
        bound[0] /= math.sqrt(both)
        self.weight = nn.Parameter(bound * uniform(out_channels, in_channels, len(spread)))
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
        self, multivectors: Float[Tensor, "*b c_in blades"], scalars: Float[Tensor, "*b s_in"] | None = None
    ) -> tuple[Float[Tensor, "*b c_out blades"], Float[Tensor, "*b s_out"] | None]:
        x, s = self.planes(enter(multivectors, algebra=self.algebra), scalars)
        return leave(x), s

    def planes(self, x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer on planes (B, ..., C_in) and scalars (..., S_in).

        Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
        """
        return apply_together([self], x, s)

    def _parts(self) -> tuple[Tensor | None, ...]:
        s2mvs, mvs2s, s2s = self.s2mvs, self.mvs2s, self.s2s
        return (
            *(self.weight, self.bias),
            *((None, None) if s2mvs is None else (s2mvs.weight, s2mvs.bias)),
            *((None, None) if mvs2s is None else (mvs2s.weight, mvs2s.bias)),
            None if s2s is None else s2s.weight,
        )

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.in_scalars}, {self.out_scalars}"


def apply_together(layers: Sequence[EquiLinear], x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Several layers of one input, as one with all of their channels and scalars one after the other.

    Args: layers of one algebra and of the same numbers of inputs; planes x (B, ..., C_in); s (..., S_in) or None.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
    """
    first = layers[0]
    if x.shape[-1] != first.in_channels:
        raise ShapeError(f"multivectors: expected {first.in_channels} channels, got {x.shape[-1]}")
    if s is not None and s.shape != (*x.shape[1:-1], first.in_scalars):
        raise ShapeError(f"scalars: expected shape {(*x.shape[1:-1], first.in_scalars)}, got {describe(s)}")
    flat, scalars = x.flatten(1, -2) if x.ndim > 2 else x[:, None], None if s is None else s.reshape(-1, s.shape[-1])
    parameters = [p for layer in layers for p in layer._parts()]
    operands = [z for z in (flat, scalars, *parameters) if z is not None]
    if first.algebra != PGA or not run_kernels(*operands):
        y, t = _apply(len(layers), flat, scalars, *parameters, algebra=first.algebra)
    elif torch.is_grad_enabled() and any(z.requires_grad for z in operands):
        y, t = _Together.apply(len(layers), flat, scalars, *parameters)
    else:
        y, t = _run(flat, scalars, *_joined(len(layers), parameters))
    return y.reshape(*x.shape[:-1], y.shape[-1]), None if t is None else t.reshape(*x.shape[1:-1], t.shape[-1])


# Parameters are those of one layer after the other, `EquiLinear._parts`, and joined those of all of them together.


def _joined(count: int, parameters: Sequence[Tensor | None]) -> list[Tensor | None]:
    if count == 1:
        return list(parameters)
    every = [parameters[k :: len(parameters) // count] for k in range(len(parameters) // count)]
    return [None if parts[0] is None else torch.cat([p for p in parts if p is not None]) for parts in every]


def _apply(
    count: int, x: Tensor, s: Tensor | None, *parameters: Tensor | None, algebra: Algebra = PGA
) -> tuple[Tensor, Tensor | None]:
    """The twin of `_run`: planes (B, N, C) and scalars (N, S) or None."""
    weight, bias, s2mvs, shift, mvs2s, offset, s2s = _joined(count, parameters)
    assert weight is not None
    y = linear_planes(x, weight, algebra)
    if bias is not None:
        y = torch.cat([y[:1] + bias[:, 0], y[1:]])
    elif s is not None and s2mvs is not None:
        y = torch.cat([y[:1] + linear(s, s2mvs, shift), y[1:]])
    if mvs2s is None:
        return y, None
    t = linear(x[0], mvs2s, offset)
    return y, t if s is None or s2s is None else t + linear(s, s2s)


def _run(
    x: Tensor, s: Tensor | None, weight: Any, bias: Any, s2mvs: Any, shift: Any, mvs2s: Any, offset: Any, s2s: Any
) -> tuple[Tensor, Tensor | None]:
    """The layers on plain tensors."""
    y, t = run_linear(0, x, weight), None
    if bias is not None:
        y[0].add_(bias[:, 0])
    elif s is not None and s2mvs is not None:
        y[0].add_(shift).addmm_(s, s2mvs.T)
    if mvs2s is not None:
        t = torch.addmm(offset, x[0], mvs2s.T)
        if s is not None and s2s is not None:
            t.addmm_(s, s2s.T)
    return y, t


class _Together(torch.autograd.Function):
    """All layers as one step, of which the input alone is saved."""

    @staticmethod
    def forward(
        ctx: Any, count: int, x: Tensor, s: Tensor | None, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, s, *parameters)
        ctx.count = count
        ctx.set_materialize_grads(False)
        return _run(x, s, *_joined(count, parameters))

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, h: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, s, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or not run_kernels(*(z for z in (x, g, h) if z is not None)):
            return None, *_differentiate_twin(ctx.count, (g, h), (x, s, *parameters), wanted)
        weight, _, s2mvs, _, mvs2s, _, s2s = joined = _joined(ctx.count, parameters)
        gx = gs = None
        found: list[Tensor | None] = [None] * len(joined)
        if g is not None and weight is not None:
            gx = run_linear(1, g, weight) if wanted[0] else None
            found[0] = run_linear(2, g, x)
            if joined[1] is not None:
                found[1] = g[0].sum(0)[:, None]
            elif s is not None and s2mvs is not None:
                found[2], found[3] = g[0].T @ s, g[0].sum(0)
                gs = g[0] @ s2mvs if wanted[1] else None
        if h is not None and mvs2s is not None:
            found[4], found[5] = h.T @ x[0], h.sum(0)
            if wanted[0]:
                gx = torch.zeros_like(x) if gx is None else gx
                gx[0].addmm_(h, mvs2s)
            if s is not None and s2s is not None:
                found[6] = h.T @ s
                if wanted[1]:
                    gs = h @ s2s if gs is None else gs.addmm_(h, s2s)
        kinds = len(joined)
        grads: list[Tensor | None] = [None] * len(parameters)
        for kind, whole in enumerate(found):
            if whole is not None:
                own = [p.shape[0] for p in parameters[kind::kinds] if p is not None]
                grads[kind::kinds] = whole.split(own) if len(own) > 1 else [whole]
        return None, *(z if want else None for z, want in zip((gx, gs, *grads), wanted, strict=True))


def _differentiate_twin(
    count: int, grads: tuple[Tensor | None, ...], operands: tuple[Tensor | None, ...], wanted: Sequence[bool]
) -> list[Tensor | None]:
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [
            None if z is None else z.view_as(z) if z.requires_grad else z.detach().requires_grad_() for z in operands
        ]
        assert own[0] is not None
        pairs = zip(_apply(count, own[0], *own[1:]), grads, strict=True)
        outputs = [(y, z) for y, z in pairs if y is not None and z is not None]
        inputs = [z for z, want in zip(own, wanted, strict=True) if z is not None and want]
        results, given = [y for y, _ in outputs], [z for _, z in outputs]
        found = iter(torch.autograd.grad(results, inputs, given, create_graph=again, allow_unused=True))
    return [next(found) if z is not None and want else None for z, want in zip(own, wanted, strict=True)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer
