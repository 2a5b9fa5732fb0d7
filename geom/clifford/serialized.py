"""`SerializedGATr`: a `GATr` for large meshes, whose blocks attend within patches along orders."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_integer, describe
from geom.clifford.gatr import GATrBlock, GATrPlan, _Extra, _Transformer
from geom.errors import ShapeError
from geom.nn.serialized_attention import patches

__all__ = ["SerializedGATr"]


class SerializedGATr(_Transformer):
    """A `GATr` whose time and memory grow as the number of items: each sees the items of its patch along an order.

    Blocks take the orders in turn, and when one's turn comes again its patches are shifted by half a patch, and back
    the time after (after Point Transformer V3, Wu et al., 2024). With patches as large as the clouds it is `GATr`,
    whose weights it takes.

    It commutes with motions as far as the orders do. Orders of the given positions depend on how a cloud is turned;
    those of `principal_coordinates` do not, where its axes are plain; rounding may yet take a point to the cell beside
    its own. Items that share a cell of the grid keep the order they came in.

    Args: as of `GATr`; plan, with joins and without tracks; patch, the items of a patch.
    The call:
        multivectors (N, C_in, 16), scalars (N, S_in) or None, offsets, reference: as of `GATr`.
        orders: int64 (K, N) or (N,), as `geom.points.serialize` gives them, cloud after cloud.
    The result: as of `GATr`. Raises: ShapeError.

    >>> from geom.clifford.embedding import embed_point
    >>> from geom.nn.serialized_attention import principal_coordinates
    >>> from geom.points import serialize
    >>> x = torch.randn(1000, 3)
    >>> orders = serialize(principal_coordinates(x), order=("hilbert", "hilbert-transposed")).order
    >>> net = SerializedGATr(1, 1, plan=GATrPlan(channels=4, scalars=8, blocks=2), patch=64)
    >>> net(embed_point(x)[:, None], orders=orders)[0].shape
    torch.Size([1000, 1, 16])

    Guarantees: differentiable (any order); deterministic but for dropout; 1e-13 f64, 1e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_scalars: int = 0,
        out_scalars: int = 0,
        *,
        plan: GATrPlan = GATrPlan(),  # noqa: B008 (frozen)
        patch: int = 256,
        generator: torch.Generator | None = None,
    ) -> None:
        if not plan.joins or plan.tracks:
            raise ShapeError(f"plan: expected joins and no tracks, got {plan}")
        super().__init__(in_channels, out_channels, in_scalars, out_scalars, plan, [plan] * plan.blocks, generator)
        self.patch = check_integer(patch, "patch", 2)

    def forward(
        self,
        multivectors: Float[Tensor, "n c_in 16"],
        scalars: Float[Tensor, "n s_in"] | None = None,
        *,
        orders: Int64[Tensor, "*k n"],
        offsets: Int64[Tensor, "clouds"] | None = None,
        reference: str | Float[Tensor, "*r 1 16"] = "data",
    ) -> tuple[Float[Tensor, "n c_out 16"], Float[Tensor, "n s_out"] | None]:
        return self._run(multivectors, scalars, reference, offsets, orders, batched=False)

    def _blocks(
        self, x: Tensor, s: Tensor, weight: Tensor, extra: _Extra, mask: Any, offsets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The blocks, each on planes (16, P, patch, C), or one patch after the other where their sizes differ; in place
        of a mask, the orders."""
        rows = torch.atleast_2d(mask) if isinstance(mask, Tensor) else None
        if rows is None or rows.ndim != 2 or not len(rows) or rows.shape[1] != len(s):
            raise ShapeError(f"orders: expected an int64 tensor (K, {len(s)}), got {describe(mask)}")
        turns = [divmod(k, len(rows)) for k in range(min(len(self.blocks), 2 * len(rows)))]
        cuts = [patches(rows[k], self.patch, shift=turn * self.patch // 2, offsets=offsets) for turn, k in turns]
        more, own = extra
        home = None
        for k, block in enumerate(self.blocks):
            assert isinstance(block, GATrBlock)
            cut = cuts[k % len(cuts)]
            step = cut.index if home is None else home[cut.index]  # from patches to patches at once
            extra = (
                None if more is None else _cut(more, 1, cut.index, cut.size),
                None if own is None else _cut(own, 0, cut.index, cut.size),
            )
            x, s, w = _cut(x, 1, step, cut.size), _cut(s, 0, step, cut.size), _cut(weight, 0, cut.index, cut.size)
            x, s = block.planes(x, s, w, extra, None, cut.offsets if cut.size is None else None)
            x, s = x.flatten(1, -2), s.flatten(0, -2)
            home = cut.home
        return (x, s) if home is None else (x.index_select(1, home), s.index_select(0, home))


def _cut(x: Tensor, axis: int, index: Tensor, size: int | None) -> Tensor:
    """Items along an axis as (P, size), or as they are where patches have several sizes."""
    x = x.index_select(axis, index)
    return x if size is None else x.unflatten(axis, (-1, size))
