"""`GATr`, the geometric algebra transformer (Brehmer et al., 2023), for clouds and for grids of multivectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from geom.checks import check_integer, describe
from geom.clifford.algebra import PGA, Algebra
from geom.clifford.attention import AttentionPlan, SelfAttention
from geom.clifford.bilinear import GeoMLP, join_weight
from geom.clifford.gates import GradeDropout
from geom.clifford.invariant_attention import Mask
from geom.clifford.linear import EquiLinear, check_join, enter, leave
from geom.clifford.norm import EquiLayerNorm
from geom.clifford.reference import centre_of, check_clouds, translate, weight_of
from geom.clifford.tracks import TrackProducts, Tracks, check_tracks, normalise_tracks
from geom.errors import ShapeError

__all__ = ["AxialGATr", "GATr", "GATrBlock", "GATrPlan"]

_Extra = tuple[Tensor | None, Tensor | None]  # multivectors and scalars of the input that attention sees again


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
        algebra: of the blades of multivectors, with at most 5 basis vectors, one of them null. `PGA` is GATr; `EGA`,
            `CGA` and `STA` make the networks of de Haan et al. (2024) and, for space and time, Spinner et al. (2024).
        join: whether half of the products are joins, which `PGA` alone has; None for where the algebra is that.
        tracks: how many tracks of degree 2, and of degree 3, there are beside multivectors, {2: 8, 3: 4} say: symmetric
            traceless tensors, for what vectors and scalars cannot say; in `GATr`, with joins.

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
    algebra: Algebra = PGA
    join: bool | None = None
    tracks: Mapping[int, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_join(self.attention.distance, self.algebra, "distance")
        joins = self.joins
        if self.tracks and check_tracks(self.tracks) and not joins:
            raise ShapeError(f"tracks: expected joins, whose reference they take, got {self}")
        if self.algebra.dimension > 5 or self.algebra.r > 1:
            raise ShapeError(f"algebra: expected at most 5 basis vectors, one of them null, got {self.algebra}")
        for name in ("channels", "scalars"):
            check_integer(getattr(self, name), name)
        check_integer(self.blocks, "blocks", 0)

    @property
    def joins(self) -> bool:
        """Whether there are joins. Guarantees: not differentiable; deterministic; exact"""
        return check_join(self.join, self.algebra, "join")


class GATrBlock(nn.Module):
    """x += attention(norm(x)), then x += mlp(norm(x)) with a `GeoMLP` twice as wide inside.

    Args: plan, of which all but blocks counts; last, whether tracks end with it; generator of the first weights.
    The call: multivectors (..., n, C, B), scalars (..., n, S), reference (..., 1, 1, 16), which broadcasts, or None
        without joins; extra, the reinserted multivectors and scalars; mask and offsets, as of `SelfAttention`. The
        result: multivectors and scalars alike.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic but for dropout; 1e-14 f64, 4e-6 f32 of the greatest entry
    """

    def __init__(self, plan: GATrPlan, *, last: bool = False, generator: torch.Generator | None = None) -> None:
        super().__init__()
        c, s = plan.channels, plan.scalars
        self.algebra, self.join = plan.algebra, plan.joins
        self.norm = EquiLayerNorm(algebra=plan.algebra)
        self.attention = SelfAttention(
            *(c, c, s, s),
            plan=plan.attention,
            extra_channels=len(plan.reinsert_channels),
            extra_scalars=len(plan.reinsert_scalars),
            init="small",
            algebra=plan.algebra,
            tracks=plan.tracks,
            generator=generator,
        )
        self.mlp = GeoMLP(
            *((c, 2 * c, c), (s, 2 * s, s)),
            activation=plan.activation,
            dropout=plan.dropout,
            algebra=plan.algebra,
            join=plan.join,
            generator=generator,
        )
        self.dropout = GradeDropout(plan.dropout, algebra=plan.algebra)
        self.products = TrackProducts(c, s, plan.tracks, end=last, generator=generator) if plan.tracks else None

    def forward(
        self,
        multivectors: Float[Tensor, "*b n c blades"],
        scalars: Float[Tensor, "*b n s"],
        reference: Float[Tensor, "*r 1 16"] | None = None,
        *,
        extra: tuple[Float[Tensor, "*b n c_x blades"] | None, Float[Tensor, "*b n s_x"] | None] = (None, None),
        mask: Mask | None = None,
        offsets: Int64[Tensor, "clouds"] | None = None,
    ) -> tuple[Float[Tensor, "*b n c blades"], Float[Tensor, "*b n s"]]:
        more = None if extra[0] is None else enter(extra[0], "extra", self.algebra)
        x = enter(multivectors, algebra=self.algebra)
        weight = join_weight(self.join, reference, multivectors)
        x, s = self.planes(x, scalars, weight, (more, extra[1]), mask, offsets)
        return leave(x), s

    def planes(
        self,
        x: Tensor,
        s: Tensor,
        weight: Tensor | None,
        extra: tuple[Tensor | None, Tensor | None] = (None, None),
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The block on planes (B, ..., n, C), with the reference's e123 (..., n), or None where there are no joins.

        Guarantees: differentiable (any order); deterministic but for dropout; 1e-14 f64, 4e-6 f32
        """
        if self.products is not None:
            raise ShapeError("plan: expected no tracks but in a GATr, got some")
        y, t = self.dropout.planes(*self.attention.planes(*self.norm.planes(x, s), extra, mask, offsets))
        x, s = x + y, s if t is None else s + t
        y, t = self.mlp.planes(*self.norm.planes(x, s), weight)
        return x + y, s if t is None else s + t

    def planes_and_tracks(
        self,
        x: Tensor,
        s: Tensor,
        tracks: Tracks,
        weight: Tensor,
        extra: tuple[Tensor | None, Tensor | None] = (None, None),
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tracks]:
        """The block on planes and tracks (2 l + 1, ..., n, C_l), their products between attention and the MLP.

        Guarantees: differentiable (any order); deterministic but for dropout; 1e-14 f64, 4e-6 f32
        """
        assert self.products is not None
        y, t = self.norm.planes(x, s)
        y, t, new = self.attention.planes_and_tracks(y, t, normalise_tracks(tracks), extra, mask, offsets)
        assert t is not None and new is not None
        y, t = self.dropout.planes(y, t)
        assert t is not None
        x, s, tracks = x + y, s + t, {degree: own + new[degree] for degree, own in tracks.items()}
        y, t = self.norm.planes(x, s)
        assert t is not None
        y, t, new = self.products(y, t, normalise_tracks(tracks), weight)
        x, s, tracks = x + y, s + t, {degree: tracks[degree] + own for degree, own in new.items()}
        y, t = self.mlp.planes(*self.norm.planes(x, s), weight)
        return x + y, s if t is None else s + t, tracks


