"""`PointAttention`: attention over tuples of points, by the invariants of their geometric products."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geom.checks import check_choice, check_integer, check_same, check_shape, describe, readable
from geom.clifford.point_products import TupleProducts
from geom.errors import ShapeError

__all__ = ["PointAttention", "perceptron"]

Output = Tensor | tuple[Tensor, Tensor]
_MASKED = -1e9  # the score of a tuple with a masked point


def perceptron(inner: int, outer: int) -> nn.Sequential:
    """Linear, SiLU, Linear, of a hidden width twice that of the wider end.

    Guarantees: differentiable (any order); deterministic
    """
    width = 2 * max(inner, outer)
    return nn.Sequential(nn.Linear(inner, width), nn.SiLU(), nn.Linear(width, outer))


class PointAttention(nn.Module):
    """Attention over all tuples of k points, by invariants of their geometric products (Spellings, 2021, Geometric
    algebra attention networks for small point clouds, arXiv 2110.02393, Eqs. (1)-(6)).

    For each tuple i = (i_1, ..., i_k), repetitions included, with q_i the invariants and c_i the covariants of its
    products,

        z_i = join(value_net(q_i), merge(values_i1, ..., values_ik)[, label])    w_i = (weight_i1 ... weight_ik)^(1/k)
        a_i = softmax of score_net(z_i)              invariant: sum of a_i w_i z_i
        covariant: sum of a_i w_i scale_net(z_i) sum_n alpha_n c_in

    Softmax and sums are over all tuples, or without `reduce` over those that begin with the same point, which gives a
    result for each point: what goes into another layer. Permuted points give the permuted result; rotated ones the same
    invariants and rotated covariants; reflected ones not, trivectors being among the invariants. Translations matter:
    give differences of points. Everything is finite with finite gradients, coincident points and the origin included,
    where norms have derivative 0.

    All tuples are looked at together up to `chunk` of them. More are taken in parts, by their first point, and computed
    again for the derivative, so that what is kept grows no faster than n^(k-1); the result and its derivatives are the
    same. A net with buffers, as momentum norms have, sees the whole batch at once while it trains, whatever it takes.

    Args:
        channels: of the values, and of the invariant output.
        products: the tuples, and which of their products count.
        output: "invariant", "covariant", or "both", as a pair (covariant, invariant) that shares its attention.
        reduce: one result for all points; else one for each.
        merge, join: "mean", or "concat": a sum of learned linear maps, of each place in the tuple and of each part.
        labelled: whether there are labels: a result for each label, from scores of its own.
        convex: alpha, which is drawn near 0 and is 1 where there is one covariant, goes through the softmax of
            (alpha, 0), without the last.
        net: (numbers in, numbers out) -> a module on the last axis: `value_net` (invariants to channels), `score_net`
            and `scale_net` (channels to 1).
        chunk: tuples looked at together, at least those of one first point.
    The call: points (..., n, size) of `products.size`; values (..., n, channels); labels (..., labels, channels);
        weights (..., n), at least 0; mask (..., n), False for points that are not there, whose tuples get the score
        -1e9. Where that is all there are, they share alike: the result is finite, and means nothing.
    The result: invariant (..., [labels,] [n,] channels); covariant (..., [labels,] [n,] size).
    Raises: ShapeError.

    >>> layer = PointAttention(8, TupleProducts(rank=3), output="both", reduce=False)
    >>> [x.shape for x in layer(torch.randn(5, 3), torch.randn(5, 8))]
    [torch.Size([5, 3]), torch.Size([5, 8])]

    Guarantees: differentiable (any order); deterministic; 1e-14 f64, 1e-6 f32 of the greatest term of the sums
    """

    def __init__(
        self,
        channels: int,
        products: TupleProducts = TupleProducts(),  # noqa: B008 (frozen)
        *,
        output: str = "invariant",
        reduce: bool = True,
        merge: str = "mean",
        join: str = "mean",
        labelled: bool = False,
        convex: bool = False,
        net: Callable[[int, int], nn.Module] = perceptron,
        chunk: int = 16384,
    ) -> None:
        super().__init__()
        check_choice(output, ("invariant", "covariant", "both"), "output")
        for name, way in (("merge", merge), ("join", join)):
            check_choice(way, ("mean", "concat"), name)
        for name, number in (("channels", channels), ("chunk", chunk)):
            check_integer(number, name)
        self.channels, self.products, self.output, self.reduce = channels, products, output, reduce
        self.labelled, self.convex, self.chunk = labelled, convex, chunk
        self.value_net, self.score_net = net(products.invariant_count, channels), net(channels, 1)
        self.scale_net = net(channels, 1) if output != "invariant" else None

        def kernels(count: int, spread: float) -> nn.ParameterList:
            return nn.ParameterList(spread * torch.randn(channels, channels) for _ in range(count))

        k = products.rank
        self.merge_kernels = kernels(k, math.sqrt(2 / (k * channels))) if merge == "concat" else None
        self.join_kernels = kernels(2 + labelled, math.sqrt(1 / channels)) if join == "concat" else None
        self.linear_kernels = nn.Parameter(torch.randn(products.linear_shape)) if products.terms else None
        count = products.covariant_count
        several = output != "invariant" and count > 1
        self.vector_kernels = nn.Parameter(0.05 * torch.randn(count)) if several else None

    # --- the call -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        points: Float[Tensor, "*b n size"],
        values: Float[Tensor, "*b n channels"],
        labels: Float[Tensor, "*b labels channels"] | None = None,
        *,
        weights: Float[Tensor, "*b n"] | None = None,
        mask: Bool[Tensor, "*b n"] | None = None,
    ) -> Output:
        cloud = self._cloud(points, values, labels, weights, mask)
        n = points.shape[-2]
        rows = self._rows(cloud)
        again = rows < n and torch.is_grad_enabled() and readable(points)
        part = self._part_again() if again else self._part
        found = self._join([part(cloud, slice(begin, min(begin + rows, n))) for begin in range(0, n, rows)])
        shape = (*points.shape[:-2], *found[0].shape[1:-1])
        found = [x.reshape(*shape, x.shape[-1]) for x in found]
        return (found[0], found[1]) if self.output == "both" else found[0]

    def attention(
        self,
        points: Float[Tensor, "*b n size"],
        values: Float[Tensor, "*b n channels"],
        labels: Float[Tensor, "*b labels channels"] | None = None,
        *,
        mask: Bool[Tensor, "*b n"] | None = None,
    ) -> Float[Tensor, "*b_tuple"]:
        """The weights (*b, n, ..., n) of the tuples, with `labelled` (*b, labels, n, ..., n); never in parts."""
        cloud = self._cloud(points, values, labels, None, mask)
        _, score, _ = self._tuples(cloud, slice(0, points.shape[-2]))
        shape = score.shape[1:]
        return self._flat(score).softmax(-1).reshape(*points.shape[:-2], *shape)

    # --- its parts ----------------------------------------------------------------------------------------------------

    def _check(
        self, points: Tensor, values: Tensor, labels: Tensor | None, weights: Tensor | None, mask: Tensor | None
    ) -> None:
        check_shape(points, (self.products.size,), "points")
        batch, n = points.shape[:-2], points.shape[-2] if points.ndim > 1 else 0
        if not n:
            raise ShapeError(
                f"points: expected (..., n, {self.products.size}) with n of at least 1, got {describe(points)}"
            )
        check_same(points, values, "points and values")
        if (labels is None) == self.labelled:
            raise ShapeError(f"labels: expected {'labels' if self.labelled else 'None'}, got {describe(labels)}")
        count = labels.shape[-2] if labels is not None and labels.ndim > 1 else 0
        for name, x, shape in (
            ("values", values, (*batch, n, self.channels)),
            ("labels", labels, (*batch, count, self.channels)),
            ("weights", weights, (*batch, n)),
            ("mask", mask, (*batch, n)),
        ):
            if x is not None and x.shape != shape:
                raise ShapeError(f"{name}: expected a tensor {shape}, got {describe(x)}")
        if weights is not None and readable(weights) and not bool((weights >= 0).all()):
            raise ShapeError(f"weights: expected numbers of at least 0, got {float(weights.min())}")
        if mask is not None and mask.dtype != torch.bool:
            raise ShapeError(f"mask: expected a bool tensor, got {describe(mask)}")

    def _cloud(
        self, points: Tensor, values: Tensor, labels: Tensor | None, weights: Tensor | None, mask: Tensor | None
    ) -> "_Cloud":
        """What there is by point, with one axis of batches."""
        self._check(points, values, labels, weights, mask)
        k, batch = self.products.rank, points.shape[:-2]
        count = batch.numel()

        def flat(x: Tensor) -> Tensor:
            return x.reshape(count, *x.shape[len(batch) :])

        points, values = flat(points), flat(values)
        last = None if self.join_kernels is None else self.join_kernels[-1]
        shares = [values / (k * (2 + self.labelled)) if last is None else values / k] * k
        if self.merge_kernels is not None:
            kernels = list(self.merge_kernels)
            shares = [values @ (w / (2 + self.labelled) if last is None else w @ last) for w in kernels]
        elif last is not None:
            shares = [shares[0] @ last] * k
        if labels is not None:
            labels = flat(labels)
            labels = labels / 3 if self.join_kernels is None else labels @ self.join_kernels[0]
        if weights is not None:
            weights = flat(weights)
            none = weights <= 0
            weights = torch.where(none, 0.0, torch.where(none, 1.0, weights) ** (1 / k))
        powers = self.products.powers(points, max(1, k - 1))
        return _Cloud(points, powers, shares, labels, weights, None if mask is None else flat(mask))

    def _rows(self, cloud: "_Cloud") -> int:
        """How many first points of tuples are looked at together."""
        batch, n = cloud.points.shape[:2]
        nets = [net for net in (self.value_net, self.score_net, self.scale_net) if net is not None]
        if self.training and any(True for net in nets for _ in net.buffers()):
            return n
        each = batch * n ** (self.products.rank - 1) * (1 if cloud.labels is None else cloud.labels.shape[1])
        return max(1, self.chunk // max(1, each))

    def _part_again(self) -> "Callable[[_Cloud, slice], _Sums]":
        """`_part`, computed again for the derivative, with the weights that the layer has now."""
        layer = _Part(self)
        weights: dict[str, Tensor] = {f"layer.{name}": x for name, x in self.named_parameters()}

        def part(cloud: _Cloud, rows: slice) -> _Sums:
            return torch.func.functional_call(layer, weights, (cloud, rows))

        return lambda cloud, rows: checkpoint(part, cloud, rows, use_reentrant=False)

    def _part(self, cloud: "_Cloud", rows: slice) -> "_Sums":
        """The sums over the tuples whose first point is one of `rows`, all or each point's own."""
        joined, score, covariant = self._tuples(cloud, rows)
        score = self._flat(score)
        top = score.amax(-1, keepdim=True).detach()
        share = (score - top).exp()
        total = share.sum(-1, keepdim=True)
        if cloud.weights is not None:
            share = share * self._flat(self._whole(_outer(cloud.weights, rows, self.products.rank, torch.mul)))
        invariant = None
        if self.output != "covariant":
            invariant = (share[..., None, :] @ self._flat(joined, 1))[..., 0, :]
        moved = None
        if covariant is not None and self.scale_net is not None:
            share = share * self._flat(self.scale_net(joined)[..., 0])
            moved = (share[..., None, :] @ self._flat(self._whole(covariant), 1))[..., 0, :]
        return _Sums(top, total, moved, invariant)

    def _tuples(self, cloud: "_Cloud", rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """For each tuple the joined value, the score, and the covariant, with the axes (batch, labels, k points)."""
        products, k = self.products, self.products.rank
        powers = [*cloud.powers, products.lengthen(cloud.powers[-1][:, rows], cloud.points)] if k > 1 else cloud.powers
        powers = powers if k > 1 else [powers[0][:, rows]]
        linear = []
        if self.linear_kernels is not None:
            linear = products.linear_of(products.spread(powers, rows, products.linear), self.linear_kernels)
        invariants = products.invariants_of(products.spread(powers, rows, products.invariants), linear)
        value = self.value_net(invariants)
        merged = _outer(cloud.shares, rows, k, torch.add)
        if self.join_kernels is None:
            joined = torch.add(merged, value, alpha=1 / (2 + self.labelled))
        else:
            joined = merged + value @ self.join_kernels[-2]
        if cloud.labels is not None:
            labels = cloud.labels
            joined = joined[:, None] + labels.reshape(*labels.shape[:2], *[1] * k, labels.shape[-1])
        score = self.score_net(joined)[..., 0]
        if cloud.mask is not None:
            score = score.masked_fill(~self._whole(_outer(cloud.mask, rows, k, torch.logical_and)), _MASKED)
        return joined, score, self._covariant(powers, rows, linear)

    def _covariant(self, powers: list[Tensor], rows: slice, linear: list[Tensor]) -> Tensor | None:
        """The weighted sum of a tuple's covariants."""
        if self.output == "invariant":
            return None
        products = self.products
        every = products.covariants_of(products.spread(powers, rows, products.covariants), linear)
        if self.vector_kernels is not None:
            weights = self.vector_kernels
            if self.convex:
                weights = torch.cat([weights, weights.new_zeros(1)]).softmax(0)[:-1]
            every = [x * weight for x, weight in zip(every, weights, strict=True)]
        return sum(every[1:], start=every[0])

    def _join(self, parts: "list[_Sums]") -> list[Tensor]:
        """What is put out, of the sums of all parts."""
        found = []
        for name in ("covariant", "invariant"):
            sums = [getattr(part, name) for part in parts]
            if sums[0] is None:
                continue
            if len(parts) == 1 or not self.reduce:
                found.append(torch.cat([x / part.total for x, part in zip(sums, parts, strict=True)], -2))
                continue
            tops = torch.stack([part.top for part in parts])
            share = (tops - tops.amax(0)).exp()
            total = (share * torch.stack([part.total for part in parts])).sum(0)
            found.append((share * torch.stack(sums)).sum(0) / total)
        return found

    def _whole(self, x: Tensor) -> Tensor:
        """With an axis for labels, where there are such."""
        return x[:, None] if self.labelled else x

    def _flat(self, x: Tensor, own: int = 0) -> Tensor:
        """The tuples that one softmax is over as one axis, before the `own` last ones."""
        keep = 1 + self.labelled + (not self.reduce)
        shape, last = x.shape[: x.ndim - own], x.shape[x.ndim - own :]
        return x.reshape(*shape[:keep], shape[keep:].numel(), *last)


class _Part(nn.Module):
    """A layer's `_part` as what can be called with other weights."""

    def __init__(self, layer: PointAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, cloud: "_Cloud", rows: slice) -> "_Sums":
        return self.layer._part(cloud, rows)


class _Cloud(NamedTuple):
    """By point: (b, n, size); the products of up to k - 1 of them; what the value of the k-th of a tuple adds (b, n,
    channels); labels (b, labels, channels); weights to the power 1 / k, and the mask (b, n)."""

    points: Tensor
    powers: list[Tensor]
    shares: list[Tensor]
    labels: Tensor | None
    weights: Tensor | None
    mask: Tensor | None


class _Sums(NamedTuple):
    """Over tuples: the greatest score, the sum of exp(score - top), and what they weigh."""

    top: Tensor
    total: Tensor
    covariant: Tensor | None
    invariant: Tensor | None


def _outer(x: Tensor | list[Tensor], rows: slice, k: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x_1[i_1] * x_2[i_2] * ... * x_k[i_k] (b, rows, n, ..., n, *) of k tensors (b, n, *), i_1 of `rows`.

    From the last to the first, so that only one operation is on whole tuples.
    """
    every = x if isinstance(x, list) else [x] * k
    every = [every[0][:, rows], *every[1:]]
    found = every[-1]
    for own in reversed(every[:-1]):
        found = combine(own.reshape(*own.shape[:2], *[1] * (found.ndim - own.ndim + 1), *own.shape[2:]), found[:, None])
    return found
