"""`Mamba`: the mixer of Gu and Dao (2023), in one direction or in both, over batches and over clouds."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from geom.checks import check_integer, describe
from geom.errors import ShapeError
from geom.sequence.convolution import causal_convolution
from geom.sequence.scan import selective_scan

__all__ = ["Mamba"]

_STEPS = (1e-3, 1e-1)  # between which the first step sizes lie


def begin_uniform(module: nn.Module, generator: torch.Generator | None) -> None:
    """Weights and bias of a linear layer or a convolution as torch begins with them; others are left alone."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        bound = 1 / math.sqrt(module.weight[0].numel())
        for x in (module.weight, module.bias):
            if x is not None:
                nn.init.uniform_(x, -bound, bound, generator=generator)


def inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


class Mamba(nn.Module):
    """A mixer of tokens (x, offsets) -> x: a gated selective scan of twice as many channels.

        u, z = W_in x        u = silu(causal_convolution(u))        r, B, C = W_x u        delta = softplus(W_dt r + b)
        out = W_out (selective_scan(u, delta, -exp(A_log), B, C, D, z))

    Gu and Dao (2023), Figure 3. With `bidirectional` a second branch, with its own convolution, W_x, W_dt, A_log and D,
    runs from the last token to the first, and both results are added before W_out: Zhu et al., "Vision Mamba" (2024),
    Algorithm 1, in its second version, as Point Cloud Mamba and LION use it.

    Args:
        width: channels of a token.
        states: of each channel. taps: of the convolution. expand: channels inside, per channel of a token.
        rank: of the step sizes' projection; ceil(width / 16) if not given.
        bidirectional: both directions.
        allow_neg_eigval: decays in [-1, 1], as of `selective_scan`.
        layers: of the network; W_out begins smaller by its square root.
        generator: of the first weights.

    Parameters are named as the official ones, and their state dicts load: in_proj, conv1d, x_proj, dt_proj, A_log, D,
    out_proj, and conv1d_b, x_proj_b, dt_proj_b, A_b_log, D_b. A_log, D, A_b_log and D_b want no weight decay, which
    their attribute `_no_weight_decay` says.

    Raises: ShapeError.

    >>> mixer = Mamba(8, bidirectional=True)
    >>> mixer(torch.zeros(2, 5, 8)).shape, mixer(torch.zeros(7, 8), torch.tensor([0, 3, 7])).shape
    (torch.Size([2, 5, 8]), torch.Size([7, 8]))

    Guarantees: differentiable (any order); deterministic; 1e-14 f64, 2e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        width: int,
        *,
        states: int = 16,
        taps: int = 4,
        expand: int = 2,
        rank: int | None = None,
        bidirectional: bool = False,
        allow_neg_eigval: bool = False,
        layers: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16) if rank is None else rank
        for name, x in {"width": width, "states": states, "taps": taps, "expand": expand, "layers": layers}.items():
            check_integer(x, name)
        self.width, self.states, self.rank = width, states, rank
        self.bidirectional, self.allow_neg_eigval, self.layers = bidirectional, allow_neg_eigval, layers
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        for end in self._ends:
            self.add_module(f"conv1d{end}", nn.Conv1d(inner, inner, taps, groups=inner, padding=taps - 1))
            self.add_module(f"x_proj{end}", nn.Linear(inner, rank + 2 * states, bias=False))
            self.add_module(f"dt_proj{end}", nn.Linear(rank, inner))
            for name, shape in ((f"A{end}_log", (inner, states)), (f"D{end}", (inner,))):
                parameter = nn.Parameter(torch.empty(shape))
                parameter._no_weight_decay = True  # type: ignore[attr-defined]
                self.register_parameter(name, parameter)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.reset_parameters(generator)

    @property
    def _ends(self) -> tuple[str, ...]:
        return ("", "_b") if self.bidirectional else ("",)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights as the official code begins with them: steps log-uniform in [1e-3, 1e-1], rates 1 to N."""
        for name, module in self.named_children():
            begin_uniform(module, generator)
            if isinstance(module, nn.Linear) and name.startswith("dt_proj"):
                low, high = map(math.log, _STEPS)
                step = torch.rand(module.bias.shape, generator=generator).to(module.bias) * (high - low) + low
                with torch.no_grad():
                    module.bias.copy_(inverse_softplus(step.exp()))
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(self.layers))
            for end in self._ends:
                rates = self.get_parameter(f"A{end}_log")
                rates.copy_(torch.arange(1.0, self.states + 1).log().expand_as(rates))
                self.get_parameter(f"D{end}").fill_(1)

    def forward(
        self, x: Float[Tensor, "*b n c"], offsets: Int64[Tensor, " clouds"] | None = None
    ) -> Float[Tensor, "*b n c"]:
        """Args: x (B, L, width), or (N, width) of one cloud or, with offsets (clouds + 1,), of several. Returns: as x.

        Raises: ShapeError.
        """
        if x.shape[-1] != self.width or x.ndim not in (2, 3) or (offsets is not None and x.ndim != 2):
            raise ShapeError(
                f"x: expected a tensor (B, L, {self.width}), or (N, {self.width}) where there are offsets, "
                f"got {describe(x)}"
            )
        u, z = (linear(x, weight) for weight in self.in_proj.weight.chunk(2))  # each in memory of its own
        y = self._scan(u, z, offsets, "")
        if self.bidirectional:
            y = y + self._scan(u, z, offsets, "_b")
        return self.out_proj(y)

    def _scan(self, u: Tensor, z: Tensor, offsets: Tensor | None, end: str) -> Tensor:
        reverse = end == "_b"
        convolution, steps = self.get_submodule(f"conv1d{end}"), self.get_submodule(f"dt_proj{end}")
        assert isinstance(convolution, nn.Conv1d) and isinstance(steps, nn.Linear)
        u = silu(causal_convolution(u, convolution.weight[:, 0], convolution.bias, offsets=offsets, reverse=reverse))
        projected = self.get_submodule(f"x_proj{end}")(u)
        low, B, C = projected.split([self.rank, self.states, self.states], -1)
        delta = linear(low, steps.weight)
        wide = [y[None].mT if y.ndim == 2 else y.mT for y in (u, delta, B, C, z)]
        y = selective_scan(
            wide[0],
            wide[1],
            -self.get_parameter(f"A{end}_log").exp(),
            wide[2],
            wide[3],
            self.get_parameter(f"D{end}"),
            wide[4],
            steps.bias,
            True,
            offsets=offsets,
            reverse=reverse,
            allow_neg_eigval=self.allow_neg_eigval,
        )
        return y.mT if u.ndim == 3 else y[0].mT
