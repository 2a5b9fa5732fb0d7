"""Learning on what is sparse or ragged: voxels, reductions and convolution over them, attention within clouds."""

from geom.nn.batch_norm import BatchNorm
from geom.nn.kernel_map import KernelMap, lookup, strided_map, submanifold_map
from geom.nn.layers import SparseConv3d, SparseInverseConv3d, SubmanifoldConv3d
from geom.nn.official import load_official
from geom.nn.ragged_attention import attention
from geom.nn.scatter import scatter, scatter_softmax
from geom.nn.serialized_attention import Patches, patches, principal_coordinates
from geom.nn.sparse_conv import sparse_conv
from geom.nn.voxels import Voxels, merge_voxels, voxelize

__all__ = [
    "Voxels",
    "merge_voxels",
    "voxelize",
    "scatter",
    "scatter_softmax",
    "KernelMap",
    "lookup",
    "strided_map",
    "submanifold_map",
    "sparse_conv",
    "SparseConv3d",
    "SparseInverseConv3d",
    "SubmanifoldConv3d",
    "BatchNorm",
    "attention",
    "Patches",
    "patches",
    "principal_coordinates",
    "load_official",
]
