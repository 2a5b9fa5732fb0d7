"""Animations: channels of key frames, each of one property of one node, and their values at any time."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from geom.lie import quaternion
from geom.values import Value, value

__all__ = ["Animation", "Channel", "Path", "Sampled", "sample"]

Path = Literal["translation", "rotation", "scale", "weights"]


@value
class Channel(Value):
    """Key frames of one property of one node.

    Fields: times, seconds, never falling; values (k, d), or (k, 3, d) with the tangents of a cubic spline: in-tangent,
        value, out-tangent, tangents a second. d is 3 for "translation" and "scale", 4 for "rotation" (w, x, y, z), and
        the number of morph targets for "weights"; node; path, the property; interpolation.
    """

    times: Float[Tensor, " k"]
    values: Float[Tensor, "k d"] | Float[Tensor, "k 3 d"]
    node: int
    path: Path
    interpolation: Literal["LINEAR", "STEP", "CUBICSPLINE"] = "LINEAR"


@value
class Animation(Value):
    """Channels that play together; no node has two channels of one path.

    Fields: channels; name.
    """

    channels: tuple[Channel, ...]
    name: str = ""

    @property
    def duration(self) -> float:
        """The last key frame of all, seconds; 0 where there is none."""
        return max((float(c.times[-1]) for c in self.channels), default=0.0)


class Sampled(NamedTuple):
    """Channels of one path at some times: their nodes, and values (*b, channels, d)."""

    path: str
    nodes: list[int]
    values: Tensor


def sample(channels: Iterable[Channel], time: Float[Tensor, "*b"]) -> list[Sampled]:
    """Every channel at every time, in float64, as section 3.11 and appendix C of glTF 2.0 say.

    Before the first key frame its value holds, after the last that one's. LINEAR goes the shorter way round a sphere
    for rotations; a cubic spline's rotation is normalised. At a key frame the value is the key frame's, exactly (a
    rotation's to rounding). Channels whose frames are alike in number are evaluated together.
    """
    groups: dict[tuple[str, str, tuple[int, ...]], list[Channel]] = {}
    for channel in channels:
        groups.setdefault((channel.path, channel.interpolation, tuple(channel.values.shape)), []).append(channel)
    flat = time.reshape(-1)
    found = []
    for (path, interpolation, _), group in groups.items():
        times = torch.stack([c.times for c in group]).double()
        values = torch.stack([c.values for c in group]).double()
        at = _interpolate(times, values, flat.double(), interpolation, path == "rotation")
        found.append(
            Sampled(path, [c.node for c in group], at.movedim(0, 1).reshape(*time.shape, len(group), values.shape[-1]))
        )
    return found


def _interpolate(times: Tensor, values: Tensor, time: Tensor, interpolation: str, turns: bool) -> Tensor:
    """times (c, k), values (c, k, ...) at time (t,): (c, t, d)."""
    k = times.shape[1]
    t = torch.minimum(torch.maximum(time, times[:, :1]), times[:, -1:])
    last = torch.searchsorted(times, t.detach().contiguous(), right=True) - 1
    if interpolation == "STEP":
        held = _pick(values, last)
        return _unit(held) if turns else held
    low = last.clamp(max=max(k - 2, 0))
    high = (low + 1).clamp(max=k - 1)
    t0, t1 = times.gather(1, low), times.gather(1, high)
    span = (t1 - t0)[..., None]
    long = span > 0  # not so after the last frame of two at one time
    s = torch.where(long, (t - t0)[..., None] / torch.where(long, span, 1.0), 1.0)
    a, b = _pick(values, low), _pick(values, high)
    if interpolation == "CUBICSPLINE":
        p0, p1, m0, m1 = a[..., 1, :], b[..., 1, :], span * a[..., 2, :], span * b[..., 0, :]
        s2, s3 = s**2, s**3
        p = (2 * s3 - 3 * s2 + 1) * p0 + (s3 - 2 * s2 + s) * m0 + (3 * s2 - 2 * s3) * p1 + (s3 - s2) * m1
        return _unit(p) if turns else p
    if turns:
        return quaternion.slerp(_unit(a), _unit(b), s[..., 0])
    return (1 - s) * a + s * b


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values (c, k, ...) at index (c, t): (c, t, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def _unit(q: Tensor) -> Tensor:
    """Quaternions of length 1; zeros become the identity."""
    square = q.square().sum(-1, keepdim=True)
    unit = q / torch.where(square > 0, square, 1.0).sqrt()
    return torch.where(square > 0, unit, torch.eye(1, 4, dtype=q.dtype, device=q.device)[0])
