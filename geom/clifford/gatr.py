"""`GATr`, the geometric algebra transformer (Brehmer et al., 2023), for clouds and for grids of multivectors."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from geom.checks import describe
from geom.clifford.attention import AttentionPlan, SelfAttention
from geom.clifford.bilinear import GeoMLP
from geom.clifford.gates import GradeDropout
from geom.clifford.linear import EquiLinear, check_size, enter, leave
from geom.clifford.norm import EquiLayerNorm
from geom.clifford.reference import centre_of, join_reference, translate, weight_of
from geom.errors import ShapeError

__all__ = ["AxialGATr", "GATr", "GATrBlock", "GATrPlan"]

Mask = Bool[Tensor, "*mask"] | Float[Tensor, "*mask"]


@dataclass(frozen=True)
class GATrPlan:
    """The shape of a `GATr`.

    Fields:
        channels, scalars: hidden multivectors, and hidden scalars, of which there are always some.
        blocks: how many.
        attention: the shape of each attention layer.
        activation: as of `gate_by_scalar`.
        dropout: the p of `GradeDropout`, 0 for none.
        reinsert_channels, reinsert_scalars: the indices of channels and scalars of the input that every attention layer
            sees as well, in queries and keys.

    Guarantees: not differentiable; deterministic; exact
    """

    channels: int = 16
    scalars: int = 128
    blocks: int = 10
    attention: AttentionPlan = field(default_factory=AttentionPlan)
    activation: str = "gelu"
    dropout: float = 0.0
    reinsert_channels: tuple[int, ...] = ()
    reinsert_scalars: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("channels", "scalars"):
            check_size(getattr(self, name), name)
        check_size(self.blocks, "blocks", 0)


class GATrBlock(nn.Module):
    """x += attention(norm(x)), then x += mlp(norm(x)) with a `GeoMLP` twice as wide inside.

    Args: plan, of which channels, scalars, attention, activation, dropout, and how many are reinserted count; generator
        of the first weights.
    The call: multivectors (..., n, C, 16), scalars (..., n, S), reference (..., 1, 1, 16), which broadcasts; extra, the
        reinserted multivectors and scalars; mask and offsets, as of `SelfAttention`. The result: multivectors and
        scalars alike.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic but for dropout; 1e-14 f64, 4e-6 f32 of the greatest entry
    """

    def __init__(self, plan: GATrPlan, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        c, s = plan.channels, plan.scalars
        self.norm = EquiLayerNorm()
        self.attention = SelfAttention(
            *(c, c, s, s),
            plan=plan.attention,
            extra_channels=len(plan.reinsert_channels),
            extra_scalars=len(plan.reinsert_scalars),
            init="small",
            generator=generator,
        )
        self.mlp = GeoMLP(
            (c, 2 * c, c), (s, 2 * s, s), activation=plan.activation, dropout=plan.dropout, generator=generator
        )
        self.dropout = GradeDropout(plan.dropout)

    def forward(
        self,
        multivectors: Float[Tensor, "*b n c 16"],
        scalars: Float[Tensor, "*b n s"],
        reference: Float[Tensor, "*r 1 16"],
        *,
        extra: tuple[Float[Tensor, "*b n c_x 16"] | None, Float[Tensor, "*b n s_x"] | None] = (None, None),
        mask: Mask | None = None,
        offsets: Int64[Tensor, "clouds"] | None = None,
    ) -> tuple[Float[Tensor, "*b n c 16"], Float[Tensor, "*b n s"]]:
        more = None if extra[0] is None else enter(extra[0], "extra")
        weight = weight_of(reference, multivectors)
        x, s = self.planes(enter(multivectors), scalars, weight, (more, extra[1]), mask, offsets)
        return leave(x), s

    def planes(
        self,
        x: Tensor,
        s: Tensor,
        weight: Tensor,
        extra: tuple[Tensor | None, Tensor | None] = (None, None),
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The block on planes (16, ..., n, C), with the reference's e123 (..., n).

        Guarantees: differentiable (any order); deterministic but for dropout; 1e-14 f64, 4e-6 f32
        """
        y, t = self.dropout.planes(*self.attention.planes(*self.norm.planes(x, s), extra, mask, offsets))
        x, s = x + y, s if t is None else s + t
        y, t = self.mlp.planes(*self.norm.planes(x, s), weight)
        return x + y, s if t is None else s + t


