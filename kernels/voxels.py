"""Voxel keys in Morton order, and means over segments: what downsampling and voxel maps are made of."""

from collections.abc import Callable

import warp as wp
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import DTYPES, native_kernel

__all__ = ["CHUNK", "SPREAD", "morton_keys", "segment_mean"]

CHUNK = 64

SPREAD = """
    x = (x | x << 32) & 0x1f00000000ffffull;
    x = (x | x << 16) & 0x1f0000ff0000ffull;
    x = (x | x << 8) & 0x100f00f00f00f00full;
    x = (x | x << 4) & 0x10c30c30c30c30c3ull;
    x = (x | x << 2) & 0x1249249249249249ull;
"""  # the low 21 bits of x, two places apart

morton_keys = native_kernel(
    __name__,
    "morton_keys",
    "points: real[], offsets: int64[], origin: real[], inverse_size: real[], count: int32, keys: int64[]",
    # Item i is a chunk of points. A point's cell on its cloud's grid; the bits of the three axes interleaved, x lowest,
    # 21 bits an axis.
    """
    const int end = CHUNK * (i + 1) < count ? CHUNK * (i + 1) : count;
    int cloud = 0;
    for (int p = CHUNK * i; p < end;) {
        while (offsets.data[cloud + 1] <= p) ++cloud;
        const int stop = offsets.data[cloud + 1] < end ? (int)offsets.data[cloud + 1] : end;
        const REAL inverse = inverse_size.data[cloud];
        const REAL start[3] = {origin.data[3 * cloud], origin.data[3 * cloud + 1], origin.data[3 * cloud + 2]};
        for (; p < stop; ++p) {
            unsigned long long key = 0;
            for (int axis = 0; axis < 3; ++axis) {
                REAL cell = (points.data[3 * p + axis] - start[axis]) * inverse;
                cell = cell > REAL(0) ? cell : REAL(0);
                cell = cell < REAL(2097151) ? cell : REAL(2097151);
                unsigned long long x = (unsigned long long)(int)cell;
                SPREAD
                key |= x << axis;
            }
            keys.data[p] = (wp::int64)key;
        }
    }
    """.replace("CHUNK", str(CHUNK)).replace("SPREAD", SPREAD),
)


def _mean_kernel(real: type) -> wp.Kernel:
    @wp.kernel(module="geom.kernels.voxels")
    def mean(
        first: wp.int32,
        values: wp.array2d(dtype=real),
        order: wp.array(dtype=wp.int64),
        starts: wp.array(dtype=wp.int64),
        out: wp.array2d(dtype=real),
    ) -> None:
        # One segment. Sums run in float64, in the order of the segment, so the bits depend on nothing else.
        segment = first + wp.tid()
        begin = wp.int32(starts[segment])
        end = wp.int32(starts[segment + 1])
        count = wp.float64(wp.max(end - begin, 1))
        if values.shape[1] == 3:  # positions: each row is fetched once
            x, y, z = wp.float64(0.0), wp.float64(0.0), wp.float64(0.0)
            for k in range(begin, end):
                row = wp.int32(order[k])
                x += wp.float64(values[row, 0])
                y += wp.float64(values[row, 1])
                z += wp.float64(values[row, 2])
            out[segment, 0] = real(x / count)
            out[segment, 1] = real(y / count)
            out[segment, 2] = real(z / count)
        else:
            for column in range(values.shape[1]):
                total = wp.float64(0.0)
                for k in range(begin, end):
                    total += wp.float64(values[wp.int32(order[k]), column])
                out[segment, column] = real(total / count)

    return mean


_MEAN = {dtype: _mean_kernel(real) for dtype, real in DTYPES.items()}

# segment_mean(values (N, C), order (M,) int64, starts (S+1,) int64) -> (S, C): the mean of values[order[k]] over
# starts[s] <= k < starts[s+1], 0 for an empty segment; differentiable in values.
segment_mean: Callable[[Tensor, Tensor, Tensor], Tensor] = bridge.operator(
    "segment_mean",
    "(Tensor values, Tensor order, Tensor starts) -> Tensor",
    kernel=lambda dtype: _MEAN[dtype],
    output=lambda values, order, starts: values.new_empty((starts.shape[0] - 1, values.shape[1])),
    items=lambda values, order, starts: starts.shape[0] - 1,
    differentiable=(0,),
)
