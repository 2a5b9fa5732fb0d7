"""Points gathered around some of them: the local grouping of Point Cloud Mamba, and the layers on its groups."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from geom.checks import check_integer, check_offsets
from geom.errors import ShapeError
from geom.nn import BatchNorm
from geom.points import farthest_point_sample, knn
from geom.points.cloud import offsets_of

__all__ = ["Groups", "LocalGrouper", "PointLayer", "PreExtraction", "ResidualLayer", "group"]

_ROWS = 4096  # of a piece, so that without gradients a piece passes all layers within the cache
_EPSILON = 1e-5


class Groups(NamedTuple):
    """Points `anchors` (M,), cloud after cloud, the `neighbors` (M, k) of each, and the anchors' `offsets` (B+1,)."""

    anchors: Tensor
    neighbors: Tensor
    offsets: Tensor


def group(
    points: Float[Tensor, "n 3"],
    neighbors: int,
    *,
    reduce: int = 1,
    offsets: Int64[Tensor, " clouds"] | None = None,
) -> Groups:
    """The farthest points of each cloud, n // `reduce` of them in the order of the cloud, and the k nearest of each.

    Farthest points begin at a cloud's first one; with `reduce` 1 all stay. A cloud of fewer than k points is padded
    with the nearest, the anchor itself.

    Args: points (N, 3); neighbors, k of at least 1; reduce of at least 1; offsets (B+1,).
    Returns: Groups of indices into the whole of `points`.
    Raises: ShapeError, also where a cloud has fewer than `reduce` points.

    >>> line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [6, 0, 0]])
    >>> group(line, 2, reduce=2).neighbors.tolist()
    [[0, 1], [3, 2]]

    Guarantees: not differentiable; deterministic; exact
    """
    check_integer(reduce, "reduce")
    points = points.detach()
    starts = check_offsets(offsets, len(points), device=points.device)
    sizes = starts.diff()
    if bool((sizes < reduce).any()):
        raise ShapeError(f"points: expected at least {reduce} in each cloud, got {int(sizes.min())}")
    if reduce == 1:
        anchors, ends = torch.arange(len(points), device=points.device), starts
    else:
        counts = sizes // reduce
        anchors = farthest_point_sample(points, counts, offsets=starts).sort().values
        ends = offsets_of(counts)
    near = knn(points[anchors], points, neighbors, query_offsets=ends, offsets=starts).index
    return Groups(anchors, torch.where(near < 0, near[:, :1], near), ends)