class _Transformer(nn.Module):
    """What both nets share: the ways in and out, and the clouds' centres and references."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_scalars: int,
        out_scalars: int,
        plan: GATrPlan,
        blocks: Sequence[GATrPlan],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.plan = plan
        for name, count in (("reinsert_channels", in_channels), ("reinsert_scalars", in_scalars)):
            if not all(0 <= i < count for i in getattr(plan, name)):
                raise ShapeError(f"{name}: expected indices from 0 to {count - 1}, got {getattr(plan, name)}")
        self.linear_in = EquiLinear(in_channels, plan.channels, in_scalars, plan.scalars, generator=generator)
        self.blocks = nn.ModuleList(GATrBlock(own, generator=generator) for own in blocks)
        self.linear_out = EquiLinear(plan.channels, out_channels, plan.scalars, out_scalars, generator=generator)

    def _run(
        self,
        multivectors: Tensor,
        scalars: Tensor | None,
        reference: str | Tensor,
        axes: int,
        offsets: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        # Networks commute with translations, so where the origin is matters to rounding alone, and not to gradients.
        dtype, far = multivectors.dtype, multivectors.double()
        centre = centre_of(far.detach(), offsets=offsets, axes=axes)
        local = translate(far, -centre).to(dtype)
        if isinstance(reference, str):
            reference = join_reference(local, reference, offsets=offsets, axes=axes)
        weight = weight_of(reference, local)
        x, s = self._blocks(enter(local), scalars, weight, mask, offsets)
        x, s = self.linear_out.planes(x, s)
        return translate(leave(x).double(), centre).to(dtype), s

    def _blocks(
        self, x: Tensor, s: Tensor | None, weight: Tensor, mask: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        channels, scalars = self.plan.reinsert_channels, self.plan.reinsert_scalars
        extra = (
            x[..., list(channels)] if channels else None,
            None if s is None or not scalars else s[..., list(scalars)],
        )
        x, s = self.linear_in.planes(x, s)
        for block in self.blocks:
            assert isinstance(block, GATrBlock)
            assert s is not None
            x, s = block.planes(x, s, weight, extra, mask, offsets)
        return x, s


class GATr(_Transformer):
    """The geometric algebra transformer: clouds of multivectors and scalars in and out, equivariant to E(3).

    With the reference "data" it commutes with rotations, translations and reflections, with "canonical" with the proper
    ones. Clouds are computed about the centres of their points, `centre_of`, so that they may be far from the origin.

    Args:
        in_channels, out_channels, in_scalars, out_scalars: 0 for no scalars.
        plan: the shape inside.
        generator: draws the first weights.

    The call:
        multivectors (..., n, C_in, 16): batch axes are optional.
        scalars (..., n, S_in), or None.
        mask: as in `geom.nn.attention`, that broadcasts to (..., heads, n, n).
        offsets: int64 (B+1,), for clouds of several sizes one after the other, (N, C_in, 16); each is as by itself.
        reference: of joins, a kind of `join_reference` or multivectors (..., 1, 16) that broadcast.
    The result: multivectors (..., n, C_out, 16), and scalars (..., n, S_out) or None.
    Raises: ShapeError.

    >>> from geom.clifford.embedding import embed_point, extract_point
    >>> points = embed_point(torch.randn(2, 5, 3))
    >>> net = GATr(1, 1, out_scalars=3, plan=GATrPlan(channels=4, scalars=8, blocks=2))
    >>> moved, invariants = net(points[:, :, None])
    >>> extract_point(moved[:, :, 0]).shape, invariants.shape
    (torch.Size([2, 5, 3]), torch.Size([2, 5, 3]))

    Guarantees: differentiable (any order); deterministic but for dropout; 1e-13 f64, 1e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_scalars: int = 0,
        out_scalars: int = 0,
        *,
        plan: GATrPlan = GATrPlan(),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, in_scalars, out_scalars, plan, [plan] * plan.blocks, generator)

    def forward(
        self,
        multivectors: Float[Tensor, "*b n c_in 16"],
        scalars: Float[Tensor, "*b n s_in"] | None = None,
        *,
        mask: Mask | None = None,
        offsets: Int64[Tensor, "clouds"] | None = None,
        reference: str | Float[Tensor, "*r 1 16"] = "data",
    ) -> tuple[Float[Tensor, "*b n c_out 16"], Float[Tensor, "*b n s_out"] | None]:
        if not isinstance(multivectors, Tensor) or multivectors.ndim < 3:
            raise ShapeError(f"multivectors: expected a tensor (..., n, channels, 16), got {describe(multivectors)}")
        return self._run(multivectors, scalars, reference, 1, offsets, mask)


class AxialGATr(_Transformer):
    """A `GATr` for grids of multivectors (..., i, j, C, 16): blocks attend along j and along i in turn.

    Args: as of `GATr`; rotary, whether there are rotary positions along i and along j, for those of plan.attention,
        which must have none; plan without reinserted channels.
    The call: multivectors (..., i, j, C_in, 16), scalars (..., i, j, S_in) or None; reference, as of `GATr`, "data"
        being the mean over a whole grid. The result: as of `GATr`.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic but for dropout; 1e-13 f64, 1e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_scalars: int = 0,
        out_scalars: int = 0,
        *,
        plan: GATrPlan = GATrPlan(blocks=20),
        rotary: tuple[bool, bool] = (False, False),
        generator: torch.Generator | None = None,
    ) -> None:
        if plan.attention.rotary or plan.reinsert_channels or plan.reinsert_scalars:
            raise ShapeError(f"plan: expected no rotary positions nor reinserted channels, got {plan}")
        along = [replace(plan, attention=replace(plan.attention, rotary=rotary[1 - k % 2])) for k in range(plan.blocks)]
        super().__init__(in_channels, out_channels, in_scalars, out_scalars, plan, along, generator)

    def forward(
        self,
        multivectors: Float[Tensor, "*b i j c_in 16"],
        scalars: Float[Tensor, "*b i j s_in"] | None = None,
        *,
        reference: str | Float[Tensor, "*r 1 16"] = "data",
    ) -> tuple[Float[Tensor, "*b i j c_out 16"], Float[Tensor, "*b i j s_out"] | None]:
        if not isinstance(multivectors, Tensor) or multivectors.ndim < 4:
            raise ShapeError(f"multivectors: expected a tensor (..., i, j, channels, 16), got {describe(multivectors)}")
        return self._run(multivectors, scalars, reference, 2, None, None)

    def _blocks(
        self, x: Tensor, s: Tensor | None, weight: Tensor, mask: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        x, s = self.linear_in.planes(x, s)
        for _k, block in enumerate(self.blocks):
            assert isinstance(block, GATrBlock)
            assert s is not None
            x, s = block.planes(x, s, weight)
            x, s, weight = x.transpose(-3, -2), s.transpose(-3, -2), weight.mT  # the next one goes along the other axis
        return (x.transpose(-3, -2), s if s is None else s.transpose(-3, -2)) if len(self.blocks) % 2 else (x, s)
