"""GATr and its parts in their plain form, with geom's own weights, and what PyPI has: lgatr and
geometric-algebra-attention."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, pad, scaled_dot_product_attention

from geom.clifford import PGA, GATrPlan, PointAttention

__all__ = ["DenseGATr", "dense_layer", "dense_product", "lorentz_net", "lorentz_product", "tuple_attention"]

# --- dense tables, einsum and autograd --------------------------------------------------------------------------------

_FREE = [0, 2, 3, 4, 8, 9, 10]  # components of inner products but e123, which distances take care of in attention
_WEIGHT = 14
_EPSILON = 1e-3


@cache
def _table(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    found = PGA.linear_basis() if name == "linear" else PGA.table(name)
    return found.to(device, dtype)


@cache
def _indices(device: torch.device, *indices: int) -> Tensor:
    return torch.tensor(indices, device=device)


def dense_product(name: str, x: Tensor, y: Tensor) -> Tensor:
    """The "geometric" product or "join" of multivectors (..., 16), by the whole table of 16^3 numbers."""
    return torch.einsum("ijk,...j,...k->...i", _table(name, x.dtype, x.device), x, y)


def dense_layer(weights: Mapping[str, Tensor], prefix: str, x: Tensor, s: Tensor | None) -> tuple[Tensor, Any]:
    """An `EquiLinear`, whose maps are a matrix 16 x 16 for each pair of channels, in one product for all."""
    own = {name: weights.get(prefix + name) for name in ("bias", "s2mvs.weight", "s2mvs.bias", "mvs2s.bias")}
    basis = _table("linear", x.dtype, x.device)
    matrices = torch.einsum("yxa,aij->yixj", weights[f"{prefix}weight"], basis).flatten(2).flatten(0, 1)
    out = linear(x.flatten(-2), matrices).unflatten(-1, (-1, 16))
    if own["bias"] is not None:
        out[..., 0] += own["bias"][:, 0]
    if own["s2mvs.weight"] is not None and s is not None:
        out[..., 0] += linear(s, own["s2mvs.weight"], own["s2mvs.bias"])
    if own["mvs2s.bias"] is None:
        return out, None
    t = linear(x[..., 0], weights[f"{prefix}mvs2s.weight"], own["mvs2s.bias"])
    if s is not None and f"{prefix}s2s.weight" in weights:
        t = t + linear(s, weights[f"{prefix}s2s.weight"])
    return out, t


class DenseGATr:
    """The `geom.clifford.GATr` of a plan and a state dict, without reinserted channels, positions or dropout.

    The call: multivectors (B, n, C_in, 16), scalars (B, n, S_in); mask that broadcasts to (B, heads, n, n); reference
    (B, 1, 1, 16), or the mean of each cloud. The result is that of the net, though nothing is moved to the centre.
    """

    def __init__(self, plan: GATrPlan, state: Mapping[str, Tensor]) -> None:
        self.plan = plan
        self.weights = {name: x.detach().clone().requires_grad_() for name, x in state.items()}

    def parameters(self) -> list[Tensor]:
        """In the order of the state dict."""
        return list(self.weights.values())

    def __call__(
        self, x: Tensor, s: Tensor | None, *, mask: Tensor | None = None, reference: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        reference = x.mean((1, 2), keepdim=True) if reference is None else reference
        x, t = dense_layer(self.weights, "linear_in.", x, s)
        for k in range(self.plan.blocks):
            y, u = self._attend(f"blocks.{k}.attention.", *_normalise(x, t), mask)
            x, t = x + y, t + u
            y, u = self._multiply(f"blocks.{k}.mlp.layers.", *_normalise(x, t), reference)
            x, t = x + y, t + u
        return dense_layer(self.weights, "linear_out.", x, t)

    def _attend(self, prefix: str, x: Tensor, s: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Multi-query attention of features side by side, padded to one width, a multiple of 8."""
        heads = self.plan.attention.heads
        q, k, v = (
            _split(*dense_layer(self.weights, f"{prefix}qkv_module.{part}_linear.", x, s), count)
            for part, count in (("q", heads), ("k", 1), ("v", 1))
        )
        weights = self.weights[f"{prefix}attention.log_weights"].exp()[..., None]
        c, own = q[0].shape[-2], q[1].shape[-1]
        width = -(-(16 * c + own) // 8) * 8
        queries = _features(q[0], _distance(q[0], keys=False) * weights, q[1], width)
        keys = _features(k[0], _distance(k[0], keys=True), k[1], width)
        values = pad(torch.cat([v[0].flatten(-2), v[1]], -1), (0, width - 16 * c - own))
        keys, values = (z.expand(-1, heads, -1, -1) for z in (keys, values))
        out = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=(12 * c + own) ** -0.5)
        y, t, _ = out.split([16 * c, own, width - 16 * c - own], -1)
        y = y.unflatten(-1, (c, 16)).movedim(1, 2).flatten(2, 3)
        return dense_layer(self.weights, f"{prefix}out_linear.", y, t.movedim(1, 2).flatten(2, 3))

    def _multiply(self, prefix: str, x: Tensor, s: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        left, right, join_left, join_right = (
            dense_layer(self.weights, f"{prefix}0.linear_{part}.", x, s)[0]
            for part in ("left", "right", "join_left", "join_right")
        )
        joined = dense_product("join", join_left, join_right) * reference[..., _WEIGHT, None]
        both = torch.cat([dense_product("geometric", left, right), joined], -2)
        y, t = dense_layer(self.weights, f"{prefix}0.linear_out.", both, s)
        return dense_layer(self.weights, f"{prefix}2.", gelu(y[..., :1], approximate="tanh") * y, gelu(t))


def _normalise(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    free = x.index_select(-1, _indices(x.device, *_FREE, _WEIGHT))
    scale = free.square().sum(-1).mean(-1).clamp(min=0.01).sqrt()
    return x / scale[..., None, None], layer_norm(s, s.shape[-1:])


def _split(x: Tensor, s: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Channels, heads fastest, as (B, heads, n, c, 16) and (B, heads, n, s)."""
    return x.unflatten(2, (-1, heads)).movedim(3, 1), s.unflatten(2, (-1, heads)).movedim(3, 1)


def _distance(x: Tensor, *, keys: bool) -> Tensor:
    """Five numbers of each multivector, whose products are -|p - q|^2 for points p and q."""
    weight = x[..., _WEIGHT, None]
    u = x[..., 11:15] * (weight / (weight.square() + _EPSILON))
    e, w = u[..., :3], u[..., 3:]
    far, near = e.square().sum(-1, keepdim=True), w.square()
    return torch.cat([-near, -far, 2 * e * w] if keys else [far, near, e * w], -1)


def _features(x: Tensor, distance: Tensor, s: Tensor, width: int) -> Tensor:
    inner = x.index_select(-1, _indices(x.device, *_FREE))
    parts = torch.cat([inner.flatten(-2), distance.flatten(-2), s], -1)
    return pad(parts, (0, width - parts.shape[-1]))


# --- from PyPI --------------------------------------------------------------------------------------------------------


def lorentz_product() -> Callable[[Tensor, Tensor], Tensor]:
    """lgatr's geometric product of G(1,3) by the whole table."""
    import lgatr
    from lgatr.primitives.bilinear import geometric_product

    config = lgatr.PrimitivesConfig(sparse_gp=False)
    return lambda x, y: geometric_product(x, y, config=config)


def lorentz_net(inputs: tuple[int, int], outputs: tuple[int, int], plan: GATrPlan) -> nn.Module:
    """lgatr's net of these sizes, (multivectors, scalars) in and out, with the maps of O(1,3) alone."""
    import lgatr

    return lgatr.LGATr(
        *(plan.blocks, inputs[0], outputs[0], plan.channels, inputs[1], outputs[1], plan.scalars),
        attention={"num_heads": plan.attention.heads, "multi_query": True, "attn_ratio": plan.attention.increase},
        mlp={"mlp_ratio": 2},
        primitives={"sparse_gp": False, "subgroup": False},
    )


def tuple_attention(layer: PointAttention) -> nn.Module:
    """The layer of geometric-algebra-attention that a `PointAttention` with invariant output is, with its weights.

    The call: a pair of points and values.
    """
    from geometric_algebra_attention import pytorch as peer

    products = layer.products
    own = peer.MultivectorAttention if products.multivector else peer.VectorAttention
    nets = [nn.Sequential(*(_copy(part) for part in net.children())) for net in (layer.score_net, layer.value_net)]
    found = own(layer.channels, *nets, reduce=layer.reduce, rank=products.rank, invariant_mode=products.invariants)
    found = found.to(next(layer.parameters()))
    found.load_state_dict(layer.state_dict())
    return found


def _copy(module: nn.Module) -> nn.Module:
    return nn.Linear(module.in_features, module.out_features) if isinstance(module, nn.Linear) else module
