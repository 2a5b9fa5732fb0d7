"""Skeletons of images and volumes: thin lines of the same topology, and gradients through them.

Menten et al., "A skeletonization algorithm for gradient-based optimization", ICCV 2023. Each round goes through eight
subfields, the places of the same parities, no two of which touch; of each, all points that are simple (the topology is
the same without them) and were not ends when the round began are taken away at once.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from geom.checks import FLOATS, check_choice, check_positive, describe, readable
from geom.errors import ShapeError

__all__ = ["skeletonize"]

_FOREVER = 2**62
_SUBFIELDS = [(z, y, x) for x, y, z in product((1, 0), repeat=3)]  # their first voxels; the first axis changes fastest
_TINY = 1e-8  # keeps probabilities and noise off 0 and 1


def skeletonize(
    volume: Float[Tensor, "b 1 *size"] | Bool[Tensor, "b 1 *size"],
    *,
    iterations: int | None = None,
    criterion: str = "boolean",
    probabilistic: bool = False,
    beta: float = 0.33,
    tau: float = 1.0,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b 1 *size"] | Bool[Tensor, "b 1 *size"]:
    """Skeletons of images (B, 1, H, W) or volumes (B, 1, D, H, W): what is left when simple points go, round by round.

        y_i = x_i prod_r (1 - c_ri),   dy_i / dx_j = delta_ij prod_r (1 - c_ri)

    where c_ri is 1 if i is, in its turn of round r, simple and not an end, by its neighbours alone, whether it is one
    or zero itself. Gradients so reach the skeleton, and the zeros that would stay if they were ones (what would bridge
    a gap, close a ring or stand alone), all with weight 1. Ends have at most one neighbour. Ones are joined by faces,
    edges and corners, zeros by faces (in images 8 and 4 neighbours); beyond the border all are zero.

    Args:
        volume: ones and zeros, or numbers between, of which those above 0.5 count as ones, straight through: their
            derivative is 1. float32, float64 or bool; every side at least 3 long.
        iterations: rounds at most, each about a layer of voxels; None: until nothing changes.
        criterion: "boolean" (Bertrand 1996), exact: components, tunnels and cavities stay. "euler" (Lobregt 1980): the
            Euler number stays, but in a tangled volume a component and a tunnel may come or go together.
        probabilistic: the volume is of probabilities p, and point i a one where z_i > 0,
            z = (log((p + 1e-8) / (1 - p + 1e-8)) + beta log(u / (1 - u))) / tau with u uniform; the derivative is that
            of 1 / (1 + exp(-z)), finite at p = 0 and 1.
        beta, tau: of `probabilistic`, scale of the noise and temperature of the derivative.
        generator: of u.
        backend: "auto", "warp" or "torch" (the twin; "auto" under torch.func, where `iterations` must be a number).
    Returns: exact ones and zeros, like the volume.
    Raises: ShapeError, also for numbers outside [0, 1].

    The published code gives the same skeletons. It takes min(x_i, 1 - c_ri), whose derivative torch halves where both
    are equal: there, the gradient of a skeleton fades by half in each round.

    >>> square = torch.ones(1, 1, 5, 5)
    >>> square[..., 2, 2] = 0
    >>> skeletonize(square)[0, 0].int().tolist()
    [[0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]

    Guarantees: differentiable (straight through); deterministic; exact f64, exact f32
    """
    from geom.kernels import bridge

    _check(volume, iterations, criterion)
    given = volume.float() if volume.dtype == torch.bool else volume
    hard, soft = _draw(given, beta, tau, generator) if probabilistic else (given > 0.5, given)
    x = hard.to(given.dtype) + (soft - soft.detach())
    ones = hard.to(torch.uint8).reshape(len(hard), *(1,) * (5 - hard.ndim), *hard.shape[2:])
    rounds = _FOREVER if iterations is None else iterations
    exact = criterion == "boolean"
    native = bridge.choose(backend, given)
    if native or torch.compiler.is_compiling():
        state = _peel(ones, rounds, exact, torch.is_grad_enabled() and given.requires_grad, native)
    elif iterations is None and not readable(given):
        raise ShapeError("iterations: expected a number under torch.func, got None")
    else:
        state = _peel_twin(ones, rounds, exact)
    return torch.where(state.reshape(x.shape) < 2, x, 0.0).to(volume.dtype)


def _check(volume: Tensor, iterations: int | None, criterion: str) -> None:
    if not isinstance(volume, Tensor) or volume.dtype not in (*FLOATS, torch.bool) or volume.ndim not in (4, 5):
        raise ShapeError(
            "volume: expected a float32, float64 or bool tensor (B, 1, H, W) or (B, 1, D, H, W), "
            f"got {describe(volume)}"
        )
    if volume.shape[1] != 1 or min(volume.shape[2:]) < 3:
        raise ShapeError(f"volume: expected one channel, and sides of at least 3, got {describe(volume)}")
    if readable(volume) and not bool(((volume >= 0) & (volume <= 1)).all()):
        raise ShapeError("volume: expected numbers in [0, 1], got others, or NaN")
    if iterations is not None and (not isinstance(iterations, int) or iterations < 0):
        raise ShapeError(f"iterations: expected None or an int of at least 0, got {describe(iterations)}")
    check_choice(criterion, ("boolean", "euler"), "criterion")


def _draw(p: Tensor, beta: float, tau: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Ones drawn with probabilities p, and numbers with the derivatives that stand in for those of the draw."""
    check_positive(tau, "tau")
    if not 0 <= beta < math.inf:
        raise ShapeError(f"beta: expected a finite number of at least 0, got {describe(beta)}")
    device = generator.device if generator else p.device
    u = torch.rand(p.shape, generator=generator, dtype=torch.float64, device=device).clamp(_TINY, 1 - _TINY)
    noise = (beta * u.logit()).to(p)
    z = ((p + _TINY).log() - (1 - p + _TINY).log() + noise) / tau
    # the logistic function, less 1 above 0: there its own derivative would lose its digits
    return z > 0, torch.where(z > 0, -torch.sigmoid(-z), torch.sigmoid(z))


@torch.library.custom_op(
    "geom::peel",
    mutates_args=(),
    schema="(Tensor ones, int rounds, bool exact, bool everywhere, bool native) -> Tensor",
)
def _peel(ones: Tensor, rounds: int, exact: bool, everywhere: bool, native: bool) -> Tensor:
    """States (B, D, H, W) uint8: bit 0 the voxel, bit 1 whether it ever was simple and no end, for zeros only where
    asked for `everywhere`."""
    from geom.kernels import bridge, skeletonization

    if not native:
        return _peel_twin(ones, rounds, exact).contiguous()
    kernel = skeletonization.peel[torch.float32]  # it sees integers alone: either dtype's will do
    state = F.pad(ones, (1,) * 6).contiguous()
    before, changed = torch.empty_like(state), torch.ones((), dtype=torch.int32, device=ones.device)
    pointers = [x.data_ptr() for x in (state, before, changed)]
    fields = _fields(ones.shape)
    for _ in range(rounds):
        before.copy_(state)
        changed.zero_()
        for start, count in fields.items():
            args = (*pointers, *ones.shape[1:], *start, int(exact), int(everywhere))
            bridge.launch_range(kernel, count, *args, device=ones.device)
        if not int(changed):
            break
    return state[:, 1:-1, 1:-1, 1:-1].contiguous()


@_peel.register_fake
def _(ones: Tensor, rounds: int, exact: bool, everywhere: bool, native: bool) -> Tensor:
    return torch.empty_like(ones, memory_format=torch.contiguous_format)


def _fields(shape: Sequence[int]) -> dict[tuple[int, int, int], int]:
    """First voxels of the subfields that there are, in turn, and how many points they have in all."""
    points = {start: [len(range(s, n, 2)) for s, n in zip(start, shape[1:], strict=True)] for start in _SUBFIELDS}
    return {start: shape[0] * math.prod(counts) for start, counts in points.items() if shape[0] and all(counts)}


def _peel_twin(ones: UInt8[Tensor, "b d h w"], rounds: int, exact: bool) -> UInt8[Tensor, "b d h w"]:
    """The states, everywhere."""
    state = F.pad(ones, (1,) * 6)
    fields = _fields(ones.shape)
    for _ in range(rounds):
        before, state = state, state.clone()
        inner = state[:, 1:-1, 1:-1, 1:-1]
        near = before & 1
        for axis in (1, 2, 3):
            near = near.unfold(axis, 3, 1).sum(-1)
        end = near - (inner & 1) <= 1
        for start in fields:
            field = (slice(None), *(slice(s, None, 2) for s in start))
            gone = _simple(_neighbours(state, start), exact) & ~end[field]
            inner[field] = torch.where(gone, 2, inner[field])
        if readable(state) and torch.equal(state, before):
            break
    return state[:, 1:-1, 1:-1, 1:-1]


def _neighbours(state: Tensor, start: Sequence[int]) -> Int[Tensor, "b z y x"]:
    """The codes of a subfield's points, as in `geom.kernels.skeletonization`."""
    z, y, x = (slice(s, None) for s in start)
    code = (state[:, z, y, x] & 1).to(torch.int32)
    for axis, bits in ((3, (0, 1, 2)), (2, (0, 3, 6)), (1, (0, 9, 18))):
        code = (code.unfold(axis, 3, 2) << torch.tensor(bits, device=code.device)).sum(-1, dtype=torch.int32)
    return code & ~(1 << 13)  # the point itself


def _single(code: Tensor) -> Tensor:
    """Whether exactly one bit is set."""
    return (code != 0) & (code & (code - 1) == 0)


def _simple(code: Int[Tensor, "*b"], exact: bool) -> Bool[Tensor, "*b"]:
    """Conditions 1 to 4 of Bertrand, any of which makes a point simple; or the last half of the fourth: the Euler
    number of the zeros in the neighbourhood stays the same when the point is one of them."""
    from geom.kernels.skeletonization import A6, A18, A26, B18, B26, FACES, N18

    def count(configurations: Sequence[tuple[int, int]]) -> Tensor:
        return sum(((code & cells) == ones).to(torch.int32) for cells, ones in configurations)  # type: ignore[return-value]

    holes = count([(face, 0) for face in FACES])
    steady = holes - count(A18) + count(A26) == 1
    if not exact:
        return steady
    corner = count(B26) > 0
    return (holes == 1) | _single(code) | (_single(code & N18) & ~corner) | (steady & ~corner & (count(A6 + B18) == 0))
