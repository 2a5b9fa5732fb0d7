"""Voxels merged into coarser ones, and back; and new, empty ones beside those that matter most."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import gelu

from geom.checks import describe
from geom.errors import ShapeError
from geom.nn import SubmanifoldConv3d, Voxels, merge_voxels
from geom.nn.voxels import Triple, starts_of, triple
from geom.values import replace

__all__ = ["SpatialDescriptor", "VoxelMerge", "coarse_shape", "expand_voxels", "generate_voxels"]

Shape = tuple[int, int, int]
_DIAGONALS = ((-1, -1, 0), (-1, 1, 0), (1, -1, 0), (1, 1, 0))


def coarse_shape(shape: Shape, stride: Triple) -> Shape:
    """Cells of a box after merging: ceil(shape / stride) along each axis, so that an odd one keeps its last slice.

    Raises: ShapeError.

    >>> coarse_shape((7, 4, 5), 2)
    (4, 2, 3)
    """
    step = triple(stride, "stride", 1)
    x, y, z = (-(-n // s) for n, s in zip(triple(shape, "shape", 1), step, strict=True))
    return x, y, z


def expand_voxels(coarse: Voxels, index: Int64[Tensor, " n"], fine: Voxels) -> Voxels:
    """Undo a merge: every fine voxel gets its parent's features added, y_i = x_i + c_{index_i}.

    With the voxels that were merged and the index that `merge_voxels` or `VoxelMerge` gave, cells and their order are
    exactly those from before.

    Args: coarse, features (M, C); index (N,) into them; fine, features (N, C). Returns: Voxels (N, C).
    Raises: ShapeError.

    >>> fine = Voxels(torch.tensor([[0, 0, 4], [1, 1, 5]]), torch.tensor([[1.0], [2.0]]))
    >>> expand_voxels(*merge_voxels(fine, stride=2), fine).features.flatten().tolist()
    [4.0, 5.0]

    Guarantees: differentiable; deterministic; exact to one rounding
    """
    count, width = fine.features.shape
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.shape != (count,):
        raise ShapeError(f"index: expected an int64 tensor ({count},), got {describe(index)}")
    if coarse.features.shape[1] != width:
        raise ShapeError(
            f"coarse: expected {width} features a voxel, as the fine ones have, got {coarse.features.shape[1]}"
        )
    return replace(fine, features=fine.features + coarse.features.index_select(0, index))


def generate_voxels(
    voxels: Voxels, *, share: float = 0.2, shape: Shape | None = None
) -> tuple[Voxels, Int64[Tensor, " n"]]:
    """Put empty voxels at the four diagonal neighbours (x -+ 1, y -+ 1, z) of the voxels that say most.

    Those are, of a cloud's n voxels, the floor(share n) with the greatest mean over channels, the first of equals. The
    new ones carry zeros, which the operators that follow fill, and stand behind their cloud's. Cells may come twice:
    `merge_voxels` makes them one, and zeros add nothing to it. LION (Liu et al., 2024), Section 3.4.

    Args: voxels; share in [0, 1]; shape, the box [0, shape) into which new cells are clamped, None for no bounds.
    Returns: the voxels old and new, and the row (N,) of each old one among them.
    Raises: ShapeError.

    >>> one = Voxels(torch.tensor([[0, 3, 5], [9, 9, 9]]), torch.tensor([[2.0], [1.0]]))
    >>> generate_voxels(one, share=0.5, shape=(10, 10, 10))[0].grid[2:].tolist()
    [[0, 2, 5], [0, 4, 5], [1, 2, 5], [1, 4, 5]]

    Guarantees: differentiable (in features, the choice held fixed); deterministic; exact
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ShapeError(f"share: expected a number in [0, 1], got {share!r}")
    box = None if shape is None else triple(shape, "shape", 1)
    offsets, grid = starts_of(voxels), voxels.grid
    score = voxels.features.detach().mean(1)
    around, spans = grid.new_tensor(_DIAGONALS), list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    cells, rows, own, ends = [], [], [], [0]
    for start, stop in spans:
        best = start + score[start:stop].sort(descending=True, stable=True)[1][: math.floor(share * (stop - start))]
        near = (grid[best, None] + around).flatten(0, 1)
        if box is not None:
            near = near.clamp(min=0).minimum(grid.new_tensor(box) - 1)
        cells += [grid[start:stop], near]
        rows += [voxels.features[start:stop], voxels.features.new_zeros(len(near), voxels.features.shape[1])]
        own.append(torch.arange(start, stop, device=grid.device) + ends[-1] - start)
        ends.append(ends[-1] + stop - start + len(near))
    if not spans:
        return voxels, grid.new_empty(0)
    bounds = None if voxels.offsets is None else offsets.new_tensor(ends)
    return Voxels(torch.cat(cells), torch.cat(rows), bounds), torch.cat(own)


class SpatialDescriptor(nn.Module):
    """What lies around a voxel, before merging drops it: gelu(layer_norm(submanifold convolution of 3 x 3 x 3)).

    LION's 3D spatial feature descriptor (Liu et al., 2024), Section 3.3. It keeps the voxels and their order.

    Args: width, features of a voxel; generator of the first weights. The call: voxels -> voxels. Raises: ShapeError.

    Guarantees: differentiable; deterministic; 1e-14 f64, 2e-6 f32 of the greatest entry
    """

    def __init__(self, width: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.conv = SubmanifoldConv3d(width, width, bias=False, generator=generator)
        self.norm = nn.LayerNorm(width)

    def forward(self, voxels: Voxels) -> Voxels:
        return replace(voxels, features=gelu(self.norm(self.conv(voxels).features)))


class VoxelMerge(nn.Module):
    """Merge voxels: describe what is around them, spread some, add up those of a coarse cell, and normalise the sums.

    Cells are named by floor(grid / stride) alone: a slice that an odd box leaves over becomes one of its own, where the
    published code, which packs its keys by floor(shape / stride), takes it for the next row's first.

    Args: width, features of a voxel; stride, one number or one an axis; generated, the share of voxels whose diagonal
    neighbours are new ones, see `generate_voxels`; generator of the first weights.
    The call: voxels, each cell once, and the shape of their box, or None. Returns: the coarse voxels, and the index
    (N,) of each voxel's own. Raises: ShapeError.

    >>> fine = Voxels(torch.tensor([[0, 0, 4], [1, 1, 5], [1, 1, 6]]), torch.rand(3, 8))
    >>> coarse, index = VoxelMerge(8)(fine)
    >>> coarse.grid.tolist(), index.tolist()
    ([[0, 0, 2], [0, 0, 3]], [0, 0, 1])

    Guarantees: differentiable (in features, cells held fixed); deterministic; 1e-14 f64, 2e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        width: int,
        *,
        stride: Triple = 2,
        generated: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.stride, self.generated = triple(stride, "stride", 1), generated
        self.describe = SpatialDescriptor(width, generator=generator)
        self.norm = nn.LayerNorm(width)

    def forward(self, voxels: Voxels, shape: Shape | None = None) -> tuple[Voxels, Int64[Tensor, " n"]]:
        voxels, own = self.describe(voxels), None
        if self.generated:
            voxels, own = generate_voxels(voxels, share=self.generated, shape=shape)
        coarse, index = merge_voxels(voxels, stride=self.stride)
        normed: Float[Tensor, "m c"] = self.norm(coarse.features)
        return replace(coarse, features=normed), index if own is None else index[own]
