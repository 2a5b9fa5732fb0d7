"""`SlimGATr`: a geometric algebra transformer of scalars, planes and points alone, for point clouds."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from geom.checks import check_integer, check_shape
from geom.clifford.algebra import PGA
from geom.clifford.attention import AttentionPlan
from geom.clifford.gatr import GATrPlan
from geom.clifford.invariant_attention import Mask
from geom.clifford.reference import centre_of, check_clouds, weight_of
from geom.clifford.slim_layers import SlimLinear, attention_features, gate, join_heads, normalise
from geom.clifford.slim_products import multiply_slim
from geom.errors import ShapeError
from geom.nn.ragged_attention import attention

__all__ = ["SlimGATr", "from_slim", "to_slim"]

_KEPT = [i for i, grade in enumerate(PGA.grades) if grade in (0, 1, 3)]
# Inside networks planes and points are x (8, ..., C) of components d, n, q, w, as in `slim_products`: the places and
# signs of those among the 9.
_PLACES, _SIGNS = [1, 2, 3, 4, 7, 6, 5, 8], [-1, 1, 1, 1, -1, 1, -1, 1]
_PLAN = GATrPlan(attention=AttentionPlan(increase=1))


def to_slim(multivectors: Float[Tensor, "*b 16"]) -> Float[Tensor, "*b 9"]:
    """The scalar, vector and trivector components 1 | e0 e1 e2 e3 | e012 e013 e023 e123 of multivectors of `PGA`.

    So embeddings of scalars, planes, points and directions are those of `geom.clifford.embedding`, of which nothing is
    lost; lines, translations and rotations have other components too.

    >>> from geom.clifford.embedding import embed_point
    >>> to_slim(embed_point(torch.tensor([1.0, 2, 3]))).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, -3.0, 2.0, -1.0, 1.0]

    Guarantees: differentiable; deterministic; exact
    """
    return check_shape(multivectors, (PGA.size,), "multivectors")[..., _KEPT]


def from_slim(slim: Float[Tensor, "*b 9"]) -> Float[Tensor, "*b 16"]:
    """The multivectors of `PGA` with these components, and 0 in all others.

    Guarantees: differentiable; deterministic; exact
    """
    parts = check_shape(slim, (len(_KEPT),), "slim").split((5, 4), -1)
    return torch.cat(
        [parts[0], slim.new_zeros((*slim.shape[:-1], 6)), parts[1], slim.new_zeros((*slim.shape[:-1], 1))], -1
    )


class _SlimAttention(nn.Module):
    """Attention whose logits are those of `geometric_attention`, over sqrt(9 c + s)."""

    def __init__(self, plan: GATrPlan, generator: torch.Generator | None) -> None:
        super().__init__()
        self.plan = plan.attention
        self.width, scalars = self.plan.sizes(plan.channels, plan.scalars)
        self.inner = self.width + scalars
        both, heads = plan.channels + plan.scalars, self.plan.heads
        self.few = 1 if self.plan.multi_query else heads
        every = heads + 2 * self.few
        self.linear_in = SlimLinear((both, every * self.inner), (plan.channels, every * self.width), generator)
        self.linear_out = SlimLinear((heads * self.inner, both), (heads * self.width, plan.channels), generator, 0.1)
        self.log_weights = nn.Parameter(torch.ones(heads, self.width))

    def forward(
        self, z: Tensor, x: Tensor, batch: torch.Size, mask: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        z, x = self.linear_in(z, x)
        rows = attention_features(z, x, self.log_weights.exp(), self.plan.epsilon, self.few)
        scale, heads = (8 * self.width + self.inner) ** -0.5, self.plan.heads
        if self.few == 1 and mask is None:  # heads of queries, which see the same keys, as so many more queries
            queries, keys, values = (y.reshape(*batch[:-1], 1, batch[-1] * y.shape[1], y.shape[-1]) for y in rows)
            more = None if offsets is None else heads * offsets
            out = attention(queries, keys, values, scale=scale, offsets=more, key_offsets=offsets)
        else:
            queries, keys, values = (y.unflatten(0, batch).movedim(-2, -3) for y in rows)
            out = attention(queries, keys, values, scale=scale, mask=mask, offsets=offsets).movedim(-3, -2)
        return self.linear_out(*join_heads(out.reshape(len(z), heads, out.shape[-1]), self.width))


class _SlimBlock(nn.Module):
    """x += attention(norm(x)), then x += mlp(norm(x)), which makes two products of as many channels each."""

    def __init__(self, plan: GATrPlan, generator: torch.Generator | None) -> None:
        super().__init__()
        c, both = plan.channels, plan.channels + plan.scalars
        self.attention = _SlimAttention(plan, generator)
        self.factors = SlimLinear((both, 2 * c), (c, 4 * c), generator)
        nn.init.ones_(self.factors.bias[c:])  # of right factors: left ones pass through at first, as in `GATr`
        self.products = SlimLinear((2 * c + both, 2 * both), (2 * c, 2 * c), generator)
        self.out = SlimLinear((2 * both, both), (2 * c, c), generator)

    def forward(
        self, z: Tensor, x: Tensor, weight: Tensor, batch: torch.Size, mask: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        s, y = self.attention(*normalise(z, x), batch, mask, offsets)
        z, x = z + s, x + y
        s, y = normalise(z, x)
        t, y = self.factors(s, y)
        t, y = multiply_slim(t, y, weight)
        s, y = self.out(*gate(*self.products(torch.cat([t, s], -1), y)))
        return z + s, x + y


class SlimGATr(nn.Module):
    """A `GATr` of scalars, planes and points: clouds in and out, equivariant to E(3), in about half of the time.

    Channels have the 9 components 1 | e0 e1 e2 e3 | e012 e013 e023 e123 of `to_slim`, and no lines nor pseudoscalars.
    Vectors are normals of planes, or directions, which are points of weight 0: the products of `multiply_slim` turn one
    into the other, and have cross products, planes through points and distances from planes. Where three planes meet
    takes lines, and so a `GATr`. Otherwise it is as that one, with the linear maps (4 of 9), attention and gates of it,
    but scalars of channels are part of the scalars in norms and linear maps, and norms of planes and of points are
    apart. Clouds are computed about the centres of their points, so that they may be far from the origin; one with NaN
    gives NaN, as in `GATr`.

    Args:
        in_channels, out_channels, in_scalars, out_scalars: 0 for no scalars.
        plan: the shape inside, of which channels, scalars, blocks and attention may be given, that without rotary
            positions and with distances. Unlike in a `GATr`, all heads together are as wide as the channels and
            scalars, unless attention.increase is 2.
        generator: draws the first weights.

    The call:
        slim (..., n, C_in, 9): batch axes are optional.
        scalars (..., n, S_in), or None where in_scalars is 0.
        mask, offsets: as of `GATr`.
        reference: of the products, as of `GATr`: "data", "canonical", or slim multivectors (..., 1, 9).
    The result: (..., n, C_out, 9), and scalars (..., n, S_out) or None.
    Raises: ShapeError.

    >>> from geom.clifford.embedding import embed_point, extract_point
    >>> points = to_slim(embed_point(torch.randn(2, 5, 1, 3)))
    >>> net = SlimGATr(1, 1, out_scalars=3, plan=GATrPlan(channels=4, scalars=8, blocks=2))
    >>> moved, invariants = net(points)
    >>> extract_point(from_slim(moved)).shape, invariants.shape
    (torch.Size([2, 5, 1, 3]), torch.Size([2, 5, 3]))

    Guarantees: differentiable (any order); deterministic; 1e-13 f64, 1e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_scalars: int = 0,
        out_scalars: int = 0,
        *,
        plan: GATrPlan = _PLAN,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        same = GATrPlan(plan.channels, plan.scalars, plan.blocks, plan.attention)
        if plan != same or plan.attention.rotary or plan.attention.distance is False:
            raise ShapeError(
                f"plan: expected channels, scalars, blocks and attention alone, without rotary, got {plan}"
            )
        check_integer(in_channels, "in_channels")
        self.in_channels, self.in_scalars = in_channels, check_integer(in_scalars, "in_scalars", 0)
        self.out_channels, self.out_scalars = check_integer(out_channels, "out_channels"), out_scalars
        check_integer(out_scalars, "out_scalars", 0)
        both = plan.channels + plan.scalars
        self.linear_in = SlimLinear((in_channels + in_scalars, both), (in_channels, plan.channels), generator)
        self.blocks = nn.ModuleList(_SlimBlock(plan, generator) for _ in range(plan.blocks))
        self.linear_out = SlimLinear((both, out_channels + out_scalars), (plan.channels, out_channels), generator)

    def forward(
        self,
        slim: Float[Tensor, "*b n c_in 9"],
        scalars: Float[Tensor, "*b n s_in"] | None = None,
        *,
        mask: Mask | None = None,
        offsets: Int64[Tensor, "clouds"] | None = None,
        reference: str | Float[Tensor, "*r 1 9"] = "data",
    ) -> tuple[Float[Tensor, "*b n c_out 9"], Float[Tensor, "*b n s_out"] | None]:
        check_clouds(slim, scalars, (self.in_channels, self.in_scalars), name="slim", blades=len(_KEPT), required=True)
        batch = slim.shape[:-2]
        # Where the origin is matters to rounding alone, and not to gradients.
        full, dtype = from_slim(slim), slim.dtype
        centre = centre_of(full.detach().double(), offsets=offsets)[..., 0, :]
        reference = reference if isinstance(reference, str) else from_slim(reference)
        weight = weight_of(reference, full, offsets=offsets).reshape(-1)
        x = slim[..., _PLACES].movedim(-1, 0) * slim.new_tensor(_SIGNS).reshape(-1, *(1,) * (slim.ndim - 1))
        x = _translate(x.double(), -centre).to(dtype).reshape(8, -1, self.in_channels)
        z = slim[..., 0] if scalars is None else torch.cat([slim[..., 0], scalars], -1)
        z, x = self.linear_in(z.reshape(-1, z.shape[-1]), x)
        for block in self.blocks:
            z, x = block(z, x, weight, batch, mask, offsets)
        z, x = self.linear_out(z, x)
        x = _translate(x.double().reshape(8, *batch, self.out_channels), centre).to(dtype)
        d, *normal, a, b, c, w = x
        parts = z.reshape(*batch, self.out_channels + self.out_scalars).split([self.out_channels, self.out_scalars], -1)
        out = torch.stack([parts[0], -d, *normal, -c, b, -a, w], -1)
        return out, parts[1] if self.out_scalars else None


def _translate(x: Tensor, by: Tensor) -> Tensor:
    """Planes and points (8, ..., C) moved by translations (..., 3)."""
    by = by.movedim(-1, 0)[..., None]
    d, n, q, w = x.split((1, 3, 3, 1))
    return torch.cat([d + (n * by).sum(0, keepdim=True), n, q + w * by, w])
