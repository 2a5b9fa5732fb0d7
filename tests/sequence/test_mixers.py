"""Mixers, `Mamba`, `Mamba2` and `LinearAttention`: one contract, the official equations and names, both directions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, linear, silu, softplus

from geom.errors import ShapeError
from geom.sequence import LinearAttention, Mamba, Mamba2

OFFSETS = torch.tensor([0, 3, 3, 20, 41])
MIXERS: dict[str, Callable[[], nn.Module]] = {
    "mamba": lambda: Mamba(12, states=4),
    "bimamba": lambda: Mamba(12, states=4, bidirectional=True),
    "signed": lambda: Mamba(12, states=4, allow_neg_eigval=True),
    "mamba2": lambda: Mamba2(12, states=5, head_width=4, groups=3),
    "mamba2_both": lambda: Mamba2(12, states=5, head_width=6, groups=2, bidirectional=True),
    "mamba2_signed": lambda: Mamba2(12, states=5, head_width=8, allow_neg_eigval=True),
    **{
        f"{kind}{'_both' * both}": lambda kind=kind, both=both: LinearAttention(
            12, heads=3, kind=kind, bidirectional=both
        )
        for kind in ("linear", "gated", "delta", "additive")
        for both in (False, True)
    },
}
mixers = pytest.mark.parametrize("name", MIXERS)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return MIXERS[name]().to(dtype)


@mixers
def test_clouds_are_mixed_each_by_itself(name: str, dtype: torch.dtype) -> None:
    mixer, x = make(name, dtype), draw(41, 12, dtype=dtype)
    whole = mixer(x, OFFSETS)
    assert whole.shape == x.shape and whole.dtype == dtype
    limit = 2e-6 if dtype == torch.float32 else 1e-14
    for begin, end in zip(OFFSETS[:-1].tolist(), OFFSETS[1:].tolist(), strict=True):
        torch.testing.assert_close(mixer(x[begin:end]), whole[begin:end], atol=limit, rtol=0)
        torch.testing.assert_close(mixer(x[None, begin:end])[0], whole[begin:end], atol=limit, rtol=0)


@mixers
def test_what_each_token_sees(name: str) -> None:
    mixer, x = make(name), draw(1, 30, 12).requires_grad_()
    seen = torch.autograd.grad(mixer(x)[0, 10].sum(), x)[0][0].abs().sum(1) > 0
    assert bool(seen[:11].all())
    assert bool(seen[11:].any()) == (name == "bimamba" or name.endswith("_both"))


@mixers
def test_gradients(name: str) -> None:
    mixer, x = make(name), draw(2, 5, 12).requires_grad_()
    assert torch.autograd.gradcheck(mixer, (x,), fast_mode=True)
    mixer(x).square().sum().backward()
    for p in mixer.parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any())
    zero = torch.zeros(1, 3, 12, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(mixer(zero).sum(), zero, create_graph=True)
    assert bool(first.isfinite().all())


def official(mixer: Mamba, x: Tensor) -> Tensor:
    """The mixer as its equations are published, with flips, one step after the other."""
    weights = dict(mixer.named_parameters())
    total: Tensor | int = 0
    for end in ("", "_b") if mixer.bidirectional else ("",):
        xz = linear(x, weights["in_proj.weight"]).mT
        xz = xz.flip(2) if end else xz
        u, z = xz.chunk(2, 1)
        taps = weights[f"conv1d{end}.weight"]
        u = silu(conv1d(u, taps, weights[f"conv1d{end}.bias"], padding=3, groups=len(taps))[..., : x.shape[1]])
        low, B, C = linear(u.mT, weights[f"x_proj{end}.weight"]).split([mixer.rank, mixer.states, mixer.states], 2)
        delta = softplus(linear(low, weights[f"dt_proj{end}.weight"], weights[f"dt_proj{end}.bias"]))
        A, D = -weights[f"A{end}_log"].exp(), weights[f"D{end}"]
        h, out = torch.zeros(len(x), *A.shape, dtype=x.dtype), []
        for t in range(x.shape[1]):
            h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[..., t])[..., None] * B[:, t, None]
            out.append((h * C[:, t, None]).sum(2) + D * u[..., t])
        y = torch.stack(out, 2) * silu(z)
        total = total + (y.flip(2) if end else y)
    assert isinstance(total, Tensor)
    return linear(total.mT, weights["out_proj.weight"])


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
def test_mamba_is_what_was_published(bidirectional: bool, dtype: torch.dtype) -> None:
    mixer = Mamba(24, bidirectional=bidirectional, generator=torch.Generator().manual_seed(0))
    x = draw(2, 21, 24, dtype=dtype)
    got = mixer.to(dtype)(x)
    want = official(mixer.double(), x.double())
    assert float((got - want).detach().abs().max()) <= (2e-6 if dtype == torch.float32 else 1e-14) * float(
        want.detach().abs().max()
    )


def test_mamba_has_the_official_names_and_shapes() -> None:
    state = Mamba(384, bidirectional=True).state_dict()
    branch = {
        "A{}_log": (768, 16),
        "D{}": (768,),
        "conv1d{}.weight": (768, 1, 4),
        "conv1d{}.bias": (768,),
        "x_proj{}.weight": (56, 768),
        "dt_proj{}.weight": (768, 24),
        "dt_proj{}.bias": (768,),
    }
    want = {name.format(end): shape for name, shape in branch.items() for end in ("", "_b")}
    want |= {"in_proj.weight": (1536, 384), "out_proj.weight": (384, 768)}
    assert {name: tuple(x.shape) for name, x in state.items()} == want
    assert not set(Mamba(384).state_dict()) & {name for name in want if "_b." in name or "_b" in name[-6:]}


def test_mamba_begins_as_published() -> None:
    mixer = Mamba(64, layers=4, generator=torch.Generator().manual_seed(0))
    again = Mamba(64, layers=4, generator=torch.Generator().manual_seed(0))
    for a, b in zip(mixer.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.allclose(mixer.get_parameter("A_log").exp(), torch.arange(1.0, 17).expand(128, 16))
    assert bool((mixer.get_parameter("D") == 1).all())
    steps = softplus(mixer.get_parameter("dt_proj.bias").detach())
    assert 1e-3 * 0.99 <= float(steps.min()) < 2e-3 and 5e-2 < float(steps.max()) <= 1e-1 * 1.01
    bound = 1 / math.sqrt(128) / 2  # kaiming_uniform(a = sqrt 5), over sqrt(layers)
    assert 0.9 * bound < float(mixer.out_proj.weight.detach().abs().max()) <= bound
    decayed = {n for n, p in mixer.named_parameters() if not getattr(p, "_no_weight_decay", False)}
    assert {n for n, _ in mixer.named_parameters()} - decayed == {"A_log", "D"}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["bimamba", "mamba2_both", "delta"])
def test_compile(name: str) -> None:
    mixer, x = make(name), draw(2, 5, 12).requires_grad_()
    torch.compiler.reset()
    got, want = torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (got, want)))


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    with pytest.raises(ShapeError, match="width"):
        Mamba(0)
    with pytest.raises(ShapeError, match="kind"):
        LinearAttention(8, kind="softmax")
    with pytest.raises(ShapeError, match="multiple"):
        LinearAttention(10, heads=4)
    with pytest.raises(ShapeError, match="allow_neg_eigval"):
        LinearAttention(8, kind="gated", allow_neg_eigval=True)
    for mixer in (Mamba(8), Mamba2(8, head_width=8), LinearAttention(8)):
        with pytest.raises(ShapeError, match="x: expected"):
            mixer(torch.zeros(2, 5, 9))
        with pytest.raises(ShapeError, match="expected"):
            mixer(torch.zeros(2, 5, 8), torch.tensor([0, 5]))
