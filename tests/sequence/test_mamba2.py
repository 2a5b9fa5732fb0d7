"""The mixer `Mamba2`: its published equations, names and first weights, and within LION."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, linear, silu, softplus

from geom.errors import ShapeError
from geom.sequence.lion import LION, LIONPlan
from geom.sequence.mamba2 import Mamba2
from tests.sequence.test_windows import scene

MIXERS: dict[str, Callable[[], Mamba2]] = {
    "one": lambda: Mamba2(12, states=5, head_width=4),
    "groups": lambda: Mamba2(12, states=5, head_width=4, groups=3),
    "both": lambda: Mamba2(12, states=5, head_width=6, groups=2, bidirectional=True),
    "signed": lambda: Mamba2(12, states=5, head_width=8, allow_neg_eigval=True),
}
mixers = pytest.mark.parametrize("name", MIXERS)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def make(name: str, dtype: torch.dtype = torch.float64) -> Mamba2:
    torch.manual_seed(0)
    mixer = MIXERS[name]().to(dtype)
    with torch.no_grad():  # what begins with ones must count
        for key in ("norm.weight", *(k for k in ("D", "D_b") if hasattr(mixer, k))):
            mixer.get_parameter(key).copy_(torch.linspace(0.5, 1.5, mixer.get_parameter(key).numel()))
        mixer.get_parameter("dt_bias").add_(3)  # steps that matter within a few tokens
    return mixer


def published(mixer: Mamba2, x: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + dt_t B_t x_t^T, y_t = C_t h_t + D x_t, one step after the other, with flips."""
    weights = dict(mixer.named_parameters())
    inner, heads, groups, states = mixer.parts[0], mixer.heads, mixer.groups, mixer.states
    zxbcdt = linear(x, weights["in_proj.weight"])
    z, dt = zxbcdt[..., :inner], zxbcdt[..., -heads:]
    total: Tensor | int = 0
    for end in ("", "_b") if mixer.bidirectional else ("",):
        xbc, steps = (y.flip(1) if end else y for y in (zxbcdt[..., inner:-heads], dt))
        taps = weights[f"conv1d{end}.weight"]
        xbc = conv1d(xbc.mT, taps, weights[f"conv1d{end}.bias"], padding=3, groups=len(taps))[..., : x.shape[1]]
        v, B, C = silu(xbc).mT.split([inner, groups * states, groups * states], 2)
        v = v.reshape(*v.shape[:2], heads, -1)
        B, C = (y.reshape(*y.shape[:2], groups, states).repeat_interleave(heads // groups, 2) for y in (B, C))
        steps = softplus(steps + weights[f"dt_bias{end}"])
        a = torch.exp(-steps * weights[f"A{end}_log"].exp())
        a = 2 * a - 1 if mixer.allow_neg_eigval else a
        h, out = torch.zeros(len(x), heads, v.shape[-1], states, dtype=x.dtype), []
        for t in range(x.shape[1]):
            h = a[:, t, :, None, None] * h + (steps[:, t, :, None] * v[:, t])[..., None] * B[:, t, :, None]
            out.append((h * C[:, t, :, None]).sum(3) + weights[f"D{end}"][:, None] * v[:, t])
        y = torch.stack(out, 1).flatten(2)
        total = total + (y.flip(1) if end else y)
    assert isinstance(total, Tensor)
    gated = (total * silu(z)).unflatten(2, (groups, -1))
    gated = gated / (gated.square().mean(3, keepdim=True) + 1e-5).sqrt()
    return linear(gated.flatten(2) * weights["norm.weight"], weights["out_proj.weight"])


@mixers
def test_it_is_what_was_published(name: str, dtype: torch.dtype) -> None:
    mixer, x = make(name, dtype), draw(2, 37, 12, dtype=dtype)
    got, want = mixer(x), published(mixer.double(), x.double())
    limit = 2e-6 if dtype == torch.float32 else 1e-14
    assert float((got - want).detach().abs().max()) <= limit * float(want.detach().abs().max())


@mixers
def test_second_derivatives(name: str) -> None:
    assert torch.autograd.gradgradcheck(make(name), (draw(2, 3, 12).requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
def test_the_official_names_and_shapes(groups: int, bidirectional: bool) -> None:
    state = Mamba2(64, states=16, head_width=32, groups=groups, bidirectional=bidirectional).state_dict()
    mixed = 128 + 2 * groups * 16
    branch = {
        "dt_bias{}": (4,),
        "A{}_log": (4,),
        "D{}": (4,),
        "conv1d{}.weight": (mixed, 1, 4),
        "conv1d{}.bias": (mixed,),
    }
    want = {k.format(end): shape for k, shape in branch.items() for end in ("", "_b")[: 1 + bidirectional]}
    want |= {"in_proj.weight": (128 + mixed + 4, 64), "norm.weight": (128,), "out_proj.weight": (64, 128)}
    assert {k: tuple(x.shape) for k, x in state.items()} == want


def test_it_begins_as_published() -> None:
    mixer, again = (
        Mamba2(256, head_width=4, layers=4, bidirectional=True, generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    for a, b in zip(mixer.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    for end in ("", "_b"):
        steps = softplus(mixer.get_parameter(f"dt_bias{end}").detach())
        rates = mixer.get_parameter(f"A{end}_log").detach().exp()
        assert 1e-3 * 0.99 <= float(steps.min()) < 2e-3 and 5e-2 < float(steps.max()) <= 1e-1 * 1.01
        assert 1 <= float(rates.min()) < 1.6 and 15 < float(rates.max()) <= 16.001
        assert bool((mixer.get_parameter(f"D{end}") == 1).all())
    bound = 1 / math.sqrt(512) / 2  # kaiming_uniform(a = sqrt 5), over sqrt(layers)
    assert 0.9 * bound < float(mixer.out_proj.weight.detach().abs().max()) <= bound
    spared = {n for n, p in mixer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert spared == {"A_log", "D", "dt_bias", "A_b_log", "D_b", "dt_bias_b"}


def test_lion_takes_it() -> None:
    plan = LIONPlan(
        width=8, windows=((5, 5, 8),), groups=(32,), last_window=(5, 5, 2), last_group=8, bev_windows=(), bev_groups=()
    )
    torch.manual_seed(0)
    net = LION(plan, operator=lambda width: Mamba2(width, states=6, head_width=8, bidirectional=True)).double()
    out, _ = net(scene((9, 7, 7), 2, 8), (9, 7, 7))
    out.features.square().sum().backward()
    for key, p in net.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()), key
    assert any(
        "operators.x.dt_bias_b" in key and p.grad.any() for key, p in net.named_parameters() if p.grad is not None
    )


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    with pytest.raises(ShapeError, match="states"):
        Mamba2(8, states=0)
    with pytest.raises(ShapeError, match="head_width"):
        Mamba2(8, head_width=5)
    with pytest.raises(ShapeError, match="groups"):
        Mamba2(8, head_width=8, groups=3)
    with pytest.raises(ShapeError, match="offsets"):
        Mamba2(8, states=4, head_width=8)(torch.zeros(5, 8), torch.tensor([0, 4]))
