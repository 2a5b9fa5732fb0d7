"""`Mamba2`: the mixer of Dao and Gu (2024), in one direction or in both, over batches and over clouds."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu, softplus

from geom.checks import check_integer, describe
from geom.errors import ShapeError
from geom.sequence.convolution import causal_convolution
from geom.sequence.mamba import begin_uniform, inverse_softplus
from geom.sequence.state_space import state_space_dual

__all__ = ["Mamba2"]

_STEPS, _LEAST = (1e-3, 1e-1), 1e-4  # between which the first step sizes lie, and what they are at least
_RATES = 1.0, 16.0  # between which the first decay rates lie
_EPS = 1e-5


class Mamba2(nn.Module):
    """A mixer of tokens (x, offsets) -> x: a gated scan of heads, each of whose states one number decays.

        z, u, dt = W_in x        v, B, C = silu(causal_convolution(u))        delta = softplus(dt + b)
        y = state_space_dual(v, delta, -exp(A_log), B, C, D)        out = W_out rms_norm(y * silu(z))

    Dao and Gu, "Transformers are SSMs" (2024), Section 7 and Figure 6, as their code has it: the norm comes after the
    gate, and is one for each group of B and C. Unlike `Mamba`, B, C and the steps come straight from x, and there are
    as many rates as heads.

    With `bidirectional` a second branch runs from the last token to the first, with its own convolution, steps' bias,
    A_log and D, over the same W_in x; both results are added before the gate and the norm, in the manner of Zhu et
    al., "Vision Mamba" (2024), Algorithm 1, and of LION.

    Args:
        width: channels of a token.
        states: rows of a head's state. taps: of the convolution. expand: channels inside, per channel of a token.
        head_width: channels of a head, which divide those inside.
        groups: of B and C, each for as many heads.
        bidirectional: both directions.
        allow_neg_eigval: decays 2 a - 1 in [-1, 1], as of `selective_scan`.
        layers: of the network; W_out begins smaller by its square root.
        generator: of the first weights.

    Parameters are named as the official ones, and their state dicts load: in_proj (rows for z, v, B, C, dt), conv1d,
    dt_bias, A_log, D, norm.weight, out_proj; and conv1d_b, dt_bias_b, A_b_log, D_b. The steps' biases, A_log, D and
    their like want no weight decay, which their attribute `_no_weight_decay` says.

    Raises: ShapeError.

    >>> mixer = Mamba2(8, states=4, head_width=8, bidirectional=True)
    >>> mixer(torch.zeros(2, 5, 8)).shape, mixer(torch.zeros(7, 8), torch.tensor([0, 3, 7])).shape
    (torch.Size([2, 5, 8]), torch.Size([7, 8]))

    Guarantees: differentiable (any order); deterministic; 1e-14 f64, 2e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        width: int,
        *,
        states: int = 128,
        taps: int = 4,
        expand: int = 2,
        head_width: int = 64,
        groups: int = 1,
        bidirectional: bool = False,
        allow_neg_eigval: bool = False,
        layers: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        numbers = {"width": width, "states": states, "taps": taps, "expand": expand, "head_width": head_width}
        for name, x in {**numbers, "groups": groups, "layers": layers}.items():
            check_integer(x, name)
        inner = expand * width
        if inner % head_width:
            raise ShapeError(f"head_width: expected a divisor of {inner} channels, got {head_width!r}")
        heads = inner // head_width
        if heads % groups:
            raise ShapeError(f"groups: expected a divisor of {heads} heads, got {groups!r}")
        self.width, self.states, self.heads, self.groups = width, states, heads, groups
        self.bidirectional, self.allow_neg_eigval, self.layers = bidirectional, allow_neg_eigval, layers
        self.parts = inner, inner + 2 * groups * states, heads  # of W_in x: z, what is convolved, steps
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        for end in self._ends:
            mixed = self.parts[1]
            self.add_module(f"conv1d{end}", nn.Conv1d(mixed, mixed, taps, groups=mixed, padding=taps - 1))
            for name in (f"dt_bias{end}", f"A{end}_log", f"D{end}"):
                parameter = nn.Parameter(torch.empty(heads))
                parameter._no_weight_decay = True  # type: ignore[attr-defined]
                self.register_parameter(name, parameter)
        self.norm = nn.RMSNorm(inner, eps=_EPS)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.reset_parameters(generator)

    @property
    def _ends(self) -> tuple[str, ...]:
        return ("", "_b") if self.bidirectional else ("",)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights as the official code begins: steps log-uniform in 1e-3 to 1e-1, rates uniform in 1 to 16."""
        for module in self.children():
            begin_uniform(module, generator)
        with torch.no_grad():
            self.norm.weight.fill_(1)
            self.out_proj.weight.div_(math.sqrt(self.layers))
            for end in self._ends:
                bias, rates = self.get_parameter(f"dt_bias{end}"), self.get_parameter(f"A{end}_log")
                step = nn.init.uniform_(bias, *map(math.log, _STEPS), generator=generator).exp().clamp(min=_LEAST)
                bias.copy_(inverse_softplus(step))
                nn.init.uniform_(rates, *_RATES, generator=generator).log_()
                self.get_parameter(f"D{end}").fill_(1)

    def forward(
        self, x: Float[Tensor, "*b n c"], offsets: Int64[Tensor, " clouds"] | None = None
    ) -> Float[Tensor, "*b n c"]:
        """Args: x (..., L, width), or (N, width) of several clouds with offsets (clouds + 1,). Returns: as x.

        Raises: ShapeError.
        """
        if x.shape[-1] != self.width or x.ndim < 2 or (offsets is not None and x.ndim != 2):
            raise ShapeError(
                f"x: expected a tensor (..., L, {self.width}), or (N, {self.width}) where there are offsets, "
                f"got {describe(x)}"
            )
        z, u, dt = (linear(x, weight) for weight in self.in_proj.weight.split(self.parts))  # each in memory of its own
        y = self._scan(u, dt, offsets, "")
        if self.bidirectional:
            y = y + self._scan(u, dt, offsets, "_b")
        y = (y.flatten(-2) * silu(z)).unflatten(-1, (self.groups, -1))
        return self.out_proj(rms_norm(y, y.shape[-1:], None, _EPS).flatten(-2) * self.norm.weight)

    def _scan(self, u: Tensor, dt: Tensor, offsets: Tensor | None, end: str) -> Tensor:
        reverse, convolution = end == "_b", self.get_submodule(f"conv1d{end}")
        assert isinstance(convolution, nn.Conv1d)
        u = silu(causal_convolution(u, convolution.weight[:, 0], convolution.bias, offsets=offsets, reverse=reverse))
        v, B, C = u.split([self.parts[0]] + 2 * [self.groups * self.states], -1)
        B, C = (y.unflatten(-1, (self.groups, -1)) for y in (B, C))
        return state_space_dual(
            v.unflatten(-1, (self.heads, -1)),
            softplus(dt + self.get_parameter(f"dt_bias{end}")),
            -self.get_parameter(f"A{end}_log").exp(),
            B,
            C,
            self.get_parameter(f"D{end}"),
            offsets=offsets,
            reverse=reverse,
            allow_neg_eigval=self.allow_neg_eigval,
        )
