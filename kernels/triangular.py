"""A factorised symmetric matrix L D L^T applied backwards to many right-hand sides at once.

Column k of L, without its diagonal of ones, is starts[k] <= p < starts[k + 1]: `values[p]` in row `rows[p]` > k.
"""

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import native_kernel

__all__ = ["solve_factored"]

_PANEL = 8  # right-hand sides of one pass: 64 bytes, a line of the cache

_solve = native_kernel(
    __name__,
    "solve_factored",
    "starts: int64[], rows: int32[], values: real[], pivots: real[], panels: real[]",
    # Item i is a panel of right-hand sides, which become the solution in their place.
    """
    const int count = pivots.shape[0];
    REAL* own = panels.data + (long long)i * count * PANEL;
    for (int k = 0; k < count; ++k) {
        REAL x[PANEL];
        for (int j = 0; j < PANEL; ++j) x[j] = own[(long long)k * PANEL + j];
        for (long long p = starts.data[k]; p < starts.data[k + 1]; ++p) {
            REAL* to = own + (long long)rows.data[p] * PANEL;
            const REAL l = values.data[p];
            for (int j = 0; j < PANEL; ++j) to[j] -= l * x[j];
        }
    }
    for (int k = count - 1; k >= 0; --k) {
        REAL x[PANEL];
        for (int j = 0; j < PANEL; ++j) x[j] = own[(long long)k * PANEL + j] / pivots.data[k];
        for (long long p = starts.data[k]; p < starts.data[k + 1]; ++p) {
            const REAL* from = own + (long long)rows.data[p] * PANEL;
            const REAL l = values.data[p];
            for (int j = 0; j < PANEL; ++j) x[j] -= l * from[j];
        }
        for (int j = 0; j < PANEL; ++j) own[(long long)k * PANEL + j] = x[j];
    }
    """.replace("PANEL", str(_PANEL)),
)


def solve_factored(starts: Tensor, rows: Tensor, values: Tensor, pivots: Tensor, right: Tensor) -> Tensor:
    """x (N, B) of L D L^T x = right (N, B): starts (N+1,) int64, rows (P,) int32, values (P,), pivots (N,) = D."""
    count, width = right.shape
    panels = -(-width // _PANEL)
    filled = torch.nn.functional.pad(right, (0, panels * _PANEL - width))
    x = filled.reshape(count, panels, _PANEL).transpose(0, 1).contiguous()
    bridge.launch(_solve[right.dtype], panels, starts, rows, values, pivots, x, device=right.device, grain=1)
    return x.transpose(0, 1).reshape(count, panels * _PANEL)[:, :width]
