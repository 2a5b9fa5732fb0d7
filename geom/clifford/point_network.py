"""`PointNetwork`: point attention in residual blocks; `PointPotential`: the energy of a molecule by one of them."""

import dataclasses
import os

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import one_hot
from typing_extensions import Self

from geom.checks import check_shape
from geom.clifford.point_attention import PointAttention, perceptron
from geom.clifford.point_products import TupleProducts
from geom.errors import FileFormatError, ShapeError
from geom.train import load_checkpoint, save_checkpoint

__all__ = ["PointNetwork", "PointPotential", "pair_values"]


class PointNetwork(nn.Module):
    """A few numbers that rotations of a small cloud leave, from its points and what each carries.

        h = W values;   h <- h + attention(points, h);   h <- h + net(h), for each block;   net(attention(points, h))

    Each attention gives a result for each point, the last one for the cloud.

    Args: inner, numbers that a point carries; outer, numbers given; products of the tuples; channels; blocks.
    The call: points (..., n, size), differences of places; values (..., n, inner); weights and mask (..., n), as in
        `PointAttention`. The result: (..., outer).
    Raises: ShapeError.

    >>> PointNetwork(4, 2)(torch.randn(7, 12, 3), torch.randn(7, 12, 4)).shape
    torch.Size([7, 2])

    Guarantees: differentiable (any order); deterministic; 1e-13 f64, 1e-5 f32 of the greatest entry
    """

    def __init__(
        self,
        inner: int,
        outer: int,
        products: TupleProducts = TupleProducts(invariants="full"),  # noqa: B008 (frozen)
        *,
        channels: int = 32,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.plan = {"inner": inner, "outer": outer, "channels": channels, "blocks": blocks}
        self.products = products

        def attention(reduce: bool) -> PointAttention:
            return PointAttention(channels, products, reduce=reduce, merge="concat", join="concat")

        self.enter = nn.Linear(inner, channels)
        self.attentions = nn.ModuleList(attention(False) for _ in range(blocks))
        self.nets = nn.ModuleList(perceptron(channels, channels) for _ in range(blocks))
        self.gather, self.leave = attention(True), perceptron(channels, outer)

    def forward(
        self,
        points: Float[Tensor, "*b n size"],
        values: Float[Tensor, "*b n inner"],
        *,
        weights: Float[Tensor, "*b n"] | None = None,
        mask: Bool[Tensor, "*b n"] | None = None,
    ) -> Float[Tensor, "*b outer"]:
        h = self.enter(values)
        for attention, net in zip(self.attentions, self.nets, strict=True):
            h = h + attention(points, h, weights=weights, mask=mask)
            h = h + net(h)
        return self.leave(self.gather(points, h, weights=weights, mask=mask))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and shape as safetensors; a failed write leaves the old file."""
        shape = {**self.plan, "products": dataclasses.asdict(self.products)}
        save_checkpoint(path, {"network": shape, "module": self.state_dict()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, on the CPU. Raises: FileFormatError if it is something else; OSError as `open`."""
        state = load_checkpoint(path)
        try:
            shape = dict(state["network"])
            network = cls(products=TupleProducts(**shape.pop("products")), **shape)
            network.load_state_dict(state["module"])
        except (KeyError, TypeError, RuntimeError, ShapeError) as error:
            raise FileFormatError(path, f"expected a saved network, got {error!r}") from error
        return network


class PointPotential(nn.Module):
    """The energy of a molecule: the sum over its atoms of a `PointNetwork` on where the others are.

        E = sum_i network(x_j - x_i, pair_values(i, j); j other than i)        F = -dE / dx

    The same wherever the molecule is and however it is turned, and for exchanged atoms of one kind, so that forces sum
    to 0. Learned from forces alone, it leaves a constant open.

    Args: network, of one number out, and 2 K numbers in for K kinds of atoms.
    The call: positions (..., n, 3), n of at least 2; kinds (n,), int64 from 0 to K - 1. The result: energy (...), whose
        unit, as that of length, is that of what it learned from.
    Raises: ShapeError.

    >>> potential = PointPotential(PointNetwork(6, 1))
    >>> kinds = torch.tensor([0, 0, 1, 2, 2, 2, 2, 2, 2])
    >>> bool(potential.forces(torch.randn(9, 3), kinds).sum(0).abs().max() < 1e-4)
    True

    Guarantees: differentiable (any order); deterministic; 1e-13 f64, 1e-5 f32 of the greatest entry
    """

    def __init__(self, network: PointNetwork) -> None:
        super().__init__()
        if network.plan["outer"] != 1 or network.products.multivector:
            raise ShapeError(f"network: expected one number from vectors, got {network.plan}, {network.products}")
        self.network = network

    def forward(self, positions: Float[Tensor, "*b n 3"], kinds: Int64[Tensor, "n"]) -> Float[Tensor, "*b"]:
        n = len(kinds)
        check_shape(positions, (n, 3), "positions")
        every = torch.arange(n, device=kinds.device)[:, None]
        others = every[: n - 1, 0] + (every[: n - 1, 0] >= every)
        values = pair_values(kinds, kinds[others], self.network.plan["inner"] // 2).to(positions)
        points = positions[..., others, :] - positions[..., None, :]
        return self.network(points, values.expand(*points.shape[:-1], -1)).sum((-2, -1))

    def forces(self, positions: Float[Tensor, "*b n 3"], kinds: Int64[Tensor, "n"]) -> Float[Tensor, "*b n 3"]:
        """-dE / dx, itself differentiable where gradients are on."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = positions if graph and positions.requires_grad else positions.detach().requires_grad_()
            return -torch.autograd.grad(self(x, kinds).sum(), x, create_graph=graph)[0]


def pair_values(own: Int64[Tensor, "*b"], others: Int64[Tensor, "*b n"], kinds: int) -> Float[Tensor, "*b n values"]:
    """What a point carries that stands for another of some kind, seen from one: other - own and other + own, one-hot.

    Args: own (...), and others (..., n), int64 from 0 to kinds - 1.
    Returns: (..., n, 2 kinds), float32.
    Raises: RuntimeError, torch's, for a kind out of range.

    >>> pair_values(torch.tensor(0), torch.tensor([1]), 2).tolist()
    [[-1.0, 1.0, 1.0, 1.0]]

    Guarantees: not differentiable; deterministic; exact
    """
    a, b = one_hot(own, kinds)[..., None, :], one_hot(others, kinds)
    return torch.cat([b - a, b + a], -1).float()