class _Transformer(nn.Module):
    """What the nets of multivectors share: checks, the ways in and out, and the clouds' centres and references."""

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
        more = {"algebra": plan.algebra, "generator": generator}
        self.linear_in = EquiLinear(in_channels, plan.channels, in_scalars, plan.scalars, **more)
        self.blocks = nn.ModuleList(
            GATrBlock(own, last=k + 1 == len(blocks), generator=generator) for k, own in enumerate(blocks)
        )
        self.linear_out = EquiLinear(plan.channels, out_channels, plan.scalars, out_scalars, **more)
        self.products = None
        if plan.tracks:
            self.products = TrackProducts(plan.channels, plan.scalars, plan.tracks, begin=True, generator=generator)

    def _run(
        self,
        multivectors: Tensor,
        scalars: Tensor | None,
        reference: str | Tensor,
        offsets: Tensor | None,
        mask: Any,
        *,
        axes: int = 1,
        batched: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        plan, first = self.plan, self.linear_in
        counts = first.in_channels, first.in_scalars
        check_clouds(multivectors, scalars, counts, blades=plan.algebra.size, axes=axes, batched=batched)
        if not plan.joins and (not isinstance(reference, str) or reference != "data"):
            raise ShapeError(f"reference: expected none where there are no joins, got {describe(reference)}")
        x, dtype = multivectors, multivectors.dtype
        weight = centre = None
        if plan.algebra == PGA:
            # Networks commute with translations, so where the origin is matters to rounding, and not to gradients.
            x = x.double()
            centre = centre_of(x.detach(), offsets=offsets, axes=axes)
            x = translate(x, -centre).to(dtype)
        if plan.joins:
            weight = weight_of(reference, x, offsets=offsets, axes=axes)
        x, s = enter(x, algebra=plan.algebra), scalars
        extra = (
            x[..., list(plan.reinsert_channels)] if plan.reinsert_channels else None,
            None if s is None or not plan.reinsert_scalars else s[..., list(plan.reinsert_scalars)],
        )
        x, s = first.planes(x, s)
        assert s is not None
        x, s = self.linear_out.planes(*self._blocks(x, s, weight, extra, mask, offsets))
        x = leave(x)
        return x if centre is None else translate(x.double(), centre).to(dtype), s

    def _blocks(
        self, x: Tensor, s: Tensor, weight: Any, extra: _Extra, mask: Any, offsets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The blocks on planes (B, ..., n, C) and scalars (..., n, S); extra, those of the input that come again."""
        tracks: Tracks = {}
        if self.products is not None:
            tracks = self.products(x, s, tracks, weight)[2]
        for block in self.blocks:
            assert isinstance(block, GATrBlock)
            if weight is not None and tracks:
                x, s, tracks = block.planes_and_tracks(x, s, tracks, weight, extra, mask, offsets)
            else:
                x, s = block.planes(x, s, weight, extra, mask, offsets)
        return x, s


class GATr(_Transformer):
    """The geometric algebra transformer: clouds of multivectors and scalars in and out, equivariant to E(3).

    With the reference "data" it commutes with rotations, translations and reflections, with "canonical" with the proper
    ones. Clouds are computed about the centres of their points, `centre_of`, so that they may be far from the origin.
    Numbers are not looked at: a cloud with NaN or inf gives NaN, and those beside it what they would alone.

    With plan.algebra another than `PGA` it commutes with the Pin(p, q, r) of that, which for `EGA` leaves translations
    out: embed the places of a cloud about its centroid, and add that to the places that come out. Points of `CGA`,
    `geom.clifford.conformal`, are where they are, products of two of them being -1/2 of their squared distance; of
    `STA`, momenta and energies are `STA.embed(...)`. There are no references then.

    Args:
        in_channels, out_channels, in_scalars, out_scalars: 0 for no scalars.
        plan: the shape inside.
        generator: draws the first weights.

    The call:
        multivectors (..., n, C_in, B), B blades, 16 for `PGA`: batch axes are optional.
        scalars (..., n, S_in), or None.
        mask: as in `geom.nn.attention`, that broadcasts to (..., heads, n, n).
        offsets: int64 (B+1,), for clouds of several sizes one after the other, (N, C_in, B); each is as by itself.
        reference: of joins, a kind of `join_reference` or multivectors (..., 1, 16) that broadcast.
    The result: multivectors (..., n, C_out, B), and scalars (..., n, S_out) or None.
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
        multivectors: Float[Tensor, "*b n c_in blades"],
        scalars: Float[Tensor, "*b n s_in"] | None = None,
        *,
        mask: Mask | None = None,
        offsets: Int64[Tensor, "clouds"] | None = None,
        reference: str | Float[Tensor, "*r 1 16"] = "data",
    ) -> tuple[Float[Tensor, "*b n c_out blades"], Float[Tensor, "*b n s_out"] | None]:
        return self._run(multivectors, scalars, reference, offsets, mask)


class AxialGATr(_Transformer):
    """A `GATr` for grids of multivectors (..., i, j, C, 16): blocks attend along j and along i in turn.

    Args: as of `GATr`; rotary, whether there are rotary positions along i and along j, for those of plan.attention,
        which must have none; plan without reinserted channels.
    The call: multivectors (..., i, j, C_in, 16), scalars (..., i, j, S_in) or None; masks, as in `geom.nn.attention`,
        of attention along i, which broadcasts to (..., j, heads, i, i), and along j, to (..., i, heads, j, j);
        offsets, None alone, for grids of several sizes are padded and masked; reference, as of `GATr`, "data" being the
        mean over a whole grid. The result: as of `GATr`.
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
        if plan.attention.rotary or plan.reinsert_channels or plan.reinsert_scalars or plan.tracks:
            raise ShapeError(f"plan: expected no rotary positions, reinserted channels nor tracks, got {plan}")
        along = [replace(plan, attention=replace(plan.attention, rotary=rotary[1 - k % 2])) for k in range(plan.blocks)]
        super().__init__(in_channels, out_channels, in_scalars, out_scalars, plan, along, generator)

    def forward(
        self,
        multivectors: Float[Tensor, "*b i j c_in blades"],
        scalars: Float[Tensor, "*b i j s_in"] | None = None,
        *,
        masks: tuple[Tensor | None, Tensor | None] = (None, None),
        offsets: None = None,
        reference: str | Float[Tensor, "*r 1 16"] = "data",
    ) -> tuple[Float[Tensor, "*b i j c_out blades"], Float[Tensor, "*b i j s_out"] | None]:
        if offsets is not None:
            raise ShapeError(f"offsets: expected None for grids, which are padded and masked, got {describe(offsets)}")
        return self._run(multivectors, scalars, reference, None, masks, axes=2)

    def _blocks(
        self, x: Tensor, s: Tensor, weight: Any, extra: _Extra, mask: Any, offsets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        for k, block in enumerate(self.blocks):
            assert isinstance(block, GATrBlock)
            x, s = block.planes(x, s, weight, mask=mask[1 - k % 2])
            x, s = x.transpose(-3, -2), s.transpose(-3, -2)  # the next one goes along the other axis
            weight = None if weight is None else weight.mT
        return (x.transpose(-3, -2), s.transpose(-3, -2)) if len(self.blocks) % 2 else (x, s)
