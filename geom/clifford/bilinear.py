"""`GeometricBilinear` and `GeoMLP`: products of multivectors between equivariant linear layers."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geom.checks import check_integer, describe
from geom.clifford.algebra import PGA, Algebra
from geom.clifford.gates import GatedNonlinearity, GradeDropout
from geom.clifford.linear import EquiLinear, apply_together, check_join, enter, leave
from geom.clifford.products import multiply_planes
from geom.clifford.reference import weight_of
from geom.errors import ShapeError

__all__ = ["GeoMLP", "GeometricBilinear", "join_weight"]


def join_weight(join: bool, reference: Tensor | None, multivectors: Tensor) -> Tensor | None:
    """e123 of the reference (...), or None where there are no joins.

    Raises: ShapeError for a missing reference, or one that nothing takes.

    Guarantees: differentiable; deterministic; exact
    """
    if (reference is not None) != join:
        raise ShapeError(
            f"reference: expected {'a tensor' if join else 'None without joins'}, got {describe(reference)}"
        )
    return None if reference is None else weight_of(reference, multivectors)


class _WithJoins(nn.Module):
    """A layer on planes that wants the reference of joins."""

    algebra: Algebra
    join: bool

    def forward(
        self,
        multivectors: Float[Tensor, "*b c_in blades"],
        scalars: Float[Tensor, "*b s_in"] | None,
        reference: Float[Tensor, "*r 1 16"] | None = None,
    ) -> tuple[Float[Tensor, "*b c_out blades"], Float[Tensor, "*b s_out"] | None]:
        x = enter(multivectors, algebra=self.algebra)
        x, s = self.planes(x, scalars, join_weight(self.join, reference, multivectors))
        return leave(x), s

    def planes(self, x: Tensor, s: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


class GeometricBilinear(_WithJoins):
    """Geometric products and joins of linear maps of the input, and a linear map of those (Brehmer et al., 2023,
    Section 3): linear_out(cat[left right, join(join_left, join_right; reference)], scalars).

    Args: in_channels, out_channels, the latter even, half of them products and half joins; in_scalars, out_scalars, 0
        for none; algebra, of the B blades; join, whether there are any, for `PGA` alone, or else all are products;
        generator of the first weights.
    The call: multivectors (..., C_in, B), scalars (..., S_in) or None, reference (..., 1, 16), which broadcasts, and
        of which e123 counts, as in `PGA.join`, or None where there are none. The result: multivectors (..., C_out, B),
        and scalars or None.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_scalars: int = 0,
        out_scalars: int = 0,
        *,
        algebra: Algebra = PGA,
        join: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.algebra, self.join = algebra, check_join(join, algebra, "join")
        if check_integer(out_channels, "out_channels") % 2:
            raise ShapeError(f"out_channels: expected an even number, got {out_channels}")
        inner = out_channels // 2 if self.join else out_channels

        def factor(init: str = "default") -> EquiLinear:
            return EquiLinear(in_channels, inner, in_scalars, init=init, algebra=algebra, generator=generator)

        self.linear_left, self.linear_right = factor(), factor("almost_unit_scalar")
        if self.join:
            self.linear_join_left, self.linear_join_right = factor(), factor()
        self.linear_out = EquiLinear(
            out_channels, out_channels, in_scalars, out_scalars, algebra=algebra, generator=generator
        )

    def planes(self, x: Tensor, s: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer on planes (B, ..., C_in), with the reference's e123 (...), or None where there are no joins.

        Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
        """
        factors, products = [self.linear_left, self.linear_right], ("geometric",)
        if self.join:
            factors, products = [*factors, self.linear_join_left, self.linear_join_right], ("geometric", "join")
        y, _ = apply_together(factors, x, s)
        flat = y.reshape(y.shape[0], -1, y.shape[-1])
        reference = y.new_ones(flat.shape[1]) if weight is None else weight.reshape(-1)
        found = multiply_planes(flat, reference, products=products, signature=self.algebra.signature)
        return self.linear_out.planes(found.reshape(*y.shape[:-1], y.shape[-1] // 2), s)


class GeoMLP(_WithJoins):
    """A `GeometricBilinear`, then a `GatedNonlinearity` and an `EquiLinear` for each further step.

    Args: channels, the numbers of them from input to output, at least two; scalars, as many; activation, as of
        `gate_by_scalar`; dropout, the p of `GradeDropout` after each layer but gates; algebra and join, as of
        `GeometricBilinear`; generator of the first weights.
    The call is that of `GeometricBilinear`. Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic but for dropout; 4e-15 f64, 2e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        channels: Sequence[int],
        scalars: Sequence[int],
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        algebra: Algebra = PGA,
        join: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or len(channels) != len(scalars):
            raise ShapeError(f"channels and scalars: expected as many, at least 2, got {channels} and {scalars}")
        sizes = list(zip(channels, channels[1:], scalars, scalars[1:], strict=False))
        self.algebra, self.join = algebra, check_join(join, algebra, "join")
        layers: list[nn.Module] = [GeometricBilinear(*sizes[0], algebra=algebra, join=join, generator=generator)]
        for size in sizes[1:]:
            gate = GatedNonlinearity(activation, algebra=algebra)
            layers += [gate, EquiLinear(*size, algebra=algebra, generator=generator)]
        self.layers = nn.ModuleList(layers)
        self.dropout = GradeDropout(dropout, algebra=algebra)

    def planes(self, x: Tensor, s: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layers on planes (B, ..., C_in), with the reference's e123 (...), or None where there are no joins.

        Guarantees: differentiable (any order); deterministic but for dropout; 4e-15 f64, 2e-6 f32
        """
        for layer in self.layers:
            if isinstance(layer, GeometricBilinear):
                x, s = self.dropout.planes(*layer.planes(x, s, weight))
            elif isinstance(layer, EquiLinear):
                x, s = self.dropout.planes(*layer.planes(x, s))
            elif isinstance(layer, GatedNonlinearity):
                x, s = layer.planes(x, s)
        return x, s
