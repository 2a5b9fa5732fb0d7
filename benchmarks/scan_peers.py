"""Selective scans, linear attention and the delta rule as torch computes them without kernels, written from their
equations, and mambapy's scan and mixer."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from geom.sequence import Mamba

__all__ = [
    "SCANS",
    "by_mambapy",
    "chunked_attention",
    "chunked_delta_rule",
    "convolve",
    "loop_attention",
    "loop_delta_rule",
    "mambapy_mixer",
    "mambapy_scan",
]

_CHUNK = 16  # tokens between which sums of log decays stay small enough for their exponentials
_WIDE = 64  # tokens of a chunk without decays

# --- selective scans of u, delta (B, D, L), A (D, N), B, C (B, N, L), D (D,), in memory (B, L, D) ---------------------


def _steps(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Log decays and inputs, (B, L, D, N)."""
    u, delta, B = u.mT, delta.mT, B.mT
    return delta[..., None] * A, (delta * u)[..., None] * B[:, :, None]


def _read(states: Tensor, u: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """(B, D, L) of states (B, L, D, N)."""
    return ((states @ C.mT[..., None])[..., 0] + D * u.mT).mT


def loop_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Token by token; unbound, not sliced, so that the gradient takes as long as there are tokens, not its square."""
    logs, inputs = _steps(u, delta, A, B)
    state, states = torch.zeros_like(inputs[:, 0]), []
    for decay, new in zip(logs.exp().unbind(1), inputs.unbind(1), strict=True):
        state = decay * state + new
        states.append(state)
    return _read(torch.stack(states, 1), u, C, D)


def associative_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """torch's own, of pairs of a decay and an input, in its generic mode, the one that CPUs and gradients have."""
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    def combine(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return first[0] * second[0], second[0] * first[1] + second[1]

    logs, inputs = _steps(u, delta, A, B)
    return _read(scan(combine, (logs.exp(), inputs), dim=1, combine_mode="generic")[1], u, C, D)


def chunked_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Cumulative sums of inputs over their decays, which large steps make infinite, and a loop over chunks."""
    length = u.shape[2]
    logs, inputs = (
        pad(x, (0, 0, 0, 0, 0, -length % _CHUNK)).unflatten(1, (-1, _CHUNK)) for x in _steps(u, delta, A, B)
    )
    sums = logs.cumsum(2)
    decays, own = sums.exp(), (inputs * (-sums).exp()).cumsum(2)
    state, states = torch.zeros_like(own[:, 0, 0]), []
    for decay, new in zip(decays.unbind(1), own.unbind(1), strict=True):
        chunk = decay * (state[:, None] + new)
        state = chunk[:, -1]
        states.append(chunk)
    return _read(torch.cat(states, 1)[:, :length], u, C, D)


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mambapy's parallel scan (Blelloch's, with a gradient of its own), with all that its block does around it."""
    from mambapy.mamba import MambaBlock

    return MambaBlock.selective_scan(None, u.mT, delta.mT, A, B.mT, C.mT, D).mT  # type: ignore[arg-type]


SCANS: dict[str, Callable[..., Tensor]] = {
    "mambapy": mambapy_scan,
    "loop": loop_scan,
    "associative scan": associative_scan,
    "chunked": chunked_scan,
}


def mambapy_mixer(mixer: Mamba) -> nn.Module:
    """mambapy's block, of one direction or of two, with the weights of geom's."""
    from mambapy import mamba, vim

    state = mixer.state_dict()
    if mixer.bidirectional:
        both = vim.MambaConfig(d_model=mixer.width, n_layers=1, d_state=mixer.states, divide_output=False)
        block = vim.VMambaBlock(both)
        state["A_log_b"] = state.pop("A_b_log")
    else:
        block = mamba.MambaBlock(mamba.MambaConfig(d_model=mixer.width, n_layers=1, d_state=mixer.states))
    block = block.to(mixer.out_proj.weight)
    block.load_state_dict(state)
    return block


def by_mambapy(network: nn.Module) -> nn.Module:
    """A copy of a network whose mixers are mambapy's."""
    network = deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Mamba):
                module.add_module(name, mambapy_mixer(child))
    return network


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise causal convolution of (B, L, C) by weight (C, K), as Mamba's published code calls torch."""
    length, taps = x.shape[1], weight.shape[1]
    return conv1d(x.mT, weight[:, None], bias, padding=taps - 1, groups=x.shape[2])[..., :length].mT


# --- memories of one matrix a head: q, k, v, log decays (B, L, H, D), rates (B, L, H) ---------------------------------


def loop_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None) -> Tensor:
    q = q * q.shape[-1] ** -0.5
    columns = [x.unbind(1) for x in ((q, k, v) if g is None else (q, k, v, g.exp()))]
    state, found = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]), []
    for query, key, value, *decay in zip(*columns, strict=True):
        state = (decay[0][..., None] * state if decay else state) + key[..., None] * value[..., None, :]
        found.append((query[..., None, :] @ state)[..., 0, :])
    return torch.stack(found, 1)


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None) -> Tensor:
    """All pairs of a chunk, and a loop over chunks; with decays the pairs' differences, which are never above 0."""
    size = _WIDE if g is None else _CHUNK
    length, (q, k, v) = q.shape[1], (_chunks(x, size) for x in (q * q.shape[-1] ** -0.5, k, v))
    if g is None:
        inner = (q @ k.mT).tril()
        sums = last = None
    else:
        sums = _chunks(g, size).cumsum(-2)
        last = sums[..., -1:, :]
        past = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
        pairs = (sums[..., :, None, :] - sums[..., None, :, :]).masked_fill(~past[..., None], -torch.inf)
        inner = torch.einsum("...td,...sd,...tsd->...ts", q, k, pairs.exp())
        q, k = q * sums.exp(), k * (last - sums).exp()
    new, own = k.mT @ v, inner @ v
    state, found = torch.zeros_like(new[0]), []
    for i in range(len(new)):
        found.append(own[i] + q[i] @ state)
        state = new[i] + (state if last is None else last[i].exp().mT * state)
    return _tokens(torch.stack(found), length)