class PointLayer(nn.Module):
    """relu(norm(W x + b)) on rows (N, in) -> (N, out), norm over the rows (`geom.nn.BatchNorm`).

    Args: widths in and out; bias.
    Parameters are named as the published ones: net.0, a convolution of one tap, and net.1.

    Guarantees: differentiable; deterministic; 1e-14 f64, 1e-6 f32 of the greatest entry
    """

    def __init__(self, width_in: int, width_out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(width_in, width_out, 1, bias=bias), BatchNorm(width_out))

    def forward(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        return relu(normalized(self.net, x))


class ResidualLayer(nn.Module):
    """relu(x + norm(W_2 relu(norm(W_1 x)))) on rows (N, width).

    Args: width; bias. Parameters are named as the published ones: net1.0, net1.1, net2.0, net2.1.

    Guarantees: differentiable; deterministic; 1e-14 f64, 1e-6 f32 of the greatest entry
    """

    def __init__(self, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.net1, self.net2 = (
            nn.Sequential(nn.Conv1d(width, width, 1, bias=bias), BatchNorm(width)) for _ in range(2)
        )

    def forward(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return relu(x + normalized(self.net2, relu(normalized(self.net1, x))))


class LocalGrouper(nn.Module):
    """The two vectors that scale and shift what `PreExtraction` sees of a group: `affine_alpha`, `affine_beta`.

    Args: width of the features, to which the coordinates' 3 come.

    Guarantees: not differentiable; deterministic; exact
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.affine_alpha = nn.Parameter(torch.ones(1, 1, 1, width + 3))
        self.affine_beta = nn.Parameter(torch.zeros(1, 1, 1, width + 3))


class PreExtraction(nn.Module):
    """Features of groups: what the neighbours of an anchor have beyond it, through layers, and the greatest of them.

        g_ij = alpha (e_j - e_i) / (s + 1e-5) + beta, e = (f, x)        y_i = max_j layers(g_ij, f_i)

    s is the standard deviation of all entries of e_j - e_i in a cloud, as one number: the geometric affine module of
    PointMLP (Ma et al., 2022, Eq. (2)) as Point Cloud Mamba has it. The first layer, `transfer`, is linear before its
    norm, so it is applied to points and not to pairs, W (e_j - e_i) = W e_j - W e_i.

    Args: widths in and out.
    The call: grouper, features (N, in), points (N, 3), groups. The result: (M, out) of the anchors.
    Gradients flow to features and points, the groups held; where all of a cloud's points are one, s counts as constant.

    Guarantees: differentiable; deterministic; 1e-13 f64, 3e-6 f32 of the greatest entry
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.transfer = PointLayer(2 * width_in + 3, width_out)
        self.operation = nn.Sequential(ResidualLayer(width_out))

    def forward(
        self,
        grouper: LocalGrouper,
        features: Float[Tensor, "n c"],
        points: Float[Tensor, "n 3"],
        groups: Groups,
    ) -> Float[Tensor, "m d"]:
        every, (anchors, neighbors, offsets) = torch.cat([features, points], 1), groups
        sizes, width = offsets.diff(), every.shape[1]
        convolution, norm = self.transfer.net
        assert isinstance(convolution, nn.Conv1d) and isinstance(norm, nn.BatchNorm1d)
        weight = convolution.weight[..., 0]
        alpha, beta = grouper.affine_alpha.flatten(), grouper.affine_beta.flatten()
        own = every[anchors]
        fresh = linear(own[:, : width - 3], weight[:, width:], weight[:, :width] @ beta)
        shared = linear(every, weight[:, :width] * alpha)
        size = [int(x) for x in sizes]
        gaps = zip(neighbors.split(size), own.split(size), strict=True)
        spread = torch.stack([_spread(every[near] - x[:, None]) for near, x in gaps]) if size else every[:0, 0]
        scale = (1 / (spread + _EPSILON)).repeat_interleave(sizes, output_size=len(anchors))[:, None]
        fresh = fresh - scale * shared[anchors]
        if self.training or torch.is_grad_enabled():
            mixed = scale[:, None] * shared[neighbors] + fresh[:, None]
            y = relu(norm(mixed.flatten(0, 1)))
            return self.operation(y).unflatten(0, neighbors.shape).amax(1)
        gain, shift = folded(norm)
        fresh, shared = fresh * gain + shift, shared * gain
        step = max(1, _ROWS // max(1, neighbors.shape[1]))
        found = [fresh[:0]]
        for near, s, f in zip(neighbors.split(step), scale.split(step), fresh.split(step), strict=True):
            y = (s[:, None] * shared[near]).add_(f[:, None]).relu_()
            found.append(self.operation(y.flatten(0, 1)).unflatten(0, near.shape).amax(1))
        return torch.cat(found)


def normalized(pair: nn.Sequential, x: Tensor) -> Tensor:
    """A convolution of one tap and its norm on rows; outside of training as one product."""
    convolution, norm = pair
    assert isinstance(convolution, nn.Conv1d) and isinstance(norm, nn.BatchNorm1d)
    weight = convolution.weight[..., 0]
    if norm.training:
        return norm(linear(x, weight, convolution.bias))
    gain, shift = folded(norm)
    return linear(x, weight * gain[:, None], shift if convolution.bias is None else shift + gain * convolution.bias)


def folded(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """What a norm multiplies by and adds, outside of training."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    gain = norm.weight * (variance + norm.eps).rsqrt()
    return gain, norm.bias - mean * gain


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of all entries, unbiased; 0, with no gradient, where they are equal."""
    square = (x - x.mean()).square().sum() / (x.numel() - 1)
    still = square == 0
    return torch.where(still, 0, torch.where(still, 1, square).sqrt())
