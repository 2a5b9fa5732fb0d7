"""Recurrences of a matrix that each token adds a product of two vectors to: linear attention and the delta rule.

The state has rows and lanes, and its lanes do not know each other: an item is one cloud, one head and as many lanes as
fit one vector (on CUDA one), through all tokens of the cloud. What a gradient needs is again such a recurrence, with
rows and lanes exchanged or the tokens from the last to the first, so that no states are kept.
"""

from typing import Any

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.lanes import LANES, VECTORS
from geom.kernels.native import native_kernel

__all__ = ["LARGEST", "delta_rule", "delta_rule_adjoint", "outer_difference", "outer_scan"]

LARGEST = 256  # rows that the stack has room for
_LEAST = 200_000  # numbers of all tokens' states below which a second thread costs more than it saves

_BEGIN = (
    VECTORS
    + """
    const long long* offsets = (const long long*)offsets_;
    const long long blocks = (lanes + WIDTH - 1) / WIDTH;
    const long long block = i % blocks, head = i / blocks % heads, cloud = i / blocks / heads;
    const long long begin = offsets[cloud], length = offsets[cloud + 1] - begin;
    const int some = lanes - block * WIDTH < WIDTH ? (int)(lanes - block * WIDTH) : WIDTH;
    alignas(64) V state[LARGEST];
    for (int r = 0; r < rows; ++r) state[r] = REAL(0);
    for (long long s = 0; s < length; ++s) {
        const long long t = reverse ? begin + length - 1 - s : begin + s;
        const long long at = head * tokens + t, row = at * rows, lane = at * lanes + block * WIDTH;
"""
)
_ZEROS, _SUM = "{REAL(0), REAL(0), REAL(0), REAL(0)}", "(y[0] + y[1]) + (y[2] + y[3])"
_SIZES = "offsets_: int64, tokens: int64, heads: int64, rows: int64, lanes: int64, reverse: int32"


def _complete(code: str) -> str:
    return (_BEGIN + code + "\n    }").replace("LARGEST", str(LARGEST))


def _rows(step: str) -> str:
    """C++ that takes `step` for each row r, four at a time, that their sums y[j] need not wait for each other."""
    four = " ".join(step.replace("[r]", f"[r + {j}]").replace("[j]", f"[{j}]") for j in range(4))
    return f"""
            int r = 0;
            for (; r + 4 <= rows; r += 4) {{ {four} }}
            for (; r < rows; ++r) {{ {step.replace("[j]", "[0]")} }}"""


def _loop(kept: str) -> str:
    """The state decays, is added to, and is read before or after."""
    step, read = f"state[r] = {kept} + add[r] * x;", "y[j] += state[r] * query[r];"
    return f"if (exclusive) {{ {_rows(f'{read} {step}')} }} else {{ {_rows(f'{step} {read}')} }}"


_SCAN = native_kernel(
    __name__,
    "outer_scan",
    f"add_: int64, x_: int64, query_: int64, decay_: int64, out_: int64, {_SIZES}, on_lanes: int32, late: int32, "
    "exclusive: int32",
    # `late`: a step decays by what the token before it, in the order of the scan, was given.
    _complete(f"""
        const REAL* add = (const REAL*)add_ + row;
        const REAL* query = (const REAL*)query_ + row;
        const V x = load((const REAL*)x_ + lane, some);
        V y[4] = {_ZEROS};
        const long long back = !late ? 0 : s == 0 ? 0 : reverse ? 1 : -1;
        if (!decay_) {{ {_loop("state[r]")} }}
        else if (on_lanes) {{
            const V own = load((const REAL*)decay_ + lane + back * lanes, some);
            {_loop("own * state[r]")}
        }} else {{
            const REAL* own = (const REAL*)decay_ + row + back * rows;
            {_loop("own[r] * state[r]")}
        }}
        store((REAL*)out_ + lane, some, {_SUM});
    """),
)

_DELTA = native_kernel(
    __name__,
    "delta_rule",
    f"key_: int64, x_: int64, query_: int64, rate_: int64, out_: int64, new_: int64, {_SIZES}",
    # What is new in x is what the state does not yet give for its key.
    _complete(f"""
        const REAL* key = (const REAL*)key_ + row;
        const REAL* query = (const REAL*)query_ + row;
        const REAL rate = ((const REAL*)rate_)[at];
        V known[4] = {_ZEROS}, y[4] = {_ZEROS};
        {{ {_rows("known[j] += state[r] * key[r];")} }}
        V fresh = load((const REAL*)x_ + lane, some) - ((known[0] + known[1]) + (known[2] + known[3]));
        store((REAL*)new_ + lane, some, fresh);
        fresh *= rate;
        {_rows("state[r] += key[r] * fresh; y[j] += state[r] * query[r];")}
        store((REAL*)out_ + lane, some, {_SUM});
    """),
)