def loop_delta_rule(q: Tensor, k: Tensor, v: Tensor, rates: Tensor) -> Tensor:
    columns = [x.unbind(1) for x in (q * q.shape[-1] ** -0.5, k, v, rates[..., None])]
    state, found = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]), []
    for query, key, value, rate in zip(*columns, strict=True):
        new = rate * (value - (key[..., None, :] @ state)[..., 0, :])
        state = state + key[..., None] * new[..., None, :]
        found.append((query[..., None, :] @ state)[..., 0, :])
    return torch.stack(found, 1)


def chunked_delta_rule(q: Tensor, k: Tensor, v: Tensor, rates: Tensor) -> Tensor:
    """What a chunk's keys are told solves a triangular system (Yang et al., "Parallelizing linear transformers with the
    delta rule over sequence length", 2024); then as attention."""
    length, q = q.shape[1], q * q.shape[-1] ** -0.5
    q, k, v, rate = (_chunks(x, _WIDE) for x in (q, k, v, rates[..., None]))
    system = torch.eye(_WIDE, dtype=q.dtype, device=q.device) + (rate * (k @ k.mT)).tril(-1)
    told = torch.linalg.solve_triangular(system, rate * torch.cat([v, k], -1), upper=False)
    values, keys = told.split([v.shape[-1], k.shape[-1]], -1)
    inner = (q @ k.mT).tril()
    state, found = torch.zeros_like(k[0].mT @ v[0]), []
    for i in range(len(q)):
        new = values[i] - keys[i] @ state
        found.append(q[i] @ state + inner[i] @ new)
        state = state + k[i].mT @ new
    return _tokens(torch.stack(found), length)


def _chunks(x: Tensor, size: int) -> Tensor:
    """(B, L, H, D) as (chunks, B, H, size, D), zeros at the end."""
    return pad(x, (0, 0, 0, 0, 0, -x.shape[1] % size)).unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4)


def _tokens(x: Tensor, length: int) -> Tensor:
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]
