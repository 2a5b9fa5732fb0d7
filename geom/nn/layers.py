"""Layers of sparse convolution: voxels in, voxels out."""

import math

import torch
from torch import Tensor, nn

from geom.checks import check_integer
from geom.nn.kernel_map import KernelMap, strided_map, submanifold_map
from geom.nn.sparse_conv import sparse_conv
from geom.nn.voxels import Triple, Voxels, triple

__all__ = ["SparseConv3d", "SparseInverseConv3d", "SubmanifoldConv3d"]


class _Layer(nn.Module):
    """`weight` (K, C_in, C_out) and `bias` (C_out,) or None, drawn as torch.nn.Conv3d draws them: uniform within
    1 / sqrt(K C_in)."""

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        bias: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            check_integer(channels, name)
        self.kernel_size = triple(kernel_size, "kernel_size", 1)
        elements = math.prod(self.kernel_size)
        bound = 1 / math.sqrt(elements * in_channels)
        self.weight = nn.Parameter(
            torch.empty(elements, in_channels, out_channels).uniform_(-bound, bound, generator=generator)
        )
        shift = torch.empty(out_channels).uniform_(-bound, bound, generator=generator) if bias else None
        self.register_parameter("bias", None if shift is None else nn.Parameter(shift))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[2]}, kernel_size={self.kernel_size}"

    def _over(self, voxels: Voxels, kernel_map: KernelMap) -> Voxels:
        features: Tensor = sparse_conv(voxels.features, self.weight, kernel_map, bias=self.bias)
        return Voxels(kernel_map.target, features, kernel_map.target_offsets)


class SubmanifoldConv3d(_Layer):
    """Convolution that keeps the voxels where they are (Graham et al., 2018, 3D semantic segmentation with submanifold
    sparse convolutional networks): y_o = sum_k x_{o + (k - (K - 1) / 2) dilation} W_k + b over the voxels there are.

    Args: in_channels, out_channels; kernel_size odd, and dilation, one number or one an axis; bias; generator of the
    first weights. The call: voxels, and their `submanifold_map` of this kernel, which layers share; it is built afresh
    where none is given. Weights as in `sparse_conv`.

    >>> row = Voxels(torch.tensor([[0, 0, 0], [0, 0, 1]]), torch.rand(2, 4))
    >>> SubmanifoldConv3d(4, 8)(row, submanifold_map(row)).features.shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Triple = 3,
        dilation: Triple = 1,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias, generator)
        self.dilation = triple(dilation, "dilation", 1)

    def forward(self, voxels: Voxels, kernel_map: KernelMap | None = None) -> Voxels:
        if kernel_map is None:
            kernel_map = submanifold_map(voxels, kernel_size=self.kernel_size, dilation=self.dilation)
        return self._over(voxels, kernel_map)


class SparseConv3d(_Layer):
    """Convolution to a coarser grid, at every cell that reaches a voxel: y_o = sum_k x_{o s - p + k d} W_k + b.

    Args: in_channels, out_channels; kernel_size, stride, padding and dilation, one number or one an axis; bias;
    generator of the first weights. The call: voxels, and their `strided_map` of this kernel, which the way back up
    needs again; it is built afresh where none is given, without a box. Weights as in `sparse_conv`.

    >>> row = Voxels(torch.tensor([[0, 0, 0], [0, 0, 1]]), torch.rand(2, 4))
    >>> SparseConv3d(4, 8)(row).grid.tolist()
    [[0, 0, 0]]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Triple = 2,
        stride: Triple = 2,
        padding: Triple = 0,
        dilation: Triple = 1,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias, generator)
        self.stride, self.padding = triple(stride, "stride", 1), triple(padding, "padding", 0)
        self.dilation = triple(dilation, "dilation", 1)

    def forward(self, voxels: Voxels, kernel_map: KernelMap | None = None) -> Voxels:
        if kernel_map is None:
            kernel_map = strided_map(
                voxels,
                kernel_size=self.kernel_size,
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
            )
        return self._over(voxels, kernel_map)


class SparseInverseConv3d(_Layer):
    """Convolution back to the voxels that a strided layer came from: y_i = sum_k x_{o(k, i)} W_k + b, o(k, i) the
    coarse voxel that had i under its element k. As torch.nn.ConvTranspose3d, at those voxels only.

    Args: in_channels, out_channels; kernel_size, the strided layer's; bias; generator of the first weights. The call:
    coarse voxels, and the map that the strided layer went down by. Weights as in `sparse_conv`; a dense transposed
    convolution's (C_in, C_out, K_x, K_y, K_z) become `w.permute(2, 3, 4, 0, 1).reshape(K, C_in, C_out)`.

    >>> row = Voxels(torch.tensor([[0, 0, 0], [0, 0, 1], [5, 5, 5]]), torch.rand(3, 4))
    >>> down = strided_map(row)
    >>> SparseInverseConv3d(8, 4)(SparseConv3d(4, 8)(row, down), down).grid.tolist()
    [[0, 0, 0], [0, 0, 1], [5, 5, 5]]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Triple = 2,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias, generator)

    def forward(self, voxels: Voxels, kernel_map: KernelMap) -> Voxels:
        return self._over(voxels, kernel_map.transpose())
