"""`LinearAttention`: mixers of tokens whose memory is one matrix for each head."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import elu, logsigmoid, silu

from geom.checks import check_choice, describe
from geom.errors import ShapeError
from geom.sequence.linear import additive_gates, delta_rule, linear_attention

__all__ = ["LinearAttention"]

KINDS = ("linear", "gated", "delta", "additive")
_SLOWNESS = 16  # logits of decays are divided by it, that they begin near 1


class LinearAttention(nn.Module):
    """A mixer of tokens (x, offsets) -> x by one pass of linear attention, normalised in each head and gated.

        out = W_out (rms_norm(S_t^T q_t) * silu(W_g x))

    | kind | memory |
    |---|---|
    | "linear" | sums of k v^T with q, k = elu + 1 (Katharopoulos et al., 2020) |
    | "gated" | decays logsigmoid(W_2 W_1 x) / 16 (Yang et al., 2023) |
    | "delta" | the delta rule with unit q and k (Schlag et al., 2021; Yang et al., 2024) |
    | "additive" | keys that sum to 1 over the past, q = silu (LightNet, Qin et al., 2024) |

    Args:
        width: channels of a token, a multiple of heads.
        heads: of width / heads features each.
        kind: of the memory.
        bidirectional: a second pass from the last token to the first is added, with the same weights.
        allow_neg_eigval: rates of "delta" up to 2, with which the memory can change its sign.

    Raises: ShapeError.

    >>> mixer = LinearAttention(8, heads=2, kind="delta")
    >>> mixer(torch.zeros(2, 5, 8)).shape, mixer(torch.zeros(7, 8), torch.tensor([0, 3, 7])).shape
    (torch.Size([2, 5, 8]), torch.Size([7, 8]))

    Guarantees: differentiable (any order); deterministic; 1e-14 f64, 5e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        kind: str = "gated",
        bidirectional: bool = False,
        allow_neg_eigval: bool = False,
    ) -> None:
        super().__init__()
        check_choice(kind, KINDS, "kind")
        if heads < 1 or width < heads or width % heads:
            raise ShapeError(f"width: expected a multiple of {heads} heads, got {width!r}")
        if allow_neg_eigval and kind != "delta":
            raise ShapeError(f'allow_neg_eigval: expected kind "delta", got {kind!r}')
        self.width, self.heads, self.kind = width, heads, kind
        self.bidirectional, self.allow_neg_eigval = bidirectional, allow_neg_eigval
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.gate_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width // heads, eps=1e-5)
        self.out_proj = nn.Linear(width, width, bias=False)
        if kind == "gated":
            rank = min(16, width)
            self.decay_proj = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
        if kind == "delta":
            self.rate_proj = nn.Linear(width, heads, bias=False)

    def forward(
        self, x: Float[Tensor, "*b n c"], offsets: Int64[Tensor, " clouds"] | None = None
    ) -> Float[Tensor, "*b n c"]:
        """Args: x (..., L, width), or (N, width) of several clouds with offsets (clouds + 1,). Returns: as x.

        Raises: ShapeError.
        """
        if x.ndim < 2 or x.shape[-1] != self.width:
            raise ShapeError(f"x: expected a tensor (..., L, {self.width}), got {describe(x)}")
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.qkv_proj(x).chunk(3, -1))
        y = self._remember(x, q, k, v, offsets, False)
        if self.bidirectional:
            y = y + self._remember(x, q, k, v, offsets, True)
        return self.out_proj(self.norm(y).flatten(-2) * silu(self.gate_proj(x)))

    def _remember(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, reverse: bool) -> Tensor:
        if self.kind == "linear":
            return linear_attention(elu(q) + 1, elu(k) + 1, v, offsets=offsets, reverse=reverse)
        if self.kind == "gated":
            decays = logsigmoid(self.decay_proj(x)).unflatten(-1, (self.heads, -1)) / _SLOWNESS
            return linear_attention(q, k, v, decays, offsets=offsets, reverse=reverse)
        if self.kind == "delta":
            rates = torch.sigmoid(self.rate_proj(x)) * (2 if self.allow_neg_eigval else 1)
            q, k = (_unit(silu(y)) for y in (q, k))
            return delta_rule(q, k, v, rates, offsets=offsets, reverse=reverse)
        keys, decays = additive_gates(k, offsets=offsets, reverse=reverse)
        return linear_attention(silu(q), keys, v, decays, offsets=offsets, reverse=reverse)


def _unit(x: Tensor) -> Tensor:
    """Of length 1, or shorter where x is near 0: smooth everywhere."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