_ADJOINT = native_kernel(
    __name__,
    "delta_rule_adjoint",
    f"key_: int64, g_: int64, query_: int64, rate_: int64, out_: int64, {_SIZES}",
    # The state is the gradient in the state, and the result the one in rate times what was new.
    _complete(f"""
        const REAL* key = (const REAL*)key_ + row;
        const REAL* query = (const REAL*)query_ + row;
        const REAL rate = ((const REAL*)rate_)[at];
        const V g = load((const REAL*)g_ + lane, some);
        V y[4] = {_ZEROS};
        {_rows("state[r] += query[r] * g; y[j] += state[r] * key[r];")}
        V sum = {_SUM};
        store((REAL*)out_ + lane, some, sum);
        sum *= rate;
        for (r = 0; r < rows; ++r) state[r] -= key[r] * sum;
    """),
)


_DIFFERENCE = native_kernel(
    __name__,
    "outer_difference",
    f"add_: int64, x_: int64, query_: int64, take_: int64, z_: int64, out_: int64, {_SIZES}",
    # What is taken away is taken after the state was read.
    _complete(f"""
        const REAL* add = (const REAL*)add_ + row;
        const REAL* take = (const REAL*)take_ + row;
        const REAL* query = (const REAL*)query_ + row;
        const V x = load((const REAL*)x_ + lane, some), z = load((const REAL*)z_ + lane, some);
        V y[4] = {_ZEROS};
        {_rows("state[r] += add[r] * x; y[j] += state[r] * query[r]; state[r] -= take[r] * z;")}
        store((REAL*)out_ + lane, some, {_SUM});
    """),
)


def _by_head(*tensors: Tensor | None) -> list[Any]:
    """(H, N, ...) of (N, H, ...): an item reads the memory of its head from one end to the other."""
    return [None if x is None else x.transpose(0, 1).contiguous() for x in tensors]


def _run(kernel: Any, tensors: list[Any], offsets: Tensor, rows: int, lanes: int, *flags: bool) -> None:
    (heads, count), clouds = tensors[0].shape[:2], offsets.shape[0] - 1
    device, offsets = tensors[0].device, offsets.contiguous()
    items = clouds * heads * (lanes if device.type == "cuda" else -(-lanes // LANES))
    grain = 1 + items * _LEAST // max(1, count * heads * rows * lanes)
    addresses = [0 if x is None else x.data_ptr() for x in (*tensors, offsets)]
    sizes = (count, heads, rows, lanes, *map(int, flags))
    bridge.launch(kernel[tensors[0].dtype], items, *addresses, *sizes, device=device, grain=grain)


@bridge.small_operations()
def outer_scan(
    add: Tensor,
    x: Tensor,
    query: Tensor,
    decay: Tensor | None,
    offsets: Tensor,
    *,
    reverse: bool = False,
    on_lanes: bool = False,
    late: bool = False,
    exclusive: bool = False,
) -> Tensor:
    """y_t = S_t^T query_t (N, H, E) of S_t = decay_t S_{t-1} + add_t x_t^T: add, query (N, H, D), x (N, H, E).

    `decay` (N, H, D), or (N, H, E) if `on_lanes`; `late` takes that of the step before; `exclusive` reads S_{t-1}
    without its decay, and is for no decay. Any strides; offsets (clouds + 1,).
    """
    tensors = _by_head(add, x, query, decay)
    out = torch.empty_like(tensors[1])
    flags = reverse, on_lanes, late, exclusive
    _run(_SCAN, [*tensors, out], offsets, add.shape[2], x.shape[2], *flags)
    return out.transpose(0, 1).contiguous()


@bridge.small_operations()
def outer_difference(
    add: Tensor, x: Tensor, query: Tensor, take: Tensor, z: Tensor, offsets: Tensor, *, reverse: bool
) -> Tensor:
    """y_t = S_t^T query_t of S_t = S_{t-1} - take_{t-1} z_{t-1}^T + add_t x_t^T: one sum of what nearly cancels."""
    tensors = _by_head(add, x, query, take, z)
    out = torch.empty_like(tensors[1])
    _run(_DIFFERENCE, [*tensors, out], offsets, add.shape[2], x.shape[2], reverse)
    return out.transpose(0, 1).contiguous()


@bridge.small_operations()
def delta_rule(
    key: Tensor, x: Tensor, query: Tensor, rate: Tensor, offsets: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """S_t^T query_t, and what is new, x_t - S_{t-1}^T key_t, of S_t = S_{t-1} + rate_t key_t new_t^T; rate (N, H)."""
    tensors = _by_head(key, x, query, rate)
    out, new = torch.empty_like(tensors[1]), torch.empty_like(tensors[1])
    _run(_DELTA, [*tensors, out, new], offsets, key.shape[2], x.shape[2], reverse)
    return out.transpose(0, 1).contiguous(), new.transpose(0, 1).contiguous()


@bridge.small_operations()
def delta_rule_adjoint(
    key: Tensor, grad: Tensor, query: Tensor, rate: Tensor, offsets: Tensor, reverse: bool
) -> Tensor:
    """The gradient in rate_t new_t from the one in the result, of a rule that ran the other way than `reverse`."""
    tensors = _by_head(key, grad, query, rate)
    out = torch.empty_like(tensors[1])
    _run(_ADJOINT, [*tensors, out], offsets, key.shape[2], grad.shape[2], reverse)
    return out.transpose(0, 1).contiguous()
